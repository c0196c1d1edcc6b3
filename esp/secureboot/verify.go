package secureboot

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/quarklink-go/quarklink/esp/image"
	"github.com/quarklink-go/quarklink/esp/secureboot/internal/sigblock"
)

// Scheme is a signature scheme, with the code that verifies it. The values are
// [RSA] and, from package sbecdsa, ECDSA. What a program does not name, it does
// not link: RSA needs no elliptic curve.
type Scheme = sigblock.Scheme

// RSA returns the scheme RSA-3072-PSS with SHA-256, for [Verifier].Schemes.
func RSA() Scheme { return sigblock.RSA{} }

// Verifier decides whether an image may run on a chip, as the chip's
// bootloader does. It is safe for concurrent use as long as nobody changes it.
//
// The zero value trusts no key and refuses everything with [ErrNoTrustedKey].
type Verifier struct {
	// Chip is the chip that is to run the image. The zero value is the
	// original ESP32, where only the first signature block counts.
	Chip image.Chip

	// Schemes holds the signature schemes to accept: at least one is
	// required, and one is what a device is configured for. RSA() is that of
	// the original ESP32, ESP32-S2, S3 and C3, sbecdsa.Scheme() that of the
	// ESP32-C2 and C61; the others have both. What the chip does not have is
	// refused even if it is here.
	Schemes []Scheme

	// Trusted holds the digests of the keys whose images may run: those in
	// the chip's eFuse. At least one is required.
	Trusted []Digest

	// Revoked holds the digests of keys that are trusted no more, whether
	// or not they are in Trusted.
	Revoked []Digest

	// Revision is the revision of the chip, major*100 + minor, as
	// ESP-IDF's efuse_hal_chip_revision returns it; 0 is v0.0. An image whose
	// header asks for another is [ErrImage]. Nil means unknown: not judged.
	Revision *uint16

	// EFuseBlockRevision is the version of the chip's eFuse blocks, major*100
	// + minor (efuse_hal_blk_version), which the application descriptor may
	// ask for. Nil means unknown: not judged. The original ESP32 has none,
	// and there nothing is judged.
	EFuseBlockRevision *uint16

	// IgnoreMaxRevision and IgnoreMaxEFuseBlockRevision are the eFuse bits
	// DISABLE_WAFER_VERSION_MAJOR and DISABLE_BLK_VERSION_MAJOR: the highest
	// revision that an image asks for does not count.
	IgnoreMaxRevision           bool
	IgnoreMaxEFuseBlockRevision bool

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
// [ErrNoTrustedKey], [ErrNoScheme], [ErrNoSecureBootV2], those of img, and
// ctx's once it is done.
func (v Verifier) Verify(ctx context.Context, img io.ReaderAt, size int64) error {
	_, err := v.VerifySigner(ctx, img, size)
	return err
}

// VerifySigner is Verify, and returns the digest of the key whose signature
// counted, as 64 hexadecimal digits.
func (v Verifier) VerifySigner(ctx context.Context, img io.ReaderAt, size int64) (signer string, err error) {
	d, err := v.verify(ctx, img, size)
	if err != nil {
		return "", err
	}
	return d.String(), nil
}

func (v Verifier) verify(ctx context.Context, img io.ReaderAt, size int64) (signer Digest, err error) {
	if err := v.check(); err != nil {
		return Digest{}, err
	}
	src := contextReader{ctx, img}
	header, err := image.ReadHeader(src, size)
	if err != nil {
		return Digest{}, sigblock.ImageError(err)
	}
	if err := v.checkChip(header); err != nil {
		return Digest{}, err
	}
	m, err := sigblock.ReadImage(src, size)
	if err != nil {
		return Digest{}, err
	}
	if err := v.checkChip(m.Header); err != nil { // what was hashed, this time
		return Digest{}, err
	}
	if err := v.checkEFuseBlockRevision(m.App); err != nil {
		return Digest{}, err
	}
	if signer, err = v.checkSignature(m); err != nil {
		return Digest{}, err
	}
	return signer, v.checkSecureVersion(m.App)
}

// check judges the Verifier itself.
func (v Verifier) check() error {
	const secureBootV2 = 300 // the first revision of the original ESP32 that has it
	switch {
	case len(v.Trusted) == 0:
		return ErrNoTrustedKey
	case !slices.ContainsFunc(v.Schemes, func(s Scheme) bool { return s != nil }):
		return ErrNoScheme
	case v.Chip == image.ESP32 && v.Revision != nil && *v.Revision < secureBootV2:
		return fmt.Errorf("%w: this one is v%d.%d", ErrNoSecureBootV2, *v.Revision/100, *v.Revision%100)
	}
	return nil
}

func (v Verifier) checkChip(h image.Header) error {
	if h.Chip != v.Chip {
		return sigblock.ImageError(&image.FormatError{Offset: 12, Err: image.ErrChip, Detail: fmt.Sprintf("%v, want %v", h.Chip, v.Chip)})
	}
	if v.Revision == nil {
		return nil
	}
	if v.IgnoreMaxRevision {
		h.MaxRevision = 0
	}
	if h.SupportsRevision(*v.Revision) {
		return nil
	}
	return sigblock.ImageError(&image.FormatError{Offset: 15, Err: image.ErrRevision, Detail: revisionDetail("chip", *v.Revision, h.MinRevision, h.MaxRevision)})
}

func (v Verifier) checkEFuseBlockRevision(app *image.App) error {
	if v.EFuseBlockRevision == nil || app == nil || v.Chip == image.ESP32 {
		return nil
	}
	a := *app
	if v.IgnoreMaxEFuseBlockRevision {
		a.MaxEFuseBlockRevision = 0
	}
	if a.SupportsEFuseBlockRevision(*v.EFuseBlockRevision) {
		return nil
	}
	return sigblock.ImageError(&image.FormatError{Offset: image.AppOffset + 176, Err: image.ErrRevision,
		Detail: revisionDetail("eFuse block", *v.EFuseBlockRevision, a.MinEFuseBlockRevision, a.MaxEFuseBlockRevision)})
}

func revisionDetail(of string, have, low, high uint16) string {
	wants := fmt.Sprintf("v%d.%d or later", low/100, low%100)
	if high != 0 && high != 65535 {
		wants = fmt.Sprintf("v%d.%d to v%d.%d", low/100, low%100, high/100, high%100)
	}
	return fmt.Sprintf("for %s revision %s, this one is v%d.%d", of, wants, have/100, have%100)
}

func (v Verifier) checkSignature(m *sigblock.SignedImage) (signer Digest, err error) {
	sector, err := m.Sector()
	if err != nil {
		return Digest{}, err
	}
	if !hasBlock(sector) {
		if secureBootV1(m) {
			return Digest{}, fmt.Errorf("secureboot: %w: %w", ErrNoSignature, ErrSecureBootV1)
		}
		return Digest{}, fmt.Errorf("secureboot: %w: no signature block at offset 0x%x", ErrNoSignature, m.PaddedLength())
	}
	if len(sector) < sigblock.SectorSize {
		return Digest{}, sigblock.ImageError(&image.FormatError{Offset: m.PaddedLength() + int64(len(sector)), Err: image.ErrTruncated, Detail: "the file ends within the signature sector"})
	}
	blocks := sigblock.MaxBlocks
	if v.Chip == image.ESP32 {
		blocks = 1
	}
	var reasons []string
	for i := range blocks {
		d, reason, err := v.checkBlock(m, sector[i*sigblock.BlockSize:][:sigblock.BlockSize])
		if err != nil {
			return Digest{}, err
		}
		if reason == "" {
			return d, nil
		}
		reasons = append(reasons, fmt.Sprintf("block %d: %s", i, reason))
	}
	return Digest{}, fmt.Errorf("secureboot: %w: %s", ErrSignature, strings.Join(reasons, "; "))
}

// checkBlock returns the digest of the block's key, and why the block does not
// count, or "" if it does. An error says nothing of the block.
func (v Verifier) checkBlock(m *sigblock.SignedImage, raw []byte) (d Digest, reason string, err error) {
	b, err := sigblock.Parse(raw, v.Schemes)
	if err != nil {
		return d, err.Error(), nil
	}
	if err := sigblock.CheckChip(v.Chip, b.Key.Algorithm()); err != nil {
		return d, err.Error(), nil
	}
	d = Digest(b.KeyDigest())
	if v.contains(v.Revoked, d) {
		return d, fmt.Sprintf("key %v is revoked", d), nil
	}
	if !v.contains(v.Trusted, d) {
		return d, fmt.Sprintf("key %v is not trusted", d), nil
	}
	digest, err := m.Digest(b.Key.Hash())
	if err != nil {
		return d, "", err
	}
	if !b.Key.Verify(raw, digest) {
		return d, fmt.Sprintf("signature by key %v is wrong", d), nil
	}
	return d, "", nil
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
	for i := range sigblock.MaxBlocks {
		if at := i * sigblock.BlockSize; at < len(sector) && sector[at] == sigblock.Magic {
			return true
		}
	}
	return false
}

// secureBootV1 reports whether the signature of Secure Boot V1 follows the
// image: a version of 0 (4 bytes) and an ECDSA signature (64 bytes).
func secureBootV1(m *sigblock.SignedImage) bool {
	var b [4 + 64]byte
	if m.Header.Chip != image.ESP32 || m.Size < m.Length+int64(len(b)) {
		return false
	}
	if n, _ := m.Src.ReadAt(b[:], m.Length); n < len(b) {
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
