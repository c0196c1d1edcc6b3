package quarklinktest

import (
	"bytes"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"fmt"
	"mime"
	"net/http"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/quarklink-go/quarklink"
)

// minRSA is the least length of an RSA key that is certified, in bits.
const minRSA = 2048

func (s *Server) answerCACerts(q *request) (*answer, error) {
	return s.certificates(q, s.IssuingCertificates()...)
}

func (s *Server) answerTemporary(q *request) (*answer, error) {
	csr, err := readCSR(q)
	if err != nil {
		return nil, err
	}
	if id, err := quarklink.DeviceIDOf(csr.PublicKey); err != nil || id != q.device.id {
		return nil, refuse(http.StatusBadRequest, ProblemBadCSR, "a temporary certificate is over the enrolment key and no other")
	}
	from := s.now().Add(-backdated)
	cert, err := s.pki().temporary.issueClient(csr.PublicKey, string(q.device.id), from, from.Add(temporaryLifetime))
	if err != nil {
		return nil, err
	}
	s.remember(&issued{device: q.device, cert: cert, proves: byTemporary})
	return s.certificates(q, cert)
}

func (s *Server) answerEnrol(q *request) (*answer, error) {
	csr, err := readCSR(q)
	if err != nil {
		return nil, err
	}
	return s.certify(q, csr, [32]byte{})
}

// answerReenrol renews the certificate that the device presents (RFC 7030 section
// 4.2.2), over the same key or another.
func (s *Server) answerReenrol(q *request) (*answer, error) {
	csr, err := readCSR(q)
	if err != nil {
		return nil, err
	}
	old := q.cert.cert
	if !bytes.Equal(csr.RawSubject, old.RawSubject) || !bytes.Equal(sanOf(csr.Extensions), sanOf(old.Extensions)) {
		return nil, refuse(http.StatusBadRequest, ProblemBadCSR, "subject and subject alternative name are not those of the certificate presented")
	}
	return s.certify(q, csr, sha256.Sum256(old.Raw))
}

var oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// sanOf returns the subject alternative name, in DER; nil if there is none.
func sanOf(extensions []pkix.Extension) []byte {
	for _, e := range extensions {
		if e.Id.Equal(oidSubjectAltName) {
			return e.Value
		}
	}
	return nil
}

// certify issues a device certificate, which renews the one of that digest, if
// that is not zero. The same request for the same purpose gets the same
// certificate again.
func (s *Server) certify(q *request, csr *x509.CertificateRequest, renews [32]byte) (*answer, error) {
	d, now, digest := q.device, s.now(), sha256.Sum256(csr.Raw)
	for _, i := range d.issued {
		if i.csr == digest && i.renews == renews && i.valid(now) {
			return s.certificates(q, i.cert)
		}
	}
	lifetime := d.batch.Policy.Lifetime
	if lifetime == 0 {
		lifetime = defaultLifetime
	}
	cert, err := s.pki().issuing.issueClient(csr.PublicKey, string(d.id), now.Add(-backdated), now.Add(lifetime))
	if err != nil {
		return nil, err
	}
	i := &issued{device: d, cert: cert, proves: byDevice, csr: digest, renews: renews}
	s.remember(i)
	d.issued = append(d.issued, i)
	s.happened(Event{Kind: EventCertificate, DeviceID: d.id, Batch: d.batch.Name, Detail: cert.SerialNumber.Text(16)})
	if d.state == quarklink.StateNotEnrolled {
		d.state = quarklink.StateEnrolled
		s.happened(Event{Kind: EventDevice, DeviceID: d.id, Batch: d.batch.Name, State: d.state.String()})
	}
	if err := s.journal.writeDevice(d); err != nil {
		return nil, err
	}
	return s.certificates(q, cert)
}

// used retires the device certificates that are older than one that is in use:
// the device has it, and it works.
func (s *Server) used(i *issued) error {
	if i == nil || i.proves != byDevice {
		return nil
	}
	changed := false
	for _, older := range i.device.issued {
		if older == i {
			break
		}
		changed = changed || !older.retired
		older.retired = true
	}
	if !changed {
		return nil
	}
	return s.journal.writeDevice(i.device)
}

func (s *Server) remember(i *issued) { s.issued[sha256.Sum256(i.cert.Raw)] = i }

// readCSR reads the request of an enrolment (RFC 7030 section 4.2.1), which
// proves that its sender has the key.
func readCSR(q *request) (*x509.CertificateRequest, error) {
	if kind, _, err := mime.ParseMediaType(q.Header.Get("Content-Type")); err != nil || kind != "application/pkcs10" {
		return nil, refuse(http.StatusUnsupportedMediaType, "", "need a body of type application/pkcs10")
	}
	bad := func(what string, err error) error {
		return refuse(http.StatusBadRequest, ProblemBadCSR, fmt.Sprintf("%s: %v", what, err))
	}
	// White space anywhere (RFC 8951 section 2.1); base64 skips CR and LF itself.
	text := bytes.Map(func(r rune) rune {
		if r == ' ' || r == '\t' {
			return -1
		}
		return r
	}, q.body)
	der, err := base64.StdEncoding.Strict().AppendDecode(nil, text)
	if err != nil {
		return nil, bad("the body is not base64", err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, bad("the body is no certificate request", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, bad("the certificate request's signature", err)
	}
	if key, ok := csr.PublicKey.(*rsa.PublicKey); ok && key.N.BitLen() < minRSA {
		return nil, bad("the key", fmt.Errorf("%d bits, need %d", key.N.BitLen(), minRSA))
	}
	return csr, nil
}

// certificates answers with certificates, or what a fault makes of them.
func (s *Server) certificates(q *request, certs ...*x509.Certificate) (*answer, error) {
	if q.forge != nil {
		var err error
		if certs, err = q.forge(s, certs); err != nil {
			return nil, err
		}
	}
	der, err := certsOnly(certs)
	if err != nil {
		return nil, err
	}
	return content("application/pkcs7-mime; smime-type=certs-only", wrap(base64.StdEncoding.AppendEncode(nil, der))), nil
}

// wrap breaks text into lines of the width of MIME's (RFC 2045 section 6.8). They
// end in LF alone, which MIME decoders and other people's EST clients take as
// well, and so does base64 -d, which refuses CR.
func wrap(text []byte) []byte {
	const width = 76
	var lines []byte
	for len(text) > 0 {
		n := min(width, len(text))
		lines = append(append(lines, text[:n]...), '\n')
		text = text[n:]
	}
	return lines
}

var (
	oidData       = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1} // RFC 5652 section 4
	oidSignedData = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2} // RFC 5652 section 5.1
)

// certsOnly encodes a CMS message that only carries certificates (RFC 7030
// section 4.1.3): a SignedData without content, digest algorithms and signers.
func certsOnly(certs []*x509.Certificate) ([]byte, error) {
	context0 := cbasn1.Tag(0).Constructed().ContextSpecific()
	empty := func(*cryptobyte.Builder) {}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oidSignedData)
		b.AddASN1(context0, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1Int64(1) // version
				b.AddASN1(cbasn1.SET, empty)
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(oidData) })
				b.AddASN1(context0, func(b *cryptobyte.Builder) {
					for _, cert := range certs {
						b.AddBytes(cert.Raw)
					}
				})
				b.AddASN1(cbasn1.SET, empty)
			})
		})
	})
	return b.Bytes()
}
