// Package sigblock has what verifying and signing share: the signature block of
// Secure Boot V2, its schemes, and the image that it signs.
package sigblock

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
)

// The signature sector: up to MaxBlocks blocks of BlockSize bytes.
const (
	SectorSize = 4096
	BlockSize  = 1216
	MaxBlocks  = 3
)

// What every block has. The 16 bytes after the CRC belong to the block, but
// nothing covers them.
const (
	Magic        = 0xE7
	VersionRSA   = 2
	VersionECDSA = 3
	digestOffset = 4
	CRCOffset    = 1196
)

// Block is a signature block that is well-formed: the CRC is right, the
// version is known and fits the content, the public key is one.
type Block struct {
	Raw []byte // BlockSize bytes
	Key PublicKey
}

// Parse checks everything about a block but who made it and the signature. raw
// is kept.
func Parse(raw []byte, schemes []Scheme) (*Block, error) {
	if raw[0] != Magic {
		return nil, errors.New("erased or no signature block")
	}
	if got, want := crc32.ChecksumIEEE(raw[:CRCOffset]), binary.LittleEndian.Uint32(raw[CRCOffset:]); got != want {
		return nil, fmt.Errorf("CRC is 0x%08x, but the block gives 0x%08x", want, got)
	}
	scheme, err := schemeOf(raw[1], schemes)
	if err != nil {
		return nil, err
	}
	key, err := scheme.Parse(raw)
	if err != nil {
		return nil, err
	}
	// The chip's ROM takes precomputed values from the block; a wrong one
	// would have it compute nonsense. They have to be ours, byte for byte.
	b := &Block{Raw: raw, Key: key}
	again := make([]byte, BlockSize)
	key.Put(again)
	from, to := key.Span()
	if !bytes.Equal(again[from:to], raw[from:to]) {
		return nil, errors.New("precomputed values or padding do not fit the public key")
	}
	return b, nil
}

func schemeOf(version byte, schemes []Scheme) (Scheme, error) {
	for _, s := range schemes {
		if s != nil && s.Version() == version {
			return s, nil
		}
	}
	switch version {
	case VersionRSA:
		return nil, errors.New("the scheme is RSA, which is not among those to accept")
	case VersionECDSA:
		return nil, errors.New("the scheme is ECDSA, which is not among those to accept")
	}
	return nil, fmt.Errorf("version %d is neither 2 (RSA) nor 3 (ECDSA)", version)
}

// New returns an unsigned block for public.
func New(public crypto.PublicKey, schemes []Scheme) (*Block, error) {
	for _, s := range schemes {
		key, ours, err := s.Take(public)
		if err != nil {
			return nil, fmt.Errorf("public key: %w", err)
		}
		if ours {
			b := &Block{Raw: make([]byte, BlockSize), Key: key}
			b.Raw[0] = Magic
			key.Put(b.Raw)
			return b, nil
		}
	}
	return nil, fmt.Errorf("public key: %T is neither *rsa.PublicKey nor *ecdsa.PublicKey", public)
}

// KeyDigest returns what eFuse holds of the key.
func (b *Block) KeyDigest() [sha256.Size]byte {
	from, to := b.Key.Span()
	return sha256.Sum256(b.Raw[from:to])
}

// Seal signs digest, the image's under the key's hash, and completes the block.
// What sign returns is checked: hardware may have made it.
func (b *Block) Seal(sign SignFunc, digest []byte) error {
	copy(b.Raw[digestOffset:], digest)
	if err := b.Key.Sign(b.Raw, sign, digest); err != nil {
		return err
	}
	binary.LittleEndian.PutUint32(b.Raw[CRCOffset:], crc32.ChecksumIEEE(b.Raw[:CRCOffset]))
	if !b.Key.Verify(b.Raw, digest) {
		return errors.New("the signer's signature does not verify under its public key")
	}
	return nil
}

// PutLittleEndian fills field with a number that it gets as big-endian bytes
// of the same length, and back.
func PutLittleEndian(field, bigEndian []byte) {
	copy(field, bigEndian)
	slices.Reverse(field)
}

// BigEndian returns the bytes of a little-endian number in reverse.
func BigEndian(field []byte) []byte {
	b := slices.Clone(field)
	slices.Reverse(b)
	return b
}
