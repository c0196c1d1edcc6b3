package main

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/esp/efuse"
)

func TestSecurityFieldsAreESPIDFs(t *testing.T) {
	files, err := filepath.Glob("testdata/*.csv")
	require.NoError(t, err)
	require.Len(t, files, 7, "one for each chip")
	for _, file := range files {
		chip := strings.TrimSuffix(filepath.Base(file), ".csv")
		t.Run(chip, func(t *testing.T) {
			var out bytes.Buffer
			ok, err := run(chip, file, &out)
			require.NoError(t, err)
			assert.True(t, ok, out.String())
		})
	}
}

func TestDifferencesAreFound(t *testing.T) {
	const csv = `
# comment
A, EFUSE_BLK0, 8, 4, [B C] text
,  EFUSE_BLK0, 0, 4, text
WR_DIS.A, EFUSE_BLK0, 3, 1, [WR_DIS.B]
`
	table, err := read(strings.NewReader(csv))
	require.NoError(t, err)
	for name, test := range map[string]struct {
		field       efuse.Field
		differences int
		absent      int
	}{
		"equal":            {efuse.Field{Name: "A", Bits: 12, WrDis: 3}, 0, 0},
		"equal by alias":   {efuse.Field{Name: "B", Bits: 12, WrDis: 3}, 0, 0},
		"other bit":        {efuse.Field{Name: "A", Bit: 1, Bits: 12, WrDis: 3}, 1, 0},
		"other length":     {efuse.Field{Name: "A", Bits: 11, WrDis: 3}, 1, 0},
		"other block":      {efuse.Field{Name: "A", Block: 1, Bits: 12, WrDis: 3}, 1, 0},
		"other protection": {efuse.Field{Name: "B", Bits: 12, WrDis: 4}, 1, 0},
		"absent":           {efuse.Field{Name: "D", Bits: 12}, 0, 1},
	} {
		differences, absent := compare([]efuse.Field{test.field}, table)
		assert.Len(t, differences, test.differences, name)
		assert.Len(t, absent, test.absent, name)
	}
}

func TestNoTable(t *testing.T) {
	for _, text := range []string{"A, EFUSE_BLK0, 1", "A, BLK0, 1, 1", "A, EFUSE_BLK0, x, 1", ", EFUSE_BLK0, 1, 1"} {
		_, err := read(strings.NewReader(text))
		assert.Error(t, err, text)
	}
	_, err := run("esp33", "testdata/esp32.csv", &bytes.Buffer{})
	require.ErrorIs(t, err, efuse.ErrChip)
}
