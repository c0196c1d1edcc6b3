package flash

import (
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The numbers are those of mtd-abi.h, as strace shows them.
func TestIoctlNumbers(t *testing.T) {
	require.EqualValues(t, 32, unsafe.Sizeof(mtdInfo{}))
	for _, test := range []struct {
		arch           string
		getInfo, erase uint32
	}{
		{"amd64", 0x80204D01, 0x40084D02},
		{"arm", 0x80204D01, 0x40084D02},
		{"arm64", 0x80204D01, 0x40084D02},
		{"riscv64", 0x80204D01, 0x40084D02},
		{"mipsle", 0x40204D01, 0x80084D02},
		{"mips64", 0x40204D01, 0x80084D02},
		{"ppc64le", 0x40204D01, 0x80084D02},
	} {
		assert.Equal(t, test.getInfo, ioctlNumber(memGetInfo, test.arch), test.arch)
		assert.Equal(t, test.erase, ioctlNumber(memErase, test.arch), test.arch)
	}
}

func TestOpenMTDRefuses(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(name, make([]byte, SectorSize), 0o600))
	for _, name := range []string{name, os.DevNull, filepath.Join(t.TempDir(), "absent")} {
		_, err := OpenMTD(name)
		require.ErrorContains(t, err, name)
	}
}

// TestMTD wears out no flash: QUARKLINK_MTD names an mtdram device, which
// "modprobe mtdram total_size=64 erase_size=4" makes.
func TestMTD(t *testing.T) {
	name := os.Getenv("QUARKLINK_MTD")
	if name == "" {
		t.Skip("QUARKLINK_MTD names no device (modprobe mtdram total_size=64 erase_size=4)")
	}
	m, err := OpenMTD(name)
	require.NoError(t, err)
	defer m.Close()
	require.NoError(t, Erase(m, 0, m.Size()))
	require.NoError(t, Write(m, 4000, []byte("quarklink")))
	require.NoError(t, Erase(m, 0, SectorSize))
	got := make([]byte, 9)
	require.NoError(t, Read(m, got, 4000))
	assert.Equal(t, []byte("\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF"), got)
}
