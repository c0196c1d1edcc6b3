package esp32ds_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"testing"
	"time"

	"github.com/quarklink-go/quarklink/keystore/esp32ds"
	"github.com/quarklink-go/quarklink/keystore/esp32ds/dstest"
)

// timed adds up the time that is spent in the model.
type timed struct {
	*dstest.Chip
	spent time.Duration
}

func (c *timed) Sign(ctx context.Context, block int, params, message []byte) ([]byte, error) {
	defer func(start time.Time) { c.spent += time.Since(start) }(time.Now())
	return c.Chip.Sign(ctx, block, params, message)
}

// BenchmarkSign reports what a signature costs around the exponentiation
// (padding, and checking the result) as a ratio: total/exponentiation is 1 if
// that were free. The exponentiation is the model's, in software; on a chip the
// peripheral's takes as long or longer, while Go's part is slower as the chip's
// processor is, so the ratio there has to be measured there.
func BenchmarkSign(b *testing.B) {
	for _, c := range []struct {
		name, key string
		opts      crypto.SignerOpts
	}{
		{"RSA-2048/PKCS1v15", "rsa2048-esk", crypto.SHA256},
		{"RSA-3072/PKCS1v15", "rsa3072-esk", crypto.SHA256},
		{"RSA-3072/PSS", "rsa3072-esk", &rsa.PSSOptions{Hash: crypto.SHA256, SaltLength: rsa.PSSSaltLengthEqualsHash}},
		{"RSA-4096/PSS", "rsa4096-esk", &rsa.PSSOptions{Hash: crypto.SHA256, SaltLength: rsa.PSSSaltLengthEqualsHash}},
	} {
		b.Run(c.name, func(b *testing.B) {
			chip := &timed{Chip: dstest.New(esp32ds.ESP32S3)}
			signer := hold(b, esp32ds.ESP32S3, chip.Chip, loadKey(b, c.key), func(cfg *esp32ds.Config) { cfg.Peripheral = chip })
			digest := sha256.Sum256(nil)
			b.ReportAllocs()
			start := time.Now()
			for b.Loop() {
				if _, err := signer.Sign(rand.Reader, digest[:], c.opts); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(time.Since(start))/float64(chip.spent), "total/exponentiation")
		})
	}
}

// BenchmarkEncrypt makes the parameters of one key.
func BenchmarkEncrypt(b *testing.B) {
	key := loadKey(b, "rsa3072-esk")
	for b.Loop() {
		if _, err := esp32ds.Encrypt(esp32ds.ESP32C3, key, knownHMACKey, knownIV); err != nil {
			b.Fatal(err)
		}
	}
}
