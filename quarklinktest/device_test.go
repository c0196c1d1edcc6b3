package quarklinktest_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"io"
	"math/big"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/smallstep/pkcs7"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/quarklinktest"
)

// The device of these tests is made by hand of net/http and crypto/x509: none of
// it is the library's own client.

const (
	pathCACerts    = "/.well-known/est/cacerts"
	pathTemporary  = "/.well-known/est/temporary/simpleenroll"
	pathEnrol      = "/.well-known/est/simpleenroll"
	pathReenrol    = "/.well-known/est/simplereenroll"
	pathConnection = "/quarklink/v1/connection"
	pathStatus     = "/quarklink/v1/status"
	pathFirmware   = "/quarklink/v1/firmware"
	pathOutcome    = "/quarklink/v1/firmware/outcome"
)

type rawDevice struct {
	t        testing.TB
	s        *quarklinktest.Server
	esk, dsk *ecdsa.PrivateKey
	id       quarklink.DeviceID
	identity *tls.Certificate
}

func newServer(t testing.TB, o quarklinktest.Options) *quarklinktest.Server {
	t.Helper()
	s, err := quarklinktest.NewServer(o)
	require.NoError(t, err)
	t.Cleanup(s.Close)
	return s
}

// newDevice makes a device and puts it into the batch, if that has a name.
func newDevice(t testing.TB, s *quarklinktest.Server, batch string) *rawDevice {
	t.Helper()
	d := &rawDevice{t: t, s: s, esk: newKey(t), dsk: newKey(t)}
	id, err := quarklink.DeviceIDOf(d.esk.Public())
	require.NoError(t, err)
	d.id = id
	d.identity = selfSigned(t, d.esk, "any name will do")
	if batch != "" {
		require.NoError(t, s.AddDevices(batch, d.id))
	}
	return d
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	return key
}

func selfSigned(t testing.TB, key crypto.Signer, name string) *tls.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    time.Unix(0, 0),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// client returns an HTTP client that shows cert, or none.
func (d *rawDevice) client(cert *tls.Certificate) *http.Client {
	i := d.s.Instance()
	roots := x509.NewCertPool()
	roots.AddCert(i.Root)
	tr := &http.Transport{
		MaxConnsPerHost: 1,
		DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			raw, err := d.s.Carrier().Dial(ctx)
			if err != nil {
				return nil, err
			}
			conn := tls.Client(raw, &tls.Config{
				RootCAs: roots, ServerName: i.Endpoint,
				Time: func() time.Time { return i.Root.NotBefore.Add(time.Hour) },
				GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
					if cert == nil {
						return new(tls.Certificate), nil
					}
					return cert, nil
				},
			})
			if err := conn.HandshakeContext(ctx); err != nil {
				raw.Close()
				return nil, err
			}
			return conn, nil
		},
	}
	d.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// reply is an answer that has been read.
type reply struct {
	status int
	header http.Header
	body   []byte
}

func (r reply) problem(t testing.TB) string {
	t.Helper()
	require.Equal(t, "application/problem+json", r.header.Get("Content-Type"),
		"%v, %v", r.status, r.body)
	var p struct {
		Type, Title, Detail string
		Status              int
	}
	require.NoError(t, json.Unmarshal(r.body, &p))
	require.Equal(t, r.status, p.Status, r.body)
	require.NotEmpty(t, p.Title, r.body)
	require.NotEmpty(t, p.Detail, r.body)
	return strings.TrimPrefix(p.Type, "urn:quarklink:error:")
}

// try sends a request that need not be answered; header holds names and values.
func try(ctx context.Context, c *http.Client, method, path string, body []byte, header ...string) (reply, error) {
	req, err := http.NewRequestWithContext(ctx, method, "https://instance.test"+path, bytes.NewReader(body))
	if err != nil {
		return reply{}, err
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	return reply{resp.StatusCode, resp.Header, got}, err
}

func (d *rawDevice) do(c *http.Client, method, path string, body []byte, header ...string) reply {
	d.t.Helper()
	r, err := try(d.t.Context(), c, method, path, body, header...)
	if err != nil {
		d.t.Fatalf("%s %s: %v", method, path, err)
	}
	return r
}

func (d *rawDevice) get(c *http.Client, path string, header ...string) reply {
	d.t.Helper()
	return d.do(c, http.MethodGet, path, nil, header...)
}

func (d *rawDevice) csr(key crypto.Signer) []byte {
	d.t.Helper()
	// The name is a lie: the instance must not believe it.
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: strings.Repeat("0", 64)},
	}, key)
	if err != nil {
		d.t.Fatal(err)
	}
	return der
}

func (d *rawDevice) post(c *http.Client, path string, csr []byte) reply {
	d.t.Helper()
	return d.do(c, http.MethodPost, path, base64.StdEncoding.AppendEncode(nil, csr), "Content-Type", "application/pkcs10")
}

// certs reads the certificates of an EST answer with a library of others.
func (r reply) certs(t testing.TB) []*x509.Certificate {
	t.Helper()
	require.Equal(t, http.StatusOK, r.status, r.body)
	require.Equal(t, "application/pkcs7-mime; smime-type=certs-only", r.header.Get("Content-Type"),
		r.body)
	der, err := base64.StdEncoding.DecodeString(string(r.body))
	require.NoError(t, err)
	message, err := pkcs7.Parse(der)
	require.NoError(t, err)
	require.Empty(t, message.Signers, "not certs-only")
	require.Empty(t, message.CRLs, "not certs-only")
	return message.Certificates
}

// temporary gets a temporary certificate.
func (d *rawDevice) temporary() *tls.Certificate {
	d.t.Helper()
	c := d.client(d.identity)
	certs := d.post(c, pathTemporary, d.csr(d.esk)).certs(d.t)
	c.CloseIdleConnections()
	return &tls.Certificate{Certificate: [][]byte{certs[0].Raw}, PrivateKey: d.esk}
}

// enrol gets a device certificate.
func (d *rawDevice) enrol() *tls.Certificate {
	d.t.Helper()
	c := d.client(d.temporary())
	certs := d.post(c, pathEnrol, d.csr(d.dsk)).certs(d.t)
	c.CloseIdleConnections()
	return &tls.Certificate{Certificate: [][]byte{certs[0].Raw}, PrivateKey: d.dsk}
}

type statusJSON struct {
	DeviceID           string
	State              string
	CertificateExpired bool
	Batch              string
	PollAfter          float64
	Firmware           *struct {
		Name, Version, SHA256 string
		Size                  int64
		SecureVersion         uint32
		Attributes            map[string]string
	}
}

func (d *rawDevice) status(header ...string) statusJSON {
	d.t.Helper()
	c := d.client(d.identity)
	defer c.CloseIdleConnections()
	r := d.get(c, pathStatus, header...)
	require.Equal(d.t, http.StatusOK, r.status, "%s", r.body)
	require.Equal(d.t, "application/json", r.header.Get("Content-Type"))
	var s statusJSON
	if err := json.Unmarshal(r.body, &s); err != nil {
		d.t.Fatal(err)
	}
	return s
}

func encode(csr []byte) []byte { return base64.StdEncoding.AppendEncode(nil, csr) }

func mustRequest(t testing.TB, method, path string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "https://instance.test"+path, nil)
	require.NoError(t, err)
	return req
}
