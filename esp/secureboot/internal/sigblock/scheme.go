package sigblock

import (
	"crypto"
	"fmt"

	"github.com/quarklink-go/quarklink/esp/image"
)

// Algorithm is what a key signs with. Several are a set.
type Algorithm uint8

// The algorithms of Secure Boot V2.
const (
	RSA3072 Algorithm = 1 << iota
	P192
	P256
	P384
)

func (a Algorithm) String() string {
	switch a {
	case RSA3072:
		return "RSA-3072"
	case P192:
		return "ECDSA P-192"
	case P256:
		return "ECDSA P-256"
	case P384:
		return "ECDSA P-384"
	}
	return fmt.Sprintf("algorithm(%d)", uint8(a))
}

// Scheme is a signature scheme with the code that it takes.
type Scheme interface {
	// String names the scheme in errors.
	String() string
	// Version is byte 1 of the scheme's blocks.
	Version() byte
	// Parse reads the public key from a block.
	Parse(raw []byte) (PublicKey, error)
	// Take returns the public key if its type is one of the scheme's.
	Take(public crypto.PublicKey) (key PublicKey, ours bool, err error)
}

// PublicKey is what the blocks of the schemes differ in.
type PublicKey interface {
	Algorithm() Algorithm
	// Hash is the one that digests the image. It is linked.
	Hash() crypto.Hash
	// Span is where the key lies in the block: what the key digest covers.
	Span() (from, to int)
	// Put writes version, key and precomputed values into the block.
	Put(raw []byte)
	// Sign makes the signature of the image digest and puts it into the block.
	Sign(raw []byte, sign SignFunc, digest []byte) error
	// Verify checks the signature in the block.
	Verify(raw, digest []byte) bool
}

// SignFunc is crypto.Signer's Sign with a random source.
type SignFunc func(digest []byte, opts crypto.SignerOpts) ([]byte, error)

// algorithms is what the ROM and ESP-IDF's bootloader of each chip verify:
// SOC_SECURE_BOOT_V2_RSA, SOC_SECURE_BOOT_V2_ECC and
// SOC_ECDSA_SUPPORT_CURVE_P384 of ESP-IDF's soc_caps.h. A chip with more than
// one is configured for one of them. P-384 needs the eFuse SECURE_BOOT_SHA384_EN and
// a version of ESP-IDF after 5.3.1.
var algorithms = []struct {
	chip image.Chip
	set  Algorithm
}{
	{image.ESP32, RSA3072}, // from revision v3.0
	{image.ESP32S2, RSA3072},
	{image.ESP32S3, RSA3072},
	{image.ESP32C3, RSA3072},
	{image.ESP32C2, P192 | P256},
	{image.ESP32C61, P192 | P256}, // no RSA accelerator
	{image.ESP32C6, RSA3072 | P192 | P256},
	{image.ESP32H2, RSA3072 | P192 | P256},
	{image.ESP32P4, RSA3072 | P192 | P256 | P384},
	{image.ESP32C5, RSA3072 | P192 | P256 | P384},
}

// CheckChip returns why the chip does not verify signatures of that algorithm,
// or nil.
func CheckChip(chip image.Chip, a Algorithm) error {
	for _, known := range algorithms {
		switch {
		case known.chip != chip:
		case known.set&a != 0:
			return nil
		default:
			return fmt.Errorf("the chip %v has no %v in its Secure Boot V2", chip, a)
		}
	}
	return fmt.Errorf("nothing is known of Secure Boot V2 on %v", chip)
}
