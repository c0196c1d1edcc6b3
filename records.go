package quarklink

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"

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
	Certificate []byte          `json:"certificate,omitempty"` // DER, as are the lists
	Chain       [][]byte        `json:"chain,omitempty"`
	CACerts     [][]byte        `json:"cacerts,omitempty"`
	Issuers     [][]byte        `json:"issuers,omitempty"` // fetched for an enrolment that is under way
	Connection  *api.Connection `json:"connection,omitempty"`
}

// load reads the records. An absent one leaves its part of the state empty, a
// damaged one leaves an error there; only a Store that does not answer fails
// load.
func (c *Client) load(ctx context.Context) error {
	s := &c.state
	var damaged *damagedRecord
	var err error
	if s.instance, err = readRecord(ctx, c.store, recordInstance, decodeInstance); errors.As(err, &damaged) {
		s.instanceErr = err
	} else if err != nil {
		return err
	}
	if s.network, err = readRecord(ctx, c.store, recordNetwork, decodeNetwork); errors.As(err, &damaged) {
		s.networkErr = err
		c.log.LogAttrs(ctx, slog.LevelWarn, "stored network is damaged", slog.Any("error", err))
	} else if err != nil {
		return err
	}
	if s.enrolment, err = readRecord(ctx, c.store, recordEnrolment, decodeEnrolment); errors.As(err, &damaged) {
		s.enrolmentErr = err
	} else if err != nil {
		return err
	}
	return nil
}

// damagedRecord is a record that is there but says nothing that can be used.
type damagedRecord struct {
	name string
	err  error
}

func (d *damagedRecord) Error() string { return fmt.Sprintf("record %q: %v", d.name, d.err) }
func (d *damagedRecord) Unwrap() []error {
	return []error{CodeStorage, d.err}
}

// readRecord returns nil without an error if the record is absent.
func readRecord[T any](ctx context.Context, st store.Store, name string, decode func([]byte) (*T, error)) (*T, error) {
	data, err := st.Get(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if errors.Is(err, store.ErrDamaged) {
		return nil, &damagedRecord{name, err}
	}
	if err != nil {
		return nil, withCode(CodeStorage, fmt.Errorf("read record %q: %w", name, err))
	}
	version, payload, err := store.DecodeRecord(name, data)
	if err == nil && version != recordVersion {
		err = fmt.Errorf("version %d, and this library reads version %d", version, recordVersion)
	}
	if err != nil {
		return nil, &damagedRecord{name, err}
	}
	value, err := decode(payload)
	if err != nil {
		return nil, &damagedRecord{name, err}
	}
	return value, nil
}

// maxRecord bounds what an instance can make a device keep, in bytes: many times
// what it needs.
const maxRecord = 32 << 10

func (c *Client) put(ctx context.Context, name string, payload []byte) error {
	if len(payload) > maxRecord {
		return withCode(CodeStorage, fmt.Errorf("record %q of %d bytes, more than %d", name, len(payload), maxRecord))
	}
	if err := c.store.Put(ctx, name, store.EncodeRecord(name, recordVersion, payload)); err != nil {
		return withCode(CodeStorage, fmt.Errorf("write record %q: %w", name, err))
	}
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

func encodeEnrolment(e *Enrolment) []byte {
	r := enrolmentRecord{Chain: ders(e.Chain), CACerts: ders(e.CACerts), Issuers: ders(e.issuers), Connection: e.connection}
	if e.Certificate != nil {
		r.Certificate = e.Certificate.Raw
	}
	return encode(r)
}

func decodeEnrolment(data []byte) (*Enrolment, error) {
	var r enrolmentRecord
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, errors.New("not an enrolment record") // it may hold a token
	}
	e := new(Enrolment)
	var err error
	if r.Certificate != nil {
		if e.Certificate, err = x509.ParseCertificate(r.Certificate); err != nil {
			return nil, fmt.Errorf("device certificate: %w", err)
		}
	}
	if e.Chain, err = certificates(r.Chain); err != nil {
		return nil, fmt.Errorf("chain: %w", err)
	}
	if e.CACerts, err = certificates(r.CACerts); err != nil {
		return nil, fmt.Errorf("cacerts: %w", err)
	}
	if e.issuers, err = certificates(r.Issuers); err != nil {
		return nil, fmt.Errorf("issuers: %w", err)
	}
	if r.Connection != nil {
		if err := e.connect(*r.Connection); err != nil {
			return nil, err
		}
	}
	return e, nil
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
