// Package flashtest models NOR flash for tests: it counts operations and the wear of
// each sector, cuts the power after any operation or in the middle of one, flips
// bits and has bits that are stuck. [EachCut] goes through every state that a power
// cut can leave.
//
// The model is as strict as a chip or stricter: what the flash package refuses of a
// program operation or an erase is refused here.
package flashtest

import (
	"errors"

	"github.com/quarklink-go/quarklink/esp/flash"
)

// ErrPowerCut is what every operation returns from the power cut until
// [Flash.PowerUp].
var ErrPowerCut = errors.New("flashtest: the power is cut")

// Op is one operation on flash.
type Op struct {
	Off  int64
	Data []byte // what was programmed; nil: the sector at Off was erased
}

// Flash is a model of NOR flash. It is not safe for concurrent use, as [flash.NOR]
// does not ask for it.
type Flash struct {
	content flash.Memory
	count   int
	record  bool
	journal []Op
	wear    []int
	stuck   map[int64][2]byte // bits that are always 0, and always 1

	left int // operations until the power is cut; negative: it is not
	tear int // index into tears, or -1
	rand uint64
	off  bool
}

var _ flash.NOR = (*Flash)(nil)

// New returns flash with a copy of that content. flash.NewMemory makes erased one.
func New(content []byte) *Flash {
	return &Flash{
		content: append(flash.Memory(nil), content...),
		wear:    make([]int, (len(content)+flash.SectorSize-1)/flash.SectorSize),
		stuck:   make(map[int64][2]byte),
		left:    -1,
	}
}

// Size implements flash.NOR.
func (f *Flash) Size() int64 { return f.content.Size() }

// ReadAt implements io.ReaderAt.
func (f *Flash) ReadAt(b []byte, off int64) (int, error) {
	if f.off {
		return 0, ErrPowerCut
	}
	return f.content.ReadAt(b, off)
}

// Program implements flash.NOR.
func (f *Flash) Program(off int64, data []byte) error {
	if len(data) == 0 {
		return errors.New("flashtest: program of no bytes")
	}
	return f.do(Op{off, append([]byte(nil), data...)})
}

// EraseSector implements flash.NOR.
func (f *Flash) EraseSector(off int64) error { return f.do(Op{Off: off}) }

func (f *Flash) do(op Op) error {
	if f.off {
		return ErrPowerCut
	}
	before := append([]byte(nil), op.span(f.content)...)
	if err := op.Do(f.content); err != nil {
		return err
	}
	if f.left == 0 {
		f.off = true
		copy(op.span(f.content), before)
		if f.tear >= 0 {
			op.tear(f.content, tears[f.tear], &f.rand)
		}
		f.stick(op)
		return ErrPowerCut
	}
	if f.left > 0 {
		f.left--
	}
	if op.Data == nil {
		f.wear[op.Off/flash.SectorSize]++
	}
	f.count++
	if f.record {
		f.journal = append(f.journal, op)
	}
	f.stick(op)
	return nil
}

// Operations returns how many operations were done.
func (f *Flash) Operations() int { return f.count }

// Record begins a journal of the operations. One that was begun before is lost.
func (f *Flash) Record() { f.record, f.journal = true, nil }

// Journal returns the operations that were done since [Flash.Record], oldest first.
func (f *Flash) Journal() []Op { return append([]Op(nil), f.journal...) }

// Wear returns how often the sector that holds offset off was erased.
func (f *Flash) Wear(off int64) int { return f.wear[off/flash.SectorSize] }

// Content returns a copy of what is in the flash, whether or not the power is cut.
func (f *Flash) Content() flash.Memory { return append(flash.Memory(nil), f.content...) }

// CutPower cuts the power in place of the operation after n more, of which nothing
// happens.
func (f *Flash) CutPower(n int) { f.left, f.tear = n, -1 }

// TearPower is CutPower, but a part of the operation happens: kind is one of the
// ways from 0 to [Tears]-1, seed decides where a way is random.
func (f *Flash) TearPower(n, kind int, seed uint64) { f.left, f.tear, f.rand = n, kind, seed }

// PowerUp turns the power on again. No cut is ahead then.
func (f *Flash) PowerUp() { f.off, f.left = false, -1 }

// FlipBit flips a bit, 0 to 7, of the byte at off.
func (f *Flash) FlipBit(off int64, bit int) { f.content[off] ^= 1 << bit }

// StickBit makes a bit, 0 to 7, of the byte at off read as that value from now on,
// whatever is done to it.
func (f *Flash) StickBit(off int64, bit int, value bool) {
	s := f.stuck[off]
	if value {
		s[1] |= 1 << bit
	} else {
		s[0] |= 1 << bit
	}
	f.stuck[off] = s
	f.stick(Op{Off: off, Data: []byte{0}})
}

// stick restores the bits that are stuck where op has been.
func (f *Flash) stick(op Op) {
	for i := range op.span(f.content) {
		if s, ok := f.stuck[op.Off+int64(i)]; ok {
			f.content[op.Off+int64(i)] = f.content[op.Off+int64(i)]&^s[0] | s[1]
		}
	}
}

// span returns the bytes that the operation is about.
func (op Op) span(m flash.Memory) []byte {
	n := int64(len(op.Data))
	if op.Data == nil {
		n = flash.SectorSize
	}
	if op.Off < 0 || op.Off > m.Size() {
		return nil
	}
	return m[op.Off:min(op.Off+n, m.Size())]
}

// Do does the operation.
func (op Op) Do(f flash.NOR) error {
	if op.Data == nil {
		return f.EraseSector(op.Off)
	}
	return f.Program(op.Off, op.Data)
}
