package secureboot_test

//lint:file-ignore SA1019 the tests need keys with wrong coordinates, and P-192

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"io"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/quarklink-go/quarklink/esp/image"
	"github.com/quarklink-go/quarklink/esp/secureboot"
	"github.com/quarklink-go/quarklink/esp/secureboot/sbecdsa"
	"github.com/quarklink-go/quarklink/esp/secureboot/sbsign"
	"github.com/quarklink-go/quarklink/internal/counterpart"
)

var makeRSAKey = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 3072) })

// rsaKey returns the one RSA-3072 key of all tests: to make one takes seconds,
// up to ten or so, where there is no assembly. Espressif's files have several.
func rsaKey(tb testing.TB) *rsa.PrivateKey {
	tb.Helper()
	key, err := makeRSAKey()
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

func ecKey(tb testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

func digestOf(tb testing.TB, key crypto.Signer) secureboot.Digest {
	tb.Helper()
	d, err := sbsign.KeyDigest(key.Public())
	if err != nil {
		tb.Fatal(err)
	}
	return d
}

func minimal(tb testing.TB, chip image.Chip, app image.App) []byte {
	tb.Helper()
	b, err := image.Minimal(chip, app)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func sign(tb testing.TB, img []byte, keys ...crypto.Signer) []byte {
	tb.Helper()
	b, err := sbsign.Image(rand.Reader, img, keys...)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func TestSignAndVerify(t *testing.T) {
	keys := map[string]crypto.Signer{
		"RSA-3072": rsaKey(t),
		"P-192":    ecKey(t, sbecdsa.P192()),
		"P-256":    ecKey(t, elliptic.P256()),
		"P-384":    ecKey(t, elliptic.P384()),
	}
	img := minimal(t, image.ESP32C5, image.App{SecureVersion: 2})
	for name, key := range keys {
		t.Run(name, func(t *testing.T) {
			signed := sign(t, img, key)
			if len(signed) != 8192 || !bytes.Equal(signed[:len(img)], img) || len(bytes.Trim(signed[len(img):4096], "\xFF")) != 0 {
				t.Errorf("%d bytes, want the image, 0xFF up to 4096, a sector", len(signed))
			}
			for other, key := range keys {
				v := secureboot.Verifier{Schemes: schemes, Chip: image.ESP32C5, Trusted: []secureboot.Digest{digestOf(t, key)}}
				if err := verify(v, signed); (err == nil) != (other == name) || err != nil && !errors.Is(err, secureboot.ErrSignature) {
					t.Errorf("trusting %s: %v", other, err)
				}
			}
		})
	}
}

// Signatures are added one by one or at once, next to Espressif's too, and
// any of them will do. There is room for three, once by each key.
func TestSignAppends(t *testing.T) {
	k1, k2, k3 := rsaKey(t), ecKey(t, elliptic.P384()), ecKey(t, elliptic.P256())
	all := []crypto.Signer{k1, k2, k3}
	img := minimal(t, image.ESP32C5, image.App{})
	for name, signed := range map[string][]byte{
		"at once":    sign(t, img, all...),
		"one by one": sign(t, sign(t, sign(t, img, k1), k2), k3),
	} {
		for i, key := range all {
			if err := verify(secureboot.Verifier{Schemes: schemes, Chip: image.ESP32C5, Trusted: []secureboot.Digest{digestOf(t, key)}}, signed); err != nil {
				t.Errorf("%s, key %d: %v", name, i, err)
			}
		}
		if _, err := sbsign.Image(rand.Reader, signed, ecKey(t, elliptic.P256())); err == nil {
			t.Errorf("%s: a fourth signature", name)
		}
		if _, err := sbsign.Image(rand.Reader, signed[:4096], k1); err != nil {
			t.Errorf("%s: start over: %v", name, err)
		}
	}
	if _, err := sbsign.Image(rand.Reader, sign(t, img, k1), k1); err == nil {
		t.Error("signed twice by one key")
	}

	theirs := espSigned(t, good2)
	ours := sign(t, theirs, k1)
	if !bytes.Equal(ours[:sector+2*1216], theirs[:sector+2*1216]) {
		t.Error("what Espressif signed was changed")
	}
	for _, d := range append(fuses(t, "rsa1,rsa2"), digestOf(t, k1)) {
		if err := verify(secureboot.Verifier{Schemes: schemes, Chip: image.ESP32C3, Trusted: []secureboot.Digest{d}}, ours); err != nil {
			t.Error(err)
		}
	}

	// An erased block is room.
	refilled := sign(t, bad(t, "bad/three_block0_erased.bin"), k1)
	if err := verify(secureboot.Verifier{Schemes: schemes, Chip: image.ESP32C3, Trusted: []secureboot.Digest{digestOf(t, k1)}}, refilled); err != nil {
		t.Error(err)
	}
}

func TestSignErrors(t *testing.T) {
	key := rsaKey(t)
	small := new(big.Int).Rsh(key.N, 1024)
	small.SetBit(small, 0, 1)
	other := new(big.Int).Add(key.N, big.NewInt(2))
	img := minimal(t, image.ESP32C5, image.App{})
	esp32 := minimal(t, image.ESP32, image.App{})
	offCurve := ecKey(t, elliptic.P256())
	offCurve.X = new(big.Int).Add(offCurve.X, big.NewInt(1))
	broken := slices.Clone(img)
	broken[100] ^= 1
	failure := errors.New("card removed")
	for name, test := range map[string]struct {
		img  []byte
		key  crypto.Signer
		want error // nil: any
	}{
		"no image":                      {nil, key, secureboot.ErrImage},
		"damaged image":                 {broken, key, image.ErrChecksum},
		"damaged signature":             {bad(t, "bad/sig_flip_nocrcfix.bin"), key, nil},
		"wrong signature":               {bad(t, "bad/sig_flip_crcfixed.bin"), key, nil},
		"signature cut off":             {bad(t, "bad/trunc_mid_block.bin"), key, nil},
		"second signature for ESP32":    {sign(t, esp32, key), badSigner{public: &rsa.PublicKey{N: other, E: 65537}}, nil},
		"RSA-2048":                      {img, badSigner{public: &rsa.PublicKey{N: small, E: 65537}}, nil},
		"P-224":                         {img, ecKey(t, elliptic.P224()), nil},
		"P-521":                         {img, ecKey(t, elliptic.P521()), nil},
		"another curve of 256 bits":     {img, badSigner{public: &ecdsa.PublicKey{Curve: koblitz(), X: koblitz().Gx, Y: koblitz().Gy}}, nil},
		"point off the curve":           {img, badSigner{public: &offCurve.PublicKey}, nil},
		"no key":                        {img, badSigner{public: "key"}, nil},
		"nil RSA key":                   {img, badSigner{public: (*rsa.PublicKey)(nil)}, nil},
		"empty RSA key":                 {img, badSigner{public: new(rsa.PublicKey)}, nil},
		"even RSA exponent":             {img, badSigner{public: &rsa.PublicKey{N: key.N, E: 65536}}, nil},
		"empty ECDSA key":               {img, badSigner{public: new(ecdsa.PublicKey)}, nil},
		"signer that fails":             {img, badSigner{public: key.Public(), err: failure}, failure},
		"signer with a short answer":    {img, badSigner{public: key.Public(), sig: make([]byte, 256)}, nil},
		"signer with a wrong answer":    {img, badSigner{public: key.Public(), sig: make([]byte, 384)}, nil},
		"signer with another salt":      {img, otherSalt{key}, nil},
		"ECDSA signer without ASN.1":    {img, badSigner{public: ecKey(t, elliptic.P256()).Public(), sig: make([]byte, 64)}, nil},
		"ECDSA signer with zeros":       {img, badSigner{public: ecKey(t, elliptic.P256()).Public(), sig: []byte{0x30, 6, 2, 1, 0, 2, 1, 0}}, nil},
		"ECDSA signer with negatives":   {img, badSigner{public: ecKey(t, elliptic.P256()).Public(), sig: []byte{0x30, 6, 2, 1, 0xFF, 2, 1, 0xFF}}, nil},
		"ECDSA signer with too much":    {img, badSigner{public: ecKey(t, elliptic.P256()).Public(), sig: append([]byte{0x30, 38, 2, 33, 1}, append(make([]byte, 32), 2, 1, 1)...)}, nil},
		"ECDSA signer with an appendix": {img, badSigner{public: ecKey(t, elliptic.P256()).Public(), sig: []byte{0x30, 6, 2, 1, 1, 2, 1, 1, 0}}, nil},
		"ECDSA signer without s":        {img, badSigner{public: ecKey(t, elliptic.P256()).Public(), sig: []byte{0x30, 3, 2, 1, 1}}, nil},
	} {
		if _, err := sbsign.Image(rand.Reader, test.img, test.key); err == nil || test.want != nil && !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		} else if !strings.HasPrefix(err.Error(), "secureboot: ") || strings.Count(err.Error(), "secureboot: ") != 1 {
			t.Errorf("%s: %q does not say once where it comes from", name, err)
		}
	}
	if _, err := sbsign.Image(rand.Reader, img); err == nil {
		t.Error("signed without a key")
	}
	if _, _, err := sbsign.ImageAt(rand.Reader, brokenStorage{}, 100, key); !errors.Is(err, iotest.ErrTimeout) || errors.Is(err, secureboot.ErrImage) {
		t.Errorf("broken storage: %v", err)
	}
}

type brokenStorage struct{}

func (brokenStorage) ReadAt([]byte, int64) (int, error) { return 0, iotest.ErrTimeout }

// koblitz is secp256k1 by its parameters.
func koblitz() *elliptic.CurveParams {
	p := *elliptic.P256().Params()
	p.Name = "secp256k1"
	p.P, _ = new(big.Int).SetString("fffffffffffffffffffffffffffffffffffffffffffffffffffffffefffffc2f", 16)
	p.B = big.NewInt(7)
	return &p
}

// badSigner answers whatever it was told to.
type badSigner struct {
	public crypto.PublicKey
	sig    []byte
	err    error
}

func (s badSigner) Public() crypto.PublicKey { return s.public }
func (s badSigner) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return s.sig, s.err
}

// otherSalt signs correctly, but with the salt that it likes.
type otherSalt struct{ *rsa.PrivateKey }

func (s otherSalt) Sign(random io.Reader, digest []byte, _ crypto.SignerOpts) ([]byte, error) {
	return rsa.SignPSS(random, s.PrivateKey, crypto.SHA256, digest, &rsa.PSSOptions{SaltLength: 20})
}

// SignAt says what to write where, in every state in which an image may be.
func TestSignAt(t *testing.T) {
	key := rsaKey(t)
	img := minimal(t, image.ESP32C3, image.App{})
	v := secureboot.Verifier{Schemes: schemes, Chip: image.ESP32C3, Trusted: []secureboot.Digest{digestOf(t, key)}}
	erasedTo := func(n int) []byte {
		b := bytes.Repeat([]byte{0xFF}, n)
		copy(b, img)
		return b
	}
	for name, test := range map[string]struct {
		img []byte
		at  int64
	}{
		"image alone":        {img, 336},
		"half padded":        {erasedTo(1000), 1000},
		"padded":             {erasedTo(4096), 4096},
		"part of the sector": {erasedTo(5000), 4096},
		"in a partition":     {erasedTo(65536), 4096},
	} {
		trailer, at, err := sbsign.ImageAt(rand.Reader, bytes.NewReader(test.img), int64(len(test.img)), key)
		if err != nil || at != test.at || at+int64(len(trailer)) != 8192 {
			t.Errorf("%s: %d bytes at %d, %v, want up to 8192 at %d", name, len(trailer), at, err, test.at)
			continue
		}
		file := append(test.img[:at:at], trailer...)
		if len(test.img) > len(file) {
			file = append(file, test.img[len(file):]...)
		}
		if err := verify(v, file); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// openssl takes our block for what it claims to be.
func TestOpenSSLVerifies(t *testing.T) {
	openssl(t)
	img := minimal(t, image.ESP32C5, image.App{})
	for name, key := range map[string]crypto.Signer{"RSA-3072": rsaKey(t), "P-256": ecKey(t, elliptic.P256()), "P-384": ecKey(t, elliptic.P384())} {
		t.Run(name, func(t *testing.T) {
			signed := sign(t, img, key)
			args := opensslArgs(t, key, signed[4096:])
			dir := t.TempDir()
			file := filepath.Join(dir, "image.bin")
			write(t, file, signed[:4096])
			if out, err := exec.Command("openssl", append(args, file)...).CombinedOutput(); err != nil || !strings.Contains(string(out), "Verified OK") {
				t.Errorf("%v: %s", err, out)
			}
			signed[0] ^= 1
			write(t, file, signed[:4096])
			if out, err := exec.Command("openssl", append(args, file)...).CombinedOutput(); err == nil {
				t.Errorf("a changed image verifies: %s", out)
			}
		})
	}
}

// openssl makes a P-192 key and signs with it, as hardware would: nothing
// else here knows the curve.
func TestOpenSSLSignsP192(t *testing.T) {
	openssl(t)
	dir := t.TempDir()
	key := filepath.Join(dir, "key.pem")
	if out, err := exec.Command("openssl", "ecparam", "-name", "prime192v1", "-genkey", "-noout", "-out", key).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	der, err := exec.Command("openssl", "pkey", "-in", key, "-pubout", "-outform", "DER").Output()
	if err != nil {
		t.Fatal(err)
	}
	signer := opensslSigner{public: p192Key(t, der), key: key}
	file := sign(t, minimal(t, image.ESP32C2, image.App{}), signer)
	v := secureboot.Verifier{Schemes: schemes, Chip: image.ESP32C2, Trusted: []secureboot.Digest{digestOf(t, signer)}}
	if err := verify(v, file); err != nil {
		t.Error(err)
	}
}

func write(tb testing.TB, name string, b []byte) {
	tb.Helper()
	if err := os.WriteFile(name, b, 0o600); err != nil {
		tb.Fatal(err)
	}
}

// openssl skips the test where there is no openssl, and fails it where there
// has to be one.
func openssl(tb testing.TB) {
	tb.Helper()
	counterpart.Program(tb, "openssl")
}
