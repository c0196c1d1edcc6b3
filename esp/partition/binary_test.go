package partition_test

import (
	"bytes"
	"crypto/md5"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/quarklink-go/quarklink/esp/partition"
)

const (
	good      = "partition-table-esp32-c3-sb-fe.bin"
	goodNoMD5 = "partition-table-esp32-c3-sb-fe.nomd5.bin"
	md5Entry  = 7 * 32 // in good
	endEntry  = 8 * 32 // in good
)

// wantError fails unless err is want, at the offset.
func wantError(t *testing.T, name string, err, want error, offset int64) {
	t.Helper()
	var format *partition.FormatError
	if !errors.Is(err, want) || !errors.As(err, &format) || format.Offset != offset || format.Line != 0 {
		t.Errorf("%s: %v, want %v at offset 0x%x", name, err, want, offset)
	}
}

// Every way in which a table can be refused has its error, and its offset.
func TestParseErrors(t *testing.T) {
	put32 := func(at int, v uint32) func([]byte) []byte {
		return func(b []byte) []byte { binary.LittleEndian.PutUint32(b[at:], v); return b }
	}
	fill := func(from, to int, v byte) func([]byte) []byte {
		return func(b []byte) []byte {
			for i := from; i < to; i++ {
				b[i] = v
			}
			return b
		}
	}
	move := func(to, from int) func([]byte) []byte {
		return func(b []byte) []byte { copy(b[to:to+32], b[from:from+32]); return b }
	}
	cut := func(n int) func([]byte) []byte {
		return func(b []byte) []byte { return b[:n] }
	}
	for _, test := range []struct {
		name   string
		file   string
		damage func([]byte) []byte
		want   error
		offset int64
	}{
		{"empty", good, cut(0), partition.ErrTruncated, 0},
		{"half an entry", good, cut(16), partition.ErrTruncated, 16},
		{"cut after an entry", good, cut(32), partition.ErrTruncated, 32},
		{"cut before the end marker", good, cut(endEntry), partition.ErrTruncated, endEntry},
		{"cut in the end marker", good, cut(endEntry + 31), partition.ErrTruncated, endEntry + 31},
		{"no end marker", goodNoMD5, func([]byte) []byte { return bytes.Repeat(testdata(t, good)[:32], 97) }, partition.ErrTruncated, 0xC00},
		{"erased", good, fill(0, 0xC00, 0xFF), partition.ErrMagic, 0},
		{"zero", good, fill(0, 0xC00, 0), partition.ErrMagic, 0},
		{"second entry zero", good, fill(32, 64, 0), partition.ErrMagic, 32},
		{"end marker of another type", good, fill(endEntry+2, endEntry+3, 0xFE), partition.ErrMagic, endEntry},
		{"end marker of another subtype", good, fill(endEntry+3, endEntry+4, 0), partition.ErrMagic, endEntry},
		{"MD5 wrong", good, fill(md5Entry+16, md5Entry+32, 0), partition.ErrChecksum, md5Entry + 16},
		{"MD5 of nothing yet right", good, func(b []byte) []byte {
			sum := md5.Sum(nil)
			copy(b, b[md5Entry:md5Entry+16])
			copy(b[16:], sum[:])
			return fill(32, 64, 0xFF)(b)
		}, partition.ErrCount, 32},
		{"MD5 twice", good, move(endEntry, md5Entry), partition.ErrChecksum, endEntry},
		{"entry after the MD5", good, move(endEntry, 0), partition.ErrChecksum, endEntry},
		{"starts beyond the flash", goodNoMD5, put32(0x20+4, 4<<20+1), partition.ErrFlashSize, 0x24},
		{"ends beyond the flash", goodNoMD5, put32(0x20+8, 0x3EA001), partition.ErrFlashSize, 0x24},
		{"ends where 32 bits overflow", goodNoMD5, put32(0x20+8, 0xFFFF0000), partition.ErrFlashSize, 0x24},
	} {
		b := test.damage(testdata(t, test.file))
		_, err := partition.Parse(b, 4<<20)
		wantError(t, test.name, err, test.want, test.offset)

		flash := append(make([]byte, partition.QuarkLinkOffset), b...)
		_, err = partition.Read(bytes.NewReader(flash), quarkLink)
		wantError(t, "Read: "+test.name, err, test.want, partition.QuarkLinkOffset+test.offset)
	}
}

// With an MD5, every bit of the entries, of the MD5, and of what says that
// they are such, is noticed. What nothing covers is as the package comment
// says.
func TestEveryBit(t *testing.T) {
	for _, name := range []string{good, "partition-table-esp32-c3-sb-fe-vefuse.bin"} {
		b := testdata(t, name)
		whole, err := partition.Parse(b, 0)
		if err != nil {
			t.Fatal(err)
		}
		checksum := 32 * len(whole.Partitions)
		end := checksum + 32
		uncovered := func(at int) bool {
			return checksum+2 <= at && at < checksum+16 || end+4 <= at
		}
		for at := range b {
			for bit := range 8 {
				b[at] ^= 1 << bit
				table, err := partition.Parse(b, 0)
				switch {
				case !uncovered(at) && err == nil:
					t.Errorf("%s: bit %d of byte 0x%x flipped, and accepted", name, bit, at)
				case uncovered(at) && (err != nil || !reflect.DeepEqual(table, whole)):
					t.Errorf("%s: bit %d of byte 0x%x, which nothing covers, flipped: %v", name, bit, at, err)
				}
				b[at] ^= 1 << bit
			}
		}
	}
}

// A table whose tail was erased, MD5 and all, is one without MD5: the
// bootloader takes it, and who wants the MD5 can see.
func TestErasedTail(t *testing.T) {
	b := testdata(t, good)
	copy(b[64:], bytes.Repeat([]byte{0xFF}, len(b)))
	table, err := partition.Parse(b, 0)
	if err != nil || !table.NoMD5 || len(table.Partitions) != 2 {
		t.Errorf("%+v, %v", table, err)
	}
}

func TestRead(t *testing.T) {
	b := testdata(t, good)
	want, err := partition.Parse(b, 0)
	if err != nil {
		t.Fatal(err)
	}
	at := func(offset int, b []byte) []byte { return append(bytes.Repeat([]byte{0xFF}, offset), b...) }
	for name, test := range map[string]struct {
		flash  io.ReaderAt
		layout partition.Layout
	}{
		"at the default":               {bytes.NewReader(at(partition.DefaultOffset, b)), partition.Layout{}},
		"at QuarkLink's":               {bytes.NewReader(at(partition.QuarkLinkOffset, b)), quarkLink},
		"the flash ends with its mark": {bytes.NewReader(at(0x9000, b[:endEntry+32])), partition.Layout{TableOffset: 0x9000}},
		"just as much flash as needed": {bytes.NewReader(at(0x9000, b)), partition.Layout{TableOffset: 0x9000, FlashSize: 0x3E1000}},
	} {
		if table, err := partition.Read(test.flash, test.layout); err != nil || !reflect.DeepEqual(table, want) {
			t.Errorf("%s: %+v, %v", name, table, err)
		}
	}
	_, err = partition.Read(bytes.NewReader(at(0x9000, b)), partition.Layout{TableOffset: 0x9000, FlashSize: 0x3E0FFF})
	wantError(t, "too little flash", err, partition.ErrFlashSize, 0x9000+6*32+4)
	_, err = partition.Read(bytes.NewReader(at(0x9000, b)), partition.Layout{TableOffset: 0x9000, FlashSize: -1})
	wantError(t, "negative flash", err, partition.ErrFlashSize, 0x9000+4)
	_, err = partition.Read(bytes.NewReader(nil), partition.Layout{})
	wantError(t, "no flash", err, partition.ErrTruncated, partition.DefaultOffset)

	var format *partition.FormatError
	_, err = partition.Read(failing{iotest.ErrTimeout}, partition.Layout{})
	if !errors.Is(err, iotest.ErrTimeout) || errors.As(err, &format) {
		t.Errorf("reader fails: %v", err)
	}
	if _, err := partition.Read(failing{fs.ErrClosed}, quarkLink); err == nil || !strings.Contains(err.Error(), "0xd000") {
		t.Errorf("reader fails: %v, want the offset in it", err)
	}
}

type failing struct{ err error }

func (f failing) ReadAt(p []byte, _ int64) (int, error) { return len(p) / 2, f.err }

// MarshalBinary makes what Espressif's own tests expect of their generator.
func TestMarshalBinary(t *testing.T) {
	table := partition.Table{Partitions: []partition.Partition{
		{Label: "first", Type: 0x30, Subtype: 0xEE, Offset: 0x100400, Size: 0x300000},
	}}
	b, err := table.MarshalBinary()
	want := "\xAA\x50\x30\xEE\x00\x04\x10\x00\x00\x00\x30\x00first" + strings.Repeat("\x00", 11+4) +
		"\xEB\xEB" + strings.Repeat("\xFF", 14) + "\x43\x03\x3f\x33\x40\x87\x57\x51\x69\x83\x9b\x40\x61\xb1\x27\x26" +
		strings.Repeat("\xFF", 0xC00-64)
	if err != nil || string(b) != want {
		t.Errorf("%x, %v", b[:64], err)
	}
}

func TestMarshalBinaryErrors(t *testing.T) {
	p := partition.Partition{Label: "p", Type: partition.Data, Offset: 0x10000, Size: 0x1000}
	with := func(change func(*partition.Partition)) []partition.Partition {
		other := p
		change(&other)
		return []partition.Partition{p, other}
	}
	for _, test := range []struct {
		name   string
		table  partition.Table
		want   error
		offset int64
	}{
		{"none", partition.Table{}, partition.ErrCount, 0},
		{"95 and the MD5", partition.Table{Partitions: make([]partition.Partition, 95)}, partition.ErrCount, 94 * 32},
		{"96", partition.Table{Partitions: make([]partition.Partition, 96), NoMD5: true}, partition.ErrCount, 95 * 32},
		{"17 bytes", partition.Table{Partitions: with(func(p *partition.Partition) { p.Label = strings.Repeat("x", 17) })}, partition.ErrLabel, 32 + 12},
		{"NUL", partition.Table{Partitions: with(func(p *partition.Partition) { p.Label = "x\x00y" })}, partition.ErrLabel, 32 + 12},
		{"4 GiB", partition.Table{Partitions: with(func(p *partition.Partition) { p.Offset, p.Size = 0xFFFFF000, 0x1001 })}, partition.ErrFlashSize, 32 + 4},
	} {
		_, err := test.table.MarshalBinary()
		wantError(t, test.name, err, test.want, test.offset)
		_, err = test.table.MarshalCSV()
		wantError(t, test.name+" as CSV", err, test.want, test.offset)
		wantError(t, test.name+" checked", test.table.Check(partition.Layout{}), test.want, test.offset)
	}
	for _, full := range []partition.Table{
		{Partitions: make([]partition.Partition, 94)},
		{Partitions: make([]partition.Partition, 95), NoMD5: true},
		{Partitions: []partition.Partition{{Label: "sixteen bytes...", Offset: 0xFFFFF000, Size: 0x1000, Flags: 0xFFFFFFFF}}},
	} {
		b, err := full.MarshalBinary()
		if err != nil {
			t.Error(err)
			continue
		}
		if again, err := partition.Parse(b, 0); err != nil || !reflect.DeepEqual(*again, full) {
			t.Errorf("%d partitions read back: %v", len(full.Partitions), err)
		}
	}
}

// What a table can hold bounds what is allocated for it.
func TestParseAllocates(t *testing.T) {
	b := bytes.Repeat(testdata(t, good)[:32], 0xC00/32)
	copy(b[0xC00-32:], bytes.Repeat([]byte{0xFF}, 32))
	b = append(b, make([]byte, 1<<20)...)
	const runs = 100
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range runs {
		if _, err := partition.Parse(b, 0); err != nil {
			t.Fatal(err)
		}
	}
	runtime.ReadMemStats(&after)
	perRun := (after.TotalAlloc - before.TotalAlloc) / runs
	if perRun == 0 || perRun > 8*partition.TableSize {
		t.Errorf("%d bytes allocated for a table of %d", perRun, partition.TableSize)
	}
}
