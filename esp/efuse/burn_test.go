package efuse_test

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/esp/efuse"
)

var chips = []efuse.Chip{
	efuse.ESP32, efuse.ESP32S2, efuse.ESP32C3, efuse.ESP32S3, efuse.ESP32C2, efuse.ESP32C6, efuse.ESP32H2,
}

func batch(tb testing.TB, chip efuse.Chip, wishes ...func(b *efuse.Batch) error) *efuse.Batch {
	tb.Helper()
	b, err := efuse.NewBatch(chip)
	require.NoError(tb, err)
	for _, wish := range wishes {
		require.NoError(tb, wish(b))
	}
	return b
}

func field(name string, v uint64) func(b *efuse.Batch) error {
	return func(b *efuse.Batch) error { return b.SetField(name, v) }
}

func key(n int, p efuse.Purpose, k []byte) func(b *efuse.Batch) error {
	return func(b *efuse.Batch) error { return b.SetKey(n, p, k) }
}

func protect(name string) func(b *efuse.Batch) error {
	return func(b *efuse.Batch) error { return b.WriteProtect(name) }
}

func hide(n int) func(b *efuse.Batch) error {
	return func(b *efuse.Batch) error { return b.ReadProtect(n) }
}

// after returns a blank chip on which the batches were burnt.
func after(tb testing.TB, chip efuse.Chip, batches ...*efuse.Batch) efuse.State {
	tb.Helper()
	s, err := efuse.Blank(chip)
	require.NoError(tb, err)
	for _, b := range batches {
		s, err = s.Burn(b)
		require.NoError(tb, err)
	}
	return s
}

// ascending is a key whose byte order shows.
func ascending(n int) []byte {
	k := make([]byte, n)
	for i := range k {
		k[i] = byte(i + 1)
	}
	return k
}

func reversed(k []byte) []byte {
	r := make([]byte, len(k))
	for i := range k {
		r[len(k)-1-i] = k[i]
	}
	return r
}

func TestRefused(t *testing.T) {
	c3, esp32, c2 := efuse.ESP32C3, efuse.ESP32, efuse.ESP32C2
	k := ascending(32)
	threeQuarters := scheme(t, 1)
	tests := []struct {
		name  string
		state efuse.State
		batch *efuse.Batch
		want  error
	}{
		{"batch of another chip", after(t, c3), batch(t, esp32), efuse.ErrChip},
		{"batch that was never made", after(t, c3), &efuse.Batch{}, efuse.ErrChip},
		{"value without a burnt bit", after(t, c3, batch(t, c3, field("SECURE_VERSION", 3))),
			batch(t, c3, field("SECURE_VERSION", 4)), efuse.ErrBurnt},
		{"two values in one batch", after(t, c3),
			batch(t, c3, field("SECURE_VERSION", 1), field("SECURE_VERSION", 3)), efuse.ErrBurnt},
		{"write-protected field", after(t, c3, batch(t, c3, protect("SECURE_BOOT_EN"))),
			batch(t, c3, field("SECURE_BOOT_EN", 1)), efuse.ErrProtected},
		{"field that shares its protection", after(t, c3, batch(t, c3, protect("DIS_DOWNLOAD_MODE"))),
			batch(t, c3, field("SECURE_VERSION", 1)), efuse.ErrProtected},
		{"read protection when RD_DIS is write-protected", after(t, c3, batch(t, c3, protect("RD_DIS"))),
			batch(t, c3, hide(0)), efuse.ErrProtected},
		{"hidden key when RD_DIS is write-protected", after(t, c3, batch(t, c3, protect("RD_DIS"))),
			batch(t, c3, key(0, efuse.PurposeHMACUp, k)), efuse.ErrProtected},
		{"write-protected block", after(t, c3, batch(t, c3, protect("BLOCK_USR_DATA"))),
			batch(t, c3, field("CUSTOM_MAC", 1)), efuse.ErrProtected},
		{"coded block a second time", after(t, c3, batch(t, c3, field("CUSTOM_MAC", 1))),
			batch(t, c3, field("CUSTOM_MAC", 3)), efuse.ErrUsed},
		{"key in a used block", after(t, c3, batch(t, c3, key(0, efuse.PurposeUser, k))),
			batch(t, c3, key(0, efuse.PurposeUser, k)), efuse.ErrUsed},
		{"key where only a purpose is set", after(t, c3, batch(t, c3, field("KEY_PURPOSE_0", 9))),
			batch(t, c3, key(0, efuse.PurposeSecureBootDigest0, k)), efuse.ErrUsed},
		{"key in a hidden block", after(t, c3, batch(t, c3, hide(0))),
			batch(t, c3, key(0, efuse.PurposeUser, k)), efuse.ErrUsed},
		{"bytes in a hidden block", after(t, c3, batch(t, c3, hide(0))),
			batch(t, c3, func(b *efuse.Batch) error { return b.SetBytes("BLOCK_KEY0", k) }), efuse.ErrProtected},
		{"second half of the C2's block",
			after(t, c2, batch(t, c2, key(0, efuse.PurposeXTSAES128Derived, ascending(16)))),
			batch(t, c2, key(0, efuse.PurposeSecureBootDigestC, ascending(16))), efuse.ErrUsed},
		{"ESP32: WR_DIS when it is write-protected", after(t, esp32, batch(t, esp32, protect("WR_DIS"))),
			batch(t, esp32, protect("ABS_DONE_1")), efuse.ErrProtected},
		{"ESP32: key in a used block", after(t, esp32, batch(t, esp32, field("SECURE_VERSION", 1))),
			batch(t, esp32, key(3, efuse.PurposeUser, k)), efuse.ErrUsed},
		{"ESP32: another coding scheme", after(t, esp32), batch(t, esp32, field("CODING_SCHEME", 1)),
			efuse.ErrCodingScheme},
		{"ESP32: 24 bytes with NONE", after(t, esp32),
			batch(t, esp32, key(1, efuse.PurposeFlashEncryption, ascending(24))), efuse.ErrCodingScheme},
		{"ESP32: V2 digest with 3/4", threeQuarters, batch(t, esp32, key(2, efuse.PurposeSecureBootV2, k)),
			efuse.ErrCodingScheme},
		{"ESP32: ABS_DONE_1 with 3/4", threeQuarters, batch(t, esp32, field("ABS_DONE_1", 1)),
			efuse.ErrCodingScheme},
		{"ESP32: 32 bytes with 3/4", threeQuarters, batch(t, esp32, key(1, efuse.PurposeFlashEncryption, k)),
			efuse.ErrCodingScheme},
		{"ESP32: bits after 24 bytes with 3/4", threeQuarters,
			batch(t, esp32, func(b *efuse.Batch) error { return b.SetBytes("BLOCK3", k) }), efuse.ErrCodingScheme},
		{"ESP32: 32 bytes with 3/4, the last zero", threeQuarters,
			batch(t, esp32, key(3, efuse.PurposeUser, append(ascending(24), make([]byte, 8)...))), efuse.ErrCodingScheme},
		{"ESP32: coding scheme REPEAT", scheme(t, 2), batch(t, esp32, key(3, efuse.PurposeUser, ascending(24))),
			efuse.ErrCodingScheme},
		{"ESP32: hidden field", after(t, esp32, batch(t, esp32, field("RD_DIS", 8))),
			batch(t, esp32, field("FLASH_CRYPT_CONFIG", 15)), efuse.ErrProtected},
		{"ESP32: Secure Boot V2 with a hidden coding scheme", after(t, esp32, batch(t, esp32, field("RD_DIS", 8))),
			batch(t, esp32, field("ABS_DONE_1", 1)), efuse.ErrCodingScheme},
		{"ESP32: coded block a second time", withBlock3(t, 1), batch(t, esp32, field("SECURE_VERSION", 1)), efuse.ErrUsed},
		{"ESP32: hidden coding scheme", after(t, esp32, batch(t, esp32, field("RD_DIS", 8))),
			batch(t, esp32, key(3, efuse.PurposeUser, k)), efuse.ErrCodingScheme},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := test.state.Burn(test.batch)
			require.ErrorIs(t, err, test.want)
			assert.Equal(t, blocks(t, test.state), blocks(t, got), "nothing is burnt")
		})
	}
}

// scheme returns a blank ESP32 that left the factory with a coding scheme.
func scheme(tb testing.TB, scheme byte) efuse.State {
	tb.Helper()
	raw := make([]byte, 128)
	raw[24] = scheme
	s, err := efuse.ParseRaw(efuse.ESP32, raw)
	require.NoError(tb, err)
	return s
}

// withBlock3 returns an ESP32 of a coding scheme with a bit in BLOCK3.
func withBlock3(tb testing.TB, scheme byte) efuse.State {
	tb.Helper()
	raw := make([]byte, 128)
	raw[24], raw[96] = scheme, 1
	s, err := efuse.ParseRaw(efuse.ESP32, raw)
	require.NoError(tb, err)
	return s
}

func TestESP32BlockThatIsNotCodedTakesMoreBits(t *testing.T) {
	s, err := withBlock3(t, 0).Burn(batch(t, efuse.ESP32, field("SECURE_VERSION", 1)))
	require.NoError(t, err)
	s, err = s.Burn(batch(t, efuse.ESP32, field("SECURE_VERSION", 3)))
	require.NoError(t, err)
	got, err := s.Value("SECURE_VERSION")
	require.NoError(t, err)
	assert.EqualValues(t, 3, got)
}

func TestOneImpossibleWishRefusesTheBatch(t *testing.T) {
	s := after(t, efuse.ESP32C3, batch(t, efuse.ESP32C3, protect("SECURE_BOOT_EN")))
	got, err := s.Burn(batch(t, efuse.ESP32C3, field("SECURE_VERSION", 1), field("SECURE_BOOT_EN", 1)))
	require.ErrorIs(t, err, efuse.ErrProtected)
	assert.Equal(t, blocks(t, s), blocks(t, got))
}

func TestWishThatIsFulfilled(t *testing.T) {
	b := batch(t, efuse.ESP32C3, field("SECURE_BOOT_EN", 1), protect("SECURE_BOOT_EN"), field("CUSTOM_MAC", 5))
	s := after(t, efuse.ESP32C3, b)
	burns, err := s.Burns(b)
	require.NoError(t, err)
	assert.Empty(t, burns)
}

func TestBatchRefusesWhatTheChipDoesNotHave(t *testing.T) {
	k := ascending(32)
	tests := []struct {
		name string
		chip efuse.Chip
		wish func(b *efuse.Batch) error
		want error
	}{
		{"unknown field", efuse.ESP32C3, field("ABS_DONE_1", 1), efuse.ErrField},
		{"value too long", efuse.ESP32C3, field("SECURE_BOOT_EN", 2), efuse.ErrLength},
		{"number for a block", efuse.ESP32C3, field("BLOCK_KEY0", 1), efuse.ErrLength},
		{"short bytes", efuse.ESP32C3,
			func(b *efuse.Batch) error { return b.SetBytes("BLOCK_KEY0", k[1:]) }, efuse.ErrLength},
		{"reserved purpose", efuse.ESP32C3, field("KEY_PURPOSE_0", 13), efuse.ErrPurpose},
		{"AES-256 on the C3", efuse.ESP32C3, key(0, efuse.PurposeXTSAES256Key1, k), efuse.ErrPurpose},
		{"ECDSA on the C6", efuse.ESP32C6, key(0, efuse.PurposeECDSA, k), efuse.ErrPurpose},
		{"key 6", efuse.ESP32C3, key(6, efuse.PurposeUser, k), efuse.ErrField},
		{"key -1", efuse.ESP32C3, key(-1, efuse.PurposeUser, k), efuse.ErrField},
		{"key 1 of the C2", efuse.ESP32C2, key(1, efuse.PurposeUser, k), efuse.ErrField},
		{"ESP32: key in BLOCK0", efuse.ESP32, key(0, efuse.PurposeUser, k), efuse.ErrField},
		{"ESP32: flash key in BLOCK2", efuse.ESP32, key(2, efuse.PurposeFlashEncryption, k), efuse.ErrPurpose},
		{"ESP32: V2 digest in BLOCK1", efuse.ESP32, key(1, efuse.PurposeSecureBootV2, k), efuse.ErrPurpose},
		{"ESP32: short V2 digest", efuse.ESP32, key(2, efuse.PurposeSecureBootV2, k[:24]), efuse.ErrLength},
		{"short key", efuse.ESP32C3, key(0, efuse.PurposeHMACUp, k[1:]), efuse.ErrLength},
		{"protection that does not exist", efuse.ESP32C3, protect("WR_DIS"), efuse.ErrField},
		{"read protection of key 6", efuse.ESP32C3, hide(6), efuse.ErrField},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			b := batch(t, test.chip)
			require.ErrorIs(t, test.wish(b), test.want)
			burns, err := after(t, test.chip).Burns(b)
			require.NoError(t, err)
			assert.Empty(t, burns, "nothing of the wish is kept")
		})
	}
}

func TestByteOrderAndProtectionOfKeys(t *testing.T) {
	tests := []struct {
		chip             efuse.Chip
		n                int
		purpose          efuse.Purpose
		reverse, private bool
	}{
		{efuse.ESP32, 1, efuse.PurposeFlashEncryption, true, true},
		{efuse.ESP32, 2, efuse.PurposeSecureBootV1, true, true},
		{efuse.ESP32, 2, efuse.PurposeSecureBootV2, false, false},
		{efuse.ESP32, 3, efuse.PurposeUser, false, false},
		{efuse.ESP32S2, 0, efuse.PurposeXTSAES256Key1, true, true},
		{efuse.ESP32S3, 5, efuse.PurposeXTSAES256Key2, true, true},
		{efuse.ESP32C3, 0, efuse.PurposeXTSAES128, true, true},
		{efuse.ESP32C3, 1, efuse.PurposeHMACDown, false, true},
		{efuse.ESP32C3, 2, efuse.PurposeHMACDownJTAG, false, true},
		{efuse.ESP32C6, 3, efuse.PurposeHMACDownDS, false, true},
		{efuse.ESP32C6, 4, efuse.PurposeHMACUp, false, true},
		{efuse.ESP32C3, 5, efuse.PurposeSecureBootDigest2, false, false},
		{efuse.ESP32H2, 0, efuse.PurposeECDSA, true, true},
		{efuse.ESP32C2, 0, efuse.PurposeXTSAES128, true, true},
	}
	for _, test := range tests {
		t.Run(fmt.Sprintf("%v %v", test.chip, test.purpose), func(t *testing.T) {
			blank := after(t, test.chip)
			b := batch(t, test.chip, key(test.n, test.purpose, ascending(32)))
			burns, err := blank.Burns(b)
			require.NoError(t, err)
			require.Len(t, burns, 2)
			want := ascending(32)
			if test.reverse {
				want = reversed(want)
			}
			assert.NotZero(t, burns[0].Block)
			assert.Equal(t, want, burns[0].Bits, "the key comes first")
			assert.Zero(t, burns[1].Block, "protection comes last")
			s, err := blank.Burn(b)
			require.NoError(t, err)
			got, err := s.Key(test.n)
			require.NoError(t, err)
			assert.Equal(t, test.private, got.ReadProtected)
			assert.True(t, got.WriteProtected)
			assert.False(t, got.Unused)
			if test.private {
				want = make([]byte, 32)
			}
			block, err := s.Block(burns[0].Block)
			require.NoError(t, err)
			assert.Equal(t, want, block, "as software reads it")
		})
	}
}

func TestC2HasTwoKeysInOneBlock(t *testing.T) {
	c2, digest := efuse.ESP32C2, bytes.Repeat([]byte{0xD1}, 16)
	b := batch(t, c2, key(0, efuse.PurposeXTSAES128Derived, ascending(16)), key(0, efuse.PurposeSecureBootDigestC, digest))
	burns, err := after(t, c2).Burns(b)
	require.NoError(t, err)
	require.NotEmpty(t, burns)
	assert.Equal(t, append(reversed(ascending(16)), digest...), burns[0].Bits)
	block, err := after(t, c2, b).Block(3)
	require.NoError(t, err)
	assert.Equal(t, append(make([]byte, 16), digest...), block, "the digest stays readable, the key does not")
	readable, err := after(t, c2, b).Value("RD_DIS")
	require.NoError(t, err)
	assert.EqualValues(t, 1, readable)
}

func TestESP32ThreeQuartersTakes24Bytes(t *testing.T) {
	b := batch(t, efuse.ESP32, key(1, efuse.PurposeFlashEncryption, ascending(24)))
	burns, err := scheme(t, 1).Burns(b)
	require.NoError(t, err)
	require.NotEmpty(t, burns)
	assert.Equal(t, append(reversed(ascending(24)), make([]byte, 8)...), burns[0].Bits)
}

func TestESP32SchemeThreeIsNone(t *testing.T) {
	b := batch(t, efuse.ESP32, key(2, efuse.PurposeSecureBootV2, ascending(32)), field("ABS_DONE_1", 1))
	s, err := scheme(t, 3).Burn(b)
	require.NoError(t, err)
	got, err := s.Bytes("BLOCK2")
	require.NoError(t, err)
	assert.Equal(t, ascending(32), got)
}

func TestTablesHoldTogether(t *testing.T) {
	for _, chip := range chips {
		t.Run(chip.String(), func(t *testing.T) {
			names := map[string]bool{}
			for _, f := range chip.Fields() {
				assert.False(t, names[f.Name], "%s is there twice", f.Name)
				names[f.Name] = true
				b, err := after(t, chip).Block(f.Block)
				require.NoError(t, err)
				assert.LessOrEqual(t, f.Bit+f.Bits, 8*len(b), f.Name)
				assert.Positive(t, f.Bits, f.Name)
			}
			overlaps(t, chip)
		})
	}
}

// overlaps checks that no two fields of BLOCK0 share a bit.
func overlaps(t *testing.T, chip efuse.Chip) {
	t.Helper()
	owner := map[int]string{}
	for _, f := range chip.Fields() {
		for i := f.Bit; f.Block == 0 && i < f.Bit+f.Bits; i++ {
			assert.Empty(t, owner[i], "%s has a bit of it", f.Name)
			owner[i] = f.Name
		}
	}
}

func TestNothingPrintsAKey(t *testing.T) {
	k := bytes.Repeat([]byte{0xAB}, 32)
	b := batch(t, efuse.ESP32C3, key(0, efuse.PurposeHMACUp, k))
	burns, err := after(t, efuse.ESP32C3).Burns(b)
	require.NoError(t, err)
	s := after(t, efuse.ESP32C3, batch(t, efuse.ESP32C3, key(0, efuse.PurposeUser, k)))
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
		text := fmt.Sprintf(verb+verb+verb, b, burns, s)
		assert.NotContains(t, text, "abab", verb)
		assert.NotContains(t, text, "171", verb)
		assert.NotContains(t, text, "0xab", verb)
	}
}
