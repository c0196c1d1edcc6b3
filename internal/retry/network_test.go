package retry

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/internal/exchange"
)

// post sends an enrolment-like request and reads the answer, as a caller of Do
// would.
func post(ctx context.Context, client *http.Client, addr string) error {
	ctx = context.WithValue(ctx, addrKey{}, addr)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+addr, strings.NewReader("request"))
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.ReadAll(resp.Body)
	return err
}

// pki is a server certificate for 127.0.0.1 and who trusts it.
func pki(t *testing.T) (server tls.Certificate, roots *x509.CertPool) {
	t.Helper()
	s := httptest.NewUnstartedServer(nil)
	s.StartTLS()
	defer s.Close()
	roots = x509.NewCertPool()
	roots.AddCert(s.Certificate())
	return s.TLS.Certificates[0], roots
}

// serve accepts connections on loopback and hands each to handle, which may do
// with it what it likes; the connection is closed after it.
func serve(t *testing.T, handle func(*net.TCPConn)) (addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var wg sync.WaitGroup
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				handle(conn.(*net.TCPConn))
			})
		}
	})
	return ln.Addr().String()
}

// newClient makes a client as the library does, which leaves nothing behind.
func newClient(t *testing.T, dialer *tls.Dialer) *http.Client {
	tr := exchange.New(func(ctx context.Context) (net.Conn, error) {
		return dialer.DialContext(ctx, "tcp", ctx.Value(addrKey{}).(string))
	}, make(chan struct{}, 1))
	t.Cleanup(tr.Close)
	return &http.Client{Transport: tr}
}

type addrKey struct{}

func trusting(roots *x509.CertPool) *tls.Dialer {
	return &tls.Dialer{Config: &tls.Config{RootCAs: roots}}
}

// Whatever the stage at which the connection breaks, it is worth another try.
func TestAgainConnectionCut(t *testing.T) {
	cert, roots := pki(t)
	config := &tls.Config{Certificates: []tls.Certificate{cert}}

	// after runs the handshake and reads the request, then says the words.
	after := func(words string) func(*net.TCPConn) {
		return func(tcp *net.TCPConn) {
			conn := tls.Server(tcp, config)
			if _, err := http.ReadRequest(bufio.NewReader(conn)); err != nil {
				return
			}
			io.WriteString(conn, words)
		}
	}
	reset := func(then func(*net.TCPConn)) func(*net.TCPConn) {
		return func(conn *net.TCPConn) {
			then(conn)
			conn.SetLinger(0) // close sends RST
		}
	}
	readSome := func(conn *net.TCPConn) { conn.Read(make([]byte, 64)) }

	for _, tt := range []struct {
		name   string
		handle func(*net.TCPConn)
	}{
		{"closed when accepted", func(*net.TCPConn) {}},
		{"reset when accepted", reset(func(*net.TCPConn) {})},
		{"closed in the handshake", readSome},
		{"reset in the handshake", reset(readSome)},
		{"closed within a record of the handshake", func(conn *net.TCPConn) {
			readSome(conn)
			conn.Write([]byte{22, 3, 3, 0, 100, 2})
		}},
		{"closed after the handshake", func(conn *net.TCPConn) { tls.Server(conn, config).Handshake() }},
		{"reset after the handshake", reset(func(conn *net.TCPConn) { tls.Server(conn, config).Handshake() })},
		{"closed after the request", after("")},
		{"reset after the request", reset(after(""))},
		{"closed in the status line", after("HTTP/1.1 20")},
		{"closed in the header", after("HTTP/1.1 200 OK\r\nContent-Le")},
		{"closed after the header", after("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n")},
		{"closed in the body", after("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345")},
		{"reset in the body", reset(after("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345"))},
		{"closed in a chunk", after("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\n12345")},
		{"closed between chunks", after("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			wantAgain(t, post(t.Context(), newClient(t, trusting(roots)), serve(t, tt.handle)), true)
		})
	}

	t.Run("refused", func(t *testing.T) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		ln.Close()
		wantAgain(t, post(t.Context(), newClient(t, trusting(roots)), ln.Addr().String()), true)
	})
}

func wantAgain(t *testing.T, err error, want bool) {
	t.Helper()
	require.Error(t, err)
	_, again := Again(err)
	assert.Equal(t, want, again, errors.Unwrap(err))
	t.Log(err)
}

// A time-out of the network claims to be context.DeadlineExceeded; the caller's
// context is the only one that is final.
func TestAgainTimeouts(t *testing.T) {
	cert, roots := pki(t)
	mute := serve(t, func(conn *net.TCPConn) { io.Copy(io.Discard, conn) })
	silent := serve(t, func(conn *net.TCPConn) {
		io.Copy(io.Discard, tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{cert}}))
	})
	soon := func(ctx context.Context) (context.Context, context.CancelFunc) {
		return context.WithTimeout(ctx, time.Millisecond)
	}
	late := func(ctx context.Context) (context.Context, context.CancelFunc) {
		return context.WithTimeoutCause(ctx, time.Millisecond, fmt.Errorf("slow: %w", os.ErrDeadlineExceeded))
	}
	always := func(ctx context.Context) (context.Context, context.CancelFunc) { return ctx, func() {} }
	for _, tt := range []struct {
		name  string
		addr  string
		ctx   func(context.Context) (context.Context, context.CancelFunc)
		setup func(*net.Dialer)
		again bool
	}{
		{"dial", mute, always, func(d *net.Dialer) { d.Deadline = time.Now().Add(-time.Second) }, true},
		{"one try in the handshake", mute, late, nil, true},
		{"one try after the request", silent, late, nil, true},
		{"context in the handshake", mute, soon, nil, false},
		{"context after the request", silent, soon, nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := tt.ctx(t.Context())
			defer cancel()
			dialer := trusting(roots)
			dialer.NetDialer = new(net.Dialer)
			if tt.setup != nil {
				tt.setup(dialer.NetDialer)
			}
			wantAgain(t, post(ctx, newClient(t, dialer), tt.addr), tt.again)
		})
	}
}

// What one side refuses stays refused.
func TestAgainRefused(t *testing.T) {
	cert, roots := pki(t)
	for _, tt := range []struct {
		name   string
		server *tls.Config
		client *tls.Config
	}{
		{"unknown authority", &tls.Config{}, &tls.Config{RootCAs: x509.NewCertPool()}},
		{"another name", &tls.Config{}, &tls.Config{RootCAs: roots, ServerName: "other.test"}},
		{"expired", &tls.Config{}, &tls.Config{RootCAs: roots, Time: func() time.Time { return time.Unix(1<<40, 0) }}},
		{"not yet valid", &tls.Config{}, &tls.Config{RootCAs: roots, Time: func() time.Time { return time.Unix(-1, 0) }}},
		{"version", &tls.Config{MaxVersion: tls.VersionTLS12}, &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}},
		{"client certificate, TLS 1.2", &tls.Config{ClientAuth: tls.RequireAnyClientCert,
			MaxVersion: tls.VersionTLS12}, &tls.Config{RootCAs: roots}},
		{"client certificate, TLS 1.3", &tls.Config{ClientAuth: tls.RequireAnyClientCert,
			MinVersion: tls.VersionTLS13}, &tls.Config{RootCAs: roots}},
		{"untrusted client certificate, TLS 1.3", &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert,
			ClientCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS13},
			&tls.Config{RootCAs: roots, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate,
				error) {
				return &cert, nil
			}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.server.Certificates = []tls.Certificate{cert}
			addr := serve(t, func(tcp *net.TCPConn) {
				conn := tls.Server(tcp, tt.server)
				if conn.Handshake() != nil {
					// Let the client read the alert before the reset that
					// closing with unread data would send.
					tcp.CloseWrite()
				}
				io.Copy(io.Discard, tcp)
			})
			wantAgain(t, post(t.Context(), newClient(t, &tls.Dialer{Config: tt.client}), addr), false)
		})
	}

	t.Run("no TLS", func(t *testing.T) {
		addr := serve(t, func(conn *net.TCPConn) {
			io.WriteString(conn, "HTTP/1.1 400 Bad Request\r\n\r\n")
			io.Copy(io.Discard, conn)
		})
		wantAgain(t, post(t.Context(), newClient(t, trusting(roots)), addr), false)
	})
}

// An answer that is no HTTP will be none the next time.
func TestAgainNoHTTP(t *testing.T) {
	cert, roots := pki(t)
	addr := serve(t, func(tcp *net.TCPConn) {
		conn := tls.Server(tcp, &tls.Config{Certificates: []tls.Certificate{cert}})
		if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
			io.WriteString(conn, "SSH-2.0-OpenSSH\r\n\r\n")
		}
	})
	wantAgain(t, post(t.Context(), newClient(t, trusting(roots)), addr), false)
}
