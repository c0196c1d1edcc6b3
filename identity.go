package quarklink

import (
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"math/big"
	"slices"
	"sync/atomic"
	"time"

	"github.com/quarklink-go/quarklink/keystore"
)

// identitySession is the session that shows the device's self-signed identity
// certificate.
func (c *Client) identitySession() (*session, error) {
	if c.identity == nil {
		id, err := c.selfSigned()
		if err != nil {
			return nil, fmt.Errorf("make the identity certificate: %w", err)
		}
		c.identity = id
	}
	return c.open(c.identity)
}

// The identity certificate says only which key its holder has, so its validity
// is that of RFC 5280 section 4.1.2.5 for "no well-defined expiration", and a
// device whose clock is wrong still has one.
var (
	identityFrom = time.Date(1970, 1, 1, 0, 0, 0, 0, time.UTC)
	identityTo   = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
)

func (c *Client) selfSigned() (*tls.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber:       big.NewInt(1),
		Subject:            pkix.Name{CommonName: string(c.id)},
		NotBefore:          identityFrom,
		NotAfter:           identityTo,
		KeyUsage:           x509.KeyUsageDigitalSignature,
		ExtKeyUsage:        []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		SignatureAlgorithm: signatureAlgorithm(c.esk),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, c.esk.Public(), c.esk)
	if err != nil {
		return nil, err
	}
	return c.watch(tlsCertificate(c.esk, der)), nil
}

// watch notes how signing with the certificate's key fails, of which crypto/tls
// and net/http leave only the text. A transport of the caller's gets the key as
// the key store returned it.
func (c *Client) watch(cert *tls.Certificate) *tls.Certificate {
	if c.bringsTrust() {
		return cert
	}
	cert.PrivateKey = watchedSigner{cert.PrivateKey.(crypto.Signer), &c.signing}
	return cert
}

type watchedSigner struct {
	crypto.Signer
	failed *atomic.Pointer[error]
}

func (s watchedSigner) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	signature, err := s.Signer.Sign(random, digest, opts)
	if err != nil {
		s.failed.Store(&err)
	}
	return signature, err
}

// tlsCertificate pairs a signer with its certificate and those that follow it.
func tlsCertificate(signer crypto.Signer, chain ...[]byte) *tls.Certificate {
	cert := &tls.Certificate{Certificate: chain, PrivateKey: signer}
	if r, ok := signer.(keystore.Restricted); ok {
		for _, s := range r.SignatureSchemes() {
			cert.SupportedSignatureAlgorithms = append(cert.SupportedSignatureAlgorithms, tls.SignatureScheme(s))
		}
	}
	return cert
}

var certificateAlgorithms = map[tls.SignatureScheme]x509.SignatureAlgorithm{
	tls.ECDSAWithP256AndSHA256: x509.ECDSAWithSHA256,
	tls.ECDSAWithP384AndSHA384: x509.ECDSAWithSHA384,
	tls.ECDSAWithP521AndSHA512: x509.ECDSAWithSHA512,
	tls.PKCS1WithSHA256:        x509.SHA256WithRSA,
	tls.PKCS1WithSHA384:        x509.SHA384WithRSA,
	tls.PKCS1WithSHA512:        x509.SHA512WithRSA,
	tls.PSSWithSHA256:          x509.SHA256WithRSAPSS,
	tls.PSSWithSHA384:          x509.SHA384WithRSAPSS,
	tls.PSSWithSHA512:          x509.SHA512WithRSAPSS,
	tls.Ed25519:                x509.PureEd25519,
}

// signatureAlgorithm returns how the signer signs certificates and CSRs:
// crypto/x509's way for its key, unless it is Restricted. Then it is PKCS #1
// v1.5 if it makes that, which every authority can verify, and else its own
// first choice.
func signatureAlgorithm(signer crypto.Signer) x509.SignatureAlgorithm {
	r, ok := signer.(keystore.Restricted)
	if !ok {
		return x509.UnknownSignatureAlgorithm
	}
	schemes := r.SignatureSchemes()
	if slices.Contains(schemes, uint16(tls.PKCS1WithSHA256)) {
		return x509.SHA256WithRSA
	}
	for _, s := range schemes {
		if a, ok := certificateAlgorithms[tls.SignatureScheme(s)]; ok {
			return a
		}
	}
	return x509.UnknownSignatureAlgorithm
}
