package quarklinktest_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/internal/counterpart"
	"github.com/quarklink-go/quarklink/quarklinktest"
)

// dialTLS makes a handshake with the Server as a client of that configuration.
func dialTLS(s *quarklinktest.Server, cfg *tls.Config) (tls.ConnectionState, error) {
	raw, err := s.Carrier().Dial(context.Background())
	if err != nil {
		return tls.ConnectionState{}, err
	}
	defer raw.Close()
	conn := tls.Client(raw, cfg)
	if err := conn.Handshake(); err != nil {
		return tls.ConnectionState{}, err
	}
	return conn.ConnectionState(), nil
}

func TestTLS(t *testing.T) {
	s := newServer(t, quarklinktest.Options{InMemory: true})
	old := newServer(t, quarklinktest.Options{InMemory: true, TLS12: true})
	pool := func(s *quarklinktest.Server) *x509.CertPool {
		roots := x509.NewCertPool()
		roots.AddCert(s.Instance().Root)
		return roots
	}
	for _, name := range []string{quarklinktest.HostName, "localhost", "127.0.0.1", "::1"} {
		state, err := dialTLS(s, &tls.Config{RootCAs: pool(s), ServerName: name})
		require.NoError(t, err, name)
		assert.Equal(t, "TLS 1.3", tls.VersionName(state.Version), name)
		assert.Equal(t, tls.X25519MLKEM768, state.CurveID, name)
	}
	_, err := dialTLS(s, &tls.Config{RootCAs: pool(s), ServerName: "other.test"})
	assert.Error(t, err, "the server certificate is for any name")
	_, err = dialTLS(s, &tls.Config{RootCAs: pool(old), ServerName: quarklinktest.HostName})
	assert.Error(t, err, "another instance's root is as good")
	_, err = dialTLS(s, &tls.Config{RootCAs: pool(s), ServerName: quarklinktest.HostName, MaxVersion: tls.VersionTLS12})
	assert.Error(t, err, "TLS 1.2 is spoken")
	_, err = dialTLS(old, &tls.Config{RootCAs: pool(old), ServerName: quarklinktest.HostName,
		MinVersion: tls.VersionTLS13})
	assert.Error(t, err, "Options.TLS12 speaks TLS 1.3")
	cache := tls.NewLRUClientSessionCache(1)
	for i := range 2 { // the second resumes the first's session
		state, err := dialTLS(old, &tls.Config{RootCAs: pool(old), ServerName: quarklinktest.HostName,
			ClientSessionCache: cache})
		require.NoError(t, err, "Options.TLS12")
		assert.EqualValues(t, tls.VersionTLS12, state.Version, "Options.TLS12")
		assert.Equal(t, i > 0, state.DidResume, "Options.TLS12")
	}
}

// OpenSSL, which is nobody's relative here, makes the keys, the DeviceID, the
// identity certificate and the CSRs, carries the requests, and reads the answers.
func TestOpenSSL(t *testing.T) {
	counterpart.Program(t, "openssl")
	s := newServer(t, quarklinktest.Options{})
	require.NoError(t, s.AddBatch(quarklinktest.Batch{Name: "b"}))
	dir := t.TempDir()
	openssl := func(stdin []byte, args ...string) []byte {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "openssl", args...)
		cmd.Dir, cmd.Stdin = dir, bytes.NewReader(stdin)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		require.NoError(t, err, "%v, %v", strings.Join(args, " "), stderr.Bytes())
		return out
	}
	write := func(name string, data []byte) {
		t.Helper()
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), data, 0o600))
	}
	writePEM := func(name string, cert *x509.Certificate) {
		t.Helper()
		write(name, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))
	}
	i := s.Instance()
	addr := net.JoinHostPort(i.Endpoint, fmt.Sprint(i.Port))
	writePEM("root.pem", i.Root)
	// request sends an HTTP request through openssl and returns the answer's body.
	request := func(cert, key, method, path, contentType string, body []byte) string {
		t.Helper()
		text := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n"+
			"Content-Type: %s\r\nContent-Length: %d\r\n\r\n%s",
			method, path, addr, contentType, len(body), body)
		out := openssl([]byte(text), "s_client", "-connect", addr, "-CAfile", "root.pem", "-no-CApath",
			"-no-CAstore", "-tls1_3",
			"-verify_return_error", "-verify_ip", i.Endpoint, "-cert", cert, "-key", key, "-quiet", "-ign_eof")
		head, answer, _ := strings.Cut(string(out), "\r\n\r\n")
		require.True(t, strings.HasPrefix(head, "HTTP/1.1 200 "), "%v, %v, %v", method, path, answer)
		return answer
	}
	certificate := func(answer string) []byte {
		t.Helper()
		return openssl([]byte("-----BEGIN PKCS7-----\r\n"+answer+"-----END PKCS7-----\r\n"), "pkcs7", "-print_certs")
	}

	openssl(nil, "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", "esk.pem")
	openssl(nil, "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072", "-out", "dsk.pem")
	spki := openssl(nil, "pkey", "-in", "esk.pem", "-pubout", "-outform", "DER")
	sum := openssl(spki, "dgst", "-sha256", "-r")
	device := quarklink.DeviceID(sum[:64])
	openssl(nil, "req", "-new", "-x509", "-key", "esk.pem", "-subj", "/CN=whatever", "-days", "1", "-out", "identity.pem")
	require.NoError(t, s.AddDevices("b", device))
	csr := func(key string) []byte {
		t.Helper()
		text := string(openssl(nil, "req", "-new", "-key", key, "-subj", "/CN=whatever"))
		text = strings.TrimPrefix(text, "-----BEGIN CERTIFICATE REQUEST-----")
		return []byte(strings.TrimSuffix(text, "-----END CERTIFICATE REQUEST-----\n"))
	}
	assert.Contains(t, request("identity.pem", "esk.pem", "GET", pathStatus, "", nil), `"state":"not_enrolled"`)
	write("temporary.pem", certificate(request("identity.pem", "esk.pem", "POST", pathTemporary,
		"application/pkcs10", csr("esk.pem"))))
	write("cacerts.pem", certificate(request("temporary.pem", "esk.pem", "GET", pathCACerts, "", nil)))
	write("device.pem", certificate(request("temporary.pem", "esk.pem", "POST", pathEnrol, "application/pkcs10",
		csr("dsk.pem"))))
	openssl(nil, "verify", "-CAfile", "cacerts.pem", "-no-CApath", "-no-CAstore", "-purpose", "sslclient",
		"-x509_strict", "device.pem")
	assert.Contains(t, string(openssl(nil, "x509", "-in", "device.pem", "-noout", "-subject", "-nameopt",
		"multiline")), string(device),
		"subject")
	assert.Contains(t, request("device.pem", "dsk.pem", "GET", pathConnection, "", nil), `"type":"iot_hub"`,
		"connection")
	st := s.Stats()
	assert.Equal(t, 5, st.Handshakes)
	assert.Equal(t, 5, st.Requests)
}

func TestStatsAndLogger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var text bytes.Buffer
		s := newServer(t, quarklinktest.Options{InMemory: true, Logger: slog.New(slog.NewTextHandler(&text, nil))})
		require.NoError(t, s.AddBatch(quarklinktest.Batch{Name: "b"}))
		d := newDevice(t, s, "b")
		c := d.client(d.identity)
		d.get(c, pathStatus)
		d.get(c, pathStatus)
		d.get(c, "/elsewhere")
		st := s.Stats()
		assert.Equal(t, 1, st.Handshakes)
		assert.Equal(t, 0, st.FailedHandshakes)
		assert.Equal(t, 1, st.Open)
		assert.Equal(t, 3, st.Requests)
		require.Len(t, st.Calls, 1)
		assert.Equal(t, 2, st.Calls[quarklinktest.CallStatus])
		c.CloseIdleConnections()
		if _, err := dialTLS(s, &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "x"}); err == nil {
			t.Error("trusted for nothing")
		}
		silent, err := s.Carrier().Dial(t.Context())
		require.NoError(t, err)
		synctest.Wait()
		st = s.Stats()
		assert.Equal(t, 1, st.Open, "with one silent connection")
		assert.Equal(t, 1, st.FailedHandshakes, "with one silent connection")
		time.Sleep(time.Minute) // of the bubble's time
		st = s.Stats()
		assert.Equal(t, 0, st.Open, "a connection that stays silent")
		assert.Equal(t, 1, st.Handshakes, "a connection that stays silent")
		assert.Equal(t, 2, st.FailedHandshakes, "a connection that stays silent")
		silent.Close()
		s.Close()
		for _, want := range []string{"call=status", string(d.id), "path=/elsewhere", "status=404", "TLS handshake failed"} {
			assert.Contains(t, text.String(), want, "the log lacks")
		}
	})
}

// Whatever goes on, Close ends it: in the bubble the test would not end if
// anything were left.
func TestCloseLeavesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, d := newBatchServer(t)
		require.NoError(t, s.Publish("b", quarklinktest.Firmware{Image: counting{}, Size: 64 << 20}))
		s.Fault(quarklinktest.CallStatus, quarklinktest.Delay(time.Hour))
		var wg sync.WaitGroup
		wg.Go(func() { // delayed
			_, err := try(t.Context(), d.client(d.identity), "GET", pathStatus, nil)
			assert.Error(t, err, "answered by a closed server")
		})
		d.get(d.client(d.identity), pathCACerts) // idle
		req := mustRequest(t, "GET", pathFirmware)
		resp, err := d.client(d.identity).Do(req) // a download that nobody reads
		require.NoError(t, err)
		defer resp.Body.Close()
		pipelined, err := d.client(d.identity).Transport.(*http.Transport).DialTLSContext(t.Context(), "", "")
		require.NoError(t, err)
		defer pipelined.Close()
		for range 2 { // behind a second request net/http does not notice that a client goes
			io.WriteString(pipelined, "GET "+pathStatus+" HTTP/1.1\r\nHost: x\r\n\r\n")
			synctest.Wait()
		}
		raw, err := s.Carrier().Dial(t.Context()) // no handshake
		require.NoError(t, err)
		synctest.Wait()
		assert.Equal(t, 5, s.Stats().Open, "connections, want 5")
		start := time.Now()
		s.Close()
		s.Close()
		assert.LessOrEqual(t, time.Since(start), time.Duration(0), "Close took")
		assert.Equal(t, 0, s.Stats().Open, "connections after Close")
		wg.Wait()
		_, err = io.Copy(io.Discard, resp.Body)
		assert.Error(t, err, "a download that was cut off is complete")
		_, err = raw.Read(make([]byte, 1))
		assert.Equal(t, io.EOF, err, "read of a connection that was cut")
		raw.Close()
		_, err = s.Carrier().Dial(t.Context())
		assert.ErrorIs(t, err, net.ErrClosed, "dial a closed server")
	})
}

// On a socket nothing is left either.
func TestCloseSocket(t *testing.T) {
	s, err := quarklinktest.NewServer(quarklinktest.Options{})
	require.NoError(t, err)
	i := s.Instance()
	addr := net.JoinHostPort(i.Endpoint, fmt.Sprint(i.Port))
	roots := x509.NewCertPool()
	roots.AddCert(i.Root)
	conn, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: roots})
	require.NoError(t, err)
	defer conn.Close()
	silent, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	defer silent.Close()
	s.Close()
	_, err = conn.Read(make([]byte, 1))
	assert.Error(t, err, "the connection is open")
	if again, err := net.Dial("tcp", addr); err == nil {
		again.Close()
		t.Error("the socket is open")
	}
}

func TestCarrierObeysContext(t *testing.T) {
	s := newServer(t, quarklinktest.Options{InMemory: true})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.Carrier().Dial(ctx)
	assert.ErrorIs(t, err, context.Canceled)
}
