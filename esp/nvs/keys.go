package nvs

import (
	"crypto/aes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"

	"golang.org/x/crypto/xts"
)

const xtsKeySize = 64 // 32 bytes of encryption key, 32 of tweak key: AES-256-XTS

// Keys are the AES-256-XTS keys of an encrypted partition. They print as
// "[redacted]".
type Keys struct {
	xts [xtsKeySize]byte
}

// ParseKeys reads the content of an nvs_keys partition as Espressif's
// nvs_partition_gen writes it: encryption key and tweak key (32 bytes each)
// and their CRC-32; what follows is ignored. Anything else is [ErrKeys].
//
// On a chip with flash encryption the partition itself is encrypted: read it
// through the decryption (esp_partition_read), not raw.
func ParseKeys(b []byte) (*Keys, error) {
	if len(b) < xtsKeySize+4 {
		return nil, fmt.Errorf("nvs: keys partition of %d bytes, need at least %d: %w", len(b), xtsKeySize+4, ErrKeys)
	}
	if all(b[:xtsKeySize+4], 0xFF) {
		return nil, fmt.Errorf("nvs: keys partition is blank: %w", ErrKeys)
	}
	if crc(b[:xtsKeySize]) != binary.LittleEndian.Uint32(b[xtsKeySize:]) {
		return nil, fmt.Errorf("nvs: checksum of the keys partition is wrong (is it still encrypted by flash encryption?): %w", ErrKeys)
	}
	k := new(Keys)
	copy(k.xts[:], b)
	return k, nil
}

// KeysFromHMAC derives the keys as ESP-IDF's HMAC scheme does on chips with an
// HMAC peripheral (CONFIG_NVS_SEC_KEY_PROTECT_USING_HMAC), from the 32-byte
// key in the chip's eFuse. A key of another length is [ErrKeys].
func KeysFromHMAC(key []byte) (*Keys, error) {
	if len(key) != 32 {
		return nil, fmt.Errorf("nvs: HMAC key of %d bytes, need 32: %w", len(key), ErrKeys)
	}
	k := new(Keys)
	for i, seed := range [2][4]byte{{0x5A, 0x5A, 0xBE, 0xAE}, {0xA5, 0xA5, 0xDE, 0xCE}} {
		h := hmac.New(sha256.New, key)
		for range 8 {
			h.Write(seed[:])
		}
		h.Sum(k.xts[32*i : 32*i])
	}
	return k, nil
}

// GenerateKeys makes new keys from 64 bytes of random, which must be a
// cryptographic source.
func GenerateKeys(random io.Reader) (*Keys, error) {
	k := new(Keys)
	if _, err := io.ReadFull(random, k.xts[:]); err != nil {
		return nil, fmt.Errorf("nvs: make keys: %w", err)
	}
	return k, nil
}

// Partition returns the content of an nvs_keys partition with these keys, 4096
// bytes, as [ParseKeys] reads it. It is secret.
func (k *Keys) Partition() []byte {
	b := make([]byte, sectorSize)
	fill(b, 0xFF)
	copy(b, k.xts[:])
	binary.LittleEndian.PutUint32(b[xtsKeySize:], crc(k.xts[:]))
	return b
}

const redacted = "[redacted]"

// String returns "[redacted]".
func (k Keys) String() string { return redacted }

// GoString returns "[redacted]".
func (k Keys) GoString() string { return redacted }

// cipher returns the XTS cipher; nil for nil keys, a plain partition.
func (k *Keys) cipher() (*xts.Cipher, error) {
	if k == nil {
		return nil, nil
	}
	return xts.NewCipher(aes.NewCipher, k.xts[:])
}

// decrypt replaces the entries in b, which are at off in the partition, by
// their plain text. A nil cipher leaves them.
func (p *Partition) decrypt(b []byte, off int64) {
	for i := 0; p.cipher != nil && i < len(b); i += entrySize {
		p.cipher.Decrypt(b[i:i+entrySize], b[i:i+entrySize], uint64(off)+uint64(i))
	}
}

// encrypt is the reverse of decrypt.
func (p *Partition) encrypt(b []byte, off int64) {
	for i := 0; p.cipher != nil && i < len(b); i += entrySize {
		p.cipher.Encrypt(b[i:i+entrySize], b[i:i+entrySize], uint64(off)+uint64(i))
	}
}
