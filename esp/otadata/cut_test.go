package otadata_test

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/esp/flash"
	"github.com/quarklink-go/quarklink/esp/flash/flashtest"
	"github.com/quarklink-go/quarklink/esp/otadata"
)

func seqCRC(seq uint32) uint32 {
	var b [4]byte
	binary.LittleEndian.PutUint32(b[:], seq)
	return crc32.Update(0xFFFFFFFF, crc32.IEEETable, b[:])
}

func writeEntry(f flash.Memory, sector int, e otadata.Entry) {
	b := f[sector*flash.SectorSize:]
	binary.LittleEndian.PutUint32(b, e.Seq)
	copy(b[4:], e.Label[:])
	binary.LittleEndian.PutUint32(b[24:], uint32(e.State))
	binary.LittleEndian.PutUint32(b[28:], e.CRC)
}

// Whatever is cut, the application starts that did before, or the one that would
// have without the cut; and so it does in the starts after that.
func TestCuts(t *testing.T) {
	states := []otadata.State{
		otadata.New, otadata.PendingVerify, otadata.Valid, otadata.Invalid, otadata.Aborted, otadata.Undefined,
	}
	cuts := 0
	for _, b := range []otadata.Bootloader{
		{Slots: 2}, {Slots: 2, Factory: true}, {Slots: 2, Rollback: true}, {Slots: 2, Factory: true, Rollback: true},
		{Slots: 3, Factory: true, Rollback: true},
	} {
		for _, first := range states {
			for _, second := range states {
				start := flash.NewMemory(otadata.Size)
				put(t, start, 0, 4, first)
				put(t, start, 1, 5, second)
				for _, do := range []func(flash.NOR) error{
					func(f flash.NOR) error { return otadata.SetBoot(f, b, 0) },
					func(f flash.NOR) error { return otadata.SetBoot(f, b, 1) },
					otadata.Confirm,
					otadata.Rollback,
				} {
					cuts += cutEach(t, b, start, do)
				}
			}
		}
	}
	t.Logf("%d cuts", cuts)
	require.Greater(t, cuts, 5000)
}

func cutEach(t *testing.T, b otadata.Bootloader, start flash.Memory, do func(flash.NOR) error) int {
	t.Helper()
	// Every image verifies: what matters is which one is chosen, in three starts. The
	// entry that decides may be lost, so what may start is what either one chooses.
	allowed := []int{}
	note := func(m flash.Memory) {
		for lost := range 3 {
			f := slices.Clone(m)
			if lost < 2 {
				writeEntry(f, lost, otadata.Erased())
			}
			for range 3 {
				slot, _, err := otadata.Boot(f, b, always)
				require.NoError(t, err)
				allowed = append(allowed, slot)
			}
		}
	}
	note(start)
	live := flashtest.New(start)
	live.Record()
	if err := do(live); err != nil {
		require.ErrorIs(t, err, otadata.ErrNoEntry)
		return 0
	}
	note(live.Content())
	return flashtest.EachCut(start, live.Journal(), 1, func(name string, m flash.Memory) {
		f := flashtest.New(m)
		for range 3 {
			slot, c, err := otadata.Boot(f, b, always)
			require.NoError(t, err, name)
			if slot < 0 && !b.Factory || !slices.Contains(allowed, slot) {
				t.Fatalf("%s: %+v: slot %d starts, want one of %v: %s", name, b, slot, allowed, c.Reason)
			}
		}
		// After the cut the same can be done again.
		again := flashtest.New(m)
		if err := do(again); err != nil {
			require.ErrorIs(t, err, otadata.ErrNoEntry, name)
		}
	})
}

// FuzzSelect: whatever is in the sectors, the bootloader decides, starts each slot at
// most once, and what it writes back it would not write again.
func FuzzSelect(f *testing.F) {
	for _, seq := range []uint32{0, 1, 2, 0xFFFFFFFE, 0xFFFFFFFF} {
		m := flash.NewMemory(otadata.Size)
		put(f, m, 0, seq, otadata.New)
		put(f, m, 1, 1, otadata.PendingVerify)
		f.Add(append(bytes.Clone(m[:32]), m[4096:4096+32]...), uint8(2), true, true)
	}
	f.Fuzz(func(t *testing.T, in []byte, slots uint8, factory, rollback bool) {
		m := flash.NewMemory(otadata.Size)
		copy(m, in[:min(len(in), 32)])
		if len(in) > 32 {
			copy(m[4096:], in[32:min(len(in), 64)])
		}
		b := otadata.Bootloader{Slots: int(slots % 17), Factory: factory, Rollback: rollback}
		d, err := otadata.Read(m)
		require.NoError(t, err)
		c := d.Select(b)
		seen := map[int]bool{}
		for _, slot := range c.Order {
			require.False(t, seen[slot])
			seen[slot] = true
			require.GreaterOrEqual(t, slot, otadata.Factory)
			require.Less(t, slot, b.Slots)
		}
		want := b.Slots
		if factory {
			want++
		}
		require.Len(t, c.Order, want)
		slot, _, err := otadata.Boot(m, b, func(slot int) bool { return slot == b.Slots-1 })
		if b.Slots == 0 {
			return
		}
		require.NoError(t, err)
		require.Equal(t, b.Slots-1, slot)
		if err := otadata.SetBoot(m, b, 0); err == nil {
			d, err = otadata.Read(m)
			require.NoError(t, err)
			require.Equal(t, 0, d.Select(b).Start)
		}
	})
}
