package secureboot_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"slices"
	"testing"
	"time"

	"github.com/quarklink-go/quarklink/esp/image"
	"github.com/quarklink-go/quarklink/esp/secureboot"
)

// BenchmarkVerify16MiB compares Verify with what cannot be left out: one
// SHA-256 over the same ReaderAt through the same buffer, and one VerifyPSS.
// It reports limit/ours, of the best time of each, as "of-limit": 1 would be
// perfect.
func BenchmarkVerify16MiB(b *testing.B) {
	key := rsaKey(b)
	build := image.Builder{Header: image.NewHeader(image.ESP32S3), SecurePad: true}
	app, err := image.App{Version: "16.0.0"}.MarshalBinary()
	if err != nil {
		b.Fatal(err)
	}
	pattern := make([]byte, 8<<20-65536)
	for i := range pattern {
		pattern[i] = byte(i * i >> 7)
	}
	copy(pattern, app)
	build.Add(0x3C000020, pattern)
	build.Add(0x42000020, pattern)
	img, err := build.Bytes()
	if err != nil {
		b.Fatal(err)
	}
	file := sign(b, img, key)
	r, size := bytes.NewReader(file), int64(len(file))
	v := secureboot.Verifier{Schemes: schemes, Chip: image.ESP32S3, Trusted: []secureboot.Digest{digestOf(b, key)}}
	signature := slices.Clone(file[len(img)+812:][:384])
	slices.Reverse(signature)

	buf := make([]byte, 4096)
	limit := func() {
		h := sha256.New()
		for off := int64(0); off < int64(len(img)); off += int64(len(buf)) {
			n, err := r.ReadAt(buf, off)
			if err != nil {
				b.Fatal(err)
			}
			h.Write(buf[:n])
		}
		if err := rsa.VerifyPSS(&key.PublicKey, crypto.SHA256, h.Sum(nil), signature, &rsa.PSSOptions{SaltLength: 32}); err != nil {
			b.Fatal(err)
		}
	}
	ours := func() {
		if err := v.Verify(context.Background(), r, size); err != nil {
			b.Fatal(err)
		}
	}

	b.SetBytes(2 * size) // of both
	limitTime, ourTime := time.Hour, time.Hour
	best := func(best *time.Duration, f func()) {
		start := time.Now()
		f()
		*best = min(*best, time.Since(start))
	}
	for i := 0; b.Loop(); i++ {
		if i%2 == 0 { // who comes second finds the caches warm
			best(&limitTime, limit)
			best(&ourTime, ours)
		} else {
			best(&ourTime, ours)
			best(&limitTime, limit)
		}
	}
	b.ReportMetric(float64(limitTime)/float64(ourTime), "of-limit")
}

// BenchmarkVerifySmall shows what Verify costs beside hashing, and that it
// allocates little.
func BenchmarkVerifySmall(b *testing.B) {
	key := rsaKey(b)
	file := sign(b, minimal(b, image.ESP32C3, image.App{}), key)
	v := secureboot.Verifier{Schemes: schemes, Chip: image.ESP32C3, Trusted: []secureboot.Digest{digestOf(b, key)}}
	b.ReportAllocs()
	for b.Loop() {
		if err := verify(v, file); err != nil {
			b.Fatal(err)
		}
	}
}
