package est

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/internal/counterpart"
	"github.com/quarklink-go/quarklink/internal/exchange"
	"github.com/quarklink-go/quarklink/internal/problem"
)

// newServer starts a TLS server that asks for a client certificate, and returns
// a client of it with a connection of its own.
func newServer(t testing.TB, handler http.HandlerFunc) (*httptest.Server, *Client) {
	t.Helper()
	server := httptest.NewUnstartedServer(handler)
	server.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	client, close := connect(t, server)
	t.Cleanup(close)
	return server, client
}

// connect returns a client as a device would make it.
func connect(t testing.TB, server *httptest.Server) (client *Client, close func()) {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	key := newKey(t)
	identity := &tls.Certificate{
		Certificate: [][]byte{issue(t, "identity", key.Public(), nil, key, nil).Raw},
		PrivateKey:  key,
	}
	dialer := &tls.Dialer{Config: &tls.Config{
		RootCAs: roots,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return identity, nil
		},
	}}
	transport := exchange.New(func(ctx context.Context) (net.Conn, error) {
		return dialer.DialContext(ctx, "tcp", server.Listener.Addr().String())
	}, make(chan struct{}, 1))
	return &Client{
		HTTP: &http.Client{Transport: transport, CheckRedirect: SameOrigin},
		Base: server.URL + "/.well-known/est",
	}, transport.Close
}

// ca answers cacerts and enrols, as an EST server of few words.
type ca struct {
	t    testing.TB
	root *authority
}

func (ca ca) certify(body io.Reader) (*x509.Certificate, error) {
	der, err := io.ReadAll(base64.NewDecoder(base64.StdEncoding, body))
	if err != nil {
		return nil, err
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, err
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, err
	}
	return issue(ca.t, csr.Subject.CommonName, csr.PublicKey, ca.root, nil, nil), nil
}

func (ca ca) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var der []byte
	switch r.Method + " " + r.URL.Path {
	case "GET /.well-known/est/cacerts":
		der = certsOnly(ca.t, ca.root.Certificate)
	case "POST /.well-known/est/simpleenroll", "POST /.well-known/est/temporary/simpleenroll",
		"POST /.well-known/est/simplereenroll", "POST /.well-known/est/temporary/simplereenroll":
		cert, err := ca.certify(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		der = certsOnly(ca.t, cert)
	default:
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/pkcs7-mime; smime-type=certs-only")
	io.WriteString(w, base64Text(der))
}

// What a device does: 50 of them, one handshake each, and nothing is left.
func TestEnrolments(t *testing.T) {
	const devices = 50
	var connections atomic.Int32
	before, filesBefore := runtime.NumGoroutine(), openFiles(t)
	func() {
		server := httptest.NewUnstartedServer(ca{t, newCA(t, "root", nil, nil)})
		server.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
		server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
			if state == http.StateNew {
				connections.Add(1)
			}
		}
		server.StartTLS()
		defer server.Close()
		for range devices {
			client, close := connect(t, server)
			cacerts, err := client.CACerts(t.Context())
			require.NoError(t, err)
			key := newKey(t)
			cert, err := client.Enrol(t.Context(), "", newCSR(t, key))
			require.NoError(t, err)
			require.True(t, key.PublicKey.Equal(cert.PublicKey), "certificate over another key")
			_, err = Chain(cert, cacerts, testNow)
			require.NoError(t, err)
			close()
		}
	}()
	assert.EqualValues(t, devices, connections.Load())
	// What was closed ends in its own time.
	for range 1000 {
		if runtime.NumGoroutine() <= before && openFiles(t) <= filesBefore {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Errorf("%d goroutines, %d before; %d files, %d before", runtime.NumGoroutine(), before, openFiles(t), filesBefore)
}

// openFiles counts descriptors where the system shows them.
func openFiles(t *testing.T) int {
	if runtime.GOOS != "linux" {
		return 0
	}
	files, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(files)
}

func TestRequests(t *testing.T) {
	key := newKey(t)
	csr := newCSR(t, key)
	for len(base64Text(csr))%lineWidth != 0 { // a last line that is full
		csr = append(csr, 0)
	}
	for _, der := range [][]byte{newCSR(t, key), csr} {
		lines := strings.SplitAfter(string(encode(der)), "\n")
		for i, line := range lines[:len(lines)-1] {
			require.True(t, strings.HasSuffix(line, "\n"), "line %d is %q", i, line)
			if full := i < len(lines)-2; full {
				require.Len(t, line, lineWidth+1)
			}
			assert.LessOrEqual(t, len(line), lineWidth+1)
			assert.GreaterOrEqual(t, len(line), 2)
		}
		assert.Empty(t, lines[len(lines)-1])
	}

	var got *http.Request
	var body []byte
	_, client := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		got = r
		body, _ = io.ReadAll(r.Body)
		http.Error(w, "no", http.StatusForbidden)
	})
	csr = newCSR(t, key)
	client.Enrol(t.Context(), "a label", csr)
	assert.Equal(t, "POST", got.Method)
	assert.Equal(t, "/.well-known/est/a%20label/simpleenroll", got.RequestURI)
	assert.Equal(t, int64(len(body)), got.ContentLength, "Content-Length")
	assert.Nil(t, got.TransferEncoding, "Content-Length")
	for field, want := range map[string]string{
		"Content-Type":              "application/pkcs10",
		"Content-Transfer-Encoding": "base64",
		"Accept":                    "application/pkcs7-mime",
		"Authorization":             "",
	} {
		assert.Equal(t, want, got.Header.Get(field))
	}
	der, err := base64.StdEncoding.DecodeString(string(body))
	require.NoError(t, err, body)
	assert.Equal(t, csr, der, body)

	client.CACerts(t.Context())
	assert.Equal(t, "GET", got.Method)
	assert.Equal(t, "/.well-known/est/cacerts", got.RequestURI)
	assert.Empty(t, body)
	assert.Empty(t, got.Header.Get("Content-Type"))
}

// OpenSSL reads what is sent.
func TestRequestOpenSSL(t *testing.T) {
	openssl := counterpart.Program(t, "openssl")
	csr := newCSR(t, newKey(t))
	cmd := exec.Command(openssl, "base64", "-d")
	cmd.Stdin = bytes.NewReader(encode(csr))
	out, err := cmd.Output()
	require.NoError(t, err, "openssl base64 -d")
	assert.Equal(t, csr, out, "openssl base64 -d")
	file := filepath.Join(t.TempDir(), "csr.der")
	require.NoError(t, os.WriteFile(file, csr, 0o600))
	_, err = exec.Command(openssl, "req", "-verify", "-noout", "-inform", "DER", "-in", file).CombinedOutput()
	assert.NoError(t, err, "openssl req")
}

func TestBadArguments(t *testing.T) {
	csr := newCSR(t, newKey(t))
	_, good := newServer(t, func(http.ResponseWriter, *http.Request) { t.Error("a request was sent") })
	for _, label := range []string{".", "..", "a/b", "/", "cacerts", "simpleenroll", "simplereenroll", "fullcmc",
		"serverkeygen", "csrattrs"} {
		cert, err := good.Enrol(t.Context(), label, csr)
		require.Error(t, err)
		assert.Nil(t, cert)
	}
	for _, der := range [][]byte{nil, csr[:len(csr)-1], encode(csr)} {
		_, err := good.Enrol(t.Context(), "", der)
		assert.Error(t, err)
	}
	for _, base := range []string{"", "http://est.test/", "est.test", "https://", "https://user:secret@est.test/",
		"https://est.test:x/", "\x7f"} {
		client := &Client{HTTP: good.HTTP, Base: base}
		if _, err := client.CACerts(t.Context()); err == nil {
			t.Errorf("base %q: no error", base)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("base %q: the password is in %v", base, err)
		}
	}
}

func TestWhitespaceAndTypes(t *testing.T) {
	_, body := bodyOf(t, "gs-enroll-mtls.http")
	text := strings.Join(strings.Fields(string(body)), "")
	spaced := strings.Join(strings.Split(text, ""), "\r\n \t")
	const certsOnly = "application/pkcs7-mime; smime-type=certs-only"
	for _, tt := range []struct {
		contentType string // and further fields
		body        string
		err         string // "" if good
	}{
		{certsOnly, text, ""},
		{certsOnly, spaced, ""},
		{certsOnly, "\t\r\n" + text + "  \n\n", ""},
		{"application/pkcs7-mime", text, ""},
		{"Application/PKCS7-MIME; SMIME-Type=Certs-Only", text, ""},
		{`application/pkcs7-mime; smime-type="certs-only"; name=x`, text, ""},
		{certsOnly + "\r\nContent-Transfer-Encoding: binary", text, ""},
		{certsOnly + "\r\nContent-Transfer-Encoding: quoted-printable", text, ""},

		{"application/pkcs7-mime; smime-type=server-generated-key", text, "smime-type"},
		{"application/pkcs7-mime; smime-type=CMC-response", text, "smime-type"},
		{"application/pkcs7-mime; smime-type=", text, "Content-Type"},
		{"application/pkcs7-mime; smime-type=certs-only; smime-type=CMC-response", text, "Content-Type"},
		{"application/pkcs7-mimeX", text, "Content-Type"},
		{"application/pkcs7-mime.evil; smime-type=certs-only", text, "Content-Type"},
		{"application/pkcs7", text, "Content-Type"},
		{"application/x-pkcs7-mime", text, "Content-Type"},
		{"application/pkcs7-signature", text, "Content-Type"},
		{"text/html", text, "Content-Type"},
		{"", text, "Content-Type"},
		{certsOnly + "\r\nContent-Type: text/plain", text, "2 Content-Type fields"},

		{certsOnly, "", "not a CMS message"},
		{certsOnly, "MII=", "not a CMS message"},
		{certsOnly, text[:len(text)-1], "base64"},
		{certsOnly, text + "=", "base64"},
		{certsOnly, text + "\x00", "base64"},
		{certsOnly, text + "\v", "base64"},
		{certsOnly, text + "\u00a0", "base64"},
		{certsOnly, text + "AAAA", "followed by other bytes"},
		{certsOnly, strings.ReplaceAll(strings.ReplaceAll(text, "+", "-"), "/", "_"), "base64"},
		{certsOnly, "-----BEGIN PKCS7-----\n" + text + "\n-----END PKCS7-----\n", "base64"},
		{certsOnly, base64Text([]byte(text)), "not a CMS message"}, // twice
		{certsOnly, string(recordedLeaf(t, "gs-enroll-mtls.http").Raw), "base64"},
		{certsOnly, base64Text(recordedLeaf(t, "gs-enroll-mtls.http").Raw), "not SignedData"},
	} {
		certs, err := read(tt.contentType, []byte(tt.body))
		if tt.err == "" {
			require.NoError(t, err, "%v, %v", tt.contentType, tt.body)
			assert.Len(t, certs, 1, "%v, %v", tt.contentType, tt.body)
			continue
		}
		require.ErrorIs(t, err, ErrAnswer, "%v, %v", tt.contentType, tt.body)
		assert.Nil(t, certs, "%v, %v", tt.contentType, tt.body)
		assert.Contains(t, err.Error(), tt.err, "%v, %v", tt.contentType, tt.body)
	}
}

func FuzzEnrolAnswer(f *testing.F) {
	for _, tt := range recorded {
		head, body := bodyOf(f, tt.file+".http")
		_, contentType, _ := bytes.Cut(head, []byte("ype: "))
		contentType, _, _ = bytes.Cut(contentType, []byte("\r\n"))
		f.Add(string(contentType), body)
	}
	f.Fuzz(func(t *testing.T, contentType string, body []byte) {
		certs, err := readCerts(&http.Response{
			Header: http.Header{"Content-Type": {contentType}},
			Body:   io.NopCloser(bytes.NewReader(body)),
		}, ErrAnswer)
		if err != nil {
			require.ErrorIs(t, err, ErrAnswer)
			assert.Empty(t, certs)
			return
		}
		assert.NotEmpty(t, certs)
	})
}

// hostile is what a server can do in its answer to an enrolment.
func TestHostileServer(t *testing.T) {
	_, recordedBody := bodyOf(t, "gs-enroll-mtls.http")
	good := string(recordedBody)
	elsewhere := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		t.Error("the request went to another server")
	}))
	defer elsewhere.Close()

	answer := func(w http.ResponseWriter, body string) {
		w.Header().Set("Content-Type", mediaType)
		io.WriteString(w, body)
	}
	redirect := func(to string, status int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, to, status) }
	}
	hijack := func(words string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			conn, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			io.WriteString(conn, words)
		}
	}
	const head = "HTTP/1.1 200 OK\r\nContent-Type: application/pkcs7-mime\r\n"

	for _, tt := range []struct {
		name    string
		handler http.HandlerFunc
		is      error  // of the class
		says    string // in the text
	}{
		{"huge, announced", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "99999999999")
			answer(w, good)
		}, ErrAnswer, "1048576 bytes"},
		{"endless", func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				answer(w, good)
			}
		}, ErrAnswer, "1048576 bytes"},
		{"white space beyond the limit", func(w http.ResponseWriter, r *http.Request) {
			answer(w, good+strings.Repeat(" ", maxBody+1-len(good)))
		}, ErrAnswer, "1048576 bytes"},
		{"white space up to the limit", func(w http.ResponseWriter, r *http.Request) {
			answer(w, good+strings.Repeat(" ", maxBody-len(good)))
		}, ErrKeyMismatch, ""}, // read to the end, and then it is another's
		{"chunks", func(w http.ResponseWriter, r *http.Request) {
			for _, b := range good {
				answer(w, string(b))
				w.(http.Flusher).Flush()
			}
		}, ErrKeyMismatch, ""},
		{"two certificates", func(w http.ResponseWriter, r *http.Request) {
			_, two := bodyOf(t, "gs-cacerts.http")
			answer(w, string(two))
		}, ErrAnswer, "2 certificates"},
		{"no body", func(w http.ResponseWriter, r *http.Request) { answer(w, "") }, ErrAnswer, "not a CMS message"},
		{"no content", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNoContent) }, nil, "HTTP 204"},
		{"part", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusPartialContent) }, nil, "HTTP 206"},
		{"endless error", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/plain")
			w.WriteHeader(http.StatusBadRequest)
			for r.Context().Err() == nil {
				io.WriteString(w, "\x1b[31mno ")
			}
		}, nil, "HTTP 400 Bad Request: \"�[31mno "},

		{"length too long", hijack(head + "Content-Length: 5000\r\n\r\n" + good), io.ErrUnexpectedEOF, ""},
		{"length too short", hijack(head + "Content-Length: 100\r\n\r\n" + good), ErrAnswer, ""},
		{"two lengths", hijack(head + "Content-Length: 100\r\nContent-Length: 101\r\n\r\n" + good), nil, "Content-Length"},
		{"negative length", hijack(head + "Content-Length: -1\r\n\r\n" + good), nil, "Content-Length"},
		{"chunk cut", hijack(head + "Transfer-Encoding: chunked\r\n\r\nffff\r\n" + good), io.ErrUnexpectedEOF, ""},
		{"chunk of 2^64", hijack(head + "Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\n" + good), nil,
			"chunk length"},
		{"no HTTP", hijack("\x00\x01\x02\r\n\r\n"), nil, "malformed"},

		{"redirect to another host", redirect(elsewhere.URL, 307), nil, "another origin"},
		{"redirect to another scheme", redirect("http://127.0.0.1:1/", 308), nil, "another origin"},
		{"redirect that turns POST into GET", redirect("/x", 302), nil, "turn POST into GET"},
		{"redirect that turns POST into GET by 303", redirect("/x", 303), nil, "turn POST into GET"},
		{"redirect in a circle", redirect("/.well-known/est/simpleenroll", 307), nil, "more than 5 redirects"},
		{"redirect to nowhere", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(307) }, nil, "307"},
		{"redirect with a password", func(w http.ResponseWriter, r *http.Request) {
			redirect("https://u:p@"+r.Host+"/x", 307)(w, r)
		}, nil, "password"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, client := newServer(t, tt.handler)
			cert, err := client.Enrol(t.Context(), "", newCSR(t, newKey(t)))
			require.Error(t, err)
			require.Nil(t, cert)
			for _, class := range []error{ErrAnswer, ErrKeyMismatch, ErrCACerts, io.ErrUnexpectedEOF} {
				assert.Equal(t, class == tt.is, errors.Is(err, class), class != tt.is)
			}
			assert.Contains(t, err.Error(), tt.says)
			assert.True(t, strings.HasPrefix(err.Error(), "est: simpleenroll: "))
			assert.False(t, strings.ContainsAny(err.Error(), "\x1b\x00\r\n"), "text is not one short line")
			assert.LessOrEqual(t, len(err.Error()), 4<<10, "text is not one short line")
		})
	}
}

// A redirect within the server takes the whole request along.
func TestRedirectWithinTheServer(t *testing.T) {
	root := newCA(t, "root", nil, nil)
	for _, status := range []int{http.StatusTemporaryRedirect, http.StatusPermanentRedirect} {
		hops := 0
		_, client := newServer(t, func(w http.ResponseWriter, r *http.Request) {
			if hops++; hops <= maxRedirects {
				http.Redirect(w, r, fmt.Sprintf("https://%s/hop/%d", strings.ToUpper(r.Host), hops), status)
				return
			}
			assert.Equal(t, "application/pkcs10", r.Header.Get("Content-Type"))
			assert.Greater(t, r.ContentLength, int64(0))
			r.URL.Path = "/.well-known/est/simpleenroll"
			ca{t, root}.ServeHTTP(w, r)
		})
		_, err := client.Enrol(t.Context(), "", newCSR(t, newKey(t)))
		assert.NoError(t, err, status)
	}
}

func TestSameOrigin(t *testing.T) {
	for _, tt := range []struct {
		from, to string
		ok       bool
	}{
		{"https://a.test/x", "https://a.test/y", true},
		{"https://a.test/x", "https://A.TEST:443/y", true},
		{"https://a.test:6000/x", "https://a.test:6000/", true},
		{"https://[::1]:6000/x", "https://[::1]:6000/", true},
		{"https://a.test/x", "http://a.test/x", false},
		{"https://a.test:6000/x", "https://a.test/x", false},
		{"https://a.test/x", "https://a.test:6000/x", false},
		{"https://a.test/x", "https://b.test/x", false},
		{"https://a.test/x", "https://a.test.evil/x", false},
		{"https://a.test/x", "https://a.test@evil.test/x", false},
		{"https://a.test/x", "https://a.test./x", false},
	} {
		first, err := http.NewRequest("POST", tt.from, nil)
		require.NoError(t, err)
		next, err := http.NewRequest("POST", tt.to, nil)
		require.NoError(t, err)
		assert.Equal(t, tt.ok, SameOrigin(next, []*http.Request{first}) == nil, "%v, %v", tt.from, tt.to)
	}
}

// Wherever the server stops talking, the context ends the wait.
func TestCancel(t *testing.T) {
	_, body := bodyOf(t, "gs-enroll-mtls.http")
	drip := func(w http.ResponseWriter, status int, kind string) {
		w.Header().Set("Content-Type", kind)
		w.WriteHeader(status)
		w.Write(body[:10])
		w.(http.Flusher).Flush()
	}
	for _, tt := range []struct {
		name string
		say  func(http.ResponseWriter)
	}{
		{"before the header", func(http.ResponseWriter) {}},
		{"in the body", func(w http.ResponseWriter) { drip(w, 200, mediaType) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			returned := make(chan struct{})
			defer close(returned)
			_, client := newServer(t, func(w http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body)
				tt.say(w)
				cancel()
				<-r.Context().Done() // the client hung up
				<-returned
			})
			cert, err := client.Enrol(ctx, "", newCSR(t, newKey(t)))
			assert.ErrorIs(t, err, context.Canceled)
			assert.NotErrorIs(t, err, ErrAnswer)
			assert.Nil(t, cert)
		})
	}

	// The status of an error is known even if its text never comes.
	t.Run("in the body of an error", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		returned := make(chan struct{})
		defer close(returned)
		_, client := newServer(t, func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			drip(w, 403, "text/plain")
			<-r.Context().Done()
			<-returned
		})
		client.HTTP.Transport = cancelOnAnswer{client.HTTP.Transport, cancel}
		_, err := client.Enrol(ctx, "", newCSR(t, newKey(t)))
		var answer *problem.Error
		require.ErrorAs(t, err, &answer)
		assert.Equal(t, 403, answer.Status)
	})
}

// cancelOnAnswer ends the context once the header of an answer is there.
type cancelOnAnswer struct {
	http.RoundTripper
	cancel func()
}

func (c cancelOnAnswer) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := c.RoundTripper.RoundTrip(req)
	c.cancel()
	return resp, err
}

func TestRetryAfterDateUsesTheClock(t *testing.T) {
	_, client := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Retry-After", testNow.Add(90*time.Second).Format(http.TimeFormat))
		w.WriteHeader(http.StatusAccepted)
	})
	client.Now = func() time.Time { return testNow }
	_, err := client.Enrol(t.Context(), "temporary", newCSR(t, newKey(t)))
	var answer *problem.Error
	require.ErrorAs(t, err, &answer)
	assert.Equal(t, 202, answer.Status)
	assert.EqualValues(t, 90*time.Second, answer.After)
}
