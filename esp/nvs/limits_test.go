package nvs

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"strings"
	"sync"
	"testing"

	"github.com/quarklink-go/quarklink/esp/flash"
	"github.com/quarklink-go/quarklink/esp/flash/flashtest"
)

func TestNames(t *testing.T) {
	p := openImage(t, flash.NewMemory(2*sectorSize), Options{})
	for _, bad := range []string{"", "sixteen_letters_", strings.Repeat("x", 300), "nul\x00inside"} {
		if _, err := p.Namespace(bad); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("namespace %q: %v", bad, err)
		}
		ns, _ := p.Namespace("ok")
		for what, err := range map[string]error{
			"set": SetInt(ns, bad, uint8(1)), "string": ns.SetString(bad, ""), "erase": ns.Erase(bad), "put": ns.Put(context.Background(), bad, nil),
		} {
			if !errors.Is(err, fs.ErrInvalid) || len(bad) > 15 && !strings.Contains(err.Error(), fmt.Sprint(len(bad))) {
				t.Errorf("%s %q: %v", what, bad, err)
			}
		}
	}
	ns, _ := p.Namespace("fifteen_letters")
	if err := SetInt(ns, "fifteen_letters", uint8(1)); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"Upper", "under_score", "space here"} {
		if err := ns.Put(context.Background(), bad, nil); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("put %q: %v", bad, err)
		}
	}
}

func TestNamespaces(t *testing.T) {
	m := flash.NewMemory(8 * sectorSize)
	p := openImage(t, m, Options{})
	for i := range 254 {
		ns, _ := p.Namespace(fmt.Sprintf("space%d", i))
		if err := SetInt(ns, "key", uint8(i)); err != nil {
			t.Fatal(err)
		}
	}
	one, _ := p.Namespace("one more")
	if err := SetInt(one, "key", uint8(1)); !errors.Is(err, ErrNamespaces) {
		t.Errorf("255th namespace: %v", err)
	}
	for _, p := range []*Partition{p, openImage(t, m, Options{}), openReader(t, m, nil)} {
		if names, err := p.Namespaces(); err != nil || len(names) != 254 {
			t.Errorf("%d namespaces, %v", len(names), err)
		}
		for i := range 254 {
			ns, _ := p.Namespace(fmt.Sprintf("space%d", i))
			if v, err := GetInt[uint8](ns, "key"); err != nil || v != uint8(i) {
				t.Fatalf("%d: %d, %v", i, v, err)
			}
		}
	}
}

func TestLengths(t *testing.T) {
	p := openImage(t, flash.NewMemory(4*sectorSize), Options{})
	ns, _ := p.Namespace("n")
	if err := ns.SetString("s", strings.Repeat("s", 3999)); err != nil {
		t.Error(err)
	}
	if s, err := ns.GetString("s"); err != nil || len(s) != 3999 {
		t.Errorf("%d bytes, %v", len(s), err)
	}
	if err := ns.SetString("s", strings.Repeat("s", 4000)); !errors.Is(err, ErrTooLong) {
		t.Errorf("string of 4000: %v", err)
	}
	if err := ns.SetString("s", "nul\x00"); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("string with a NUL: %v", err)
	}
	if err := ns.SetBlob("b", make([]byte, 12001)); !errors.Is(err, ErrTooLong) {
		t.Errorf("blob of 12001 in four pages: %v", err)
	}
	if err := ns.SetBlob("b", make([]byte, 9000)); !errors.Is(err, ErrNoSpace) {
		t.Errorf("blob beside a long string: %v", err)
	}
	if err := ns.Erase("s"); err != nil {
		t.Error(err)
	}
	for _, n := range []int{0, 1, 31, 32, 33, 3999, 4000, 4001, 9000, 0} {
		want := []byte(text(n, uint64(n)))[:n]
		if err := ns.SetBlob("b", want); err != nil {
			// Two of the larger ones do not fit at once.
			if !errors.Is(err, ErrNoSpace) || ns.Erase("b") != nil || ns.SetBlob("b", want) != nil {
				t.Errorf("blob of %d: %v", n, err)
			}
		}
		if b, err := ns.GetBlob("b"); err != nil || !bytes.Equal(b, want) {
			t.Errorf("blob of %d: %d bytes, %v", n, len(b), err)
		}
	}
}

func TestIntegers(t *testing.T) {
	p := openImage(t, flash.NewMemory(2*sectorSize), Options{})
	ns, _ := p.Namespace("n")
	integer(t, ns, U8, uint8(math.MaxUint8))
	integer(t, ns, I8, int8(math.MinInt8))
	integer(t, ns, U16, uint16(math.MaxUint16))
	integer(t, ns, I16, int16(math.MinInt16))
	integer(t, ns, U32, uint32(math.MaxUint32))
	integer(t, ns, I32, int32(math.MinInt32))
	integer(t, ns, U64, uint64(math.MaxUint64))
	integer(t, ns, I64, int64(math.MinInt64))
	if _, err := ns.GetString("k"); !errors.Is(err, ErrType) || !strings.Contains(err.Error(), "is i64, not string") {
		t.Error(err)
	}
	if list, err := p.Entries(); err != nil || len(list) != 1 || list[0].Type != I64 {
		t.Errorf("%v, %v", list, err)
	}
}

func integer[T Integer](t *testing.T, ns *Namespace, typ Type, v T) {
	t.Helper()
	if err := SetInt(ns, "k", v); err != nil {
		t.Error(err)
	}
	if got, err := GetInt[T](ns, "k"); err != nil || got != v {
		t.Errorf("%d, %v, want %d", got, err, v)
	}
	if list, err := ns.p.Entries(); err != nil || list[0].Type != typ {
		t.Errorf("%v, %v", list, err)
	}
}

// hostile writes sealed entries that the library would not write.
func hostile(t *testing.T, change func(e *entry)) *Partition {
	t.Helper()
	m := flash.NewMemory(3 * sectorSize)
	p := openImage(t, m, Options{})
	ns, _ := p.Namespace("n")
	if err := errors.Join(SetInt(ns, "before", uint8(1)), ns.SetBlob("blob", []byte(text(100, 1))), SetInt(ns, "after", uint8(2))); err != nil {
		t.Fatal(err)
	}
	pg := p.current()
	for _, it := range pg.items {
		e, err := p.entry(pg, &it)
		if err != nil {
			t.Fatal(err)
		}
		if e.typ() == blobChunk || e.typ() == blobIndex {
			change(&e)
			e.seal()
			copy(m[pg.entryOff(int(it.entry)):], e[:])
		}
	}
	return openReader(t, m, nil)
}

// TestHostile: sealed nonsense is refused by name, and nothing else is lost.
func TestHostile(t *testing.T) {
	for name, change := range map[string]func(*entry){
		"data of 65535":       func(e *entry) { chunk(e, func() { binary.LittleEndian.PutUint16(e[24:], 0xFFFF) }) },
		"data of one more":    func(e *entry) { chunk(e, func() { binary.LittleEndian.PutUint16(e[24:], 129) }) },
		"span of 0":           func(e *entry) { chunk(e, func() { e[2] = 0 }) },
		"span of 255":         func(e *entry) { chunk(e, func() { e[2] = 255 }) },
		"span to the end":     func(e *entry) { chunk(e, func() { e[2] = 124 }) },
		"chunk without":       func(e *entry) { chunk(e, func() { e[3] = noChunk }) },
		"blob of 4 GiB":       func(e *entry) { blobIdx(e, func() { binary.LittleEndian.PutUint32(e[24:], 0xFFFFFFFF) }) },
		"255 chunks":          func(e *entry) { blobIdx(e, func() { e[28] = 255 }) },
		"127 chunks":          func(e *entry) { blobIdx(e, func() { e[28] = 127 }) },
		"chunks from 7":       func(e *entry) { blobIdx(e, func() { e[29] = 7 }) },
		"type of the future":  func(e *entry) { e[1] = 0x99 },
		"key not terminated":  func(e *entry) { fill(e.key(), 'k') },
		"key empty":           func(e *entry) { fill(e.key(), 0) },
		"namespace 255":       func(e *entry) { e[0] = 255 },
		"namespace of no one": func(e *entry) { e[0] = 77 },
	} {
		t.Run(name, func(t *testing.T) {
			p := hostile(t, change)
			ns, _ := p.Namespace("n")
			if b, err := ns.GetBlob("blob"); err == nil {
				t.Errorf("read as %d bytes", len(b))
			} else if !errors.Is(err, ErrDamaged) && !errors.Is(err, fs.ErrNotExist) {
				t.Error(err)
			}
			a, err1 := GetInt[uint8](ns, "before")
			b, err2 := GetInt[uint8](ns, "after")
			if err := errors.Join(err1, err2); err != nil || a != 1 || b != 2 {
				t.Error(a, b, err)
			}
		})
	}
}

func chunk(e *entry, f func()) {
	if e.typ() == blobChunk {
		f()
	}
}

func blobIdx(e *entry, f func()) {
	if e.typ() == blobIndex {
		f()
	}
}

// TestForged: data that looks like an entry stays data, also when its item is
// half erased.
func TestForged(t *testing.T) {
	forged := newEntry(1, U8, noChunk, "admin")
	copy(forged.value(), []byte{1})
	forged.seal()
	m := flash.NewMemory(2 * sectorSize)
	p := openImage(t, m, Options{})
	ns, _ := p.Namespace("n")
	if err := ns.SetBlob("blob", bytes.Repeat(forged[:], 40)); err != nil {
		t.Fatal(err)
	}
	j := flashtest.New(m)
	j.Record()
	p, err := Open(j, Options{})
	if err != nil {
		t.Fatal(err)
	}
	ns, _ = p.Namespace("n")
	if err := ns.Erase("blob"); err != nil {
		t.Fatal(err)
	}
	cuts := flashtest.EachCut(m, j.Journal(), 1, func(name string, m flash.Memory) {
		m = bytes.Clone(m)
		for _, p := range []*Partition{openReader(t, m, nil), openImage(t, m, Options{})} {
			ns, _ := p.Namespace("n")
			if v, err := GetInt[uint8](ns, "admin"); !errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("%s: %d, %v", name, v, err)
			}
		}
	})
	t.Logf("%d cuts", cuts)
}

// TestTypesUnderOneKey: ESP-IDF 5.3.1 keeps a string when a blob of the same
// name is set, and reads both; so do we, and setting leaves one.
func TestTypesUnderOneKey(t *testing.T) {
	m := flash.NewMemory(3 * sectorSize)
	p := openImage(t, m, Options{})
	if err := p.set(0, "n", U8, []byte{1}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(p.setItem(1, "k", String, []byte("string\x00")), p.setBlob(1, "k", []byte("blob"), nil), p.nextPage(), p.setItem(1, "x", U8, []byte{1})); err != nil {
		t.Fatal(err)
	}
	p = openImage(t, m, Options{})
	contentOf(t, p).diff(t, content{"n/k string": "string", "n/k blob": "blob", "n/x u8": "\x01"})
	ns, _ := p.Namespace("n")
	if err := ns.SetBlob("k", []byte("other")); err != nil {
		t.Fatal(err)
	}
	contentOf(t, openImage(t, m, Options{})).diff(t, content{"n/k blob": "other", "n/x u8": "\x01"})
}

// TestOldBlob: a blob of version 1 of the format is read, and replaced by one
// of version 2, also if the power is cut in between.
func TestOldBlob(t *testing.T) {
	m := flash.NewMemory(2 * sectorSize)
	p := openImage(t, m, Options{})
	e := newEntry(1, Blob, noChunk, "k")
	e.setData([]byte("old"))
	if err := errors.Join(p.set(0, "n", U8, []byte{1}), p.append(e, []byte("old"))); err != nil {
		t.Fatal(err)
	}
	j := flashtest.New(m)
	j.Record()
	p, err := Open(j, Options{})
	if err != nil {
		t.Fatal(err)
	}
	ns, _ := p.Namespace("n")
	if b, err := ns.GetBlob("k"); err != nil || string(b) != "old" {
		t.Fatalf("%q, %v", b, err)
	}
	if err := ns.SetBlob("k", []byte("new")); err != nil {
		t.Fatal(err)
	}
	flashtest.EachCut(m, j.Journal(), 1, func(name string, m flash.Memory) {
		m = bytes.Clone(m)
		c := contentOf(t, openImage(t, m, Options{}))
		if v := c["n/k blob"]; len(c) != 1 || v != "old" && v != "new" {
			t.Errorf("%s: %q", name, c)
		}
	})
}

func TestReadOnly(t *testing.T) {
	m, want := sample(t, nil)
	before := bytes.Clone(m)
	p := openReader(t, m, nil)
	ns, _ := p.Namespace("device")
	ctx := context.Background()
	for what, err := range map[string]error{
		"set": SetInt(ns, "int", uint8(1)), "erase": ns.Erase("int"), "erase all": ns.EraseAll(), "delete": ns.Delete(ctx, "int"),
		"create": ns.Create(ctx, "new", nil), "discard": p.DiscardDamage(),
	} {
		if !errors.Is(err, ErrReadOnly) {
			t.Errorf("%s: %v", what, err)
		}
	}
	contentOf(t, p).diff(t, want)
	if !bytes.Equal(m, before) {
		t.Error("written to")
	}
}

// failing is flash of which the n-th operation from now fails.
type failing struct {
	flash.Memory
	n int
}

var errFlash = errors.New("flash failed")

func (f *failing) Program(off int64, data []byte) error {
	if f.n--; f.n == 0 {
		return errFlash
	}
	return f.Memory.Program(off, data)
}

// TestFlashFails: a failed operation is reported, and the partition goes on
// from what is in the flash.
func TestFlashFails(t *testing.T) {
	for n := 1; ; n++ {
		f := &failing{Memory: flash.NewMemory(3 * sectorSize)}
		p, err := Open(f, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := base(3)(p); err != nil {
			t.Fatal(err)
		}
		ns, _ := p.Namespace("device")
		old := contentOf(t, p)["device/blob blob"]
		f.n = n
		err = ns.SetBlob("blob", []byte(text(500, 8)))
		if f.n > 0 {
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("failed %d operations", n-1)
			return
		}
		if !errors.Is(err, errFlash) {
			t.Fatalf("operation %d: %v", n, err)
		}
		if b, err := ns.GetBlob("blob"); err != nil || string(b) != old && string(b) != text(500, 8) {
			t.Fatalf("operation %d: then %v", n, err)
		}
		if err := ns.SetBlob("blob", []byte(text(501, 8))); err != nil {
			t.Fatalf("operation %d: again: %v", n, err)
		}
		if c, err := readAll(openReader(t, f.Memory, nil)); err != nil || c["device/blob blob"] != text(501, 8) {
			t.Fatal(err)
		}
	}
}

// stuck is flash that ignores what it is told.
type stuck struct{ flash.Memory }

func (stuck) Program(int64, []byte) error { return nil }

func TestStuckFlash(t *testing.T) {
	p, err := Open(stuck{flash.NewMemory(2 * sectorSize)}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	ns, _ := p.Namespace("n")
	if err := SetInt(ns, "k", uint8(1)); err == nil || !strings.Contains(err.Error(), "write-protected") {
		t.Error(err)
	}
}

func TestConcurrent(t *testing.T) {
	p := openImage(t, flash.NewMemory(4*sectorSize), Options{})
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			ns, _ := p.Namespace(fmt.Sprintf("space%d", g%2))
			for i := range 200 {
				key := fmt.Sprintf("key%d", g)
				if err := SetInt(ns, key, int32(i)); err != nil {
					t.Error(err)
				}
				if v, err := GetInt[int32](ns, key); err != nil || v != int32(i) {
					t.Error(v, err)
				}
				if _, err := p.Entries(); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	wg.Wait()
}
