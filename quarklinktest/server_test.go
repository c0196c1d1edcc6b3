package quarklinktest_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
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
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if state.Version != tls.VersionTLS13 || state.CurveID != tls.X25519MLKEM768 {
			t.Errorf("%s: %s with %v", name, tls.VersionName(state.Version), state.CurveID)
		}
	}
	if _, err := dialTLS(s, &tls.Config{RootCAs: pool(s), ServerName: "other.test"}); err == nil {
		t.Error("the server certificate is for any name")
	}
	if _, err := dialTLS(s, &tls.Config{RootCAs: pool(old), ServerName: quarklinktest.HostName}); err == nil {
		t.Error("another instance's root is as good")
	}
	if _, err := dialTLS(s, &tls.Config{RootCAs: pool(s), ServerName: quarklinktest.HostName, MaxVersion: tls.VersionTLS12}); err == nil {
		t.Error("TLS 1.2 is spoken")
	}
	if _, err := dialTLS(old, &tls.Config{RootCAs: pool(old), ServerName: quarklinktest.HostName, MinVersion: tls.VersionTLS13}); err == nil {
		t.Error("Options.TLS12 speaks TLS 1.3")
	}
	cache := tls.NewLRUClientSessionCache(1)
	for i := range 2 { // the second resumes the first's session
		state, err := dialTLS(old, &tls.Config{RootCAs: pool(old), ServerName: quarklinktest.HostName, ClientSessionCache: cache})
		if err != nil || state.Version != tls.VersionTLS12 || state.DidResume != (i > 0) {
			t.Errorf("Options.TLS12: %v, resumed: %v", err, state.DidResume)
		}
	}
}

// OpenSSL, which is nobody's relative here, makes the keys, the DeviceID, the
// identity certificate and the CSRs, carries the requests, and reads the answers.
func TestOpenSSL(t *testing.T) {
	counterpart.Program(t, "openssl")
	s := newServer(t, quarklinktest.Options{})
	if err := s.AddBatch(quarklinktest.Batch{Name: "b"}); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	openssl := func(stdin []byte, args ...string) []byte {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "openssl", args...)
		cmd.Dir, cmd.Stdin = dir, bytes.NewReader(stdin)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, stderr.Bytes())
		}
		return out
	}
	write := func(name string, data []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
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
		text := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s",
			method, path, addr, contentType, len(body), body)
		out := openssl([]byte(text), "s_client", "-connect", addr, "-CAfile", "root.pem", "-no-CApath", "-no-CAstore", "-tls1_3",
			"-verify_return_error", "-verify_ip", i.Endpoint, "-cert", cert, "-key", key, "-quiet", "-ign_eof")
		head, answer, _ := strings.Cut(string(out), "\r\n\r\n")
		if !strings.HasPrefix(head, "HTTP/1.1 200 ") {
			t.Fatalf("%s %s: %s\n%s", method, path, head, answer)
		}
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
	if err := s.AddDevices("b", device); err != nil {
		t.Fatal(err)
	}
	csr := func(key string) []byte {
		t.Helper()
		text := string(openssl(nil, "req", "-new", "-key", key, "-subj", "/CN=whatever"))
		text = strings.TrimPrefix(text, "-----BEGIN CERTIFICATE REQUEST-----")
		return []byte(strings.TrimSuffix(text, "-----END CERTIFICATE REQUEST-----\n"))
	}
	if status := request("identity.pem", "esk.pem", "GET", pathStatus, "", nil); !strings.Contains(status, `"state":"not_enrolled"`) {
		t.Errorf("status: %s", status)
	}
	write("temporary.pem", certificate(request("identity.pem", "esk.pem", "POST", pathTemporary, "application/pkcs10", csr("esk.pem"))))
	write("cacerts.pem", certificate(request("temporary.pem", "esk.pem", "GET", pathCACerts, "", nil)))
	write("device.pem", certificate(request("temporary.pem", "esk.pem", "POST", pathEnrol, "application/pkcs10", csr("dsk.pem"))))
	openssl(nil, "verify", "-CAfile", "cacerts.pem", "-no-CApath", "-no-CAstore", "-purpose", "sslclient", "-x509_strict", "device.pem")
	if subject := string(openssl(nil, "x509", "-in", "device.pem", "-noout", "-subject", "-nameopt", "multiline")); !strings.Contains(subject, string(device)) {
		t.Errorf("subject: %s", subject)
	}
	if connection := request("device.pem", "dsk.pem", "GET", pathConnection, "", nil); !strings.Contains(connection, `"type":"iot_hub"`) {
		t.Errorf("connection: %s", connection)
	}
	if st := s.Stats(); st.Handshakes != 5 || st.Requests != 5 {
		t.Errorf("%+v", st)
	}
}

func TestStatsAndLogger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var text bytes.Buffer
		s := newServer(t, quarklinktest.Options{InMemory: true, Logger: slog.New(slog.NewTextHandler(&text, nil))})
		if err := s.AddBatch(quarklinktest.Batch{Name: "b"}); err != nil {
			t.Fatal(err)
		}
		d := newDevice(t, s, "b")
		c := d.client(d.identity)
		d.get(c, pathStatus)
		d.get(c, pathStatus)
		d.get(c, "/elsewhere")
		if st := s.Stats(); st.Handshakes != 1 || st.FailedHandshakes != 0 || st.Open != 1 || st.Requests != 3 ||
			len(st.Calls) != 1 || st.Calls[quarklinktest.CallStatus] != 2 {
			t.Errorf("%+v", st)
		}
		c.CloseIdleConnections()
		if _, err := dialTLS(s, &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "x"}); err == nil {
			t.Error("trusted for nothing")
		}
		silent, err := s.Carrier().Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if st := s.Stats(); st.Open != 1 || st.FailedHandshakes != 1 {
			t.Errorf("with one silent connection: %+v", st)
		}
		time.Sleep(time.Minute) // of the bubble's time
		if st := s.Stats(); st.Open != 0 || st.Handshakes != 1 || st.FailedHandshakes != 2 {
			t.Errorf("a connection that stays silent: %+v", st)
		}
		silent.Close()
		s.Close()
		for _, want := range []string{"call=status", string(d.id), "path=/elsewhere", "status=404", "TLS handshake failed"} {
			if !strings.Contains(text.String(), want) {
				t.Errorf("the log lacks %q:\n%s", want, text.String())
			}
		}
	})
}

// Whatever goes on, Close ends it: in the bubble the test would not end if
// anything were left.
func TestCloseLeavesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, d := newBatchServer(t)
		if err := s.Publish("b", quarklinktest.Firmware{Image: counting{}, Size: 64 << 20}); err != nil {
			t.Fatal(err)
		}
		s.Fault(quarklinktest.CallStatus, quarklinktest.Delay(time.Hour))
		var wg sync.WaitGroup
		wg.Go(func() { // delayed
			if _, err := try(t.Context(), d.client(d.identity), "GET", pathStatus, nil); err == nil {
				t.Error("answered by a closed server")
			}
		})
		d.get(d.client(d.identity), pathCACerts) // idle
		req := mustRequest(t, "GET", pathFirmware)
		resp, err := d.client(d.identity).Do(req) // a download that nobody reads
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		pipelined, err := d.client(d.identity).Transport.(*http.Transport).DialTLSContext(t.Context(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		defer pipelined.Close()
		for range 2 { // behind a second request net/http does not notice that a client goes
			io.WriteString(pipelined, "GET "+pathStatus+" HTTP/1.1\r\nHost: x\r\n\r\n")
			synctest.Wait()
		}
		raw, err := s.Carrier().Dial(t.Context()) // no handshake
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if n := s.Stats().Open; n != 5 {
			t.Errorf("%d connections, want 5", n)
		}
		start := time.Now()
		s.Close()
		s.Close()
		if took := time.Since(start); took > 0 {
			t.Errorf("Close took %v", took)
		}
		if n := s.Stats().Open; n != 0 {
			t.Errorf("%d connections after Close", n)
		}
		wg.Wait()
		if _, err := io.Copy(io.Discard, resp.Body); err == nil {
			t.Error("a download that was cut off is complete")
		}
		if _, err := raw.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("read of a connection that was cut: %v", err)
		}
		raw.Close()
		if _, err := s.Carrier().Dial(t.Context()); !errors.Is(err, net.ErrClosed) {
			t.Errorf("dial a closed server: %v", err)
		}
	})
}

// On a socket nothing is left either.
func TestCloseSocket(t *testing.T) {
	s, err := quarklinktest.NewServer(quarklinktest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	i := s.Instance()
	addr := net.JoinHostPort(i.Endpoint, fmt.Sprint(i.Port))
	roots := x509.NewCertPool()
	roots.AddCert(i.Root)
	conn, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: roots})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	silent, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	s.Close()
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("the connection is open")
	}
	if again, err := net.Dial("tcp", addr); err == nil {
		again.Close()
		t.Error("the socket is open")
	}
}

func TestCarrierObeysContext(t *testing.T) {
	s := newServer(t, quarklinktest.Options{InMemory: true})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Carrier().Dial(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
