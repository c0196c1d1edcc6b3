package transport_test

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
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/internal/counterpart"
	"github.com/quarklink-go/quarklink/transport"
)

// authority issues throw-away certificates.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func newKey(t *testing.T) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	return key
}

func newAuthority(t *testing.T, name string) authority {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return authority{cert, key}
}

func (a authority) issue(t *testing.T, name string, hosts ...string) tls.Certificate {
	t.Helper()
	key := newKey(t)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: hosts,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}, a.cert, key.Public(), a.key)
	require.NoError(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (a authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// serve answers each connection with what the handshake came to, and returns
// the address.
func serve(t *testing.T, cfg *tls.Config) string {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", cfg)
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				c := conn.(*tls.Conn)
				if c.Handshake() != nil {
					return
				}
				s := c.ConnectionState()
				who := "nobody"
				if len(s.PeerCertificates) > 0 {
					who = s.PeerCertificates[0].Subject.CommonName
				}
				fmt.Fprintf(c, "%s %s %s\n", tls.VersionName(s.Version), s.CurveID, who)
			}()
		}
	}()
	return l.Addr().String()
}

func hear(t *testing.T, tr transport.Transport) (string, error) {
	t.Helper()
	conn, err := tr.Dial(t.Context())
	if err != nil {
		return "", err
	}
	defer conn.Close()
	line, err := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimSpace(line), err
}

func TestTLS(t *testing.T) {
	root, other := newAuthority(t, "root"), newAuthority(t, "other")
	server := root.issue(t, "instance", "instance.test")
	id := other.issue(t, "device")
	addr := serve(t, &tls.Config{
		Certificates: []tls.Certificate{server},
		// The server names root as the only issuer it takes; the device's
		// certificate comes from elsewhere and must be shown all the same.
		ClientAuth: tls.RequestClientCert, ClientCAs: root.pool(),
	})
	addr12 := serve(t, &tls.Config{Certificates: []tls.Certificate{server}, MaxVersion: tls.VersionTLS12})
	good := transport.TLS{Addr: addr, ServerName: "instance.test", Roots: root.pool()}
	change := func(f func(*transport.TLS)) transport.TLS { tr := good; f(&tr); return tr }

	for _, test := range []struct {
		name string
		tr   transport.Transport
		want string
	}{
		{"no certificate", good, "TLS 1.3 X25519MLKEM768 nobody"},
		{"nil certificate", good.As(nil), "TLS 1.3 X25519MLKEM768 nobody"},
		{"certificate of an issuer the server does not name", good.As(&id), "TLS 1.3 X25519MLKEM768 device"},
		{"over a carrier", change(func(tr *transport.TLS) { tr.Addr, tr.Under = "", transport.TCP(addr) }),
			"TLS 1.3 X25519MLKEM768 nobody"},
		{"TLS 1.2 asked for", change(func(tr *transport.TLS) { tr.Addr, tr.MinVersion = addr12, tls.VersionTLS12 }),
			"TLS 1.2 X25519 nobody"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := hear(t, test.tr)
			require.NoError(t, err)
			assert.Equal(t, test.want, got)
		})
	}

	verification := func(err error) bool {
		var v *tls.CertificateVerificationError
		return errors.As(err, &v)
	}
	for _, test := range []struct {
		name  string
		tr    transport.Transport
		check func(error) bool
	}{
		{"no roots", change(func(tr *transport.TLS) { tr.Roots = nil }), nil},
		{"empty roots", change(func(tr *transport.TLS) { tr.Roots = x509.NewCertPool() }), verification},
		{"another root", change(func(tr *transport.TLS) { tr.Roots = other.pool() }), verification},
		{"another name", change(func(tr *transport.TLS) { tr.ServerName = "else.test" }), verification},
		{"name from the address", change(func(tr *transport.TLS) { tr.ServerName = "" }), verification},
		{"no name at all", change(func(tr *transport.TLS) { tr.ServerName, tr.Addr = "", "" }), nil},
		{"TLS 1.2 not asked for", change(func(tr *transport.TLS) { tr.Addr = addr12 }), nil},
		{"TLS 1.1 asked for", change(func(tr *transport.TLS) { tr.MinVersion = tls.VersionTLS11 }), nil},
		{"clock of 1970", change(func(tr *transport.TLS) { tr.Time = func() time.Time { return time.Unix(0, 0) } }),
			func(err error) bool { return errors.Is(err, transport.ErrClock) && verification(err) }},
		{"certificate expired",
			change(func(tr *transport.TLS) { tr.Time = func() time.Time { return time.Now().Add(2 * time.Hour) } }),
			func(err error) bool { return !errors.Is(err, transport.ErrClock) && verification(err) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := hear(t, test.tr)
			require.Error(t, err, got)
			if test.check != nil {
				assert.True(t, test.check(err), "not the error that it should be: %v", err)
			}
		})
	}
}

// TestTLSClockOfAStranger: a certificate from the future that nobody vouches for
// says nothing of the device's clock.
func TestTLSClockOfAStranger(t *testing.T) {
	root, stranger := newAuthority(t, "root"), newAuthority(t, "stranger")
	addr := serve(t, &tls.Config{Certificates: []tls.Certificate{stranger.issue(t, "instance", "instance.test")}})
	elsewhere := serve(t, &tls.Config{Certificates: []tls.Certificate{root.issue(t, "instance", "else.test")}})
	past := func() time.Time { return time.Now().Add(-1000 * time.Hour) }
	for _, addr := range []string{addr, elsewhere} {
		_, err := hear(t, transport.TLS{Addr: addr, ServerName: "instance.test", Roots: root.pool(), Time: past})
		require.Error(t, err)
		assert.NotErrorIs(t, err, transport.ErrClock)
	}
}

// TestTLSOffer looks at the first flight: what is offered first, and that a
// post-quantum key share goes with it at once.
func TestTLSOffer(t *testing.T) {
	root := newAuthority(t, "root")
	server := root.issue(t, "instance", "instance.test")
	offers := make(chan *tls.ClientHelloInfo, 1)
	addr := serve(t, &tls.Config{GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		offers <- hello
		return &tls.Config{Certificates: []tls.Certificate{server}}, nil
	}})
	_, err := hear(t, transport.TLS{Addr: addr, ServerName: "instance.test", Roots: root.pool()})
	require.NoError(t, err)
	hello := <-offers
	assert.EqualValues(t, 0x11EC, hello.SupportedCurves[0], "groups offered")
	require.Len(t, hello.SupportedVersions, 1, "versions offered")
	assert.EqualValues(t, tls.VersionTLS13, hello.SupportedVersions[0], "versions offered")
}

// TestTLSWithOpenSSL runs against openssl s_server, which knows only NIST
// curves (so that the handshake takes a HelloRetryRequest) and insists on a
// client certificate.
func TestTLSWithOpenSSL(t *testing.T) {
	root := newAuthority(t, "root")
	server, id := root.issue(t, "instance", "instance.test"), root.issue(t, "device")
	for _, version := range []string{"-tls1_3", "-tls1_2"} {
		t.Run(version, func(t *testing.T) {
			addr := counterpart.SServer(t, server, []*x509.Certificate{root.cert}, version, "-groups", "P-256:P-384")
			tr := transport.TLS{Addr: addr, ServerName: "instance.test", Roots: root.pool(), MinVersion: tls.VersionTLS12}
			conn, err := tr.As(&id).Dial(t.Context())
			require.NoError(t, err)
			defer conn.Close()
			fmt.Fprint(conn, "quark\n")
			got, _ := bufio.NewReader(conn).ReadString('\n')
			assert.Equal(t, "krauq\n", got, "s_server -rev answered")
		})
	}
}

// TestTLSCloseIsPrompt closes a connection whose peer has stopped reading:
// crypto/tls alone would wait five seconds to get its alert out.
func TestTLSCloseIsPrompt(t *testing.T) {
	root := newAuthority(t, "root")
	server := root.issue(t, "instance", "instance.test")
	synctest.Test(t, func(t *testing.T) {
		clientSide, serverSide := net.Pipe()
		go func() { // a peer that shakes hands and then leaves its line alone
			c := tls.Server(serverSide, &tls.Config{Certificates: []tls.Certificate{server},
				SessionTicketsDisabled: true, Time: realTime})
			c.Handshake()
		}()
		tr := transport.TLS{ServerName: "instance.test", Roots: root.pool(), Time: realTime,
			Under: transport.Func(func(context.Context) (net.Conn, error) { return clientSide, nil })}
		conn, err := tr.Dial(t.Context())
		require.NoError(t, err)
		start := time.Now()
		conn.Close()
		assert.LessOrEqual(t, time.Since(start), time.Second, "Close took")
	})
}

// realTime is a time at which the certificates of these tests are valid; the
// clock within a synctest bubble begins in the year 2000.
var started = time.Now()

func realTime() time.Time { return started }

// TestTLSDialObeysContext dials a peer that never says a word.
func TestTLSDialObeysContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		clientSide, serverSide := net.Pipe()
		defer serverSide.Close()
		go io.Copy(io.Discard, serverSide)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		tr := transport.TLS{ServerName: "instance.test", Roots: x509.NewCertPool(),
			Under: transport.Func(func(context.Context) (net.Conn, error) { return clientSide, nil })}
		_, err := tr.Dial(ctx)
		assert.ErrorIs(t, err, context.DeadlineExceeded)
		_, err = clientSide.Write([]byte{0})
		assert.Error(t, err, "the carrier was left open")
	})
}
