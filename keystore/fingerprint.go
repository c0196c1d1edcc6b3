package keystore

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/big"
	"reflect"
)

// Fingerprint returns the SHA-256 of the DER-encoded SubjectPublicKeyInfo
// (RFC 5280 section 4.1.2.7) of a public key: of an enrolment key it is the
// DeviceID. It equals
//
//	openssl pkey -pubin -in key.pem -outform DER | sha256sum
//
// and the SHA-256 of what x509.MarshalPKIXPublicKey returns, without needing
// crypto/x509.
//
// Keys are *ecdsa.PublicKey on P-256, P-384 or P-521, *rsa.PublicKey with a
// modulus of 1024 to 8192 bits, ed25519.PublicKey, and any type that is a
// [Point]. Any other key, and one that cannot be a key (a nil pointer, a point
// off its curve, an even modulus), is an error.
//
// Elliptic curves cost a microcontroller hundreds of kilobytes, so this package
// brings none: an *ecdsa.PublicKey checks itself.
func Fingerprint(pub crypto.PublicKey) ([32]byte, error) {
	info, err := subjectPublicKeyInfo(pub)
	if err != nil {
		return [32]byte{}, fmt.Errorf("keystore: fingerprint: %w", err)
	}
	return sha256.Sum256(info), nil
}

// Point is a public key on P-256, P-384 or P-521. Bytes returns it as an
// uncompressed point (SEC 1 section 2.3.3): 0x04, X and Y, big-endian, each as
// long as the curve's field; an error if the point is not on the curve. An
// *ecdsa.PublicKey of Go 1.25 or later is one.
type Point interface {
	Bytes() ([]byte, error)
}

// The AlgorithmIdentifiers, in DER.
const (
	algorithmRSA     = "\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01\x05\x00"                         // rsaEncryption, NULL (RFC 3279 section 2.3.1)
	algorithmP256    = "\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07" // id-ecPublicKey, secp256r1 (RFC 5480 section 2.1.1)
	algorithmP384    = "\x30\x10\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x05\x2b\x81\x04\x00\x22"
	algorithmP521    = "\x30\x10\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x05\x2b\x81\x04\x00\x23"
	algorithmEd25519 = "\x30\x05\x06\x03\x2b\x65\x70" // RFC 8410 section 3
)

const (
	tagInteger   = 0x02
	tagBitString = 0x03
	tagSequence  = 0x30
)

func subjectPublicKeyInfo(pub crypto.PublicKey) ([]byte, error) {
	var algorithm string
	var key []byte
	var err error
	switch pub := asPoint(pub).(type) {
	case Point:
		algorithm, key, err = pointKey(pub)
	case *rsa.PublicKey:
		algorithm = algorithmRSA
		key, err = rsaKey(pub)
	case ed25519.PublicKey:
		algorithm, key = algorithmEd25519, pub
		if len(pub) != ed25519.PublicKeySize {
			err = fmt.Errorf("Ed25519 public key of %d bytes, need %d", len(pub), ed25519.PublicKeySize)
		}
	case nil:
		err = errors.New("no public key")
	default:
		err = fmt.Errorf("unsupported public key type %T: need *ecdsa.PublicKey, *rsa.PublicKey or ed25519.PublicKey", pub)
	}
	if err != nil {
		return nil, err
	}
	const unusedBits = "\x00"
	return der(tagSequence, []byte(algorithm), der(tagBitString, []byte(unusedBits), key)), nil
}

// PointOf returns the uncompressed point of a public key that is a [Point], an
// *ecdsa.PublicKey (of any release of Go) or an *ecdh.PublicKey. Another key,
// and one that is nil or incomplete, is an error. It does not look at what Bytes
// returns: a key on another curve has another length.
func PointOf(pub crypto.PublicKey) ([]byte, error) {
	pub = asPoint(pub)
	if v := reflect.ValueOf(pub); v.Kind() == reflect.Pointer && v.IsNil() {
		return nil, errors.New("public key is a nil pointer")
	}
	switch pub := pub.(type) {
	case Point:
		if incomplete(pub) {
			return nil, errors.New("public key is incomplete")
		}
		return pub.Bytes()
	case interface{ Bytes() []byte }: // an *ecdh.PublicKey, which is on its curve
		return pub.Bytes(), nil
	}
	return nil, fmt.Errorf("unsupported public key type %T: it is no point", pub)
}

// pointKey tells the curve by the length of the point.
func pointKey(pub Point) (algorithm string, point []byte, err error) {
	if point, err = PointOf(pub); err != nil {
		return "", nil, fmt.Errorf("elliptic curve public key: %w", err)
	}
	switch len(point) {
	case 1 + 2*32:
		algorithm = algorithmP256
	case 1 + 2*48:
		algorithm = algorithmP384
	case 1 + 2*66:
		algorithm = algorithmP521
	}
	const uncompressed = 4
	if algorithm == "" || point[0] != uncompressed {
		return "", nil, fmt.Errorf("%T is no public key on a supported curve: need P-256, P-384 or P-521", pub)
	}
	return algorithm, point, nil
}

// incomplete reports whether pub points to a struct with a field that is nil: an
// *ecdsa.PublicKey without coordinates would panic.
func incomplete(pub Point) bool {
	v := reflect.ValueOf(pub)
	if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct {
		return false
	}
	v = v.Elem()
	for i := 0; i < v.NumField(); i++ {
		field := v.Field(i)
		if kind := field.Kind(); (kind == reflect.Pointer || kind == reflect.Interface) && field.IsNil() {
			return true
		}
	}
	return false
}

// rsaKey returns the RSAPublicKey (RFC 8017 appendix A.1.1).
func rsaKey(pub *rsa.PublicKey) ([]byte, error) {
	if pub == nil || pub.N == nil {
		return nil, errors.New("RSA public key is nil or incomplete")
	}
	const minBits, maxBits = 1024, 8192
	if bits := pub.N.BitLen(); pub.N.Sign() < 0 || bits < minBits || bits > maxBits {
		return nil, fmt.Errorf("RSA modulus of %d bits (sign %d), need a positive one of %d to %d", bits, pub.N.Sign(), minBits, maxBits)
	}
	if pub.N.Bit(0) == 0 {
		return nil, errors.New("RSA modulus is even")
	}
	if pub.E < 3 || pub.E&1 == 0 {
		return nil, fmt.Errorf("RSA public exponent %d, need an odd one of at least 3", pub.E)
	}
	return der(tagSequence, derInteger(pub.N), derInteger(big.NewInt(int64(pub.E)))), nil
}

// derInteger encodes a positive integer.
func derInteger(n *big.Int) []byte {
	var sign []byte
	if n.BitLen()%8 == 0 { // the top bit would read as a sign
		sign = []byte{0}
	}
	return der(tagInteger, sign, n.Bytes())
}

// der encodes one element of DER (X.690 section 8.1) whose content is the parts
// in order, at most 65535 bytes.
func der(tag byte, parts ...[]byte) []byte {
	size := 0
	for _, part := range parts {
		size += len(part)
	}
	out := make([]byte, 0, 4+size)
	switch {
	case size < 0x80:
		out = append(out, tag, byte(size))
	case size < 0x100:
		out = append(out, tag, 0x81, byte(size))
	default:
		out = append(out, tag, 0x82, byte(size>>8), byte(size))
	}
	for _, part := range parts {
		out = append(out, part...)
	}
	return out
}
