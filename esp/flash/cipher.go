package flash

import (
	"crypto/aes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"golang.org/x/crypto/xts"
)

// ErrKey is the error of a key that no scheme of flash encryption takes.
var ErrKey = errors.New("no key for flash encryption")

// CryptBlock is the least that encrypted flash is read and written in: addresses and
// lengths are multiples of it.
const CryptBlock = 16

// Cipher is flash encryption with one key. It prints as [redacted], and is safe for
// concurrent use. What it encrypts depends on the address in flash, and nothing
// protects it from being changed.
type Cipher struct {
	unit int // bytes that are encrypted together; a power of two
	do   func(unit []byte, address uint32, decrypt bool)
}

// NewXTS returns the scheme of all chips but the original ESP32, AES-XTS with 128 or 256
// bits: key is 32 or 64 bytes in the order in which espsecure takes it from a file. In
// eFuse it lies reversed, one half in each block (XTS_AES_128_KEY, XTS_AES_256_KEY_1 and
// _2). Other lengths are [ErrKey], also the ESP32-C2's 16 bytes, from which it derives a
// key.
func NewXTS(key []byte) (*Cipher, error) {
	if len(key) != 32 && len(key) != 64 {
		return nil, fmt.Errorf("flash: an XTS key of %d bytes, need 32 or 64: %w", len(key), ErrKey)
	}
	c, err := xts.NewCipher(aes.NewCipher, key)
	if err != nil {
		return nil, fmt.Errorf("flash: %w", err)
	}
	return &Cipher{xtsUnit, func(unit []byte, address uint32, decrypt bool) {
		reverse(unit)
		if decrypt {
			c.Decrypt(unit, unit, uint64(address))
		} else {
			c.Encrypt(unit, unit, uint64(address))
		}
		reverse(unit)
	}}, nil
}

const xtsUnit = 128

// reverse reverses the bytes of b, a multiple of 16.
func reverse(b []byte) {
	for i, j := 0, len(b)-8; i < j; i, j = i+8, j-8 {
		low, high := binary.LittleEndian.Uint64(b[i:]), binary.LittleEndian.Uint64(b[j:])
		binary.BigEndian.PutUint64(b[i:], high)
		binary.BigEndian.PutUint64(b[j:], low)
	}
}

// NewESP32 returns the scheme of the original ESP32: AES-256, used the other way round,
// with a key that is tweaked for every 32 bytes. key is 32 bytes in the order in which
// espsecure takes it from a file; in eFuse BLOCK1 it lies reversed. config is the eFuse
// field FLASH_CRYPT_CONFIG, 0 to 15: which parts of the key are tweaked; a device has
// 15. Other lengths, such as the 24 bytes of coding scheme 3/4, with which Secure Boot
// V2 does not work, are [ErrKey], and so are other configs.
func NewESP32(key []byte, config uint8) (*Cipher, error) {
	if len(key) != 32 {
		return nil, fmt.Errorf("flash: an ESP32 key of %d bytes, need 32: %w", len(key), ErrKey)
	}
	if config > 15 {
		return nil, fmt.Errorf("flash: FLASH_CRYPT_CONFIG %d, need 0 to 15: %w", config, ErrKey)
	}
	t := newESP32Tweak(key, config)
	return &Cipher{esp32Unit, func(unit []byte, address uint32, decrypt bool) {
		k := t.key(address)
		c, _ := aes.NewCipher(k[:]) // 32 bytes are a good key
		for b := unit; len(b) > 0; b = b[aes.BlockSize:] {
			block := b[:aes.BlockSize]
			reverse(block)
			if decrypt { // AES is used the other way round
				c.Encrypt(block, block)
			} else {
				c.Decrypt(block, block)
			}
			reverse(block)
		}
	}}, nil
}

const esp32Unit = 32

// number256 is a 256-bit number, least significant word first.
type number256 [4]uint64

// esp32Tweak makes the key of each 32 bytes: bits 5 to 23 of the address, many times
// over, are added to the parts of the key that FLASH_CRYPT_CONFIG says. The numbers are
// those of espsecure (_flash_encryption_tweak_key).
type esp32Tweak struct {
	base  number256
	parts number256 // the bits that are tweaked
}

func newESP32Tweak(key []byte, config uint8) esp32Tweak {
	parts := [4]number256{ // most significant first: 67, 65, 63 and 61 bits
		{0x0000000000000000, 0x0000000000000000, 0xE000000000000000, 0xFFFFFFFFFFFFFFFF},
		{0x0000000000000000, 0xF000000000000000, 0x1FFFFFFFFFFFFFFF, 0x0000000000000000},
		{0xE000000000000000, 0x0FFFFFFFFFFFFFFF, 0x0000000000000000, 0x0000000000000000},
		{0x1FFFFFFFFFFFFFFF, 0x0000000000000000, 0x0000000000000000, 0x0000000000000000},
	}
	var t esp32Tweak
	for i := range t.base {
		t.base[i] = binary.BigEndian.Uint64(key[24-8*i:])
		for n, part := range parts {
			if config>>n&1 != 0 {
				t.parts[i] |= part[i]
			}
		}
	}
	return t
}

func (t esp32Tweak) key(address uint32) (key [32]byte) {
	mul1 := number256{0x0000040000800010, 0x0000020000400008, 0x0000040000800010, 0x0000200004000080}
	mul2 := number256{0x2000000000000001, 0x1000000000000000, 0x2000000000000000, 0x0000000000000000}
	mask := number256{0xE00000000000000F, 0xF000000000000007, 0xE00000000000000F, 0x000000000000007F}
	one, two := mul1.times(address>>5), mul2.times(address>>5)
	for i := range t.base {
		tweak := (one[i] | two[i]&mask[i]) & t.parts[i]
		binary.BigEndian.PutUint64(key[24-8*i:], t.base[i]^tweak)
	}
	return key
}

// times returns the product without what is beyond 256 bits.
func (n number256) times(factor uint32) (product number256) {
	var carry uint64
	for i, word := range n {
		high, low := bits.Mul64(word, uint64(factor))
		var c uint64
		product[i], c = bits.Add64(low, carry, 0)
		carry = high + c
	}
	return product
}

// Encrypt encrypts src as it lies in flash at an address; dst may be src. Address and
// length are multiples of [CryptBlock], else the error is [ErrBounds], as it is for
// addresses beyond 32 bits.
func (c *Cipher) Encrypt(dst, src []byte, address int64) error {
	return c.crypt(dst, src, address, false)
}

// Decrypt is the inverse of [Cipher.Encrypt].
func (c *Cipher) Decrypt(dst, src []byte, address int64) error {
	return c.crypt(dst, src, address, true)
}

func (c *Cipher) crypt(dst, src []byte, address int64, decrypt bool) error {
	if address < 0 || address%CryptBlock != 0 || len(src)%CryptBlock != 0 || len(dst) < len(src) || address+int64(len(src)) > 1<<32 {
		return fmt.Errorf("flash: encryption of %d bytes at 0x%x, need multiples of %d: %w", len(src), address, CryptBlock, ErrBounds)
	}
	var buf [xtsUnit]byte
	for len(src) > 0 {
		skip := int(address & int64(c.unit-1))
		n := min(c.unit-skip, len(src))
		if n == c.unit {
			copy(dst[:n], src[:n])
			c.do(dst[:n], uint32(address), decrypt)
		} else { // a part of a unit: what is around it does not matter
			unit := buf[:c.unit]
			copy(unit[skip:], src[:n])
			c.do(unit, uint32(address)&^uint32(c.unit-1), decrypt)
			copy(dst[:n], unit[skip:])
		}
		dst, src, address = dst[n:], src[n:], address+int64(n)
	}
	return nil
}

const redacted = "[redacted]"

// String hides the key.
func (c *Cipher) String() string { return redacted }

// GoString hides the key.
func (c *Cipher) GoString() string { return redacted }
