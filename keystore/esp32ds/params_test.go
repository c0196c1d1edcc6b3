package esp32ds_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"

	"github.com/quarklink-go/quarklink/keystore/esp32ds"
)

// sequence returns n bytes that count up from first.
func sequence(first byte, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = first + byte(i)
	}
	return b
}

var (
	knownHMACKey = [32]byte(sequence(0, 32))
	knownIV      = [16]byte(sequence(100, 16))
)

// TestEncryptKnownAnswer compares with parameters that a program in another
// language made, with AES by openssl.
func TestEncryptKnownAnswer(t *testing.T) {
	for _, c := range []struct {
		chip   esp32ds.Chip
		key    string
		size   int
		sha256 string
	}{
		{esp32ds.ESP32C3, "rsa2048-esk", 1220, "26820721509192876203e3046bedb09bb73bde7cee06eec33bcf01c205cb036a"},
		{esp32ds.ESP32C6, "rsa3072-esk", 1220, "1de4045a4d98cb5d72ae897814baa1807d9026f643e1d7b19a147904cf7110a4"},
		{esp32ds.ESP32S3, "rsa2048-esk", 1604, "ee4b369c5cdee39f841e2a5922270bfda1ac9cb5c6ea6c391d933007c700449d"},
		{esp32ds.ESP32S2, "rsa4096-esk", 1604, "6f96c251e0a82e389ae8621beb119684f30347e71c9c0cb21ba0471d0c8e2337"},
	} {
		key := loadKey(t, c.key)
		p, err := esp32ds.Encrypt(c.chip, key, knownHMACKey, knownIV)
		must(t, err)
		data := p.Bytes()
		sum := sha256.Sum256(data)
		if len(data) != c.size || hex.EncodeToString(sum[:]) != c.sha256 {
			t.Errorf("%v, %s: %d bytes, SHA-256 %x", c.chip, c.key, len(data), sum)
		}
		again, err := esp32ds.ParseParams(c.chip, data)
		must(t, err)
		if !bytes.Equal(again.Bytes(), data) || again.Bits() != key.N.BitLen() || again.Chip() != c.chip {
			t.Errorf("%v, %s: parsed as other than it was written", c.chip, c.key)
		}
		must(t, again.Check(knownHMACKey, &key.PublicKey))
		data[700] ^= 1
		if bytes.Equal(data, again.Bytes()) {
			t.Error("Params share memory with their caller")
		}
	}
}

func TestEncryptRefuses(t *testing.T) {
	good := loadKey(t, "rsa2048-esk")
	with := func(change func(*rsa.PrivateKey)) *rsa.PrivateKey {
		key := &rsa.PrivateKey{PublicKey: rsa.PublicKey{N: new(big.Int).Set(good.N), E: good.E}, D: new(big.Int).Set(good.D)}
		change(key)
		return key
	}
	order := new(big.Int).Sub(good.Primes[0], big.NewInt(1))
	wrongForQ := new(big.Int).ModInverse(big.NewInt(int64(good.E)), order)
	for name, c := range map[string]struct {
		chip esp32ds.Chip
		key  *rsa.PrivateKey
	}{
		"original ESP32":      {0, good},
		"ESP32-C2":            {12, good},
		"no key":              {esp32ds.ESP32C3, nil},
		"empty key":           {esp32ds.ESP32C3, new(rsa.PrivateKey)},
		"no private exponent": {esp32ds.ESP32C3, with(func(k *rsa.PrivateKey) { k.D = nil })},
		"no modulus":          {esp32ds.ESP32C3, with(func(k *rsa.PrivateKey) { k.N = nil })},
		"too long":            {esp32ds.ESP32C3, loadKey(t, "rsa4096-esk")},
		"odd length":          {esp32ds.ESP32C3, with(func(k *rsa.PrivateKey) { k.N.Rsh(k.N, 1).SetBit(k.N, 0, 1) })},
		"even modulus":        {esp32ds.ESP32C3, with(func(k *rsa.PrivateKey) { k.N.SetBit(k.N, 0, 0) })},
		"negative modulus":    {esp32ds.ESP32C3, with(func(k *rsa.PrivateKey) { k.N.Neg(k.N) })},
		"other modulus":       {esp32ds.ESP32C3, with(func(k *rsa.PrivateKey) { k.N.Sub(k.N, big.NewInt(2)) })},
		"even exponent":       {esp32ds.ESP32C3, with(func(k *rsa.PrivateKey) { k.E = 65536 })},
		"exponent 1":          {esp32ds.ESP32C3, with(func(k *rsa.PrivateKey) { k.E, k.D = 1, big.NewInt(1) })},
		"other exponent":      {esp32ds.ESP32C3, with(func(k *rsa.PrivateKey) { k.E = 3 })},
		"primes not of it":    {esp32ds.ESP32C3, with(func(k *rsa.PrivateKey) { k.Primes = loadKey(t, "rsa2048-dsk").Primes })},
		"one prime":           {esp32ds.ESP32C3, with(func(k *rsa.PrivateKey) { k.Primes = good.Primes[:1] })},
		"nil prime":           {esp32ds.ESP32C3, with(func(k *rsa.PrivateKey) { k.Primes = []*big.Int{nil, good.Primes[1]} })},
		"prime 1":             {esp32ds.ESP32C3, with(func(k *rsa.PrivateKey) { k.Primes = []*big.Int{big.NewInt(1), k.N} })},
		"wrong d, and primes": {esp32ds.ESP32C3, with(func(k *rsa.PrivateKey) { k.D.Add(k.D, big.NewInt(2)); k.Primes = good.Primes })},
		"right modulo p":      {esp32ds.ESP32C3, with(func(k *rsa.PrivateKey) { k.D.Set(wrongForQ); k.Primes = good.Primes })},
		"wrong d":             {esp32ds.ESP32C3, with(func(k *rsa.PrivateKey) { k.D.Add(k.D, big.NewInt(2)) })},
		"d = 0":               {esp32ds.ESP32C3, with(func(k *rsa.PrivateKey) { k.D.SetInt64(0) })},
		"negative d":          {esp32ds.ESP32C3, with(func(k *rsa.PrivateKey) { k.D.Neg(k.D) })},
		"d beyond the modulus": {esp32ds.ESP32C3, with(func(k *rsa.PrivateKey) {
			p, q := new(big.Int).Sub(good.Primes[0], big.NewInt(1)), new(big.Int).Sub(good.Primes[1], big.NewInt(1))
			k.D.Add(k.D, p.Mul(p, q)).Add(k.D, p)
		})},
	} {
		if _, err := esp32ds.Encrypt(c.chip, c.key, knownHMACKey, knownIV); !errors.Is(err, esp32ds.ErrInvalidArg) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestParseParamsRefuses(t *testing.T) {
	p, err := esp32ds.Encrypt(esp32ds.ESP32C3, loadKey(t, "rsa2048-esk"), knownHMACKey, knownIV)
	must(t, err)
	with := func(length uint32) []byte {
		data := p.Bytes()
		binary.LittleEndian.PutUint32(data, length)
		return data
	}
	wide, err := esp32ds.Encrypt(esp32ds.ESP32S3, loadKey(t, "rsa2048-esk"), knownHMACKey, knownIV)
	must(t, err)
	for name, c := range map[string]struct {
		chip esp32ds.Chip
		data []byte
		says string
	}{
		"nothing":             {esp32ds.ESP32C3, nil, "0 bytes"},
		"cut short":           {esp32ds.ESP32C3, p.Bytes()[:1219], "1219 bytes"},
		"too long":            {esp32ds.ESP32C3, append(p.Bytes(), 0), "1221 bytes"},
		"of an S2 or S3":      {esp32ds.ESP32C3, wide.Bytes(), "4096-bit operands, such as esp32s2"},
		"of a C3":             {esp32ds.ESP32S3, p.Bytes(), "3072-bit operands, such as esp32c3"},
		"of no chip":          {esp32ds.Chip(0), p.Bytes(), "chip(0) has no Digital Signature peripheral"},
		"length 0":            {esp32ds.ESP32C3, with(0), "rsa_length 0"},
		"length 94":           {esp32ds.ESP32C3, with(94), "rsa_length 94"},
		"length 64":           {esp32ds.ESP32C3, with(64), "rsa_length 64"},
		"4096 bits on a C3":   {esp32ds.ESP32C3, with(127), "rsa_length 127"},
		"length -1":           {esp32ds.ESP32C3, with(1<<32 - 1), "rsa_length 4294967295"},
		"length that wraps":   {esp32ds.ESP32C3, with(63 + 1<<27), "rsa_length"},
		"length of 2^31 bits": {esp32ds.ESP32C3, with(1<<26 - 1), "rsa_length"},
	} {
		_, err := esp32ds.ParseParams(c.chip, c.data)
		if !errors.Is(err, esp32ds.ErrInvalidArg) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// cbc decrypts or encrypts the ciphertext in an esp_ds_data_t.
func cbc(data []byte, hmacKey [32]byte, mode func(cipher.Block, []byte) cipher.BlockMode) {
	h := hmac.New(sha256.New, hmacKey[:])
	h.Write(bytes.Repeat([]byte{0xff}, 32))
	block, _ := aes.NewCipher(h.Sum(nil))
	mode(block, data[4:20]).CryptBlocks(data[20:], data[20:])
}

// reseal changes what is inside parameters, and makes the digest right again.
func reseal(data []byte, hmacKey [32]byte, change func(plain []byte)) []byte {
	data = bytes.Clone(data)
	cbc(data, hmacKey, cipher.NewCBCDecrypter)
	plain := data[20:]
	change(plain)
	n := len(plain) - 48
	md := sha256.Sum256(slices.Concat(plain[:n], plain[n+32:n+40], data[4:20]))
	copy(plain[n:], md[:])
	cbc(data, hmacKey, cipher.NewCBCEncrypter)
	return data
}

// TestCheckRefuses goes through everything that can be wrong inside.
func TestCheckRefuses(t *testing.T) {
	key, other := loadKey(t, "rsa2048-esk"), loadKey(t, "rsa2048-dsk")
	made, err := esp32ds.Encrypt(esp32ds.ESP32C3, key, knownHMACKey, knownIV)
	must(t, err)
	const width = 384
	for _, c := range []struct {
		name   string
		change func(plain []byte)
		want   error
		says   string
	}{
		{"Y", func(p []byte) { p[0] ^= 2 }, esp32ds.ErrInvalidArg, "private exponent"},
		{"Y beyond the modulus", func(p []byte) { p[width-1] = 1 }, esp32ds.ErrInvalidArg, "private exponent"},
		{"M", func(p []byte) { p[width+9] ^= 1 }, esp32ds.ErrInvalidArg, "modulus"},
		{"M wider than the key", func(p []byte) { p[2*width-1] = 1 }, esp32ds.ErrInvalidArg, "modulus"},
		{"Rb", func(p []byte) { p[2*width] ^= 1 }, esp32ds.ErrInvalidArg, "Rb"},
		{"M'", func(p []byte) { p[3*width+32] ^= 1 }, esp32ds.ErrInvalidArg, "M'"},
		{"length inside", func(p []byte) { p[3*width+36] = 95 }, esp32ds.ErrInvalidArg, "length 95 inside"},
		{"beta", func(p []byte) { p[3*width+47] = 7 }, esp32ds.ErrInvalidPadding, ""},
		{"first of beta", func(p []byte) { p[3*width+40] = 7 }, esp32ds.ErrInvalidPadding, ""},
	} {
		p, err := esp32ds.ParseParams(esp32ds.ESP32C3, reseal(made.Bytes(), knownHMACKey, c.change))
		must(t, err)
		if err := p.Check(knownHMACKey, &key.PublicKey); !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	same, err := esp32ds.ParseParams(esp32ds.ESP32C3, reseal(made.Bytes(), knownHMACKey, func([]byte) {}))
	must(t, err)
	must(t, same.Check(knownHMACKey, &key.PublicKey))

	if err := made.Check([32]byte{1}, &key.PublicKey); !errors.Is(err, esp32ds.ErrInvalidDigest) {
		t.Errorf("another eFuse key: %v", err)
	}
	for name, pub := range map[string]*rsa.PublicKey{
		"another": &other.PublicKey, "none": nil, "empty": {}, "longer": &loadKey(t, "rsa3072-esk").PublicKey,
		"other exponent": {N: key.N, E: 3},
	} {
		if err := made.Check(knownHMACKey, pub); !errors.Is(err, esp32ds.ErrInvalidArg) {
			t.Errorf("%s public key: %v", name, err)
		}
	}
	// The length outside is not encrypted: it is what a careless copy changes.
	outside := made.Bytes()
	outside[0] = 95
	p, err := esp32ds.ParseParams(esp32ds.ESP32C3, outside)
	must(t, err)
	if err := p.Check(knownHMACKey, &key.PublicKey); !errors.Is(err, esp32ds.ErrInvalidArg) {
		t.Errorf("length outside: %v", err)
	}
	outside = reseal(outside, knownHMACKey, func(p []byte) { p[3*width+36] = 95 })
	p, err = esp32ds.ParseParams(esp32ds.ESP32C3, outside)
	must(t, err)
	if err := p.Check(knownHMACKey, &key.PublicKey); !errors.Is(err, esp32ds.ErrInvalidArg) || !strings.Contains(err.Error(), "2048 bits") {
		t.Errorf("both lengths: %v", err)
	}
}

// TestCheckNoticesAnyBit flips bits all over the parameters.
func TestCheckNoticesAnyBit(t *testing.T) {
	key := loadKey(t, "rsa2048-esk")
	made, err := esp32ds.Encrypt(esp32ds.ESP32C3, key, knownHMACKey, knownIV)
	must(t, err)
	for i := range made.Bytes() {
		data := made.Bytes()
		data[i] ^= 1 << (i % 8)
		p, err := esp32ds.ParseParams(esp32ds.ESP32C3, data)
		if err == nil {
			err = p.Check(knownHMACKey, &key.PublicKey)
		}
		if err == nil {
			t.Errorf("byte %d: nothing noticed", i)
		}
	}
}

// smallKey is an RSA-1024 key, the same in every process of a fuzzer.
func smallKey() *rsa.PrivateKey {
	prime := func(hex string) *big.Int {
		p, _ := new(big.Int).SetString(hex, 16)
		return p
	}
	p := prime("e7b89b4f8678761e2fff03d43970c6cc0b5853e514099fa26de5dad2d20556cd" +
		"4fd70de1b130c98966248cf10ae17fa1186ff64ebd7db850a912bc3c88c70c3f")
	q := prime("e33c65a06ea121d626f9cbe6cf1e3deb076aebf65f392ad265060fd66587ba77" +
		"b2b9e8e4836c36f1cf9d261c0aa1706885c5f81c1cc03335b0a6418ec45843d7")
	one, e := big.NewInt(1), big.NewInt(65537)
	order := new(big.Int).Mul(new(big.Int).Sub(p, one), new(big.Int).Sub(q, one))
	return &rsa.PrivateKey{
		PublicKey: rsa.PublicKey{N: new(big.Int).Mul(p, q), E: 65537},
		D:         new(big.Int).ModInverse(e, order),
		Primes:    []*big.Int{p, q},
	}
}

// FuzzParseParams takes good parameters of a small key, cuts them and writes over
// a part, in the plaintext if reseal says so: then their MD is made right.
func FuzzParseParams(f *testing.F) {
	key := smallKey()
	good := make(map[esp32ds.Chip][]byte)
	for _, chip := range []esp32ds.Chip{esp32ds.ESP32C3, esp32ds.ESP32S3} {
		p, err := esp32ds.Encrypt(chip, key, knownHMACKey, knownIV)
		must(f, err)
		good[chip] = p.Bytes()
		f.Add(uint16(chip), uint16(len(good[chip])), uint16(0), []byte{}, false)
		f.Add(uint16(chip), uint16(100), uint16(0), []byte{95}, false)
		f.Add(uint16(chip), uint16(len(good[chip])), uint16(0), []byte{1, 2, 3}, true)
	}
	f.Fuzz(func(t *testing.T, chip, length, at uint16, patch []byte, seal bool) {
		if len(patch) > 16 {
			return // what the fuzzer finds in these it takes a minute to make smaller
		}
		source := good[esp32ds.Chip(chip)]
		if source == nil {
			source = good[esp32ds.ESP32C3]
		}
		data := make([]byte, int(length)%(2*len(source)))
		copy(data, source)
		write := func(b []byte) { copy(b[min(int(at), len(b)):], patch) }
		if seal && len(data) == len(source) {
			data = reseal(data, knownHMACKey, write)
		} else {
			write(data)
		}
		p, err := esp32ds.ParseParams(esp32ds.Chip(chip), data)
		if err != nil {
			return
		}
		if !bytes.Equal(p.Bytes(), data) || p.Bits() > p.Chip().MaxBits() {
			t.Errorf("parsed as %d bits, %d bytes", p.Bits(), len(p.Bytes()))
		}
		if err := p.Check(knownHMACKey, &key.PublicKey); err == nil {
			made, err := esp32ds.Encrypt(p.Chip(), key, knownHMACKey, [16]byte(data[4:]))
			if err != nil || !bytes.Equal(made.Bytes(), data) {
				t.Error("Check takes what Encrypt does not make")
			}
		}
	})
}

func TestChips(t *testing.T) {
	for _, c := range []esp32ds.Chip{esp32ds.ESP32S2, esp32ds.ESP32C3, esp32ds.ESP32S3, esp32ds.ESP32C6, esp32ds.ESP32H2, esp32ds.ESP32P4, esp32ds.ESP32C5} {
		if again, err := esp32ds.ParseChip(c.String()); err != nil || again != c || c.MaxBits() < 3072 {
			t.Errorf("%v is read as %v, %v, %d bits", c, again, err, c.MaxBits())
		}
	}
	for _, name := range []string{"", "esp32", "esp32c2", "esp32c61", "ESP32C3", "esp32-c3", "chip(5)"} {
		if c, err := esp32ds.ParseChip(name); err == nil {
			t.Errorf("%q is read as %v", name, c)
		}
	}
	if c := esp32ds.Chip(0); c.MaxBits() != 0 || c.String() != "chip(0)" {
		t.Errorf("the original ESP32 is %v with %d bits", c, c.MaxBits())
	}
}
