package image_test

import (
	"bytes"
	"errors"
	"io"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/quarklink-go/quarklink/esp/image"
)

// From the segments of each image of Espressif's, as the linker made them
// (pieces joined, padding left out), Builder makes the same image again.
func TestRebuildEspressif(t *testing.T) {
	for _, name := range []string{
		"esp32_small_v1.0.0.sbv1",
		"esp32_small_v1.0.0_padv2.rsa1",
		"esp32c3_big_v1.0.0_padv2.rsa1",
		"esp32c3_small_v1.0.0_padv2.rsa1",
		"esp32c3_small_v1.0.0_unpadded.rsa1",
		"esp32c3_small_v1.1.0_padv2.rsa1",
		"esp32c6_small_v1.0.0_padv2.ec256",
		"esp32s3_small_v1.0.0_padv2.rsa1_append2_append3",
	} {
		original := testImage(t, name)
		m, err := read(original)
		if err != nil {
			t.Fatal(err)
		}
		original = original[:m.Length]
		b := image.Builder{Header: m.Header, SecurePad: strings.Contains(name, "_padv2")}
		for _, s := range linked(original, m) {
			b.Add(s.address, s.data)
		}
		rebuilt, err := b.Bytes()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !bytes.Equal(rebuilt, original) {
			again, err := read(rebuilt)
			t.Errorf("%s: rebuilt differently: segments %+v, %v, want %+v", name, again, err, m)
		}
		if size, err := b.Size(); size != int64(len(rebuilt)) || err != nil {
			t.Errorf("%s: Size %d, %v, want %d", name, size, err, len(rebuilt))
		}
	}
}

type segment struct {
	address uint32
	data    []byte
}

// linked returns the segments of an image as they were before it was laid out.
func linked(b []byte, m *image.Image) []segment {
	var list []segment
next:
	for _, s := range m.Segments {
		if s.Address == 0 {
			continue
		}
		data := b[s.Offset:][:s.Length]
		for i := range list {
			if list[i].address+uint32(len(list[i].data)) == s.Address {
				list[i].data = append(list[i].data[:len(list[i].data):len(list[i].data)], data...)
				continue next
			}
		}
		list = append(list, segment{s.Address, data})
	}
	return list
}

// Whatever the lengths, what is built can be read, every segment's data is
// where its address says, and mapped segments are where they can be mapped.
func TestBuildLayout(t *testing.T) {
	pattern := bytes.Repeat([]byte("quark"), 60000)
	lengths := []int{0, 1, 0x24, 65499, 65500, 65503, 65508, 131000}
	for _, drom := range lengths {
		for _, irom := range lengths {
			for _, ram := range [][]int{nil, {4}, {100, 65536, 9}} {
				for _, pad := range []bool{false, true} {
					b := image.Builder{Header: image.NewHeader(image.ESP32C3), SecurePad: pad}
					want := []segment{{0x3C000020, pattern[:drom]}, {0x42020020, pattern[1 : 1+irom]}}
					for i, n := range ram {
						want = append(want, segment{0x3FC00000 + uint32(i)<<20, pattern[2 : 2+n]})
					}
					for _, s := range want {
						b.Add(s.address, s.data)
					}
					out, err := b.Bytes()
					if err != nil {
						t.Fatalf("%d, %d, %v: %v", drom, irom, ram, err)
					}
					m, err := read(out)
					if err != nil || m.Length != int64(len(out)) || !m.HashMatches() || pad && m.Length%65536 != 0 {
						t.Fatalf("%d, %d, %v: %+v, %v", drom, irom, ram, m, err)
					}
					memory := linked(out, m)
				next:
					for _, s := range want {
						for _, got := range memory {
							if got.address == s.address && bytes.HasPrefix(got.data, s.data) && len(bytes.Trim(got.data[len(s.data):], "\x00")) == 0 {
								continue next
							}
						}
						t.Fatalf("%d, %d, %v: segment at 0x%x is not in the image: %+v", drom, irom, ram, s.address, m.Segments)
					}
				}
			}
		}
	}
}

// Where segments go at addresses unlike those of ESP-IDF's linker scripts, as
// the arithmetic of elf2image (get_alignment_data_needed) has it.
func TestBuildOddAddresses(t *testing.T) {
	for _, test := range []struct {
		address uint32
		want    []image.Segment
	}{
		{0x3C000020, []image.Segment{{Address: 0x3C000020, Length: 4, Offset: 0x20}}},
		{0x3C000000, []image.Segment{{Length: 0xFFD8, Offset: 0x20}, {Address: 0x3C000000, Length: 36, Offset: 0x10000}}},
		{0x3C000024, []image.Segment{{Length: 0xFFFC, Offset: 0x20}, {Address: 0x3C000024, Length: 4, Offset: 0x10024}}},
		{0x3C000028, []image.Segment{{Length: 0x10000, Offset: 0x20}, {Address: 0x3C000028, Length: 4, Offset: 0x10028}}},
		{0x3C008020, []image.Segment{{Length: 0x17FF8, Offset: 0x20}, {Address: 0x3C008020, Length: 4, Offset: 0x18020}}},
	} {
		b := image.Builder{Header: image.NewHeader(image.ESP32C3)}
		b.Add(test.address, []byte("data"))
		out, err := b.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		if m, err := read(out); err != nil || !slices.Equal(m.Segments, test.want) {
			t.Errorf("0x%x: %v, %+v, want %+v", test.address, err, m, test.want)
		}
	}
}

// A page size other than 64 KiB is stated in the descriptor, and readers use it.
func TestBuildPageSize(t *testing.T) {
	app, err := image.App{MMUPageSize: 16 << 10}.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	b := image.Builder{Header: image.NewHeader(image.ESP32C2), PageSize: 16 << 10, SecurePad: true}
	b.Add(0x3C000020, app)
	b.Add(0x42004020, make([]byte, 100))
	out, err := b.Bytes()
	if err != nil || len(out) != 32<<10 {
		t.Fatal(len(out), err)
	}
	if _, err := read(out); err != nil {
		t.Error(err)
	}
}

func TestBuildErrors(t *testing.T) {
	header := image.NewHeader(image.ESP32C3)
	with := func(b image.Builder, address uint32, data io.ReaderAt, length int64, times int) *image.Builder {
		for range times {
			b.AddReader(address, data, length)
		}
		return &b
	}
	empty := strings.NewReader("")
	badFrequency, badSize := header, header
	badFrequency.FlashFrequency = 16
	badSize.FlashSize = 3 << 20
	noHash := header
	noHash.HashAppended = false
	for name, b := range map[string]*image.Builder{
		"no segment":                 {Header: header},
		"17 segments":                with(image.Builder{Header: header}, 0x3FC80000, empty, 0, 17),
		"16 MiB":                     with(image.Builder{Header: header}, 0x3FC80000, empty, 16<<20, 1),
		"16 MiB with fill":           with(image.Builder{Header: header}, 0x3C000020, empty, 16<<20-40, 1),
		"16 MiB rounded up":          with(image.Builder{Header: header}, 0x3FC80000, empty, 16<<20-1, 1),
		"negative length":            with(image.Builder{Header: header}, 0x3FC80000, empty, -1, 1),
		"length that overflows":      with(image.Builder{Header: header}, 0x3FC80000, empty, math.MaxInt64, 1),
		"unaligned address":          with(image.Builder{Header: header}, 0x3C000021, empty, 0, 1),
		"data shorter than its size": with(image.Builder{Header: header}, 0x3FC80000, empty, 4, 1),
		"odd page size":              with(image.Builder{Header: header, PageSize: 4096}, 0x3FC80000, empty, 0, 1),
		"padding without SHA-256":    with(image.Builder{Header: noHash, SecurePad: true}, 0x3FC80000, empty, 0, 1),
		"two in one page":            with(image.Builder{Header: header}, 0x3C000020, empty, 0, 2),
		"flash frequency":            with(image.Builder{Header: badFrequency}, 0x3FC80000, empty, 0, 1),
		"flash size":                 with(image.Builder{Header: badSize}, 0x3FC80000, empty, 0, 1),
	} {
		if n, err := b.WriteTo(io.Discard); err == nil {
			t.Errorf("%s: %d bytes written", name, n)
		}
	}
	b := with(image.Builder{Header: header}, 0x3FC80000, strings.NewReader("1234"), 4, 1)
	failure := errors.New("disk full")
	if n, err := b.WriteTo(failAfter{24, failure}); !errors.Is(err, failure) || n != 24 {
		t.Errorf("%d bytes, %v", n, err)
	}
}

type failAfter struct {
	n   int
	err error
}

func (w failAfter) Write(p []byte) (int, error) {
	if len(p) == w.n {
		return len(p), nil
	}
	return 0, w.err
}

func TestMinimal(t *testing.T) {
	app := image.App{Version: "1.2.3", Project: "harness", SecureVersion: 4}
	for _, chip := range []image.Chip{
		image.ESP32, image.ESP32S2, image.ESP32C3, image.ESP32S3, image.ESP32C2, image.ESP32C6, image.ESP32H2, image.ESP32P4, image.ESP32C61, image.ESP32C5,
	} {
		b, err := image.Minimal(chip, app)
		if err != nil || len(b) != 336 {
			t.Errorf("%v: %d bytes, %v", chip, len(b), err)
			continue
		}
		if m, err := read(b); err != nil || m.Header.Chip != chip || *m.App != app || !m.HashMatches() {
			t.Errorf("%v: %+v, %v", chip, m, err)
		}
	}
	if _, err := image.Minimal(7, app); err == nil {
		t.Error("chip 7 has no memory map")
	}
	if _, err := image.Minimal(image.ESP32, image.App{Time: strings.Repeat("1", 17)}); err == nil {
		t.Error("too long a time")
	}
}

// An image of 16 MiB is written without being held: every byte of it comes
// from a reader that computes it, twice.
func TestBuildStreams(t *testing.T) {
	b := image.Builder{Header: image.NewHeader(image.ESP32S3)}
	b.AddReader(0x3C000020, zeros{}, 8<<20)
	b.AddReader(0x42000020, zeros{}, 8<<20-1)
	size, err := b.Size()
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if n, err := b.WriteTo(io.Discard); n != size || err != nil {
			t.Errorf("%d bytes, %v, want %d", n, err, size)
		}
	}
}

type zeros struct{}

func (zeros) ReadAt(p []byte, _ int64) (int, error) { clear(p); return len(p), nil }
