package secureboot_test

//lint:file-ignore SA1019 the tests need keys with wrong coordinates, and P-192

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"hash/crc32"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/quarklink-go/quarklink/esp/image"
	"github.com/quarklink-go/quarklink/esp/secureboot"
	"github.com/quarklink-go/quarklink/esp/secureboot/sbecdsa"
	"github.com/quarklink-go/quarklink/esp/secureboot/sbsign"
)

// publicKey reads a public key from testdata. crypto/x509 knows no P-192.
func publicKey(tb testing.TB, name string) crypto.PublicKey {
	tb.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name+".pub.pem"))
	if err != nil {
		tb.Fatal(err)
	}
	block, _ := pem.Decode(b)
	if name != "ec192" {
		key, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			tb.Fatal(err)
		}
		return key
	}
	return p192Key(tb, block.Bytes)
}

// p192Key reads a SubjectPublicKeyInfo with a key on P-192.
func p192Key(tb testing.TB, der []byte) *ecdsa.PublicKey {
	tb.Helper()
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		Point     asn1.BitString
	}
	if _, err := asn1.Unmarshal(der, &info); err != nil || len(info.Point.Bytes) != 49 || info.Point.Bytes[0] != 4 {
		tb.Fatal(err, info)
	}
	x, y := new(big.Int).SetBytes(info.Point.Bytes[1:25]), new(big.Int).SetBytes(info.Point.Bytes[25:])
	return &ecdsa.PublicKey{Curve: sbecdsa.P192(), X: x, Y: y}
}

func TestKeyDigest(t *testing.T) {
	for name, want := range digests {
		d, err := sbsign.KeyDigest(publicKey(t, name))
		if err != nil || d.String() != want {
			t.Errorf("%s: %v, %v, want %s", name, d, err, want)
		}
	}
}

func TestParseDigest(t *testing.T) {
	want := digests["rsa1"]
	if d, err := secureboot.ParseDigest(want); err != nil || d.String() != want {
		t.Errorf("%v, %v", d, err)
	}
	for _, s := range []string{"", want[:62], want + "00", " " + want[1:], strings.Repeat("g", 64)} {
		if d, err := secureboot.ParseDigest(s); err == nil || d != (secureboot.Digest{}) {
			t.Errorf("%q: %v, %v", s, d, err)
		}
	}
}

// replay is a signer that has nothing but one of Espressif's blocks.
type replay struct {
	public crypto.PublicKey
	raw    []byte
}

func (r replay) Public() crypto.PublicKey { return r.public }
func (r replay) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	bigEndian := func(b []byte) []byte { b = slices.Clone(b); slices.Reverse(b); return b }
	if _, ok := r.public.(*rsa.PublicKey); ok {
		return bigEndian(r.raw[812:1196]), nil
	}
	number := func(b []byte) *big.Int { return new(big.Int).SetBytes(bigEndian(b)) }
	return asn1.Marshal(struct{ R, S *big.Int }{number(r.raw[101:133]), number(r.raw[133:165])})
}

// Given Espressif's signatures, Sign makes Espressif's files, byte for byte:
// with the key's numbers, the values precomputed from them, digest and CRC.
func TestSignMakesEspressifsBytes(t *testing.T) {
	for name, keys := range map[string][]string{
		"esp32_small_v1.0.0_padv2.rsa1.bin":                   {"rsa1"},
		"esp32c3_big_v1.0.0_padv2.rsa1.bin":                   {"rsa1"},
		"esp32c3_small_v1.0.0_padv2.rsa1+2.bin":               {"rsa1", "rsa2"},
		"esp32c3_small_v1.0.0_padv2.rsa2.bin":                 {"rsa2"},
		"esp32c3_small_v1.0.0_unpadded.rsa1.bin":              {"rsa1"},
		"esp32c6_small_v1.0.0_padv2.ec256.bin":                {"ec256"},
		"esp32s3_small_v1.0.0_padv2.rsa1_append2_append3.bin": {"rsa1", "rsa2", "rsa3"},
	} {
		theirs := espSigned(t, name)
		m, err := image.Read(bytes.NewReader(theirs), int64(len(theirs)))
		if err != nil {
			t.Fatal(err)
		}
		var signers []crypto.Signer
		for i, key := range keys {
			signers = append(signers, replay{publicKey(t, key), theirs[int(m.PaddedLength())+i*1216:][:1216]})
		}
		if ours := sign(t, theirs[:m.Length], signers...); !bytes.Equal(ours, theirs) {
			t.Errorf("%s: ours differs", name)
		}
	}
}

func TestRevoked(t *testing.T) {
	file := espSigned(t, good2)
	for _, test := range []struct {
		trusted, revoked string
		want             error
	}{
		{"rsa1,rsa2", "rsa3", nil},
		{"rsa1,rsa2", "rsa1", nil},
		{"rsa1,rsa2", "rsa1,rsa2", secureboot.ErrSignature},
		{"rsa2", "rsa2", secureboot.ErrSignature},
	} {
		v := secureboot.Verifier{Schemes: schemes, Chip: image.ESP32C3, Trusted: fuses(t, test.trusted), Revoked: fuses(t, test.revoked)}
		if err := verify(v, file); !errors.Is(err, test.want) || (err == nil) != (test.want == nil) {
			t.Errorf("trusted %s, revoked %s: %v, want %v", test.trusted, test.revoked, err, test.want)
		}
	}
}

func TestZeroVerifierTrustsNobody(t *testing.T) {
	err := verify(secureboot.Verifier{}, espSigned(t, "esp32_small_v1.0.0_padv2.rsa1.bin"))
	var coded interface{ FirmwareCode() int }
	if !errors.Is(err, secureboot.ErrNoTrustedKey) || errors.As(err, &coded) {
		t.Error(err)
	}
}

func TestMinSecureVersion(t *testing.T) {
	key := rsaKey(t)
	v := secureboot.Verifier{Schemes: schemes, Chip: image.ESP32C3, Trusted: []secureboot.Digest{digestOf(t, key)}}
	file := sign(t, minimal(t, image.ESP32C3, image.App{SecureVersion: 3}), key)
	b := image.Builder{Header: image.NewHeader(image.ESP32C3)}
	b.Add(0x3FC80000, make([]byte, 256))
	img, err := b.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	bare := sign(t, img, key)
	unsigned := minimal(t, image.ESP32C3, image.App{})
	for _, test := range []struct {
		name string
		file []byte
		min  uint32
		want error
	}{
		{"above", file, 2, nil}, {"equal", file, 3, nil}, {"below", file, 4, secureboot.ErrSecureVersion},
		{"no descriptor, no floor", bare, 0, nil}, {"no descriptor", bare, 1, secureboot.ErrSecureVersion},
		{"unsigned comes first", unsigned, 1, secureboot.ErrNoSignature},
	} {
		v.MinSecureVersion = test.min
		err := verify(v, test.file)
		if !errors.Is(err, test.want) || (err == nil) != (test.want == nil) {
			t.Errorf("%s: %v, want %v", test.name, err, test.want)
		}
		var coded interface{ FirmwareCode() int }
		if errors.Is(test.want, secureboot.ErrSecureVersion) && (!errors.As(err, &coded) || coded.FirmwareCode() != 22) {
			t.Errorf("%s: code of %v is not 22", test.name, err)
		}
	}
}

// The ESP32-C2 knows half of each digest. Other chips compare all of it.
func TestC2ComparesHalfADigest(t *testing.T) {
	key := ecKey(t, elliptic.P256())
	half := digestOf(t, key)
	clear(half[16:])
	wrong := half
	wrong[15] ^= 1
	for _, test := range []struct {
		chip  image.Chip
		trust secureboot.Digest
		want  error
	}{
		{image.ESP32C2, digestOf(t, key), nil}, {image.ESP32C2, half, nil}, {image.ESP32C2, wrong, secureboot.ErrSignature}, {image.ESP32C6, half, secureboot.ErrSignature},
	} {
		file := sign(t, minimal(t, test.chip, image.App{}), key)
		err := verify(secureboot.Verifier{Schemes: schemes, Chip: test.chip, Trusted: []secureboot.Digest{test.trust}}, file)
		if !errors.Is(err, test.want) || (err == nil) != (test.want == nil) {
			t.Errorf("%v trusting %v: %v, want %v", test.chip, test.trust, err, test.want)
		}
	}
}

// On the original ESP32 a good block 1 counts for nothing.
func TestESP32UsesBlock0Alone(t *testing.T) {
	file := espSigned(t, "esp32_small_v1.0.0_padv2.rsa1.bin")
	v := secureboot.Verifier{Schemes: schemes, Chip: image.ESP32, Trusted: fuses(t, "rsa1")}
	copy(file[sector+1216:], file[sector:sector+1216])
	file[sector+900] ^= 1
	fixCRC(file, 0)
	if err := verify(v, file); !errors.Is(err, secureboot.ErrSignature) {
		t.Error(err)
	}
	erase(file[sector : sector+1216])
	if err := verify(v, file); !errors.Is(err, secureboot.ErrSignature) {
		t.Error(err)
	}
}

// Blocks that are wrong in themselves, but whose CRC is right.
func TestMalformedBlocks(t *testing.T) {
	rsa, ec, p384 := rsaKey(t), ecKey(t, elliptic.P256()), ecKey(t, elliptic.P384())
	img := minimal(t, image.ESP32C5, image.App{})
	for _, test := range []struct {
		name   string
		key    crypto.Signer
		change func(raw []byte)
		trust  func(raw []byte) []byte // what the trusted digest covers; nil: the key
		want   error
	}{
		{"nothing changed", rsa, func([]byte) {}, nil, nil},
		{"own image digest is ignored", rsa, func(raw []byte) { raw[4] ^= 1 }, nil, nil},
		{"own image digest is ignored", p384, func(raw []byte) { raw[4] ^= 1 }, nil, nil},
		{"(r, -s)", ec, func(raw []byte) {
			slices.Reverse(raw[133:165])
			s := new(big.Int).SetBytes(raw[133:165])
			s.Sub(elliptic.P256().Params().N, s).FillBytes(raw[133:165])
			slices.Reverse(raw[133:165])
		}, nil, nil},
		{"version of ECDSA on RSA", rsa, func(raw []byte) { raw[1] = 3 }, nil, secureboot.ErrSignature},
		{"version of RSA on ECDSA", ec, func(raw []byte) { raw[1] = 2 }, nil, secureboot.ErrSignature},
		{"version 1", rsa, func(raw []byte) { raw[1] = 1 }, nil, secureboot.ErrSignature},
		{"version 4", ec, func(raw []byte) { raw[1] = 4 }, nil, secureboot.ErrSignature},
		{"SHA-384 for P-256", ec, func(raw []byte) { raw[2] = 1 }, nil, secureboot.ErrSignature},
		{"SHA-256 for P-384", p384, func(raw []byte) { raw[2] = 0 }, nil, secureboot.ErrSignature},
		{"curve 0", ec, func(raw []byte) { raw[36] = 0 }, nil, secureboot.ErrSignature},
		{"P-192 for P-256", ec, func(raw []byte) { raw[36] = 1 }, nil, secureboot.ErrSignature},
		{"point off P-256, trusted", ec, func(raw []byte) { raw[37] ^= 1 }, func(raw []byte) []byte { return raw[36:101] }, secureboot.ErrSignature},
		{"point off P-192, trusted", ec, func(raw []byte) { raw[36] = 1; clear(raw[37+48 : 101]) }, func(raw []byte) []byte { return raw[36:101] }, secureboot.ErrSignature},
		{"coordinate beyond the field, trusted", ec, func(raw []byte) { erase(raw[37:69]) }, func(raw []byte) []byte { return raw[36:101] }, secureboot.ErrSignature},
		{"rinv, trusted", rsa, func(raw []byte) { raw[424] ^= 1 }, func(raw []byte) []byte { return raw[36:812] }, secureboot.ErrSignature},
		{"M', trusted", rsa, func(raw []byte) { raw[808] ^= 1 }, func(raw []byte) []byte { return raw[36:812] }, secureboot.ErrSignature},
		{"even modulus, trusted", rsa, func(raw []byte) { raw[36] &^= 1 }, func(raw []byte) []byte { return raw[36:812] }, secureboot.ErrSignature},
		{"short modulus, trusted", rsa, func(raw []byte) { raw[419] = 0 }, func(raw []byte) []byte { return raw[36:812] }, secureboot.ErrSignature},
		{"zero modulus, trusted", rsa, func(raw []byte) { clear(raw[36:420]) }, func(raw []byte) []byte { return raw[36:812] }, secureboot.ErrSignature},
		{"exponent 0, trusted", rsa, func(raw []byte) { clear(raw[420:424]) }, func(raw []byte) []byte { return raw[36:812] }, secureboot.ErrSignature},
		{"exponent 1, trusted", rsa, func(raw []byte) { binary.LittleEndian.PutUint32(raw[420:], 1) }, func(raw []byte) []byte { return raw[36:812] }, secureboot.ErrSignature},
		{"exponent 2^32-1, trusted", rsa, func(raw []byte) { erase(raw[420:424]) }, func(raw []byte) []byte { return raw[36:812] }, secureboot.ErrSignature},
		{"signature not below the modulus", rsa, func(raw []byte) { erase(raw[812:1196]) }, nil, secureboot.ErrSignature},
		{"signature 0", rsa, func(raw []byte) { clear(raw[812:1196]) }, nil, secureboot.ErrSignature},
		{"r and s of all ones", ec, func(raw []byte) { erase(raw[101:165]) }, nil, secureboot.ErrSignature},
	} {
		file := sign(t, img, test.key)
		raw := file[4096 : 4096+1216]
		test.change(raw)
		binary.LittleEndian.PutUint32(raw[1196:], crc32.ChecksumIEEE(raw[:1196]))
		trusted := digestOf(t, test.key)
		if test.trust != nil {
			trusted = sha256.Sum256(test.trust(raw))
		}
		err := verify(secureboot.Verifier{Schemes: schemes, Chip: image.ESP32C5, Trusted: []secureboot.Digest{trusted}}, file)
		if !errors.Is(err, test.want) || (err == nil) != (test.want == nil) {
			t.Errorf("%s: %v, want %v", test.name, err, test.want)
		}
	}
}

// A file that is cut anywhere is refused, and the class of the error is right.
func TestTruncated(t *testing.T) {
	key := ecKey(t, elliptic.P256())
	file := sign(t, minimal(t, image.ESP32C5, image.App{}), key)
	v := secureboot.Verifier{Schemes: schemes, Chip: image.ESP32C5, Trusted: []secureboot.Digest{digestOf(t, key)}}
	for n := range file {
		want := image.ErrTruncated
		if n >= 336 && n <= 4096 { // nobody can tell that it was ever signed
			want = secureboot.ErrNoSignature
		}
		if err := verify(v, file[:n]); !errors.Is(err, want) {
			t.Fatalf("cut at %d: %v, want %v", n, err, want)
		}
	}
}

// An error of the storage is no verdict on the image, wherever it strikes.
func TestStorageErrors(t *testing.T) {
	key := ecKey(t, elliptic.P384())
	file := sign(t, minimal(t, image.ESP32C5, image.App{}), key)
	v := secureboot.Verifier{Schemes: schemes, Chip: image.ESP32C5, Trusted: []secureboot.Digest{digestOf(t, key)}}
	for reads := 0; ; reads++ {
		err := v.Verify(context.Background(), &failing{file, reads}, int64(len(file)))
		if err == nil {
			if reads < 3 { // header, image, sector
				t.Errorf("%d reads suffice", reads)
			}
			return
		}
		var coded interface{ FirmwareCode() int }
		if !errors.Is(err, iotest.ErrTimeout) || errors.As(err, &coded) {
			t.Errorf("after %d reads: %v", reads, err)
		}
	}
}

// failing fails after so many reads.
type failing struct {
	b     []byte
	reads int
}

func (f *failing) ReadAt(p []byte, off int64) (int, error) {
	if f.reads--; f.reads < 0 {
		return 0, iotest.ErrTimeout
	}
	return bytes.NewReader(f.b).ReadAt(p, off)
}

// Storage that answers differently each time gains nothing: what was
// checked is what was hashed.
func TestStorageThatChanges(t *testing.T) {
	key := ecKey(t, elliptic.P384())
	honest := sign(t, minimal(t, image.ESP32C5, image.App{SecureVersion: 1}), key)
	other := sign(t, minimal(t, image.ESP32P4, image.App{SecureVersion: 1}), key)
	older := sign(t, minimal(t, image.ESP32C5, image.App{SecureVersion: 0}), key)
	v := secureboot.Verifier{Schemes: schemes, Chip: image.ESP32C5, Trusted: []secureboot.Digest{digestOf(t, key)}, MinSecureVersion: 1}
	if err := verify(v, honest); err != nil {
		t.Fatal(err)
	}
	for name, answers := range map[string][][]byte{
		"another chip after the header": {honest, other},
		"an old image under SHA-384":    {honest, honest, older},
	} {
		if err := v.Verify(context.Background(), &changing{answers}, int64(len(honest))); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

type changing struct{ answers [][]byte }

func (c *changing) ReadAt(p []byte, off int64) (int, error) {
	now := c.answers[0]
	if len(c.answers) > 1 {
		c.answers = c.answers[1:]
	}
	return bytes.NewReader(now).ReadAt(p, off)
}

func TestContext(t *testing.T) {
	file := espSigned(t, good)
	v := secureboot.Verifier{Schemes: schemes, Chip: image.ESP32C3, Trusted: fuses(t, "rsa1")}
	ctx, cancel := context.WithCancel(context.Background())
	err := v.Verify(ctx, cancelAt{file, 65536, cancel}, int64(len(file)))
	var coded interface{ FirmwareCode() int }
	if !errors.Is(err, context.Canceled) || errors.As(err, &coded) {
		t.Error(err)
	}
	ctx, cancel = context.WithDeadline(context.Background(), time.Unix(0, 0))
	defer cancel()
	if err := v.Verify(ctx, bytes.NewReader(file), int64(len(file))); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

// cancelAt cancels when offset at is read, and has another error for reads
// after that.
type cancelAt struct {
	b      []byte
	at     int64
	cancel context.CancelFunc
}

func (c cancelAt) ReadAt(p []byte, off int64) (int, error) {
	if off > c.at {
		return 0, iotest.ErrTimeout
	}
	if off+int64(len(p)) > c.at {
		c.cancel()
	}
	return bytes.NewReader(c.b).ReadAt(p, off)
}
