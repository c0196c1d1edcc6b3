package quarklink

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/quarklink-go/quarklink/internal/api"
	"github.com/quarklink-go/quarklink/keystore"
)

// Enrolment is what the instance gave the device: a certificate over the device
// key, and where to go with it. At most one of Hub and Database is set; neither
// is by an authority that gives certificates and nothing else.
//
// It is plain data, so a test can make one. What the pointers of one that a
// Client returned lead to is shared and must not be changed.
type Enrolment struct {
	Certificate *x509.Certificate   // over the device key (DPK)
	Chain       []*x509.Certificate // between Certificate and its root, the nearest first; often empty
	CACerts     []*x509.Certificate // what verified Certificate: Chain, then the root
	Hub         *Hub
	Database    *Database
	// RenewAt is when Renew is called for: at two thirds of the certificate's
	// lifetime, or as Config.RenewShare says, give or take a sixth that depends
	// on the DeviceID.
	RenewAt time.Time
}

// Hub is an IoT hub that takes the device certificate: connect with
// Client.HubTLSConfig.
type Hub struct {
	Endpoint string // host name
	Port     uint16
	Roots    []*x509.Certificate // what to trust for the hub
	// ScopeID is set for the Azure Device Provisioning Service.
	ScopeID string
	// FirmwareUpdateTopic is where news of an update is published; may be empty.
	FirmwareUpdateTopic string
}

// Database is a database that takes a token (Database Direct): POST to
// https://Endpoint:Port followed by URI, with the token in the header field
// jwtTokenString. A 401 answer means that the token has expired: enrol again.
type Database struct {
	Endpoint   string // host name
	Port       uint16
	Roots      []*x509.Certificate // what to trust for the endpoint
	URI        string
	Database   string
	DataSource string
	Token      Secret // JWT
}

func (e *Enrolment) certifies(key crypto.Signer) bool {
	return key != nil && e.Certificate != nil && samePublicKey(e.Certificate.PublicKey, key.Public())
}

// connect checks connection details and makes them the Enrolment's.
func (e *Enrolment) connect(conn *api.Connection) error {
	if err := checkHost(conn.Endpoint); err != nil {
		return fmt.Errorf("connection details: endpoint %.130q: %w", conn.Endpoint, err)
	}
	if conn.Port == 0 {
		return errors.New("connection details without a port")
	}
	roots, err := parsePEM([]byte(conn.RootCA))
	if err != nil {
		return fmt.Errorf("connection details: root certificate: %w", err)
	}
	e.Hub, e.Database = nil, nil
	switch conn.Type {
	case api.TypeIoTHub:
		e.Hub = &Hub{Endpoint: conn.Endpoint, Port: conn.Port, Roots: roots,
			ScopeID: conn.ScopeID, FirmwareUpdateTopic: conn.FirmwareUpdateTopic}
	case api.TypeDatabaseDirect:
		if conn.Token == "" || !strings.HasPrefix(conn.URI, "/") {
			return fmt.Errorf("connection details: a database with a token of %d bytes and the URI %.130q", len(conn.Token), conn.URI)
		}
		e.Database = &Database{Endpoint: conn.Endpoint, Port: conn.Port, Roots: roots,
			URI: conn.URI, Database: conn.Database, DataSource: conn.DataSource, Token: Secret(conn.Token)}
	default:
		return fmt.Errorf("connection details of the unknown type %.40q", conn.Type)
	}
	return nil
}

// parsePEM returns the certificates in text, at least one. Text between them is
// skipped.
func parsePEM(text []byte) ([]*x509.Certificate, error) {
	var all []*x509.Certificate
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("a PEM block of type %.40q", block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		all, text = append(all, cert), rest
	}
	if len(all) == 0 || len(all) > maxRoots {
		return nil, fmt.Errorf("%d PEM certificates, need 1 to %d", len(all), maxRoots)
	}
	return all, nil
}

// enrolled is what the record "enrolment" holds.
type enrolled struct {
	Enrolment                    // without a Certificate there is none yet
	connection   *api.Connection // what Hub or Database was made from; nil until it has come
	noConnection bool            // the authority gives certificates and nothing else

	// A new certificate comes before its connection details. Until those have
	// come, the old certificate serves with the old details, and next is the new
	// one. If the old one cannot serve, the new one has its place already, and
	// stale says that the details are older than it.
	next  *certified
	stale bool

	renewal *renewal // the request that was made to renew Certificate; nil: none
	revoked bool     // the instance has revoked Certificate

	instance *boundInstance // that it belongs to; nil: an earlier library wrote it
	waiting  []byte         // DER of the CSR for a temporary certificate that the instance has yet to decide on
}

// certified is a device certificate with what verified it.
type certified struct {
	certificate    *x509.Certificate
	chain, cacerts []*x509.Certificate
	// As e.next: renews says that it came from Renew, and connection came for it
	// while it waits for its key to be the device's.
	renews     bool
	connection *api.Connection
}

func (n *certified) certifies(key crypto.Signer) bool {
	return n != nil && samePublicKey(n.certificate.PublicKey, key.Public())
}

// complete reports whether an application can work with it.
func (e *enrolled) complete() bool {
	return e != nil && e.Certificate != nil && (e.connection != nil || e.noConnection)
}

// certify puts a certificate in force.
func (e *enrolled) certify(c certified) {
	if !c.certificate.Equal(e.Certificate) {
		e.revoked = false
	}
	e.Certificate, e.Chain, e.CACerts, e.next = c.certificate, c.chain, c.cacerts, nil
}

// accept takes a certificate whose connection details have not come yet.
// oldServes says that the certificate in force could still be used.
func (e *enrolled) accept(c certified, oldServes bool) {
	e.renewal = nil
	switch {
	case c.certificate.Equal(e.Certificate):
		e.certify(c)
	case oldServes && e.complete():
		e.next = &c
	default:
		e.replace(c)
	}
}

// replace puts a certificate in force before its connection details have come.
func (e *enrolled) replace(c certified) {
	e.certify(c)
	e.stale = e.connection != nil
}

// arrive takes the connection details of the newest certificate.
func (e *enrolled) arrive(conn *api.Connection) error {
	if err := e.connect(conn); err != nil {
		return err
	}
	if e.next != nil {
		e.certify(*e.next)
	}
	e.renewal = nil
	e.connection, e.noConnection, e.stale = conn, false, false
	return nil
}

// boundInstance names the instance that an enrolment belongs to. The port does
// not count: it is how to reach the instance, not who it is.
type boundInstance struct {
	endpoint string
	// roots are the SHA-256 of the SubjectPublicKeyInfo of each root, so that a
	// root counts as the same when it is issued anew over its key. Empty if the
	// Transport brings its own trust.
	roots [][]byte
}

func boundTo(i Instance) *boundInstance {
	b := &boundInstance{endpoint: i.Endpoint}
	for _, root := range i.roots() {
		sum := sha256.Sum256(root.RawSubjectPublicKeyInfo)
		b.roots = append(b.roots, sum[:])
	}
	return b
}

// same reports whether both are the same instance: the same endpoint, and a root
// in common. So an instance stays the same when it moves to another port, and
// when it changes its roots one after the other.
func (b *boundInstance) same(other *boundInstance) bool {
	if !strings.EqualFold(b.endpoint, other.endpoint) {
		return false
	}
	if len(b.roots) == 0 && len(other.roots) == 0 {
		return true // the transport brings the trust
	}
	return slices.ContainsFunc(b.roots, func(root []byte) bool {
		return slices.ContainsFunc(other.roots, func(r []byte) bool { return bytes.Equal(r, root) })
	})
}

// belongsTo reports whether that instance issued it. One that an earlier library
// wrote does not say, and is taken to be the present instance's.
func (e *enrolled) belongsTo(i Instance) bool {
	return e.instance == nil || e.instance.same(boundTo(i))
}

// Enrolment returns what the last Enrol stored. It uses no network. Until the
// connection details of a new certificate have come, it is the enrolment before.
//
// Without a complete one the error is ErrNoEnrolment if the instance is known
// and ErrNothingStored if that is not either. An enrolment belongs to the
// instance that issued it: while the Client uses another one the error is
// ErrNoEnrolment too. The same instance is one with the same endpoint and at
// least one root in common, whatever its port. A damaged record is ErrStorage.
func (c *Client) Enrolment() (*Enrolment, error) {
	e, err := c.current(c.life)
	if err != nil {
		return nil, newError("enrolment", CodeGeneral, err)
	}
	return c.presented(e), nil
}

// current returns the enrolment that an application can work with.
func (c *Client) current(ctx context.Context) (*enrolled, error) {
	e, err := c.stored(ctx)
	if err != nil {
		return nil, err
	}
	c.follow(ctx, e)
	i, unknown := c.useInstance()
	switch {
	case e.complete() && (unknown != nil || e.belongsTo(i)):
		return e, nil
	case e.complete():
		return nil, withCode(CodeNoEnrolment, fmt.Errorf(
			"what is stored was issued by the instance %q, and the one in use is %q: enrol first", e.instance.endpoint, i.Endpoint))
	case errors.Is(unknown, ErrNotInitialised):
		return nil, withCode(CodeNothingStored, errors.New("provision the device, then enrol"))
	}
	return nil, withCode(CodeNoEnrolment, errors.New("enrol first"))
}

// follow puts the new certificate in force if its key is the device's by now: a
// power cut came between the two.
func (c *Client) follow(ctx context.Context, e *enrolled) {
	if e == nil || e.next == nil || e.next.connection == nil {
		return
	}
	dsk, err := c.keys.Signer(ctx, keystore.Device)
	if err != nil || !e.next.certifies(dsk) {
		return
	}
	if err := e.arrive(e.next.connection); err != nil {
		c.log.LogAttrs(ctx, slog.LevelWarn, "connection details of the new certificate", slog.Any("error", err))
	}
}

// stored returns what the record "enrolment" says now, also if another process
// wrote it; nil if there is none. The caller owns it. If the Store does not
// answer it is what this Client read or wrote last.
func (c *Client) stored(ctx context.Context) (*enrolled, error) {
	e, err := readRecord(ctx, c.store, recordEnrolment, decodeEnrolment)
	if err == nil || errors.Is(err, errUnusable) {
		return e, err
	}
	if ctx.Err() == nil {
		c.log.LogAttrs(ctx, slog.LevelWarn, "stored enrolment cannot be read now", slog.Any("error", err))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state.enrolment == nil {
		return nil, c.state.enrolmentErr
	}
	last := *c.state.enrolment
	return &last, nil
}

func (c *Client) putEnrolment(ctx context.Context, e *enrolled) error {
	if err := c.put(ctx, recordEnrolment, encodeEnrolment(e)); err != nil {
		return err
	}
	last := *e
	c.setEnrolment(&last)
	return nil
}

func (c *Client) setEnrolment(e *enrolled) {
	c.mu.Lock()
	c.state.enrolment, c.state.enrolmentErr = e, nil
	c.mu.Unlock()
}

// bind has the stored enrolment say that it belongs to the instance in use, if
// it does and does not say so yet: because an earlier library wrote it or, once
// the instance has proven itself, because the set of its roots has changed.
func (c *Client) bind(ctx context.Context, proven bool) error {
	i, unknown := c.useInstance()
	e, err := c.stored(ctx)
	if unknown != nil || err != nil || e == nil || !e.belongsTo(i) {
		return nil // nothing to bind, or nothing to bind it to
	}
	if e.instance != nil && !proven {
		return nil
	}
	e.instance = boundTo(i)
	return c.putEnrolment(ctx, e)
}
