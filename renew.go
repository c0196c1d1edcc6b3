package quarklink

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/quarklink-go/quarklink/internal/api"
	"github.com/quarklink-go/quarklink/keystore"
)

// RenewOptions change how Renew renews.
type RenewOptions struct {
	// NewKey has the new certificate issued over a new device key, which takes
	// the place of the old one once the instance has served the new certificate.
	// The KeyStore must be a keystore.Rotator for it; otherwise the error is
	// errors.ErrUnsupported.
	NewKey bool
}

// Renew has the device certificate renewed before it expires, by presenting it
// (RFC 7030 section 4.2.2, simplereenroll), and fetches the connection details
// anew. It is called for when [Status.NeedsRenewal] says so, or from
// [Enrolment.RenewAt] on; it may be called earlier.
//
// The old certificate and its details serve until the instance has answered a
// request that presents the new one, and what it answered is stored. Then the
// new key, if there is one, takes the old one's place. After a power cut at any
// instant the next Renew carries on with the same request, for which the
// instance returns the same certificate, and one certificate is in force with
// its key at every moment.
//
// Not enrolled is ErrNoEnrolment. A certificate that has expired is
// [ErrCertificateExpired]: the device was offline for too long, and Enrol takes
// it from there. A new certificate that expires no later than the old one is
// refused with [ErrNotNewer]. The other errors are those of Enrol.
func (c *Client) Renew(ctx context.Context, o RenewOptions) (*Enrolment, error) {
	var done *Enrolment
	err := c.run(ctx, "renew", func(ctx context.Context) error {
		e, err := c.renew(ctx, o)
		if err != nil {
			return err
		}
		done = c.presented(e)
		c.log.LogAttrs(ctx, slog.LevelInfo, "renewed", slog.Time("until", e.Certificate.NotAfter))
		return nil
	})
	return done, err
}

func (c *Client) renew(ctx context.Context, o RenewOptions) (*enrolled, error) {
	e, err := c.current(ctx)
	if err != nil {
		return nil, err
	}
	if c.expired(e.Certificate) {
		return nil, fmt.Errorf("%w: its last moment was %s", ErrCertificateExpired, e.Certificate.NotAfter.UTC().Format(time.RFC3339))
	}
	dsk, err := c.keys.Signer(ctx, keystore.Device)
	if err != nil {
		return nil, fmt.Errorf("open key %s: %w", keystore.Device, err)
	}
	if !e.certifies(dsk) {
		return nil, errors.New("the device certificate is not over the device key: enrol again")
	}
	key, err := c.renewalKey(ctx, o, e, dsk)
	if err != nil {
		return nil, err
	}
	if e.next == nil {
		if err := c.renewCertificate(ctx, e, dsk, key); err != nil {
			return nil, err
		}
	}
	return e, c.tryNext(ctx, e, key)
}

// renewalKey returns the key that the new certificate is over. One that has been
// issued already decides, if its key is still there.
func (c *Client) renewalKey(ctx context.Context, o RenewOptions, e *enrolled, dsk crypto.Signer) (crypto.Signer, error) {
	if e.next.certifies(dsk) {
		return dsk, nil
	}
	if !o.NewKey && e.next == nil {
		return dsk, nil
	}
	rotator, ok := c.keys.(keystore.Rotator)
	if !ok && o.NewKey {
		return nil, fmt.Errorf("the key store cannot replace the device key: %w", errors.ErrUnsupported)
	}
	var staged crypto.Signer
	var err error
	if ok {
		staged, err = rotator.Stage(ctx, keystore.Device)
		if staged, err = checkKey("stage a new key", keystore.Device, staged, err); err != nil {
			return nil, err
		}
	}
	switch {
	case staged != nil && (e.next == nil || e.next.certifies(staged)):
		return staged, nil
	case e.next != nil:
		c.log.LogAttrs(ctx, slog.LevelWarn, "the key of the new certificate is gone; another one is asked for")
		e.next = nil
	}
	if o.NewKey {
		return staged, nil
	}
	return dsk, nil
}

// renewCertificate has the certificate renewed over that key and stores the new
// one beside it.
func (c *Client) renewCertificate(ctx context.Context, e *enrolled, dsk, key crypto.Signer) error {
	csr, err := c.renewalCSR(ctx, e, key)
	if err != nil {
		return err
	}
	s, err := c.open(c.watch(tlsCertificate(dsk, slices.Concat([][]byte{e.Certificate.Raw}, ders(e.Chain))...)))
	if err != nil {
		return err
	}
	defer c.closeSession()
	issuers, err := c.issuers(ctx, s)
	if err != nil {
		return err
	}
	var cert *x509.Certificate
	err = c.ask(ctx, "renewed certificate", func(ctx context.Context) (err error) {
		cert, err = s.est.Reenrol(ctx, "", csr)
		return err
	})
	var renewed certified
	if err == nil {
		if renewed, err = c.accepted(cert, issuers); err == nil && !cert.NotAfter.After(e.Certificate.NotAfter) {
			err = fmt.Errorf("%w: %s, and the present one %s", ErrNotNewer,
				cert.NotAfter.UTC().Format(time.RFC3339), e.Certificate.NotAfter.UTC().Format(time.RFC3339))
		}
	}
	if isBadCSR(err) || errors.Is(err, ErrNotNewer) { // the same request would get the same answer for ever
		e.renewal = nil
		if err := c.putEnrolment(ctx, e); err != nil {
			c.log.LogAttrs(ctx, slog.LevelWarn, "refused renewal stays stored", slog.Any("error", err))
		}
	}
	if err != nil {
		return err
	}
	renewed.renews = true
	e.next, e.renewal = &renewed, nil
	return c.putEnrolment(ctx, e)
}

// renewal is a request to renew a certificate.
type renewal struct {
	csr []byte   // DER
	of  [32]byte // SHA-256 of the certificate that it renews
}

// renewalCSR returns the stored request if it renews the present certificate
// over that key; otherwise it makes one and stores it. Subject and SAN are those
// of the present certificate.
func (c *Client) renewalCSR(ctx context.Context, e *enrolled, key crypto.Signer) ([]byte, error) {
	of := sha256.Sum256(e.Certificate.Raw)
	if r := e.renewal; r != nil && r.of == of && asksFor(r.csr, e.Certificate, key) {
		return r.csr, nil
	}
	template := &x509.CertificateRequest{RawSubject: e.Certificate.RawSubject, SignatureAlgorithm: signatureAlgorithm(key)}
	if san, ok := subjectAltName(e.Certificate.Extensions); ok {
		template.ExtraExtensions = []pkix.Extension{san}
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		return nil, fmt.Errorf("make the CSR: %w", err)
	}
	e.renewal = &renewal{csr, of}
	return csr, c.putEnrolment(ctx, e)
}

// asksFor reports whether the CSR is for another certificate like cert, over that
// key.
func asksFor(csr []byte, cert *x509.Certificate, key crypto.Signer) bool {
	r, err := x509.ParseCertificateRequest(csr)
	return err == nil && bytes.Equal(r.RawSubject, cert.RawSubject) && samePublicKey(r.PublicKey, key.Public())
}

var oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17} // RFC 5280 section 4.2.1.6

func subjectAltName(extensions []pkix.Extension) (pkix.Extension, bool) {
	at := slices.IndexFunc(extensions, func(e pkix.Extension) bool { return e.Id.Equal(oidSubjectAltName) })
	if at < 0 {
		return pkix.Extension{}, false
	}
	return extensions[at], true
}

// tryNext puts the new certificate in force once it is shown to work: the
// connection details are asked for with it, and in TLS 1.3 it is the answer, not
// the handshake, that says whether a certificate was accepted.
func (c *Client) tryNext(ctx context.Context, e *enrolled, key crypto.Signer) error {
	n := e.next
	if n.connection == nil {
		id := c.watch(tlsCertificate(key, slices.Concat([][]byte{n.certificate.Raw}, ders(n.chain))...))
		conn, err := c.connectionBy(ctx, id)
		if err != nil {
			return err
		}
		if err := new(Enrolment).connect(conn); err != nil {
			return err
		}
		n.connection = conn
	}
	if !e.certifies(key) { // a new key: what is stored has to name it before it is the device's
		if err := c.putEnrolment(ctx, e); err != nil {
			return err
		}
		if err := c.keys.(keystore.Rotator).Commit(ctx, keystore.Device); err != nil {
			return fmt.Errorf("put the new key %s in its place: %w", keystore.Device, err)
		}
	}
	if err := e.arrive(n.connection); err != nil {
		return err
	}
	if err := c.putEnrolment(ctx, e); err != nil {
		return err
	}
	// The CSR of the last Enrol would get the certificate of then.
	return c.delete(ctx, recordCSR)
}

// connectionBy asks for the connection details, presenting id.
func (c *Client) connectionBy(ctx context.Context, id *tls.Certificate) (*api.Connection, error) {
	s, err := c.open(id)
	if err != nil {
		return nil, err
	}
	defer c.closeSession()
	var conn api.Connection
	err = c.ask(ctx, "connection details", func(ctx context.Context) (err error) {
		conn, err = s.api.Connection(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &conn, nil
}

// discardStaged gives up the new key of a renewal that has not ended.
func (c *Client) discardStaged(ctx context.Context) error {
	rotator, ok := c.keys.(keystore.Rotator)
	if !ok {
		return nil
	}
	if err := rotator.Discard(ctx, keystore.Device); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return fmt.Errorf("give up the staged key %s: %w", keystore.Device, err)
	}
	return nil
}

// The share of a certificate's lifetime after which it is renewed.
const (
	defaultRenewal = 2.0 / 3
	renewalSpread  = 1.0 / 3 // of the lifetime, within which a fleet's devices spread
	latestRenewal  = 0.95
)

// renewAt returns when the certificate is due to be renewed. Devices that were
// enrolled together do not come together: each has a moment of its own, which
// its DeviceID decides, and another one for each of its certificates. With the
// same for all, devices that poll once a day would come after the same number of
// days each time, and gather.
func (c *Client) renewAt(cert *x509.Certificate) time.Time {
	sum := sha256.Sum256(fmt.Appendf(nil, "renewal of %s since %d", c.id, cert.NotBefore.Unix()))
	place := float64(binary.BigEndian.Uint64(sum[:8])>>11) / (1 << 53) // 0 to 1
	share := min(c.renewShare+renewalSpread*(place-0.5), latestRenewal)
	return cert.NotBefore.Add(time.Duration(max(share, 0) * float64(cert.NotAfter.Sub(cert.NotBefore))))
}

// presented is the enrolment as an application gets it.
func (c *Client) presented(e *enrolled) *Enrolment {
	e.RenewAt = c.renewAt(e.Certificate)
	return &e.Enrolment
}
