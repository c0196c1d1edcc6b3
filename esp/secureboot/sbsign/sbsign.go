// Package sbsign signs images for Secure Boot V2, as espsecure sign_data does,
// by RSA and by ECDSA. It is for hosts: a device only verifies, with package
// secureboot.
package sbsign

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"io"

	"github.com/quarklink-go/quarklink/esp/image"
	"github.com/quarklink-go/quarklink/esp/secureboot"
	"github.com/quarklink-go/quarklink/esp/secureboot/internal/sigblock"
	"github.com/quarklink-go/quarklink/esp/secureboot/sbecdsa"
)

// schemes is all there are: a host has room for them.
func schemes() []sigblock.Scheme {
	return []sigblock.Scheme{secureboot.RSA(), sbecdsa.Scheme()}
}

// KeyDigest returns the digest of a public key: an *rsa.PublicKey of 3072
// bits or an *ecdsa.PublicKey on P-192 (see [sbecdsa.P192]), P-256 or P-384. It
// is what "espsecure digest_sbv2_public_key" writes.
func KeyDigest(public crypto.PublicKey) (secureboot.Digest, error) {
	b, err := sigblock.New(public, schemes())
	if err != nil {
		return secureboot.Digest{}, fmt.Errorf("secureboot: %w", err)
	}
	return b.KeyDigest(), nil
}

// Image returns img with the signature of each key, in the order of the keys.
// If img is signed already, the signatures are added to those it has; there
// is room for three, and for one on the original ESP32. To start over, sign
// img[:n] where n is [image.Image.Length].
//
// Each key is a crypto.Signer, in memory or in hardware, whose public key is
// one that [KeyDigest] takes and whose scheme the image's chip has. It signs a
// digest: the image is hashed once. random is handed to it; use the Reader of
// crypto/rand. The result shares no memory with img.
//
// The error is [secureboot.ErrImage] if img is no sound image. It has no
// sentinel if a key is none that the chip's Secure Boot takes, if its signature
// does not verify, if there is no room, or if a block that is there already is
// no valid signature.
func Image(random io.Reader, img []byte, keys ...crypto.Signer) ([]byte, error) {
	trailer, at, err := ImageAt(random, bytes.NewReader(img), int64(len(img)), keys...)
	if err != nil {
		return nil, err
	}
	signed := make([]byte, 0, int(at)+len(trailer))
	return append(append(signed, img[:at]...), trailer...), nil
}

// ImageAt is [Image] for an image that is not in memory: it returns the bytes
// that, written at offset at, sign the image. They are the padding that is
// missing before the signature sector, and the sector.
func ImageAt(random io.Reader, img io.ReaderAt, size int64, keys ...crypto.Signer) (trailer []byte, at int64, err error) {
	if len(keys) == 0 {
		return nil, 0, errors.New("secureboot: no key to sign with")
	}
	m, err := sigblock.ReadImage(img, size)
	if err != nil {
		return nil, 0, err
	}
	sector, used, err := signatures(m)
	if err != nil {
		return nil, 0, err
	}
	for i, key := range keys {
		b, err := sigblock.New(key.Public(), schemes())
		if err != nil {
			return nil, 0, fmt.Errorf("secureboot: key %d: %w", i, err)
		}
		if err := sigblock.CheckChip(m.Header.Chip, b.Key.Algorithm()); err != nil {
			return nil, 0, fmt.Errorf("secureboot: key %d: %w", i, err)
		}
		slot, err := used.take(m.Header.Chip, b.KeyDigest())
		if err != nil {
			return nil, 0, fmt.Errorf("secureboot: key %d: %w", i, err)
		}
		digest, err := m.Digest(b.Key.Hash())
		if err != nil {
			return nil, 0, err
		}
		sign := func(digest []byte, opts crypto.SignerOpts) ([]byte, error) { return key.Sign(random, digest, opts) }
		if err := b.Seal(sign, digest); err != nil {
			return nil, 0, fmt.Errorf("secureboot: sign with key %d: %w", i, err)
		}
		copy(sector[slot*sigblock.BlockSize:], b.Raw)
	}
	at = min(size, m.PaddedLength())
	return append(sigblock.Erased(m.PaddedLength()-at), sector...), at, nil
}

// slots says which blocks of a sector are in use, and by which key.
type slots [sigblock.MaxBlocks]*secureboot.Digest

// take reserves a free slot.
func (s *slots) take(chip image.Chip, key secureboot.Digest) (int, error) {
	count := sigblock.MaxBlocks
	if chip == image.ESP32 {
		count = 1
	}
	free := -1
	for i := count - 1; i >= 0; i-- {
		if s[i] == nil {
			free = i
		} else if *s[i] == key {
			return 0, fmt.Errorf("the image has a signature by key %v already", key)
		}
	}
	if free < 0 {
		return 0, fmt.Errorf("no room: an image for %v has at most %d signatures", chip, count)
	}
	s[free] = &key
	return free, nil
}

// signatures returns the signature sector, erased where there is none yet.
// What is in it has to be signatures of this image.
func signatures(m *sigblock.SignedImage) ([]byte, *slots, error) {
	have, err := m.Sector()
	if err != nil {
		return nil, nil, err
	}
	sector := append(have, sigblock.Erased(int64(sigblock.SectorSize-len(have)))...)
	var used slots
	for i := range used {
		raw := sector[i*sigblock.BlockSize:][:sigblock.BlockSize]
		if len(bytes.Trim(raw, "\xFF")) == 0 {
			continue
		}
		d, err := signedBy(m, raw)
		if err != nil {
			return nil, nil, fmt.Errorf("secureboot: what is in signature block %d at offset 0x%x is no valid signature of this image (to start over, sign the image without it): %w",
				i, m.PaddedLength()+int64(i*sigblock.BlockSize), err)
		}
		used[i] = &d
	}
	return sector, &used, nil
}

// signedBy returns whose signature of the image the block holds.
func signedBy(m *sigblock.SignedImage, raw []byte) (secureboot.Digest, error) {
	b, err := sigblock.Parse(raw, schemes())
	if err != nil {
		return secureboot.Digest{}, err
	}
	digest, err := m.Digest(b.Key.Hash())
	if err != nil {
		return secureboot.Digest{}, err
	}
	if !b.Key.Verify(raw, digest) {
		return secureboot.Digest{}, errors.New("the signature is wrong")
	}
	return b.KeyDigest(), nil
}
