package software_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/keystore/software"
	"github.com/quarklink-go/quarklink/store"
)

// Opening a key at the default strength takes the key derivation and little more:
// x-pbkdf2 is the ratio to the derivation alone, measured in the same run.
func BenchmarkOpen(b *testing.B) {
	records := new(store.Mem)
	opts := options(software.P256, strong)
	opts.Iterations = software.DefaultIterations
	_, err := open(b, records, opts).Generate(b.Context(), keystore.Enrolment)
	require.NoError(b, err)
	var ours, limit time.Duration
	for b.Loop() {
		ours += elapsed(b, func() error {
			_, err := open(b, records, opts).Signer(b.Context(), keystore.Enrolment)
			return err
		})
		limit += elapsed(b, func() error {
			_, err := pbkdf2.Key(sha256.New, strong, make([]byte, 16), software.DefaultIterations, 32)
			return err
		})
	}
	b.ReportMetric(ours.Seconds()/limit.Seconds(), "x-pbkdf2")
}

// Asking for an opened key and signing with it costs no more than signing:
// x-ecdsa is the ratio to the standard library's signature, measured in the same
// run.
func BenchmarkSign(b *testing.B) {
	ctx := b.Context()
	_, s := stored(b, new(store.Mem), software.P256)
	digest := make([]byte, 32)
	bare, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(b, err)
	var ours, limit time.Duration
	for b.Loop() {
		ours += elapsed(b, func() error {
			signer, err := s.Signer(ctx, keystore.Enrolment)
			if err != nil {
				return err
			}
			_, err = signer.Sign(rand.Reader, digest, crypto.SHA256)
			return err
		})
		limit += elapsed(b, func() error {
			_, err := bare.Sign(rand.Reader, digest, crypto.SHA256)
			return err
		})
	}
	b.ReportMetric(ours.Seconds()/limit.Seconds(), "x-ecdsa")
}

func elapsed(b *testing.B, f func() error) time.Duration {
	began := time.Now()
	require.NoError(b, f())
	return time.Since(began)
}
