package secureboot_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"testing"

	"github.com/quarklink-go/quarklink/esp/image"
	"github.com/quarklink-go/quarklink/esp/secureboot"
)

func rsaKey(tb testing.TB) *rsa.PrivateKey {
	tb.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 3072)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

func ecKey(tb testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

func digestOf(tb testing.TB, key crypto.Signer) secureboot.Digest {
	tb.Helper()
	d, err := secureboot.KeyDigest(key.Public())
	if err != nil {
		tb.Fatal(err)
	}
	return d
}

func minimal(tb testing.TB, chip image.Chip, app image.App) []byte {
	tb.Helper()
	b, err := image.Minimal(chip, app)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func verify(v secureboot.Verifier, b []byte) error {
	return v.Verify(context.Background(), bytes.NewReader(b), int64(len(b)))
}

func TestSignAndVerify(t *testing.T) {
	keys := map[string]crypto.Signer{
		"RSA-3072": rsaKey(t),
		"P-192":    ecKey(t, secureboot.P192()),
		"P-256":    ecKey(t, elliptic.P256()),
		"P-384":    ecKey(t, elliptic.P384()),
	}
	img := minimal(t, image.ESP32C6, image.App{SecureVersion: 2})
	for name, key := range keys {
		t.Run(name, func(t *testing.T) {
			signed, err := secureboot.Sign(rand.Reader, img, key)
			if err != nil {
				t.Fatal(err)
			}
			for other, key := range keys {
				v := secureboot.Verifier{Chip: image.ESP32C6, Trusted: []secureboot.Digest{digestOf(t, key)}}
				if err := verify(v, signed); (err == nil) != (other == name) || err != nil && !errors.Is(err, secureboot.ErrSignature) {
					t.Errorf("trusting %s: %v", other, err)
				}
			}
		})
	}
}
