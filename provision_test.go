package quarklink_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/keystore/software"
	"github.com/quarklink-go/quarklink/store"
	"github.com/quarklink-go/quarklink/transport/uart"
)

// newRoot makes a self-signed certificate.
func newRoot(t *testing.T, name string) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<33, 0), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// secret opens the software keys of these tests.
func secret(context.Context) ([]byte, error) { return bytes.Repeat([]byte{7}, 32), nil }

// newKeys is a software key store whose secret is long, so that it need not be
// stretched.
func newKeys(t testing.TB, st store.Creator) *software.Store {
	t.Helper()
	keys, err := software.New(st, software.Options{Secret: secret, Iterations: 1})
	if err != nil {
		t.Fatal(err)
	}
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
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// spy notes what the device sends.
type spy struct {
	uart.Port
	mu   sync.Mutex
	sent bytes.Buffer
}

func (s *spy) Write(p []byte) (int, error) {
	s.mu.Lock()
	s.sent.Write(p)
	s.mu.Unlock()
	return s.Port.Write(p)
}

// asked returns the keys that were asked for, in order.
func (s *spy) asked() []string {
	var keys []string
	for _, request := range strings.Split(s.sent.String(), "IEF DATA\n\x00")[1:] {
		key, _, _ := strings.Cut(strings.TrimSuffix(request, "\n"), ":")
		keys = append(keys, key)
	}
	return keys
}

// cable connects a device to a tool that serves until the test ends.
func cable(t *testing.T, tool *uart.Tool) *spy {
	t.Helper()
	device, host := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		tool.Serve(t.Context(), host)
	}()
	t.Cleanup(func() { device.Close(); host.Close(); <-done })
	return &spy{Port: device}
}

// everything is what a blank device asks for, in this order.
var everything = []string{"wifi_ssid", "wifi_password", "ql_endpoint", "ql_port", "ql_rootCA", "deviceID"}

func TestProvisionBlankDevice(t *testing.T) {
	root := newRoot(t, "instance root")
	synctest.Test(t, func(t *testing.T) {
		var told string
		tool := &uart.Tool{Endpoint: "instance.example", Port: 6001, RootCA: root.Raw, SSID: "lab", Password: "correct horse",
			OnDeviceID: func(_ context.Context, id string) error { told = id; return nil }}
		port := cable(t, tool)
		st := new(store.Mem)
		c := newClient(t, st)
		if _, err := c.Instance(); !errors.Is(err, quarklink.ErrNotInitialised) {
			t.Errorf("Instance of a blank device: %v", err)
		}
		if _, err := c.Enrolment(); !errors.Is(err, quarklink.ErrNothingStored) {
			t.Errorf("Enrolment of a blank device: %v", err)
		}
		network, err := c.Provision(t.Context(), port, quarklink.ProvisionOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if network != (quarklink.Network{SSID: "lab", Password: "correct horse"}) {
			t.Errorf("network: %q, %q", network.SSID, string(network.Password))
		}
		if !slices.Equal(port.asked(), everything) {
			t.Errorf("asked for %q, want %q", port.asked(), everything)
		}
		if told != string(c.DeviceID()) {
			t.Errorf("the tool was told %q, the DeviceID is %q", told, c.DeviceID())
		}

		// After a restart everything is known, and only the DeviceID is sent.
		again := newClient(t, st)
		if again.DeviceID() != c.DeviceID() {
			t.Error("another identity after a restart")
		}
		i, err := again.Instance()
		if err != nil || i.Endpoint != "instance.example" || i.Port != 6001 || !i.Root.Equal(root) {
			t.Errorf("instance after a restart: %+v, %v", i, err)
		}
		if _, err := again.Enrolment(); !errors.Is(err, quarklink.ErrNoEnrolment) {
			t.Errorf("Enrolment of a provisioned device: %v", err)
		}
		port.sent.Reset()
		network, err = again.Provision(t.Context(), port, quarklink.ProvisionOptions{})
		if err != nil || network.SSID != "lab" {
			t.Errorf("second Provision: %+v, %v", network, err)
		}
		if !slices.Equal(port.asked(), []string{"deviceID"}) {
			t.Errorf("second Provision asked for %q", port.asked())
		}

		// The Wi-Fi did not work: ask for another one.
		tool.SSID = "field"
		port = cable(t, tool)
		network, err = again.Provision(t.Context(), port, quarklink.ProvisionOptions{NewNetwork: true})
		if err != nil || network.SSID != "field" {
			t.Errorf("Provision with NewNetwork: %+v, %v", network, err)
		}
	})
}

func TestProvisionWithoutWiFi(t *testing.T) {
	root := newRoot(t, "instance root")
	synctest.Test(t, func(t *testing.T) {
		port := cable(t, &uart.Tool{Endpoint: "instance.example", RootCA: root.Raw})
		c := newClient(t, new(store.Mem))
		if _, err := c.Provision(t.Context(), port, quarklink.ProvisionOptions{NoNetwork: true}); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(port.asked(), everything[2:]) {
			t.Errorf("asked for %q", port.asked())
		}
		if i, _ := c.Instance(); i.Port != quarklink.DefaultPort {
			t.Errorf("port %d, want the default", i.Port)
		}
	})
}

// answer serves a tool that gives each key its line, whatever it is, and
// nothing where there is none.
func answer(t *testing.T, lines map[string]string) uart.Port {
	t.Helper()
	device, host := net.Pipe()
	t.Cleanup(func() { device.Close(); host.Close() })
	go func() {
		var all []byte
		buf := make([]byte, 256)
		for {
			n, err := host.Read(buf)
			if err != nil {
				return
			}
			all = append(all, buf[:n]...)
			for {
				_, rest, ok := bytes.Cut(all, []byte("IEF DATA\n\x00"))
				key, rest, ended := bytes.Cut(rest, []byte("\n"))
				if !ok || !ended {
					break
				}
				all = rest
				name, _, _ := strings.Cut(string(key), ":")
				io.WriteString(host, lines[name])
			}
		}
	}()
	return device
}

func TestProvisionRefuses(t *testing.T) {
	root := newRoot(t, "instance root")
	good := map[string]string{
		"wifi_ssid": "lab\n", "wifi_password": "correct horse\n", "ql_endpoint": "instance.example\n", "ql_port": "6000\n",
		"ql_rootCA": base64.StdEncoding.EncodeToString(root.Raw) + "\n", "deviceID": "OK\n",
	}
	for _, test := range []struct {
		name, key, line string
		ok              bool
	}{
		{"all is well", "deviceID", "OK\n", true},
		{"the tool refuses the device", "deviceID", "ERROR refused\n", false},
		{"nobody acknowledges the DeviceID", "deviceID", "", true},
		{"the tool leaves the port out", "ql_port", "ERROR refused\n", true},
		{"the tool does not know the port", "ql_port", "ERROR unsupported\n", true},
		{"the tool says nothing of the port", "ql_port", "", true},
		{"a port of 70000", "ql_port", "70000\n", false},
		{"half a reply", "ql_endpoint", "", false},
		{"a root that is no certificate", "ql_rootCA", base64.StdEncoding.EncodeToString([]byte("root")) + "\n", false},
		{"a root with the outer shape of a certificate alone", "ql_rootCA", base64.StdEncoding.EncodeToString([]byte{0x30, 7, 0x30, 0, 0x30, 0, 3, 1, 0}) + "\n", false},
		{"a root cut in half", "ql_rootCA", good["ql_rootCA"][:200] + "\n", false},
		{"an SSID of 33 bytes", "wifi_ssid", strings.Repeat("x", 33) + "\n", false},
		{"a password of 5 characters", "wifi_password", "short\n", false},
		{"a refusal", "wifi_ssid", "ERROR refused\n", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				lines := map[string]string{}
				for key, line := range good {
					lines[key] = line
				}
				lines[test.key] = test.line
				st := new(store.Mem)
				c := newClient(t, st)
				_, err := c.Provision(t.Context(), answer(t, lines), quarklink.ProvisionOptions{})
				if test.ok {
					if err != nil {
						t.Fatal(err)
					}
					return
				}
				if !errors.Is(err, quarklink.ErrCommunication) {
					t.Fatalf("error %v, want ErrCommunication", err)
				}
				if strings.Contains(err.Error(), "correct horse") || strings.Contains(err.Error(), "short") {
					t.Errorf("the error shows the password: %v", err)
				}
				// Nothing is lost: a good tool is asked only for the rest.
				if _, err := c.Provision(t.Context(), answer(t, good), quarklink.ProvisionOptions{}); err != nil {
					t.Errorf("afterwards, with a good tool: %v", err)
				}
			})
		})
	}
}

func TestProvisionObeysContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClient(t, new(store.Mem))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := c.Provision(ctx, answer(t, nil), quarklink.ProvisionOptions{})
		var e *quarklink.Error
		if !errors.Is(err, context.DeadlineExceeded) || !errors.As(err, &e) || e.Code != 0 || errors.Is(err, quarklink.ErrCommunication) {
			t.Errorf("error %v (%+v), want the context's and no code", err, e)
		}
	})
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

// TestProvisionPowerCut cuts power at every write of a provisioning; the next
// start carries on with the same identity.
func TestProvisionPowerCut(t *testing.T) {
	root := newRoot(t, "instance root")
	tool := &uart.Tool{Endpoint: "instance.example", RootCA: root.Raw, SSID: "lab", Password: "correct horse"}
	synctest.Test(t, func(t *testing.T) {
		eachCut(t, func(t *testing.T, st store.Creator, cut *cutStore) error {
			provision := func(st store.Creator) (quarklink.DeviceID, error) {
				keys, err := software.New(st, software.Options{Secret: secret, Iterations: 1})
				if err != nil {
					return "", err
				}
				c, err := quarklink.New(t.Context(), quarklink.Config{KeyStore: keys, Store: st})
				if err != nil {
					return "", err
				}
				defer c.Close()
				_, err = c.Provision(t.Context(), cable(t, tool), quarklink.ProvisionOptions{})
				return c.DeviceID(), err
			}
			before, err := provision(cut)
			if !cut.dead {
				return err
			}
			if !errors.Is(err, errCut) {
				return fmt.Errorf("the cut shows as %w", err)
			}
			after, err := provision(st)
			if err == nil && before != "" && before != after {
				return fmt.Errorf("identity %s became %s", before, after)
			}
			return err
		})
	})
}

// TestDamagedRecords flips every bit of each stored record: New fails for the
// key alone, and what needs a damaged record says so until it is replaced.
func TestDamagedRecords(t *testing.T) {
	root := newRoot(t, "instance root")
	st := new(store.Mem)
	ctx := t.Context()
	c := newClient(t, st)
	instance := quarklink.Instance{Endpoint: "instance.example", Root: root}
	if err := c.SetInstance(ctx, instance); err != nil {
		t.Fatal(err)
	}
	open := func() (*quarklink.Client, error) {
		keys, err := software.New(st, software.Options{Secret: secret, Iterations: 1})
		if err != nil {
			t.Fatal(err)
		}
		return quarklink.New(ctx, quarklink.Config{KeyStore: keys, Store: st})
	}
	flips := func(name string, check func(bit int)) {
		good, err := st.Get(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		for bit := 0; bit < 8*len(good); bit += 5 {
			bad := bytes.Clone(good)
			bad[bit/8] ^= 1 << (bit % 8)
			if err := st.Put(ctx, name, bad); err != nil {
				t.Fatal(err)
			}
			check(bit)
		}
		for _, half := range [][]byte{good[:len(good)/2], good[:1], {}} {
			if err := st.Put(ctx, name, half); err != nil {
				t.Fatal(err)
			}
			check(-1)
		}
		if err := st.Put(ctx, name, good); err != nil {
			t.Fatal(err)
		}
	}
	flips("instance", func(bit int) {
		damaged, err := open()
		if err != nil {
			t.Fatalf("instance bit %d: New: %v", bit, err)
		}
		defer damaged.Close()
		if _, err := damaged.Status(ctx); !errors.Is(err, quarklink.ErrStorage) {
			t.Fatalf("instance bit %d: Status: %v", bit, err)
		}
		if _, err := damaged.Instance(); !errors.Is(err, quarklink.ErrStorage) || errors.Is(err, quarklink.ErrNotInitialised) {
			t.Fatalf("instance bit %d: Instance: %v", bit, err)
		}
		if bit != 0 {
			return
		}
		if err := damaged.SetInstance(ctx, instance); err != nil {
			t.Fatal(err)
		}
		if _, err := damaged.Instance(); err != nil {
			t.Errorf("a replaced instance is still damaged: %v", err)
		}
	})
	flips("key-esk", func(bit int) {
		c, err := open()
		if err == nil {
			c.Close()
			t.Fatalf("key bit %d: New accepted a damaged key", bit)
		}
		if !errors.Is(err, quarklink.ErrStorage) || !errors.Is(err, store.ErrDamaged) {
			t.Fatalf("key bit %d: %v", bit, err)
		}
	})
	again, err := open()
	if err != nil || again.DeviceID() != c.DeviceID() {
		t.Errorf("the identity did not survive: %v", err)
	}
	again.Close()
}

// TestOversizedRecord: a file that no record can be is damage that the Store
// itself notices.
func TestOversizedRecord(t *testing.T) {
	dir := privateDir(t)
	st := store.Dir(dir)
	before := newClient(t, st)
	for _, name := range []string{"instance", "network", "enrolment", "csr"} {
		if err := os.WriteFile(filepath.Join(dir, name), make([]byte, store.MaxSize+1), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c := newClient(t, st)
	if c.DeviceID() != before.DeviceID() {
		t.Error("another identity")
	}
	if _, err := c.Enrolment(); !errors.Is(err, quarklink.ErrStorage) {
		t.Errorf("Enrolment: %v", err)
	}
	if err := c.SetInstance(t.Context(), quarklink.Instance{Endpoint: "instance.example", Root: newRoot(t, "root")}); err != nil {
		t.Errorf("SetInstance, which mends it: %v", err)
	}
}

// TestRecordOfALaterVersion is refused, not misread.
func TestRecordOfALaterVersion(t *testing.T) {
	st := new(store.Mem)
	c := newClient(t, st)
	ctx := t.Context()
	if err := c.SetInstance(ctx, quarklink.Instance{Endpoint: "instance.example", Root: newRoot(t, "root")}); err != nil {
		t.Fatal(err)
	}
	if i, err := c.Instance(); err != nil || i.Port != quarklink.DefaultPort {
		t.Errorf("instance without a port: %+v, %v", i, err)
	}
	data, err := st.Get(ctx, "instance")
	if err != nil {
		t.Fatal(err)
	}
	version, payload, err := store.DecodeRecord("instance", data)
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Put(ctx, "instance", store.EncodeRecord("instance", version+1, payload)); err != nil {
		t.Fatal(err)
	}
	if _, err := newClient(t, st).Instance(); !errors.Is(err, quarklink.ErrStorage) || !strings.Contains(err.Error(), "version") {
		t.Errorf("a record of a later version: %v", err)
	}
}
