package otadata_test

import (
	"fmt"
	"io"
	"math"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/esp/flash"
	"github.com/quarklink-go/quarklink/esp/flash/flashtest"
	"github.com/quarklink-go/quarklink/esp/otadata"
)

// put writes an entry with a right CRC.
func put(t testing.TB, f flash.Memory, sector int, seq uint32, state otadata.State) {
	t.Helper()
	e := otadata.Erased()
	e.Seq, e.State, e.CRC = seq, state, seqCRC(seq)
	writeEntry(f, sector, e)
}

func TestRead(t *testing.T) {
	d, err := otadata.Read(flash.NewMemory(otadata.Size))
	require.NoError(t, err)
	assert.Equal(t, otadata.Data{otadata.Erased(), otadata.Erased()}, d)
	assert.Equal(t, -1, d.Active())
	for _, size := range []int{0, 31, 4096, 4096 + 31} {
		_, err := otadata.Read(flash.NewMemory(size))
		require.ErrorIs(t, err, io.ErrUnexpectedEOF, "%d bytes", size)
	}
}

// Of equal numbers that of sector 0 decides.
func TestEqualNumbers(t *testing.T) {
	f := flash.NewMemory(otadata.Size)
	put(t, f, 0, 3, otadata.Valid)
	put(t, f, 1, 3, otadata.New)
	d, err := otadata.Read(f)
	require.NoError(t, err)
	assert.Equal(t, 0, d.Active())
	c := d.Select(otadata.Bootloader{Slots: 2, Rollback: true})
	assert.Equal(t, 0, c.Sector)
	assert.Equal(t, d, c.After, "sector 1 does not decide, and stays NEW")
}

func TestConfirmWritesOnce(t *testing.T) {
	f := flashtest.New(flash.NewMemory(otadata.Size))
	require.NoError(t, otadata.SetBoot(f, otadata.Bootloader{Slots: 2, Rollback: true}, 1))
	require.NoError(t, otadata.Confirm(f))
	before := f.Operations()
	require.NoError(t, otadata.Confirm(f))
	assert.Equal(t, before, f.Operations())
}

// What the bootloader tries after the chosen slot.
func TestOrder(t *testing.T) {
	for _, test := range []struct {
		b    otadata.Bootloader
		slot int
		want []int
	}{
		{otadata.Bootloader{Slots: 4, Factory: true}, 2, []int{2, 1, 0, otadata.Factory, 3}},
		{otadata.Bootloader{Slots: 4}, 2, []int{2, 1, 0, 3}},
		{otadata.Bootloader{Slots: 1, Factory: true}, 0, []int{0, otadata.Factory}},
	} {
		f := flash.NewMemory(otadata.Size)
		require.NoError(t, otadata.SetBoot(f, test.b, test.slot))
		d, err := otadata.Read(f)
		require.NoError(t, err)
		assert.Equal(t, test.want, d.Select(test.b).Order)
		for i, only := range test.want {
			slot, _, err := otadata.Boot(f, test.b, func(slot int) bool { return slot == only })
			require.NoError(t, err)
			assert.Equal(t, only, slot, "only the image at place %d is good", i)
		}
	}
	erased := otadata.Data{otadata.Erased(), otadata.Erased()}
	assert.Equal(t, []int{otadata.Factory, 0, 1}, erased.Select(otadata.Bootloader{Slots: 2, Factory: true}).Order)
	assert.Equal(t, []int{otadata.Factory}, erased.Select(otadata.Bootloader{Factory: true}).Order)
	assert.Empty(t, erased.Select(otadata.Bootloader{}).Order)
}

// Without a factory application the slot that starts first is recorded.
func TestInitialChoiceIsRecorded(t *testing.T) {
	f := flash.NewMemory(otadata.Size)
	b := otadata.Bootloader{Slots: 3}
	slot, _, err := otadata.Boot(f, b, func(slot int) bool { return slot == 2 })
	require.NoError(t, err)
	assert.Equal(t, 2, slot)
	d, err := otadata.Read(f)
	require.NoError(t, err)
	want := otadata.Erased()
	want.Seq, want.State, want.CRC = 3, otadata.Valid, seqCRC(3)
	assert.Equal(t, otadata.Data{want, otadata.Erased()}, d)
}

// The next number is the smallest that chooses the slot, and never smaller.
func TestSequence(t *testing.T) {
	for _, test := range []struct {
		slots, slot int
		from, want  uint32
	}{
		{2, 0, 1, 1}, {2, 1, 1, 2}, {2, 0, 2, 3}, {2, 1, 0, 0}, {2, 0, 0, 1},
		{3, 0, 5, 7}, {3, 1, 5, 5}, {3, 2, 5, 6}, {16, 15, 17, 32}, {1, 0, 9, 9},
		{2, 1, math.MaxUint32 - 2, math.MaxUint32 - 1},
		{2, 0, math.MaxUint32 - 2, math.MaxUint32 - 2},
	} {
		t.Run(fmt.Sprintf("%+v", test), func(t *testing.T) {
			f := flash.NewMemory(otadata.Size)
			put(t, f, 0, test.from, otadata.Valid)
			b := otadata.Bootloader{Slots: test.slots}
			require.NoError(t, otadata.SetBoot(f, b, test.slot))
			d, err := otadata.Read(f)
			require.NoError(t, err)
			assert.Equal(t, test.want, d[1].Seq)
			assert.Equal(t, otadata.Undefined, d[1].State)
			assert.Equal(t, test.slot, d.Select(b).Start)
		})
	}
}

// At 2³²-2 ESP-IDF's numbers end. Ours begin again, and a cut leaves the old choice
// or the new one.
func TestSequenceEnds(t *testing.T) {
	for _, rollback := range []bool{false, true} {
		for _, sector := range []int{0, 1} {
			b := otadata.Bootloader{Slots: 2, Factory: true, Rollback: rollback}
			f := flash.NewMemory(otadata.Size)
			put(t, f, sector, math.MaxUint32-1, otadata.Valid) // ota_1
			put(t, f, 1-sector, math.MaxUint32-2, otadata.Valid)
			live := flashtest.New(f)
			live.Record()
			require.NoError(t, otadata.SetBoot(live, b, 0))
			d, err := otadata.Read(live)
			require.NoError(t, err)
			assert.EqualValues(t, 1, d[1-sector].Seq)
			assert.Equal(t, otadata.Erased(), d[sector])
			flashtest.EachCut(f, live.Journal(), 1, func(name string, m flash.Memory) {
				slot, _, err := otadata.Boot(slices.Clone(m), b, always)
				require.NoError(t, err, name)
				assert.Contains(t, []int{0, 1}, slot, name)
			})
			require.NoError(t, otadata.SetBoot(live, b, 1), "and on it goes")
			slot, _, err := otadata.Boot(live, b, always)
			require.NoError(t, err)
			assert.Equal(t, 1, slot)
		}
	}
}

func TestSetBootRefuses(t *testing.T) {
	f := flashtest.New(flash.NewMemory(otadata.Size))
	for _, slot := range []int{-1, 2, otadata.Factory} {
		require.ErrorIs(t, otadata.SetBoot(f, otadata.Bootloader{Slots: 2}, slot), otadata.ErrSlot)
	}
	require.ErrorIs(t, otadata.SetBoot(f, otadata.Bootloader{}, 0), otadata.ErrSlot)
	assert.Zero(t, f.Operations())
	f.StickBit(0, 0, false)
	require.ErrorIs(t, otadata.SetBoot(f, otadata.Bootloader{Slots: 2}, 0), flash.ErrProgram)
}

func always(int) bool { return true }

// A trial: one start, then rolled back unless it was confirmed.
func TestTrial(t *testing.T) {
	b := otadata.Bootloader{Slots: 2, Rollback: true}
	boot := func(f flash.NOR) (slot int) {
		slot, _, err := otadata.Boot(f, b, always)
		require.NoError(t, err)
		return slot
	}
	states := func(f flash.NOR) [2]otadata.State {
		d, err := otadata.Read(f)
		require.NoError(t, err)
		return [2]otadata.State{d[0].State, d[1].State}
	}
	f := flash.NewMemory(otadata.Size)
	assert.Equal(t, 0, boot(f))
	require.NoError(t, otadata.SetBoot(f, b, 1))
	assert.Equal(t, [2]otadata.State{otadata.Valid, otadata.New}, states(f))
	assert.Equal(t, 1, boot(f))
	assert.Equal(t, [2]otadata.State{otadata.Valid, otadata.PendingVerify}, states(f))
	assert.Equal(t, 0, boot(f), "it crashed")
	assert.Equal(t, [2]otadata.State{otadata.Valid, otadata.Aborted}, states(f))
	assert.Equal(t, 0, boot(f))

	require.NoError(t, otadata.SetBoot(f, b, 1))
	assert.Equal(t, 1, boot(f))
	require.NoError(t, otadata.Confirm(f))
	assert.Equal(t, 1, boot(f))
	assert.Equal(t, 1, boot(f))

	require.NoError(t, otadata.SetBoot(f, b, 0))
	assert.Equal(t, 0, boot(f))
	require.NoError(t, otadata.Rollback(f))
	assert.Equal(t, 1, boot(f))
}

func TestReasons(t *testing.T) {
	b := otadata.Bootloader{Slots: 2, Factory: true, Rollback: true}
	f := flash.NewMemory(otadata.Size)
	reason := func() string {
		d, err := otadata.Read(f)
		require.NoError(t, err)
		return d.Select(b).Reason
	}
	assert.Equal(t, "sector 0 is erased, sector 1 is erased: the factory application starts", reason())
	put(t, f, 0, 1, otadata.Valid)
	put(t, f, 1, 2, otadata.New)
	assert.Equal(t, "sector 1 decides, with sequence number 2 (NEW): ota_1 starts; sector 0 has the lower number 1; "+
		"it has this one start to confirm itself", reason())
	put(t, f, 1, 2, otadata.PendingVerify)
	assert.Equal(t, "sector 0 decides, with sequence number 1 (VALID): ota_0 starts; "+
		"sector 1 (2) did not confirm itself after its first start and becomes ABORTED", reason())
	put(t, f, 0, 1, otadata.Invalid)
	f[4096] ^= 1
	f[4096+24] = 2
	assert.Equal(t, "sector 0 (1) is INVALID, sector 1 (3) has a wrong CRC: the factory application starts", reason())
}
