package secureboot_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/esp/image"
	"github.com/quarklink-go/quarklink/esp/secureboot"
	"github.com/quarklink-go/quarklink/esp/secureboot/sbecdsa"
	"github.com/quarklink-go/quarklink/esp/secureboot/sbsign"
)

// TestVerifySigner: of several trusted keys the one that signed is named, and none
// for an image that is refused.
func TestVerifySigner(t *testing.T) {
	var digests []secureboot.Digest
	var keys []*ecdsa.PrivateKey
	for range 3 {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		require.NoError(t, err)
		d, err := sbsign.KeyDigest(key.Public())
		require.NoError(t, err)
		keys, digests = append(keys, key), append(digests, d)
	}
	unsigned, err := image.Minimal(image.ESP32C6, image.App{Version: "1", SecureVersion: 4})
	require.NoError(t, err)
	signed, err := sbsign.Image(rand.Reader, unsigned, keys[1])
	require.NoError(t, err)
	v := secureboot.Verifier{
		Chip: image.ESP32C6, Schemes: []secureboot.Scheme{sbecdsa.Scheme()}, Trusted: digests, MinSecureVersion: 4,
	}
	verify := func() (string, error) {
		return v.VerifySigner(t.Context(), bytes.NewReader(signed), int64(len(signed)))
	}
	signer, err := verify()
	require.NoError(t, err)
	assert.Equal(t, digests[1].String(), signer)

	v.MinSecureVersion = 5
	signer, err = verify()
	require.ErrorIs(t, err, secureboot.ErrSecureVersion)
	assert.Empty(t, signer)
	v.MinSecureVersion, v.Revoked = 4, digests[1:2]
	signer, err = verify()
	require.ErrorIs(t, err, secureboot.ErrSignature)
	assert.Empty(t, signer)
}
