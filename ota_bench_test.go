package quarklink_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"io"
	"os"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/esp/image"
	"github.com/quarklink-go/quarklink/esp/secureboot"
	"github.com/quarklink-go/quarklink/esp/secureboot/sbsign"
	"github.com/quarklink-go/quarklink/quarklinktest"
	"github.com/quarklink-go/quarklink/store"
)

// pattern is an endless ReaderAt.
type pattern byte

func (p pattern) ReadAt(b []byte, off int64) (int, error) {
	for i := range b {
		b[i] = byte(p) ^ byte(off+int64(i)) ^ byte((off+int64(i))>>11)
	}
	return len(b), nil
}

// bigImage writes a signed image of 16 MiB to a file, and returns its length.
func bigImage(t testing.TB, key crypto.Signer) (*os.File, int64) {
	t.Helper()
	b := image.Builder{Header: image.NewHeader(image.ESP32C3)}
	app, err := image.App{Project: "big", Version: "2"}.MarshalBinary()
	require.NoError(t, err)
	b.Add(0x3C000020, app)
	b.AddReader(0x3FC80000, pattern(1), 8<<20)
	b.AddReader(0x42100020, pattern(2), 8<<20)
	file, err := os.CreateTemp(t.TempDir(), "image")
	require.NoError(t, err)
	t.Cleanup(func() { file.Close() })
	_, err = b.WriteTo(file)
	require.NoError(t, err)
	size, err := b.Size()
	require.NoError(t, err)
	trailer, at, err := sbsign.ImageAt(rand.Reader, file, size, key)
	require.NoError(t, err)
	_, err = file.WriteAt(trailer, at)
	require.NoError(t, err)
	return file, at + int64(len(trailer))
}

// BenchmarkFirmwareUpdate updates with an image of 16 MiB over loopback TCP and
// reports how far the live heap (after a collection at each MiB) rises above
// where it began: it must stay within 4 MiB.
func BenchmarkFirmwareUpdate(b *testing.B) {
	key := signingKeys()[0]
	file, size := bigImage(b, key)
	server := newServer(b, quarklinktest.Options{})
	records := new(store.Mem)
	c := newClient(b, records, at(server))
	member(b, server, c, quarklinktest.Batch{Firmware: &quarklinktest.Firmware{Image: file, Size: size, AsIs: true}})
	verifier := secureboot.Verifier{Chip: image.ESP32C3, Schemes: schemes, Trusted: trusted(b, key)}
	slot := newSlot(b, 32<<20)
	live := func() float64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc)
	}
	peak := 0.0
	b.SetBytes(size)
	for b.Loop() {
		start, next := live(), int64(0)
		sample := func() { peak = max(peak, live()-start) }
		_, err := c.FirmwareUpdate(b.Context(), quarklink.FirmwareOptions{
			Slot: slot,
			Verifier: verifierFunc(func(ctx context.Context, img io.ReaderAt, size int64) error {
				sample()
				defer sample()
				return verifier.Verify(ctx, img, size)
			}),
			Progress: func(done, _ int64) {
				if done >= next {
					sample()
					next += 1 << 20
				}
			},
		})
		require.NoError(b, err)
		if err := records.Delete(b.Context(), "update"); err != nil { // or it would not be installed again
			b.Fatal(err)
		}
	}
	b.ReportMetric(peak/(4<<20), "heap/limit")
	if peak > 4<<20 {
		b.Errorf("the live heap rose by %.1f MiB", peak/(1<<20))
	}
}
