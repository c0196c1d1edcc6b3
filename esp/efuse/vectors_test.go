package efuse_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/esp/efuse"
)

// recorded returns the blocks of a dump as they were read from the chip.
func recorded(tb testing.TB, dump string) efuse.State {
	tb.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "blocks_decoded.json"))
	require.NoError(tb, err)
	var all map[string]json.RawMessage
	require.NoError(tb, json.Unmarshal(text, &all))
	require.Contains(tb, all, dump+".bin")
	s, err := efuse.ParseJSON(chipOf(tb, dump), all[dump+".bin"])
	require.NoError(tb, err)
	return s
}

func chipOf(tb testing.TB, dump string) efuse.Chip {
	tb.Helper()
	name, _, _ := strings.Cut(dump, "_")
	chip, err := efuse.ParseChip(name)
	require.NoError(tb, err)
	return chip
}

var dumps = []string{
	"esp32_00_blank", "esp32_01_fe_key", "esp32_02_sbv2_digest", "esp32_03_abs_done_1",
	"esp32c3_00_blank", "esp32c3_01_sb_digests", "esp32c3_02_flash_enc_key", "esp32c3_03_ds_hmac",
	"esp32c3_04_hmac_up_readable", "esp32c3_05_sb_en",
}

func TestEmulatorFileHasTheRecordedBlocks(t *testing.T) {
	for _, dump := range dumps {
		t.Run(dump, func(t *testing.T) {
			file, err := os.ReadFile(filepath.Join("testdata", dump+".bin"))
			require.NoError(t, err)
			got, err := efuse.ParseEmulator(chipOf(t, dump), file)
			require.NoError(t, err)
			assert.Equal(t, blocks(t, recorded(t, dump)), blocks(t, got))
		})
	}
}

// blocks returns a state's blocks in hex by name.
func blocks(tb testing.TB, s efuse.State) map[string]string {
	tb.Helper()
	all := map[string]string{}
	for n, name := range s.Chip().BlockNames() {
		b, err := s.Block(n)
		require.NoError(tb, err)
		all[name] = hex.EncodeToString(b)
	}
	return all
}

// summary is a field in espefuse summary --format json.
type summary struct {
	Block     int  `json:"block"`
	Bits      int  `json:"bit_len"`
	Pos       *int `json:"pos"`
	Word      *int `json:"word"`
	Readable  bool `json:"readable"`
	Writeable bool `json:"writeable"`
	Value     any  `json:"value"`
}

func TestFieldsAreTheRecordedOnes(t *testing.T) {
	for _, dump := range dumps {
		t.Run(dump, func(t *testing.T) {
			text, err := os.ReadFile(filepath.Join("testdata", dump+".json"))
			require.NoError(t, err)
			var fields map[string]summary
			require.NoError(t, json.Unmarshal(text, &fields))
			s := recorded(t, dump)
			for name, want := range fields {
				if name == "WAFER_VERSION_MAJOR" && s.Chip() == efuse.ESP32 {
					continue // one of its bits is in another peripheral
				}
				checkField(t, s, name, want)
			}
		})
	}
}

func checkField(t *testing.T, s efuse.State, name string, want summary) {
	t.Helper()
	if want.Pos == nil {
		got, err := s.Value(name)
		require.NoError(t, err, name)
		assert.EqualValues(t, want.Value, got, name)
		return
	}
	var field *efuse.Field
	for _, f := range s.Chip().Fields() {
		if f.Name == name {
			field = &f
		}
	}
	require.NotNil(t, field, name)
	assert.Equal(t, want.Block, field.Block, "block of %s", name)
	assert.Equal(t, 32**want.Word+*want.Pos, field.Bit, "bit of %s", name)
	assert.Equal(t, want.Bits, field.Bits, "bits of %s", name)
	readable, err := s.Readable(name)
	require.NoError(t, err)
	assert.Equal(t, want.Readable, readable, "%s readable", name)
	writable, err := s.Writable(name)
	require.NoError(t, err)
	assert.Equal(t, want.Writeable, writable, "%s writable", name)
	checkValue(t, s, name, want)
}

func checkValue(t *testing.T, s efuse.State, name string, want summary) {
	t.Helper()
	if text, ok := want.Value.(string); ok && want.Bits > 64 {
		got, err := s.Bytes(name)
		require.NoError(t, err)
		digits := strings.ReplaceAll(strings.ReplaceAll(text, " ", ""), "?", "0")
		assert.Equal(t, digits, hex.EncodeToString(got), name)
		return
	}
	got, err := s.Value(name)
	require.NoError(t, err)
	if strings.HasPrefix(name, "KEY_PURPOSE_") {
		assert.Equal(t, want.Value, efuse.Purpose(got).String(), name)
		return
	}
	switch v := want.Value.(type) {
	case bool:
		assert.Equal(t, v, got == 1, name)
	case float64:
		if name == "ADC_VREF" {
			v -= 1100 // espefuse adds the nominal voltage
		}
		assert.EqualValues(t, v, got, name)
	case string:
		// A word for 0: nothing but keys, purposes and switches was burnt.
		assert.Zero(t, got, "%s: %s", name, v)
	default:
		assert.Fail(t, "unknown kind of value", "%s: %v", name, v)
	}
}

func unhex(tb testing.TB, text string) []byte {
	tb.Helper()
	b, err := hex.DecodeString(text)
	require.NoError(tb, err)
	return b
}

const (
	digest1 = "cd83cc02a291b2bcdfd40cde657aaacfb48e246f450ca3567ea5a8cfc9c72375"
	digest2 = "18c38fc2b24d7c12ee432ddb4a03d5d7b4c71c2d2244e7f597c37ea24a843326"
	hmacUp  = "cbb544752d3ffe3ca8650d302a967494cd89a3b42507e0558ad9f322d49f7a00"
)

func TestBurnsGiveTheRecordedDumps(t *testing.T) {
	hidden := bytes.Repeat([]byte{0xA5}, 32)
	steps := []struct {
		before, after string
		wish          func(b *efuse.Batch) error
	}{
		{"esp32_00_blank", "esp32_01_fe_key", func(b *efuse.Batch) error {
			return b.SetKey(1, efuse.PurposeFlashEncryption, hidden)
		}},
		{"esp32_01_fe_key", "esp32_02_sbv2_digest", func(b *efuse.Batch) error {
			return b.SetKey(2, efuse.PurposeSecureBootV2, unhex(t, digest1))
		}},
		{"esp32_02_sbv2_digest", "esp32_03_abs_done_1", func(b *efuse.Batch) error {
			return b.SetField("ABS_DONE_1", 1)
		}},
		{"esp32c3_00_blank", "esp32c3_01_sb_digests", func(b *efuse.Batch) error {
			if err := b.SetKey(0, efuse.PurposeSecureBootDigest0, unhex(t, digest1)); err != nil {
				return err
			}
			return b.SetKey(1, efuse.PurposeSecureBootDigest1, unhex(t, digest2))
		}},
		{"esp32c3_01_sb_digests", "esp32c3_02_flash_enc_key", func(b *efuse.Batch) error {
			return b.SetKey(3, efuse.PurposeXTSAES128, hidden)
		}},
		{"esp32c3_02_flash_enc_key", "esp32c3_03_ds_hmac", func(b *efuse.Batch) error {
			return b.SetKey(4, efuse.PurposeHMACDownDS, hidden)
		}},
		{"esp32c3_03_ds_hmac", "esp32c3_04_hmac_up_readable", func(b *efuse.Batch) error {
			return b.SetReadableKey(5, efuse.PurposeHMACUp, unhex(t, hmacUp))
		}},
		{"esp32c3_04_hmac_up_readable", "esp32c3_05_sb_en", func(b *efuse.Batch) error {
			return b.SetField("SECURE_BOOT_EN", 1)
		}},
	}
	for _, step := range steps {
		t.Run(step.after, func(t *testing.T) {
			b, err := efuse.NewBatch(chipOf(t, step.before))
			require.NoError(t, err)
			require.NoError(t, step.wish(b))
			got, err := recorded(t, step.before).Burn(b)
			require.NoError(t, err)
			assert.Equal(t, blocks(t, recorded(t, step.after)), blocks(t, got))
		})
	}
}

func TestVectorsFolderIsTheOneInTestdata(t *testing.T) {
	dir := os.Getenv("QUARKLINK_VECTORS")
	if dir == "" {
		t.Skip("QUARKLINK_VECTORS is not set")
	}
	files, err := os.ReadDir(filepath.Join(dir, "efuse"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, f := range files {
		want, err := os.ReadFile(filepath.Join(dir, "efuse", f.Name()))
		require.NoError(t, err)
		got, err := os.ReadFile(filepath.Join("testdata", f.Name()))
		require.NoError(t, err)
		assert.Equal(t, want, got, f.Name())
	}
}
