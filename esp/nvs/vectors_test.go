package nvs

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/quarklink-go/quarklink/esp/flash"
)

// Test data made with ESP-IDF 5.3.1's own library and generator.

// eachSource runs f with the data kept here and, if QUARKLINK_VECTORS says
// where there is more of the same kind, with that too.
func eachSource(t *testing.T, f func(t *testing.T, dir fs.FS)) {
	t.Run("testdata", func(t *testing.T) { f(t, testdata(t)) })
	if dir := os.Getenv("QUARKLINK_VECTORS"); dir != "" {
		t.Run("vectors", func(t *testing.T) { f(t, os.DirFS(path.Join(dir, "nvs"))) })
	}
}

func testdata(t testing.TB) fs.FS {
	z, err := zip.OpenReader("testdata/esp-idf-5.3.1.zip")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { z.Close() })
	return z
}

func readFile(t testing.TB, dir fs.FS, name string) []byte {
	t.Helper()
	b, err := fs.ReadFile(dir, name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func readJSON[T any](t testing.TB, dir fs.FS, name string) (v T) {
	t.Helper()
	if err := json.Unmarshal(readFile(t, dir, name), &v); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return v
}

func glob(t testing.TB, dir fs.FS, pattern string) []string {
	t.Helper()
	names, err := fs.Glob(dir, pattern)
	if err != nil {
		t.Fatal(err)
	}
	if len(names) == 0 {
		t.Fatalf("no %s", pattern)
	}
	return names
}

// recorded is a call of the library, or a value that it read.
type recorded struct {
	Op, NS, Key, Type, Value string
	Err                      int
}

// raw returns the value in its bytes, a string without NUL.
func (r *recorded) raw(t testing.TB) []byte {
	t.Helper()
	switch r.Type {
	case "str", "blob":
		b, err := hex.DecodeString(r.Value)
		if err != nil {
			t.Fatal(err)
		}
		if r.Type == "str" {
			b = bytes.TrimSuffix(b, []byte{0})
		}
		return b
	}
	typ := r.typ(t)
	v, err := strconv.ParseInt(r.Value, 10, 64)
	if typ == U64 {
		var u uint64
		u, err = strconv.ParseUint(r.Value, 10, 64)
		v = int64(u)
	}
	if err != nil {
		t.Fatal(err)
	}
	return binary.LittleEndian.AppendUint64(nil, uint64(v))[:typ.size()]
}

func (r *recorded) typ(t testing.TB) Type {
	t.Helper()
	typ, ok := map[string]Type{"u8": U8, "i8": I8, "u16": U16, "i16": I16, "u32": U32, "i32": I32, "u64": U64, "i64": I64, "str": String, "blob": Blob}[r.Type]
	if !ok {
		t.Fatalf("type %q", r.Type)
	}
	return typ
}

// do calls what was recorded.
func (r *recorded) do(t testing.TB, p *Partition) error {
	t.Helper()
	ns, err := p.Namespace(r.NS)
	if err != nil {
		t.Fatal(err)
	}
	switch r.Op {
	case "set":
		return setRaw(ns, r.Key, r.typ(t), r.raw(t))
	case "erase":
		return ns.Erase(r.Key)
	case "erase_all":
		return ns.EraseAll()
	}
	t.Fatalf("operation %q", r.Op)
	return nil
}

func setRaw(ns *Namespace, key string, typ Type, raw []byte) error {
	switch typ {
	case String:
		return ns.SetString(key, string(raw))
	case Blob:
		return ns.SetBlob(key, raw)
	}
	return ns.set(key, typ, raw)
}

// content is all values of a partition: "namespace/key type" and bytes.
type content map[string]string

func contentOf(t testing.TB, p *Partition) content {
	t.Helper()
	list, err := p.Entries()
	if err != nil {
		t.Fatal(err)
	}
	c := content{}
	for _, e := range list {
		ns, err := p.Namespace(e.Namespace)
		if err != nil {
			t.Fatal(err)
		}
		b, err := ns.Raw(e.Key, e.Type)
		if err != nil {
			t.Fatalf("listed, but: %v", err)
		}
		if len(b) != e.Size {
			t.Errorf("%s/%s: %d bytes, listed as %d", e.Namespace, e.Key, len(b), e.Size)
		}
		name := e.Namespace + "/" + e.Key + " " + e.Type.String()
		if _, ok := c[name]; ok {
			t.Errorf("%s listed twice", name)
		}
		c[name] = string(b)
	}
	return c
}

func contentOfRecord(t testing.TB, list []recorded) content {
	c := content{}
	for _, r := range list {
		if r.Err == 0 {
			c[r.NS+"/"+r.Key+" "+r.typ(t).String()] = string(r.raw(t))
		}
	}
	return c
}

func (c content) diff(t testing.TB, want content) {
	t.Helper()
	for _, k := range slices.Sorted(maps.Keys(want)) {
		if got, ok := c[k]; !ok {
			t.Errorf("%s is missing", k)
		} else if got != want[k] {
			t.Errorf("%s = %.40q, want %.40q", k, got, want[k])
		}
	}
	for k := range c {
		if _, ok := want[k]; !ok {
			t.Errorf("%s should not be there", k)
		}
	}
}

func keysOf(t testing.TB, dir fs.FS, name string) *Keys {
	t.Helper()
	switch {
	case strings.Contains(name, "hmac"):
		b, err := hex.DecodeString(strings.TrimSpace(string(readFile(t, dir, "hmac_key.hex"))))
		if err != nil {
			t.Fatal(err)
		}
		k, err := KeysFromHMAC(b)
		if err != nil {
			t.Fatal(err)
		}
		return k
	case strings.Contains(name, "xts") && !strings.Contains(name, "_dec"):
		k, err := ParseKeys(readFile(t, dir, "nvs_keys.bin"))
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	return nil
}

func openImage(t testing.TB, m flash.Memory, opt Options) *Partition {
	t.Helper()
	p, err := Open(m, opt)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func openReader(t testing.TB, m []byte, keys *Keys) *Partition {
	t.Helper()
	p, err := OpenReader(flash.Memory(m), int64(len(m)), Options{Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestImages: every image reads as the real library reads it, whether opened
// for reading or for writing.
func TestImages(t *testing.T) {
	eachSource(t, func(t *testing.T, dir fs.FS) {
		for _, name := range append(glob(t, dir, "*_*.bin"), glob(t, dir, "life/[0-9]*.bin")...) {
			if name == "nvs_keys.bin" {
				continue
			}
			t.Run(name, func(t *testing.T) {
				image := readFile(t, dir, name)
				base := strings.TrimSuffix(name, ".bin")
				base = strings.NewReplacer("_xts_hmac", "_plain", "_xts_dec", "_plain", "_xts", "_plain").Replace(base)
				var entries []recorded
				var stats struct{ Used, Free, Total, NS int }
				if strings.HasPrefix(name, "life/") {
					rec := readJSON[struct {
						Entries []recorded
						Stats   *struct{ Used, Free, Total, NS int }
					}](t, dir, base+".json")
					entries, stats = rec.Entries, *rec.Stats
				} else {
					entries = readJSON[[]recorded](t, dir, base+".realnvs.json")
				}
				want := contentOfRecord(t, entries)
				keys := keysOf(t, dir, name)
				for _, p := range []*Partition{
					openReader(t, image, keys),
					openImage(t, flash.Memory(bytes.Clone(image)), Options{Keys: keys}),
				} {
					contentOf(t, p).diff(t, want)
					if bad, err := p.Check(); err != nil || bad != nil {
						t.Errorf("Check: %v, %v", bad, err)
					}
					if s, err := p.Stats(); err != nil {
						t.Error(err)
					} else if stats.Total > 0 && (s.Used != stats.Used || s.Free != stats.Free || s.Total != stats.Total || s.Namespaces != stats.NS) {
						t.Errorf("Stats = %+v, want %+v", s, stats)
					}
				}
			})
		}
	})
}

// TestOperations: the recorded calls on a fresh partition make the recorded
// bytes; with wiping, what differs are erased entries alone, and they are zeros.
func TestOperations(t *testing.T) {
	eachSource(t, func(t *testing.T, dir fs.FS) {
		ops := readJSON[map[string][]recorded](t, dir, "life/ops.json")
		for _, name := range glob(t, dir, "life/[0-9]*.bin") {
			t.Run(name, func(t *testing.T) {
				base := strings.TrimSuffix(path.Base(name), ".bin")
				base = strings.TrimSuffix(strings.TrimSuffix(base, "_plain"), "_xts")
				calls, ok := ops[base]
				if !ok {
					t.Fatalf("no operations for %s", base)
				}
				want := readFile(t, dir, name)
				for _, leave := range []bool{true, false} {
					m := flash.NewMemory(len(want))
					p := openImage(t, m, Options{Keys: keysOf(t, dir, name), LeaveErased: leave})
					for _, r := range calls {
						if err := r.do(t, p); err != nil {
							t.Fatal(err)
						}
					}
					compareImages(t, m, want, !leave)
				}
			})
		}
	})
}

// compareImages compares byte by byte; wiped: but for the content of erased
// entries, which must be wiped.
func compareImages(t *testing.T, got flash.Memory, want []byte, wiped bool) {
	t.Helper()
	want = bytes.Clone(want)
	for no := 0; wiped && no < len(want)/sectorSize; no++ {
		pg := page{no: no}
		copy(pg.table[:], want[pg.off()+tableOff:])
		for i := range pageSlots {
			if e := want[pg.entryOff(i):][:entrySize]; pg.slot(i) == slotErased {
				fill(e, 0)
			}
		}
	}
	differ := 0
	for i := range want {
		if got[i] != want[i] {
			if differ++; differ <= 5 {
				t.Errorf("page %d byte %#x (entry %d): %02x, want %02x", i/sectorSize, i%sectorSize, (i%sectorSize-entriesOff)/entrySize, got[i], want[i])
			}
		}
	}
	if differ > 0 {
		t.Errorf("%d bytes differ", differ)
	}
}

type cutIndex struct {
	Start      string
	Operations []recorded
	Cuts       []struct {
		File      string
		Completed bool
		Reads     map[string]string
	}
}

// TestCuts: of what the real library left when its power was cut we read what
// it reads then; where it has lost the value, the old one.
func TestCuts(t *testing.T) {
	eachSource(t, func(t *testing.T, dir fs.FS) {
		for _, name := range glob(t, dir, "life/cut_*/index.json") {
			t.Run(path.Base(path.Dir(name)), func(t *testing.T) {
				x := readJSON[cutIndex](t, dir, name)
				keys := keysOf(t, dir, name)
				first := readFile(t, dir, "life/"+x.Cuts[0].File)
				start := contentOf(t, openReader(t, first, keys))
				missing := 0
				for _, cut := range x.Cuts {
					image := readFile(t, dir, "life/"+cut.File)
					for _, p := range []*Partition{
						openReader(t, image, keys),
						openImage(t, flash.Memory(bytes.Clone(image)), Options{Keys: keys}),
						openImage(t, flash.Memory(bytes.Clone(image)), Options{Keys: keys, LeaveErased: true}),
					} {
						missing += checkCut(t, dir, cut.File, x.Operations, cut.Reads, start, p)
					}
				}
				t.Logf("%d cuts; %d reads of a value that the real library has lost", len(x.Cuts), missing)
			})
		}
	})
}

// checkCut compares a partition with what the real library read.
func checkCut(t *testing.T, dir fs.FS, file string, ops []recorded, reads map[string]string, start content, p *Partition) (missing int) {
	t.Helper()
	if bad, err := p.Check(); err != nil || bad != nil {
		t.Errorf("%s: Check: %v, %v", file, bad, err)
	}
	got := contentOf(t, p)
	for key, verdict := range reads {
		have := ""
		for k, v := range got {
			if strings.HasPrefix(k, key+" ") {
				have = k + v
			}
		}
		var allowed []string
		if verdict == "new" {
			last := ""
			for _, r := range ops {
				if r.NS+"/"+r.Key == key {
					last = key + " " + r.typ(t).String() + string(r.raw(t))
					// Of several operations on one key "new" may be any.
					allowed = append(allowed, last)
				}
			}
		} else {
			if verdict == "missing" {
				missing++
			}
			for k, v := range start {
				if strings.HasPrefix(k, key+" ") {
					allowed = append(allowed, k+v)
				}
			}
			if verdict == "old" && len(ops) > 1 {
				for _, r := range ops[:len(ops)-1] {
					if r.NS+"/"+r.Key == key && r.Op == "set" {
						allowed = append(allowed, key+" "+r.typ(t).String()+string(r.raw(t)))
					}
				}
			}
		}
		if !slices.Contains(allowed, have) {
			t.Errorf("%s: %s = %.60q, want the %s value", file, key, have, verdict)
		}
	}
	touched := func(k string) bool {
		key, _, _ := strings.Cut(k, " ")
		_, ok := reads[key]
		return ok
	}
	rest, others := maps.Clone(got), maps.Clone(start)
	maps.DeleteFunc(rest, func(k, _ string) bool { return touched(k) })
	maps.DeleteFunc(others, func(k, _ string) bool { return touched(k) })
	rest.diff(t, others)
	return missing
}

// TestCompleted: the runs that were cut, uncut, end in the bytes in which the
// real library ended, and so does a counter's way through seven pages.
func TestCompleted(t *testing.T) {
	eachSource(t, func(t *testing.T, dir fs.FS) {
		for _, name := range glob(t, dir, "life/cut_*/index.json") {
			t.Run(path.Base(path.Dir(name)), func(t *testing.T) {
				x := readJSON[cutIndex](t, dir, name)
				last := x.Cuts[len(x.Cuts)-1]
				if !last.Completed {
					t.Fatal("the last run was cut too")
				}
				m := flash.Memory(readFile(t, dir, "life/"+x.Cuts[0].File))
				p := openImage(t, m, Options{Keys: keysOf(t, dir, name), LeaveErased: true})
				for _, r := range x.Operations {
					if err := r.do(t, p); err != nil {
						t.Fatal(err)
					}
				}
				compareImages(t, m, readFile(t, dir, "life/"+last.File), false)
			})
		}
		t.Run("1499 values of a counter", func(t *testing.T) {
			want := readFile(t, dir, "life/cut_counter_plain/cut_0000.bin")
			m := flash.NewMemory(len(want))
			p := openImage(t, m, Options{LeaveErased: true})
			for _, r := range readJSON[map[string][]recorded](t, dir, "life/ops.json")["01_fresh"] {
				if err := r.do(t, p); err != nil {
					t.Fatal(err)
				}
			}
			ns, _ := p.Namespace("quarklink")
			for i := range uint32(1499) {
				if err := SetInt(ns, "ctr", 1+i); err != nil {
					t.Fatal(err)
				}
			}
			compareImages(t, m, want, false)
		})
	})
}

func TestKeys(t *testing.T) {
	dir := testdata(t)
	good := readFile(t, dir, "nvs_keys.bin")
	k, err := ParseKeys(good)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(k.Partition(), good) {
		t.Error("Partition does not make what ParseKeys read")
	}
	made, err := GenerateKeys(bytes.NewReader(good))
	if err != nil || *made != *k {
		t.Errorf("GenerateKeys: %v", err)
	}
	if _, err := GenerateKeys(bytes.NewReader(good[:63])); err == nil {
		t.Error("keys from 63 bytes")
	}
	blank := bytes.Repeat([]byte{0xFF}, sectorSize)
	flipped := bytes.Clone(good)
	flipped[17] ^= 4
	for name, bad := range map[string][]byte{"nothing": nil, "short": good[:67], "blank": blank, "flipped bit": flipped} {
		if _, err := ParseKeys(bad); !errors.Is(err, ErrKeys) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := KeysFromHMAC(make([]byte, 31)); !errors.Is(err, ErrKeys) {
		t.Errorf("HMAC key of 31 bytes: %v", err)
	}
}
