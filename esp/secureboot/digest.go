package secureboot

import (
	"encoding/hex"
	"fmt"
)

// Digest is the SHA-256 of a public key as a signature block encodes it: what
// eFuse holds of the keys that a chip trusts, in the same byte order. The
// ESP32-C2 holds its first 16 bytes only, and only they are compared there.
// Package sbsign computes it.
type Digest [32]byte

// ParseDigest reads a digest of 64 hexadecimal digits and nothing else.
func ParseDigest(s string) (Digest, error) {
	var d Digest
	if len(s) != hex.EncodedLen(len(d)) {
		return Digest{}, fmt.Errorf("secureboot: key digest has %d characters, want 64 hexadecimal digits", len(s))
	}
	if _, err := hex.Decode(d[:], []byte(s)); err != nil {
		return Digest{}, fmt.Errorf("secureboot: key digest: %w", err)
	}
	return d, nil
}

// String returns the digest as 64 lower-case hexadecimal digits.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }
