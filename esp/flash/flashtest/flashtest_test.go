package flashtest_test

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/esp/flash"
	"github.com/quarklink-go/quarklink/esp/flash/flashtest"
)

func TestCounts(t *testing.T) {
	f := flashtest.New(flash.NewMemory(2 * flash.SectorSize))
	require.NoError(t, f.Program(0, []byte{1}))
	f.Record()
	require.NoError(t, f.EraseSector(4096))
	require.NoError(t, f.EraseSector(4096))
	require.NoError(t, f.Program(7, []byte{2}))
	require.Error(t, f.Program(7, nil))
	require.Error(t, f.EraseSector(1))
	assert.Equal(t, 4, f.Operations())
	assert.Equal(t, 0, f.Wear(0))
	assert.Equal(t, 2, f.Wear(5000))
	assert.Equal(t, []flashtest.Op{{Off: 4096}, {Off: 4096}, {Off: 7, Data: []byte{2}}}, f.Journal())
}

func TestPowerCut(t *testing.T) {
	f := flashtest.New(flash.NewMemory(flash.SectorSize))
	f.CutPower(1)
	require.NoError(t, f.Program(0, []byte{1}))
	require.ErrorIs(t, f.Program(1, []byte{2}), flashtest.ErrPowerCut)
	require.ErrorIs(t, f.EraseSector(0), flashtest.ErrPowerCut)
	require.ErrorIs(t, flash.Read(f, make([]byte, 1), 0), flashtest.ErrPowerCut)
	assert.Equal(t, []byte{1, 0xFF}, []byte(f.Content()[:2]), "nothing of the operation happened")
	f.PowerUp()
	require.NoError(t, f.Program(1, []byte{2}))
	assert.Equal(t, 2, f.Operations())
}

// A torn operation does something between nothing and all, and the same again for
// the same seed.
func TestTears(t *testing.T) {
	for kind := range flashtest.Tears {
		for _, erase := range []bool{false, true} {
			start := flash.NewMemory(flash.SectorSize)
			if erase {
				start = make(flash.Memory, flash.SectorSize)
			}
			tear := func() flash.Memory {
				f := flashtest.New(start)
				f.TearPower(0, kind, 7)
				if erase {
					require.ErrorIs(t, f.EraseSector(0), flashtest.ErrPowerCut)
				} else {
					require.ErrorIs(t, f.Program(0, make([]byte, flash.ProgramSize)), flashtest.ErrPowerCut)
				}
				return f.Content()
			}
			torn := tear()
			assert.NotEqual(t, start, torn, kind)
			assert.Equal(t, torn, tear(), kind)
			done := bytes.Count(torn[:flash.ProgramSize], []byte{0})
			if !erase {
				assert.Less(t, done, flash.ProgramSize, kind)
			}
		}
	}
}

func TestDefects(t *testing.T) {
	f := flashtest.New(flash.NewMemory(flash.SectorSize))
	f.FlipBit(5, 3)
	assert.Equal(t, byte(0xF7), f.Content()[5])
	f.StickBit(5, 0, false)
	f.StickBit(5, 1, true)
	require.NoError(t, f.EraseSector(0))
	assert.Equal(t, byte(0xFE), f.Content()[5])
	require.NoError(t, f.Program(5, []byte{0}))
	assert.Equal(t, byte(0x02), f.Content()[5])
}

// EachCut and a live cut leave the same.
func TestEachCutIsWhatCutsLeave(t *testing.T) {
	start := flash.NewMemory(2 * flash.SectorSize)
	run := func(f *flashtest.Flash) error {
		for _, op := range []flashtest.Op{{Off: 100, Data: []byte("hello")}, {Off: 0}, {Off: 4096, Data: []byte{0, 0, 0}}} {
			if err := op.Do(f); err != nil {
				return err
			}
		}
		return nil
	}
	whole := flashtest.New(start)
	whole.Record()
	require.NoError(t, run(whole))
	var states []flash.Memory
	cuts := flashtest.EachCut(start, whole.Journal(), 1, func(_ string, m flash.Memory) {
		states = append(states, bytes.Clone(m))
	})
	assert.Len(t, states, cuts+1)
	assert.Greater(t, cuts, 20)
	assert.Equal(t, whole.Content(), states[len(states)-1])
	for n := range 3 {
		f := flashtest.New(start)
		f.CutPower(n)
		require.ErrorIs(t, run(f), flashtest.ErrPowerCut)
		assert.Contains(t, states, f.Content())
		f = flashtest.New(start)
		f.TearPower(n, 0, 1)
		require.ErrorIs(t, run(f), flashtest.ErrPowerCut)
		assert.Contains(t, states, f.Content())
	}
}
