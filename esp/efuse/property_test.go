package efuse_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/quarklink-go/quarklink/esp/efuse"
)

// wish adds one random wish to a batch. What the chip does not have is left out.
func wish(t *rapid.T, chip efuse.Chip, b *efuse.Batch) {
	fields := chip.Fields()
	f := fields[rapid.IntRange(0, len(fields)-1).Draw(t, "field")]
	n := rapid.IntRange(0, 5).Draw(t, "key")
	switch rapid.IntRange(0, 4).Draw(t, "kind") {
	case 0:
		_ = b.SetField(f.Name, rapid.Uint64Range(0, 1<<min(f.Bits, 16)-1).Draw(t, "value"))
	case 1:
		_ = b.SetBytes(f.Name, rapid.SliceOfN(rapid.Byte(), f.Bits/8, f.Bits/8).Draw(t, "bytes"))
	case 2:
		purposes := []efuse.Purpose{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0x80, 0x81, 0x82, 0x83, 0x84}
		p := rapid.SampledFrom(purposes).Draw(t, "purpose")
		size := rapid.SampledFrom([]int{16, 24, 32}).Draw(t, "size")
		_ = b.SetKey(n, p, rapid.SliceOfN(rapid.Byte(), size, size).Draw(t, "bytes"))
	case 3:
		_ = b.WriteProtect(f.Name)
	case 4:
		_ = b.ReadProtect(n)
	}
}

// TestNoBitIsClearedAndNothingProtectedChanges holds a model of the silicon,
// with what software cannot see, beside the State: it executes the burns one by
// one as they come.
func TestNoBitIsClearedAndNothingProtectedChanges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		chip := rapid.SampledFrom(chips).Draw(t, "chip")
		s, err := efuse.Blank(chip)
		require.NoError(t, err)
		silicon := make([][]byte, len(chip.BlockNames()))
		for n := range silicon {
			silicon[n], err = s.Block(n)
			require.NoError(t, err)
		}
		for range rapid.IntRange(1, 12).Draw(t, "batches") {
			b, err := efuse.NewBatch(chip)
			require.NoError(t, err)
			for range rapid.IntRange(1, 4).Draw(t, "wishes") {
				wish(t, chip, b)
			}
			next, err := s.Burn(b)
			burns, refused := s.Burns(b)
			require.Equal(t, refused == nil, err == nil)
			if err != nil {
				require.True(t, next == s, "a refused batch changes nothing")
				require.Empty(t, burns)
				continue
			}
			for _, burn := range burns {
				checkBurn(t, s, silicon[burn.Block], burn)
				for i, v := range burn.Bits {
					silicon[burn.Block][i] |= v
				}
			}
			checkRead(t, next, silicon)
			again, err := next.Burn(b)
			require.True(t, again == next, "burning it again changes nothing: %v", err)
			s = next
		}
	})
}

// checkBurn: the burn sets no protected bit, none that is set, and no coded
// block twice.
func checkBurn(t *rapid.T, s efuse.State, silicon []byte, burn efuse.Burn) {
	for i, v := range burn.Bits {
		require.Zero(t, silicon[i]&v, "bit burnt twice in block %d", burn.Block)
		if burn.Block > 0 && s.Chip() != efuse.ESP32 {
			require.Zero(t, silicon[i], "coded block %d burnt twice", burn.Block)
		}
	}
	for _, f := range s.Chip().Fields() {
		if f.Block != burn.Block {
			continue
		}
		writable, err := s.Writable(f.Name)
		require.NoError(t, err)
		readable, err := s.Readable(f.Name)
		require.NoError(t, err)
		for i := f.Bit; i < f.Bit+f.Bits && !(writable && readable); i++ {
			require.Zero(t, burn.Bits[i/8]>>(i%8)&1, "protected %s changes", f.Name)
		}
	}
}

// checkRead: software reads what is in the silicon, or zeros where it is hidden.
func checkRead(t *rapid.T, s efuse.State, silicon [][]byte) {
	for n := range silicon {
		got, err := s.Block(n)
		require.NoError(t, err)
		for i, v := range got {
			require.Zero(t, v&^silicon[n][i], "block %d reads a bit that was never burnt", n)
		}
	}
	for _, f := range s.Chip().Fields() {
		readable, err := s.Readable(f.Name)
		require.NoError(t, err)
		b, err := s.Block(f.Block)
		require.NoError(t, err)
		for i := f.Bit; i < f.Bit+f.Bits && readable; i++ {
			require.Equal(t, silicon[f.Block][i/8]>>(i%8)&1, b[i/8]>>(i%8)&1, "%s lost a bit", f.Name)
		}
	}
}
