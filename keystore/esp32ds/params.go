package esp32ds

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"math/big"
	"slices"
)

// Params are the parameters of one RSA key, encrypted for one eFuse key: what
// the peripheral takes to use the key, and what lies in flash. They tell nothing
// of the private key to whoever does not have the eFuse key.
//
// Their bytes are ESP-IDF's esp_ds_data_t: rsa_length as a little-endian uint32
// (the key's 32-bit words, minus one), 16 bytes of IV, and the ciphertext C,
// whose length depends on the chip's operand width alone: 1220 bytes in all for
// 3072 bits, 1604 for 4096. A Params is immutable and safe for concurrent use.
type Params struct {
	chip Chip
	bits int
	data []byte // esp_ds_data_t
}

// Layout of esp_ds_data_t, and of the plaintext of C:
//
//	Y, M, Rb (each as wide as the chip's operands), MD (32), M' (4), L (4), beta (8)
//
// All numbers are little-endian. MD is SHA-256 of Y, M, Rb, M', L, IV.
const (
	ivOffset = 4
	cOffset  = ivOffset + aes.BlockSize
	mdSize   = sha256.Size
	beta     = "\x08\x08\x08\x08\x08\x08\x08\x08"
	tailSize = mdSize + 4 + 4 + len(beta)
)

func cSize(chip Chip) int    { return 3*chip.MaxBits()/8 + tailSize }
func dataSize(chip Chip) int { return cOffset + cSize(chip) }

// Encrypt makes the parameters of an RSA key for a chip whose eFuse key block
// holds hmacKey, as espefuse burns it (not reversed). The chips take keys of
// 1024, 2048 and 3072 bits, and those with 4096-bit operands of 4096; other
// lengths, a key that is no pair, and a chip without the peripheral are
// ErrInvalidArg.
//
// iv must be random, and another one for each key under one hmacKey. The result
// is a function of the arguments alone.
func Encrypt(chip Chip, key *rsa.PrivateKey, hmacKey [32]byte, iv [16]byte) (*Params, error) {
	if key == nil || key.D == nil {
		return nil, fmt.Errorf("esp32ds: encrypt: no private key: %w", ErrInvalidArg)
	}
	if err := checkPublicKey(chip, &key.PublicKey); err != nil {
		return nil, fmt.Errorf("esp32ds: encrypt: %w", err)
	}
	if !isPair(&key.PublicKey, key.D, key.Primes) {
		return nil, fmt.Errorf("esp32ds: encrypt: the private exponent does not belong to the public key: %w", ErrInvalidArg)
	}
	p := &Params{chip: chip, bits: key.N.BitLen(), data: make([]byte, dataSize(chip))}
	binary.LittleEndian.PutUint32(p.data, uint32(p.bits/32-1))
	copy(p.data[ivOffset:], iv[:])

	plain := p.data[cOffset:] // encrypted in place
	operands(plain, chip, key.N, key.D)
	md := digest(plain, iv[:])
	copy(plain[len(plain)-tailSize:], md[:])
	p.newCBC(hmacKey, cipher.NewCBCEncrypter).CryptBlocks(plain, plain)
	return p, nil
}

// operands writes everything but MD: the Montgomery constants are those of
// R = 2^bits, however wide the operands.
func operands(plain []byte, chip Chip, n, d *big.Int) {
	width := chip.MaxBits() / 8
	putLittleEndian(plain[:width], d)
	putLittleEndian(plain[width:2*width], n)
	putLittleEndian(plain[2*width:3*width], montgomerySquare(n))
	tail := plain[3*width+mdSize:]
	binary.LittleEndian.PutUint32(tail, montgomeryPrime(n))
	binary.LittleEndian.PutUint32(tail[4:], uint32(n.BitLen()/32-1))
	copy(tail[8:], beta)
}

// montgomerySquare returns R² mod n.
func montgomerySquare(n *big.Int) *big.Int {
	square := new(big.Int).Lsh(big.NewInt(1), 2*uint(n.BitLen()))
	return square.Mod(square, n)
}

// montgomeryPrime returns -1/n mod 2^32 of an odd n.
func montgomeryPrime(n *big.Int) uint32 {
	n0 := uint32(new(big.Int).And(n, big.NewInt(1<<32-1)).Uint64())
	inverse := n0 // right in the lowest 3 bits; each round doubles them
	for range 4 {
		inverse *= 2 - n0*inverse
	}
	return -inverse
}

// digest returns MD of a plaintext.
func digest(plain, iv []byte) [sha256.Size]byte {
	h := sha256.New()
	numbers := len(plain) - tailSize
	h.Write(plain[:numbers])
	h.Write(plain[numbers+mdSize : len(plain)-len(beta)])
	h.Write(iv)
	return [sha256.Size]byte(h.Sum(nil))
}

func (p *Params) newCBC(hmacKey [32]byte, mode func(cipher.Block, []byte) cipher.BlockMode) cipher.BlockMode {
	h := hmac.New(sha256.New, hmacKey[:])
	h.Write(bytes.Repeat([]byte{0xff}, 32))
	key := h.Sum(nil)
	defer clear(key)
	defer clear(hmacKey[:])        // the copy, which escapes to the heap
	block, _ := aes.NewCipher(key) // 32 bytes are a good key
	return mode(block, p.data[ivOffset:cOffset])
}

// ParseParams reads an esp_ds_data_t made for that chip. A length that is not
// the chip's, or an rsa_length that the chip does not take, is ErrInvalidArg.
// What is inside stays encrypted: see [Params.Check]. Parameters for chips with
// equal operands look the same.
func ParseParams(chip Chip, data []byte) (*Params, error) {
	if chip.MaxBits() == 0 {
		return nil, fmt.Errorf("esp32ds: parameters: %v has no Digital Signature peripheral: %w", chip, ErrInvalidArg)
	}
	if len(data) != dataSize(chip) {
		for _, other := range chips {
			if len(data) == dataSize(other.id) {
				return nil, fmt.Errorf("esp32ds: parameters are for a chip with %d-bit operands, such as %v, and this is %v, which has %d: %w",
					other.maxBits, other.id, chip, chip.MaxBits(), ErrInvalidArg)
			}
		}
		return nil, fmt.Errorf("esp32ds: parameters of %d bytes, %v takes %d: %w", len(data), chip, dataSize(chip), ErrInvalidArg)
	}
	words := binary.LittleEndian.Uint32(data)
	if words > 4096/32 || !chip.takesBits(int(words+1)*32) {
		return nil, fmt.Errorf("esp32ds: parameters: rsa_length %d is none of the lengths that %v takes: %w", words, chip, ErrInvalidArg)
	}
	return &Params{chip: chip, bits: int(words+1) * 32, data: bytes.Clone(data)}, nil
}

// Chip returns the chip that the parameters were made or parsed for.
func (p *Params) Chip() Chip { return p.chip }

// Bits returns the length of the key in bits, as rsa_length says it.
func (p *Params) Bits() int { return p.bits }

// Bytes returns a copy of the esp_ds_data_t.
func (p *Params) Bytes() []byte { return bytes.Clone(p.data) }

// Check decrypts the parameters with the eFuse key and returns nil if they are
// what [Encrypt] makes of the private half of pub. It is for whoever still has
// the eFuse key, as a provisioning host.
//
// A digest that does not match is [ErrInvalidDigest]: damage, or another eFuse
// key. Wrong padding under a right digest is [ErrInvalidPadding]. Both are what
// the chip says. Lengths inside and outside that differ, Montgomery constants
// that do not fit the modulus, and a key that is not pub's are ErrInvalidArg; the
// chip would compute nonsense from those without a word.
func (p *Params) Check(hmacKey [32]byte, pub *rsa.PublicKey) error {
	if err := checkPublicKey(p.chip, pub); err != nil {
		return fmt.Errorf("esp32ds: check parameters: %w", err)
	}
	plain := bytes.Clone(p.data[cOffset:])
	defer clear(plain)
	p.newCBC(hmacKey, cipher.NewCBCDecrypter).CryptBlocks(plain, plain)
	if err := p.checkPlain(plain, pub); err != nil {
		return fmt.Errorf("esp32ds: check parameters: %w", err)
	}
	return nil
}

func (p *Params) checkPlain(plain []byte, pub *rsa.PublicKey) error {
	numbers := len(plain) - tailSize
	tail := plain[numbers:]
	md := digest(plain, p.data[ivOffset:cOffset])
	if subtle.ConstantTimeCompare(md[:], tail[:mdSize]) == 0 {
		return ErrInvalidDigest
	}
	if string(tail[mdSize+8:]) != beta {
		return ErrInvalidPadding
	}
	if inside := binary.LittleEndian.Uint32(tail[mdSize+4:]); inside != uint32(p.bits/32-1) {
		return fmt.Errorf("length %d inside, rsa_length %d outside: %w", inside, p.bits/32-1, ErrInvalidArg)
	}
	width := numbers / 3
	d := littleEndian(plain[:width])
	defer clear(d.Bits())
	n := littleEndian(plain[width : 2*width])
	switch {
	case n.Cmp(pub.N) != 0:
		return fmt.Errorf("the modulus is not the public key's: %w", ErrInvalidArg)
	case n.BitLen() != p.bits:
		return fmt.Errorf("a modulus of %d bits, rsa_length says %d: %w", n.BitLen(), p.bits, ErrInvalidArg)
	case littleEndian(plain[2*width:numbers]).Cmp(montgomerySquare(n)) != 0:
		return fmt.Errorf("not R² mod M in Rb: %w", ErrInvalidArg)
	case binary.LittleEndian.Uint32(tail[mdSize:]) != montgomeryPrime(n):
		return fmt.Errorf("not -1/M in M': %w", ErrInvalidArg)
	case !isPair(pub, d, nil):
		return fmt.Errorf("the private exponent does not belong to the public key: %w", ErrInvalidArg)
	}
	return nil
}

// checkPublicKey refuses what the chip cannot compute with.
func checkPublicKey(chip Chip, pub *rsa.PublicKey) error {
	switch {
	case chip.MaxBits() == 0:
		return fmt.Errorf("%v has no Digital Signature peripheral: %w", chip, ErrInvalidArg)
	case pub == nil || pub.N == nil || pub.N.Sign() <= 0 || pub.N.Bit(0) == 0:
		return fmt.Errorf("no RSA key: the modulus is absent, even or not positive: %w", ErrInvalidArg)
	case !chip.takesBits(pub.N.BitLen()):
		return fmt.Errorf("an RSA key of %d bits: %v takes 1024, 2048, 3072 and 4096 up to %d: %w", pub.N.BitLen(), chip, chip.MaxBits(), ErrInvalidArg)
	case pub.E < 3 || pub.E&1 == 0 || int64(pub.E) > 1<<31-1:
		return fmt.Errorf("RSA public exponent %d, need an odd one from 3 to 2^31-1: %w", pub.E, ErrInvalidArg)
	}
	return nil
}

// isPair reports whether d undoes the public key's exponent. With the factors that
// is a division for each of them, and without an exponentiation, which takes a
// microcontroller many seconds.
func isPair(pub *rsa.PublicKey, d *big.Int, primes []*big.Int) bool {
	if d.Sign() <= 0 || d.Cmp(pub.N) >= 0 {
		return false
	}
	both := new(big.Int).Mul(d, big.NewInt(int64(pub.E)))
	defer clear(both.Bits())
	if len(primes) == 0 {
		two := big.NewInt(2)
		return new(big.Int).Exp(two, both, pub.N).Cmp(two) == 0
	}
	both.Sub(both, big.NewInt(1))
	product, order, rest := big.NewInt(1), new(big.Int), new(big.Int)
	for _, p := range primes {
		if p == nil || p.Cmp(big.NewInt(2)) <= 0 || rest.Mod(both, order.Sub(p, big.NewInt(1))).Sign() != 0 {
			return false
		}
		product.Mul(product, p)
	}
	clear(order.Bits())
	return product.Cmp(pub.N) == 0
}

// putLittleEndian fills dst with x, which fits.
func putLittleEndian(dst []byte, x *big.Int) {
	x.FillBytes(dst)
	slices.Reverse(dst)
}

func littleEndian(src []byte) *big.Int {
	bigEndian := bytes.Clone(src)
	defer clear(bigEndian)
	slices.Reverse(bigEndian)
	return new(big.Int).SetBytes(bigEndian)
}
