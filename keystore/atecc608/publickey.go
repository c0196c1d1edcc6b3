package atecc608

import (
	"crypto"
	"fmt"
	"io/fs"
	"math/big"

	"github.com/quarklink-go/quarklink/keystore"
)

// PublicKey is a public key on P-256: X and Y, 32 bytes each, big-endian. It is
// a [keystore.Point], and so good for keystore.Fingerprint. crypto/tls and
// crypto/x509 need an *ecdsa.PublicKey instead: package goecdsa makes one.
type PublicKey [64]byte

// Bytes returns the uncompressed point, 65 bytes (SEC 1 section 2.3.3). The
// error is fs.ErrInvalid if the point is not on the curve.
func (k PublicKey) Bytes() ([]byte, error) {
	if !k.onCurve() {
		return nil, fmt.Errorf("atecc608: the point is not on P-256: %w", fs.ErrInvalid)
	}
	return k.point(), nil
}

func (k PublicKey) point() []byte { return append([]byte{4}, k[:]...) }

// Equal reports whether x is the same key: a PublicKey or an *ecdsa.PublicKey.
func (k PublicKey) Equal(x crypto.PublicKey) bool {
	other, err := publicKeyOf(x)
	return err == nil && other == k
}

// publicKeyOf takes whatever yields a point on P-256: a PublicKey, an
// *ecdsa.PublicKey, an *ecdh.PublicKey. Naming the types would link the code of
// every curve.
func publicKeyOf(x crypto.PublicKey) (PublicKey, error) {
	var key PublicKey
	point, err := keystore.PointOf(x)
	switch {
	case err != nil:
		return key, fmt.Errorf("%w: %w", err, fs.ErrInvalid)
	case len(point) != 1+len(key) || point[0] != 4:
		return key, fmt.Errorf("%T is not a public key on P-256: %w", x, fs.ErrInvalid)
	}
	key = PublicKey(point[1:])
	_, err = key.Bytes()
	return key, err
}

// P-256 is y² = x³ - 3x + b over the integers modulo p (FIPS 186-4 section
// D.1.2.3).
const (
	p256P = "\xff\xff\xff\xff\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"
	p256B = "\x5a\xc6\x35\xd8\xaa\x3a\x93\xe7\xb3\xeb\xbd\x55\x76\x98\x86\xbc\x65\x1d\x06\xb0\xcc\x53\xb0\xf6\x3b\xce\x3c\x3e\x27\xd2\x60\x4b"
)

// onCurve checks the point with plain integers: it is public, and a point from
// a chip is checked once.
func (k PublicKey) onCurve() bool {
	p := new(big.Int).SetBytes([]byte(p256P))
	x, y := new(big.Int).SetBytes(k[:32]), new(big.Int).SetBytes(k[32:])
	if x.Cmp(p) >= 0 || y.Cmp(p) >= 0 {
		return false
	}
	right := new(big.Int).Mul(x, x)
	right.Sub(right, big.NewInt(3))
	right.Mul(right, x)
	right.Add(right, new(big.Int).SetBytes([]byte(p256B)))
	y.Mul(y, y)
	return y.Sub(y, right).Mod(y, p).Sign() == 0
}
