package quarklink

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"

	"github.com/quarklink-go/quarklink/internal/api"
	"github.com/quarklink-go/quarklink/store"
)

// The records that a Client keeps. The key stores keep theirs beside them.
const (
	recordInstance  = "instance"
	recordNetwork   = "network"
	recordEnrolment = "enrolment"
	recordCSR       = "csr" // DER of the pending or last CSR for the device key
)

// recordVersion is the version of every record's layout. A higher one was
// written by a later library and is refused.
const recordVersion = 1

type instanceRecord struct {
	Endpoint string   `json:"endpoint"`
	Port     uint16   `json:"port"`
	Root     []byte   `json:"root"`            // DER
	Roots    [][]byte `json:"roots,omitempty"` // further ones
}

type networkRecord struct {
	SSID     []byte `json:"ssid"` // any bytes, not only UTF-8
	Password []byte `json:"password"`
}

type enrolmentRecord struct {
	Certificate  []byte          `json:"certificate,omitempty"` // DER, as are the lists
	Chain        [][]byte        `json:"chain,omitempty"`
	CACerts      [][]byte        `json:"cacerts,omitempty"` // those that are not in chain
	Connection   *api.Connection `json:"connection,omitempty"`
	NoConnection bool            `json:"noConnection,omitempty"` // there will be none
	Stale        bool            `json:"stale,omitempty"`        // connection is older than certificate
	Next         *nextRecord     `json:"next,omitempty"`         // awaits its connection
	Instance     *boundRecord    `json:"instance,omitempty"`
	Waiting      []byte          `json:"waiting,omitempty"` // DER of a CSR
	Renewal      *renewalRecord  `json:"renewal,omitempty"`
	Revoked      bool            `json:"revoked,omitempty"`
}

type renewalRecord struct {
	CSR []byte     `json:"csr"` // DER
	Of  api.Digest `json:"of"`  // of the certificate
}

type nextRecord struct {
	Certificate []byte   `json:"certificate"`
	Same        bool     `json:"same,omitempty"` // chain and cacerts are those of the certificate in force
	Chain       [][]byte `json:"chain,omitempty"`
	CACerts     [][]byte `json:"cacerts,omitempty"`

	Renews     bool            `json:"renews,omitempty"`
	Connection *api.Connection `json:"connection,omitempty"`
}

type boundRecord struct {
	Endpoint string   `json:"endpoint"`
	Roots    [][]byte `json:"roots,omitempty"` // SHA-256 of each SubjectPublicKeyInfo
}

// load reads the records. An absent one leaves its part of the state empty, a
// damaged one leaves an error there; only a Store that does not answer fails
// load.
func (c *Client) load(ctx context.Context) error {
	s := &c.state
	var err error
	if s.instance, err = readRecord(ctx, c.store, recordInstance, decodeInstance); errors.Is(err, errUnusable) {
		s.instanceErr = err
	} else if err != nil {
		return err
	}
	if s.network, err = readRecord(ctx, c.store, recordNetwork, decodeNetwork); errors.Is(err, errUnusable) {
		s.networkErr = err
		c.log.LogAttrs(ctx, slog.LevelWarn, "stored network is damaged", slog.Any("error", err))
	} else if err != nil {
		return err
	}
	if hint, err := readRecord(ctx, c.store, recordTime, decodeTime); err == nil && hint != nil {
		s.hint, s.storedHint = *hint, *hint
	}
	if s.enrolment, err = readRecord(ctx, c.store, recordEnrolment, decodeEnrolment); errors.Is(err, errUnusable) {
		s.enrolmentErr = err
	} else if err != nil {
		return err
	}
	return nil
}

// errUnusable is a record that is there but says nothing that can be used.
var errUnusable = errors.New("cannot be used")

func unusable(name string, err error) error {
	return withCode(CodeStorage, fmt.Errorf("record %q %w: %w", name, errUnusable, err))
}

// readRecord returns nil without an error if the record is absent.
func readRecord[T any](ctx context.Context, st store.Store, name string, decode func([]byte) (*T, error)) (*T, error) {
	data, err := st.Get(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if errors.Is(err, store.ErrDamaged) {
		return nil, unusable(name, err)
	}
	if err != nil {
		return nil, withCode(CodeStorage, fmt.Errorf("read record %q: %w", name, err))
	}
	version, payload, err := store.DecodeRecord(name, data)
	if err == nil && version != recordVersion {
		err = fmt.Errorf("version %d, and this library reads version %d", version, recordVersion)
	}
	if err != nil {
		return nil, unusable(name, err)
	}
	value, err := decode(payload)
	if err != nil {
		return nil, unusable(name, err)
	}
	return value, nil
}

// maxRecord bounds what an instance can make a device keep, in bytes: what a
// Store takes, less the record's header.
const maxRecord = store.MaxSize - 1<<10

// put writes a record, unless it is stored already.
func (c *Client) put(ctx context.Context, name string, payload []byte) error {
	if len(payload) > maxRecord {
		return withCode(CodeStorage, fmt.Errorf("record %q of %d bytes, more than %d", name, len(payload), maxRecord))
	}
	record := store.EncodeRecord(name, recordVersion, payload)
	// After a write that failed the medium may not have what Get returns.
	if !c.doubtful[name] {
		if old, err := c.store.Get(ctx, name); err == nil && bytes.Equal(old, record) {
			return nil
		}
	}
	if err := c.store.Put(ctx, name, record); err != nil {
		c.doubtful[name] = true
		return withCode(CodeStorage, fmt.Errorf("write record %q: %w", name, err))
	}
	delete(c.doubtful, name)
	return nil
}

func (c *Client) delete(ctx context.Context, names ...string) error {
	for _, name := range names {
		if err := c.store.Delete(ctx, name); err != nil {
			return withCode(CodeStorage, fmt.Errorf("delete record %q: %w", name, err))
		}
	}
	return nil
}

// encode cannot fail: no record holds anything that JSON cannot say.
func encode(record any) []byte {
	data, err := json.Marshal(record)
	if err != nil {
		return nil
	}
	return data
}

func encodeInstance(i Instance) []byte {
	return encode(instanceRecord{i.Endpoint, i.Port, i.Root.Raw, ders(i.Roots)})
}

func decodeInstance(data []byte) (*Instance, error) {
	var r instanceRecord
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, err
	}
	// What was stored stays good: the roots' signatures are not looked at again.
	if err := checkHost(r.Endpoint); err != nil {
		return nil, fmt.Errorf("endpoint: %w", err)
	}
	root, err := x509.ParseCertificate(r.Root)
	if err != nil {
		return nil, fmt.Errorf("root certificate: %w", err)
	}
	further, err := certificates(r.Roots)
	if err != nil {
		return nil, fmt.Errorf("further root certificates: %w", err)
	}
	i := Instance{Endpoint: r.Endpoint, Port: r.Port, Root: root, Roots: further}.normal()
	return &i, nil
}

func encodeNetwork(n Network) []byte {
	return encode(networkRecord{[]byte(n.SSID), []byte(n.Password)})
}

func decodeNetwork(data []byte) (*Network, error) {
	var r networkRecord
	if err := json.Unmarshal(data, &r); err != nil {
		// The decoder's own message could quote the password.
		return nil, errors.New("not a network record")
	}
	return &Network{SSID: string(r.SSID), Password: Secret(r.Password)}, nil
}

func encodeEnrolment(e *enrolled) []byte {
	r := enrolmentRecord{Connection: e.connection, NoConnection: e.noConnection, Stale: e.stale, Waiting: e.waiting, Revoked: e.revoked}
	if e.Certificate != nil {
		r.Certificate = e.Certificate.Raw
		r.Chain, r.CACerts = ders(e.Chain), ders(without(e.CACerts, e.Chain))
	}
	if n := e.next; n != nil {
		r.Next = &nextRecord{Certificate: n.certificate.Raw, Renews: n.renews, Connection: n.connection,
			Same: sameCertificates(n.chain, e.Chain) && sameCertificates(n.cacerts, e.CACerts)}
		if !r.Next.Same {
			r.Next.Chain, r.Next.CACerts = ders(n.chain), ders(without(n.cacerts, n.chain))
		}
	}
	if i := e.instance; i != nil {
		r.Instance = &boundRecord{i.endpoint, i.roots}
	}
	if n := e.renewal; n != nil {
		r.Renewal = &renewalRecord{n.csr, n.of}
	}
	return encode(r)
}

func decodeEnrolment(data []byte) (*enrolled, error) {
	var r enrolmentRecord
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, errors.New("not an enrolment record") // it may hold a token
	}
	e := &enrolled{connection: r.Connection, noConnection: r.NoConnection, stale: r.Stale, waiting: r.Waiting}
	if r.Certificate != nil {
		c, err := decodeCertified(r.Certificate, r.Chain, r.CACerts)
		if err != nil {
			return nil, err
		}
		e.certify(c)
		e.revoked = r.Revoked
	}
	if n := r.Next; n != nil {
		next, err := decodeCertified(n.Certificate, n.Chain, n.CACerts)
		if err != nil {
			return nil, fmt.Errorf("next: %w", err)
		}
		if n.Same {
			next.chain, next.cacerts = e.Chain, e.CACerts
		}
		next.renews, next.connection = n.Renews, n.Connection
		e.next = &next
	}
	if n := r.Renewal; n != nil {
		e.renewal = &renewal{n.CSR, n.Of}
	}
	if r.Connection != nil {
		if err := e.connect(r.Connection); err != nil {
			return nil, err
		}
	}
	if i := r.Instance; i != nil {
		e.instance = &boundInstance{i.Endpoint, i.Roots}
	}
	return e, nil
}

func decodeCertified(leaf []byte, chain, others [][]byte) (c certified, err error) {
	if c.certificate, err = x509.ParseCertificate(leaf); err != nil {
		return c, fmt.Errorf("device certificate: %w", err)
	}
	if c.chain, err = certificates(chain); err != nil {
		return c, fmt.Errorf("chain: %w", err)
	}
	if c.cacerts, err = certificates(others); err != nil {
		return c, fmt.Errorf("cacerts: %w", err)
	}
	// An earlier library stored the whole list that it fetched.
	c.cacerts = slices.Concat(c.chain, without(c.cacerts, c.chain))
	return c, nil
}

// without returns the certificates that are not among those others.
func without(certs, others []*x509.Certificate) []*x509.Certificate {
	return slices.DeleteFunc(slices.Clone(certs), func(cert *x509.Certificate) bool {
		return slices.ContainsFunc(others, cert.Equal)
	})
}

func sameCertificates(a, b []*x509.Certificate) bool {
	return slices.EqualFunc(a, b, (*x509.Certificate).Equal)
}

func ders(certs []*x509.Certificate) [][]byte {
	var all [][]byte
	for _, cert := range certs {
		all = append(all, cert.Raw)
	}
	return all
}

func certificates(ders [][]byte) ([]*x509.Certificate, error) {
	var all []*x509.Certificate
	for _, der := range ders {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		all = append(all, cert)
	}
	return all, nil
}
