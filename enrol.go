package quarklink

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/quarklink-go/quarklink/internal/api"
	"github.com/quarklink-go/quarklink/internal/est"
	"github.com/quarklink-go/quarklink/keystore"
)

// Enrolment is what the instance gave the device: a certificate over the device
// key, and where to go with it. Exactly one of Hub and Database is set. What
// the pointers lead to is shared and must not be changed.
type Enrolment struct {
	Certificate *x509.Certificate   // over the device key (DPK)
	Chain       []*x509.Certificate // between Certificate and its root, the nearest first; often empty
	CACerts     []*x509.Certificate // the issuing certificates, as fetched
	Hub         *Hub
	Database    *Database

	issuers    []*x509.Certificate // cacerts for an enrolment under way; they replace CACerts with its certificate
	connection *api.Connection     // as it came, to be stored
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

// complete reports whether an application can work with it.
func (e *Enrolment) complete() bool {
	return e != nil && e.Certificate != nil && e.connection != nil
}

// connect checks connection details and makes them the Enrolment's.
func (e *Enrolment) connect(conn api.Connection) error {
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
	e.connection = &conn
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

// Enrolment returns what the last Enrol stored. It uses no network. Without a
// complete one the error is ErrNoEnrolment if the instance is known and
// ErrNothingStored if that is not either. A damaged record is ErrStorage.
func (c *Client) Enrolment() (*Enrolment, error) {
	e, err := c.enrolled()
	if err != nil {
		return nil, newError("enrolment", CodeGeneral, err)
	}
	return e, nil
}

func (c *Client) enrolled() (*Enrolment, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := &c.state
	switch {
	case s.enrolmentErr != nil:
		return nil, s.enrolmentErr
	case s.enrolment.complete():
		e := *s.enrolment
		return &e, nil
	case s.instance == nil && s.instanceErr == nil:
		return nil, withCode(CodeNothingStored, errors.New("provision the device, then enrol"))
	}
	return nil, withCode(CodeNoEnrolment, errors.New("enrol first"))
}

func (c *Client) setEnrolment(e *Enrolment) {
	c.mu.Lock()
	c.state.enrolment, c.state.enrolmentErr = e, nil
	c.mu.Unlock()
}

// Enrol has the device key certified and learns where to connect with it. It
// makes the device key if it is absent and the KeyStore is a
// keystore.Generator.
//
// The steps: with the identity certificate it asks for a temporary certificate;
// with that it fetches the issuing certificates, has the device key certified,
// and fetches the connection details. Each result is stored before the next
// step. After a power cut at any instant the next Enrol carries on with the
// same CSR, for which the instance returns the same certificate; so does an
// Enrol that was not called for.
//
// Among the errors: ErrDeviceDoesNotExist and ErrDeviceRevoked as the instance
// says, ErrCACerts for issuing certificates or a device certificate that does
// not chain to them, ErrCommunication, ErrStorage, ErrNotInitialised. Whatever
// was enrolled before stays until the new certificate is stored.
func (c *Client) Enrol(ctx context.Context) (*Enrolment, error) {
	var done *Enrolment
	err := c.run(ctx, "enrol", func(ctx context.Context) error {
		var err error
		done, err = c.enrol(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	return done, nil
}

func (c *Client) enrol(ctx context.Context) (*Enrolment, error) {
	dsk, err := c.key(ctx, keystore.Device)
	if err != nil {
		return nil, err
	}
	csr, err := c.deviceCSR(ctx, dsk)
	if err != nil {
		return nil, err
	}
	temporary, err := c.temporaryCertificate(ctx)
	if err != nil {
		return nil, err
	}
	s, err := c.open(temporary)
	if err != nil {
		return nil, err
	}
	// The temporary certificate is in memory only, and so is its connection.
	defer c.closeSession()

	e, err := c.issuers(ctx, s)
	if err != nil {
		return nil, err
	}
	if err := c.certify(ctx, s, e, csr); err != nil {
		return nil, err
	}
	if err := c.whereTo(ctx, s, e); err != nil {
		return nil, err
	}
	c.log.LogAttrs(ctx, slog.LevelInfo, "enrolled", slog.Time("until", e.Certificate.NotAfter))
	result := *e
	return &result, nil
}

// deviceCSR returns the stored CSR if it is over the device key, so that an
// instance that has answered it before can answer the same again; otherwise it
// makes and stores one.
func (c *Client) deviceCSR(ctx context.Context, dsk crypto.Signer) ([]byte, error) {
	stored, err := readRecord(ctx, c.store, recordCSR, func(der []byte) (*x509.CertificateRequest, error) {
		return x509.ParseCertificateRequest(der)
	})
	var damaged *damagedRecord
	switch {
	case errors.As(err, &damaged):
		c.log.LogAttrs(ctx, slog.LevelWarn, "stored CSR is damaged", slog.Any("error", err))
	case err != nil:
		return nil, err
	case stored != nil && stored.Subject.CommonName == string(c.id) && samePublicKey(stored.PublicKey, dsk.Public()):
		return stored.Raw, nil
	}
	der, err := c.newCSR(dsk)
	if err != nil {
		return nil, fmt.Errorf("make the CSR: %w", err)
	}
	return der, c.put(ctx, recordCSR, der)
}

func (c *Client) newCSR(signer crypto.Signer) ([]byte, error) {
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:            pkix.Name{CommonName: string(c.id)},
		SignatureAlgorithm: signatureAlgorithm(signer),
	}, signer)
}

func samePublicKey(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// temporaryCertificate asks for a short-lived certificate over the enrolment
// key. Its issuer is none of the issuing certificates, so there is no chain to
// check: the pinned connection vouches for it.
func (c *Client) temporaryCertificate(ctx context.Context) (*tls.Certificate, error) {
	csr, err := c.newCSR(c.esk)
	if err != nil {
		return nil, fmt.Errorf("make the CSR for the temporary certificate: %w", err)
	}
	s, err := c.identitySession()
	if err != nil {
		return nil, err
	}
	var cert *x509.Certificate
	err = c.ask(ctx, "temporary certificate", func(ctx context.Context) (err error) {
		cert, err = s.est.Enrol(ctx, "temporary", csr)
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := est.Fresh(cert, c.now()); err != nil {
		return nil, fmt.Errorf("temporary certificate: %w", err)
	}
	return c.watch(tlsCertificate(c.esk, cert.Raw)), nil
}

// issuers fetches and stores the issuing certificates beside whatever is
// enrolled already.
func (c *Client) issuers(ctx context.Context, s *session) (*Enrolment, error) {
	var cacerts []*x509.Certificate
	err := c.ask(ctx, "issuing certificates", func(ctx context.Context) (err error) {
		cacerts, err = s.est.CACerts(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	e := new(Enrolment)
	c.mu.Lock()
	if c.state.enrolment != nil {
		*e = *c.state.enrolment
	}
	c.mu.Unlock()
	e.issuers = cacerts
	return e, c.putEnrolment(ctx, e)
}

// certify has the CSR certified, and stores the certificate once it is known
// to chain to the issuing certificates.
func (c *Client) certify(ctx context.Context, s *session, e *Enrolment, csr []byte) error {
	var cert *x509.Certificate
	err := c.ask(ctx, "device certificate", func(ctx context.Context) (err error) {
		cert, err = s.est.Enrol(ctx, "", csr)
		return err
	})
	if err != nil {
		return err
	}
	chain, err := est.Chain(cert, e.issuers, c.now())
	if err != nil {
		return fmt.Errorf("device certificate: %w", err)
	}
	if !cert.Equal(e.Certificate) {
		// Connection details belong to the certificate they came with.
		e.Hub, e.Database, e.connection = nil, nil, nil
	}
	e.Certificate, e.Chain, e.CACerts, e.issuers = cert, chain, e.issuers, nil
	return c.putEnrolment(ctx, e)
}

// whereTo fetches and stores the connection details.
func (c *Client) whereTo(ctx context.Context, s *session, e *Enrolment) error {
	var conn api.Connection
	err := c.ask(ctx, "connection details", func(ctx context.Context) (err error) {
		conn, err = s.api.Connection(ctx)
		return err
	})
	if err != nil {
		return err
	}
	if err := e.connect(conn); err != nil {
		return err
	}
	return c.putEnrolment(ctx, e)
}

func (c *Client) putEnrolment(ctx context.Context, e *Enrolment) error {
	if err := c.put(ctx, recordEnrolment, encodeEnrolment(e)); err != nil {
		return err
	}
	stored := *e
	c.setEnrolment(&stored)
	return nil
}

func (e *Enrolment) certifies(key crypto.Signer) bool {
	return key != nil && samePublicKey(e.Certificate.PublicKey, key.Public())
}
