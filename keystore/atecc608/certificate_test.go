package atecc608_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/keystore/atecc608"
	"github.com/quarklink-go/quarklink/keystore/atecc608/atecctest"
	"github.com/quarklink-go/quarklink/keystore/atecc608/goecdsa"
)

// hexBytes are bytes that JSON has in hexadecimal.
type hexBytes []byte

func (b *hexBytes) UnmarshalText(text []byte) (err error) {
	*b, err = hex.DecodeString(string(text))
	return err
}

// part is the content of one Trust&GO part, and what Microchip's own library
// made of it.
type part struct {
	Name                          string
	OTP, Config                   hexBytes
	DevicePublic                  hexBytes
	Slot5, Slot10, Slot11, Slot12 hexBytes
	RootPublic                    hexBytes
	Device, Signer                hexBytes
	Address                       uint16
}

// parts returns those in testdata, and those of QUARKLINK_VECTORS.
func parts(t testing.TB) []part {
	t.Helper()
	files := []string{"testdata/tng-certificates.json"}
	if more := os.Getenv("QUARKLINK_VECTORS"); more != "" {
		files = append(files, filepath.Join(more, "atecc", "certificates.json"))
	}
	var all []part
	for _, name := range files {
		file, err := os.ReadFile(name)
		require.NoError(t, err)
		var some []part
		require.NoError(t, json.Unmarshal(file, &some))
		all = append(all, some...)
	}
	return all
}

// chipOf makes a model of the part.
func chipOf(t testing.TB, p part, opts atecc608.Options) *atecc608.Chip {
	t.Helper()
	config := [128]byte(p.Config)
	clock := new(atecctest.Clock)
	model := atecctest.New(atecctest.Options{Config: &config})
	model.SetClock(clock.Now)
	model.SetOTP(p.OTP)
	model.SetPublicKey(0, p.DevicePublic)
	for slot, content := range map[int]hexBytes{5: p.Slot5, 10: p.Slot10, 11: p.Slot11, 12: p.Slot12} {
		model.SetSlot(slot, content)
	}
	opts.Address, opts.Clock = p.Address, clock
	chip, err := atecc608.Open(t.Context(), model, opts)
	require.NoError(t, err)
	return chip
}

// Every kind of part that Microchip's own library knows, but LoRaWAN's, comes out
// as that library makes it, byte for byte.
func TestCertificatesAreThoseOfMicrochipsLibrary(t *testing.T) {
	all := parts(t)
	require.NotEmpty(t, all)
	for _, p := range all {
		for check, ecdsa := range map[string]atecc608.ECDSA{"by the chip": nil, "by the host": goecdsa.P256{}} {
			t.Run(p.Name+", verified "+check, func(t *testing.T) {
				chip := chipOf(t, p, atecc608.Options{ECDSA: ecdsa})
				device, signer, err := chip.Certificates(t.Context())
				require.NoError(t, err)
				assert.Equal(t, []byte(p.Device), device)
				assert.Equal(t, []byte(p.Signer), signer)
			})
		}
	}
}

// Whatever of a part's contents is not as it was issued, there is no certificate.
func TestCertificatesRefuse(t *testing.T) {
	invalid := func(p *part) { copy(p.Slot10[64:], []byte{0x99, 0xff}) }
	for name, test := range map[string]struct {
		change func(p *part)
		want   error
		says   string
	}{
		"an empty OTP zone":        {func(p *part) { clear(p.OTP) }, fs.ErrNotExist, "empty"},
		"an OTP zone of ones":      {func(p *part) { copy(p.OTP, bytes.Repeat([]byte{0xff}, 64)) }, fs.ErrNotExist, "empty"},
		"TNGLoRaWAN":               {func(p *part) { copy(p.OTP, "jsMu7iYO") }, errors.ErrUnsupported, "TNGLoRaWAN"},
		"an unknown code":          {func(p *part) { copy(p.OTP, "12345678") }, errors.ErrUnsupported, "31 32 33"},
		"another kind's code":      {func(p *part) { copy(p.OTP, "wdNxAjae") }, errors.ErrUnsupported, "template 3"},
		"the other kind, same ids": {func(p *part) { copy(p.OTP, "MKMwyhP1") }, atecc608.ErrSignature, ""},
		"no device certificate":    {func(p *part) { clear(p.Slot10) }, fs.ErrNotExist, "slot 10"},
		"no signer certificate":    {func(p *part) { clear(p.Slot12) }, fs.ErrNotExist, "slot 12"},
		"no signer's key":          {func(p *part) { clear(p.Slot11) }, fs.ErrNotExist, "slot 11"},
		"another EUI-48":           {func(p *part) { p.Slot5[0] ^= 1 }, atecc608.ErrSignature, ""},
		"another chip's serial":    {func(p *part) { p.Config[2] ^= 1 }, atecc608.ErrSignature, ""},
		"another issue date":       {func(p *part) { p.Slot10[65] ^= 4 }, atecc608.ErrSignature, ""},
		"a date that is none":      {invalid, errors.ErrUnsupported, "no such day"},
	} {
		t.Run(name, func(t *testing.T) {
			p := parts(t)[0]
			test.change(&p)
			_, _, err := chipOf(t, p, atecc608.Options{ECDSA: goecdsa.P256{}}).Certificates(t.Context())
			require.ErrorIs(t, err, test.want)
			assert.ErrorContains(t, err, test.says)
		})
	}
}

// The compressed form, whose dates are made as cryptoauthlib makes them, cannot
// say what a certificate of 29 February ends on.
func TestCertificateOfTheLeapDay(t *testing.T) {
	p := parts(t)[0]
	for years, want := range map[int]error{28: nil, 0: nil, 10: errors.ErrUnsupported} {
		device := bytes.Clone(p.Slot10)
		copy(device[64:], compressedDates(time.Date(2024, 2, 29, 14, 0, 0, 0, time.UTC), years))
		_, _, err := atecc608.TBS("x6tjuZMy", device, p.Slot12, atecc608.PublicKey(p.DevicePublic),
			atecc608.PublicKey(p.DevicePublic), [9]byte{}, "")
		assert.ErrorIs(t, err, want, "%d years", years)
	}
}

func readCertificate(t testing.TB, name string) *x509.Certificate {
	t.Helper()
	file, err := os.ReadFile("testdata/" + name)
	require.NoError(t, err)
	block, _ := pem.Decode(file)
	cert, err := x509.ParseCertificate(block.Bytes)
	require.NoError(t, err)
	return cert
}

// compress is the reverse of what the driver does.
func compress(t testing.TB, cert *x509.Certificate, signerID [2]byte, template byte, years int) []byte {
	t.Helper()
	signature, ok := atecc608.ParseSignature(cert.Signature)
	require.True(t, ok)
	return compressed(signature, cert.NotBefore, signerID, template, years)
}

func compressed(signature [64]byte, from time.Time, signerID [2]byte, template byte, years int) []byte {
	c := append(signature[:], compressedDates(from, years)...)
	return append(c, signerID[0], signerID[1], template<<4, 0xa0, 0)
}

func compressedDates(from time.Time, years int) []byte {
	bits := (from.Year()-2000)<<19 | int(from.Month())<<15 | from.Day()<<10 | from.Hour()<<5 | years
	return []byte{byte(bits >> 16), byte(bits >> 8), byte(bits)}
}

// pointOf is a public key as the driver has it.
func pointOf(t testing.TB, key crypto.PublicKey) atecc608.PublicKey {
	t.Helper()
	point, err := keystore.PointOf(key)
	require.NoError(t, err)
	return atecc608.PublicKey(point[1:])
}

// Microchip's own sample of the two certificates comes out bit by bit.
func TestRebuildCertificates(t *testing.T) {
	device, signer := readCertificate(t, "tngtls-device.pem"), readCertificate(t, "tngtls-signer.pem")
	id := [2]byte{0xff, 0xff}
	d, s := compress(t, device, id, 2, 28), compress(t, signer, id, 1, 31)
	deviceTBS, signerTBS, err := atecc608.TBS("wdNxAjae", d, s,
		pointOf(t, device.PublicKey), pointOf(t, signer.PublicKey), [9]byte{0x01, 0x23, 1, 2, 3, 4, 5, 6, 1}, "")
	require.NoError(t, err)
	assert.Equal(t, device.Raw, atecc608.Issued(d, deviceTBS))
	assert.Equal(t, signer.Raw, atecc608.Issued(s, signerTBS))
}

// A chip that carries certificates of a signer of our own, of each kind: Go's
// x509 reads them.
func TestCertificates(t *testing.T) {
	signer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	from := time.Date(2025, 12, 31, 23, 0, 0, 0, time.UTC)
	id := [2]byte{0x2c, 0x1a}
	sign := func(template byte, years int, tbs []byte) []byte {
		digest := sha256.Sum256(tbs)
		der, err := signer.Sign(rand.Reader, digest[:], crypto.SHA256)
		require.NoError(t, err)
		signature, ok := atecc608.ParseSignature(der)
		require.True(t, ok)
		return compressed(signature, from, id, template, years)
	}
	for code, subject := range map[string]string{
		"Rsuy5YJh": "0123514C6B2E9017EE ATECC", "KQp2ZkD8": "sn0123514C6B2E9017EE", "MKMwyhP1": "sn0123514C6B2E9017EE",
	} {
		t.Run(code, func(t *testing.T) {
			r := newRig(t, atecctest.Options{Config: provisioned(func(c *[128]byte) {
				for _, slot := range []int{5, 10, 11, 12} { // read in clear
					copy(c[20+2*slot:], []byte{0x0f, 0x0f})
				}
			})}, atecc608.Options{})
			_, _, err := r.chip.Certificates(t.Context())
			require.ErrorIs(t, err, fs.ErrNotExist, "a chip that is no Trust&GO part")
			key := generate(t, r.chip.KeyStore(atecc608.Slots{}), keystore.Enrolment).Public()
			config := configOfChip(t, r.chip)
			template := byte(3)
			if code == "Rsuy5YJh" {
				template = 2
			}
			d, s := compressed([64]byte{}, from, id, template, 28), compressed([64]byte{}, from, id, 1, 0)
			deviceTBS, signerTBS, err := atecc608.TBS(code, d, s, pointOf(t, key), pointOf(t, &signer.PublicKey),
				config.Serial(), "0123456789AB")
			require.NoError(t, err)
			stored := pointOf(t, &signer.PublicKey)
			r.model.SetOTP([]byte(code))
			r.model.SetSlot(5, []byte("0123456789AB"))
			r.model.SetSlot(10, sign(template, 28, deviceTBS))
			r.model.SetSlot(12, sign(1, 0, signerTBS))
			r.model.SetSlot(11, bytes.Join([][]byte{make([]byte, 4), stored[:32], make([]byte, 4), stored[32:]}, nil))

			device, issuer, err := r.chip.Certificates(t.Context())
			require.NoError(t, err)
			deviceCert, err := x509.ParseCertificate(device)
			require.NoError(t, err)
			issuerCert, err := x509.ParseCertificate(issuer)
			require.NoError(t, err)
			assert.NoError(t, deviceCert.CheckSignatureFrom(issuerCert))
			assert.Equal(t, key, deviceCert.PublicKey)
			assert.Equal(t, subject, deviceCert.Subject.CommonName)
			assert.Equal(t, "Crypto Authentication Signer 2C1A", deviceCert.Issuer.CommonName)
			assert.Equal(t, from, deviceCert.NotBefore)
			assert.Equal(t, from.AddDate(28, 0, 0), deviceCert.NotAfter)
			assert.True(t, issuerCert.IsCA)
			assert.Equal(t, 9999, issuerCert.NotAfter.Year())
		})
	}
}

// Whatever a chip's slots hold, what is rebuilt is a certificate that x509 reads,
// with the key it was made for.
func FuzzCertificates(f *testing.F) {
	for _, p := range parts(f) {
		f.Add([]byte(p.OTP[:8]), []byte(p.Slot10[64:]), []byte(p.Slot12[64:]), []byte(p.Slot5[:12]))
	}
	f.Add([]byte("x6tjuZMy"), make([]byte, 8), bytes.Repeat([]byte{0xff}, 8), []byte{})
	key := atecc608.PublicKey(parts(f)[0].DevicePublic)
	f.Fuzz(func(t *testing.T, code, d, s, eui48 []byte) {
		if len(code) != 8 || len(d) != 8 || len(s) != 8 {
			return
		}
		device, signer := append(bytes.Repeat([]byte{0x55}, 64), d...), append(bytes.Repeat([]byte{0x55}, 64), s...)
		tbs, _, err := atecc608.TBS(string(code), device, signer, key, key, [9]byte{1, 0x23}, string(eui48))
		if err != nil {
			return
		}
		got, err := x509.ParseCertificate(atecc608.Issued(device, tbs))
		if err != nil { // the alternative name may be anything: the signature would not fit it
			return
		}
		if pointOf(t, got.PublicKey) != key {
			t.Errorf("certificate for %v", got.PublicKey)
		}
	})
}
