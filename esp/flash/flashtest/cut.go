package flashtest

import (
	"bytes"
	"fmt"

	"github.com/quarklink-go/quarklink/esp/flash"
)

// tear is a way in which an operation is done in part: mask says which bits of the
// i-th of n bytes still are done.
type tear struct {
	name string
	mask func(i, n int, random func() uint64) byte
}

var tears = [...]tear{
	{"first half", func(i, n int, _ func() uint64) byte { return part(i < (n+1)/2) }},
	{"second half", func(i, n int, _ func() uint64) byte { return part(i >= n/2) }},
	{"both ends", func(i, n int, _ func() uint64) byte { return part(i < min(4, n/2) || i >= n-n/4) }},
	{"first word", func(i, _ int, _ func() uint64) byte { return part(i < 4) }},
	{"all but the first byte", func(i, _ int, _ func() uint64) byte { return part(i > 0) }},
	{"even bits", func(int, int, func() uint64) byte { return 0x55 }},
	{"odd bits", func(int, int, func() uint64) byte { return 0xAA }},
	{"some bytes", func(_, _ int, random func() uint64) byte { return part(random()&1 == 0) }},
	{"some bits", func(_, _ int, random func() uint64) byte { return byte(random()) }},
	{"most bits", func(_, _ int, random func() uint64) byte { a, b := random(), random(); return byte(a | b | random()) }},
}

// Tears is the number of ways in which an operation is torn.
const Tears = len(tears)

func part(yes bool) byte {
	if yes {
		return 0xFF
	}
	return 0
}

// Tear does a part of the operation to m: kind is one of the ways from 0 to
// [Tears]-1, seed decides where a way is random.
func (op Op) Tear(m flash.Memory, kind int, seed uint64) { op.tear(m, tears[kind], &seed) }

func (op Op) tear(m flash.Memory, way tear, seed *uint64) {
	random := func() uint64 { return next(seed) }
	span := op.span(m)
	for i := range span {
		mask := way.mask(i, len(span), random)
		if op.Data == nil {
			span[i] |= mask
		} else {
			span[i] &= op.Data[i] | ^mask
		}
	}
}

// EachCut calls f with what a power cut leaves of flash that had the content start:
// before and after each of the operations, as [Flash.Journal] returns them, and in
// the middle of each, in every way in which it is torn. States that a cut between
// operations leaves too are left out. It returns how many cuts that were.
//
// name says which cut it is. The content may be neither changed nor kept. The same
// seed gives the same cuts.
func EachCut(start []byte, ops []Op, seed uint64, f func(name string, content flash.Memory)) (cuts int) {
	m := append(flash.Memory(nil), start...)
	f("before operation 0", m)
	for i, op := range ops {
		before := bytes.Clone(op.span(m))
		if err := op.Do(m); err != nil {
			panic(fmt.Sprintf("flashtest: operation %d was not recorded on this flash: %v", i, err))
		}
		after := bytes.Clone(op.span(m))
		for _, way := range tears {
			copy(op.span(m), before)
			op.tear(m, way, &seed)
			if torn := op.span(m); bytes.Equal(torn, before) || bytes.Equal(torn, after) {
				continue
			}
			f(fmt.Sprintf("operation %d: %s", i, way.name), m)
			cuts++
		}
		copy(op.span(m), after)
		f(fmt.Sprintf("after operation %d", i), m)
		cuts++
	}
	return cuts
}

// next is SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number
// generators, 2014).
func next(state *uint64) uint64 {
	*state += 0x9E3779B97F4A7C15
	z := *state
	z = (z ^ z>>30) * 0xBF58476D1CE4E5B9
	z = (z ^ z>>27) * 0x94D049BB133111EB
	return z ^ z>>31
}
