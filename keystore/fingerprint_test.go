package keystore_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/internal/counterpart"
	"github.com/quarklink-go/quarklink/keystore"
)

func ecdsaKey(t testing.TB, curve elliptic.Curve) *ecdsa.PublicKey {
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	require.NoError(t, err)
	return &key.PublicKey
}

func rsaKey(t testing.TB, bits int) *rsa.PublicKey {
	key, err := rsa.GenerateKey(rand.Reader, bits)
	require.NoError(t, err)
	return &key.PublicKey
}

// modulus returns an odd number of that many bits, which encodes as an RSA
// modulus does.
func modulus(t testing.TB, bits int) *big.Int {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), uint(bits-1)))
	require.NoError(t, err)
	return n.SetBit(n.SetBit(n, bits-1, 1), 0, 1)
}

func TestFingerprintIsThatOfX509(t *testing.T) {
	keys := []crypto.PublicKey{
		rsaKey(t, 2048),
		rsaKey(t, 3072),
		&rsa.PublicKey{N: modulus(t, 1024), E: 3},
		&rsa.PublicKey{N: modulus(t, 1025), E: 257},
		&rsa.PublicKey{N: modulus(t, 2047), E: 65537},
		&rsa.PublicKey{N: modulus(t, 4096), E: 1<<31 - 1},
		&rsa.PublicKey{N: modulus(t, 8192), E: 129},
	}
	for range 20 { // coordinates with leading zeros come by
		public, _, err := ed25519.GenerateKey(rand.Reader)
		require.NoError(t, err)
		keys = append(keys, public, ecdsaKey(t, elliptic.P256()), ecdsaKey(t, elliptic.P384()), ecdsaKey(t, elliptic.P521()))
	}
	for _, key := range keys {
		info, err := x509.MarshalPKIXPublicKey(key)
		require.NoError(t, err)
		got, err := keystore.Fingerprint(key)
		require.NoError(t, err)
		assert.Equal(t, sha256.Sum256(info), got)
	}
}

func TestFingerprintIsThatOfOpenSSL(t *testing.T) {
	openssl := counterpart.Program(t, "openssl")
	for _, algorithm := range [][]string{
		{"EC", "ec_paramgen_curve:P-256"},
		{"RSA", "rsa_keygen_bits:3072"},
		{"ED25519"},
	} {
		args := []string{"genpkey", "-algorithm", algorithm[0]}
		if len(algorithm) > 1 {
			args = append(args, "-pkeyopt", algorithm[1])
		}
		private, err := exec.CommandContext(t.Context(), openssl, args...).Output()
		require.NoError(t, err)
		run := func(command string, in []byte) []byte {
			cmd := exec.CommandContext(t.Context(), "sh", "-c", command)
			cmd.Stdin = bytes.NewReader(in)
			cmd.Stderr = os.Stderr
			out, err := cmd.Output()
			require.NoError(t, err, command)
			return out
		}
		public := run("openssl pkey -pubout", private)
		sum := run("openssl pkey -pubin -outform DER | sha256sum", public)

		block, _ := pem.Decode(public)
		key, err := x509.ParsePKIXPublicKey(block.Bytes)
		require.NoError(t, err)
		got, err := keystore.Fingerprint(key)
		require.NoError(t, err, algorithm)
		assert.Equal(t, strings.Fields(string(sum))[0], fmt.Sprintf("%x", got), algorithm)
	}
}

// namedCurve is a curve that is not the standard library's.
type namedCurve struct{ elliptic.Curve }

func TestFingerprintRefuses(t *testing.T) {
	good := ecdsaKey(t, elliptic.P256())
	n := modulus(t, 2048)
	ecdhKey, err := good.ECDH()
	require.NoError(t, err)
	big1 := big.NewInt(1)
	for what, key := range map[string]crypto.PublicKey{
		"nothing":             nil,
		"another type":        "key",
		"a private key":       &ecdsa.PrivateKey{PublicKey: *good},
		"not a pointer":       *good,
		"ECDH":                ecdhKey,
		"no key at all":       new(big.Int),
		"nil ECDSA":           (*ecdsa.PublicKey)(nil),
		"empty ECDSA":         &ecdsa.PublicKey{},
		"ECDSA without point": &ecdsa.PublicKey{Curve: elliptic.P256()},
		"ECDSA without Y":     &ecdsa.PublicKey{Curve: elliptic.P256(), X: good.X},
		"off the curve":       &ecdsa.PublicKey{Curve: elliptic.P256(), X: good.X, Y: new(big.Int).Add(good.Y, big1)},
		"at infinity":         &ecdsa.PublicKey{Curve: elliptic.P256(), X: new(big.Int), Y: new(big.Int)},
		"negative coordinate": &ecdsa.PublicKey{Curve: elliptic.P256(), X: good.X, Y: new(big.Int).Neg(good.Y)},
		"coordinate too large": &ecdsa.PublicKey{Curve: elliptic.P256(),
			X: new(big.Int).Add(good.X, elliptic.P256().Params().P), Y: good.Y},
		"on another curve":     &ecdsa.PublicKey{Curve: elliptic.P384(), X: good.X, Y: good.Y},
		"P-224":                ecdsaKey(t, elliptic.P224()),
		"a curve of one's own": &ecdsa.PublicKey{Curve: namedCurve{elliptic.P256()}, X: good.X, Y: good.Y},
		"nil RSA":              (*rsa.PublicKey)(nil),
		"empty RSA":            &rsa.PublicKey{},
		"RSA without E":        &rsa.PublicKey{N: n},
		"RSA with E = 1":       &rsa.PublicKey{N: n, E: 1},
		"RSA with even E":      &rsa.PublicKey{N: n, E: 65536},
		"RSA with negative E":  &rsa.PublicKey{N: n, E: -65537},
		"RSA, N = 0":           &rsa.PublicKey{N: new(big.Int), E: 65537},
		"RSA, N negative":      &rsa.PublicKey{N: new(big.Int).Neg(n), E: 65537},
		"RSA, N even":          &rsa.PublicKey{N: new(big.Int).Lsh(n, 1), E: 65537},
		"RSA, 1023 bits":       &rsa.PublicKey{N: modulus(t, 1023), E: 65537},
		"RSA, 8193 bits":       &rsa.PublicKey{N: modulus(t, 8193), E: 65537},
		"RSA, a million bits":  &rsa.PublicKey{N: modulus(t, 1_000_000), E: 65537},
		"nil Ed25519":          ed25519.PublicKey(nil),
		"short Ed25519":        make(ed25519.PublicKey, 31),
		"long Ed25519":         make(ed25519.PublicKey, 33),
	} {
		got, err := keystore.Fingerprint(key)
		require.Error(t, err, what)
		assert.Equal(t, [32]byte{}, got, what)
	}
}
