package secureboot

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"strings"

	"github.com/quarklink-go/quarklink/esp/image"
)

// Verifier decides whether an image may run on a chip, as the chip's
// bootloader does. It is safe for concurrent use as long as nobody changes it.
//
// The zero value trusts no key and refuses everything with [ErrNoTrustedKey].
type Verifier struct {
	// Chip is the chip that is to run the image. The zero value is the
	// original ESP32, where only the first signature block counts.
	Chip image.Chip

	// Trusted holds the digests of the keys whose images may run: those in
	// the chip's eFuse. At least one is required.
	Trusted []Digest

	// Revoked holds the digests of keys that are trusted no more, whether
	// or not they are in Trusted.
	Revoked []Digest

	// MinSecureVersion is the lowest secure version that may run, by the
	// application descriptor. If it is not 0, an image without a descriptor
	// may not run.
	MinSecureVersion uint32
}

// Verify reads the image at the start of img, which holds size bytes, and its
// signature sector, and returns nil if the image may run. Bytes after the
// sector are ignored, as they are on the chip. Memory use is constant.
//
// The verdicts are [ErrImage], [ErrNoSignature], [ErrSignature] and
// [ErrSecureVersion], tried in this order. Other errors are no verdict:
// [ErrNoTrustedKey], those of img, and ctx's once it is done.
func (v Verifier) Verify(ctx context.Context, img io.ReaderAt, size int64) error {
	if len(v.Trusted) == 0 {
		return ErrNoTrustedKey
	}
	src := contextReader{ctx, img}
	header, err := image.ReadHeader(src, size)
	if err != nil {
		return imageError(err)
	}
	if err := v.checkChip(header); err != nil {
		return err
	}
	m, err := readImage(src, size)
	if err != nil {
		return err
	}
	if err := v.checkChip(m.Header); err != nil { // what was hashed, this time
		return err
	}
	if err := v.checkSignature(m); err != nil {
		return err
	}
	return v.checkSecureVersion(m.App)
}

func (v Verifier) checkChip(h image.Header) error {
	if h.Chip == v.Chip {
		return nil
	}
	return imageError(&image.FormatError{Offset: 12, Err: image.ErrChip, Detail: fmt.Sprintf("%v, want %v", h.Chip, v.Chip)})
}

func (v Verifier) checkSignature(m *signedImage) error {
	sector, err := m.sector()
	if err != nil {
		return err
	}
	if !hasBlock(sector) {
		if m.secureBootV1() {
			return fmt.Errorf("secureboot: %w: %w", ErrNoSignature, ErrSecureBootV1)
		}
		return fmt.Errorf("secureboot: %w: no signature block at offset 0x%x", ErrNoSignature, m.PaddedLength())
	}
	if len(sector) < sectorSize {
		return imageError(&image.FormatError{Offset: m.PaddedLength() + int64(len(sector)), Err: image.ErrTruncated, Detail: "the file ends within the signature sector"})
	}
	blocks := maxBlocks
	if v.Chip == image.ESP32 {
		blocks = 1
	}
	var reasons []string
	for i := range blocks {
		reason, err := v.checkBlock(m, sector[i*blockSize:][:blockSize])
		if err != nil {
			return err
		}
		if reason == "" {
			return nil
		}
		reasons = append(reasons, fmt.Sprintf("block %d: %s", i, reason))
	}
	return fmt.Errorf("secureboot: %w: %s", ErrSignature, strings.Join(reasons, "; "))
}

// checkBlock returns why the block does not count, or "" if it does. An error
// is none of the block's.
func (v Verifier) checkBlock(m *signedImage, raw []byte) (reason string, err error) {
	b, err := parseBlock(raw)
	if err != nil {
		return err.Error(), nil
	}
	d := b.keyDigest()
	if v.contains(v.Revoked, d) {
		return fmt.Sprintf("key %v is revoked", d), nil
	}
	if !v.contains(v.Trusted, d) {
		return fmt.Sprintf("key %v is not trusted", d), nil
	}
	digest, err := m.digest(b.key.hash())
	if err != nil {
		return "", err
	}
	if !b.key.verify(raw, digest) {
		return fmt.Sprintf("signature by key %v is wrong", d), nil
	}
	return "", nil
}

func (v Verifier) contains(digests []Digest, d Digest) bool {
	length := len(d)
	if v.Chip == image.ESP32C2 {
		length = 16 // all that its eFuse has room for
	}
	for _, other := range digests {
		if string(other[:length]) == string(d[:length]) {
			return true
		}
	}
	return false
}

func (v Verifier) checkSecureVersion(app *image.App) error {
	switch {
	case v.MinSecureVersion == 0:
		return nil
	case app == nil:
		return fmt.Errorf("secureboot: %w: the image has no application descriptor, want secure version %d", ErrSecureVersion, v.MinSecureVersion)
	case app.SecureVersion < v.MinSecureVersion:
		return fmt.Errorf("secureboot: %w: %d, want %d", ErrSecureVersion, app.SecureVersion, v.MinSecureVersion)
	}
	return nil
}

// hasBlock reports whether something in the sector, or what there is of it,
// claims to be a signature block.
func hasBlock(sector []byte) bool {
	for i := range maxBlocks {
		if at := i * blockSize; at < len(sector) && sector[at] == blockMagic {
			return true
		}
	}
	return false
}

// secureBootV1 reports whether the signature of Secure Boot V1 follows the
// image: a version of 0 (4 bytes) and an ECDSA signature (64 bytes).
func (m *signedImage) secureBootV1() bool {
	var b [4 + 64]byte
	if m.Header.Chip != image.ESP32 || m.size < m.Length+int64(len(b)) {
		return false
	}
	if n, _ := m.src.ReadAt(b[:], m.Length); n < len(b) {
		return false
	}
	version, signature := binary.LittleEndian.Uint32(b[:4]), b[4:]
	all := func(fill byte) bool { return bytes.Count(signature, []byte{fill}) == len(signature) }
	return version == 0 && !all(0) && !all(0xFF)
}

// contextReader fails once its context is done. An image is read in small
// pieces, so that this comes soon.
type contextReader struct {
	ctx context.Context
	r   io.ReaderAt
}

func (c contextReader) ReadAt(p []byte, off int64) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.ReadAt(p, off)
}
