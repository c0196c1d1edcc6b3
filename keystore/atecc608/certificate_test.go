package atecc608_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"os"
	"testing"
	"time"

	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/keystore/atecc608"
	"github.com/quarklink-go/quarklink/keystore/atecc608/atecctest"
)

func readCertificate(t testing.TB, name string) *x509.Certificate {
	t.Helper()
	file, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(file)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// compress is the reverse of what the driver does.
func compress(t testing.TB, cert *x509.Certificate, signerID [2]byte, template byte, years int) []byte {
	t.Helper()
	var c [72]byte
	r, s := parseSignature(t, cert.Signature)
	r.FillBytes(c[:32])
	s.FillBytes(c[32:64])
	copy(c[64:], compressedDates(cert.NotBefore, years))
	copy(c[67:], signerID[:])
	c[69], c[70] = template<<4, 0xa0
	return c[:]
}

func compressedDates(from time.Time, years int) []byte {
	bits := (from.Year()-2000)<<19 | int(from.Month())<<15 | from.Day()<<10 | from.Hour()<<5 | years
	return []byte{byte(bits >> 16), byte(bits >> 8), byte(bits)}
}

func parseSignature(t testing.TB, der []byte) (r, s *big.Int) {
	t.Helper()
	r, s, err := atecc608.ParseSignature(der)
	if err != nil {
		t.Fatal(err)
	}
	return r, s
}

// storedKey is a public key as a slot holds it.
func storedKey(key *ecdsa.PublicKey) []byte {
	var s [72]byte
	key.X.FillBytes(s[4:36])
	key.Y.FillBytes(s[40:72])
	return s[:]
}

// Microchip's own sample of the two certificates comes out bit by bit.
func TestRebuildCertificates(t *testing.T) {
	device, signer := readCertificate(t, "tngtls-device.pem"), readCertificate(t, "tngtls-signer.pem")
	id := [2]byte{0xff, 0xff}
	serial := [9]byte{0x01, 0x23, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x01}
	d, s := compress(t, device, id, 2, 28), compress(t, signer, id, 1, 31)
	deviceKey, signerKey := device.PublicKey.(*ecdsa.PublicKey), signer.PublicKey.(*ecdsa.PublicKey)

	gotDevice, gotSigner, err := atecc608.TNGCertificates(d, s, deviceKey, signerKey, serial)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(gotDevice, device.Raw) {
		t.Errorf("device certificate:\n%x, want\n%x", gotDevice, device.Raw)
	}
	if !bytes.Equal(gotSigner, signer.Raw) {
		t.Errorf("signer certificate:\n%x, want\n%x", gotSigner, signer.Raw)
	}

	serial[8] ^= 1
	if _, _, err := atecc608.TNGCertificates(d, s, deviceKey, signerKey, serial); !errors.Is(err, atecc608.ErrSignature) {
		t.Errorf("another chip's certificate: %v", err)
	}
	if _, _, err := atecc608.TNGCertificates(make([]byte, 72), s, deviceKey, signerKey, serial); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no certificate: %v", err)
	}
	if _, _, err := atecc608.TNGCertificates(s, d, deviceKey, signerKey, serial); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("certificates in the wrong slots: %v", err)
	}
}

// A chip that carries certificates of a signer of our own.
func TestCertificates(t *testing.T) {
	ctx := t.Context()
	r := newRig(t, atecctest.Options{Config: provisioned(func(c *[128]byte) {
		for _, slot := range []int{10, 11, 12} { // read in clear
			copy(c[20+2*slot:], []byte{0x0f, 0x0f})
		}
	})}, atecc608.Options{})
	if _, _, err := r.chip.Certificates(ctx); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("a chip without a key: %v", err)
	}
	deviceKey := generate(t, r.chip.KeyStore(atecc608.Slots{}), keystore.Enrolment).Public().(*ecdsa.PublicKey)
	if _, _, err := r.chip.Certificates(ctx); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("a chip without certificates: %v", err)
	}

	signer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	from := time.Date(2025, 12, 31, 23, 0, 0, 0, time.UTC)
	id := [2]byte{0x2c, 0x1a}
	serial := serialOf(r.chip)
	issue := func(template byte, years int, tbs func(c []byte) []byte) []byte {
		c := make([]byte, 72)
		copy(c[64:], compressedDates(from, years))
		copy(c[67:], id[:])
		c[69], c[70] = template<<4, 0xa0
		digest := sha256.Sum256(tbs(c))
		signature, err := signer.Sign(rand.Reader, digest[:], crypto.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		a, b := parseSignature(t, signature)
		a.FillBytes(c[:32])
		b.FillBytes(c[32:64])
		return c
	}
	r.model.SetSlot(10, issue(2, 28, func(c []byte) []byte { return atecc608.DeviceTBS(c, deviceKey, &signer.PublicKey, serial) }))
	r.model.SetSlot(12, issue(1, 0, func(c []byte) []byte { return atecc608.SignerTBS(c, &signer.PublicKey) }))
	r.model.SetSlot(11, storedKey(&signer.PublicKey))

	device, issuer, err := r.chip.Certificates(ctx)
	if err != nil {
		t.Fatal(err)
	}
	d, err := x509.ParseCertificate(device)
	if err != nil {
		t.Fatal(err)
	}
	i, err := x509.ParseCertificate(issuer)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.CheckSignatureFrom(i); err != nil {
		t.Error(err)
	}
	if !deviceKey.Equal(d.PublicKey) || d.Subject.CommonName != "0123514C6B2E9017EE ATECC" || d.Issuer.CommonName != "Crypto Authentication Signer 2C1A" ||
		!d.NotBefore.Equal(from) || !d.NotAfter.Equal(from.AddDate(28, 0, 0)) || !i.IsCA || i.NotAfter.Year() != 9999 {
		t.Errorf("%v by %v, %v to %v; signer until %v", d.Subject, d.Issuer, d.NotBefore, d.NotAfter, i.NotAfter)
	}
}

func serialOf(chip *atecc608.Chip) [9]byte {
	config := chip.Config()
	return config.Serial()
}

// Whatever a chip's slots hold, the certificates are right or there are none.
func FuzzCertificates(f *testing.F) {
	device, signer := readCertificate(f, "tngtls-device.pem"), readCertificate(f, "tngtls-signer.pem")
	id := [2]byte{0xff, 0xff}
	f.Add(compress(f, device, id, 2, 28), compress(f, signer, id, 1, 31))
	f.Add(make([]byte, 72), bytes.Repeat([]byte{0xff}, 72))
	serial := [9]byte{0x01, 0x23, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x01}
	f.Fuzz(func(t *testing.T, d, s []byte) {
		if len(d) != 72 || len(s) != 72 {
			return
		}
		got, _, err := atecc608.TNGCertificates(d, s, device.PublicKey.(*ecdsa.PublicKey), signer.PublicKey.(*ecdsa.PublicKey), serial)
		if err != nil {
			return
		}
		cert, err := x509.ParseCertificate(got)
		if err != nil || !bytes.Equal(cert.RawTBSCertificate, device.RawTBSCertificate) { // the signature has two valid forms
			t.Errorf("another certificate: %x, %v", got, err)
		}
	})
}
