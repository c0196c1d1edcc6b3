package secureboot

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"io"

	"github.com/quarklink-go/quarklink/esp/image"
)

// Sign returns img with the signature of each key, in the order of the keys.
// If img is signed already, the signatures are added to those it has; there
// is room for three, and for one on the original ESP32. To start over, sign
// img[:n] where n is [image.Image.Length].
//
// Each key is a crypto.Signer, in memory or in hardware, whose public key is
// one that [KeyDigest] takes. It signs a digest: the image is hashed once.
// random is handed to it; use the Reader of crypto/rand. The result shares no memory
// with img.
//
// The error is [ErrImage] if img is no sound image. It has no sentinel if a
// key is none that Secure Boot takes, if its signature does not verify, if
// there is no room, or if a block that is there already is no valid signature.
func Sign(random io.Reader, img []byte, keys ...crypto.Signer) ([]byte, error) {
	trailer, at, err := SignAt(random, bytes.NewReader(img), int64(len(img)), keys...)
	if err != nil {
		return nil, err
	}
	signed := make([]byte, 0, int(at)+len(trailer))
	return append(append(signed, img[:at]...), trailer...), nil
}

// SignAt is [Sign] for an image that is not in memory: it returns the bytes
// that, written at offset at, sign the image. They are the padding that is
// missing before the signature sector, and the sector.
func SignAt(random io.Reader, img io.ReaderAt, size int64, keys ...crypto.Signer) (trailer []byte, at int64, err error) {
	if len(keys) == 0 {
		return nil, 0, errors.New("secureboot: no key to sign with")
	}
	m, err := readImage(img, size)
	if err != nil {
		return nil, 0, err
	}
	sector, used, err := m.signatures()
	if err != nil {
		return nil, 0, err
	}
	for i, key := range keys {
		b, err := newBlock(key.Public())
		if err != nil {
			return nil, 0, fmt.Errorf("secureboot: key %d: %w", i, err)
		}
		slot, err := used.take(m.Header.Chip, b.keyDigest())
		if err != nil {
			return nil, 0, fmt.Errorf("secureboot: key %d: %w", i, err)
		}
		digest, err := m.digest(b.key.hash())
		if err != nil {
			return nil, 0, err
		}
		sign := func(digest []byte, opts crypto.SignerOpts) ([]byte, error) { return key.Sign(random, digest, opts) }
		if err := b.seal(sign, digest); err != nil {
			return nil, 0, fmt.Errorf("secureboot: sign with key %d: %w", i, err)
		}
		copy(sector[slot*blockSize:], b.raw)
	}
	at = min(size, m.PaddedLength())
	return append(erased(m.PaddedLength()-at), sector...), at, nil
}

// slots says which blocks of a sector are in use, and by which key.
type slots [maxBlocks]*Digest

// take reserves a free slot.
func (s *slots) take(chip image.Chip, key Digest) (int, error) {
	count := maxBlocks
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
func (m *signedImage) signatures() ([]byte, *slots, error) {
	have, err := m.sector()
	if err != nil {
		return nil, nil, err
	}
	sector := append(have, erased(int64(sectorSize-len(have)))...)
	var used slots
	for i := range used {
		raw := sector[i*blockSize:][:blockSize]
		if len(bytes.Trim(raw, "\xFF")) == 0 {
			continue
		}
		d, err := m.signedBy(raw)
		if err != nil {
			return nil, nil, fmt.Errorf("secureboot: what is in signature block %d at offset 0x%x is no valid signature of this image (to start over, sign the image without it): %w",
				i, m.PaddedLength()+int64(i*blockSize), err)
		}
		used[i] = &d
	}
	return sector, &used, nil
}

// signedBy returns whose signature of the image the block holds.
func (m *signedImage) signedBy(raw []byte) (Digest, error) {
	b, err := parseBlock(raw)
	if err != nil {
		return Digest{}, err
	}
	digest, err := m.digest(b.key.hash())
	if err != nil {
		return Digest{}, err
	}
	if !b.key.verify(raw, digest) {
		return Digest{}, errors.New("the signature is wrong")
	}
	return b.keyDigest(), nil
}
