package nvs

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/quarklink-go/quarklink/esp/flash"
	"github.com/quarklink-go/quarklink/esp/flash/flashtest"
)

// readAll is contentOf, with an error.
func readAll(p *Partition) (content, error) {
	list, err := p.Entries()
	if err != nil {
		return nil, err
	}
	c := content{}
	for _, e := range list {
		ns, _ := p.Namespace(e.Namespace)
		b, err := ns.Raw(e.Key, e.Type)
		if err != nil {
			return nil, err
		}
		c[e.Namespace+"/"+e.Key+" "+e.Type.String()] = string(b)
	}
	if bad, err := p.Check(); err != nil || bad != nil {
		return nil, fmt.Errorf("Check: %v %w", bad, err)
	}
	return c, nil
}

type scenario struct {
	name  string
	pages int
	setup func(*Partition) error
	do    func(*Partition) error
	// single values may be old or new each for itself (EraseAll)
	piecewise bool
}

func (s *scenario) allowed(c, before, after content) bool {
	if !s.piecewise {
		return maps.Equal(c, before) || maps.Equal(c, after)
	}
	for k := range c {
		if c[k] != before[k] {
			return false
		}
	}
	for k := range after {
		if c[k] != after[k] {
			return false
		}
	}
	return true
}

func text(n int, seed uint64) string {
	r := rand.New(rand.NewPCG(seed, 1))
	var b strings.Builder
	for b.Len() < n {
		b.WriteByte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdef"[r.IntN(32)])
	}
	return b.String()
}

// leave sets a counter until n entries are left in the current page.
func leave(p *Partition, n int) error {
	ns, _ := p.Namespace("device")
	for i := uint32(0); p.current().room() != n; i++ {
		if err := SetInt(ns, "filler", i); err != nil {
			return err
		}
	}
	return nil
}

// base makes a partition with a value of each kind and n entries of room left.
func base(n int) func(*Partition) error {
	return func(p *Partition) error {
		ns, _ := p.Namespace("device")
		other, _ := p.Namespace("other")
		return errors.Join(
			SetInt(ns, "int", uint32(1)),
			ns.SetString("string", text(40, 1)),
			ns.SetBlob("blob", []byte(text(100, 2))),
			ns.SetBlob("empty", nil),
			other.SetString("string", text(20, 3)),
			other.SetBlob("blob", []byte(text(50, 4))),
			leave(p, n),
		)
	}
}

// gc is base with all but the last page full of erased entries.
func gc(n int) func(*Partition) error {
	return func(p *Partition) error {
		if err := base(60)(p); err != nil {
			return err
		}
		ns, _ := p.Namespace("device")
		for i := uint32(0); len(p.free) > 1; i++ {
			if err := SetInt(ns, "filler", ^i); err != nil {
				return err
			}
		}
		return leave(p, n)
	}
}

func device(f func(*Namespace) error) func(*Partition) error {
	return func(p *Partition) error {
		ns, _ := p.Namespace("device")
		return f(ns)
	}
}

var scenarios = []scenario{
	{name: "first value", pages: 2, setup: func(*Partition) error { return nil },
		do: device(func(n *Namespace) error { return n.SetString("string", text(70, 9)) })},
	{name: "overwrite integer", pages: 2, setup: base(50),
		do: device(func(n *Namespace) error { return SetInt(n, "int", uint32(2)) })},
	{name: "overwrite string", pages: 2, setup: base(50),
		do: device(func(n *Namespace) error { return n.SetString("string", text(300, 9)) })},
	{name: "overwrite blob", pages: 2, setup: base(50),
		do: device(func(n *Namespace) error { return n.SetBlob("blob", []byte(text(700, 9))) })},
	{name: "overwrite empty blob", pages: 2, setup: base(50),
		do: device(func(n *Namespace) error { return n.SetBlob("empty", []byte{1}) })},
	{name: "overwrite blob across pages", pages: 4, setup: base(20),
		do: device(func(n *Namespace) error { return n.SetBlob("blob", []byte(text(2100, 9))) })},
	{name: "overwrite blob that is across pages", pages: 4,
		setup: func(p *Partition) error {
			return errors.Join(base(20)(p), device(func(n *Namespace) error { return n.SetBlob("blob", []byte(text(2100, 9))) })(p))
		},
		do: device(func(n *Namespace) error { return n.SetBlob("blob", []byte(text(1000, 10))) })},
	{name: "blob to the end of the page", pages: 4, setup: base(20),
		do: device(func(n *Namespace) error { return n.SetBlob("blob", []byte(text(19*32, 9))) })},
	{name: "integer to string", pages: 2, setup: base(50),
		do: device(func(n *Namespace) error { return n.SetString("int", text(40, 9)) })},
	{name: "string to blob", pages: 2, setup: base(50),
		do: device(func(n *Namespace) error { return n.SetBlob("string", []byte(text(40, 9))) })},
	{name: "blob to integer", pages: 2, setup: base(50),
		do: device(func(n *Namespace) error { return SetInt(n, "blob", int8(-1)) })},
	{name: "string to blob on another page", pages: 4, setup: base(0),
		do: device(func(n *Namespace) error { return n.SetBlob("string", []byte(text(40, 9))) })},
	{name: "blob to string on another page", pages: 4, setup: base(0),
		do: device(func(n *Namespace) error { return n.SetString("blob", text(40, 9)) })},
	{name: "erase integer", pages: 2, setup: base(50),
		do: device(func(n *Namespace) error { return n.Erase("int") })},
	{name: "erase string", pages: 2, setup: base(50),
		do: device(func(n *Namespace) error { return n.Erase("string") })},
	{name: "erase blob", pages: 2, setup: base(50),
		do: device(func(n *Namespace) error { return n.Erase("blob") })},
	{name: "erase blob across pages", pages: 4,
		setup: func(p *Partition) error {
			return errors.Join(base(20)(p), device(func(n *Namespace) error { return n.SetBlob("blob", []byte(text(1300, 9))) })(p))
		},
		do: device(func(n *Namespace) error { return n.Erase("blob") })},
	{name: "erase namespace", pages: 2, setup: base(50), piecewise: true,
		do: device(func(n *Namespace) error { return n.EraseAll() })},
	{name: "collect for integer", pages: 3, setup: gc(0),
		do: device(func(n *Namespace) error { return SetInt(n, "int", uint32(2)) })},
	{name: "collect for string", pages: 3, setup: gc(2),
		do: device(func(n *Namespace) error { return n.SetString("string", text(200, 9)) })},
	{name: "collect for blob", pages: 3, setup: gc(6),
		do: device(func(n *Namespace) error { return n.SetBlob("blob", []byte(text(900, 9))) })},
	{name: "collect twice for blob", pages: 3, setup: gc(20),
		do: device(func(n *Namespace) error { return n.SetBlob("blob", []byte(text(3900, 9))) })},
	{name: "collect with two pages", pages: 2, setup: func(p *Partition) error { return errors.Join(base(60)(p), leave(p, 0)) },
		do: device(func(n *Namespace) error { return n.SetString("string", text(200, 9)) })},
	{name: "collect a page without values", pages: 2,
		setup: func(p *Partition) error {
			// The namespaces live in a page: there is none without items, but
			// for one that never had a name.
			p.set(7, "x", U8, []byte{1})
			for i := 0; p.current().room() > 0; i++ {
				p.set(7, "x", U8, []byte{byte(i)})
			}
			return p.eraseKey(7, "x", ref{})
		},
		do: device(func(n *Namespace) error { return SetInt(n, "int", uint32(2)) })},
}

// TestEveryCut cuts our own writer at and within every flash operation, and
// again at and within every operation of the recovery, and a third time at
// random. The partition must read as before or as after, and take the
// operation again.
func TestEveryCut(t *testing.T) {
	keys, err := ParseKeys(readFile(t, testdata(t), "nvs_keys.bin"))
	if err != nil {
		t.Fatal(err)
	}
	modes := []struct {
		name string
		opt  Options
	}{{"plain", Options{}}, {"xts", Options{Keys: keys}}, {"plain, not wiped", Options{LeaveErased: true}}}
	if RaceEnabled {
		modes = modes[:2]
	}
	for _, mode := range modes {
		t.Run(mode.name, func(t *testing.T) {
			t.Parallel()
			total := 0
			for i, s := range scenarios {
				if RaceEnabled && mode.opt.Keys != nil && i%4 > 0 {
					continue // AES is slow then
				}
				t.Run(s.name, func(t *testing.T) { total += cutScenario(t, &s, mode.opt) })
			}
			t.Logf("%d cuts", total)
		})
	}
}

func cutScenario(t *testing.T, s *scenario, opt Options) int {
	start := flash.NewMemory(s.pages * sectorSize)
	p := openImage(t, start, opt)
	if err := s.setup(p); err != nil {
		t.Fatal(err)
	}
	start = flash.Memory(bytes.Clone(start)) // p goes on with the other
	before := contentOf(t, openReader(t, start, opt.Keys))

	j := flashtest.New(start)
	j.Record()
	p, err := Open(j, opt)
	if err != nil {
		t.Fatal(err)
	}
	if j.Operations() > 0 {
		t.Fatalf("opening a whole partition does %d flash operations", j.Operations())
	}
	if err := s.do(p); err != nil {
		t.Fatal(err)
	}
	after := contentOf(t, p)
	if maps.Equal(before, after) {
		t.Fatal("the scenario does nothing")
	}

	r := newRand()
	seen := map[string]bool{}
	budget := 300 // checks after which fewer of the recoveries are cut
	if RaceEnabled {
		budget = 20
	}
	// check reads an image, for reading and after recovery, and returns what
	// the recovery did.
	checks := 0
	check := func(name string, m flash.Memory) []flashtest.Op {
		checks++
		ro, err := OpenReader(m, m.Size(), Options{Keys: opt.Keys})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		c, err := readAll(ro)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !s.allowed(c, before, after) {
			t.Errorf("%s: neither old nor new:", name)
			c.diff(t, before)
			t.FailNow()
		}
		rec := flashtest.New(m)
		rec.Record()
		p, err := Open(rec, opt)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		c2, err := readAll(p)
		if err != nil {
			t.Fatalf("%s: recovered: %v", name, err)
		}
		if !maps.Equal(c, c2) {
			t.Errorf("%s: reads otherwise after recovery", name)
			c2.diff(t, c)
			t.FailNow()
		}
		ops := rec.Journal()
		if err := s.do(p); err != nil && !strings.HasPrefix(s.name, "erase") {
			t.Fatalf("%s: again: %v", name, err)
		}
		if c, err := readAll(p); err != nil || !maps.Equal(c, after) {
			t.Fatalf("%s: again: %v, wrong content", name, err)
		}
		return ops
	}
	cuts := flashtest.EachCut(start, j.Journal(), 1, func(name string, m flash.Memory) {
		ops := check(name, m)
		sum := fmt.Sprint(len(ops), name[len(name)-5:]) // recoveries of one kind and length
		again := seen[sum] || checks > budget
		if again && r.IntN(10) > 0 || checks > 10*budget {
			return
		}
		seen[sum] = true
		flashtest.EachCut(m, ops, r.Uint64(), func(second string, m2 flash.Memory) {
			third := check(name+", then in recovery "+second, m2)
			if r.IntN(50) == 0 {
				flashtest.EachCut(m2, third, r.Uint64(), func(thirdName string, m3 flash.Memory) {
					check(name+", then "+second+", then "+thirdName, m3)
				})
			}
		})
	})
	t.Logf("%d operations, %d cuts, with those in recovery %d", j.Operations(), cuts, checks)
	return checks
}

func newRand() *rand.Rand { return rand.New(rand.NewPCG(1, 2)) }
