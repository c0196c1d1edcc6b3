package image_test

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/quarklink-go/quarklink/esp/image"
)

// testImage returns an image that Espressif's tools made (and signed, which
// concerns nobody here).
func testImage(tb testing.TB, name string) []byte {
	tb.Helper()
	f, err := os.Open(filepath.Join("testdata", name+".bin.gz"))
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		tb.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func read(b []byte) (*image.Image, error) {
	return image.Read(bytes.NewReader(b), int64(len(b)))
}

// What esptool image_info and the sources of the programs say of the files.
func TestReadEspressif(t *testing.T) {
	for _, test := range []struct {
		name          string
		chip          image.Chip
		version       string
		secureVersion uint32
		segments      int
		length        int64
	}{
		{"esp32_small_v1.0.0.sbv1", image.ESP32, "1.0.0", 0, 5, 69760},
		{"esp32_small_v1.0.0_padv2.rsa1", image.ESP32, "1.0.0", 0, 6, 131072},
		{"esp32c3_big_v1.0.0_padv2.rsa1", image.ESP32C3, "1.0.0", 0, 6, 1 << 20},
		{"esp32c3_small_v1.0.0_padv2.rsa1", image.ESP32C3, "1.0.0", 0, 6, 131072},
		{"esp32c3_small_v1.0.0_unpadded.rsa1", image.ESP32C3, "1.0.0", 0, 5, 69760},
		{"esp32c3_small_v1.1.0_padv2.rsa1", image.ESP32C3, "1.1.0", 1, 6, 131072},
		{"esp32c6_small_v1.0.0_padv2.ec256", image.ESP32C6, "1.0.0", 0, 6, 131072},
		{"esp32s3_small_v1.0.0_padv2.rsa1_append2_append3", image.ESP32S3, "1.0.0", 0, 6, 131072},
	} {
		b := testImage(t, test.name)
		m, err := read(b)
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		if m.Header.Chip != test.chip || len(m.Segments) != test.segments || m.Length != test.length || !m.HashMatches() {
			t.Errorf("%s: %v, %d segments, %d bytes, hash matches: %v", test.name, m.Header.Chip, len(m.Segments), m.Length, m.HashMatches())
		}
		if m.App == nil || m.App.Version != test.version || m.App.SecureVersion != test.secureVersion {
			t.Errorf("%s: descriptor %+v", test.name, m.App)
		}
		for _, size := range []int64{m.Length, min(m.Length+5, int64(len(b))), int64(len(b))} {
			padded := bytes.Repeat([]byte{0xFF}, int(m.PaddedLength()))
			copy(padded, b[:size])
			if m, err := image.Read(bytes.NewReader(b), size); err != nil || m.PaddedSHA256 != sha256.Sum256(padded) {
				t.Errorf("%s, %d bytes of it: PaddedSHA256 %x, %v", test.name, size, m.PaddedSHA256, err)
			}
		}
		for _, r := range []io.ReaderAt{eofReader{b}, oneByteMore{b}} {
			if again, err := image.Read(r, int64(len(b))); err != nil || again.PaddedSHA256 != m.PaddedSHA256 {
				t.Errorf("%s through %T: %v", test.name, r, err)
			}
		}
	}
}

// eofReader returns io.EOF together with the last bytes, as io.ReaderAt allows.
type eofReader struct{ b []byte }

func (r eofReader) ReadAt(p []byte, off int64) (int, error) {
	n := copy(p, r.b[off:])
	if off+int64(n) == int64(len(r.b)) {
		return n, io.EOF
	}
	return n, nil
}

// oneByteMore holds more than its announced size: nobody may look there.
type oneByteMore struct{ b []byte }

func (r oneByteMore) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > int64(len(r.b)) {
		return 0, errors.New("read past the announced size")
	}
	return copy(p, r.b[off:]), nil
}

// Every way in which an image can be wrong has its error, and its offset.
func TestReadErrors(t *testing.T) {
	put32 := func(at int, v uint32) func([]byte) []byte {
		return func(b []byte) []byte { binary.LittleEndian.PutUint32(b[at:], v); return b }
	}
	set := func(at int, v byte) func([]byte) []byte {
		return func(b []byte) []byte { b[at] = v; return b }
	}
	cut := func(n int) func([]byte) []byte {
		return func(b []byte) []byte { return b[:n] }
	}
	for _, test := range []struct {
		name   string
		damage func([]byte) []byte
		want   error
		offset int64
	}{
		{"empty", cut(0), image.ErrTruncated, 0},
		{"half a header", cut(20), image.ErrTruncated, 20},
		{"header alone", cut(24), image.ErrTruncated, 24},
		{"half a segment header", cut(28), image.ErrTruncated, 28},
		{"first segment cut", cut(0x100), image.ErrTruncated, 28},
		{"cut before the checksum", cut(0x1105C), image.ErrTruncated, 0x1105C},
		{"cut before the SHA-256", cut(69728), image.ErrTruncated, 69728},
		{"cut in the SHA-256", cut(69759), image.ErrTruncated, 69759},
		{"magic", set(0, 0xEA), image.ErrMagic, 0},
		{"erased", func(b []byte) []byte { return bytes.Repeat([]byte{0xFF}, len(b)) }, image.ErrMagic, 0},
		{"no segment", set(1, 0), image.ErrSegments, 1},
		{"17 segments", set(1, 17), image.ErrSegments, 1},
		{"one segment too many", set(1, 6), image.ErrSegments, 0x11060},
		{"one segment too few", set(1, 4), image.ErrChecksum, 0x1001F},
		{"unaligned length", put32(28, 0x3102), image.ErrSegments, 28},
		{"length of 16 MiB", put32(28, 16<<20), image.ErrSegments, 28},
		{"length wraps", put32(28, 0xFFFFFFF0), image.ErrSegments, 28},
		{"longer than the file", put32(28, 16<<20-4), image.ErrTruncated, 28},
		{"address that cannot be mapped", put32(24, 0x3C000024), image.ErrSegments, 24},
		{"checksum", set(69727, 0x55), image.ErrChecksum, 69727},
		{"data", set(0x1000, 0x55), image.ErrChecksum, 69727},
	} {
		b := test.damage(testImage(t, "esp32c3_small_v1.0.0_unpadded.rsa1")[:69760])
		m, err := read(b)
		var format *image.FormatError
		if !errors.Is(err, test.want) || !errors.As(err, &format) || format.Offset != test.offset || m != nil {
			t.Errorf("%s: %v, want %v at 0x%x", test.name, err, test.want, test.offset)
		}
	}
	if _, err := image.Read(bytes.NewReader(nil), -1); !errors.Is(err, image.ErrTruncated) {
		t.Errorf("negative size: %v", err)
	}
}

// A size that is larger than what is there is truncation; an error of the
// storage is the storage's.
func TestReadStorage(t *testing.T) {
	b := testImage(t, "esp32c3_small_v1.0.0_unpadded.rsa1")
	if _, err := image.Read(bytes.NewReader(b[:5000]), int64(len(b))); !errors.Is(err, image.ErrTruncated) {
		t.Errorf("shorter than announced: %v", err)
	}
	broken := func(at int64) io.ReaderAt { return brokenAt{b, at} }
	for _, at := range []int64{0, 30, 5000, 69700, 69750, 69761} {
		_, err := image.Read(broken(at), int64(len(b)))
		var format *image.FormatError
		if !errors.Is(err, iotest.ErrTimeout) || errors.As(err, &format) {
			t.Errorf("storage broken at %d: %v", at, err)
		}
	}
}

type brokenAt struct {
	b  []byte
	at int64
}

func (r brokenAt) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > r.at {
		return 0, iotest.ErrTimeout
	}
	return copy(p, r.b[off:]), nil
}

func TestHashMatches(t *testing.T) {
	b := testImage(t, "esp32c3_small_v1.0.0_unpadded.rsa1")
	b[69759] ^= 1
	if m, err := read(b); err != nil || m.HashMatches() {
		t.Errorf("wrong SHA-256: matches %v, %v", m.HashMatches(), err)
	}
	b[23] = 0
	if m, err := read(b); err != nil || m.HashMatches() || m.Length != 69728 {
		t.Errorf("no SHA-256: matches %v, %d bytes, %v", m.HashMatches(), m.Length, err)
	}
}

func TestReadHeader(t *testing.T) {
	b := testImage(t, "esp32s3_small_v1.0.0_padv2.rsa1_append2_append3")
	h, err := image.ReadHeader(bytes.NewReader(b), int64(len(b)))
	want := image.Header{
		Chip: image.ESP32S3, Entry: 0x42000040, SPIMode: image.DIO, FlashFrequency: 15, FlashSize: 4 << 20,
		WPPin: image.WPPinDisabled, MaxRevision: 99, HashAppended: true,
	}
	if err != nil || h != want {
		t.Errorf("%+v, %v, want %+v", h, err, want)
	}
	if _, err := image.ReadHeader(bytes.NewReader(b[1:]), 100); !errors.Is(err, image.ErrMagic) {
		t.Error(err)
	}
	if _, err := image.ReadHeader(bytes.NewReader(b), 23); !errors.Is(err, image.ErrTruncated) {
		t.Error(err)
	}
}

func TestSupportsRevision(t *testing.T) {
	for _, test := range []struct {
		min, max, revision uint16
		want               bool
	}{
		{0, 0, 301, true}, {0, 65535, 301, true}, {3, 199, 2, false}, {3, 199, 3, true}, {3, 199, 199, true}, {3, 199, 200, false},
	} {
		h := image.Header{MinRevision: test.min, MaxRevision: test.max}
		if got := h.SupportsRevision(test.revision); got != test.want {
			t.Errorf("revision %d in %d to %d: %v", test.revision, test.min, test.max, got)
		}
	}
}

func TestChip(t *testing.T) {
	for chip, name := range map[image.Chip]string{
		image.ESP32: "esp32", image.ESP32S2: "esp32s2", image.ESP32C3: "esp32c3", image.ESP32S3: "esp32s3", image.ESP32C2: "esp32c2",
		image.ESP32C6: "esp32c6", image.ESP32H2: "esp32h2", image.ESP32P4: "esp32p4", image.ESP32C61: "esp32c61", image.ESP32C5: "esp32c5",
	} {
		if got, err := image.ParseChip(name); got != chip || err != nil || chip.String() != name {
			t.Errorf("%d: %v, %v, %v", uint16(chip), got, err, chip)
		}
	}
	for _, name := range []string{"", "ESP32", "esp32-c3", " esp32", "esp32c", "chip(7)"} {
		if chip, err := image.ParseChip(name); err == nil {
			t.Errorf("%q is %v", name, chip)
		}
	}
	if s := image.Chip(7).String(); s != "chip(7)" {
		t.Error(s)
	}
}

func TestAppRoundTrip(t *testing.T) {
	want := image.App{
		SecureVersion: 7, Version: strings.Repeat("v", 32), Project: "p", Time: "12:34:56", Date: "Jan  2 2026", IDFVersion: "v5.3.1",
		ELFSHA256: sha256.Sum256(nil), MinEFuseBlockRevision: 1, MaxEFuseBlockRevision: 199, MMUPageSize: 65536,
	}
	b, err := want.MarshalBinary()
	var got image.App
	if err != nil || len(b) != image.AppSize || got.UnmarshalBinary(b) != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []image.App{{Version: strings.Repeat("v", 33)}, {Time: strings.Repeat("t", 17)}, {Project: "a\x00b"}, {MMUPageSize: 12}} {
		if _, err := bad.MarshalBinary(); err == nil {
			t.Errorf("%+v encodes", bad)
		}
	}
	if got.UnmarshalBinary(b[:255]) == nil || got.UnmarshalBinary(make([]byte, 256)) == nil {
		t.Error("no descriptor decodes")
	}
}

// Reading allocates a buffer of one sector, whatever the size of the image
// and of the numbers in it.
func TestReadAllocation(t *testing.T) {
	b := testImage(t, "esp32c3_big_v1.0.0_padv2.rsa1")
	r := bytes.NewReader(b)
	const rounds = 20
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range rounds {
		if _, err := image.Read(r, int64(len(b))); err != nil {
			t.Fatal(err)
		}
	}
	runtime.ReadMemStats(&after)
	if each := (after.TotalAlloc - before.TotalAlloc) / rounds; each > 8<<10 {
		t.Errorf("%d bytes allocated to read an image of %d", each, len(b))
	}
}

func BenchmarkRead(b *testing.B) {
	img := testImage(b, "esp32c3_big_v1.0.0_padv2.rsa1")
	r := bytes.NewReader(img)
	b.SetBytes(int64(len(img)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := image.Read(r, int64(len(img))); err != nil {
			b.Fatal(err)
		}
	}
}

// FuzzRead holds Read to its promises on whatever input: no panic, segments
// and hashes where the file has them, a classified error with its offset.
func FuzzRead(f *testing.F) {
	seeds, err := fs.Glob(os.DirFS("testdata"), "*small*.bin.gz")
	if err != nil || len(seeds) == 0 {
		f.Fatal(seeds, err)
	}
	for _, name := range seeds {
		b := testImage(f, strings.TrimSuffix(name, ".bin.gz"))
		f.Add(b[:0x400])
	}
	for _, chip := range []image.Chip{image.ESP32, image.ESP32C3, image.ESP32C2, image.ESP32P4, 7} {
		h := image.NewHeader(chip)
		b := image.Builder{Header: h}
		b.Add(0x3FC80000, []byte("some data"))
		b.Add(0, nil)
		seed, err := b.Bytes()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(seed)
	}
	min, err := image.Minimal(image.ESP32C3, image.App{Version: "1"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(min)
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := read(b)
		if err != nil {
			var format *image.FormatError
			if !errors.As(err, &format) || format.Offset < 0 || format.Offset > int64(len(b)) || m != nil {
				t.Fatalf("%v, %v", m, err)
			}
			return
		}
		if m.Length > int64(len(b)) || m.PaddedLength() < m.Length || m.PaddedLength()%4096 != 0 || len(m.Segments) == 0 || len(m.Segments) > 16 {
			t.Fatalf("%+v", m)
		}
		end := int64(24)
		for _, s := range m.Segments {
			if s.Offset != end+8 || s.Length%4 != 0 {
				t.Fatalf("%+v", m.Segments)
			}
			end = s.Offset + int64(s.Length)
		}
		sum := m.Length
		if m.Header.HashAppended {
			sum -= 32
		}
		if sum != end+16-end%16 || m.SHA256 != sha256.Sum256(b[:sum]) {
			t.Fatalf("%+v", m)
		}
	})
}
