package nvs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/quarklink-go/quarklink/esp/flash"
	"github.com/quarklink-go/quarklink/esp/flash/flashtest"
)

// wear returns how often each sector of the flash was erased.
func wear(f *flashtest.Flash) (erases []int) {
	for off := int64(0); off < f.Size(); off += sectorSize {
		erases = append(erases, f.Wear(off))
	}
	return erases
}

func spread(erases []int) (least, most, total int) {
	for _, n := range erases {
		total += n
	}
	return slices.Min(erases), slices.Max(erases), total
}

// TestRandom compares 100,000 random operations with a map, and the partition
// with the map when it is opened anew in between.
func TestRandom(t *testing.T) {
	keys, err := KeysFromHMAC(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		ops  int
		opt  Options
	}{
		{"plain", 60_000, Options{}},
		{"xts", 30_000, Options{Keys: keys}},
		{"not wiped", 10_000, Options{LeaveErased: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			randomOps(t, c.ops, c.opt)
		})
	}
}

func randomOps(t *testing.T, ops int, opt Options) {
	r := rand.New(rand.NewPCG(7, uint64(ops)))
	w := flashtest.New(flash.NewMemory(6 * sectorSize))
	p, err := Open(w, opt)
	if err != nil {
		t.Fatal(err)
	}
	type value struct {
		typ Type
		raw string
	}
	oracle := map[string]value{}
	full, opened := 0, 0
	check := func(i int, ns *Namespace, key string) {
		t.Helper()
		want, ok := oracle[ns.Name()+"/"+key]
		got, err := ns.Raw(key, want.typ)
		if ok && (err != nil || string(got) != want.raw) || !ok && err == nil {
			t.Fatalf("operation %d: %s/%s: %v, %.20q, want %.20q", i, ns.Name(), key, err, got, want.raw)
		}
	}
	for i := range ops {
		ns, err := p.Namespace(fmt.Sprintf("space%d", r.IntN(3)))
		if err != nil {
			t.Fatal(err)
		}
		key := fmt.Sprintf("key%d", r.IntN(10))
		name := ns.Name() + "/" + key
		switch n := r.IntN(1000); {
		case n < 500:
			err = SetInt(ns, key, int32(i))
			oracle, err = after(oracle, name, value{I32, string([]byte{byte(i), byte(i >> 8), byte(i >> 16), byte(i >> 24)})}, err, &full)
		case n < 750:
			s := text(r.IntN(300), uint64(i))
			oracle, err = after(oracle, name, value{String, s}, ns.SetString(key, s), &full)
		case n < 800:
			s := text(r.IntN(1500), uint64(i))
			oracle, err = after(oracle, name, value{Blob, s}, ns.SetBlob(key, []byte(s)), &full)
		case n < 805: // one that can hardly fit
			s := text(4000+r.IntN(12000), uint64(i))
			oracle, err = after(oracle, name, value{Blob, s}, ns.SetBlob(key, []byte(s)), &full)
		case n < 990:
			err = ns.Erase(key)
			if _, ok := oracle[name]; !ok {
				err = nil
			}
			delete(oracle, name)
		case n < 992:
			err = ns.EraseAll()
			maps.DeleteFunc(oracle, func(k string, _ value) bool { return k[:6] == ns.Name() })
		default:
			opened++
			if p, err = Open(w, opt); err == nil {
				c := contentOf(t, p)
				for k, v := range oracle {
					if c[k+" "+v.typ.String()] != v.raw {
						t.Fatalf("operation %d: opened: %s differs", i, k)
					}
				}
				if len(c) != len(oracle) {
					t.Fatalf("operation %d: opened: %d values, want %d", i, len(c), len(oracle))
				}
			}
			ns, _ = p.Namespace(ns.Name())
		}
		if err != nil {
			t.Fatalf("operation %d: %v", i, err)
		}
		check(i, ns, key)
	}
	if bad, err := p.Check(); err != nil || bad != nil {
		t.Error(bad, err)
	}
	least, most, total := spread(wear(w))
	t.Logf("%d operations, %d without space, opened %d times; %d erases, per page %v", ops, full, opened, total, wear(w))
	if most > 2*least {
		t.Errorf("wear is uneven: %v", wear(w))
	}
	if full == 0 {
		t.Error("the partition was never full")
	}
}

// after returns the oracle after a set: as it was if there was no space.
func after[V any](oracle map[string]V, name string, v V, err error, full *int) (map[string]V, error) {
	if errors.Is(err, ErrNoSpace) {
		*full++
		return oracle, nil
	}
	if err == nil {
		oracle[name] = v
	}
	return oracle, err
}

// TestWear: a counter beside values that never change. What is full of such
// values is never collected, as in ESP-IDF; the other pages share the work.
func TestWear(t *testing.T) {
	w := flashtest.New(flash.NewMemory(8 * sectorSize))
	p, err := Open(w, Options{})
	if err != nil {
		t.Fatal(err)
	}
	ns, _ := p.Namespace("device")
	if err := ns.SetBlob("fixed", []byte(text(2000, 1))); err != nil {
		t.Fatal(err)
	}
	const n = 20_000
	for i := range uint32(n) {
		if err := SetInt(ns, "counter", i); err != nil {
			t.Fatal(err)
		}
	}
	_, most, total := spread(wear(w))
	t.Logf("%d values of a counter: %d erases, per page %v: an erase for %d values", n, total, wear(w), n/total)
	idle := 0
	for _, e := range wear(w) {
		if e == 0 {
			idle++
		} else if e < most-1 {
			t.Errorf("wear is uneven: %v", wear(w))
		}
	}
	if idle > 1 {
		t.Errorf("%d pages are never erased: %v", idle, wear(w))
	}
}

// TestWiped: what was overwritten or erased is nowhere in the flash any more,
// after Open not even what ESP-IDF left.
func TestWiped(t *testing.T) {
	ctx := context.Background()
	for _, leave := range []bool{false, true} {
		m := flash.NewMemory(3 * sectorSize)
		p := openImage(t, m, Options{LeaveErased: leave})
		ns, _ := p.Namespace("secrets")
		err := errors.Join(
			ns.Put(ctx, "key", []byte("first secret of more than one entry")),
			ns.Put(ctx, "key", []byte("second secret of more than one entry")),
			ns.SetString("gone", "third secret"), ns.Erase("gone"),
			ns.Put(ctx, "deleted", []byte("fourth secret")), ns.Delete(ctx, "deleted"),
		)
		if err != nil {
			t.Fatal(err)
		}
		found := func() (n int) {
			for _, s := range []string{"first secret", "third secret", "fourth secret"} {
				if containsBytes(m, s) {
					n++
				}
			}
			return n
		}
		if n := found(); leave && n != 3 || !leave && n != 0 {
			t.Errorf("LeaveErased %t: %d of 3 secrets are in the flash", leave, n)
		}
		p = openImage(t, m, Options{})
		if n := found(); n != 0 {
			t.Errorf("opened: %d of 3 secrets are in the flash", n)
		}
		if !containsBytes(m, "second secret") || len(contentOf(t, p)) != 1 {
			t.Error("what was not erased is gone")
		}
	}
}

func containsBytes(m flash.Memory, s string) bool { return bytes.Contains(m, []byte(s)) }
