// Package est is a strict client of Enrollment over Secure Transport (RFC 7030,
// clarified by RFC 8951): it fetches the CA certificates and enrols.
//
// It tolerates what real servers are seen to do (any line breaks in base64, a
// media type without smime-type, 201 for 200) and refuses what is wrong: a body
// of another type, a CMS message that is not certs-only in DER, more or fewer
// certificates than one, a certificate for another key.
//
// Trust is the caller's: the http.Client's transport verifies the server and
// presents the client certificate. Nothing is repeated here; package retry
// knows which of the errors are worth another try.
package est

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/quarklink-go/quarklink/internal/problem"
)

// The classes of what can be wrong with an answer that did arrive.
var (
	// ErrCACerts: the cacerts answer is not usable.
	ErrCACerts = errors.New("no usable CA certificates")
	// ErrChain: a certificate does not chain to the CA certificates.
	ErrChain = errors.New("certificate was not issued under the CA certificates")
	// ErrAnswer: the answer to an enrolment is not exactly one certificate.
	ErrAnswer = errors.New("malformed enrolment answer")
	// ErrKeyMismatch: the certificate is over another key than the CSR.
	ErrKeyMismatch = errors.New("certificate is for another key than the request")
	// ErrNeverValid: the certificate ends before it begins.
	ErrNeverValid = errors.New("certificate is never valid")
)

const (
	mediaType = "application/pkcs7-mime"
	maxBody   = 1 << 20 // bytes of a good answer
	lineWidth = 76      // columns of base64 in a request
)

// Client speaks EST with one server. It has no state of its own and is safe for
// concurrent use if HTTP is.
type Client struct {
	// HTTP sends the requests. Its transport verifies the server and presents
	// the client certificate; its CheckRedirect should be [SameOrigin].
	// Required.
	HTTP *http.Client
	// Base is the URL that operations are appended to, such as
	// https://host:port/.well-known/est. Only https is spoken. Required.
	Base string
	// Now is what a Retry-After date is counted from. Nil means time.Now.
	Now func() time.Time
}

// CACerts fetches the CA certificates (RFC 7030 section 4.1), at least one, in
// the server's order. They are only as good as the connection they came on.
//
// A status other than 200 is a [*problem.Error]; that and whatever is wrong
// with the answer is [ErrCACerts]. A network error is returned as it is.
func (c *Client) CACerts(ctx context.Context) ([]*x509.Certificate, error) {
	certs, err := c.cacerts(ctx)
	if err != nil {
		return nil, fmt.Errorf("est: cacerts: %w", err)
	}
	return certs, nil
}

func (c *Client) cacerts(ctx context.Context) ([]*x509.Certificate, error) {
	resp, err := c.do(ctx, http.MethodGet, nil, "cacerts")
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%w: %w", ErrCACerts, problem.FromResponse(resp, c.now()))
	}
	return readCerts(resp, ErrCACerts)
}

// Enrol asks for a certificate over the key of csr, a PKCS #10 request in DER
// (RFC 7030 section 4.2.1, simpleenroll). The label names one of several CAs of
// the server, as one path segment (section 3.2.2); "" is the default.
//
// A status other than 200 and 201 is a [*problem.Error]: 202 means that the
// same request should be sent again, after its delay. An answer that is not
// exactly one certificate is [ErrAnswer], one over another key than the
// request's [ErrKeyMismatch]. Neither chain nor validity is looked at: see
// [Chain]. A network error is returned as it is.
func (c *Client) Enrol(ctx context.Context, label string, csr []byte) (*x509.Certificate, error) {
	cert, err := c.request(ctx, label, "simpleenroll", csr)
	if err != nil {
		return nil, fmt.Errorf("est: simpleenroll: %w", err)
	}
	return cert, nil
}

// Reenrol asks for another certificate in place of the one that HTTP presents
// (RFC 7030 section 4.2.2, simplereenroll): subject and SAN of csr must be those
// of that one, and its key may be the same or another. The rest is as for
// [Client.Enrol].
func (c *Client) Reenrol(ctx context.Context, label string, csr []byte) (*x509.Certificate, error) {
	cert, err := c.request(ctx, label, "simplereenroll", csr)
	if err != nil {
		return nil, fmt.Errorf("est: simplereenroll: %w", err)
	}
	return cert, nil
}

func (c *Client) request(ctx context.Context, label, operation string, csr []byte) (*x509.Certificate, error) {
	request, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	segments := []string{operation}
	if label != "" {
		if err := checkLabel(label); err != nil {
			return nil, err
		}
		segments = []string{url.PathEscape(label), operation}
	}
	resp, err := c.do(ctx, http.MethodPost, encode(csr), segments...)
	if err != nil {
		return nil, err
	}
	return c.enrolAnswer(resp, request.PublicKey)
}

// enrolAnswer reads the answer to a request for a certificate over pub.
func (c *Client) enrolAnswer(resp *http.Response, pub crypto.PublicKey) (*x509.Certificate, error) {
	// 201 is off the standard, but one server says so of what it created.
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusCreated {
		return nil, problem.FromResponse(resp, c.now())
	}
	certs, err := readCerts(resp, ErrAnswer)
	if err != nil {
		return nil, err
	}
	if len(certs) != 1 {
		return nil, fmt.Errorf("%w: %d certificates instead of one", ErrAnswer, len(certs))
	}
	key, ok := pub.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !key.Equal(certs[0].PublicKey) {
		return nil, ErrKeyMismatch
	}
	return certs[0], nil
}

// checkLabel refuses what is not one path segment, or would name an operation.
func checkLabel(label string) error {
	switch label {
	case ".", "..", "cacerts", "simpleenroll", "simplereenroll", "fullcmc", "serverkeygen", "csrattrs":
		return fmt.Errorf("%q cannot be a CA label", label)
	}
	if strings.Contains(label, "/") {
		return fmt.Errorf("CA label %q is not one path segment", label)
	}
	return nil
}

// encode makes the body of a request from DER: lines of base64, each ended by a
// newline. One server refuses long lines, another a last line without an end.
func encode(der []byte) []byte {
	text := base64.StdEncoding.AppendEncode(nil, der)
	var body []byte
	for len(text) > 0 {
		n := min(len(text), lineWidth)
		body = append(append(body, text[:n]...), '\n')
		text = text[n:]
	}
	return body
}

// do sends a request; a body makes it one with a PKCS #10 body. The segments
// are escaped already.
func (c *Client) do(ctx context.Context, method string, body []byte, segments ...string) (*http.Response, error) {
	base, err := url.Parse(c.Base)
	if err != nil {
		return nil, fmt.Errorf("base URL: %w", err)
	}
	if base.Scheme != "https" || base.Host == "" || base.User != nil {
		return nil, errors.New("base URL is not https://host[:port]/path")
	}
	// A bytes.Reader gives the request its Content-Length (one server refuses
	// chunks) and its GetBody (a redirect by 307 or 308 sends the body again).
	req, err := http.NewRequestWithContext(ctx, method, base.JoinPath(segments...).String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", mediaType)
	if body != nil {
		// Without a parameter: one server refuses any.
		req.Header.Set("Content-Type", "application/pkcs10")
		// RFC 7030 asks for this field and RFC 8951 section 2.1 tells servers
		// to ignore it, so it hurts none of the newer and helps the older,
		// some of which take the body for raw DER without it.
		req.Header.Set("Content-Transfer-Encoding", "base64")
	}
	return c.HTTP.Do(req)
}

func (c *Client) now() time.Time {
	if c.Now == nil {
		return time.Now()
	}
	return c.Now()
}

// readCerts reads the certificates of an answer whose status was good, and
// closes its body. What is wrong with the answer is wrapped in class; a read
// that failed is not: the answer may be good the next time.
func readCerts(resp *http.Response, class error) ([]*x509.Certificate, error) {
	body, err := problem.ReadBody(resp, maxBody)
	if errors.Is(err, problem.ErrTooLarge) {
		return nil, fmt.Errorf("%w: %w", class, err)
	}
	if err != nil {
		return nil, err
	}
	if err := checkType(resp.Header.Values("Content-Type")); err != nil {
		return nil, fmt.Errorf("%w: %w", class, err)
	}
	der, err := decode(body)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", class, err)
	}
	certs, err := ParseCertsOnly(der)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", class, err)
	}
	return certs, nil
}

// checkType wants one Content-Type of application/pkcs7-mime, whose smime-type,
// if it has one, is certs-only (RFC 7030 section 4.2.3).
func checkType(fields []string) error {
	if len(fields) != 1 {
		return fmt.Errorf("%d Content-Type fields instead of one", len(fields))
	}
	media, params, err := mime.ParseMediaType(fields[0])
	if err != nil || media != mediaType {
		return fmt.Errorf("Content-Type is %.64q instead of %s", fields[0], mediaType)
	}
	if kind, ok := params["smime-type"]; ok && !strings.EqualFold(kind, "certs-only") {
		return fmt.Errorf("smime-type is %.64q instead of certs-only", kind)
	}
	return nil
}

// decode reads base64 with white space anywhere (RFC 8951 section 2.1), and
// whatever Content-Transfer-Encoding says.
func decode(body []byte) ([]byte, error) {
	text := bytes.Map(func(r rune) rune {
		switch r {
		case '\r', '\n', ' ', '\t':
			return -1
		}
		return r
	}, body)
	der, err := base64.StdEncoding.Strict().AppendDecode(nil, text)
	if err != nil {
		return nil, errors.New("body is not base64")
	}
	return der, nil
}
