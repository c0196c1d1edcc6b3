package quarklink

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"

	"github.com/quarklink-go/quarklink/internal/api"
	"github.com/quarklink-go/quarklink/internal/est"
	"github.com/quarklink-go/quarklink/internal/problem"
	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/store"
)

// Enrol has the device key certified and learns where to connect with it. It
// makes the device key if it is absent and the KeyStore is a
// keystore.Generator, and replaces one that is damaged if the KeyStore is a
// keystore.Rotator.
//
// The steps: with the identity certificate it asks for a temporary certificate;
// with that it fetches the issuing certificates, has the device key certified,
// and fetches the connection details. The certificate is stored before the
// details are fetched, with what verified it. After a power cut at any instant
// the next Enrol carries on with the same CSR, for which the instance returns
// the same certificate; so does an Enrol that was not called for, which writes
// nothing. A CSR that the instance refuses (bad-csr) is dropped, so that the
// next Enrol makes another.
//
// What was enrolled before serves until the new certificate and its connection
// details are stored. If the details do not come it serves on, unless its
// certificate has expired or its key is gone: then the new certificate serves
// with the old details. Until they come Status.HasEnrolment is false.
//
// Among the errors: ErrDeviceDoesNotExist and ErrDeviceRevoked as the instance
// says, ErrCACerts for issuing certificates or a device certificate that does
// not chain to them, ErrClock, ErrCommunication, ErrStorage, ErrNotInitialised. While the
// instance has not decided yet (HTTP 202) the error is ErrValueNotAvailable: an
// Enrol after the time of RetryAfter sends the same request, also after a
// restart. A device certificate that is a CA, names another subject than the
// DeviceID or is not for client authentication is refused.
func (c *Client) Enrol(ctx context.Context) (*Enrolment, error) {
	var done *Enrolment
	err := c.run(ctx, "enrol", func(ctx context.Context) error {
		var err error
		done, err = c.enrol(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	return done, nil
}

func (c *Client) enrol(ctx context.Context) (*Enrolment, error) {
	dsk, err := c.deviceKey(ctx)
	if err != nil {
		return nil, err
	}
	if dsk, err = c.replaceRevoked(ctx, dsk); err != nil {
		return nil, err
	}
	csr, err := c.deviceCSR(ctx, dsk)
	if err != nil {
		return nil, err
	}
	temporary, err := c.temporaryCertificate(ctx)
	if err != nil {
		return nil, err
	}
	s, err := c.open(temporary)
	if err != nil {
		return nil, err
	}
	// The temporary certificate is in memory only, and so is its connection.
	defer c.closeSession()

	issuers, err := c.issuers(ctx, s)
	if err != nil {
		return nil, err
	}
	certificate, err := c.certify(ctx, s, csr, issuers)
	if err != nil {
		return nil, err
	}
	e, err := c.before(ctx)
	if err != nil {
		return nil, err
	}
	e.accept(certificate, e.certifies(dsk) && !e.revoked && !c.expired(e.Certificate))
	if err := c.putAccepted(ctx, e); err != nil {
		return nil, err
	}
	if err := c.whereTo(ctx, s, e); err != nil {
		return nil, err
	}
	c.log.LogAttrs(ctx, slog.LevelInfo, "enrolled", slog.Time("until", e.Certificate.NotAfter))
	return c.presented(e), nil
}

// deviceKey opens the device key, or makes it. A damaged one is replaced: it is
// not the device's identity, and another is certified as well. A key store that
// does not answer now, or whose secret is wrong, is no damage.
func (c *Client) deviceKey(ctx context.Context) (crypto.Signer, error) {
	dsk, err := c.key(ctx, keystore.Device)
	if !errors.Is(err, store.ErrDamaged) {
		return dsk, err
	}
	rotator, ok := c.keys.(keystore.Rotator)
	if !ok {
		return nil, fmt.Errorf("%w; the key store cannot replace it", err)
	}
	c.log.LogAttrs(ctx, slog.LevelWarn, "device key is damaged and is replaced by a new one", slog.Any("error", err))
	dsk, err = rotator.Stage(ctx, keystore.Device)
	if err == nil {
		err = rotator.Commit(ctx, keystore.Device)
	}
	return checkKey("replace key", keystore.Device, dsk, err)
}

// replaceRevoked returns another device key if a certificate over this one was
// revoked and the key store can replace it: who revoked it may not trust the key
// any more.
func (c *Client) replaceRevoked(ctx context.Context, dsk crypto.Signer) (crypto.Signer, error) {
	e, err := c.stored(ctx)
	rotator, ok := c.keys.(keystore.Rotator)
	if !ok || err != nil || e == nil || !e.revoked || !e.certifies(dsk) {
		return dsk, nil
	}
	c.log.LogAttrs(ctx, slog.LevelInfo, "device key is replaced: its certificate was revoked")
	fresh, err := rotator.Stage(ctx, keystore.Device)
	if errors.Is(err, errors.ErrUnsupported) { // both roles share one key
		return dsk, nil
	}
	if err == nil {
		err = rotator.Commit(ctx, keystore.Device)
	}
	return checkKey("replace key", keystore.Device, fresh, err)
}

// deviceCSR returns the stored CSR if it is over the device key, so that an
// instance that has answered it before can answer the same again; otherwise it
// makes and stores one.
func (c *Client) deviceCSR(ctx context.Context, dsk crypto.Signer) ([]byte, error) {
	stored, err := readRecord(ctx, c.store, recordCSR, func(der []byte) (*[]byte, error) {
		_, err := x509.ParseCertificateRequest(der)
		return &der, err
	})
	switch {
	case errors.Is(err, errUnusable):
		c.log.LogAttrs(ctx, slog.LevelWarn, "stored CSR is damaged", slog.Any("error", err))
	case err != nil:
		return nil, err
	case stored != nil && c.requests(*stored, dsk):
		return *stored, nil
	}
	der, err := c.newCSR(dsk)
	if err != nil {
		return nil, fmt.Errorf("make the CSR: %w", err)
	}
	return der, c.put(ctx, recordCSR, der)
}

// requests reports whether a CSR asks for a certificate of this device over that
// key.
func (c *Client) requests(csr []byte, key crypto.Signer) bool {
	r, err := x509.ParseCertificateRequest(csr)
	return err == nil && r.Subject.CommonName == string(c.id) && samePublicKey(r.PublicKey, key.Public())
}

func (c *Client) newCSR(signer crypto.Signer) ([]byte, error) {
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:            pkix.Name{CommonName: string(c.id)},
		SignatureAlgorithm: signatureAlgorithm(signer),
	}, signer)
}

func samePublicKey(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// temporaryCertificate asks for a short-lived certificate over the enrolment
// key. Its issuer is none of the issuing certificates, so there is no chain to
// check: the pinned connection vouches for it.
func (c *Client) temporaryCertificate(ctx context.Context) (*tls.Certificate, error) {
	csr, err := c.temporaryRequest(ctx)
	if err != nil {
		return nil, fmt.Errorf("make the CSR for the temporary certificate: %w", err)
	}
	s, err := c.identitySession()
	if err != nil {
		return nil, err
	}
	var cert *x509.Certificate
	err = c.ask(ctx, "temporary certificate", func(ctx context.Context) (err error) {
		cert, err = s.est.Enrol(ctx, "temporary", csr)
		if isUndecided(err) {
			c.setWaiting(ctx, csr)
		}
		return err
	})
	if err == nil || isBadCSR(err) {
		c.temporaryCSR = nil
	}
	if isBadCSR(err) {
		c.setWaiting(ctx, nil)
	}
	if err != nil {
		return nil, err
	}
	if err := est.Fresh(cert, c.now()); err != nil {
		return nil, fmt.Errorf("temporary certificate: %w", err)
	}
	return c.watch(tlsCertificate(c.esk, cert.Raw)), nil
}

// temporaryRequest returns the CSR for a temporary certificate that the instance
// has not answered for good, or makes one.
func (c *Client) temporaryRequest(ctx context.Context) ([]byte, error) {
	if c.temporaryCSR != nil {
		return c.temporaryCSR, nil
	}
	if e, err := c.stored(ctx); err == nil && e != nil && c.requests(e.waiting, c.esk) {
		c.temporaryCSR = e.waiting
		return e.waiting, nil
	}
	csr, err := c.newCSR(c.esk)
	if err != nil {
		return nil, err
	}
	c.temporaryCSR = csr
	return csr, nil
}

// setWaiting notes the CSR for a temporary certificate that the instance has yet
// to decide on, so that the same is sent after a restart; nil: none. If that
// cannot be stored, it is remembered until the restart all the same.
func (c *Client) setWaiting(ctx context.Context, csr []byte) {
	e, err := c.stored(ctx)
	if err != nil || e == nil && csr == nil {
		return
	}
	if e == nil {
		e = new(enrolled)
	}
	e.waiting = csr
	if err := c.putEnrolment(ctx, e); err != nil {
		c.log.LogAttrs(ctx, slog.LevelWarn, "request for a temporary certificate is not stored", slog.Any("error", err))
	}
}

// isUndecided: the instance will answer the same request later.
func isUndecided(err error) bool {
	var answer *problem.Error
	return errors.As(err, &answer) && answer.Status == http.StatusAccepted
}

// isBadCSR: the instance will never take this request.
func isBadCSR(err error) bool {
	var answer *problem.Error
	return errors.As(err, &answer) && answer.Name() == problem.BadCSR
}

// issuers fetches the issuing certificates. They stay in memory: what verifies
// the device certificate is stored with it, and after a cut they are fetched
// again.
func (c *Client) issuers(ctx context.Context, s *session) ([]*x509.Certificate, error) {
	var cacerts []*x509.Certificate
	err := c.ask(ctx, "issuing certificates", func(ctx context.Context) (err error) {
		cacerts, err = s.est.CACerts(ctx)
		return err
	})
	return cacerts, err
}

// certify has the CSR certified, and returns a certificate that is known to
// chain to the issuing certificates.
func (c *Client) certify(ctx context.Context, s *session, csr []byte, issuers []*x509.Certificate) (certified, error) {
	var cert *x509.Certificate
	err := c.ask(ctx, "device certificate", func(ctx context.Context) (err error) {
		cert, err = s.est.Enrol(ctx, "", csr)
		return err
	})
	if isBadCSR(err) { // it would be sent for ever
		c.log.LogAttrs(ctx, slog.LevelWarn, "CSR is refused; the next Enrol makes another", slog.Any("error", err))
		if err := c.delete(ctx, recordCSR); err != nil {
			c.log.LogAttrs(ctx, slog.LevelWarn, "refused CSR stays stored", slog.Any("error", err))
		}
	}
	if err != nil {
		return certified{}, err
	}
	return c.accepted(cert, issuers)
}

// accepted checks a device certificate that was issued just now.
func (c *Client) accepted(cert *x509.Certificate, issuers []*x509.Certificate) (certified, error) {
	path, err := est.Chain(cert, issuers, c.now())
	if err != nil {
		return certified{}, fmt.Errorf("device certificate: %w", err)
	}
	if err := checkProfile(cert, c.id); err != nil {
		return certified{}, fmt.Errorf("device certificate: %w", err)
	}
	verifiers := slices.Clone(path.Chain)
	if path.Root != nil {
		verifiers = append(verifiers, path.Root)
	}
	c.provedSince(cert.NotBefore)
	return certified{certificate: cert, chain: path.Chain, cacerts: verifiers}, nil
}

var oidCommonName = asn1.ObjectIdentifier{2, 5, 4, 3} // RFC 5280 appendix A.1

// checkProfile refuses a device certificate that no QuarkLink instance issues.
func checkProfile(cert *x509.Certificate, id DeviceID) error {
	var names []any
	for _, attribute := range cert.Subject.Names {
		if attribute.Type.Equal(oidCommonName) {
			names = append(names, attribute.Value)
		}
	}
	switch {
	case cert.IsCA:
		return errors.New("it is that of a CA, and a device is none")
	case len(names) != 1 || names[0] != string(id):
		return fmt.Errorf("its subject is %.200q, and not CN=%s, the DeviceID", cert.Subject.String(), id)
	case !slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageClientAuth):
		return errors.New("clientAuth is missing in its extended key usages, so no hub would take it")
	}
	return nil
}

// before returns what is enrolled with the instance in use, to be carried on; it
// is empty if there is nothing, or nothing that can be used.
func (c *Client) before(ctx context.Context) (*enrolled, error) {
	i, err := c.useInstance()
	if err != nil {
		return nil, err
	}
	e, err := c.stored(ctx)
	if err != nil {
		c.log.LogAttrs(ctx, slog.LevelWarn, "stored enrolment is damaged and is replaced", slog.Any("error", err))
	}
	if e == nil || !e.belongsTo(i) {
		e = new(enrolled)
	}
	e.instance, e.waiting = boundTo(i), nil
	return e, nil
}

// putAccepted stores a certificate whose connection details have not come. Where
// there is no room for it beside the old one it takes that one's place.
func (c *Client) putAccepted(ctx context.Context, e *enrolled) error {
	err := c.putEnrolment(ctx, e)
	if err != nil && e.next != nil {
		e.replace(*e.next)
		err = c.putEnrolment(ctx, e)
	}
	return err
}

func (c *Client) expired(cert *x509.Certificate) bool { return c.now().After(cert.NotAfter) }

// whereTo fetches and stores the connection details.
func (c *Client) whereTo(ctx context.Context, s *session, e *enrolled) error {
	var conn api.Connection
	err := c.ask(ctx, "connection details", func(ctx context.Context) (err error) {
		conn, err = s.api.Connection(ctx)
		return err
	})
	if err != nil {
		return err
	}
	if err := e.arrive(&conn); err != nil {
		return err
	}
	return c.putEnrolment(ctx, e)
}
