package est

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"time"
)

// clockSkew is how much later than the device's the server's clock may be. Some
// servers certify from the very second of the request.
const clockSkew = 5 * time.Minute

// Chain verifies that leaf was issued under cacerts, at the time now, and
// returns the certificates to send after it: the intermediates from its issuer
// upwards, without the root; none if the root issued it.
//
// The self-signed ones among cacerts are the roots; the others link to them, in
// any order. If none is self-signed, each is a trust anchor, and the one that
// is used is sent too, since the peer may know only its issuer. Whatever signs must
// be a CA (basicConstraints CA:TRUE). Extended key usages are not looked at: the
// leaf is the device's own, and its peers decide. A leaf that becomes valid
// within five minutes counts as valid. If there are several ways up, the
// shortest is taken.
//
// Every error is [ErrCACerts].
func Chain(leaf *x509.Certificate, cacerts []*x509.Certificate, now time.Time) ([]*x509.Certificate, error) {
	if ahead := leaf.NotBefore.Sub(now); ahead > 0 && ahead <= clockSkew {
		now = leaf.NotBefore
	}
	roots, intermediates := pools(cacerts)
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots:         roots,
		Intermediates: intermediates,
		CurrentTime:   now,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return nil, fmt.Errorf("%w: certificate issued by %.128q does not chain to the %d CA certificates: %w",
			ErrCACerts, leaf.Issuer.String(), len(cacerts), err)
	}
	var best []*x509.Certificate
	for _, chain := range chains {
		if issuedByCAs(chain) && (best == nil || len(chain) < len(best)) {
			best = chain
		}
	}
	if best == nil {
		return nil, fmt.Errorf("%w: certificate was not issued by a CA", ErrCACerts)
	}
	if top := len(best) - 1; selfSigned(best[top]) {
		best = best[:top]
	}
	return best[1:], nil
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
