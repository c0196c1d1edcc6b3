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
	if _, err := open(b, records, opts).Generate(b.Context(), keystore.Enrolment); err != nil {
		b.Fatal(err)
	}
	began := time.Now()
	if _, err := pbkdf2.Key(sha256.New, strong, make([]byte, 16), software.DefaultIterations, 32); err != nil {
		b.Fatal(err)
	}
	limit := time.Since(began)
	for b.Loop() {
		if _, err := open(b, records, opts).Signer(b.Context(), keystore.Enrolment); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed())/float64(b.N)/float64(limit), "x-pbkdf2")
}

// Asking for an opened key and signing with it costs no more than signing:
// x-ecdsa is the ratio to the standard library's signature, measured in the same
// run.
func BenchmarkSign(b *testing.B) {
	ctx := b.Context()
	_, s := stored(b, new(store.Mem), software.P256)
	digest := make([]byte, 32)
	bare, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	const n = 1000
	began := time.Now()
	for range n {
		if _, err := bare.Sign(rand.Reader, digest, crypto.SHA256); err != nil {
			b.Fatal(err)
		}
	}
	limit := time.Since(began) / n
	for b.Loop() {
		signer, err := s.Signer(ctx, keystore.Enrolment)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := signer.Sign(rand.Reader, digest, crypto.SHA256); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed())/float64(b.N)/float64(limit), "x-ecdsa")
}
