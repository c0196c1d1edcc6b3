package quarklink_test

import (
	"bufio"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/internal/counterpart"
	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/quarklinktest"
	"github.com/quarklink-go/quarklink/store"
	"github.com/quarklink-go/quarklink/transport"
)

func newServer(t testing.TB, o quarklinktest.Options) *quarklinktest.Server {
	t.Helper()
	server, err := quarklinktest.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	return server
}

// at makes a client use the server, over memory if that is all it offers.
func at(server *quarklinktest.Server) func(*quarklink.Config) {
	return func(cfg *quarklink.Config) {
		i := server.Instance()
		cfg.Instance = &i
		if i.Endpoint == quarklinktest.HostName {
			cfg.Transport = server.Carrier()
		}
	}
}

// member adds the client's device to a batch of its own.
func member(t testing.TB, server *quarklinktest.Server, c *quarklink.Client, b quarklinktest.Batch) {
	t.Helper()
	b.Name, b.Devices = "batch", []quarklink.DeviceID{c.DeviceID()}
	if err := server.AddBatch(b); err != nil {
		t.Fatal(err)
	}
}

// newMember is a client in a batch of an in-memory server.
func newMember(t testing.TB, b quarklinktest.Batch, change ...func(*quarklink.Config)) (*quarklinktest.Server, *quarklink.Client) {
	t.Helper()
	server := newServer(t, quarklinktest.Options{InMemory: true})
	c := newClient(t, new(store.Mem), append([]func(*quarklink.Config){at(server)}, change...)...)
	member(t, server, c, b)
	return server, c
}

// TestLife is the application note's figure 2, and then enrolment: over a cable
// and loopback TCP, from a blank device to one with a hub.
func TestLife(t *testing.T) {
	ctx := t.Context()
	server := newServer(t, quarklinktest.Options{})
	if err := server.AddBatch(quarklinktest.Batch{Name: "My_MQTT_Batch", PollAfter: 20 * time.Second}); err != nil {
		t.Fatal(err)
	}
	st := store.Dir(privateDir(t))
	c := newClient(t, st)
	if _, err := c.Status(ctx); !errors.Is(err, quarklink.ErrNotInitialised) {
		t.Errorf("status of a blank device: %v", err)
	}

	device, host := quarklinktest.Pipe()
	tool := quarklinktest.NewTool(server, "My_MQTT_Batch", quarklink.Network{SSID: "lab", Password: "correct horse"})
	put := tool.OnDeviceID
	tool.OnDeviceID = func(ctx context.Context, id string) error { // the device is not in the batch yet
		if _, err := reopen(t, st).Status(ctx); !errors.Is(err, quarklink.ErrDeviceDoesNotExist) {
			t.Errorf("status before the tool has put the device into the batch: %v", err)
		}
		return put(ctx, id)
	}
	served := make(chan error)
	go func() { served <- tool.Serve(ctx, host) }()
	network, err := c.Provision(ctx, device, quarklink.ProvisionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	device.Close()
	<-served
	if network.SSID != "lab" {
		t.Errorf("network %+v", network)
	}

	status, err := c.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if status.Code() != quarklink.CodeNotEnrolled || !status.NeedsEnrolment() || status.Batch != "My_MQTT_Batch" || status.PollAfter != 20*time.Second {
		t.Errorf("status before enrolment: %+v", status)
	}
	enrolment, err := c.Enrol(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if cn := enrolment.Certificate.Subject.CommonName; cn != string(c.DeviceID()) {
		t.Errorf("the certificate is %q's, the device is %q", cn, c.DeviceID())
	}
	if enrolment.Hub == nil || enrolment.Database != nil {
		t.Errorf("enrolment leads to %+v and %+v, want a hub", enrolment.Hub, enrolment.Database)
	}
	if status, err = c.Status(ctx); err != nil || status.Code() != quarklink.CodeEnrolled || status.NeedsEnrolment() {
		t.Errorf("status after enrolment: %+v, %v", status, err)
	}

	// A restart keeps all of it.
	again := reopen(t, st)
	stored, err := again.Enrolment()
	if err != nil || !stored.Certificate.Equal(enrolment.Certificate) || stored.Hub.Endpoint != enrolment.Hub.Endpoint || len(stored.Chain) != len(enrolment.Chain) {
		t.Errorf("enrolment after a restart: %+v, %v", stored, err)
	}
	if err := again.ForgetEnrolment(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := again.Enrolment(); !errors.Is(err, quarklink.ErrNoEnrolment) {
		t.Errorf("enrolment after ForgetEnrolment: %v", err)
	}
	if err := again.ForgetInstance(ctx); err != nil {
		t.Fatal(err)
	}
	last := reopen(t, st)
	if _, err := last.Enrolment(); !errors.Is(err, quarklink.ErrNothingStored) {
		t.Errorf("enrolment with nothing stored: %v", err)
	}
	if last.DeviceID() != c.DeviceID() {
		t.Error("forgetting changed the identity")
	}
}

// reopen opens the device again, as after a restart.
func reopen(t *testing.T, st store.Creator) *quarklink.Client { return newClient(t, st) }

// TestHandshakes counts: a full enrolment takes two handshakes, the status of
// an enrolled device one, and every call after the first on it none.
func TestHandshakes(t *testing.T) {
	server, c := newMember(t, quarklinktest.Batch{})
	ctx := t.Context()
	count := func(what string, want int, f func() error) {
		t.Helper()
		before := server.Stats().Handshakes
		if err := f(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if got := server.Stats().Handshakes - before; got != want {
			t.Errorf("%s took %d handshakes, want %d", what, got, want)
		}
	}
	status := func() error { _, err := c.Status(ctx); return err }
	count("enrolment", 2, func() error { _, err := c.Enrol(ctx); return err })
	count("status of an enrolled device", 1, status)
	count("status again", 0, status)
	settle(func() bool { return server.Stats().Open == 1 })
	if open := server.Stats().Open; open != 1 {
		t.Errorf("%d connections are open, want one", open)
	}
}

// cableConn is a stream of a cable, which carries one at a time.
type cableConn struct {
	net.Conn
	free func()
	once sync.Once
}

func (c *cableConn) Close() error {
	c.once.Do(c.free)
	return c.Conn.Close()
}

// TestOneStream: a connection is closed before the next is opened, whatever
// becomes of the first.
func TestOneStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := newServer(t, quarklinktest.Options{InMemory: true})
		under := server.Carrier()
		var mu sync.Mutex
		taken, dials := false, 0
		cable := transport.Func(func(ctx context.Context) (net.Conn, error) {
			mu.Lock()
			defer mu.Unlock()
			if dials++; taken {
				t.Error("two streams at once")
			}
			conn, err := under.Dial(ctx)
			if err != nil {
				return nil, err
			}
			taken = true
			return &cableConn{Conn: conn, free: func() { mu.Lock(); taken = false; mu.Unlock() }}, nil
		})
		c := newClient(t, new(store.Mem), at(server), func(cfg *quarklink.Config) { cfg.Transport = cable })
		member(t, server, c, quarklinktest.Batch{})
		for _, fault := range []quarklinktest.Fault{quarklinktest.CutOff(1), quarklinktest.LoseAnswer(), quarklinktest.LoseRequest(),
			quarklinktest.Delay(time.Hour), quarklinktest.Answer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(500)
				w.Write(make([]byte, 1<<20)) // more than the client reads
			}))} {
			for _, call := range []quarklinktest.Call{quarklinktest.CallStatus, quarklinktest.CallTemporary, quarklinktest.CallEnrol, quarklinktest.CallConnection} {
				server.Fault(call, fault.Times(1))
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				c.Status(ctx)
				c.Enrol(ctx)
				cancel()
				server.ClearFaults()
			}
		}
		if _, err := c.Enrol(t.Context()); err != nil {
			t.Error(err)
		}
		if dials < 30 {
			t.Errorf("%d dials", dials)
		}
		c.Close()
		if taken {
			t.Error("a stream is open after Close")
		}
	})
}

// TestEnrolPowerCut cuts power at every write of an enrolment. The next start
// carries on, and the instance has issued exactly one device certificate.
func TestEnrolPowerCut(t *testing.T) {
	eachCut(t, func(t *testing.T, st store.Creator, cut *cutStore) error {
		server := newServer(t, quarklinktest.Options{InMemory: true})
		i := server.Instance()
		if err := server.AddBatch(quarklinktest.Batch{Name: "batch"}); err != nil {
			t.Fatal(err)
		}
		enrol := func(st store.Creator) (quarklink.DeviceID, error) {
			c, err := quarklink.New(t.Context(), quarklink.Config{KeyStore: newKeys(t, st), Store: st, Instance: &i, Transport: server.Carrier()})
			if err != nil {
				return "", err
			}
			defer c.Close()
			if err := server.AddDevices("batch", c.DeviceID()); err != nil {
				t.Fatal(err)
			}
			_, err = c.Enrol(t.Context())
			return c.DeviceID(), err
		}
		_, err := enrol(cut)
		if !cut.dead {
			return err
		}
		if !errors.Is(err, errCut) {
			return fmt.Errorf("the cut shows as %w", err)
		}
		id, err := enrol(st)
		if err != nil {
			return err
		}
		if n := len(server.Certificates(id)); n != 1 {
			return fmt.Errorf("%d device certificates were issued", n)
		}
		if open, err := quarklink.New(t.Context(), quarklink.Config{KeyStore: newKeys(t, st), Store: st}); err != nil {
			return err
		} else if e, err := open.Enrolment(); err != nil || !e.Certificate.Equal(server.Certificates(id)[0]) {
			return fmt.Errorf("after a restart: %w", err)
		}
		return nil
	})
}

// TestEnrolLost loses one request or one answer of each step: the client asks
// again, and still there is exactly one device certificate.
func TestEnrolLost(t *testing.T) {
	steps := []quarklinktest.Call{quarklinktest.CallTemporary, quarklinktest.CallCACerts, quarklinktest.CallEnrol, quarklinktest.CallConnection}
	faults := map[string]quarklinktest.Fault{
		"request lost": quarklinktest.LoseRequest(), "answer lost": quarklinktest.LoseAnswer(), "answer cut off": quarklinktest.CutOff(10),
		"unavailable": quarklinktest.Refuse(503, quarklinktest.ProblemUnavailable, 7*time.Second),
		"hold":        quarklinktest.Hold(5 * time.Second),
	}
	for name, fault := range faults {
		for _, step := range steps {
			t.Run(fmt.Sprintf("%s/%s", step, name), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					server, c := newMember(t, quarklinktest.Batch{})
					server.Fault(step, fault.Times(1))
					start := time.Now()
					if _, err := c.Enrol(t.Context()); err != nil {
						t.Fatal(err)
					}
					if n := len(server.Certificates(c.DeviceID())); n != 1 {
						t.Errorf("%d device certificates", n)
					}
					if got := server.Stats().Calls[step]; got != 2 {
						t.Errorf("%d requests, want 2", got)
					}
					if took := time.Since(start); name == "unavailable" && took < 7*time.Second || name == "hold" && took < 5*time.Second {
						t.Errorf("asked again after %v, sooner than told", took)
					}
				})
			})
		}
	}
}

// TestEnrolRefuses meets a hostile or broken instance at each step. Whatever
// was enrolled before stays.
func TestEnrolRefuses(t *testing.T) {
	page := func(status int, kind, body string) quarklinktest.Fault {
		return quarklinktest.Answer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", kind)
			w.WriteHeader(status)
			fmt.Fprint(w, body)
		}))
	}
	redirect := quarklinktest.Answer(http.RedirectHandler("https://elsewhere.example/", http.StatusTemporaryRedirect))
	for _, test := range []struct {
		name   string
		step   quarklinktest.Call
		fault  quarklinktest.Fault
		want   error
		status int // HTTPStatus of the error
	}{
		{"revoked", quarklinktest.CallTemporary, quarklinktest.Refuse(403, quarklinktest.ProblemDeviceRevoked, 0), quarklink.ErrDeviceRevoked, 403},
		{"unknown", quarklinktest.CallTemporary, quarklinktest.Refuse(404, quarklinktest.ProblemDeviceUnknown, 0), quarklink.ErrDeviceDoesNotExist, 404},
		{"CSR refused", quarklinktest.CallEnrol, quarklinktest.Refuse(400, quarklinktest.ProblemBadCSR, 0), quarklink.ErrGeneral, 400},
		{"Azure", quarklinktest.CallConnection, quarklinktest.Refuse(500, quarklinktest.ProblemAzureProvisioning, 0), quarklink.ErrAzureProvisioning, 500},
		{"not enrolled", quarklinktest.CallConnection, quarklinktest.Refuse(404, quarklinktest.ProblemNotEnrolled, 0), quarklink.ErrValueNotAvailable, 404},
		{"always unavailable", quarklinktest.CallEnrol, quarklinktest.Refuse(503, quarklinktest.ProblemUnavailable, 0), quarklink.ErrCommunication, 503},
		{"never approved", quarklinktest.CallEnrol, quarklinktest.Hold(time.Second), quarklink.ErrValueNotAvailable, 202},
		{"no page", quarklinktest.CallEnrol, page(404, "text/html", "<h1>Not found</h1>"), quarklink.ErrGeneral, 404},
		{"login page", quarklinktest.CallEnrol, page(401, "text/html", "who are you?"), quarklink.ErrGeneral, 401},
		{"another key", quarklinktest.CallEnrol, quarklinktest.WrongKey(), quarklink.ErrGeneral, 0},
		{"another key, temporary", quarklinktest.CallTemporary, quarklinktest.WrongKey(), quarklink.ErrGeneral, 0},
		{"two certificates", quarklinktest.CallEnrol, quarklinktest.TwoCertificates(), quarklink.ErrGeneral, 0},
		{"foreign issuer", quarklinktest.CallEnrol, quarklinktest.ForeignIssuer(), quarklink.ErrCACerts, 0},
		{"foreign cacerts", quarklinktest.CallCACerts, quarklinktest.ForeignIssuer(), quarklink.ErrCACerts, 0},
		{"cacerts of another type", quarklinktest.CallCACerts, page(200, "text/plain", "hello"), quarklink.ErrCACerts, 0},
		{"no cacerts", quarklinktest.CallCACerts, page(204, "text/plain", ""), quarklink.ErrCACerts, 204},
		{"garbage for a certificate", quarklinktest.CallEnrol, page(200, "application/pkcs7-mime", "MII="), quarklink.ErrGeneral, 0},
		{"damaged certificate", quarklinktest.CallEnrol, quarklinktest.Damage(2), quarklink.ErrGeneral, 0},
		{"redirect to another host", quarklinktest.CallEnrol, redirect, quarklink.ErrCommunication, 0},
		{"connection of another type", quarklinktest.CallConnection, page(200, "application/json", `{"type":"carrier_pigeon","endpoint":"x","port":1,"rootCA":""}`), quarklink.ErrGeneral, 0},
		{"connection without a root", quarklinktest.CallConnection, page(200, "application/json", `{"type":"iot_hub","endpoint":"x","port":1,"rootCA":"none"}`), quarklink.ErrGeneral, 0},
		{"connection to a strange host", quarklinktest.CallConnection, page(200, "application/json", `{"type":"iot_hub","endpoint":"a b/c","port":1,"rootCA":""}`), quarklink.ErrGeneral, 0},
		{"connection to port 0", quarklinktest.CallConnection, page(200, "application/json", `{"type":"iot_hub","endpoint":"x","port":0,"rootCA":""}`), quarklink.ErrGeneral, 0},
		{"database without a token", quarklinktest.CallConnection, page(200, "application/json", `{"type":"database_direct","endpoint":"x","port":1,"rootCA":"`+pemOf(newRoot(t, "db"))+`","uri":"/x"}`), quarklink.ErrGeneral, 0},
		{"database elsewhere", quarklinktest.CallConnection, page(200, "application/json", `{"type":"database_direct","endpoint":"x","port":1,"rootCA":"`+pemOf(newRoot(t, "db"))+`","uri":"@elsewhere/","token":"eyJ"}`), quarklink.ErrGeneral, 0},
		{"revoked, and told so as if it might pass", quarklinktest.CallEnrol, quarklinktest.Refuse(503, quarklinktest.ProblemDeviceRevoked, 0), quarklink.ErrDeviceRevoked, 503},
		{"connection that is no JSON", quarklinktest.CallConnection, page(200, "application/json", `{"type":`), quarklink.ErrGeneral, 0},
		{"endless connection", quarklinktest.CallConnection, page(200, "application/json", strings.Repeat(" ", 70<<10)), quarklink.ErrGeneral, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server, c := newMember(t, quarklinktest.Batch{})
				server.Fault(test.step, test.fault)
				_, err := c.Enrol(t.Context())
				var e *quarklink.Error
				if !errors.Is(err, test.want) || !errors.As(err, &e) {
					t.Fatalf("error %v, want %v", err, test.want)
				}
				onlyCode(t, err)
				if e.HTTPStatus != test.status {
					t.Errorf("HTTPStatus %d, want %d", e.HTTPStatus, test.status)
				}
				if len(err.Error()) > 1000 || strings.ContainsAny(err.Error(), "\n\x00") {
					t.Errorf("not an error for people: %q", err)
				}
				if _, err := c.Enrolment(); !errors.Is(err, quarklink.ErrNoEnrolment) {
					t.Errorf("enrolled all the same: %v", err)
				}
				server.ClearFaults()
				good, err := c.Enrol(t.Context())
				if err != nil {
					t.Fatalf("with a good instance again: %v", err)
				}
				server.Fault(test.step, test.fault)
				if _, err := c.Enrol(t.Context()); err == nil {
					t.Fatal("no error the second time")
				}
				kept, err := c.Enrolment()
				if err != nil || !kept.Certificate.Equal(good.Certificate) || !slices.EqualFunc(kept.CACerts, good.CACerts, (*x509.Certificate).Equal) {
					t.Errorf("the old enrolment is not what it was: %v", err)
				}
				if n := len(server.Certificates(c.DeviceID())); n != 1 {
					t.Errorf("%d device certificates were issued", n)
				}
			})
		})
	}
}

// TestRetryAfter: a wait that is too long is the caller's.
func TestRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, c := newMember(t, quarklinktest.Batch{})
		server.Fault(quarklinktest.CallStatus, quarklinktest.Refuse(429, "", time.Hour))
		start := time.Now()
		_, err := c.Status(t.Context())
		if after, ok := quarklink.RetryAfter(err); !ok || after != time.Hour || !errors.Is(err, quarklink.ErrCommunication) {
			t.Errorf("RetryAfter(%v) = %v, %v", err, after, ok)
		}
		if time.Since(start) != 0 {
			t.Errorf("waited %v for nothing", time.Since(start))
		}
	})
}

// TestAnotherRoot: a server that the root does not vouch for gets no request.
func TestAnotherRoot(t *testing.T) {
	server, other := newServer(t, quarklinktest.Options{}), newServer(t, quarklinktest.Options{})
	c := newClient(t, new(store.Mem), func(cfg *quarklink.Config) {
		i := server.Instance()
		i.Root = other.Instance().Root
		cfg.Instance = &i
	})
	_, err := c.Enrol(t.Context())
	var unverified *tls.CertificateVerificationError
	if !errors.Is(err, quarklink.ErrCommunication) || !errors.As(err, &unverified) {
		t.Errorf("error %v", err)
	}
	if stats := server.Stats(); stats.Requests != 0 || stats.Handshakes != 0 {
		t.Errorf("the server got through: %+v", stats)
	}
	// With the right root it works, at once and after a restart.
	if err := c.SetInstance(t.Context(), server.Instance()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Status(t.Context()); !errors.Is(err, quarklink.ErrDeviceDoesNotExist) {
		t.Errorf("after SetInstance: %v", err)
	}
}

func TestClock(t *testing.T) {
	server := newServer(t, quarklinktest.Options{})
	now := time.Unix(0, 0)
	c := newClient(t, new(store.Mem), at(server), func(cfg *quarklink.Config) { cfg.Now = func() time.Time { return now } })
	member(t, server, c, quarklinktest.Batch{})
	if _, err := c.Status(t.Context()); !errors.Is(err, quarklink.ErrClock) || !errors.Is(err, quarklink.ErrCommunication) {
		t.Errorf("in 1970: %v", err)
	}
	now = time.Now()
	if _, err := c.Status(t.Context()); err != nil {
		t.Errorf("once the clock is set: %v", err)
	}
}

func TestTLSVersions(t *testing.T) {
	server := newServer(t, quarklinktest.Options{TLS12: true})
	if _, err := newClient(t, new(store.Mem), at(server)).Status(t.Context()); !errors.Is(err, quarklink.ErrCommunication) {
		t.Errorf("TLS 1.2 without asking for it: %v", err)
	}
	c := newClient(t, new(store.Mem), at(server), func(cfg *quarklink.Config) { cfg.MinTLS = tls.VersionTLS12 })
	member(t, server, c, quarklinktest.Batch{})
	if _, err := c.Enrol(t.Context()); err != nil {
		t.Errorf("TLS 1.2 asked for: %v", err)
	}
}

// TestOperator follows what an operator does to a device.
func TestOperator(t *testing.T) {
	server, c := newMember(t, quarklinktest.Batch{})
	ctx := t.Context()
	expect := func(when string, code quarklink.Code, needs bool) {
		t.Helper()
		s, err := c.Status(ctx)
		if err != nil || s.Code() != code || s.NeedsEnrolment() != needs {
			t.Errorf("%s: status %+v (%v), %v; want code %v, needs enrolment %v", when, s, s.Code(), err, code, needs)
		}
	}
	enrol := func() {
		t.Helper()
		if _, err := c.Enrol(ctx); err != nil {
			t.Fatal(err)
		}
	}
	expect("blank", quarklink.CodeNotEnrolled, true)
	enrol()
	expect("enrolled", quarklink.CodeEnrolled, false)
	enrol()
	if n := len(server.Certificates(c.DeviceID())); n != 1 {
		t.Errorf("enrolling twice made %d certificates", n)
	}
	must(t, server.Expire(c.DeviceID()))
	expect("expired", quarklink.CodeCertificateExpired, true)
	enrol()
	expect("enrolled anew", quarklink.CodeEnrolled, false)
	if n := len(server.Certificates(c.DeviceID())); n != 2 {
		t.Errorf("%d certificates after expiry, want 2", n)
	}
	must(t, server.PendingRevoke(c.DeviceID()))
	expect("pending revoke", quarklink.CodeEnrolled, false)
	must(t, server.Revoke(c.DeviceID()))
	expect("revoked", quarklink.CodeRevoked, false)
	if _, err := c.Enrol(ctx); !errors.Is(err, quarklink.ErrDeviceRevoked) {
		t.Errorf("Enrol of a revoked device: %v", err)
	}
	if _, err := c.FirmwareUpdate(ctx, quarklink.FirmwareOptions{Slot: newSlot(t, 1<<20), Verifier: anything}); !errors.Is(err, quarklink.ErrDeviceRevoked) {
		t.Errorf("FirmwareUpdate of a revoked device: %v", err)
	}
	must(t, server.AllowEnrolment(c.DeviceID()))
	expect("allowed", quarklink.CodeNotEnrolled, true)
	enrol()
	expect("enrolled once more", quarklink.CodeEnrolled, false)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestExpiredByTheClock: the device notices by itself.
func TestExpiredByTheClock(t *testing.T) {
	now := time.Now()
	clock := func() time.Time { return now }
	server := newServer(t, quarklinktest.Options{InMemory: true, Now: clock})
	c := newClient(t, new(store.Mem), at(server), func(cfg *quarklink.Config) { cfg.Now = clock })
	member(t, server, c, quarklinktest.Batch{Policy: quarklinktest.Policy{Lifetime: time.Hour}})
	if _, err := c.Enrol(t.Context()); err != nil {
		t.Fatal(err)
	}
	now = now.Add(2 * time.Hour)
	s, err := c.Status(t.Context())
	if err != nil || !s.CertificateExpired || !s.NeedsEnrolment() {
		t.Errorf("two hours later: %+v, %v", s, err)
	}
}

func TestStatusOfAnotherDevice(t *testing.T) {
	for name, body := range map[string]string{
		"another device": `{"deviceID":"` + strings.Repeat("0", 64) + `","state":"enrolled"}`,
		"no state":       `{}`,
		"no JSON":        `hello`,
		"bad digest":     `{"state":"enrolled","firmware":{"size":1,"sha256":"abc"}}`,
	} {
		t.Run(name, func(t *testing.T) {
			server, c := newMember(t, quarklinktest.Batch{})
			server.Fault(quarklinktest.CallStatus, quarklinktest.Answer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				fmt.Fprint(w, body)
			})))
			if s, err := c.Status(t.Context()); !errors.Is(err, quarklink.ErrGeneral) || s != (quarklink.Status{}) {
				t.Errorf("status %+v, %v", s, err)
			}
		})
	}
}

func TestDatabaseDirect(t *testing.T) {
	var log strings.Builder
	_, c := newMember(t, quarklinktest.Batch{Policy: quarklinktest.Policy{Database: &quarklink.Database{
		Endpoint: "data.example", Port: 443, URI: "/app/x/endpoint", Database: "db", DataSource: "cluster", Token: "eyJ.secret.token"}}},
		func(cfg *quarklink.Config) { cfg.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	e, err := c.Enrol(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if e.Hub != nil || e.Database == nil || string(e.Database.Token) != "eyJ.secret.token" || e.Database.URI != "/app/x/endpoint" {
		t.Errorf("enrolment leads to %+v, %+v", e.Hub, e.Database)
	}
	if shown := fmt.Sprintf("%v %+v %#v", e, *e.Database, e.Database); strings.Contains(shown+log.String(), "secret.token") {
		t.Error("the token shows")
	}
	if _, err := c.HubTLSConfig(t.Context()); !errors.Is(err, quarklink.ErrValueNotAvailable) {
		t.Errorf("HubTLSConfig: %v", err)
	}
}

// anything is a Verifier that accepts every image.
var anything = verifierFunc(func(context.Context, io.ReaderAt, int64) error { return nil })

// TestFullDisk: a store that takes nothing more is ErrStorage, and what was
// there stays.
func TestFullDisk(t *testing.T) {
	server := newServer(t, quarklinktest.Options{InMemory: true})
	st := &fullStore{Mem: new(store.Mem)}
	c := newClient(t, st, at(server))
	member(t, server, c, quarklinktest.Batch{})
	first, err := c.Enrol(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	must(t, server.Expire(c.DeviceID()))
	st.full = true
	if _, err := c.Enrol(t.Context()); !errors.Is(err, quarklink.ErrStorage) || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("Enrol on a full disk: %v", err)
	}
	if err := c.SetInstance(t.Context(), server.Instance()); !errors.Is(err, quarklink.ErrStorage) {
		t.Errorf("SetInstance on a full disk: %v", err)
	}
	if e, err := c.Enrolment(); err != nil || !e.Certificate.Equal(first.Certificate) {
		t.Errorf("the enrolment did not survive a full disk: %v", err)
	}
	st.full = false
	if _, err := c.Enrol(t.Context()); err != nil {
		t.Errorf("with room again: %v", err)
	}
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

// TestDamagedEnrolment: status goes on, Enrolment says so, Enrol mends it.
func TestDamagedEnrolment(t *testing.T) {
	server := newServer(t, quarklinktest.Options{InMemory: true})
	st := new(store.Mem)
	c := newClient(t, st, at(server))
	member(t, server, c, quarklinktest.Batch{})
	ctx := t.Context()
	if _, err := c.Enrol(ctx); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"enrolment", "csr"} {
		data, err := st.Get(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		must(t, st.Put(ctx, name, data[:len(data)/2]))
	}
	again := newClient(t, st, at(server))
	if _, err := again.Enrolment(); !errors.Is(err, quarklink.ErrStorage) {
		t.Errorf("damaged enrolment: %v", err)
	}
	if s, err := again.Status(ctx); err != nil || !s.NeedsEnrolment() {
		t.Errorf("status with a damaged enrolment: %+v, %v", s, err)
	}
	if _, err := again.Enrol(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := again.Enrolment(); err != nil {
		t.Errorf("still damaged after Enrol: %v", err)
	}
}

// TestKeys: what New and Enrol make of key stores that cannot do everything.
func TestKeys(t *testing.T) {
	ctx := t.Context()
	if _, err := quarklink.New(ctx, quarklink.Config{}); !errors.Is(err, quarklink.ErrInvalidParameter) {
		t.Errorf("no key store: %v", err)
	}
	if _, err := quarklink.New(ctx, quarklink.Config{KeyStore: noKeys{}}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a store without keys that makes none: %v", err)
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	server := newServer(t, quarklinktest.Options{InMemory: true})
	must(t, server.AddBatch(quarklinktest.Batch{Name: "batch"}))
	for name, signer := range map[string]crypto.Signer{"RSA": key, "RSA that makes PSS only": pssOnly{key}} {
		t.Run(name, func(t *testing.T) {
			c := newClient(t, new(store.Mem), at(server), func(cfg *quarklink.Config) { cfg.KeyStore = keystore.Static(signer) })
			must(t, server.AddDevices("batch", c.DeviceID()))
			if _, err := c.Enrol(ctx); err != nil {
				t.Error(err)
			}
		})
	}
}

type noKeys struct{}

func (noKeys) Signer(context.Context, keystore.Role) (crypto.Signer, error) {
	return nil, fs.ErrNotExist
}

// pssOnly is a signer that a chip might be: it makes RSA-PSS with SHA-256.
type pssOnly struct{ *rsa.PrivateKey }

func (pssOnly) SignatureSchemes() []uint16 { return []uint16{0x0804} }

func (k pssOnly) Sign(r io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if _, ok := opts.(*rsa.PSSOptions); !ok || opts.HashFunc() != crypto.SHA256 {
		return nil, errors.New("this chip makes RSA-PSS with SHA-256 only")
	}
	return k.PrivateKey.Sign(r, digest, opts)
}

// TestAuthenticator: a transport that brings its own trust is used as it is,
// and the instance cannot be changed under it.
func TestAuthenticator(t *testing.T) {
	server := newServer(t, quarklinktest.Options{})
	roots := x509.NewCertPool()
	roots.AddCert(server.Instance().Root)
	i := server.Instance()
	modem := transport.TLS{Addr: net.JoinHostPort(i.Endpoint, fmt.Sprint(i.Port)), Roots: roots}
	bare := quarklink.Instance{Endpoint: i.Endpoint, Port: i.Port}
	c := newClient(t, new(store.Mem), func(cfg *quarklink.Config) { cfg.Instance, cfg.Transport = &bare, modem })
	member(t, server, c, quarklinktest.Batch{})
	if _, err := c.Enrol(t.Context()); err != nil {
		t.Error(err)
	}
	if err := c.SetInstance(t.Context(), i); !errors.Is(err, quarklink.ErrInvalidParameter) {
		t.Errorf("SetInstance: %v", err)
	}
	blank := newClient(t, new(store.Mem), func(cfg *quarklink.Config) { cfg.Transport = modem })
	line := &spy{Port: answer(t, nil)}
	if _, err := blank.Provision(t.Context(), line, quarklink.ProvisionOptions{NoNetwork: true}); !errors.Is(err, quarklink.ErrInvalidParameter) || line.sent.Len() > 0 {
		t.Errorf("Provision of an instance: %v, after asking %q", err, line.asked())
	}
}

func TestBadInstances(t *testing.T) {
	root := newRoot(t, "root")
	c := newClient(t, new(store.Mem))
	for _, i := range []quarklink.Instance{
		{}, {Endpoint: "x"}, {Root: root}, {Endpoint: "a b", Root: root}, {Endpoint: "host/path", Root: root},
		{Endpoint: "..", Root: root}, {Endpoint: "-x", Root: root}, {Endpoint: "a;b", Root: root}, {Endpoint: "exämple.com", Root: root},
		{Endpoint: "fe80::1%eth0", Root: root}, {Endpoint: "host", Root: new(x509.Certificate)},
		{Endpoint: "user@host", Root: root}, {Endpoint: "host:1", Root: root}, {Endpoint: "host?x", Root: root}, {Endpoint: "host#x", Root: root}, {Endpoint: "ho\nst", Root: root},
	} {
		if err := c.SetInstance(t.Context(), i); !errors.Is(err, quarklink.ErrInvalidParameter) {
			t.Errorf("SetInstance(%q): %v", i.Endpoint, err)
		}
		cfg := quarklink.Config{KeyStore: newKeys(t, new(store.Mem)), Instance: &i}
		if _, err := quarklink.New(t.Context(), cfg); !errors.Is(err, quarklink.ErrInvalidParameter) {
			t.Errorf("New with %q: %v", i.Endpoint, err)
		}
		if _, err := cfg.KeyStore.Signer(t.Context(), keystore.Enrolment); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("New with %q made a key: %v", i.Endpoint, err)
		}
	}
	cfg := quarklink.Config{KeyStore: newKeys(t, new(store.Mem)), MinTLS: tls.VersionTLS11}
	if _, err := quarklink.New(t.Context(), cfg); !errors.Is(err, quarklink.ErrInvalidParameter) {
		t.Errorf("New with TLS 1.1: %v", err)
	}
	for _, endpoint := range []string{"instance.example", "192.0.2.1", "2001:db8::1"} {
		must(t, c.SetInstance(t.Context(), quarklink.Instance{Endpoint: endpoint, Root: root}))
	}
}

// TestOneAtATime: calls wait for their turn, obey their context while they do,
// and end with Close.
func TestOneAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, c := newMember(t, quarklinktest.Batch{})
		server.Fault(quarklinktest.CallStatus, quarklinktest.Delay(time.Hour))
		slow := make(chan error)
		go func() { _, err := c.Status(t.Context()); slow <- err }()
		synctest.Wait()

		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := c.Enrol(ctx)
		var e *quarklink.Error
		if !errors.Is(err, context.DeadlineExceeded) || !errors.As(err, &e) || e.Code != 0 {
			t.Errorf("a call that waited in vain: %v", err)
		}
		if _, err := c.Enrolment(); !errors.Is(err, quarklink.ErrNoEnrolment) {
			t.Errorf("Enrolment, which needs no turn: %v", err)
		}
		c.Close()
		if err := <-slow; !errors.Is(err, net.ErrClosed) || errors.Is(err, context.Canceled) {
			t.Errorf("the call that Close ended: %v", err)
		}
		if _, err := c.Status(t.Context()); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a call after Close: %v", err)
		}
		c.Close()
	})
}

// TestCancel ends an enrolment at each of its steps.
func TestCancel(t *testing.T) {
	for _, step := range []quarklinktest.Call{quarklinktest.CallTemporary, quarklinktest.CallCACerts, quarklinktest.CallEnrol, quarklinktest.CallConnection} {
		t.Run(string(step), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server, c := newMember(t, quarklinktest.Batch{})
				server.Fault(step, quarklinktest.Delay(time.Hour).Times(1))
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				start := time.Now()
				_, err := c.Enrol(ctx)
				if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, quarklink.ErrCommunication) {
					t.Errorf("error %v, want the context's and no code", err)
				}
				if took := time.Since(start); took > time.Minute+time.Second {
					t.Errorf("it took %v to notice", took)
				}
				if _, err := c.Enrol(t.Context()); err != nil {
					t.Errorf("afterwards: %v", err)
				}
				if n := len(server.Certificates(c.DeviceID())); n != 1 {
					t.Errorf("%d device certificates", n)
				}
			})
		})
	}
}

// TestConcurrentCalls is for the race detector.
func TestConcurrentCalls(t *testing.T) {
	_, c := newMember(t, quarklinktest.Batch{})
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if _, err := c.Status(t.Context()); err != nil {
				t.Error(err)
			}
		})
		all.Go(func() {
			if _, err := c.Enrol(t.Context()); err != nil {
				t.Error(err)
			}
			c.Enrolment()
			c.Instance()
			c.DeviceID()
		})
	}
	all.Wait()
}

// TestNothingLeftBehind enrols 50 times over loopback TCP and counts goroutines
// and descriptors.
func TestNothingLeftBehind(t *testing.T) {
	server := newServer(t, quarklinktest.Options{})
	must(t, server.AddBatch(quarklinktest.Batch{Name: "batch"}))
	live := func() {
		c := newClient(t, new(store.Mem), at(server))
		must(t, server.AddDevices("batch", c.DeviceID()))
		if _, err := c.Enrol(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Status(t.Context()); err != nil {
			t.Fatal(err)
		}
		must(t, c.Close())
	}
	live() // whatever is made once
	settle(func() bool { return server.Stats().Open == 0 })
	goroutines, files := runtime.NumGoroutine(), descriptors()
	for range 50 {
		live()
	}
	settle(func() bool {
		return server.Stats().Open == 0 && runtime.NumGoroutine() <= goroutines && descriptors() <= files
	})
	if g, f := runtime.NumGoroutine(), descriptors(); g > goroutines || f > files {
		t.Errorf("50 enrolments left %d goroutines and %d descriptors behind", g-goroutines, f-files)
	}
}

// settle gives what is ending the time to end.
func settle(done func() bool) {
	for end := time.Now().Add(10 * time.Second); !done() && time.Now().Before(end); {
		runtime.Gosched()
	}
}

// descriptors returns how many files are open, where the system tells.
func descriptors() int {
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(names)
}

// newHubCertificate makes a self-signed certificate for hub.test.
func newHubCertificate(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "hub"}, DNSNames: []string{"hub.test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// TestHub connects with the device certificate to a TLS server of Go's and to
// one of openssl's, which insists on a certificate of the issuing authority.
func TestHub(t *testing.T) {
	hub := newHubCertificate(t)
	server := newServer(t, quarklinktest.Options{})
	c := newClient(t, new(store.Mem), at(server))
	member(t, server, c, quarklinktest.Batch{Policy: quarklinktest.Policy{
		Hub: &quarklink.Hub{Endpoint: "hub.test", Port: 8883, Roots: []*x509.Certificate{hub.Leaf}}}})
	if _, err := c.HubTLSConfig(t.Context()); !errors.Is(err, quarklink.ErrNoEnrolment) {
		t.Errorf("HubTLSConfig before enrolment: %v", err)
	}
	if _, err := c.Enrol(t.Context()); err != nil {
		t.Fatal(err)
	}
	cfg, err := c.HubTLSConfig(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Run("Go", func(t *testing.T) {
		roots := x509.NewCertPool()
		issuing := server.IssuingCertificates()
		roots.AddCert(issuing[len(issuing)-1])
		l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{hub}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			s := conn.(*tls.Conn)
			if s.Handshake() == nil {
				fmt.Fprintln(conn, s.ConnectionState().PeerCertificates[0].Subject.CommonName)
			}
		}()
		conn, err := tls.Dial("tcp", l.Addr().String(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || strings.TrimSpace(line) != string(c.DeviceID()) {
			t.Errorf("the hub sees %q, %v", line, err)
		}
	})
	for _, version := range []string{"-tls1_3", "-tls1_2"} {
		t.Run("openssl"+version, func(t *testing.T) {
			addr := counterpart.SServer(t, hub, server.IssuingCertificates(), version)
			conn, err := tls.Dial("tcp", addr, cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			fmt.Fprint(conn, "quark\n")
			if line, err := bufio.NewReader(conn).ReadString('\n'); line != "krauq\n" {
				t.Errorf("openssl s_server -rev answered %q, %v", line, err)
			}
		})
	}
}

// TestDeviceIDWithOpenSSL compares with what openssl makes of the stored key.
func TestDeviceIDWithOpenSSL(t *testing.T) {
	openssl := counterpart.Program(t, "openssl")
	dir := privateDir(t)
	c := newClient(t, store.Dir(dir))
	pass := filepath.Join(t.TempDir(), "secret")
	b, _ := secret(t.Context())
	must(t, os.WriteFile(pass, b, 0o600))
	public := exec.CommandContext(t.Context(), openssl, "pkey", "-in", filepath.Join(dir, "key-esk"), "-passin", "file:"+pass, "-pubout", "-outform", "DER")
	der, err := public.Output()
	if err != nil {
		t.Fatal(err)
	}
	sum := exec.CommandContext(t.Context(), openssl, "dgst", "-sha256", "-r")
	sum.Stdin = strings.NewReader(string(der))
	line, err := sum.Output()
	if err != nil {
		t.Fatal(err)
	}
	if got, _, _ := strings.Cut(string(line), " "); got != string(c.DeviceID()) {
		t.Errorf("openssl says %s, the DeviceID is %s", got, c.DeviceID())
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
	if len(found) != 1 || !errors.As(err, &e) || e.Code != found[0] {
		t.Errorf("the error has the codes %v: %v", found, err)
	}
}

// TestHungDial: an attempt to connect that leads nowhere ends with the call
// that made it, and the next call makes a new one.
func TestHungDial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := newServer(t, quarklinktest.Options{InMemory: true})
		good := server.Carrier()
		dials, ended := 0, 0
		c := newClient(t, new(store.Mem), at(server), func(cfg *quarklink.Config) {
			cfg.Transport = transport.Func(func(ctx context.Context) (net.Conn, error) {
				if dials++; dials > 1 {
					return good.Dial(ctx)
				}
				<-ctx.Done()
				ended++
				return nil, ctx.Err()
			})
		})
		member(t, server, c, quarklinktest.Batch{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := c.Status(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the call that hung: %v", err)
		}
		synctest.Wait()
		if ended != 1 {
			t.Error("the dial outlived its call")
		}
		if _, err := c.Status(t.Context()); err != nil || dials != 2 {
			t.Errorf("the next call: %v, %d dials", err, dials)
		}
	})
}

// TestSilence: calls without a deadline do not wait for ever for an instance
// that has fallen silent.
func TestSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, c := newMember(t, asIs([]byte("image")))
		server.Fault(quarklinktest.CallStatus, quarklinktest.Delay(30*24*time.Hour))
		start := time.Now()
		if _, err := c.Status(t.Context()); !errors.Is(err, quarklink.ErrCommunication) {
			t.Errorf("silence before the answer: %v", err)
		}
		if took := time.Since(start); took > time.Hour {
			t.Errorf("it took %v", took)
		}
		server.ClearFaults()

		server.Fault(quarklinktest.CallFirmware, quarklinktest.Answer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "5")
			w.Write([]byte("im"))
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		})))
		start = time.Now()
		_, err := c.FirmwareUpdate(t.Context(), quarklink.FirmwareOptions{Slot: newSlot(t, 1<<20), Verifier: anything})
		if !errors.Is(err, quarklink.ErrConnectionLost) {
			t.Errorf("silence in the middle of an image: %v", err)
		}
		if took := time.Since(start); took > time.Hour {
			t.Errorf("it took %v", took)
		}
	})
}

// TestCloseFromCallback: what is called back may close the client.
func TestCloseFromCallback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, c := newMember(t, asIs([]byte("image")))
		_, err := c.FirmwareUpdate(t.Context(), quarklink.FirmwareOptions{Slot: newSlot(t, 1<<20), Verifier: anything,
			Progress: func(int64, int64) { c.Close() }})
		if err != nil && !errors.Is(err, net.ErrClosed) { // nil: it was done before it noticed
			t.Errorf("error %v", err)
		}
		synctest.Wait()
		if open := server.Stats().Open; open != 0 {
			t.Errorf("%d connections are open after Close", open)
		}
	})
}

// TestHubDuringUpdate: connecting to the hub does not wait for a download.
func TestHubDuringUpdate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, c := newMember(t, asIs([]byte("image")))
		if _, err := c.Enrol(t.Context()); err != nil {
			t.Fatal(err)
		}
		server.Fault(quarklinktest.CallFirmware, quarklinktest.Delay(time.Minute))
		done := make(chan error)
		go func() {
			_, err := c.FirmwareUpdate(t.Context(), quarklink.FirmwareOptions{Slot: newSlot(t, 1<<20), Verifier: anything})
			done <- err
		}()
		synctest.Wait()
		start := time.Now()
		if _, err := c.HubTLSConfig(t.Context()); err != nil || time.Since(start) > 0 {
			t.Errorf("HubTLSConfig: %v after %v", err, time.Since(start))
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestLostDeviceKey: an enrolment without its key is none, and Enrol makes
// another.
func TestLostDeviceKey(t *testing.T) {
	server := newServer(t, quarklinktest.Options{InMemory: true})
	st := new(store.Mem)
	c := newClient(t, st, at(server))
	member(t, server, c, quarklinktest.Batch{})
	ctx := t.Context()
	first, err := c.Enrol(ctx)
	if err != nil {
		t.Fatal(err)
	}
	must(t, st.Delete(ctx, "key-dsk"))
	again := newClient(t, st, at(server))
	if _, err := again.HubTLSConfig(ctx); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("HubTLSConfig without the device key: %v", err)
	}
	if s, err := again.Status(ctx); err != nil || !s.NeedsEnrolment() {
		t.Errorf("status without the device key: %+v, %v", s, err)
	}
	second, err := again.Enrol(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if second.Certificate.Equal(first.Certificate) {
		t.Error("the certificate is still over the old key")
	}
	if s, err := again.Status(ctx); err != nil || s.NeedsEnrolment() {
		t.Errorf("status after another enrolment: %+v, %v", s, err)
	}

	// Another key in its place: the certificate is not over it.
	other := newKeys(t, new(store.Mem))
	if _, err := other.Generate(ctx, keystore.Device); err != nil {
		t.Fatal(err)
	}
	swapped := newClient(t, st, at(server), func(cfg *quarklink.Config) { cfg.KeyStore = mixedKeys{cfg.KeyStore, other} })
	if _, err := swapped.HubTLSConfig(ctx); !errors.Is(err, quarklink.ErrGeneral) {
		t.Errorf("HubTLSConfig with another device key: %v", err)
	}
	if s, err := swapped.Status(ctx); err != nil || !s.NeedsEnrolment() {
		t.Errorf("status with another device key: %+v, %v", s, err)
	}
}

// mixedKeys takes its keys from two stores.
type mixedKeys struct{ enrolment, device keystore.KeyStore }

func (m mixedKeys) Signer(ctx context.Context, role keystore.Role) (crypto.Signer, error) {
	if role == keystore.Device {
		return m.device.Signer(ctx, role)
	}
	return m.enrolment.Signer(ctx, role)
}

var errChip = errors.New("the chip does not answer")

// brokenSigner signs a few times, then no more.
type brokenSigner struct {
	crypto.Signer
	left *int
}

func (s brokenSigner) Sign(r io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if *s.left--; *s.left < 0 {
		return nil, errChip
	}
	return s.Signer.Sign(r, digest, opts)
}

// TestBrokenSigner: a key that does not sign is not a network that fails.
func TestBrokenSigner(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for signatures := range 5 {
		left := signatures
		_, c := newMember(t, quarklinktest.Batch{}, func(cfg *quarklink.Config) {
			cfg.KeyStore = keystore.Static(brokenSigner{key, &left})
		})
		_, err := c.Enrol(t.Context())
		if !errors.Is(err, errChip) || errors.Is(err, quarklink.ErrCommunication) {
			t.Errorf("a key that makes %d signatures: %v", signatures, err)
		}
	}
	for _, keys := range []keystore.KeyStore{keystore.Static(nil), nilKeys{}} {
		if _, err := quarklink.New(t.Context(), quarklink.Config{KeyStore: keys}); err == nil {
			t.Error("New with no key at all")
		}
	}
	_, c := newMember(t, quarklinktest.Batch{}, func(cfg *quarklink.Config) {
		cfg.Transport = transport.Func(func(context.Context) (net.Conn, error) { return nil, nil })
	})
	if _, err := c.Status(t.Context()); err == nil {
		t.Error("a status over no stream at all")
	}
}

// nilKeys has no keys, and makes none either.
type nilKeys struct{ noKeys }

func (nilKeys) Generate(context.Context, keystore.Role) (crypto.Signer, error) { return nil, nil }

// modem is an Authenticator that looks for its own key.
type modem struct {
	transport.TLS
	seen func(crypto.PrivateKey)
}

func (m modem) As(id *tls.Certificate) transport.Transport {
	m.seen(id.PrivateKey)
	return m.TLS.As(id)
}

// TestAuthenticatorSeesItsKey: what the key store returned is what a transport
// with a key of its own must recognise.
func TestAuthenticatorSeesItsKey(t *testing.T) {
	server := newServer(t, quarklinktest.Options{InMemory: true})
	i := server.Instance()
	roots := x509.NewCertPool()
	roots.AddCert(i.Root)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	shown := 0
	c := newClient(t, new(store.Mem), func(cfg *quarklink.Config) {
		cfg.KeyStore, cfg.Instance = keystore.Static(key), &i
		cfg.Transport = modem{transport.TLS{ServerName: i.Endpoint, Roots: roots, Under: server.Carrier()}, func(k crypto.PrivateKey) {
			if shown++; k != crypto.PrivateKey(key) {
				t.Errorf("the modem is shown a %T", k)
			}
		}}
	})
	member(t, server, c, quarklinktest.Batch{})
	if _, err := c.Enrol(t.Context()); err != nil || shown != 2 {
		t.Errorf("%v, %d certificates shown", err, shown)
	}
}

// TestSilenceAfterIdle: a connection that was idle is as patient as a new one.
func TestSilenceAfterIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, c := newMember(t, quarklinktest.Batch{})
		if _, err := c.Status(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(58 * time.Second)
		server.Fault(quarklinktest.CallStatus, quarklinktest.Delay(90*time.Second))
		start := time.Now()
		if _, err := c.Status(t.Context()); err != nil || time.Since(start) != 90*time.Second || server.Stats().Handshakes != 1 {
			t.Errorf("%v after %v, %d handshakes", err, time.Since(start), server.Stats().Handshakes)
		}
	})
}

// TestOneStreamAfterHungHandshake: the stream of a handshake that leads nowhere
// is closed before the next call opens one.
func TestOneStreamAfterHungHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := newServer(t, quarklinktest.Options{InMemory: true})
		under := server.Carrier()
		var mu sync.Mutex
		taken, dials := false, 0
		c := newClient(t, new(store.Mem), at(server), func(cfg *quarklink.Config) {
			cfg.Transport = transport.Func(func(ctx context.Context) (net.Conn, error) {
				mu.Lock()
				defer mu.Unlock()
				if taken {
					t.Error("two streams at once")
				}
				taken = true
				free := func() { mu.Lock(); taken = false; mu.Unlock() }
				if dials++; dials == 1 {
					silent, peer := quarklinktest.Pipe()
					t.Cleanup(func() { peer.Close() })
					return &cableConn{Conn: silent, free: free}, nil
				}
				conn, err := under.Dial(ctx)
				return &cableConn{Conn: conn, free: free}, err
			})
		})
		member(t, server, c, quarklinktest.Batch{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := c.Status(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the call that hung: %v", err)
		}
		if _, err := c.Status(t.Context()); err != nil {
			t.Errorf("the next call: %v", err)
		}
	})
}

// pemOf is a certificate as it stands in a JSON string.
func pemOf(cert *x509.Certificate) string {
	return strings.ReplaceAll(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})), "\n", `\n`)
}

// TestForgetHalf: if the second record cannot be deleted, the client believes
// what the store says.
func TestForgetHalf(t *testing.T) {
	server := newServer(t, quarklinktest.Options{InMemory: true})
	st := &stickyStore{Mem: new(store.Mem)}
	c := newClient(t, st, at(server))
	member(t, server, c, quarklinktest.Batch{})
	if _, err := c.Enrol(t.Context()); err != nil {
		t.Fatal(err)
	}
	st.stuck = "csr"
	if err := c.ForgetEnrolment(t.Context()); !errors.Is(err, quarklink.ErrStorage) {
		t.Errorf("ForgetEnrolment: %v", err)
	}
	if _, err := c.Enrolment(); !errors.Is(err, quarklink.ErrNoEnrolment) {
		t.Errorf("Enrolment: %v", err)
	}
	st.stuck = ""
	must(t, c.ForgetEnrolment(t.Context()))
	if _, err := st.Get(t.Context(), "csr"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the CSR is still there: %v", err)
	}
}

type stickyStore struct {
	*store.Mem
	stuck string
}

func (s *stickyStore) Delete(ctx context.Context, name string) error {
	if name == s.stuck {
		return errCut
	}
	return s.Mem.Delete(ctx, name)
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
	if _, err := c.Enrol(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"csr cacerts=0 enrol=0 connection=0",
		"enrolment cacerts=1 enrol=1 connection=0",
		"enrolment cacerts=1 enrol=1 connection=1",
	}
	if !slices.Equal(st.log, want) {
		t.Errorf("writes:\n%s\nwant\n%s", strings.Join(st.log, "\n"), strings.Join(want, "\n"))
	}
}
