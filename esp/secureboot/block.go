package secureboot

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
)

const (
	sectorSize = 4096
	blockSize  = 1216
	maxBlocks  = 3

	blockMagic   = 0xE7
	versionRSA   = 2
	versionECDSA = 3
	digestOffset = 4
	crcOffset    = 1196 // the 16 bytes after the CRC belong to the block, but nothing covers them
)

// block is a signature block that is well-formed: the CRC is right, the
// version is known and fits the content, the public key is one.
type block struct {
	raw []byte // blockSize bytes
	key publicKey
}

// publicKey is what RSA and ECDSA blocks differ in.
type publicKey interface {
	// hash is the one that digests the image.
	hash() crypto.Hash
	// span is where the key lies in the block: what the key digest covers.
	span() (from, to int)
	// put writes version, key and precomputed values into the block.
	put(raw []byte)
	// sign makes the signature of the image digest and puts it into the block.
	sign(raw []byte, sign signFunc, digest []byte) error
	// verify checks the signature in the block.
	verify(raw, digest []byte) bool
}

type signFunc func(digest []byte, opts crypto.SignerOpts) ([]byte, error)

// parseBlock checks everything about a block but who made it and the
// signature. raw is kept.
func parseBlock(raw []byte) (*block, error) {
	if raw[0] != blockMagic {
		return nil, errors.New("erased or no signature block")
	}
	if got, want := crc32.ChecksumIEEE(raw[:crcOffset]), binary.LittleEndian.Uint32(raw[crcOffset:]); got != want {
		return nil, fmt.Errorf("CRC is 0x%08x, but the block gives 0x%08x", want, got)
	}
	var key publicKey
	var err error
	switch raw[1] {
	case versionRSA:
		key, err = parseRSA(raw)
	case versionECDSA:
		key, err = parseECDSA(raw)
	default:
		err = fmt.Errorf("version %d is neither 2 (RSA) nor 3 (ECDSA)", raw[1])
	}
	if err != nil {
		return nil, err
	}
	// The chip's ROM takes precomputed values from the block; a wrong one
	// would have it compute nonsense. They have to be ours, byte for byte.
	b := &block{raw: raw, key: key}
	again := make([]byte, blockSize)
	key.put(again)
	from, to := key.span()
	if !bytes.Equal(again[from:to], raw[from:to]) {
		return nil, errors.New("precomputed values or padding do not fit the public key")
	}
	return b, nil
}

// newBlock returns an unsigned block for public.
func newBlock(public crypto.PublicKey) (*block, error) {
	var key publicKey
	var err error
	switch public := public.(type) {
	case *rsa.PublicKey:
		key, err = newRSA(public)
	case *ecdsa.PublicKey:
		key, err = newECDSA(public)
	default:
		err = fmt.Errorf("%T is neither *rsa.PublicKey nor *ecdsa.PublicKey", public)
	}
	if err != nil {
		return nil, fmt.Errorf("public key: %w", err)
	}
	b := &block{raw: make([]byte, blockSize), key: key}
	b.raw[0] = blockMagic
	key.put(b.raw)
	return b, nil
}

func (b *block) keyDigest() Digest {
	from, to := b.key.span()
	return sha256.Sum256(b.raw[from:to])
}

// seal signs digest, the image's under the key's hash, and completes the block.
// What sign returns is checked: hardware may have made it.
func (b *block) seal(sign signFunc, digest []byte) error {
	copy(b.raw[digestOffset:], digest)
	if err := b.key.sign(b.raw, sign, digest); err != nil {
		return err
	}
	binary.LittleEndian.PutUint32(b.raw[crcOffset:], crc32.ChecksumIEEE(b.raw[:crcOffset]))
	if !b.key.verify(b.raw, digest) {
		return errors.New("the signer's signature does not verify under its public key")
	}
	return nil
}

// putLittleEndian fills field with a number that it gets as big-endian bytes
// of the same length, and back.
func putLittleEndian(field, bigEndian []byte) {
	copy(field, bigEndian)
	slices.Reverse(field)
}

func bigEndian(field []byte) []byte {
	b := slices.Clone(field)
	slices.Reverse(b)
	return b
}
