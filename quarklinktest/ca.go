package quarklinktest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"slices"
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

// rootName is the subject of each of the instance's roots. Their keys tell them apart.
const rootName = "quarklinktest instance root"

// pki is the keys and certificates of an instance.
type pki struct {
	root        *authority // of the server certificate: what devices pin
	server      tls.Certificate
	nextRoot    *authority // takes the place of root; nil: none was asked for
	names       []string   // for which server is valid, beside the usual ones
	issuingRoot *authority // above issuing
	issuing     *authority // issues device certificates
	temporary   *authority // issues temporary certificates; cacerts does not list it
	foreign     *authority // nobody's: for forgeries

	foreignServer tls.Certificate // as server, but issued by foreign
}

func newPKI(now time.Time) (*pki, error) {
	var p pki
	for _, a := range []struct {
		at     **authority
		name   string
		parent **authority
	}{
		{&p.root, rootName, nil},
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
	return &p, nil
}

// makeServer makes the server certificates, unless there is one for these names
// already.
func (p *pki) makeServer(now time.Time, names []string) (err error) {
	p.names = names
	all := append([]string{HostName, localhost, "127.0.0.1", "::1"}, names...)
	if p.server.Leaf == nil || !slices.Equal(namesOf(p.server.Leaf), namesOf(serverTemplate(now, all))) {
		if p.server, err = p.root.issueServer(now, all); err != nil {
			return fmt.Errorf("make the server certificate: %w", err)
		}
	}
	if p.foreignServer, err = p.foreign.issueServer(now, all); err != nil {
		return fmt.Errorf("make the foreign server certificate: %w", err)
	}
	return nil
}

func namesOf(cert *x509.Certificate) []string {
	names := slices.Clone(cert.DNSNames)
	for _, ip := range cert.IPAddresses {
		names = append(names, ip.String())
	}
	return names
}

// serverTemplate is a server certificate for host names and IP addresses.
func serverTemplate(now time.Time, names []string) *x509.Certificate {
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: names[0]},
		NotBefore:   now.Add(-backdated),
		NotAfter:    now.Add(authorityLifetime),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	return template
}

// issueServer issues a certificate with which its holder is a TLS server under
// these names.
func (a *authority) issueServer(now time.Time, names []string) (tls.Certificate, error) {
	key, err := newKey()
	if err != nil {
		return tls.Certificate{}, err
	}
	cert, err := a.issue(key.Public(), serverTemplate(now, names))
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}, nil
}

// HubCertificate makes a certificate with its key for an IoT hub of the caller's
// under these host names and IP addresses, at least one. The instance's root
// issues it, which is what a Policy whose Hub has no Roots tells devices to trust.
// The hub itself trusts [Server.IssuingCertificates], and learns from
// [Server.RevocationList] whom to refuse.
func (s *Server) HubCertificate(names ...string) (tls.Certificate, error) {
	if len(names) == 0 {
		return tls.Certificate{}, errors.New("quarklinktest: a hub certificate without a name")
	}
	cert, err := s.pki().root.issueServer(s.now(), names)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("quarklinktest: hub certificate: %w", err)
	}
	return cert, nil
}

// RevocationList returns the certificate revocation list (RFC 5280 section 5) of
// the first of [Server.IssuingCertificates], in DER: every device certificate
// that is revoked at this moment. It is valid for a day.
func (s *Server) RevocationList() ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	s.crlNumber++
	template := &x509.RevocationList{
		Number: big.NewInt(s.crlNumber), ThisUpdate: now.Add(-backdated), NextUpdate: now.Add(24 * time.Hour),
	}
	for _, i := range s.issued {
		if i.revoked && i.proves == byDevice {
			template.RevokedCertificateEntries = append(template.RevokedCertificateEntries,
				x509.RevocationListEntry{SerialNumber: i.cert.SerialNumber, RevocationTime: now})
		}
	}
	der, err := x509.CreateRevocationList(rand.Reader, template, s.pki().issuing.cert, s.pki().issuing.key)
	if err != nil {
		return nil, fmt.Errorf("quarklinktest: revocation list: %w", err)
	}
	return der, nil
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
	return a.sign(pub, template)
}

func (a *authority) sign(pub crypto.PublicKey, template *x509.Certificate) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, pub, a.key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// issuerOf returns the authority that signed a certificate.
func (p *pki) issuerOf(cert *x509.Certificate) (*authority, error) {
	for _, a := range p.authorities() {
		if cert.CheckSignatureFrom((*a).cert) == nil {
			return *a, nil
		}
	}
	return nil, fmt.Errorf("no issuer of %q here", cert.Subject)
}

func newKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }
