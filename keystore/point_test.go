package keystore_test

import (
	"crypto/elliptic"
	"errors"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/keystore"
)

// ownPoint is a key type of a driver's own.
type ownPoint struct {
	bytes []byte
	err   error
}

func (p ownPoint) Bytes() ([]byte, error) { return p.bytes, p.err }

func TestFingerprintOfAPoint(t *testing.T) {
	for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		key := ecdsaKey(t, curve)
		want, err := keystore.Fingerprint(key)
		require.NoError(t, err)
		point, err := key.Bytes()
		require.NoError(t, err)
		got, err := keystore.Fingerprint(ownPoint{bytes: point})
		require.NoError(t, err)
		assert.Equal(t, want, got, curve.Params().Name)
	}
}

func TestFingerprintRefusesABadPoint(t *testing.T) {
	broken := errors.New("not on the curve")
	for name, p := range map[string]keystore.Point{
		"empty":            ownPoint{},
		"a private scalar": ownPoint{bytes: make([]byte, 32)},
		"compressed":       ownPoint{bytes: append([]byte{2}, make([]byte, 32)...)},
		"another prefix":   ownPoint{bytes: make([]byte, 65)},
		"its own refusal":  ownPoint{bytes: append([]byte{4}, make([]byte, 64)...), err: broken},
		"a nil pointer":    (*ownPoint)(nil),
		"an empty pointer": &ownPoint{},
	} {
		_, err := keystore.Fingerprint(p)
		assert.Error(t, err, name)
	}
	_, err := keystore.Fingerprint(ownPoint{err: broken})
	assert.ErrorIs(t, err, broken)
}

// A program for a microcontroller that imports this package must not link the
// curves: merely importing crypto/ecdsa brings all of them.
func TestNoCurveIsLinked(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", ".").CombinedOutput()
	require.NoError(t, err, "%s", out)
	for _, forbidden := range []string{"crypto/ecdsa", "crypto/ecdh", "crypto/elliptic", "nistec"} {
		assert.NotContains(t, string(out), forbidden)
	}
}
