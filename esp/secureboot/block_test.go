package secureboot

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha512"
	"encoding/binary"
	"hash/crc32"
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

// FuzzBlock gives any block a right CRC and tries its signature without
// asking who made it: what is behind the trusted digest must not panic either.
func FuzzBlock(f *testing.F) {
	keys := []any{somePublicRSA()}
	for _, curve := range []elliptic.Curve{P192(), elliptic.P256(), elliptic.P384()} {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			f.Fatal(err)
		}
		keys = append(keys, &key.PublicKey)
	}
	for _, key := range keys {
		b, err := newBlock(key)
		if err != nil {
			f.Fatal(err)
		}
		_, signature := b.key.span()
		for i := signature; i < crcOffset; i++ {
			b.raw[i] = 1
		}
		f.Add(b.raw)
	}
	digest := sha512.Sum384(nil)
	f.Fuzz(func(t *testing.T, data []byte) {
		raw := make([]byte, blockSize)
		copy(raw, data)
		raw[0] = blockMagic
		binary.LittleEndian.PutUint32(raw[crcOffset:], crc32.ChecksumIEEE(raw[:crcOffset]))
		b, err := parseBlock(raw)
		if err != nil {
			return
		}
		if b.key.verify(raw, digest[:b.key.hash().Size()]) {
			t.Error("a signature out of thin air")
		}
	})
}

// The precomputed values are what their names say.
func TestPrecomputed(t *testing.T) {
	for _, n := range []uint32{1, 3, 5, 0x7FFFFFFF, 0x80000001, 0xDEADBEEF, 0xFFFFFFFF} {
		if m := mPrime(n); m*n != 0xFFFFFFFF { // n * -n^-1 = -1 mod 2^32
			t.Errorf("mPrime(%d) = %d", n, m)
		}
	}
	key := somePublicRSA()
	b, err := newBlock(key)
	if err != nil {
		t.Fatal(err)
	}
	want := new(big.Int).Exp(big.NewInt(2), big.NewInt(2*rsaBits), key.N)
	if got := new(big.Int).SetBytes(bigEndian(b.raw[rsaR2:rsaMPrime])); got.Cmp(want) != 0 {
		t.Error("rinv is not 2^6144 mod n")
	}
	if !bytes.Equal(b.raw[:4], []byte{blockMagic, versionRSA, 0, 0}) {
		t.Errorf("% x", b.raw[:4])
	}
}
