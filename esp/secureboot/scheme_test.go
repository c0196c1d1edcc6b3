package secureboot_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/esp/image"
	"github.com/quarklink-go/quarklink/esp/secureboot"
	"github.com/quarklink-go/quarklink/esp/secureboot/internal/sigblock"
	"github.com/quarklink-go/quarklink/esp/secureboot/sbecdsa"
	"github.com/quarklink-go/quarklink/esp/secureboot/sbsign"
)

// everyKey returns a key for each algorithm of Secure Boot V2.
func everyKey(tb testing.TB) map[string]crypto.Signer {
	return map[string]crypto.Signer{
		"RSA":   rsaKey(tb),
		"P-192": ecKey(tb, sbecdsa.P192()),
		"P-256": ecKey(tb, elliptic.P256()),
		"P-384": ecKey(tb, elliptic.P384()),
	}
}

// chipSchemes is what Espressif's soc_caps.h says of each chip.
var chipSchemes = map[image.Chip][]string{
	image.ESP32:    {"RSA"},
	image.ESP32S2:  {"RSA"},
	image.ESP32S3:  {"RSA"},
	image.ESP32C3:  {"RSA"},
	image.ESP32C2:  {"P-192", "P-256"},
	image.ESP32C61: {"P-192", "P-256"},
	image.ESP32C6:  {"RSA", "P-192", "P-256"},
	image.ESP32H2:  {"RSA", "P-192", "P-256"},
	image.ESP32P4:  {"RSA", "P-192", "P-256", "P-384"},
	image.ESP32C5:  {"RSA", "P-192", "P-256", "P-384"},
}

// signedFor signs an image for a chip even with a key that sbsign refuses for
// it: the block is made by hand.
func signedFor(tb testing.TB, chip image.Chip, key crypto.Signer) []byte {
	tb.Helper()
	img := minimal(tb, chip, image.App{})
	padded := append(img, bytes.Repeat([]byte{0xFF}, 4096-len(img))...)
	hash := crypto.SHA256
	if public, ok := key.Public().(*ecdsa.PublicKey); ok && public.Params().BitSize == 384 {
		hash = crypto.SHA384
	}
	h := hash.New()
	h.Write(padded)
	b, err := sigblock.New(key.Public(), schemes)
	require.NoError(tb, err)
	require.NoError(tb, b.Seal(func(digest []byte, opts crypto.SignerOpts) ([]byte, error) {
		return key.Sign(rand.Reader, digest, opts)
	}, h.Sum(nil)))
	rest := bytes.Repeat([]byte{0xFF}, sigblock.SectorSize-sigblock.BlockSize)
	return append(append(padded, b.Raw...), rest...)
}

func TestSchemeByChip(t *testing.T) {
	keys := everyKey(t)
	for chip, has := range chipSchemes {
		for algorithm, key := range keys {
			t.Run(fmt.Sprint(chip, "/", algorithm), func(t *testing.T) {
				v := secureboot.Verifier{Chip: chip, Schemes: schemes, Trusted: []secureboot.Digest{digestOf(t, key)}}
				_, err := sbsign.Image(rand.Reader, minimal(t, chip, image.App{}), key)
				judged := verify(v, signedFor(t, chip, key))
				for _, known := range has {
					if known == algorithm {
						require.NoError(t, err)
						require.NoError(t, judged)
						return
					}
				}
				require.Error(t, err)
				assert.Contains(t, err.Error(), chip.String())
				require.ErrorIs(t, judged, secureboot.ErrSignature)
				assert.Contains(t, judged.Error(), chip.String())
			})
		}
	}
}

func TestUnknownChipHasNoScheme(t *testing.T) {
	require.ErrorContains(t, sigblock.CheckChip(7, sigblock.RSA3072), "chip(7)")
}

// A chip that has both schemes accepts the one that the device is configured for.
func TestSchemeByConfiguration(t *testing.T) {
	rsa, ec := rsaKey(t), ecKey(t, elliptic.P256())
	img := minimal(t, image.ESP32C6, image.App{})
	byRSA, byEC, byBoth := sign(t, img, rsa), sign(t, img, ec), sign(t, img, rsa, ec)
	trusted := []secureboot.Digest{digestOf(t, rsa), digestOf(t, ec)}
	for _, test := range []struct {
		name    string
		schemes []secureboot.Scheme
		file    []byte
		want    error
		says    string
	}{
		{"RSA by RSA", []secureboot.Scheme{secureboot.RSA()}, byRSA, nil, ""},
		{"ECDSA by RSA", []secureboot.Scheme{secureboot.RSA()}, byEC, secureboot.ErrSignature, "the scheme is ECDSA"},
		{"both by RSA", []secureboot.Scheme{secureboot.RSA()}, byBoth, nil, ""},
		{"RSA by ECDSA", []secureboot.Scheme{sbecdsa.Scheme()}, byRSA, secureboot.ErrSignature, "the scheme is RSA"},
		{"ECDSA by ECDSA", []secureboot.Scheme{sbecdsa.Scheme()}, byEC, nil, ""},
		{"both by ECDSA", []secureboot.Scheme{sbecdsa.Scheme()}, byBoth, nil, ""},
		{"nil beside one", []secureboot.Scheme{nil, sbecdsa.Scheme()}, byEC, nil, ""},
		{"none", nil, byRSA, secureboot.ErrNoScheme, "Verifier.Schemes"},
		{"nil", []secureboot.Scheme{nil}, byRSA, secureboot.ErrNoScheme, "Verifier.Schemes"},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := verify(secureboot.Verifier{Chip: image.ESP32C6, Schemes: test.schemes, Trusted: trusted}, test.file)
			if test.want == nil {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, test.want)
			assert.Contains(t, err.Error(), test.says)
		})
	}
}

// What is wrong with the Verifier is no verdict on the image.
func TestIncompleteVerifierHasNoCode(t *testing.T) {
	old := uint16(200)
	v := secureboot.Verifier{Trusted: fuses(t, "rsa1")}
	for _, test := range []struct {
		v    secureboot.Verifier
		want error
	}{
		{secureboot.Verifier{}, secureboot.ErrNoTrustedKey},
		{v, secureboot.ErrNoScheme},
		{secureboot.Verifier{Schemes: schemes, Trusted: v.Trusted, Revision: &old}, secureboot.ErrNoSecureBootV2},
	} {
		err := verify(test.v, nil)
		require.ErrorIs(t, err, test.want)
		var coded interface{ FirmwareCode() int }
		assert.NotErrorAs(t, err, &coded)
	}
}
