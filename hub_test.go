package quarklink_test

import (
	"bufio"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/internal/counterpart"
	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/quarklinktest"
	"github.com/quarklink-go/quarklink/store"
)

// loopbackCertificate makes a self-signed certificate for the names of loopback.
func loopbackCertificate(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "hub"},
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	leaf, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// hubLife is a device, its instance, and a hub on loopback that insists on a
// certificate of the instance's.
type hubLife struct {
	server *quarklinktest.Server
	device *quarklink.Client
	id     tls.Certificate // the hub's
	addr   *net.TCPAddr
	seen   chan *x509.Certificate // what the hub was presented
}

func newHubLife(t *testing.T, change ...func(*quarklink.Config)) *hubLife {
	t.Helper()
	l := &hubLife{id: loopbackCertificate(t), seen: make(chan *x509.Certificate, 9)}
	l.server, l.device = newMember(t, quarklinktest.Batch{}, change...)
	l.addr = l.listen(t, l.server.IssuingCertificates())
	l.policy("127.0.0.1", l.addr.Port, l.id.Leaf)
	return l
}

// policy is where the instance sends its devices from now on.
func (l *hubLife) policy(endpoint string, port int, roots ...*x509.Certificate) {
	var text strings.Builder
	for _, root := range roots {
		pem.Encode(&text, &pem.Block{Type: "CERTIFICATE", Bytes: root.Raw})
	}
	answer, _ := json.Marshal(map[string]any{
		"type": "iot_hub", "endpoint": endpoint, "port": port, "rootCA": text.String()})
	l.server.ClearFaults()
	l.server.Fault(quarklinktest.CallConnection, quarklinktest.Answer(http.HandlerFunc(
		func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.Write(answer)
		})))
}

// listen runs a hub that takes certificates that issuing vouch for.
func (l *hubLife) listen(t *testing.T, issuing []*x509.Certificate) *net.TCPAddr {
	t.Helper()
	clients := x509.NewCertPool()
	for _, cert := range issuing {
		clients.AddCert(cert)
	}
	hub, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{l.id}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients})
	require.NoError(t, err)
	t.Cleanup(func() { hub.Close() })
	go func() {
		for {
			conn, err := hub.Accept()
			if err != nil {
				return
			}
			if conn.(*tls.Conn).Handshake() == nil {
				l.seen <- conn.(*tls.Conn).ConnectionState().PeerCertificates[0]
				io.WriteString(conn, "hello\n")
			}
			conn.Close()
		}
	}()
	return hub.Addr().(*net.TCPAddr)
}

// enrol enrols, and returns the certificate, which is a new one each time.
func (l *hubLife) enrol(t *testing.T) *x509.Certificate {
	t.Helper()
	if _, err := l.device.Enrolment(); err == nil {
		require.NoError(t, l.server.Expire(l.device.DeviceID()))
	}
	e, err := l.device.Enrol(t.Context())
	require.NoError(t, err)
	return e.Certificate
}

func (l *hubLife) config(t *testing.T) *tls.Config {
	t.Helper()
	cfg, err := l.device.HubTLSConfig(t.Context())
	require.NoError(t, err)
	return cfg
}

// connect is what an MQTT library does with a Config.
func (l *hubLife) connect(t *testing.T, cfg *tls.Config) error {
	t.Helper()
	conn, err := tls.Dial("tcp", l.addr.String(), cfg.Clone())
	if err == nil {
		conn.Close()
	}
	return err
}

// swappedKeys is a key store whose device key can be exchanged.
type swappedKeys struct {
	keystore.Generator
	device crypto.Signer
}

func (k *swappedKeys) Signer(ctx context.Context, role keystore.Role) (crypto.Signer, error) {
	if role == keystore.Device {
		return k.device, nil
	}
	return k.Generator.Signer(ctx, role)
}

// TestHubCertificateOfNow: a Config that was made before re-enrolment presents
// the new certificate at its next handshake, with the new key if there is one.
func TestHubCertificateOfNow(t *testing.T) {
	anotherKey := func() crypto.Signer {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		require.NoError(t, err)
		return key
	}
	keys := &swappedKeys{device: anotherKey()}
	l := newHubLife(t, func(cfg *quarklink.Config) {
		keys.Generator, cfg.KeyStore = cfg.KeyStore.(keystore.Generator), keys
	})
	first := l.enrol(t)
	cfg := l.config(t)
	require.NoError(t, l.connect(t, cfg))
	assert.Equal(t, first.Raw, (<-l.seen).Raw)

	second := l.enrol(t)
	require.NotEqual(t, first.Raw, second.Raw)
	require.NoError(t, l.connect(t, cfg))
	assert.Equal(t, second.Raw, (<-l.seen).Raw)

	keys.device = anotherKey()
	third := l.enrol(t)
	require.NotEqual(t, second.PublicKey, third.PublicKey)
	require.NoError(t, l.device.Close())
	require.NoError(t, l.connect(t, cfg), "after Close")
	assert.Equal(t, third.Raw, (<-l.seen).Raw)
}

// TestHubOfNowWithOpenSSL asks openssl which certificate was presented to it.
func TestHubOfNowWithOpenSSL(t *testing.T) {
	l := newHubLife(t)
	l.enrol(t)
	cfg := l.config(t)
	for _, version := range []string{"-tls1_3", "-tls1_2"} {
		t.Run(version, func(t *testing.T) {
			page := func(conn net.Conn, err error) string {
				require.NoError(t, err)
				defer conn.Close()
				fmt.Fprint(conn, "GET / HTTP/1.0\r\n\r\n")
				text, _ := io.ReadAll(conn)
				return string(text)
			}
			for range 2 {
				cert := l.enrol(t)
				addr := counterpart.SServer(t, l.id, l.server.IssuingCertificates(), version, "-www")
				conn, err := tls.Dial("tcp", addr, cfg)
				assert.Contains(t, page(conn, err), serial(cert.SerialNumber), "by HubTLSConfig")
			}
			addr := counterpart.SServer(t, l.id, l.server.IssuingCertificates(), version, "-www")
			_, port, err := net.SplitHostPort(addr)
			require.NoError(t, err)
			l.policy("127.0.0.1", number(t, port), l.id.Leaf)
			cert := l.enrol(t)
			assert.Contains(t, page(l.device.DialHub(t.Context())), serial(cert.SerialNumber), "by DialHub")
		})
	}
}

func number(t *testing.T, text string) (n int) {
	t.Helper()
	_, err := fmt.Sscan(text, &n)
	require.NoError(t, err)
	return n
}

// serial is a serial number as openssl writes a long one.
func serial(n *big.Int) string {
	return strings.ReplaceAll(fmt.Sprintf("% x", n.Bytes()), " ", ":")
}

// TestHubHasChanged: a Config for a hub that is not that of the enrolment any
// more fails before anything is presented; a new one, and DialHub, do not.
func TestHubHasChanged(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(t *testing.T, l *hubLife)
		want   error
		text   string
	}{
		{"its name", func(t *testing.T, l *hubLife) {
			l.policy("localhost", l.addr.Port, l.id.Leaf)
			l.enrol(t)
		}, quarklink.ErrGeneral, "127.0.0.1 to localhost: call HubTLSConfig again"},
		{"its roots", func(t *testing.T, l *hubLife) {
			l.policy("127.0.0.1", l.addr.Port, loopbackCertificate(t).Leaf)
			l.enrol(t)
		}, quarklink.ErrGeneral, "call HubTLSConfig again"},
		{"one root more", func(t *testing.T, l *hubLife) {
			l.policy("127.0.0.1", l.addr.Port, l.id.Leaf, loopbackCertificate(t).Leaf)
			l.enrol(t)
		}, quarklink.ErrGeneral, "call HubTLSConfig again"},
		{"the enrolment is gone", func(t *testing.T, l *hubLife) {
			require.NoError(t, l.device.ForgetEnrolment(t.Context()))
		}, quarklink.ErrNoEnrolment, ""},
	} {
		for _, asks := range []tls.ClientAuthType{tls.NoClientCert, tls.RequireAnyClientCert} {
			t.Run(fmt.Sprint(test.name, asks), func(t *testing.T) {
				l := newHubLife(t)
				l.enrol(t)
				cfg := l.config(t)
				test.change(t, l)

				hub, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
					Certificates: []tls.Certificate{l.id}, ClientAuth: asks})
				require.NoError(t, err)
				defer hub.Close()
				presented := make(chan int, 1)
				go func() {
					conn, err := hub.Accept()
					if err != nil {
						return
					}
					conn.(*tls.Conn).Handshake()
					presented <- len(conn.(*tls.Conn).ConnectionState().PeerCertificates)
					conn.Close()
				}()
				_, err = tls.Dial("tcp", hub.Addr().String(), cfg)
				require.ErrorIs(t, err, test.want)
				assert.ErrorContains(t, err, test.text)
				onlyCode(t, err)
				assert.Zero(t, <-presented)
			})
		}
	}
}

// TestHubChangesInTheHandshake: what is for the new hub is not presented to the
// one that was verified.
func TestHubChangesInTheHandshake(t *testing.T) {
	l := newHubLife(t)
	l.enrol(t)
	cfg := l.config(t)
	verify := cfg.VerifyConnection
	cfg.VerifyConnection = func(state tls.ConnectionState) error {
		err := verify(state)
		l.policy("localhost", l.addr.Port, l.id.Leaf)
		l.enrol(t)
		return err
	}
	require.ErrorContains(t, l.connect(t, cfg), "call HubTLSConfig again")
	assert.Empty(t, l.seen)
}

// TestHubMovesWithinItsName: the same roots in another order are no change, and
// a port is no business of TLS.
func TestHubMovesWithinItsName(t *testing.T) {
	l := newHubLife(t)
	other := loopbackCertificate(t).Leaf
	l.policy("127.0.0.1", l.addr.Port, l.id.Leaf, other)
	l.enrol(t)
	cfg := l.config(t)
	l.policy("127.0.0.1", 8883, other, l.id.Leaf)
	l.enrol(t)
	require.NoError(t, l.connect(t, cfg))
}

// TestHubCertificateExpired: the device says so itself, at once and at each
// handshake.
func TestHubCertificateExpired(t *testing.T) {
	var ahead atomic.Int64
	l := newHubLife(t, func(cfg *quarklink.Config) {
		cfg.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	})
	cert := l.enrol(t)
	cfg := l.config(t)
	ahead.Store(int64(time.Until(cert.NotAfter) + time.Hour))
	cfg.Time = time.Now // the hub's certificate has expired, too
	_, makes := l.device.HubTLSConfig(t.Context())
	_, dials := l.device.DialHub(t.Context())
	for name, err := range map[string]error{"a handshake": l.connect(t, cfg), "HubTLSConfig": makes, "DialHub": dials} {
		require.ErrorIs(t, err, quarklink.ErrGeneral, name)
		assert.ErrorContains(t, err, "the device certificate expired on "+cert.NotAfter.UTC().Format(time.RFC3339),
			name)
		assert.ErrorContains(t, err, "enrol again", name)
		onlyCode(t, err)
	}
	assert.Empty(t, l.seen)
}

func TestDialHub(t *testing.T) {
	l := newHubLife(t)
	_, err := l.device.DialHub(t.Context())
	require.ErrorIs(t, err, quarklink.ErrNoEnrolment)
	onlyCode(t, err)

	cert := l.enrol(t)
	conn, err := l.device.DialHub(t.Context())
	require.NoError(t, err)
	defer conn.Close()
	assert.Equal(t, cert.Raw, (<-l.seen).Raw)
	hello, err := io.ReadAll(conn)
	require.NoError(t, err)
	assert.Equal(t, "hello\n", string(hello))

	// The hub moves, and DialHub follows.
	l.id = loopbackCertificate(t)
	moved := l.listen(t, l.server.IssuingCertificates())
	l.policy("localhost", moved.Port, l.id.Leaf)
	cert = l.enrol(t)
	conn, err = l.device.DialHub(t.Context())
	require.NoError(t, err)
	conn.Close()
	assert.Equal(t, cert.Raw, (<-l.seen).Raw)

	require.NoError(t, l.device.Close())
	_, err = l.device.DialHub(t.Context())
	require.ErrorIs(t, err, net.ErrClosed)
	assert.NotErrorIs(t, err, context.Canceled)
}

// TestDialHubFails tells apart why.
func TestDialHubFails(t *testing.T) {
	t.Run("a hub that is another", func(t *testing.T) {
		l := newHubLife(t)
		l.policy("127.0.0.1", l.addr.Port, loopbackCertificate(t).Leaf)
		l.enrol(t)
		_, err := l.device.DialHub(t.Context())
		require.ErrorIs(t, err, quarklink.ErrCommunication)
		onlyCode(t, err)
		var unknown x509.UnknownAuthorityError
		assert.ErrorAs(t, err, &unknown)
		assert.Empty(t, l.seen)
	})
	t.Run("nobody listens", func(t *testing.T) {
		l := newHubLife(t)
		gone, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		l.policy("127.0.0.1", gone.Addr().(*net.TCPAddr).Port, l.id.Leaf)
		l.enrol(t)
		require.NoError(t, gone.Close())
		_, err = l.device.DialHub(t.Context())
		require.ErrorIs(t, err, quarklink.ErrCommunication)
		onlyCode(t, err)
	})
	t.Run("the key does not sign", func(t *testing.T) {
		broken := new(lateBroken)
		l := newHubLife(t, func(cfg *quarklink.Config) {
			broken.Generator = cfg.KeyStore.(keystore.Generator)
			cfg.KeyStore = broken
		})
		l.enrol(t)
		broken.broken.Store(true)
		_, err := l.device.DialHub(t.Context())
		require.ErrorIs(t, err, errSilent)
		require.ErrorIs(t, err, quarklink.ErrGeneral)
		onlyCode(t, err)
	})
	t.Run("a policy that leads to a database", func(t *testing.T) {
		_, c := newMember(t, quarklinktest.Batch{Policy: quarklinktest.Policy{Database: &quarklink.Database{
			Endpoint: "db.test", Port: 443, URI: "/app", Token: "jwt"}}})
		_, err := c.Enrol(t.Context())
		require.NoError(t, err)
		_, err = c.DialHub(t.Context())
		require.ErrorIs(t, err, quarklink.ErrValueNotAvailable)
	})
	for _, ends := range []string{"context", "Close"} {
		t.Run("a hub that stays silent, and the "+ends+" ends it", func(t *testing.T) {
			l := newHubLife(t)
			mute, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(t, err)
			defer mute.Close()
			l.policy("127.0.0.1", mute.Addr().(*net.TCPAddr).Port, l.id.Leaf)
			l.enrol(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			go func() {
				conn, err := mute.Accept()
				if err != nil {
					return
				}
				defer conn.Close()
				if ends == "Close" {
					l.device.Close()
				} else {
					cancel()
				}
				io.Copy(io.Discard, conn) // until the device hangs up
			}()
			_, err = l.device.DialHub(ctx)
			if ends == "Close" {
				require.ErrorIs(t, err, net.ErrClosed)
				assert.NotErrorIs(t, err, context.Canceled)
			} else {
				require.ErrorIs(t, err, context.Canceled)
				assert.NotErrorIs(t, err, quarklink.ErrCommunication)
			}
		})
	}
}

// muteKeys is a key store that, once it is mute, keeps whoever asks for the
// device key waiting.
type muteKeys struct {
	keystore.Generator
	mute bool
}

func (k *muteKeys) Signer(ctx context.Context, role keystore.Role) (crypto.Signer, error) {
	if k.mute && role == keystore.Device {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return k.Generator.Signer(ctx, role)
}

// TestDialHubIsBounded, also for a caller that sets no deadline.
func TestDialHubIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys := new(muteKeys)
		_, c := newMember(t, quarklinktest.Batch{}, func(cfg *quarklink.Config) {
			keys.Generator = cfg.KeyStore.(keystore.Generator)
			cfg.KeyStore = keys
		})
		_, err := c.Enrol(t.Context())
		require.NoError(t, err)
		keys.mute = true
		start := time.Now()
		_, err = c.DialHub(t.Context())
		assert.Equal(t, 2*time.Minute, time.Since(start))
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		require.ErrorIs(t, err, quarklink.ErrCommunication)
		onlyCode(t, err)

		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		keys.mute = false
		_, err = c.HubTLSConfig(ctx)
		require.ErrorIs(t, err, context.Canceled)
		_, err = c.DialHub(ctx)
		require.ErrorIs(t, err, context.Canceled)
		assert.NotErrorIs(t, err, quarklink.ErrCommunication)
	})
}

// lateBroken is a key store whose device key does not sign any more.
type lateBroken struct {
	keystore.Generator
	broken atomic.Bool
}

func (k *lateBroken) Signer(ctx context.Context, role keystore.Role) (crypto.Signer, error) {
	signer, err := k.Generator.Signer(ctx, role)
	if err != nil || role != keystore.Device || !k.broken.Load() {
		return signer, err
	}
	return cannotSign{signer}, nil
}

type cannotSign struct{ crypto.Signer }

func (cannotSign) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) { return nil, errSilent }

// TestHubRejectsLate: with TLS 1.3 a hub that does not take the certificate says
// so after the handshake, as DialHub's doc says.
func TestHubRejectsLate(t *testing.T) {
	l := newHubLife(t)
	addr := l.listen(t, []*x509.Certificate{loopbackCertificate(t).Leaf}) // no issuer of the device's
	l.policy("127.0.0.1", addr.Port, l.id.Leaf)
	l.enrol(t)
	conn, err := l.device.DialHub(t.Context())
	require.NoError(t, err)
	defer conn.Close()
	_, err = conn.Read(make([]byte, 1))
	var alert *net.OpError
	require.ErrorAs(t, err, &alert)
	assert.Equal(t, "remote error", alert.Op)
	assert.ErrorContains(t, alert, "unknown certificate authority")
	assert.Empty(t, l.seen)
}

// newHubCertificate makes a self-signed certificate for hub.test.
func newHubCertificate(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "hub"},
		DNSNames:  []string{"hub.test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	leaf, err := x509.ParseCertificate(der)
	require.NoError(t, err)
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
	_, err := c.HubTLSConfig(t.Context())
	assert.ErrorIs(t, err, quarklink.ErrNoEnrolment, "HubTLSConfig before enrolment")
	_, err = c.Enrol(t.Context())
	require.NoError(t, err)
	cfg, err := c.HubTLSConfig(t.Context())
	require.NoError(t, err)
	t.Run("Go", func(t *testing.T) {
		roots := x509.NewCertPool()
		issuing := server.IssuingCertificates()
		roots.AddCert(issuing[len(issuing)-1])
		l, err := tls.Listen("tcp", "127.0.0.1:0",
			&tls.Config{Certificates: []tls.Certificate{hub}, ClientAuth: tls.RequireAndVerifyClientCert,
				ClientCAs: roots})
		require.NoError(t, err)
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
		require.NoError(t, err)
		defer conn.Close()
		line, err := bufio.NewReader(conn).ReadString('\n')
		require.NoError(t, err)
		assert.Equal(t, string(c.DeviceID()), strings.TrimSpace(line), "whom the hub sees")
	})
	for _, version := range []string{"-tls1_3", "-tls1_2"} {
		t.Run("openssl"+version, func(t *testing.T) {
			addr := counterpart.SServer(t, hub, server.IssuingCertificates(), version)
			conn, err := tls.Dial("tcp", addr, cfg)
			require.NoError(t, err)
			defer conn.Close()
			fmt.Fprint(conn, "quark\n")
			line, err := bufio.NewReader(conn).ReadString('\n')
			require.NoError(t, err)
			assert.Equal(t, "krauq\n", line, "openssl s_server -rev")
		})
	}
}

// TestHubDuringUpdate: connecting to the hub does not wait for a download.
func TestHubDuringUpdate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, c := newMember(t, asIs([]byte("image")))
		_, err := c.Enrol(t.Context())
		require.NoError(t, err)
		server.Fault(quarklinktest.CallFirmware, quarklinktest.Delay(time.Minute))
		done := make(chan error)
		go func() {
			_, err := c.FirmwareUpdate(t.Context(),
				quarklink.FirmwareOptions{Slot: newSlot(t, 1<<20), Verifier: anything})
			done <- err
		}()
		synctest.Wait()
		start := time.Now()
		_, err = c.HubTLSConfig(t.Context())
		require.NoError(t, err)
		assert.Zero(t, time.Since(start), "what HubTLSConfig waited")
		assert.NoError(t, <-done)
	})
}
