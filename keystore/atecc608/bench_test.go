package atecc608_test

import (
	"crypto"
	"crypto/sha256"
	"errors"
	"io/fs"
	"testing"

	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/keystore/atecc608"
	"github.com/quarklink-go/quarklink/keystore/atecc608/atecctest"
)

// What an operation costs on the bus and in the chip's own time, as counted by
// the model; ns/op is the host's part, the model included.
func BenchmarkSign(b *testing.B) {
	digest := sha256.Sum256(nil)
	for _, cost := range costs {
		b.Run(cost.name, func(b *testing.B) {
			r := newRig(b, atecctest.Options{Config: provisioned(), Times: cost.times}, atecc608.Options{})
			signer := generate(b, r.chip.KeyStore(atecc608.Slots{}), keystore.Enrolment)
			measure(b, r, func() {
				if _, err := signer.Sign(nil, digest[:], crypto.SHA256); err != nil {
					b.Fatal(err)
				}
			})
		})
	}
}

func BenchmarkGenerateKey(b *testing.B) {
	for _, cost := range costs {
		b.Run(cost.name, func(b *testing.B) {
			r := newRig(b, atecctest.Options{Config: provisioned(), Times: cost.times}, atecc608.Options{})
			var looking atecctest.Stats
			start := r.model.Stats()
			for range b.N {
				r.model.SetSlot(0, nil)
				before := r.model.Stats()
				if _, err := r.chip.Signer(b.Context(), 0); !errors.Is(err, fs.ErrNotExist) {
					b.Fatal(err)
				}
				looking = add(looking, r.model.Stats().Sub(before))
				if _, err := r.chip.GenerateKey(b.Context(), 0); err != nil {
					b.Fatal(err)
				}
			}
			report(b, r.model.Stats().Sub(start).Sub(looking))
		})
	}
}

// measure runs f b.N times.
func measure(b *testing.B, r *rig, f func()) {
	b.Helper()
	for range 20 { // the driver learns how long the chip takes
		f()
	}
	before, start := r.model.Stats(), r.clock.Now()
	b.ResetTimer()
	for range b.N {
		f()
	}
	report(b, r.model.Stats().Sub(before))
	b.ReportMetric(float64(r.clock.Now().Sub(start).Milliseconds())/float64(b.N), "chip-ms/op")
}

func report(b *testing.B, s atecctest.Stats) {
	n := float64(b.N)
	b.ReportMetric(float64(s.Transactions)/n, "transactions/op")
	b.ReportMetric(float64(s.Bytes())/n, "bytes/op")
	b.ReportMetric(float64(s.NACKs-s.Pulses)/n, "polls-NACKed/op")
}

func add(a, b atecctest.Stats) atecctest.Stats {
	return a.Sub(atecctest.Stats{}.Sub(b))
}
