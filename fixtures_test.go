package quarklink_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/keystore/software"
	"github.com/quarklink-go/quarklink/quarklinktest"
	"github.com/quarklink-go/quarklink/store"
)

func newServer(t testing.TB, o quarklinktest.Options) *quarklinktest.Server {
	t.Helper()
	server, err := quarklinktest.NewServer(o)
	require.NoError(t, err)
	t.Cleanup(server.Close)
	return server
}

// at makes a client use the server, over memory if that is all it offers.
func at(server *quarklinktest.Server) func(*quarklink.Config) {
	return func(cfg *quarklink.Config) {
		reach := server.Config(cfg.KeyStore)
		cfg.Instance, cfg.Transport = reach.Instance, reach.Transport
	}
}

// member adds the client's device to a batch of its own.
func member(t testing.TB, server *quarklinktest.Server, c *quarklink.Client, b quarklinktest.Batch) {
	t.Helper()
	b.Name, b.Devices = "batch", []quarklink.DeviceID{c.DeviceID()}
	require.NoError(t, server.AddBatch(b))
}

// newMember is a client in a batch of an in-memory server.
func newMember(t testing.TB, b quarklinktest.Batch, change ...func(*quarklink.Config)) (*quarklinktest.Server,
	*quarklink.Client) {
	t.Helper()
	server := newServer(t, quarklinktest.Options{InMemory: true})
	c := newClient(t, new(store.Mem), append([]func(*quarklink.Config){at(server)}, change...)...)
	member(t, server, c, b)
	return server, c
}

// reopen opens the device again, as after a restart.
func reopen(t *testing.T, st store.Creator) *quarklink.Client { return newClient(t, st) }

// settle gives what is ending the time to end.
func settle(done func() bool) {
	for end := time.Now().Add(10 * time.Second); !done() && time.Now().Before(end); {
		runtime.Gosched()
	}
}

// onlyCode fails if an error matches more, or less, than one of the codes.
func onlyCode(t *testing.T, err error) {
	t.Helper()
	var found []quarklink.Code
	for _, c := range codes {
		if c.failure != nil && errors.Is(err, c.failure) {
			found = append(found, c.code)
		}
	}
	var e *quarklink.Error
	require.Len(t, found, 1, "the codes of: %v", err)
	require.ErrorAs(t, err, &e)
	assert.Equal(t, found[0], e.Code)
}

// pemOf is a certificate as it stands in a JSON string.
func pemOf(cert *x509.Certificate) string {
	return strings.ReplaceAll(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})), "\n", `\n`)
}

// newRoot makes a self-signed certificate.
func newRoot(t *testing.T, name string) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<33, 0), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return cert
}

// secret opens the software keys of these tests.
func secret(context.Context) ([]byte, error) { return bytes.Repeat([]byte{7}, 32), nil }

// newKeys is a software key store whose secret is long, so that it need not be
// stretched.
func newKeys(t testing.TB, st store.Creator) *software.Store {
	t.Helper()
	keys, err := software.New(st, software.Options{Secret: secret, Iterations: 1})
	require.NoError(t, err)
	return keys
}

// newClient opens a client whose keys and records are in st.
func newClient(t testing.TB, st store.Creator, change ...func(*quarklink.Config)) *quarklink.Client {
	t.Helper()
	cfg := quarklink.Config{KeyStore: newKeys(t, st), Store: st}
	for _, f := range change {
		f(&cfg)
	}
	c, err := quarklink.New(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

// cutStore loses power at its n-th write: before it, or after it has reached
// the medium but before anybody learns of that. Every later call fails too.
type cutStore struct {
	store.Creator
	left  int
	after bool
	dead  bool
}

var errCut = errors.New("power cut")

func (s *cutStore) write(do func() error) error {
	if s.dead {
		return errCut
	}
	if s.left--; s.left > 0 {
		return do()
	}
	s.dead = true
	if s.after {
		if err := do(); err != nil {
			return err
		}
	}
	return errCut
}

func (s *cutStore) Get(ctx context.Context, name string) ([]byte, error) {
	if s.dead {
		return nil, errCut
	}
	return s.Creator.Get(ctx, name)
}

func (s *cutStore) Put(ctx context.Context, name string, data []byte) error {
	return s.write(func() error { return s.Creator.Put(ctx, name, data) })
}

func (s *cutStore) Create(ctx context.Context, name string, data []byte) error {
	return s.write(func() error { return s.Creator.Create(ctx, name, data) })
}

func (s *cutStore) Delete(ctx context.Context, name string) error {
	return s.write(func() error { return s.Creator.Delete(ctx, name) })
}

// eachCut runs life with power cut at its first write, its second and so on,
// before and after each, until it comes to its end without a cut.
func eachCut(t *testing.T, life func(t *testing.T, st store.Creator, cut *cutStore) error) {
	t.Helper()
	cuts := 0
	for n := 1; ; n++ {
		for _, after := range []bool{false, true} {
			st := new(store.Mem)
			cut := &cutStore{Creator: st, left: n, after: after}
			err := life(t, st, cut)
			if !cut.dead {
				t.Logf("%d cuts", cuts)
				if cuts == 0 {
					t.Error("no write was ever cut")
				}
				return
			}
			cuts++
			if err != nil {
				t.Errorf("cut at write %d (after it: %v): %v", n, after, err)
			}
		}
	}
}

// answer202 has the instance put off its decision, for an hour. What it is asked
// goes to the function, if there is one.
func answer202(asked func(body string)) quarklinktest.Fault {
	return answerWith(http.StatusAccepted, "", asked)
}

func badCSR(asked func(body string)) quarklinktest.Fault {
	return answerWith(http.StatusBadRequest, `{"type":"urn:quarklink:error:bad-csr"}`, asked)
}

func answerWith(status int, problem string, asked func(body string)) quarklinktest.Fault {
	return quarklinktest.Answer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err == nil && asked != nil {
			asked(string(body))
		}
		w.Header().Set("Retry-After", "3600")
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(status)
		io.WriteString(w, problem)
	}))
}

// bodies collects what an instance is asked.
type bodies struct {
	mu  sync.Mutex
	all []string
}

func (b *bodies) add(body string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.all = append(b.all, body)
}

// payload is what a record says.
func payload(t *testing.T, st store.Store, name string) map[string]any {
	t.Helper()
	data, err := st.Get(t.Context(), name)
	require.NoError(t, err)
	_, text, err := store.DecodeRecord(name, data)
	require.NoError(t, err)
	var members map[string]any
	require.NoError(t, json.Unmarshal(text, &members))
	return members
}

// newHub has the instance name another hub from now on.
func newHub(server *quarklinktest.Server, root *x509.Certificate) {
	server.Fault(quarklinktest.CallConnection, quarklinktest.Answer(http.HandlerFunc(
		func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"type":"iot_hub","endpoint":"new.example","port":8883,"rootCA":"%s"}`, pemOf(root))
		})))
}

// shown is the certificate that the device presents to its hub.
func shown(t *testing.T, c *quarklink.Client) *x509.Certificate {
	t.Helper()
	cfg, err := c.HubTLSConfig(t.Context())
	require.NoError(t, err)
	cfg.InsecureSkipVerify = true // this hub has no certificate of its own
	device, hub := net.Pipe()
	defer device.Close()
	defer hub.Close()
	go tls.Client(device, cfg).HandshakeContext(t.Context())
	server := tls.Server(hub, &tls.Config{
		Certificates: []tls.Certificate{newHubCertificate(t)}, ClientAuth: tls.RequireAnyClientCert})
	require.NoError(t, server.HandshakeContext(t.Context()))
	return server.ConnectionState().PeerCertificates[0]
}

// privateDir makes a folder that nobody else can write, whatever the umask.
func privateDir(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "state")
	require.NoError(t, os.Mkdir(dir, 0o700))
	return dir
}
