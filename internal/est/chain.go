package est

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/quarklink-go/quarklink/transport"
)

// clockSkew is how much later than the device's the server's clock may be. Some
// servers certify from the very second of the request.
const clockSkew = 5 * time.Minute

// Fresh checks that a certificate which the server has just issued is valid at
// the time now, or will be within five minutes. If it is not, and ever is, the
// device's clock is wrong: [transport.ErrClock]. Otherwise the error is
// [ErrNeverValid].
func Fresh(cert *x509.Certificate, now time.Time) error {
	switch {
	case cert.NotAfter.Before(cert.NotBefore):
		return fmt.Errorf("%w: from %s to %s", ErrNeverValid, utc(cert.NotBefore), utc(cert.NotAfter))
	case cert.NotBefore.Sub(now) > clockSkew, now.After(cert.NotAfter):
		return wrongClock(cert, now)
	}
	return nil
}

func wrongClock(cert *x509.Certificate, now time.Time) error {
	return fmt.Errorf("%w: it says %s, and a certificate that was issued just now is valid from %s to %s",
		transport.ErrClock, utc(now), utc(cert.NotBefore), utc(cert.NotAfter))
}

func utc(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// Path is how a leaf leads to its root.
type Path struct {
	// Chain is what to send after the leaf: the intermediates from its issuer
	// upwards, without the root; none if the root issued it.
	Chain []*x509.Certificate
	// Root is the self-signed certificate at the top; nil if there is none.
	Root *x509.Certificate
}

// Chain verifies that leaf, which the server has just issued, was issued under
// cacerts and is valid at the time now, and returns the path by which it was.
//
// The self-signed ones among cacerts are the roots; the others link to them, in
// any order. If none is self-signed, each is a trust anchor, and the one that
// is used is sent too, since the peer may know only its issuer. Whatever signs must
// be a CA (basicConstraints CA:TRUE). Extended key usages are not looked at: the
// leaf is the device's own, and its peers decide. A leaf that becomes valid
// within five minutes counts as valid. If there are several ways up, the
// shortest is taken.
//
// The error is [transport.ErrClock] if only the time is wrong, and else
// [ErrChain].
func Chain(leaf *x509.Certificate, cacerts []*x509.Certificate, now time.Time) (Path, error) {
	at := now
	if ahead := leaf.NotBefore.Sub(now); ahead > 0 && ahead <= clockSkew {
		at = leaf.NotBefore
	}
	roots, intermediates := pools(cacerts)
	verify := func(at time.Time) ([][]*x509.Certificate, error) {
		return leaf.Verify(x509.VerifyOptions{
			Roots:         roots,
			Intermediates: intermediates,
			CurrentTime:   at,
			KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
		})
	}
	chains, err := verify(at)
	if err != nil {
		if _, otherwise := verify(whenIssued(leaf, cacerts)); otherwise == nil {
			return Path{}, wrongClock(leaf, now)
		}
		return Path{}, fmt.Errorf("%w: its issuer is %.128q, and there are %d: %w", ErrChain, leaf.Issuer.String(), len(cacerts), err)
	}
	var best []*x509.Certificate
	for _, chain := range chains {
		if issuedByCAs(chain) && (best == nil || len(chain) < len(best)) {
			best = chain
		}
	}
	if best == nil {
		return Path{}, fmt.Errorf("%w: its issuer is not a CA", ErrChain)
	}
	if top := len(best) - 1; selfSigned(best[top]) {
		return Path{best[1:top], best[top]}, nil
	}
	return Path{best[1:], nil}, nil
}

// whenIssued returns a time at which leaf and the certificates it hangs on are
// all valid, if there is one: its first instant, or the last of theirs if it was
// dated back behind that.
func whenIssued(leaf *x509.Certificate, cacerts []*x509.Certificate) time.Time {
	at := leaf.NotBefore
	for _, cert := range cacerts {
		if cert.NotBefore.After(at) && !cert.NotBefore.After(leaf.NotAfter) {
			at = cert.NotBefore
		}
	}
	return at
}

// pools tells the roots among cacerts from the certificates that lead to them.
func pools(cacerts []*x509.Certificate) (roots, intermediates *x509.CertPool) {
	roots, intermediates = x509.NewCertPool(), x509.NewCertPool()
	found := false
	for _, cert := range cacerts {
		if selfSigned(cert) {
			roots.AddCert(cert)
			found = true
		} else {
			intermediates.AddCert(cert)
		}
	}
	if !found {
		return intermediates, nil
	}
	return roots, intermediates
}

// selfSigned is more than self-issued: of the certificates by which a CA
// changes its key (RFC 7030 section 4.1.3), two have its own name as issuer and
// are signed by its other key. SHA-1 will do here: nobody relies on what a root
// says of itself.
func selfSigned(cert *x509.Certificate) bool {
	return bytes.Equal(cert.RawSubject, cert.RawIssuer) &&
		cert.CheckSignature(cert.SignatureAlgorithm, cert.RawTBSCertificate, cert.Signature) == nil
}

// issuedByCAs tells that chain is more than the leaf, and that all above the
// leaf are CAs. Package x509 lets a root of version 1 pass, which cannot say.
func issuedByCAs(chain []*x509.Certificate) bool {
	for _, issuer := range chain[1:] {
		if !issuer.BasicConstraintsValid || !issuer.IsCA {
			return false
		}
	}
	return len(chain) > 1
}
