package otadata_test

import (
	"archive/zip"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/esp/flash"
	"github.com/quarklink-go/quarklink/esp/otadata"
)

// vector is one otadata partition, and what the bootloader of ESP-IDF 5.3.1,
// compiled for a host, did in three starts of each kind on it.
type vector struct {
	File                string
	What                string
	RollbackOffFactory  []start `json:"rollback_off_factory"`
	RollbackOffNone     []start `json:"rollback_off_nofactory"`
	RollbackOnFactory   []start `json:"rollback_on_factory"`
	RollbackOnNoFactory []start `json:"rollback_on_nofactory"`
	content             []byte
}

type start struct {
	Index   int `json:"boot_index"`
	Seq     [2]uint32
	State   [2]uint32
	Initial int
}

// kinds are the bootloaders that ran, each on a table with two slots.
func (v vector) kinds() map[otadata.Bootloader][]start {
	return map[otadata.Bootloader][]start{
		{Slots: 2, Factory: true}: v.RollbackOffFactory,
		{Slots: 2}:                v.RollbackOffNone,
		{Slots: 2, Factory: true, Rollback: true}: v.RollbackOnFactory,
		{Slots: 2, Rollback: true}:                v.RollbackOnNoFactory,
	}
}

// vectors returns those in testdata or, if there is one, in the folder of test data.
func vectors(t testing.TB) map[string]vector {
	t.Helper()
	open := func(name string) (io.ReadCloser, error) {
		return os.Open(filepath.Join(os.Getenv("QUARKLINK_VECTORS"), "otadata", name))
	}
	if os.Getenv("QUARKLINK_VECTORS") == "" {
		z, err := zip.OpenReader("testdata/otadata.zip")
		require.NoError(t, err)
		t.Cleanup(func() { z.Close() })
		open = func(name string) (io.ReadCloser, error) { return z.Open(name) }
	}
	read := func(name string) []byte {
		f, err := open(name)
		require.NoError(t, err)
		defer f.Close()
		b, err := io.ReadAll(f)
		require.NoError(t, err)
		return b
	}
	var list []vector
	require.NoError(t, json.Unmarshal(read("oracle.json"), &list))
	require.NotEmpty(t, list)
	byName := make(map[string]vector)
	for _, v := range list {
		v.content = read(v.File)
		byName[v.File] = v
	}
	return byName
}

// Every recorded start: the slot, what is written back, to the byte, and whether
// the slot that starts would be recorded.
func TestSelectAsRecorded(t *testing.T) {
	for name, v := range vectors(t) {
		for b, starts := range v.kinds() {
			t.Run(fmt.Sprintf("%s/%+v", name, b), func(t *testing.T) {
				require.NotEmpty(t, starts)
				f := flash.Memory(append([]byte(nil), v.content...))
				for i, want := range starts {
					before, err := otadata.Read(f)
					require.NoError(t, err)
					c := before.Select(b)
					assert.Equal(t, want.Index, c.Start, "start %d: %s", i, c.Reason)
					assert.Equal(t, want.Initial != 0, c.Initial, "start %d: %s", i, c.Reason)

					// The slots do not matter here: what is written back does. Where
					// nothing was chosen before, the test data stops before that is noted.
					_, why, err := otadata.Boot(f, b, func(int) bool { return false })
					require.ErrorIs(t, err, otadata.ErrNothingBoots)
					assert.Equal(t, c, why)
					assert.Equal(t, expected(v.content, want), []byte(f), "start %d: %s", i, c.Reason)
				}
			})
		}
	}
}

// expected is the content of a file after the bootloader has written what was
// recorded: CRC and label stay.
func expected(content []byte, want start) []byte {
	b := append([]byte(nil), content...)
	for i := range 2 {
		e := b[i*flash.SectorSize:]
		binary.LittleEndian.PutUint32(e, want.Seq[i])
		binary.LittleEndian.PutUint32(e[24:], want.State[i])
	}
	return b
}

// Espressif's otatool and SetBoot write the same bytes.
func TestSetBootAsOtatool(t *testing.T) {
	all := vectors(t)
	for name, slots := range map[string][]int{
		"otatool_to_ota0.bin":             {0},
		"otatool_to_ota1.bin":             {1},
		"otatool_ota0_then_ota0.bin":      {0, 0},
		"otatool_ota0_then_ota1.bin":      {0, 1},
		"otatool_ota0_ota1_ota0.bin":      {0, 1, 0},
		"otatool_ota0_ota1_ota0_ota1.bin": {0, 1, 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			f := flash.Memory(append([]byte(nil), all["empty.bin"].content...))
			for _, slot := range slots {
				require.NoError(t, otadata.SetBoot(f, otadata.Bootloader{Slots: 2}, slot))
			}
			assert.Equal(t, all[name].content, []byte(f))
		})
	}
}

// Confirm and Rollback write the bytes that the test data has for the same history.
func TestMarksAsRecorded(t *testing.T) {
	all := vectors(t)
	load := func(name string) flash.Memory { return append(flash.Memory(nil), all[name].content...) }
	for _, test := range []struct {
		from, to string
		do       func(flash.NOR) error
	}{
		{"state_ota0_PENDING.bin", "state_ota0_VALID.bin", otadata.Confirm},
		{"state_ota0_UNDEF.bin", "state_ota0_VALID.bin", otadata.Confirm},
		{"state_ota0_VALID.bin", "state_ota0_VALID.bin", otadata.Confirm},
		{"state_ota0_PENDING.bin", "state_ota0_INVALID.bin", otadata.Rollback},
		{"state_ota0_VALID_ota1_NEW.bin", "state_ota0_VALID_ota1_VALID.bin", otadata.Confirm},
		{"state_ota0_VALID_ota1_UNDEF.bin", "state_ota0_VALID_ota1_INVALID.bin", otadata.Rollback},
	} {
		f := load(test.from)
		require.NoError(t, test.do(f), test.from)
		assert.Equal(t, all[test.to].content, []byte(f), "%s to %s", test.from, test.to)
	}
	for _, name := range []string{"empty.bin", "both_INVALID.bin", "badcrc_0.bin"} {
		f := load(name)
		require.ErrorIs(t, otadata.Confirm(f), otadata.ErrNoEntry, name)
		require.ErrorIs(t, otadata.Rollback(f), otadata.ErrNoEntry, name)
		assert.Equal(t, all[name].content, []byte(f), name)
	}
}
