package secureboot_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/esp/image"
	"github.com/quarklink-go/quarklink/esp/secureboot"
)

// The verdict is that of bootloader_common_check_chip_validity.
func TestChipRevision(t *testing.T) {
	key := rsaKey(t)
	for _, test := range []struct {
		name     string
		low      uint16
		high     uint16
		revision uint16
		ignore   bool
		fits     bool
	}{
		{"any", 0, 0, 0, false, true},
		{"any, written as 65535", 0, 65535, 999, false, true},
		{"v0.0 is a revision", 1, 65535, 0, false, false},
		{"lowest", 3, 199, 3, false, true},
		{"below lowest", 3, 199, 2, false, false},
		{"highest", 3, 199, 199, false, true},
		{"above highest", 3, 199, 200, false, false},
		{"above highest, eFuse set", 3, 199, 200, true, true},
		{"below lowest, eFuse set", 3, 199, 2, true, false},
		{"major counts 100", 100, 199, 99, false, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := image.NewHeader(image.ESP32C3)
			h.MinRevision, h.MaxRevision = test.low, test.high
			file := sign(t, build(t, h, image.App{}), key)
			v := secureboot.Verifier{
				Chip: image.ESP32C3, Schemes: schemes, Trusted: []secureboot.Digest{digestOf(t, key)},
				Revision: &test.revision, IgnoreMaxRevision: test.ignore,
			}
			requireRevision(t, verify(v, file), test.fits)

			v.Revision = nil
			require.NoError(t, verify(v, file), "an unknown revision is not judged")
		})
	}
}

// The verdict is that of bootloader_common_check_efuse_blk_validity.
func TestEFuseBlockRevision(t *testing.T) {
	key := rsaKey(t)
	for _, test := range []struct {
		name     string
		chip     image.Chip
		low      uint16
		high     uint16
		revision uint16
		ignore   bool
		fits     bool
	}{
		{"any", image.ESP32C3, 0, 0, 0, false, true},
		{"any, written as 65535", image.ESP32C3, 0, 65535, 999, false, true},
		{"v0.0 is a revision", image.ESP32C3, 1, 99, 0, false, false},
		{"lowest", image.ESP32C3, 3, 99, 3, false, true},
		{"highest", image.ESP32C3, 3, 99, 99, false, true},
		{"above highest", image.ESP32C3, 3, 99, 100, false, false},
		{"above highest, eFuse set", image.ESP32C3, 3, 99, 100, true, true},
		{"below lowest, eFuse set", image.ESP32C3, 3, 99, 2, true, false},
		{"ESP32 has none", image.ESP32, 3, 99, 0, false, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			app := image.App{MinEFuseBlockRevision: test.low, MaxEFuseBlockRevision: test.high}
			file := sign(t, build(t, image.NewHeader(test.chip), app), key)
			v := secureboot.Verifier{
				Chip: test.chip, Schemes: schemes, Trusted: []secureboot.Digest{digestOf(t, key)},
				EFuseBlockRevision: &test.revision, IgnoreMaxEFuseBlockRevision: test.ignore,
			}
			requireRevision(t, verify(v, file), test.fits)

			v.EFuseBlockRevision = nil
			require.NoError(t, verify(v, file), "an unknown revision is not judged")
		})
	}
}

// The ESP32's revisions before v3.0 are refused by name, whatever the image.
func TestOldESP32HasNoSecureBootV2(t *testing.T) {
	key := rsaKey(t)
	file := sign(t, minimal(t, image.ESP32, image.App{}), key)
	s2 := sign(t, minimal(t, image.ESP32S2, image.App{}), key)
	trusted := []secureboot.Digest{digestOf(t, key)}
	for _, revision := range []uint16{0, 1, 100, 299} {
		v := secureboot.Verifier{Schemes: schemes, Trusted: trusted, Revision: &revision}
		require.ErrorIs(t, verify(v, file), secureboot.ErrNoSecureBootV2)
		v.Chip = image.ESP32S2
		require.NoError(t, verify(v, s2), "another chip's revisions count differently")
	}
	first := uint16(300)
	require.NoError(t, verify(secureboot.Verifier{Schemes: schemes, Trusted: trusted, Revision: &first}, file))
	require.NoError(t, verify(secureboot.Verifier{Schemes: schemes, Trusted: trusted}, file))
}

func requireRevision(t *testing.T, err error, fits bool) {
	t.Helper()
	if fits {
		require.NoError(t, err)
		return
	}
	require.ErrorIs(t, err, secureboot.ErrImage)
	require.ErrorIs(t, err, image.ErrRevision)
	assert.Contains(t, err.Error(), "this one is v")
}

// build makes an image of one segment.
func build(tb testing.TB, h image.Header, app image.App) []byte {
	tb.Helper()
	first, err := app.MarshalBinary()
	require.NoError(tb, err)
	b := image.Builder{Header: h}
	b.Add(0x3FC80000, first)
	img, err := b.Bytes()
	require.NoError(tb, err)
	return img
}
