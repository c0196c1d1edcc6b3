package est

import (
	"crypto/x509"
	encoding_asn1 "encoding/asn1"
	"errors"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

var (
	oidData       = encoding_asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1} // RFC 5652 section 4
	oidSignedData = encoding_asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2} // RFC 5652 section 5.1

	tag0 = asn1.Tag(0).Constructed().ContextSpecific()
	tag1 = asn1.Tag(1).Constructed().ContextSpecific()
)

// ParseCertsOnly reads the certificates of a certs-only CMS message (RFC 7030
// section 4.1.3, RFC 5652 section 5): a SignedData of version 1, in DER, that
// has X.509 certificates and nothing else: no content (absent or an empty OCTET
// STRING), no CRLs (absent or an empty set), no digest algorithms, no signers,
// nothing behind it. DER holds all the way down, into the certificates too: some
// of what BER allows there package x509 would not notice. The certificates, at
// least one, are returned in the order of the message; nothing is said of
// whether they are any good.
//
// The error names the rule that was broken. It wraps no sentinel.
func ParseCertsOnly(der []byte) ([]*x509.Certificate, error) {
	input := cryptobyte.String(der)
	var contentInfo, explicit, signedData, certificates, set cryptobyte.String
	var oid encoding_asn1.ObjectIdentifier
	if !input.ReadASN1(&contentInfo, asn1.SEQUENCE) {
		return nil, errors.New("not a CMS message in DER")
	}
	if !input.Empty() {
		return nil, errors.New("CMS message followed by other bytes")
	}
	if !isDER(contentInfo, maxDepth) {
		return nil, errors.New("CMS message is not DER throughout")
	}
	if !contentInfo.ReadASN1ObjectIdentifier(&oid) || !oid.Equal(oidSignedData) {
		return nil, errors.New("CMS message is not SignedData")
	}
	if !contentInfo.ReadASN1(&explicit, tag0) || !contentInfo.Empty() ||
		!explicit.ReadASN1(&signedData, asn1.SEQUENCE) || !explicit.Empty() {
		return nil, errors.New("malformed CMS ContentInfo")
	}
	var version int64
	if !signedData.ReadASN1Integer(&version) || version != 1 {
		return nil, errors.New("CMS SignedData is not of version 1")
	}
	if !signedData.ReadASN1(&set, asn1.SET) || !set.Empty() {
		return nil, errors.New("CMS SignedData has digest algorithms, so it is not certs-only")
	}
	if err := readNoContent(&signedData); err != nil {
		return nil, err
	}
	if !signedData.ReadASN1(&certificates, tag0) || certificates.Empty() {
		return nil, errors.New("CMS SignedData has no certificates")
	}
	if !signedData.ReadOptionalASN1(&set, nil, tag1) || !set.Empty() {
		return nil, errors.New("CMS SignedData has CRLs, so it is not certs-only")
	}
	if !signedData.ReadASN1(&set, asn1.SET) || !set.Empty() {
		return nil, errors.New("CMS SignedData has signers, so it is not certs-only")
	}
	if !signedData.Empty() {
		return nil, errors.New("malformed CMS SignedData")
	}
	return parseCertificates(certificates)
}

// maxDepth is how deep elements may nest. A certificate needs eight levels or so.
const maxDepth = 32

// isDER checks the tags and lengths of all elements in s and, where they are
// constructed, of those in them.
func isDER(s cryptobyte.String, depth int) bool {
	const constructed, classes = 0x20, 0xc0
	for !s.Empty() {
		var content cryptobyte.String
		var tag asn1.Tag
		if !s.ReadAnyASN1(&content, &tag) {
			return false
		}
		if tag&constructed == 0 {
			continue
		}
		// A string in pieces is BER (X.690 section 10.2).
		if tag&classes == 0 && tag != asn1.SEQUENCE && tag != asn1.SET {
			return false
		}
		if depth == 0 || !isDER(content, depth-1) {
			return false
		}
	}
	return true
}

// readNoContent reads an EncapsulatedContentInfo that holds nothing.
func readNoContent(in *cryptobyte.String) error {
	var info, explicit, content cryptobyte.String
	var oid encoding_asn1.ObjectIdentifier
	if !in.ReadASN1(&info, asn1.SEQUENCE) || !info.ReadASN1ObjectIdentifier(&oid) || !oid.Equal(oidData) {
		return errors.New("content type of CMS SignedData is not data")
	}
	if info.Empty() {
		return nil
	}
	if !info.ReadASN1(&explicit, tag0) || !info.Empty() ||
		!explicit.ReadASN1(&content, asn1.OCTET_STRING) || !explicit.Empty() || !content.Empty() {
		return errors.New("CMS SignedData has content, so it is not certs-only")
	}
	return nil
}

// parseCertificates reads the members of a CertificateSet. The kinds other than
// an X.509 certificate have a tag of their own.
func parseCertificates(in cryptobyte.String) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for !in.Empty() {
		var der cryptobyte.String
		if !in.ReadASN1Element(&der, asn1.SEQUENCE) {
			return nil, fmt.Errorf("certificate %d of the CMS message is not an X.509 certificate in DER", len(certs)+1)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("certificate %d of the CMS message: %w", len(certs)+1, err)
		}
		certs = append(certs, cert)
	}
	return certs, nil
}
