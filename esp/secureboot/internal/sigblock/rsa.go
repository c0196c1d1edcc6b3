package sigblock

import (
	"crypto"
	"crypto/rsa"
	"encoding/binary"
	"fmt"
	"math"
	"math/big"
)

// The block of RSA-3072-PSS (ets_secure_boot_sig_block_t in ESP-IDF's
// rom/secure_boot.h). Numbers are little-endian.
const (
	rsaBits = 3072
	rsaSize = rsaBits / 8

	rsaModulus   = 36
	rsaExponent  = rsaModulus + rsaSize
	rsaR2        = rsaExponent + 4 // Espressif's "rinv": 2^6144 mod n, for Montgomery multiplication
	rsaMPrime    = rsaR2 + rsaSize // -n^-1 mod 2^32, for the same
	rsaSignature = rsaMPrime + 4
)

// pssOptions returns the only options that Secure Boot V2 uses. The chips'
// ROM insists on the salt's length; ESP-IDF's application code does not.
func pssOptions() *rsa.PSSOptions {
	return &rsa.PSSOptions{SaltLength: 32, Hash: crypto.SHA256}
}

// RSA is RSA-3072-PSS with SHA-256.
type RSA struct{}

func (RSA) String() string                      { return "RSA" }
func (RSA) Version() byte                       { return VersionRSA }
func (RSA) Parse(raw []byte) (PublicKey, error) { return parseRSA(raw) }

// Take takes an *rsa.PublicKey.
func (RSA) Take(public crypto.PublicKey) (PublicKey, bool, error) {
	pub, ours := public.(*rsa.PublicKey)
	if !ours {
		return nil, false, nil
	}
	key, err := newRSA(pub)
	return key, true, err
}

type rsaKey struct{ pub *rsa.PublicKey }

func newRSA(pub *rsa.PublicKey) (PublicKey, error) {
	if pub == nil || pub.N == nil || pub.N.BitLen() != rsaBits || pub.N.Bit(0) == 0 {
		return nil, fmt.Errorf("the RSA modulus is not an odd number of %d bits", rsaBits)
	}
	if pub.E < 3 || pub.E > math.MaxInt32 || pub.E%2 == 0 {
		return nil, fmt.Errorf("the RSA exponent %d is not an odd number from 3 to 2^31-1", pub.E)
	}
	return rsaKey{pub}, nil
}

func parseRSA(raw []byte) (PublicKey, error) {
	e := binary.LittleEndian.Uint32(raw[rsaExponent:])
	if e > math.MaxInt32 { // would be negative where int has 32 bits
		return nil, fmt.Errorf("the RSA exponent %d is not an odd number from 3 to 2^31-1", e)
	}
	n := new(big.Int).SetBytes(BigEndian(raw[rsaModulus:rsaExponent]))
	return newRSA(&rsa.PublicKey{N: n, E: int(e)})
}

func (k rsaKey) Algorithm() Algorithm { return RSA3072 }
func (k rsaKey) Hash() crypto.Hash    { return crypto.SHA256 }
func (k rsaKey) Span() (from, to int) { return rsaModulus, rsaSignature }

func (k rsaKey) Put(raw []byte) {
	raw[1] = VersionRSA
	n := k.pub.N
	r2 := new(big.Int).Lsh(big.NewInt(1), 2*rsaBits)
	r2.Mod(r2, n)
	PutLittleEndian(raw[rsaModulus:rsaExponent], n.FillBytes(make([]byte, rsaSize)))
	binary.LittleEndian.PutUint32(raw[rsaExponent:], uint32(k.pub.E))
	PutLittleEndian(raw[rsaR2:rsaMPrime], r2.FillBytes(make([]byte, rsaSize)))
	binary.LittleEndian.PutUint32(raw[rsaMPrime:], mPrime(binary.LittleEndian.Uint32(raw[rsaModulus:])))
}

// mPrime returns -n^-1 mod 2^32 for the low word of an odd n. Each step of
// Newton's iteration doubles the number of right bits; an odd number is its
// own inverse to three bits.
func mPrime(n uint32) uint32 {
	inverse := n
	for bits := 3; bits < 32; bits *= 2 {
		inverse *= 2 - n*inverse
	}
	return -inverse
}

func (k rsaKey) Sign(raw []byte, sign SignFunc, digest []byte) error {
	sig, err := sign(digest, pssOptions())
	if err != nil {
		return err
	}
	if len(sig) != rsaSize {
		return fmt.Errorf("the signer's signature has %d bytes, want %d", len(sig), rsaSize)
	}
	PutLittleEndian(raw[rsaSignature:CRCOffset], sig)
	return nil
}

func (k rsaKey) Verify(raw, digest []byte) bool {
	sig := BigEndian(raw[rsaSignature:CRCOffset])
	return rsa.VerifyPSS(k.pub, crypto.SHA256, digest, sig, pssOptions()) == nil
}
