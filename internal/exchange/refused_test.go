package exchange_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/internal/counterpart"
	"github.com/quarklink-go/quarklink/internal/exchange"
	"github.com/quarklink-go/quarklink/internal/retry"
)

// large is a request body that does not fit into the buffers of a connection.
var large = bytes.Repeat([]byte("0123456789abcde\n"), 64<<10)

// pki is a certificate for 127.0.0.1 and the pool that trusts it.
func pki(t *testing.T) (cert tls.Certificate, roots *x509.CertPool) {
	t.Helper()
	s := httptest.NewTLSServer(nil)
	defer s.Close()
	roots = x509.NewCertPool()
	roots.AddCert(s.Certificate())
	return s.TLS.Certificates[0], roots
}

// post sends a large body to addr over TLS, showing cert.
func post(ctx context.Context, addr string, roots *x509.CertPool, cert *tls.Certificate) (*http.Response, error) {
	dialer := tls.Dialer{Config: &tls.Config{RootCAs: roots, ServerName: "127.0.0.1",
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }}}
	dial := func(ctx context.Context) (net.Conn, error) { return dialer.DialContext(ctx, "tcp", addr) }
	tr := exchange.New(dial, make(chan struct{}, 1))
	defer tr.Close()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+addr, bytes.NewReader(large))
	if err != nil {
		return nil, err
	}
	resp, err := tr.RoundTrip(req)
	if err == nil {
		resp.Body.Close()
	}
	return resp, err
}

// hangUp accepts connections and hands each to handle, then closes it, with a
// reset if something was not read.
func hangUp(t *testing.T, handle func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var running sync.WaitGroup
	t.Cleanup(func() { l.Close(); running.Wait() })
	running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() { handle(conn); conn.Close() })
		}
	})
	return l.Addr().String()
}

func selfSigned(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "stranger"},
		NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// runs is how often what depends on who is faster is tried.
const runs = 100

// TestCertificateRefused: that the server refused the certificate is seen
// although it hung up in the middle of the request.
func TestCertificateRefused(t *testing.T) {
	cert, roots := pki(t)
	addr := hangUp(t, func(conn net.Conn) {
		tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13,
			ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: x509.NewCertPool()}).Handshake()
	})
	for range runs {
		_, err := post(t.Context(), addr, roots, &cert)
		requireAlert(t, err)
	}
}

func requireAlert(t *testing.T, err error) {
	t.Helper()
	var op *net.OpError
	require.ErrorAs(t, err, &op)
	require.Equal(t, "remote error", op.Op, "%v", err)
	_, again := retry.Again(err)
	require.False(t, again, "another try after %v", err)
}

// TestCertificateRefusedByOpenSSL is the same with s_server.
func TestCertificateRefusedByOpenSSL(t *testing.T) {
	cert, roots := pki(t)
	root, err := x509.ParseCertificate(cert.Certificate[0])
	require.NoError(t, err)
	addr := counterpart.SServer(t, cert, []*x509.Certificate{root}, "-tls1_3", "-naccept", "10")
	stranger := selfSigned(t)
	for range 10 {
		_, err := post(t.Context(), addr, roots, &stranger)
		requireAlert(t, err)
	}
}

// TestAnswerBeforeTheEndOfTheRequest: a server that has seen enough answers,
// and hangs up. Its answer counts.
func TestAnswerBeforeTheEndOfTheRequest(t *testing.T) {
	cert, roots := pki(t)
	addr := hangUp(t, func(conn net.Conn) {
		c := tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{cert}})
		if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			io.WriteString(c, "HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n")
		}
	})
	for range runs {
		resp, err := post(t.Context(), addr, roots, &cert)
		require.NoError(t, err)
		assert.Equal(t, http.StatusRequestEntityTooLarge, resp.StatusCode)
	}
}

// TestHungUp: a server that hangs up without a word is a lost connection.
func TestHungUp(t *testing.T) {
	cert, roots := pki(t)
	addr := hangUp(t, func(conn net.Conn) {
		tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{cert}}).Handshake()
	})
	for range runs / 10 {
		_, err := post(t.Context(), addr, roots, &cert)
		_, again := retry.Again(err)
		require.True(t, again, "no other try after %v", err)
	}
}
