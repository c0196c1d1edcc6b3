package flash_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/esp/flash"
	"github.com/quarklink-go/quarklink/esp/flash/flashtest"
)

const testSize = 4 * flash.SectorSize

// implementations are all that promise to be flash, erased.
func implementations(t *testing.T) map[string]flash.NOR {
	f, err := os.Create(filepath.Join(t.TempDir(), "flash.bin"))
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	_, err = f.Write(flash.NewMemory(testSize))
	require.NoError(t, err)
	around := flashtest.New(flash.NewMemory(testSize + 2*flash.SectorSize))
	region, err := flash.Region(around, flash.SectorSize, testSize)
	require.NoError(t, err)
	return map[string]flash.NOR{
		"Memory":    flash.NewMemory(testSize),
		"File":      flash.File(f, testSize),
		"Region":    region,
		"flashtest": flashtest.New(flash.NewMemory(testSize)),
	}
}

func TestNOR(t *testing.T) {
	for name, f := range implementations(t) {
		t.Run(name, func(t *testing.T) {
			require.EqualValues(t, testSize, f.Size())
			require.NoError(t, f.Program(4096+10, []byte{0xF0, 0x0F}))
			require.NoError(t, f.Program(4096+10, []byte{0x3C, 0xFF}))
			got := make([]byte, 4)
			require.NoError(t, flash.Read(f, got, 4096+9))
			assert.Equal(t, []byte{0xFF, 0x30, 0x0F, 0xFF}, got, "programming clears bits")

			require.NoError(t, f.Program(0, []byte{1}))
			require.NoError(t, f.EraseSector(4096))
			require.NoError(t, flash.Read(f, got[:1], 0))
			assert.Equal(t, byte(1), got[0], "an erase is of one sector")
			blank, err := flash.Blank(f, 4096, testSize-4096)
			require.NoError(t, err)
			assert.True(t, blank)
		})
	}
}

func TestBounds(t *testing.T) {
	for name, f := range implementations(t) {
		t.Run(name, func(t *testing.T) {
			for _, off := range []int64{-1, testSize, testSize + 1, 1 << 40, -1 << 62} {
				assert.ErrorIs(t, f.Program(off, []byte{0}), flash.ErrBounds, "program at %d", off)
				assert.ErrorIs(t, f.EraseSector(off), flash.ErrBounds, "erase at %d", off)
			}
			assert.ErrorIs(t, f.Program(testSize-1, []byte{0, 0}), flash.ErrBounds, "program over the end")
			assert.ErrorIs(t, f.Program(255, []byte{0, 0}), flash.ErrBounds, "program over a multiple of 256")
			assert.ErrorIs(t, f.EraseSector(1), flash.ErrBounds, "erase within a sector")

			n, err := f.ReadAt(make([]byte, 3), testSize-2)
			assert.Equal(t, 2, n)
			assert.ErrorIs(t, err, io.EOF)
			_, err = f.ReadAt(make([]byte, 1), -1)
			assert.Error(t, err)
			require.ErrorIs(t, flash.Read(f, make([]byte, 3), testSize-2), io.ErrUnexpectedEOF)

			blank, err := flash.Blank(f, 0, testSize)
			require.NoError(t, err)
			assert.True(t, blank, "nothing was done")
		})
	}
}

func TestRegionBounds(t *testing.T) {
	f := flash.NewMemory(testSize)
	for _, bad := range []struct{ off, size int64 }{
		{-4096, 4096}, {0, -4096}, {1, 4096}, {0, 1}, {0, testSize + 4096}, {testSize, 4096}, {testSize + 4096, 0},
		{4096, 1<<63 - 4096}, {1<<63 - 4096, 4096},
	} {
		_, err := flash.Region(f, bad.off, bad.size)
		assert.ErrorIs(t, err, flash.ErrBounds, "%+v", bad)
	}
	_, err := flash.Region(f, testSize, 0)
	assert.NoError(t, err, "an empty region at the end")
}

// Regions of regions do not leave the inner one.
func TestRegionKeepsWithin(t *testing.T) {
	f := flashtest.New(make([]byte, testSize))
	outer, err := flash.Region(f, 4096, 2*4096)
	require.NoError(t, err)
	inner, err := flash.Region(outer, 4096, 4096)
	require.NoError(t, err)
	require.NoError(t, flash.Erase(inner, 0, 4096))
	assert.Equal(t, 1, f.Wear(2*4096))
	assert.Equal(t, bytes.Repeat([]byte{0xFF}, 4096), []byte(f.Content()[2*4096:][:4096]))
	assert.Equal(t, make([]byte, 4096), []byte(f.Content()[3*4096:]))
}

func TestWrite(t *testing.T) {
	f := flashtest.New(flash.NewMemory(testSize))
	data := bytes.Repeat([]byte("0123456789abcdef!"), 60)
	require.NoError(t, flash.Write(f, 200, data))
	assert.Equal(t, data, []byte(f.Content()[200:][:len(data)]))
	assert.Equal(t, 5, f.Operations(), "1020 bytes from 200 are parts of 5 pages")
	require.NoError(t, flash.Write(f, 200, data), "the same again")

	require.ErrorIs(t, flash.Write(f, 200, []byte{0xFF}), flash.ErrProgram, "not erased")
	require.ErrorIs(t, flash.Write(f, testSize-1, []byte{1, 2}), flash.ErrBounds)
}

func TestWornFlash(t *testing.T) {
	f := flashtest.New(flash.NewMemory(testSize))
	f.StickBit(300, 2, true)
	require.ErrorIs(t, flash.Write(f, 0, make([]byte, 512)), flash.ErrProgram)
	assert.ErrorContains(t, flash.Write(f, 0, make([]byte, 512)), "0x12c", "says where")
	f.StickBit(5000, 7, false)
	require.ErrorIs(t, flash.Erase(f, 4096, 4096), flash.ErrProgram)
	require.ErrorIs(t, flash.Erase(f, 0, 4095), flash.ErrBounds)
	require.NoError(t, flash.Erase(f, 8192, 8192))
}

// A file that fails says so, and a short one is no blank flash.
func TestFileErrors(t *testing.T) {
	f := flash.File(broken{}, testSize)
	require.ErrorIs(t, f.Program(0, []byte{0}), iotest.ErrTimeout)
	_, err := flash.Blank(f, 0, 16)
	require.ErrorIs(t, err, iotest.ErrTimeout)

	name := filepath.Join(t.TempDir(), "short.bin")
	require.NoError(t, os.WriteFile(name, make([]byte, 100), 0o600))
	short, err := os.OpenFile(name, os.O_RDWR, 0)
	require.NoError(t, err)
	defer short.Close()
	err = flash.File(short, testSize).Program(200, []byte{0})
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	info, err := short.Stat()
	require.NoError(t, err)
	assert.EqualValues(t, 100, info.Size(), "it is not made longer")
}

type broken struct{}

func (broken) ReadAt([]byte, int64) (int, error)  { return 0, iotest.ErrTimeout }
func (broken) WriteAt([]byte, int64) (int, error) { return 0, iotest.ErrTimeout }

// What is written to a file is stored when the operation returns.
func TestFileSyncs(t *testing.T) {
	f := &synced{Memory: flash.NewMemory(testSize)}
	nor := flash.File(f, testSize)
	require.NoError(t, nor.Program(0, []byte{0}))
	require.NoError(t, nor.EraseSector(0))
	assert.Equal(t, []string{"write", "sync", "write", "sync"}, f.did)
	f.err = errors.New("disk full")
	require.ErrorIs(t, nor.Program(0, []byte{0}), f.err)
}

type synced struct {
	flash.Memory
	did []string
	err error
}

func (s *synced) WriteAt(b []byte, off int64) (int, error) {
	s.did = append(s.did, "write")
	return copy(s.Memory[off:], b), nil
}

func (s *synced) Sync() error {
	s.did = append(s.did, "sync")
	return s.err
}
