package nvs

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"maps"
	"strings"
	"testing"

	"github.com/quarklink-go/quarklink/esp/flash"
	"github.com/quarklink-go/quarklink/esp/flash/flashtest"
)

// sample makes a partition of three pages, two of them full, and returns it
// with what is in it.
func sample(t testing.TB, keys *Keys) (flash.Memory, content) {
	t.Helper()
	m := flash.NewMemory(4 * sectorSize)
	p := openImage(t, m, Options{Keys: keys})
	if err := base(20)(p); err != nil {
		t.Fatal(err)
	}
	ns, _ := p.Namespace("other")
	if err := errors.Join(ns.SetBlob("large", []byte(text(6000, 5))), SetInt(ns, "port", uint16(8883))); err != nil {
		t.Fatal(err)
	}
	return m, contentOf(t, p)
}

// owner returns what an entry at a byte of the partition belongs to: a value's
// name as in content, and whether it is a page's header or table.
func owners(t testing.TB, m flash.Memory, keys *Keys) func(off int) (key string, shared bool) {
	p := openReader(t, bytes.Clone(m), keys)
	type span struct {
		from, to int64
		key      string
	}
	var spans []span
	for _, pg := range p.list {
		for i := range pg.items {
			it := &pg.items[i]
			e, err := p.entry(pg, it)
			if err != nil {
				t.Fatal(err)
			}
			name, _ := p.nsName(it.ns)
			key := name + "/" + e.name()
			if it.ns == 0 {
				key = e.name() + "/"
			}
			spans = append(spans, span{pg.entryOff(int(it.entry)), pg.entryOff(int(it.entry) + int(it.span)), key})
		}
	}
	return func(off int) (string, bool) {
		if off%sectorSize < entriesOff {
			return "", true
		}
		for _, s := range spans {
			if int64(off) >= s.from && int64(off) < s.to {
				return s.key, false
			}
		}
		return "", false
	}
}

var typeNamed = map[string]Type{"u32": U32, "u16": U16, "string": String, "blob": Blob}

// TestBitFlips flips bits all over a partition. What the bit does not belong
// to must read as before; what it belongs to reads as before, or is an error
// that names page and entry, and is never a wrong value.
func TestBitFlips(t *testing.T) {
	plain, _ := sample(t, nil)
	keys, err := ParseKeys(readFile(t, testdata(t), "nvs_keys.bin"))
	if err != nil {
		t.Fatal(err)
	}
	encrypted, want := sample(t, keys)
	for name, c := range map[string]struct {
		m    flash.Memory
		keys *Keys
	}{"plain": {plain, nil}, "xts": {encrypted, keys}} {
		t.Run(name, func(t *testing.T) {
			owner := owners(t, c.m, c.keys)
			step := 7 // bits, coprime to all there is
			if RaceEnabled {
				step = 211
			}
			flips, noticed := 0, 0
			for bit := 0; bit < len(c.m)*8; bit += step {
				m := bytes.Clone(c.m)
				m[bit/8] ^= 1 << (bit % 8)
				flips++
				noticed += flip(t, bit, m, c.keys, want, owner)
			}
			t.Logf("%d flips, %d of them lost or changed something and were reported", flips, noticed)
		})
	}
}

func flip(t *testing.T, bit int, m flash.Memory, keys *Keys, want content, owner func(int) (string, bool)) (noticed int) {
	key, shared := owner(bit / 8)
	inState := shared && bit/8%sectorSize >= tableOff
	p, err := OpenReader(m, m.Size(), Options{Keys: keys})
	if err != nil {
		// Only a version can refuse the partition as a whole; one bit does
		// not pass the header's checksum.
		t.Fatalf("bit %d: %v", bit, err)
	}
	bad, err := p.Check()
	if err != nil {
		t.Fatalf("bit %d: %v", bit, err)
	}
	for _, d := range bad {
		if d.Page < 0 || d.Page > 3 || d.Entry > 125 || d.Reason == "" {
			t.Fatalf("bit %d: %+v", bit, d)
		}
		if !shared && d.Page != bit/8/sectorSize && d.Entries > 0 && !strings.Contains(d.Reason, "namespace") {
			t.Fatalf("bit %d in page %d: damage in page %d", bit, bit/8/sectorSize, d.Page)
		}
	}
	left := maps.Clone(want)
	for k, v := range want {
		name, typ, _ := strings.Cut(k, " ")
		space, short, _ := strings.Cut(name, "/")
		ns, _ := p.Namespace(space)
		got, err := ns.Raw(short, typeNamed[typ])
		switch {
		case err == nil && string(got) == v:
		case err == nil:
			t.Fatalf("bit %d: %s reads as something else", bit, k)
		case shared && !inState:
			t.Fatalf("bit %d, of a header: %s: %v", bit, name, err)
		case !shared && key != name && key != space+"/":
			t.Fatalf("bit %d of %s: %s is lost with it: %v", bit, key, name, err)
		case errors.Is(err, ErrDamaged):
			var d *Damage
			if !errors.As(err, &d) || !strings.Contains(err.Error(), "page ") {
				t.Fatalf("bit %d: the error names no page: %v", bit, err)
			}
			noticed++
			delete(left, k)
		case inState && errors.Is(err, fs.ErrNotExist):
			// Written to erased is what erasing is: nothing tells them apart.
			delete(left, k)
		default:
			t.Fatalf("bit %d: %s: %v", bit, name, err)
		}
	}
	if bit%5 > 0 {
		return min(noticed, 1)
	}
	// Opening for writing, and writing, lose no more.
	p = openImage(t, m, Options{Keys: keys})
	ns, _ := p.Namespace("device")
	if err := SetInt(ns, "int", uint32(bit)); err != nil && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNoSpace) {
		t.Fatalf("bit %d: %v", bit, err)
	}
	delete(left, "device/int u32")
	for k, v := range left {
		name, typ, _ := strings.Cut(k, " ")
		space, short, _ := strings.Cut(name, "/")
		ns, _ := p.Namespace(space)
		if got, err := ns.Raw(short, typeNamed[typ]); err != nil || string(got) != v {
			t.Fatalf("bit %d, opened for writing: %s: %v", bit, k, err)
		}
	}
	return min(noticed, 1)
}

// TestDamageIsKept: nothing is created as long as it may be there unreadable,
// damage survives the collection of its page, and goes when it is discarded.
func TestDamageIsKept(t *testing.T) {
	ctx := context.Background()
	for name, spoil := range map[string]func(flash.Memory){
		"entry":  func(m flash.Memory) { m[bytes.Index(m, []byte("key-esk\x00"))] ^= 1 },
		"header": func(m flash.Memory) { m[5] ^= 3 }, // one bit would be corrected
		"namespace": func(m flash.Memory) {
			m[bytes.Index(m, []byte("ql\x00"))] ^= 1
		},
		"state": func(m flash.Memory) { // of the first entry, from written to empty
			m[tableOff] |= 1
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := flash.NewMemory(4 * sectorSize)
			p := openImage(t, m, Options{})
			ns, _ := p.Namespace("ql")
			other, _ := p.Namespace("other")
			if err := errors.Join(ns.Put(ctx, "key-esk", []byte("secret")), SetInt(other, "n", uint32(0)), leave(p, 0)); err != nil {
				t.Fatal(err)
			}
			if err := SetInt(other, "n", uint32(0xFFFFFFFF)); err != nil { // a second page
				t.Fatal(err)
			}
			spoil(m)
			p = openImage(t, m, Options{})
			ns, _ = p.Namespace("ql")
			other, _ = p.Namespace("other")
			fails := func(when string) {
				t.Helper()
				if bad, err := p.Check(); err != nil || len(bad) == 0 {
					t.Fatalf("%s: Check: %v, %v", when, bad, err)
				}
				if _, err := ns.Get(ctx, "key-esk"); !errors.Is(err, ErrDamaged) || errors.Is(err, fs.ErrNotExist) {
					t.Fatalf("%s: Get: %v", when, err)
				}
				if err := ns.Create(ctx, "key-esk", []byte("other")); !errors.Is(err, ErrDamaged) {
					t.Fatalf("%s: Create: %v", when, err)
				}
			}
			fails("opened")
			if name != "header" { // the names of the namespaces went with the page
				for i := range uint32(1000) {
					if err := SetInt(other, "n", i); err != nil {
						t.Fatal(err)
					}
				}
				fails("collected")
				p = openImage(t, m, Options{})
				ns, _ = p.Namespace("ql")
				other, _ = p.Namespace("other")
				fails("collected and opened")
				if n, err := GetInt[uint32](other, "n"); err != nil || n != 999 {
					t.Fatal(n, err)
				}
			}
			if err := p.DiscardDamage(); err != nil {
				t.Fatal(err)
			}
			if bad, err := p.Check(); err != nil || bad != nil {
				t.Fatalf("discarded: %v, %v", bad, err)
			}
			if _, err := ns.Get(ctx, "key-esk"); !errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("discarded: %v", err)
			}
			if err := ns.Create(ctx, "key-esk", []byte("other")); err != nil {
				t.Fatal(err)
			}
			p = openImage(t, m, Options{})
			if c := contentOf(t, p); c["ql/key-esk blob"] != "other" {
				t.Fatalf("%q", c)
			}
		})
	}
}

// TestHalfErased: the page that ESP-IDF was erasing when the power went keeps
// its header here and loses the rest; all its items were copied.
func TestHalfErased(t *testing.T) {
	var m flash.Memory
	p := openImage(t, flash.NewMemory(3*sectorSize), Options{})
	if err := gc(0)(p); err != nil {
		t.Fatal(err)
	}
	j := flashtest.New(p.flash.(flash.Memory))
	j.Record()
	p, err := Open(j, Options{})
	if err != nil {
		t.Fatal(err)
	}
	before := contentOf(t, p)
	start := flashtest.New(j.Content())
	ns, _ := p.Namespace("device")
	if err := SetInt(ns, "int", uint32(2)); err != nil {
		t.Fatal(err)
	}
	ops := j.Journal()
	for i, op := range ops {
		if i+1 < len(ops) && ops[i+1].Data == nil { // op clears the header, which ESP-IDF does not
			m = start.Content()
			for _, kind := range []int{1, flashtest.Tears - 1} {
				half := bytes.Clone(m)
				ops[i+1].Tear(half, kind, 1)
				copy(half[op.Off:], m[op.Off:op.Off+headerSize])
				// The checksum does not cover the state: some of its bits may be set again.
				for _, state := range []uint32{uint32(stateFreeing), 0xFFFFFFF9, 0xFFFFFFFA, uint32(stateBlank)} {
					half := bytes.Clone(half)
					binary.LittleEndian.PutUint32(half[op.Off:], state)
					for _, open := range []func() *Partition{
						func() *Partition { return openReader(t, half, nil) },
						func() *Partition { return openImage(t, half, Options{}) },
					} {
						c, err := readAll(open())
						if err != nil {
							t.Fatalf("state %#x: %v", state, err)
						}
						c.diff(t, before)
					}
				}
			}
		}
		if err := op.Do(start); err != nil {
			t.Fatal(err)
		}
	}
	if m == nil {
		t.Fatal("nothing was erased")
	}
}

// TestRefused: partitions that are not opened, and are not touched.
func TestRefused(t *testing.T) {
	keys, err := ParseKeys(readFile(t, testdata(t), "nvs_keys.bin"))
	if err != nil {
		t.Fatal(err)
	}
	other, err := KeysFromHMAC(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	plain, _ := sample(t, nil)
	encrypted, _ := sample(t, keys)
	newer := bytes.Clone(plain)
	newer[sectorSize+versionOff] = version2 - 1
	binary.LittleEndian.PutUint32(newer[sectorSize+headerCRC:], crc(newer[sectorSize+seqOff:][:headerCRC-seqOff]))
	foreign := make(flash.Memory, 3*sectorSize)
	copy(foreign, text(len(foreign), 1))
	last := bytes.Clone(plain)
	binary.LittleEndian.PutUint32(last[seqOff:], 0xFFFFFFFF)
	binary.LittleEndian.PutUint32(last[headerCRC:], crc(last[seqOff:headerCRC]))
	for name, c := range map[string]struct {
		m    flash.Memory
		keys *Keys
		want error
		says string
	}{
		"one sector":          {flash.NewMemory(sectorSize), nil, ErrSize, "4096 bytes"},
		"no sector":           {nil, nil, ErrSize, "0 bytes"},
		"half a sector":       {flash.NewMemory(2*sectorSize + 1), nil, ErrSize, "8193 bytes"},
		"newer version":       {newer, nil, ErrNewerVersion, "page 1: version 3"},
		"wrong keys":          {encrypted, other, ErrKeys, "page 0: none of"},
		"no keys":             {encrypted, nil, ErrKeys, "is the partition encrypted"},
		"keys where none are": {plain, keys, ErrKeys, "page 0: none of"},
		"something else":      {foreign, nil, ErrNotNVS, ""},
		"last sequence":       {last, nil, ErrDamaged, "page 0: impossible sequence number"},
	} {
		t.Run(name, func(t *testing.T) {
			before := bytes.Clone(c.m)
			_, err := Open(c.m, Options{Keys: c.keys})
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("Open: %v", err)
			}
			if !bytes.Equal(before, c.m) {
				t.Error("written to")
			}
			if name == "one sector" {
				return // may be read
			}
			if _, err := OpenReader(c.m, c.m.Size(), Options{Keys: c.keys}); !errors.Is(err, c.want) {
				t.Errorf("OpenReader: %v", err)
			}
		})
	}
}
