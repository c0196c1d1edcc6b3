package atecc608

import (
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"
)

// Where a Trust&GO part keeps its certificates (cryptoauthlib,
// app/tng/tng*_cert_def_*.c).
const (
	tngDeviceKey       = 0
	tngEUI48           = 5
	tngDeviceCert      = 10
	tngSignerPublicKey = 11
	tngSignerCert      = 12
)

// tngPart is a kind of Trust&GO part: the first eight bytes of the OTP zone tell
// which (cryptoauthlib, app/tng/tng_atca.c). The rest says what its device
// certificate looks like; one without a template is not known here.
type tngPart struct {
	code     string
	name     string
	template byte
	eui48    bool // the subject has an alternative name, from slot 5
}

var tngParts = [...]tngPart{
	{"wdNxAjae", "TNGTLS", 2, false},
	{"Rsuy5YJh", "TNGTLS", 2, false},
	{"KQp2ZkD8", "TNGTLS", 3, true},
	{"x6tjuZMy", "TNGTLS", 3, true},
	{"MKMwyhP1", "TFLXTLS", 3, false},
	{"BxZvm6q2", "TNGLoRaWAN", 0, false},
	{"jsMu7iYO", "TNGLoRaWAN", 0, false},
	{"09qJNxI3", "TNGLoRaWAN", 0, false},
}

const tngCodeSize = 8

// tngPartOf tells the kind of a part by its code.
func tngPartOf(code []byte) (tngPart, error) {
	for _, part := range tngParts {
		if part.code != string(code) {
			continue
		}
		if part.template == 0 {
			return part, fmt.Errorf("a %s part: its certificates cannot be rebuilt here: %w", part.name, errors.ErrUnsupported)
		}
		return part, nil
	}
	if blank := isFilled(code, 0xFF) || isFilled(code, 0); blank {
		return tngPart{}, fmt.Errorf("the OTP zone is empty: no Trust&GO or TrustFLEX part: %w", fs.ErrNotExist)
	}
	return tngPart{}, fmt.Errorf("the OTP zone begins with % x, the code of no part that is known here: %w", code, errors.ErrUnsupported)
}

// Certificates returns the two certificates, in DER, that Microchip put into a
// TNGTLS part, of today or of the first years, or a TFLXTLS part: the device's,
// for the key in slot 0, and that of the signer who issued it, whose own issuer
// is the "Crypto Authentication Root CA 002". The chip holds them compressed;
// they are rebuilt bit by bit, and the device's is verified with the signer's
// key. Nothing says that the signer is to be trusted: verify it with the root,
// which Microchip publishes.
//
// The error is fs.ErrNotExist if the chip holds no such certificates, and
// errors.ErrUnsupported, with what was found, if they are of another kind, such
// as TNGLoRaWAN's, or last until a day that there is not: 29 February plus a
// number of years that is no multiple of four.
func (c *Chip) Certificates(ctx context.Context) (device, signer []byte, err error) {
	err = c.do(ctx, "certificates", repeatable, func(l *call) error {
		if err := l.checkSlot(tngDeviceKey); err != nil {
			return err
		}
		content, err := l.tngContent()
		if err != nil {
			return err
		}
		if content.deviceKey, err = l.publicKey(tngDeviceKey); err != nil {
			return err
		}
		deviceTBS, signerTBS, err := content.rebuild()
		if err != nil {
			return err
		}
		digest := sha256.Sum256(deviceTBS)
		by := content.device.signature()
		if err := l.verify(content.signerKey, digest[:], &by); err != nil {
			return fmt.Errorf("the device certificate is not by the signer: %w", err)
		}
		device, signer = content.device.certificate(deviceTBS), content.signer.certificate(signerTBS)
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	return device, signer, nil
}

// tngContent is what a part holds of its certificates.
type tngContent struct {
	part                 tngPart
	serial               [9]byte
	eui48                [12]byte
	device, signer       compressed
	deviceKey, signerKey PublicKey
}

// tngContent reads all but the device's key.
func (l *call) tngContent() (*tngContent, error) {
	otp, err := l.read(zoneOTP, 0, 32)
	if err != nil {
		return nil, fmt.Errorf("read the OTP zone: %w", err)
	}
	content := &tngContent{serial: l.config.Serial()}
	if content.part, err = tngPartOf(otp[:tngCodeSize]); err != nil {
		return nil, err
	}
	var stored [compressedSize]byte
	reads := []struct {
		slot int
		to   []byte
	}{{tngDeviceCert, content.device[:]}, {tngSignerCert, content.signer[:]}, {tngSignerPublicKey, stored[:]}}
	for _, r := range reads {
		if err := l.readSlot(r.slot, 0, r.to); err != nil {
			return nil, err
		}
	}
	if content.part.eui48 {
		if err := l.readSlot(tngEUI48, 0, content.eui48[:]); err != nil {
			return nil, err
		}
	}
	content.signerKey, err = storedPublicKey(stored[:])
	return content, err
}

// storedPublicKey reads a public key as a slot holds it: X and Y, each after
// four bytes of padding.
func storedPublicKey(slot []byte) (PublicKey, error) {
	key := PublicKey(append(append([]byte(nil), slot[4:36]...), slot[40:72]...))
	if !key.onCurve() {
		return PublicKey{}, fmt.Errorf("no signer's public key in slot %d: %w", tngSignerPublicKey, fs.ErrNotExist)
	}
	return key, nil
}

// rebuild makes what is signed of both certificates.
func (t *tngContent) rebuild() (device, signer []byte, err error) {
	if err := t.device.check(t.part.template); err != nil {
		return nil, nil, fmt.Errorf("device certificate in slot %d: %w", tngDeviceCert, err)
	}
	if err := t.signer.check(tngSignerTemplate); err != nil {
		return nil, nil, fmt.Errorf("signer certificate in slot %d: %w", tngSignerCert, err)
	}
	if device, err = t.deviceTBS(); err != nil {
		return nil, nil, fmt.Errorf("device certificate: %w", err)
	}
	if signer, err = t.signerTBS(); err != nil {
		return nil, nil, fmt.Errorf("signer certificate: %w", err)
	}
	return device, signer, nil
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
	serialFromKey     = 0xa // the serial number is a hash of public key and dates
)

// check says why this is no certificate of the template, if it is not.
func (c *compressed) check(template byte) error {
	switch ids, source := c[compressedIDs], c[compressedSource]; {
	case ids == 0xff || ids == 0 && source == 0:
		return fs.ErrNotExist
	case ids != template<<4 || source != serialFromKey<<4:
		return fmt.Errorf("template %d, chain %d, source and version %02x; the OTP zone says template %d: %w", ids>>4, ids&0xf, source, template, errors.ErrUnsupported)
	}
	return nil
}

func (c *compressed) signature() signature { return signature(c[:compressedDates]) }

// validity decodes the dates: five bits of year since 2000, four of month, five
// of day, five of hour, five of years.
func (c *compressed) validity() (from, until time.Time, err error) {
	bits := int(c[compressedDates])<<16 | int(c[compressedDates+1])<<8 | int(c[compressedDates+2])
	year, month, day, hour, years := 2000+bits>>19, bits>>15&0xf, bits>>10&0x1f, bits>>5&0x1f, bits&0x1f
	from = time.Date(year, time.Month(month), day, hour, 0, 0, 0, time.UTC)
	until = time.Date(year+years, time.Month(month), day, hour, 0, 0, 0, time.UTC)
	if from.Day() != day || until.Day() != day || hour > 23 || month > 12 {
		return from, until, fmt.Errorf("valid from %04d-%02d-%02d %02d:00 for %d years: there is no such day: %w", year, month, day, hour, years, errors.ErrUnsupported)
	}
	if years == 0 { // never
		until = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
	}
	return from, until, nil
}

func (c *compressed) signerName() string {
	return "Crypto Authentication Signer " + strings.ToUpper(hex.EncodeToString(c[compressedSigner:compressedSigner+2]))
}

// serialNumber is the first half of a hash, as a positive number of 16 bytes.
func (c *compressed) serialNumber(key PublicKey) []byte {
	h := sha256.New()
	h.Write(key[:])
	h.Write(c[compressedDates : compressedDates+3])
	n := h.Sum(nil)[:16]
	n[0] = n[0]&0x7f | 0x40
	return n
}

// Pieces of the certificates in DER that never differ.
const (
	derVersion3        = "\xa0\x03\x02\x01\x02"
	derECDSASHA256     = "\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02"                                     // RFC 5758
	derP256            = "\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07" // RFC 5480
	derOrganization    = "\x30\x1f\x06\x03\x55\x04\x0a\x0c\x18Microchip Technology Inc"
	derNotCA           = "\x30\x0c\x06\x03\x55\x1d\x13\x01\x01\xff\x04\x02\x30\x00"
	derCA              = "\x30\x12\x06\x03\x55\x1d\x13\x01\x01\xff\x04\x08\x30\x06\x01\x01\xff\x02\x01\x00"
	derDeviceKeyUse    = "\x30\x0e\x06\x03\x55\x1d\x0f\x01\x01\xff\x04\x04\x03\x02\x03\x88" // digital signature, key agreement
	derSignerKeyUse    = "\x30\x0e\x06\x03\x55\x1d\x0f\x01\x01\xff\x04\x04\x03\x02\x01\x86" // digital signature, certificate and CRL signing
	oidSerialNumber    = "\x06\x03\x55\x04\x05"
	oidCommonName      = "\x06\x03\x55\x04\x03"
	oidAlternativeName = "\x06\x03\x55\x1d\x11"
	oidSubjectKeyID    = "\x06\x03\x55\x1d\x0e"
	oidAuthorityKey    = "\x06\x03\x55\x1d\x23"
	rootName           = "Crypto Authentication Root CA 002"
	rootKeyID          = "\x7a\xed\x7d\x6d\xc6\xb7\x78\x9d\xb2\x38\x01\xa5\xe8\x4a\x8c\xb0\xa4\x0e\x2a\x8c"
	tagInteger         = 0x02
	tagBitString       = 0x03
	tagOctetString     = 0x04
	tagUTF8String      = 0x0c
	tagPrintable       = 0x13
	tagUTCTime         = 0x17
	tagGeneralized     = 0x18
	tagSequence        = 0x30
	tagSet             = 0x31
	tagExtensions      = 0xa3
	tagDirectoryName   = 0xa4
	tagKeyIdentifier   = 0x80
)

func (t *tngContent) deviceTBS() ([]byte, error) {
	authority := sha1.Sum(t.signerKey.point())
	serial := strings.ToUpper(hex.EncodeToString(t.serial[:]))
	subject := "sn" + serial
	if t.part.template == 2 {
		subject = serial + " ATECC"
	}
	extensions := []string{derNotCA, derDeviceKeyUse}
	if t.part.eui48 {
		extensions = append([]string{alternativeName("eui48_" + string(t.eui48[:]))}, extensions...)
	}
	return t.device.tbs(t.deviceKey, t.device.signerName(), subject, string(authority[:]), extensions...)
}

func (t *tngContent) signerTBS() ([]byte, error) {
	return t.signer.tbs(t.signerKey, rootName, t.signer.signerName(), rootKeyID, derSignerKeyUse, derCA)
}

// alternativeName is the extension subjectAltName (RFC 5280 section 4.2.1.6)
// with a directory name that is a serial number.
func alternativeName(serial string) string {
	return tlv(tagSequence, oidAlternativeName, tlv(tagOctetString, tlv(tagSequence, tlv(tagDirectoryName,
		tlv(tagSequence, tlv(tagSet, tlv(tagSequence, oidSerialNumber, tlv(tagPrintable, serial))))))))
}

// tbs builds the TBSCertificate (RFC 5280 section 4.1).
func (c *compressed) tbs(key PublicKey, issuer, subject, authority string, extensions ...string) ([]byte, error) {
	from, until, err := c.validity()
	if err != nil {
		return nil, err
	}
	point := key.point()
	keyID := sha1.Sum(point)
	extensions = append(extensions,
		tlv(tagSequence, oidSubjectKeyID, tlv(tagOctetString, tlv(tagOctetString, string(keyID[:])))),
		tlv(tagSequence, oidAuthorityKey, tlv(tagOctetString, tlv(tagSequence, tlv(tagKeyIdentifier, authority)))))
	return []byte(tlv(tagSequence,
		derVersion3,
		tlv(tagInteger, string(c.serialNumber(key))),
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

func (c *compressed) certificate(tbs []byte) []byte {
	signed := c.signature()
	return []byte(tlv(tagSequence, string(tbs), derECDSASHA256, tlv(tagBitString, "\x00", string(signed.der()))))
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

// isFilled reports whether every byte is b.
func isFilled(data []byte, b byte) bool {
	for _, d := range data {
		if d != b {
			return false
		}
	}
	return true
}
