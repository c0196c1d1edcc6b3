package atecc608

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"strings"
	"time"
)

// Where a TNGTLS part keeps its certificates (cryptoauthlib,
// app/tng/tngtls_cert_def_*.c).
const (
	tngDeviceKey       = 0
	tngDeviceCert      = 10
	tngSignerPublicKey = 11
	tngSignerCert      = 12
)

// Certificates returns the two certificates, in DER, that Microchip put into a
// Trust&GO TNGTLS part: the device's, for the key in slot 0, and that of the
// signer who issued it, whose own issuer is the "Crypto Authentication Root CA
// 002". The chip holds them compressed; they are rebuilt bit by bit, and the
// device's is verified with the signer's key. Nothing says that the signer is to
// be trusted: verify it with the root, which Microchip publishes.
//
// The error is fs.ErrNotExist if the chip holds no such certificates, and
// errors.ErrUnsupported if they are of another kind than TNGTLS's.
func (c *Chip) Certificates(ctx context.Context) (device, signer []byte, err error) {
	err = c.do(ctx, "certificates", repeatable, func(l *call) error {
		if err := l.checkSlot(tngDeviceKey); err != nil {
			return err
		}
		var slots [3][compressedSize]byte
		for i, slot := range [...]int{tngDeviceCert, tngSignerCert, tngSignerPublicKey} {
			if err := l.readSlot(slot, 0, slots[i][:]); err != nil {
				return err
			}
		}
		deviceKey, err := l.publicKey(tngDeviceKey)
		if err != nil {
			return err
		}
		signerKey, err := storedPublicKey(slots[2][:])
		if err != nil {
			return err
		}
		device, signer, err = tngCertificates(slots[0][:], slots[1][:], deviceKey, signerKey, l.config.Serial())
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	return device, signer, nil
}

// storedPublicKey reads a public key as a slot holds it: X and Y, each after
// four bytes of padding.
func storedPublicKey(slot []byte) (*ecdsa.PublicKey, error) {
	key, err := parsePublic(append(append([]byte(nil), slot[4:36]...), slot[40:72]...))
	if err != nil {
		return nil, fmt.Errorf("no signer's public key in slot %d: %w", tngSignerPublicKey, fs.ErrNotExist)
	}
	return key, nil
}

// tngCertificates rebuilds both certificates and verifies the device's.
func tngCertificates(device, signer []byte, deviceKey, signerKey *ecdsa.PublicKey, serial [9]byte) (deviceDER, signerDER []byte, err error) {
	d, err := parseCompressed(device, tngDeviceTemplate)
	if err != nil {
		return nil, nil, fmt.Errorf("device certificate in slot %d: %w", tngDeviceCert, err)
	}
	s, err := parseCompressed(signer, tngSignerTemplate)
	if err != nil {
		return nil, nil, fmt.Errorf("signer certificate in slot %d: %w", tngSignerCert, err)
	}
	deviceTBS, err := d.deviceTBS(deviceKey, signerKey, serial)
	if err != nil {
		return nil, nil, err
	}
	signerTBS, err := s.signerTBS(signerKey)
	if err != nil {
		return nil, nil, err
	}
	digest := sha256.Sum256(deviceTBS)
	r, v := d.signature()
	if !ecdsa.Verify(signerKey, digest[:], r, v) {
		return nil, nil, fmt.Errorf("the device certificate is not by the signer: %w", ErrSignature)
	}
	if deviceDER, err = d.certificate(deviceTBS); err != nil {
		return nil, nil, err
	}
	if signerDER, err = s.certificate(signerTBS); err != nil {
		return nil, nil, err
	}
	return deviceDER, signerDER, nil
}

// compressed is Microchip's compressed certificate (application note AN-8974):
// what differs from one certificate of a template to the next.
type compressed [compressedSize]byte

// Layout of a compressed certificate.
const (
	compressedSize   = 72
	compressedDates  = 64 // three bytes: issued, and years until it expires
	compressedSigner = 67 // two bytes
	compressedIDs    = 69 // template, chain
	compressedSource = 70 // of the serial number, format version

	tngSignerTemplate = 1
	tngDeviceTemplate = 2
	serialFromKey     = 0xa // the serial number is a hash of public key and dates
)

func parseCompressed(b []byte, template byte) (*compressed, error) {
	c := compressed(b)
	switch ids, source := c[compressedIDs], c[compressedSource]; {
	case ids == 0xff || ids == 0 && source == 0:
		return nil, fs.ErrNotExist
	case ids != template<<4 || source != serialFromKey<<4:
		return nil, fmt.Errorf("template %d, chain %d, source and version %02x, not those of a TNGTLS part: %w", ids>>4, ids&0xf, source, errors.ErrUnsupported)
	}
	return &c, nil
}

func (c *compressed) signature() (r, s *big.Int) {
	return new(big.Int).SetBytes(c[:32]), new(big.Int).SetBytes(c[32:64])
}

// validity decodes the dates: five bits of year since 2000, four of month, five
// of day, five of hour, five of years.
func (c *compressed) validity() (from, until time.Time) {
	bits := int(c[compressedDates])<<16 | int(c[compressedDates+1])<<8 | int(c[compressedDates+2])
	year, month, day, hour, years := 2000+bits>>19, bits>>15&0xf, bits>>10&0x1f, bits>>5&0x1f, bits&0x1f
	from = time.Date(year, time.Month(month), day, hour, 0, 0, 0, time.UTC)
	if years == 0 { // never
		return from, time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
	}
	return from, time.Date(year+years, time.Month(month), day, hour, 0, 0, 0, time.UTC)
}

func (c *compressed) signerName() string {
	return "Crypto Authentication Signer " + strings.ToUpper(hex.EncodeToString(c[compressedSigner:compressedSigner+2]))
}

// serialNumber is the first half of a hash, as a positive number of 16 bytes.
func (c *compressed) serialNumber(point []byte) []byte {
	h := sha256.New()
	h.Write(point[1:])
	h.Write(c[compressedDates : compressedDates+3])
	n := h.Sum(nil)[:16]
	n[0] = n[0]&0x7f | 0x40
	return n
}

// Pieces of the certificates in DER that never differ.
const (
	derVersion3      = "\xa0\x03\x02\x01\x02"
	derECDSASHA256   = "\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02"                                     // RFC 5758
	derP256          = "\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07" // RFC 5480
	derOrganization  = "\x30\x1f\x06\x03\x55\x04\x0a\x0c\x18Microchip Technology Inc"
	derNotCA         = "\x30\x0c\x06\x03\x55\x1d\x13\x01\x01\xff\x04\x02\x30\x00"
	derCA            = "\x30\x12\x06\x03\x55\x1d\x13\x01\x01\xff\x04\x08\x30\x06\x01\x01\xff\x02\x01\x00"
	derDeviceKeyUse  = "\x30\x0e\x06\x03\x55\x1d\x0f\x01\x01\xff\x04\x04\x03\x02\x03\x88" // digital signature, key agreement
	derSignerKeyUse  = "\x30\x0e\x06\x03\x55\x1d\x0f\x01\x01\xff\x04\x04\x03\x02\x01\x86" // digital signature, certificate and CRL signing
	oidCommonName    = "\x06\x03\x55\x04\x03"
	oidSubjectKeyID  = "\x06\x03\x55\x1d\x0e"
	oidAuthorityKey  = "\x06\x03\x55\x1d\x23"
	rootName         = "Crypto Authentication Root CA 002"
	rootKeyID        = "\x7a\xed\x7d\x6d\xc6\xb7\x78\x9d\xb2\x38\x01\xa5\xe8\x4a\x8c\xb0\xa4\x0e\x2a\x8c"
	tagInteger       = 0x02
	tagBitString     = 0x03
	tagOctetString   = 0x04
	tagUTF8String    = 0x0c
	tagUTCTime       = 0x17
	tagGeneralized   = 0x18
	tagSequence      = 0x30
	tagSet           = 0x31
	tagExtensions    = 0xa3
	tagKeyIdentifier = 0x80
)

func (c *compressed) deviceTBS(key, signer *ecdsa.PublicKey, serial [9]byte) ([]byte, error) {
	signerPoint, err := pointOf(signer)
	if err != nil {
		return nil, err
	}
	authority := sha1.Sum(signerPoint)
	subject := strings.ToUpper(hex.EncodeToString(serial[:])) + " ATECC"
	return c.tbs(key, c.signerName(), subject, string(authority[:]), derNotCA, derDeviceKeyUse)
}

func (c *compressed) signerTBS(key *ecdsa.PublicKey) ([]byte, error) {
	return c.tbs(key, rootName, c.signerName(), rootKeyID, derSignerKeyUse, derCA)
}

// tbs builds the TBSCertificate (RFC 5280 section 4.1).
func (c *compressed) tbs(key *ecdsa.PublicKey, issuer, subject, authority string, extensions ...string) ([]byte, error) {
	point, err := pointOf(key)
	if err != nil {
		return nil, err
	}
	from, until := c.validity()
	keyID := sha1.Sum(point)
	extensions = append(extensions,
		tlv(tagSequence, oidSubjectKeyID, tlv(tagOctetString, tlv(tagOctetString, string(keyID[:])))),
		tlv(tagSequence, oidAuthorityKey, tlv(tagOctetString, tlv(tagSequence, tlv(tagKeyIdentifier, authority)))))
	return []byte(tlv(tagSequence,
		derVersion3,
		tlv(tagInteger, string(c.serialNumber(point))),
		derECDSASHA256,
		name(issuer),
		tlv(tagSequence,
			tlv(tagUTCTime, from.Format("060102150405Z")),
			tlv(tagGeneralized, until.Format("20060102150405Z"))),
		name(subject),
		tlv(tagSequence, derP256, tlv(tagBitString, "\x00", string(point))),
		tlv(tagExtensions, tlv(tagSequence, extensions...)))), nil
}

func name(common string) string {
	return tlv(tagSequence,
		tlv(tagSet, derOrganization),
		tlv(tagSet, tlv(tagSequence, oidCommonName, tlv(tagUTF8String, common))))
}

func (c *compressed) certificate(tbs []byte) ([]byte, error) {
	r, s := c.signature()
	signature, err := asn1.Marshal(ecdsaSignature{r, s})
	if err != nil {
		return nil, err
	}
	return []byte(tlv(tagSequence, string(tbs), derECDSASHA256, tlv(tagBitString, "\x00", string(signature)))), nil
}

// tlv encodes one element of DER, of at most 65535 bytes.
func tlv(tag byte, parts ...string) string {
	content := strings.Join(parts, "")
	head := []byte{tag, byte(len(content))}
	switch n := len(content); {
	case n >= 0x100:
		head = []byte{tag, 0x82, byte(n >> 8), byte(n)}
	case n >= 0x80:
		head = []byte{tag, 0x81, byte(n)}
	}
	return string(head) + content
}
