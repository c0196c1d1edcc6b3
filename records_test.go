package quarklink_test

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/internal/api"
	"github.com/quarklink-go/quarklink/quarklinktest"
	"github.com/quarklink-go/quarklink/store"
	"github.com/quarklink-go/quarklink/transport/uart"
)

// The records in testdata/records were written by the library as it was before
// any record had an optional member, by devices of one instance, whose snapshot
// is instance.json. Each folder is the store of one device; its keys' secret is
// that of these tests.

// recordTime is when they were written.
var recordTime = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

func recordClock() time.Time { return recordTime.Add(24 * time.Hour) }

// recordServer is the instance that the devices belong to, a day later.
func recordServer(t *testing.T) *quarklinktest.Server {
	t.Helper()
	snapshot, err := os.ReadFile("testdata/records/instance.json")
	require.NoError(t, err)
	server := newServer(t, quarklinktest.Options{InMemory: true, Now: recordClock, Snapshot: snapshot})
	require.NoError(t, server.AddBatch(quarklinktest.Batch{Name: "hub"}))
	require.NoError(t, server.AddBatch(quarklinktest.Batch{Name: "database", Policy: quarklinktest.Policy{
		Database: &quarklink.Database{Endpoint: "db.example", Port: 443, URI: "/app/data", Token: "eyJ"}}}))
	return server
}

// recordStore has the records of one of the devices.
func recordStore(t *testing.T, device string) *store.Mem {
	t.Helper()
	files, err := os.ReadDir(filepath.Join("testdata/records", device))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	st := new(store.Mem)
	for _, file := range files {
		data, err := os.ReadFile(filepath.Join("testdata/records", device, file.Name()))
		require.NoError(t, err)
		require.NoError(t, st.Put(t.Context(), file.Name(), data))
	}
	return st
}

// dayAfter makes a client use the server a day after the records were written.
func dayAfter(server *quarklinktest.Server) func(*quarklink.Config) {
	return func(cfg *quarklink.Config) { cfg.Transport, cfg.Now = server.Carrier(), recordClock }
}

// TestOldRecords starts each of the old devices with the new library: nothing is
// asked again, and it goes on from where it was.
func TestOldRecords(t *testing.T) {
	for _, test := range []struct {
		device   string
		enrolled bool // complete, when it was written
		expired  bool
		issued   int // device certificates, before and after Enrol
		more     int
	}{
		{device: "hub", enrolled: true, issued: 1},
		{device: "database", enrolled: true, issued: 1},
		{device: "issuers-fetched", more: 1},
		{device: "certified", issued: 1},
		{device: "enrolling-again", enrolled: true, expired: true, issued: 1, more: 1},
	} {
		t.Run(test.device, func(t *testing.T) {
			ctx := t.Context()
			server, st := recordServer(t), recordStore(t, test.device)
			c := newClient(t, st, dayAfter(server))

			asked := cable(t, &uart.Tool{OnDeviceID: func(context.Context, string) error { return nil }})
			network, err := c.Provision(ctx, asked, quarklink.ProvisionOptions{})
			require.NoError(t, err)
			assert.Equal(t, []string{"deviceID"}, asked.asked())
			assert.Equal(t, "lab", network.SSID)
			assert.Equal(t, quarklink.Secret("correct horse"), network.Password)

			status, err := c.Status(ctx)
			require.NoError(t, err)
			assert.Equal(t, test.enrolled, status.HasEnrolment)
			assert.Equal(t, test.expired, status.CertificateExpired)
			before, err := c.Enrolment()
			if test.enrolled {
				require.NoError(t, err)
				assert.True(t, before.Certificate.Equal(server.Certificates(c.DeviceID())[0]))
				assert.Len(t, before.CACerts, 2)
			} else {
				assert.ErrorIs(t, err, quarklink.ErrNoEnrolment)
			}
			assert.Len(t, server.Certificates(c.DeviceID()), test.issued)

			after, err := c.Enrol(ctx)
			require.NoError(t, err)
			issued := server.Certificates(c.DeviceID())
			assert.Len(t, issued, test.issued+test.more)
			assert.True(t, after.Certificate.Equal(issued[len(issued)-1]))

			status, err = newClient(t, st, dayAfter(server)).Status(ctx)
			require.NoError(t, err)
			assert.False(t, status.NeedsEnrolment())
			_, err = c.HubTLSConfig(ctx)
			if test.device == "database" {
				assert.ErrorIs(t, err, quarklink.ErrValueNotAvailable)
			} else {
				assert.NoError(t, err)
			}
			assert.NoError(t, oldOpens(st))
		})
	}
}

// TestOldEnrolmentServes: an old enrolment serves as it is, without an instance
// that answers.
func TestOldEnrolmentServes(t *testing.T) {
	c := newClient(t, recordStore(t, "hub"), func(cfg *quarklink.Config) { cfg.Now = recordClock })
	cfg, err := c.HubTLSConfig(t.Context())
	require.NoError(t, err)
	assert.Equal(t, quarklinktest.HostName, cfg.ServerName)
}

// oldOpens applies the rules by which the library read its records when they had
// no optional members: a device that is rolled back must still open them.
func oldOpens(st store.Store) error {
	for name, decode := range map[string]func([]byte) error{
		"instance": oldInstance, "network": oldNetwork, "enrolment": func(data []byte) error {
			_, err := oldEnrolment(data)
			return err
		}, "csr": func(data []byte) error {
			_, err := x509.ParseCertificateRequest(data)
			return err
		},
	} {
		data, err := st.Get(context.Background(), name)
		if err != nil {
			continue // absent
		}
		version, payload, err := store.DecodeRecord(name, data)
		if err == nil && version != 1 {
			err = fmt.Errorf("version %d", version)
		}
		if err == nil {
			err = decode(payload)
		}
		if err != nil {
			return fmt.Errorf("record %q: %w", name, err)
		}
	}
	return nil
}

func oldInstance(data []byte) error {
	var r struct {
		Endpoint string `json:"endpoint"`
		Port     uint16 `json:"port"`
		Root     []byte `json:"root"`
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return err
	}
	if _, err := x509.ParseCertificate(r.Root); err != nil {
		return err
	}
	return oldHost(r.Endpoint)
}

func oldNetwork(data []byte) error {
	var r struct {
		SSID     []byte `json:"ssid"`
		Password []byte `json:"password"`
	}
	return json.Unmarshal(data, &r)
}

// oldEnrolment reports whether an application could work with the enrolment.
func oldEnrolment(data []byte) (complete bool, err error) {
	var r struct {
		Certificate []byte          `json:"certificate,omitempty"`
		Chain       [][]byte        `json:"chain,omitempty"`
		CACerts     [][]byte        `json:"cacerts,omitempty"`
		Issuers     [][]byte        `json:"issuers,omitempty"`
		Connection  *api.Connection `json:"connection,omitempty"`
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return false, err
	}
	certs := append(append(append([][]byte{}, r.Chain...), r.CACerts...), r.Issuers...)
	if r.Certificate != nil {
		certs = append(certs, r.Certificate)
	}
	for _, der := range certs {
		if _, err := x509.ParseCertificate(der); err != nil {
			return false, err
		}
	}
	if r.Connection == nil {
		return false, nil
	}
	return r.Certificate != nil, oldConnection(r.Connection)
}

func oldConnection(conn *api.Connection) error {
	if conn.Port == 0 {
		return errors.New("no port")
	}
	roots := 0
	for rest := []byte(conn.RootCA); ; roots++ {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return err
		}
	}
	if roots < 1 || roots > 8 {
		return fmt.Errorf("%d roots", roots)
	}
	if conn.Type != api.TypeIoTHub && conn.Type != api.TypeDatabaseDirect {
		return fmt.Errorf("type %q", conn.Type)
	}
	if conn.Type == api.TypeDatabaseDirect && (conn.Token == "" || conn.URI == "" || conn.URI[0] != '/') {
		return errors.New("no token or URI")
	}
	return oldHost(conn.Endpoint)
}

func oldHost(host string) error {
	if addr, err := netip.ParseAddr(host); err == nil && addr.Is6() && addr.Zone() == "" {
		return nil
	}
	return uart.CheckEndpoint(host)
}

// rollbackStore lets the old library look at the records after each write.
type rollbackStore struct {
	*store.Mem
	t      *testing.T
	served bool // once it is complete for the old library too it must stay so
	writes int
}

func (s *rollbackStore) Put(ctx context.Context, name string, data []byte) error {
	err := s.Mem.Put(ctx, name, data)
	s.writes++
	assert.NoError(s.t, oldOpens(s.Mem), "after write %d, of %s", s.writes, name)
	if name == "enrolment" {
		_, payload, _ := store.DecodeRecord(name, data)
		complete, _ := oldEnrolment(payload)
		assert.True(s.t, complete || !s.served, "after write %d an old library has no enrolment any more", s.writes)
		s.served = complete
	}
	return err
}

// TestRollback: an old library opens what a new one wrote, at each moment of
// what can happen to an enrolment, and goes on serving the hub once it did.
func TestRollback(t *testing.T) {
	ctx := t.Context()
	server := newServer(t, quarklinktest.Options{InMemory: true})
	st := &rollbackStore{Mem: new(store.Mem), t: t}
	c := newClient(t, st, func(cfg *quarklink.Config) { cfg.Transport = server.Carrier() })
	member(t, server, c, quarklinktest.Batch{})
	require.NoError(t, c.SetInstance(ctx, server.Instance()))
	later := quarklinktest.Refuse(404, "", 0)

	server.Fault(quarklinktest.CallTemporary, answer202(nil)) // the CSR waits
	_, err := c.Enrol(ctx)
	require.ErrorIs(t, err, quarklink.ErrValueNotAvailable)
	server.ClearFaults()
	server.Fault(quarklinktest.CallConnection, later.Times(1)) // half of an enrolment
	_, err = c.Enrol(ctx)
	require.Error(t, err)
	_, err = c.Enrol(ctx)
	require.NoError(t, err)

	require.NoError(t, server.Expire(c.DeviceID())) // another certificate, beside the old one
	server.Fault(quarklinktest.CallConnection, later.Times(1))
	_, err = c.Enrol(ctx)
	require.Error(t, err)
	other := server.Instance()
	other.Endpoint = "localhost"
	require.NoError(t, c.SetInstance(ctx, other))
	require.NoError(t, c.SetInstance(ctx, server.Instance()))
	_, err = c.Enrol(ctx)
	require.NoError(t, err)
	assert.Greater(t, st.writes, 8)
}

// TestFullDisk: a store that takes nothing more is ErrStorage, and what was
// there stays.
func TestFullDisk(t *testing.T) {
	server := newServer(t, quarklinktest.Options{InMemory: true})
	st := &fullStore{Mem: new(store.Mem)}
	c := newClient(t, st, at(server))
	member(t, server, c, quarklinktest.Batch{})
	first, err := c.Enrol(t.Context())
	require.NoError(t, err)
	require.NoError(t, server.Expire(c.DeviceID()))
	st.full = true
	_, err = c.Enrol(t.Context())
	assert.ErrorIs(t, err, quarklink.ErrStorage, "Enrol on a full disk")
	assert.ErrorIs(t, err, syscall.ENOSPC, "Enrol on a full disk")
	assert.ErrorIs(t, c.SetInstance(t.Context(), server.Instance()), quarklink.ErrStorage, "SetInstance on a full disk")
	e, err := c.Enrolment()
	require.NoError(t, err)
	assert.Equal(t, first.Certificate.Raw, e.Certificate.Raw, "the enrolment survives a full disk")
	st.full = false
	_, err = c.Enrol(t.Context())
	assert.NoError(t, err, "with room again")
}

type fullStore struct {
	*store.Mem
	full bool
}

func (s *fullStore) Put(ctx context.Context, name string, data []byte) error {
	if s.full {
		return &fs.PathError{Op: "write", Path: name, Err: syscall.ENOSPC}
	}
	return s.Mem.Put(ctx, name, data)
}

// orderStore notes which calls the server had answered at each write.
type orderStore struct {
	*store.Mem
	server *quarklinktest.Server
	log    []string
}

func (s *orderStore) Put(ctx context.Context, name string, data []byte) error {
	calls := s.server.Stats().Calls
	s.log = append(s.log, fmt.Sprintf("%s cacerts=%d enrol=%d connection=%d", name,
		calls[quarklinktest.CallCACerts], calls[quarklinktest.CallEnrol], calls[quarklinktest.CallConnection]))
	return s.Mem.Put(ctx, name, data)
}

// TestPersistThenAct: each result is stored before the next request.
func TestPersistThenAct(t *testing.T) {
	server := newServer(t, quarklinktest.Options{InMemory: true})
	st := &orderStore{Mem: new(store.Mem), server: server}
	c := newClient(t, st, at(server))
	member(t, server, c, quarklinktest.Batch{})
	_, err := c.Enrol(t.Context())
	require.NoError(t, err)
	want := []string{
		"csr cacerts=0 enrol=0 connection=0",
		"enrolment cacerts=1 enrol=1 connection=0",
		"enrolment cacerts=1 enrol=1 connection=1",
	}
	assert.Equal(t, want, st.log)
}
