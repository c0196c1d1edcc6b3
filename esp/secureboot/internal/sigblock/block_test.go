package sigblock_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha512"
	"encoding/binary"
	"hash/crc32"
	"math/big"
	"testing"

	"github.com/quarklink-go/quarklink/esp/secureboot"
	"github.com/quarklink-go/quarklink/esp/secureboot/internal/sigblock"
	"github.com/quarklink-go/quarklink/esp/secureboot/sbecdsa"
)

// FuzzBlock gives any block a right CRC and tries its signature without
// asking who made it: what is behind the trusted digest must not panic either.
func FuzzBlock(f *testing.F) {
	schemes := []sigblock.Scheme{secureboot.RSA(), sbecdsa.Scheme()}
	n := new(big.Int).SetBit(big.NewInt(1), 3071, 1) // nobody has the private half
	keys := []any{&rsa.PublicKey{N: n, E: 65537}}
	for _, curve := range []elliptic.Curve{sbecdsa.P192(), elliptic.P256(), elliptic.P384()} {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			f.Fatal(err)
		}
		keys = append(keys, &key.PublicKey)
	}
	for _, key := range keys {
		b, err := sigblock.New(key, schemes)
		if err != nil {
			f.Fatal(err)
		}
		_, signature := b.Key.Span()
		for i := signature; i < sigblock.CRCOffset; i++ {
			b.Raw[i] = 1
		}
		f.Add(b.Raw)
	}
	digest := sha512.Sum384(nil)
	f.Fuzz(func(t *testing.T, data []byte) {
		raw := make([]byte, sigblock.BlockSize)
		copy(raw, data)
		raw[0] = sigblock.Magic
		binary.LittleEndian.PutUint32(raw[sigblock.CRCOffset:], crc32.ChecksumIEEE(raw[:sigblock.CRCOffset]))
		b, err := sigblock.Parse(raw, schemes)
		if err != nil {
			return
		}
		if b.Key.Verify(raw, digest[:b.Key.Hash().Size()]) {
			t.Error("a signature out of thin air")
		}
	})
}
