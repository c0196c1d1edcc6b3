// Package goecdsa has Go's crypto/ecdsa do what an ATECC608's driver can leave
// to its host: it checks every signature that the chip makes, which is faster
// than asking the chip, and gives the public key as the *ecdsa.PublicKey that
// crypto/tls and crypto/x509 need.
//
//	chip, err := atecc608.Open(ctx, bus, atecc608.Options{ECDSA: goecdsa.P256{}})
//
// It is a package of its own because crypto/ecdsa brings every curve and its
// tables, some hundred kilobytes, which a microcontroller may not have. Without
// it the chip verifies its signatures itself.
package goecdsa

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"math/big"

	"github.com/quarklink-go/quarklink/keystore/atecc608"
)

// P256 is for [atecc608.Options]. The zero value is ready.
type P256 struct{}

var _ atecc608.ECDSA = P256{}

// PublicKey returns the key as an *ecdsa.PublicKey.
func (P256) PublicKey(key atecc608.PublicKey) crypto.PublicKey { return PublicKey(key) }

// Verify reports whether signature, R and S of 32 bytes each, is one of the
// digest with the key.
func (P256) Verify(key atecc608.PublicKey, digest []byte, signature [64]byte) bool {
	r, s := new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:])
	return ecdsa.Verify(PublicKey(key), digest, r, s)
}

// PublicKey returns the key in the form of crypto/ecdsa. A key that came from
// the driver is on the curve; Bytes tells of any other.
func PublicKey(key atecc608.PublicKey) *ecdsa.PublicKey {
	return &ecdsa.PublicKey{
		Curve: elliptic.P256(),
		X:     new(big.Int).SetBytes(key[:32]),
		Y:     new(big.Int).SetBytes(key[32:]),
	}
}
