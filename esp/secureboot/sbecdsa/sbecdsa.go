// Package sbecdsa is the ECDSA scheme of Secure Boot V2: P-192, P-256 and P-384.
// It is a package of its own because crypto/ecdsa brings every curve with it:
// a device that verifies RSA has no room for them.
package sbecdsa

//lint:file-ignore SA1019 Go 1.23, which has to be enough here, gives no other access to coordinates, and P-192 has no better home than CurveParams

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"

	_ "crypto/sha512" // SHA-384 signs with P-384

	"github.com/quarklink-go/quarklink/esp/secureboot"
	"github.com/quarklink-go/quarklink/esp/secureboot/internal/sigblock"
)

// Scheme returns the scheme, for secureboot.Verifier.Schemes. The chip says
// which of the curves it takes.
func Scheme() secureboot.Scheme { return scheme{} }

type scheme struct{}

func (scheme) String() string                               { return "ECDSA" }
func (scheme) Version() byte                                { return sigblock.VersionECDSA }
func (scheme) Parse(raw []byte) (sigblock.PublicKey, error) { return parse(raw) }

// Take takes an *ecdsa.PublicKey.
func (scheme) Take(public crypto.PublicKey) (sigblock.PublicKey, bool, error) {
	pub, ours := public.(*ecdsa.PublicKey)
	if !ours {
		return nil, false, nil
	}
	key, err := newKey(pub)
	return key, true, err
}

// An ECDSA block holds, after the image digest, the curve's number, the
// public key X||Y and the signature r||s. Numbers are little-endian and as
// long as the curve's field; key and signature are each filled with zeros to
// twice the field of the largest curve that uses the block's hash.
//
// Byte 2 tells SHA-384 (1), used with P-384 alone, from SHA-256 (0).
const (
	ecHashOffset = 2
	ecSHA256     = 0
	ecSHA384     = 1
)

// layout is where things lie in the block of one curve.
type layout struct {
	algorithm sigblock.Algorithm
	number    byte // that stands for the curve in the block
	hashCode  byte
	hash      crypto.Hash
	size      int // of a coordinate, r or s in bytes
	key       int // offset of the curve's number; the key follows it
	sig       int // offset of the signature
	end       int // of the signature field
}

// layoutOf returns the layout for a curve of the given bits.
func layoutOf(bits int) (layout, bool) {
	switch bits {
	case 192:
		return layout{algorithm: sigblock.P192, number: 1, hashCode: ecSHA256, hash: crypto.SHA256, size: 24, key: 36, sig: 101, end: 165}, true
	case 256:
		return layout{algorithm: sigblock.P256, number: 2, hashCode: ecSHA256, hash: crypto.SHA256, size: 32, key: 36, sig: 101, end: 165}, true
	case 384:
		return layout{algorithm: sigblock.P384, number: 3, hashCode: ecSHA384, hash: crypto.SHA384, size: 48, key: 52, sig: 149, end: 245}, true
	}
	return layout{}, false
}

// P192 returns the curve P-192 (secp192r1, FIPS 186-4 D.1.2.1) for keys of
// Secure Boot on the chips that have nothing larger. Its arithmetic is not
// constant-time: sign with it only where nobody can measure, and use it for
// nothing else.
func P192() elliptic.Curve {
	number := func(hex string) *big.Int {
		n, _ := new(big.Int).SetString(hex, 16)
		return n
	}
	return &elliptic.CurveParams{
		Name:    "P-192",
		BitSize: 192,
		P:       number("fffffffffffffffffffffffffffffffeffffffffffffffff"),
		N:       number("ffffffffffffffffffffffff99def836146bc9b1b4d22831"),
		B:       number("64210519e59c80e70fa7e9ab72243049feb8deecc146b9b1"),
		Gx:      number("188da80eb03090f67cbf20eb43a18800f4ff0afd82ff1012"),
		Gy:      number("07192b95ffc8da78631011ed6b24cdd573f977a11e794811"),
	}
}

func curveOf(bits int) elliptic.Curve {
	switch bits {
	case 192:
		return P192()
	case 256:
		return elliptic.P256()
	}
	return elliptic.P384()
}

type key struct {
	layout
	pub *ecdsa.PublicKey
}

func newKey(pub *ecdsa.PublicKey) (sigblock.PublicKey, error) {
	if pub == nil || pub.Curve == nil || pub.X == nil || pub.Y == nil {
		return nil, errors.New("the ECDSA key is empty")
	}
	params := pub.Curve.Params()
	l, ok := layoutOf(params.BitSize)
	if !ok {
		return nil, fmt.Errorf("the curve is %s, not P-192, P-256 or P-384", params.Name)
	}
	curve := curveOf(params.BitSize)
	if want := curve.Params(); params.P.Cmp(want.P) != 0 || params.B.Cmp(want.B) != 0 || params.Gx.Cmp(want.Gx) != 0 {
		return nil, fmt.Errorf("the curve is %s, not P-192, P-256 or P-384", params.Name)
	}
	if !onCurve(curve.Params(), pub.X, pub.Y) {
		return nil, errors.New("the ECDSA key is not a point of its curve")
	}
	return key{l, &ecdsa.PublicKey{Curve: curve, X: pub.X, Y: pub.Y}}, nil
}

// onCurve reports whether y² = x³ - 3x + b with both in the field. The curves
// of crypto/elliptic panic in later steps if it does not hold.
func onCurve(c *elliptic.CurveParams, x, y *big.Int) bool {
	if x.Sign() < 0 || y.Sign() < 0 || x.Cmp(c.P) >= 0 || y.Cmp(c.P) >= 0 {
		return false
	}
	right := new(big.Int).Mul(x, x)
	right.Sub(right, big.NewInt(3))
	right.Mul(right, x)
	right.Add(right, c.B)
	left := new(big.Int).Mul(y, y)
	return left.Sub(left, right).Mod(left, c.P).Sign() == 0
}

func parse(raw []byte) (sigblock.PublicKey, error) {
	for _, bits := range []int{192, 256, 384} {
		l, _ := layoutOf(bits)
		if raw[ecHashOffset] != l.hashCode || raw[l.key] != l.number {
			continue
		}
		x, y := l.pair(raw[l.key+1:])
		return newKey(&ecdsa.PublicKey{Curve: curveOf(bits), X: x, Y: y})
	}
	return nil, errors.New("unknown combination of hash and curve")
}

// pair reads two numbers, and putPair writes them.
func (l layout) pair(field []byte) (a, b *big.Int) {
	a = new(big.Int).SetBytes(sigblock.BigEndian(field[:l.size]))
	b = new(big.Int).SetBytes(sigblock.BigEndian(field[l.size : 2*l.size]))
	return a, b
}

func (l layout) putPair(field []byte, a, b *big.Int) {
	sigblock.PutLittleEndian(field[:l.size], a.FillBytes(make([]byte, l.size)))
	sigblock.PutLittleEndian(field[l.size:2*l.size], b.FillBytes(make([]byte, l.size)))
}

func (k key) Algorithm() sigblock.Algorithm { return k.algorithm }
func (k key) Hash() crypto.Hash             { return k.layout.hash }
func (k key) Span() (from, to int)          { return k.key, k.sig }

func (k key) Put(raw []byte) {
	raw[1] = sigblock.VersionECDSA
	raw[ecHashOffset] = k.hashCode
	raw[k.key] = k.number
	k.putPair(raw[k.key+1:k.sig], k.pub.X, k.pub.Y)
}

func (k key) Sign(raw []byte, sign sigblock.SignFunc, digest []byte) error {
	der, err := sign(digest, k.Hash())
	if err != nil {
		return err
	}
	var sig struct{ R, S *big.Int }
	rest, err := asn1.Unmarshal(der, &sig)
	if err != nil {
		return fmt.Errorf("the signer's signature is not ASN.1: %w", err)
	}
	for _, n := range []*big.Int{sig.R, sig.S} {
		if len(rest) != 0 || n.Sign() <= 0 || n.BitLen() > 8*k.size {
			return errors.New("the signer's signature is out of range")
		}
	}
	k.putPair(raw[k.sig:k.end], sig.R, sig.S)
	return nil
}

func (k key) Verify(raw, digest []byte) bool {
	r, s := k.pair(raw[k.sig:k.end])
	return ecdsa.Verify(k.pub, digest, r, s)
}
