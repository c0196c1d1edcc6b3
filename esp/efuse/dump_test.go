package efuse_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/esp/efuse"
)

func TestRawDumps(t *testing.T) {
	for _, dump := range dumps {
		t.Run(dump, func(t *testing.T) {
			want := recorded(t, dump)
			var packed, padded []byte
			for n := range want.Chip().BlockNames() {
				b, err := want.Block(n)
				require.NoError(t, err)
				packed = append(packed, b...)
				padded = append(append(padded, b...), make([]byte, 32-len(b))...)
			}
			for _, raw := range [][]byte{packed, padded} {
				got, err := efuse.ParseRaw(want.Chip(), raw)
				require.NoError(t, err)
				assert.Equal(t, blocks(t, want), blocks(t, got))
				_, err = efuse.ParseRaw(want.Chip(), raw[1:])
				require.ErrorIs(t, err, efuse.ErrDump)
			}
			padded[31] = 1 // after the end of BLOCK0
			_, err := efuse.ParseRaw(want.Chip(), padded)
			require.ErrorIs(t, err, efuse.ErrDump)
		})
	}
}

func TestHiddenKeyInADumpReadsAsZeros(t *testing.T) {
	raw := make([]byte, 11*32)
	raw[4] = 1 // RD_DIS of KEY0
	copy(raw[4*32:], ascending(32))
	s, err := efuse.ParseRaw(efuse.ESP32C3, raw)
	require.NoError(t, err)
	b, err := s.Block(4)
	require.NoError(t, err)
	assert.Equal(t, make([]byte, 32), b)
}

func TestHiddenConfigurationOfTheESP32ReadsAsZero(t *testing.T) {
	raw := bytes.Repeat([]byte{0xFF}, 28)
	s, err := efuse.ParseRaw(efuse.ESP32, append(raw, make([]byte, 96)...))
	require.NoError(t, err)
	for name, want := range map[string]uint64{
		"FLASH_CRYPT_CONFIG": 0, "CODING_SCHEME": 0, "KEY_STATUS": 0, "BLK3_PART_RESERVE": 0,
		"DISABLE_DL_CACHE": 1, "CONSOLE_DEBUG_DISABLE": 1, "WAFER_VERSION_MINOR": 3,
	} {
		got, err := s.Value(name)
		require.NoError(t, err)
		assert.Equal(t, want, got, name)
	}
}

func TestEmulatorFileOfAnotherLength(t *testing.T) {
	_, err := efuse.ParseEmulator(efuse.ESP32C3, make([]byte, 288))
	require.ErrorIs(t, err, efuse.ErrDump)
}

func TestJSONThatIsNoDump(t *testing.T) {
	good, err := json.Marshal(recorded(t, "esp32_02_sbv2_digest"))
	require.NoError(t, err)
	_, err = efuse.ParseJSON(efuse.ESP32, good)
	require.NoError(t, err)
	text := string(good)
	tests := map[string]string{
		"no JSON":         text[1:],
		"block absent":    strings.Replace(text, "BLOCK3", "BLOCK4", 1),
		"block missing":   `{"BLOCK0":"` + strings.Repeat("00", 28) + `"}`,
		"block too short": strings.Replace(text, digest1, digest1[2:], 1),
		"block too long":  strings.Replace(text, digest1, digest1+"00", 1),
		"no hex":          strings.Replace(text, "cd83", "zz83", 1),
		"a number":        `{"BLOCK0":1}`,
		"too big":         text + strings.Repeat(" ", 64<<10),
	}
	for name, text := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := efuse.ParseJSON(efuse.ESP32, []byte(text))
			require.ErrorIs(t, err, efuse.ErrDump)
		})
	}
}

func TestUnknownChip(t *testing.T) {
	_, err := efuse.Blank(7)
	require.ErrorIs(t, err, efuse.ErrChip)
	_, err = efuse.NewBatch(7)
	require.ErrorIs(t, err, efuse.ErrChip)
	_, err = efuse.ParseChip("ESP32-C3")
	require.ErrorIs(t, err, efuse.ErrChip)
	assert.Equal(t, "chip(7)", efuse.Chip(7).String())
	assert.Empty(t, efuse.Chip(7).Fields())
	assert.Empty(t, efuse.Chip(7).BlockNames())
}

func FuzzParse(f *testing.F) {
	for _, dump := range dumps {
		file, err := os.ReadFile(filepath.Join("testdata", dump+".bin"))
		require.NoError(f, err)
		text, err := json.Marshal(recorded(f, dump))
		require.NoError(f, err)
		f.Add(uint16(chipOf(f, dump)), file)
		f.Add(uint16(chipOf(f, dump)), text)
	}
	f.Add(uint16(efuse.ESP32C3), make([]byte, 352))
	f.Add(uint16(efuse.ESP32C3), make([]byte, 336))
	parsers := []func(efuse.Chip, []byte) (efuse.State, error){efuse.ParseRaw, efuse.ParseEmulator, efuse.ParseJSON}
	f.Fuzz(func(t *testing.T, chip uint16, data []byte) {
		was := bytes.Clone(data)
		for _, parse := range parsers {
			s, err := parse(efuse.Chip(chip), data)
			require.Equal(t, was, data, "input is left alone")
			if err != nil {
				continue
			}
			text, err := json.Marshal(s)
			require.NoError(t, err)
			again, err := efuse.ParseJSON(s.Chip(), text)
			require.NoError(t, err)
			require.True(t, again == s, "what is written is read")
			for _, field := range s.Chip().Fields() {
				readable, err := s.Readable(field.Name)
				require.NoError(t, err)
				if v, err := s.Value(field.Name); err == nil && !readable && field.Bits < 64 {
					require.Zero(t, v, "%s is hidden", field.Name)
				}
			}
		}
	})
}
