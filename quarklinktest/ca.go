package quarklinktest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"time"
)

const (
	// backdated is how long before its issue a certificate begins, for devices
	// whose clocks are slow.
	backdated = 5 * time.Minute
	// authorityLifetime outlasts whatever a test makes of the clock.
	authorityLifetime = 30 * 365 * 24 * time.Hour
	// temporaryLifetime is from beginning to end.
	temporaryLifetime = 24 * time.Hour
)

// pki is the keys and certificates of an instance.
type pki struct {
	root        *authority // of the server certificate: what devices pin
	server      tls.Certificate
	issuingRoot *authority // above issuing
	issuing     *authority // issues device certificates
	temporary   *authority // issues temporary certificates; in no list of ours
	foreign     *authority // nobody's: for forgeries
}

func newPKI(now time.Time) (*pki, error) {
	var p pki
	for _, a := range []struct {
		at     **authority
		name   string
		parent **authority
	}{
		{&p.root, "quarklinktest instance root", nil},
		{&p.issuingRoot, "quarklinktest issuing root", nil},
		{&p.issuing, "quarklinktest issuing", &p.issuingRoot},
		{&p.temporary, "quarklinktest temporary", nil},
		{&p.foreign, "quarklinktest foreign", nil},
	} {
		var parent *authority
		if a.parent != nil {
			parent = *a.parent
		}
		var err error
		if *a.at, err = newAuthority(a.name, parent, now); err != nil {
			return nil, fmt.Errorf("make %s: %w", a.name, err)
		}
	}
	return &p, p.makeServer(now)
}

func (p *pki) makeServer(now time.Time) error {
	key, err := newKey()
	if err != nil {
		return err
	}
	cert, err := p.root.issue(key.Public(), &x509.Certificate{
		Subject:     pkix.Name{CommonName: HostName},
		DNSNames:    []string{HostName, localhost},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
		NotBefore:   now.Add(-backdated),
		NotAfter:    now.Add(authorityLifetime),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		return fmt.Errorf("make the server certificate: %w", err)
	}
	p.server = tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}
	return nil
}

// authority is a certificate with its key.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// newAuthority makes an authority below parent, or a root if that is nil.
func newAuthority(name string, parent *authority, now time.Time) (*authority, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             now.Add(-backdated),
		NotAfter:              now.Add(authorityLifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	if parent == nil {
		parent = &authority{template, key}
	} else {
		template.MaxPathLenZero = true
	}
	cert, err := parent.issue(key.Public(), template)
	if err != nil {
		return nil, err
	}
	return &authority{cert, key}, nil
}

// issueClient issues a certificate with which its holder is a TLS client.
func (a *authority) issueClient(pub crypto.PublicKey, name string, from, to time.Time) (*x509.Certificate, error) {
	return a.issue(pub, &x509.Certificate{
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             from,
		NotAfter:              to,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	})
}

// issue fills in the serial number. No certificate outlives its issuer's.
func (a *authority) issue(pub crypto.PublicKey, template *x509.Certificate) (*x509.Certificate, error) {
	var serial [16]byte
	rand.Read(serial[:])
	serial[0] = serial[0]&0x7F | 0x40 // positive, and always of the same length
	template.SerialNumber = new(big.Int).SetBytes(serial[:])
	if template.NotAfter.After(a.cert.NotAfter) {
		template.NotAfter = a.cert.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, pub, a.key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func newKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }
