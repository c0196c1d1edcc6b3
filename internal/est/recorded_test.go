package est

import (
	"bufio"
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/internal/problem"
)

// recorded are answers of three independent EST servers, byte for byte, and
// what becomes of each.
var recorded = []struct {
	file    string
	cacerts []string // the names it has, as the answer to cacerts
	issuer  string   // of the one certificate, as the answer to simpleenroll
	err     error    // the class of a malformed answer
	want    problem.Error
}{
	{file: "fio-cacerts", cacerts: []string{"Lab Root"}},
	{file: "gs-cacerts", cacerts: []string{"Lab Issuing CA", "Lab Root"}},
	{file: "le-cacerts", cacerts: []string{"estEXTERNALCA", "estExampleCA"}},

	{file: "fio-enroll-mtls", issuer: "Lab Issuing CA"}, // status 201
	{file: "fio-ext", issuer: "Lab Issuing CA"},
	{file: "fio-reenroll-mtls", issuer: "Lab Issuing CA"},
	{file: "gs-ct-param", issuer: "Lab Issuing CA"},
	{file: "gs-enroll-mtls", issuer: "Lab Issuing CA"},
	{file: "gs-enroll-noauth", issuer: "Lab Issuing CA"},
	{file: "gs-reenroll-mtls", issuer: "Lab Issuing CA"},
	{file: "le-digest-2", issuer: "estExampleCA"},
	{file: "le-enroll", issuer: "estExampleCA"},
	{file: "le-enroll-b64_64", issuer: "estExampleCA"},
	{file: "le-enroll-b64crlf", issuer: "estExampleCA"},
	{file: "le-enroll-b64nllf", issuer: "estExampleCA"},
	{file: "le-enroll-ctparam", issuer: "estExampleCA"},
	{file: "le-nohttp-mtls", issuer: "estExampleCA"},
	{file: "le-opt-mtls", issuer: "estExampleCA"},
	{file: "le-opt-reenroll", issuer: "estExampleCA"},

	{file: "gs-label", err: ErrAnswer}, // two certificates
	{file: "gs-csrattrs", err: ErrAnswer},
	{file: "gs-csrattrs-label", err: ErrAnswer},
	{file: "le-csrattrs", err: ErrAnswer},
	{file: "le-csrattrs-noauth", err: ErrAnswer},
	{file: "le-digest-csrattrs", err: ErrAnswer},
	{file: "le-pop-csrattrs", err: ErrAnswer},

	{file: "gs-202", want: problem.Error{Status: 202, Detail: "202 triggered deferred response",
		After: 10 * time.Minute, HasAfter: true}},
	{file: "le-manual", want: problem.Error{Status: 202, After: time.Hour, HasAfter: true}},
	{file: "le-manual-reenroll", want: problem.Error{Status: 202, After: time.Hour, HasAfter: true}},

	{file: "fio-badb64", want: problem.Error{Status: 400,
		Detail: "The CSR could not be decoded: asn1: syntax error: sequence truncated"}},
	{file: "fio-csrattrs", want: problem.Error{Status: 404}},
	{file: "fio-ct-param", want: problem.Error{Status: 400,
		Detail: "Invalid content-type: application/pkcs10; charset=utf-8. Must be application/pkcs10"}},
	{file: "fio-enroll-chain", want: problem.Error{Status: 401, Detail: "Client must provide certificate"}},
	{file: "fio-enroll-noauth", want: problem.Error{Status: 401, Detail: "Client must provide certificate"}},
	{file: "fio-reenroll-san", want: problem.Error{Status: 400,
		Detail: "SubjectAltName field of CSR must match the current client certificate"}},
	{file: "fio-sha384", want: problem.Error{Status: 400,
		Detail: "Signature algorithm of the CSR does not match that of the CA"}},
	{file: "gs-403", want: problem.Error{Status: 403, Detail: "403 triggered forbidden response"}},
	{file: "gs-404", want: problem.Error{Status: 404, Detail: "404 page not found"}},
	{file: "gs-badhost", want: problem.Error{Status: 400, Detail: "400 host not allowed"}},
	{file: "gs-enroll-badct", want: problem.Error{Status: 415, Detail: "415 Content-Type must be application/pkcs10"}},
	{file: "gs-enroll-raw", want: problem.Error{Status: 400, Detail: "400 invalid base64 encoding"}},
	{file: "gs-fullcmc", want: problem.Error{Status: 404, Detail: "404 page not found"}},
	{file: "gs-healthcheck", want: problem.Error{Status: 401, Detail: "401 authorization required", Challenge: true}},
	{file: "gs-label2", want: problem.Error{Status: 404, Detail: "404 page not found"}},
	{file: "gs-reenroll-nocert", want: problem.Error{Status: 403,
		Detail: "403 client certificate must be provided for /simplereenroll"}},
	{file: "gs-reenroll-subjchange", want: problem.Error{Status: 403,
		Detail: "403 Subject and SubjectAltName fields in CSR must be identical to certificate being renewed"}},
	{file: "le-digest-1", want: problem.Error{Status: 401, Challenge: true}},
	{file: "le-digest-401", want: problem.Error{Status: 401, Challenge: true}},
	{file: "le-enroll-badpw", want: problem.Error{Status: 401,
		Detail: "Error 401: Unauthorized The server was unable to authorize the request."}},
	{file: "le-enroll-nl", want: problem.Error{Status: 400,
		Detail: "Error 400: Bad Request Invalid or corrupted pkcs10 request."}},
	{file: "le-enroll-noauth", want: problem.Error{Status: 401, Challenge: true}},
	{file: "le-label", want: problem.Error{Status: 404,
		Detail: "Error 404: Not Found The path specified is not recognized."}},
	{file: "le-nohttp-nocert", want: problem.Error{Status: 401,
		Detail: "Error 401: Unauthorized The server was unable to authorize the request."}},
	{file: "le-pop", want: problem.Error{Status: 401, Detail: "Error 401: Unauthorized Proof of Possession Mismatch."}},
}

func readTestdata(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	require.NoError(t, err)
	return data
}

// replay is a server that gives one recorded answer to everything.
type replay []byte

func (answer replay) RoundTrip(req *http.Request) (*http.Response, error) {
	return http.ReadResponse(bufio.NewReader(bytes.NewReader(answer)), req)
}

func (answer replay) client() *Client {
	return &Client{
		HTTP: &http.Client{Transport: answer, CheckRedirect: SameOrigin},
		Base: "https://est.test/.well-known/est",
		Now:  func() time.Time { return testNow },
	}
}

// recordedCACerts returns the certificates of a recorded answer to cacerts.
func recordedCACerts(t testing.TB, file string) []*x509.Certificate {
	t.Helper()
	certs, err := replay(readTestdata(t, file)).client().CACerts(t.Context())
	require.NoError(t, err)
	return certs
}

// recordedLeaf returns the one certificate of a recorded answer to an enrolment.
func recordedLeaf(t testing.TB, file string) *x509.Certificate {
	t.Helper()
	resp, err := replay(readTestdata(t, file)).RoundTrip(nil)
	require.NoError(t, err)
	certs, err := readCerts(resp, ErrAnswer)
	require.NoError(t, err, file)
	require.Len(t, certs, 1, file)
	return certs[0]
}

func TestRecordedAnswers(t *testing.T) {
	device := recordedLeaf(t, "gs-enroll-mtls.http").PublicKey // the same in all
	for _, tt := range recorded {
		t.Run(tt.file, func(t *testing.T) {
			client := replay(readTestdata(t, tt.file+".http")).client()
			resp, err := client.do(t.Context(), http.MethodPost, []byte("MIIB\n"), "simpleenroll")
			require.NoError(t, err)
			cert, err := client.enrolAnswer(resp, device)
			certs, caErr := client.CACerts(t.Context())
			var status, caStatus *problem.Error
			switch {
			case tt.want.Status != 0:
				require.ErrorAs(t, err, &status, "simpleenroll")
				assert.Equal(t, tt.want, *status, "simpleenroll")
				assert.NotErrorIs(t, err, ErrAnswer, "simpleenroll")
				require.ErrorAs(t, caErr, &caStatus, "cacerts")
				assert.Equal(t, tt.want, *caStatus, "cacerts")
				assert.ErrorIs(t, caErr, ErrCACerts, "cacerts")
			case tt.cacerts != nil:
				require.NoError(t, caErr)
				assert.Equal(t, strings.Join(tt.cacerts, "|"), strings.Join(names(certs), "|"))
				assert.Error(t, err, "accepted as a device certificate")
			case tt.err != nil:
				assert.ErrorIs(t, err, tt.err)
			default:
				require.NoError(t, err)
				assert.Equal(t, tt.issuer, cert.Issuer.CommonName)
			}
		})
	}
}

func names(certs []*x509.Certificate) []string {
	names := []string{}
	for _, cert := range certs {
		names = append(names, cert.Subject.CommonName)
	}
	return names
}

// The table names every recorded answer, and testdata holds the vectors as they
// are.
func TestRecordedIsComplete(t *testing.T) {
	listed := map[string]bool{}
	for _, tt := range recorded {
		listed[tt.file+".http"] = true
	}
	for _, dir := range []string{"testdata", vectors(t)} {
		files, err := filepath.Glob(filepath.Join(dir, "*.http"))
		require.NoError(t, err)
		switch dir {
		case "":
		case "testdata":
			assert.Len(t, files, len(listed), "each answer of %s is in the table", dir)
		default:
			assert.GreaterOrEqual(t, len(files), len(listed), "answers in %s", dir)
		}
		for _, file := range files {
			name := filepath.Base(file)
			data, err := os.ReadFile(file)
			require.NoError(t, err)
			if !listed[name] {
				t.Logf("%s is new: not in the table yet", file)
			} else if !bytes.Equal(data, readTestdata(t, name)) {
				t.Errorf("%s is not as in testdata", file)
			}
		}
	}
}

// vectors is the folder that the recorded answers came from, or "".
func vectors(t *testing.T) string {
	dir := os.Getenv("QUARKLINK_VECTORS")
	if dir == "" {
		t.Log("QUARKLINK_VECTORS is not set: only testdata is looked at")
		return ""
	}
	return filepath.Join(dir, "est")
}

func TestRecordedChains(t *testing.T) {
	var pemCAs []*x509.Certificate
	for rest := readTestdata(t, "ca-chain.pem"); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		require.NoError(t, err)
		pemCAs = append(pemCAs, cert)
	}
	lab := recordedCACerts(t, "gs-cacerts.http")
	foreign := recordedCACerts(t, "le-cacerts.http")
	for _, tt := range []struct {
		name    string
		leaf    string
		cacerts []*x509.Certificate
		want    []string // nil: an error
	}{
		{"through an intermediate", "gs-enroll-mtls.http", lab, []string{"Lab Issuing CA"}},
		{"the same from a file", "fio-ext.http", pemCAs, []string{"Lab Issuing CA"}},
		{"foreign CA first, directly under the second", "le-enroll.http", foreign, []string{}},
		{"foreign CAs first", "gs-enroll-mtls.http", append(foreign[:len(foreign):len(foreign)], lab...),
			[]string{"Lab Issuing CA"}},
		{"no root: the issuer is the anchor", "fio-enroll-mtls.http", lab[:1], []string{"Lab Issuing CA"}},
		// This server publishes its root alone and issues from below it.
		{"intermediate missing", "fio-enroll-mtls.http", recordedCACerts(t, "fio-cacerts.http"), nil},
		{"other CAs", "gs-enroll-mtls.http", foreign, nil},
		{"none", "gs-enroll-mtls.http", nil, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path, err := Chain(recordedLeaf(t, tt.leaf), tt.cacerts, testNow)
			chain := path.Chain
			if tt.want == nil {
				assert.ErrorIs(t, err, ErrChain, names(chain))
				return
			}
			require.NoError(t, err)
			assert.Equal(t, strings.Join(tt.want, "|"), strings.Join(names(chain), "|"))
		})
	}
}

func TestEnrolAnswerKeyMismatch(t *testing.T) {
	client := replay(readTestdata(t, "gs-enroll-mtls.http")).client()
	for _, pub := range []any{newKey(t).Public(), nil, "no key"} {
		resp, err := client.do(t.Context(), http.MethodGet, nil)
		require.NoError(t, err)
		cert, err := client.enrolAnswer(resp, pub)
		assert.ErrorIs(t, err, ErrKeyMismatch)
		assert.Nil(t, cert)
	}
}

// bodyOf splits a recorded answer.
func bodyOf(t testing.TB, file string) (head, body []byte) {
	t.Helper()
	head, body, ok := bytes.Cut(readTestdata(t, file), []byte("\r\n\r\n"))
	require.True(t, ok, file)
	return head, body
}

// read runs the answer to an enrolment through all checks but that of the key.
func read(contentType string, body []byte) ([]*x509.Certificate, error) {
	resp, err := replay("HTTP/1.1 200 OK\r\nContent-Type: " + contentType + "\r\n\r\n" + string(body)).RoundTrip(nil)
	if err != nil {
		return nil, err
	}
	return readCerts(resp, ErrAnswer)
}

func TestEveryTruncationOfBase64(t *testing.T) {
	for _, file := range []string{"gs-enroll-mtls.http", "fio-enroll-mtls.http", "le-cacerts.http"} {
		_, body := bodyOf(t, file)
		_, err := read(mediaType, body)
		require.NoError(t, err)
		for n := range len(bytes.TrimSpace(body)) {
			certs, err := read(mediaType, body[:n])
			require.ErrorIs(t, err, ErrAnswer, file)
			require.Nil(t, certs, file)
		}
	}
}
