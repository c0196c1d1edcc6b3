package sigblock

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"math/big"
	"testing"
)

// somePublicRSA returns a key that nobody has the private half of. It takes
// no time to make.
func somePublicRSA() *rsa.PublicKey {
	n := make([]byte, rsaSize)
	rand.Read(n)
	n[0] |= 0x80
	n[rsaSize-1] |= 1
	return &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: 65537}
}

// The precomputed values are what their names say.
func TestPrecomputed(t *testing.T) {
	for _, n := range []uint32{1, 3, 5, 0x7FFFFFFF, 0x80000001, 0xDEADBEEF, 0xFFFFFFFF} {
		if m := mPrime(n); m*n != 0xFFFFFFFF { // n * -n^-1 = -1 mod 2^32
			t.Errorf("mPrime(%d) = %d", n, m)
		}
	}
	key := somePublicRSA()
	b, err := New(key, []Scheme{RSA{}})
	if err != nil {
		t.Fatal(err)
	}
	want := new(big.Int).Exp(big.NewInt(2), big.NewInt(2*rsaBits), key.N)
	if got := new(big.Int).SetBytes(BigEndian(b.Raw[rsaR2:rsaMPrime])); got.Cmp(want) != 0 {
		t.Error("rinv is not 2^6144 mod n")
	}
	if !bytes.Equal(b.Raw[:4], []byte{Magic, VersionRSA, 0, 0}) {
		t.Errorf("% x", b.Raw[:4])
	}
}
