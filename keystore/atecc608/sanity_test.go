package atecc608_test

import (
	"encoding/hex"
	"io/fs"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/keystore/atecc608"
	"github.com/quarklink-go/quarklink/keystore/atecc608/atecctest"
)

// A configuration that would leave the chip useless for ever is refused, before
// anything is written, and by Provision too if it is smuggled into a plan.
func TestPlanRefusesAUselessChip(t *testing.T) {
	for name, test := range map[string]struct {
		change func(c *atecc608.Config)
		says   string
	}{
		"all slots zero":          {func(c *atecc608.Config) { clear(c[20:52]); clear(c[96:]) }, "no slot"},
		"no slot signs":           {func(c *atecc608.Config) { c[20], c[22], c[24] = 0x82, 0x82, 0x82 }, "no slot"},
		"no public key":           {func(c *atecc608.Config) { c[96], c[98], c[100] = 0x31, 0x31, 0x31 }, "no slot"},
		"no key can be made":      {func(c *atecc608.Config) { c[21], c[23], c[25] = 0, 0, 0 }, "no slot"},
		"every key needs another": {func(c *atecc608.Config) { c[96], c[98], c[100] = 0xb3, 0xb3, 0xb3 }, "no slot"},
		"counter 0 all zero":      {func(c *atecc608.Config) { clear(c[52:60]) }, "counters"},
		"counter 1 all ones": {
			func(c *atecc608.Config) { copy(c[60:], "\xff\xff\xff\xff\xff\xff\xff\xff") }, "counters",
		},
		"counter 0 not unary":       {func(c *atecc608.Config) { c[52] = 0xfd }, "counters"},
		"counter 0, halves apart":   {func(c *atecc608.Config) { c[57] = 1 }, "counters"},
		"byte 17":                   {func(c *atecc608.Config) { c[17] = 1 }, "byte 17"},
		"CountMatch bit 1":          {func(c *atecc608.Config) { c[18] = 2 }, "CountMatch"},
		"an unknown clock divider":  {func(c *atecc608.Config) { c[19] = 0x10 }, "divider"},
		"VolatileKeyPermission":     {func(c *atecc608.Config) { c[69] = 0x10 }, "VolatileKeyPermission"},
		"SecureBoot bit 2":          {func(c *atecc608.Config) { c[70] = 4 }, "SecureBoot"},
		"SecureBoot bit 7":          {func(c *atecc608.Config) { c[70] = 0x80 }, "SecureBoot"},
		"byte 75":                   {func(c *atecc608.Config) { c[75] = 1 }, "byte 75"},
		"byte 83":                   {func(c *atecc608.Config) { c[83] = 0x80 }, "byte 83"},
		"ChipOptions bit 4":         {func(c *atecc608.Config) { c[90] = 0x10 }, "ChipOptions"},
		"ChipOptions bit 7":         {func(c *atecc608.Config) { c[90] = 0x80 }, "ChipOptions"},
		"KeyConfig bit 13, slot 15": {func(c *atecc608.Config) { c[127] = 0x20 }, "slot 15"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, atecctest.Options{}, atecc608.Options{})
			want := withKeys(t, r.chip, 0)
			good, err := r.chip.Plan(t.Context(), want)
			require.NoError(t, err)
			test.change(&want)
			_, err = r.chip.Plan(t.Context(), want)
			require.ErrorIs(t, err, fs.ErrInvalid)
			assert.ErrorContains(t, err, test.says)
			good.Want = want
			assert.ErrorIs(t, r.chip.Provision(t.Context(), good), fs.ErrInvalid)
			assert.Equal(t, atecctest.BlankConfig(), configOf(t, r.model), "nothing is written")
		})
	}
}

// What Microchip's own tests configure, and counters that have counted, are
// accepted.
func TestPlanAcceptsWhatChipsHave(t *testing.T) {
	suite, err := hex.DecodeString("c000a100" + "af2fc4448720c4f48f0f0f0f9f8f8364c444c4640f0f0f0f0f0f0f0f0f0f0f0f" +
		"ffffffff00000000ffffffff00000000" + "ff8403bc0969760000000000000000000000000055550000")
	require.NoError(t, err)
	keys, err := hex.DecodeString("33001c0013001c003c003a101c0033001c001c00380030003c003c0032003000")
	require.NoError(t, err)
	counted := func(halves string) func(c *atecc608.Config) {
		return func(c *atecc608.Config) {
			b, err := hex.DecodeString(halves)
			require.NoError(t, err)
			copy(c[52:], b)
		}
	}
	for name, change := range map[string]func(c *atecc608.Config){
		"cryptoauthlib's tests": func(c *atecc608.Config) {
			copy(c[16:], suite[:68]) // to byte 83
			c[90], c[91] = 0x0e, 0x40
			copy(c[96:], keys)
		},
		"a counter at 15":        counted("0001ffff00000000"),
		"a counter at 16":        counted("0000ffff00000000"),
		"a counter at 17":        counted("00007fff00000000"),
		"a counter at 32":        counted("ffff000000010000"),
		"a counter at 2,097,151": counted("00000001ffffffff"),
	} {
		r := newRig(t, atecctest.Options{}, atecc608.Options{})
		want := withKeys(t, r.chip, 0)
		change(&want)
		_, err := r.chip.Plan(t.Context(), want)
		assert.NoError(t, err, name)
	}
}

// What is only dangerous or unusual is in the printed plan.
func TestPlanWarns(t *testing.T) {
	for says, change := range map[string]func(c *atecc608.Config){
		"TTL":                          func(c *atecc608.Config) { c[19] = 2 },
		"13 s":                         func(c *atecc608.Config) { c[19] = 4 },
		"clock is divided":             func(c *atecc608.Config) { c[19] = 0x28 },
		"CountMatch":                   func(c *atecc608.Config) { c[18] = 0xa1 },
		"UseLock":                      func(c *atecc608.Config) { c[68] = 0x0a },
		"VolatileKeyPermission":        func(c *atecc608.Config) { c[69] = 0x84 },
		"SecureBoot":                   func(c *atecc608.Config) { c[70] = 3 },
		"tests itself":                 func(c *atecc608.Config) { c[90] = 1 },
		"no public meaning":            func(c *atecc608.Config) { c[90] = 8 },
		"results of ECDH":              func(c *atecc608.Config) { c[91] = 1 },
		"slot 0: its key agrees":       func(c *atecc608.Config) { c[20] |= 4 },
		"slot 0: its key also signs":   func(c *atecc608.Config) { c[20] |= 2 },
		"slot 0: its uses are limited": func(c *atecc608.Config) { c[20] |= 0x20 },
		"slot 0: it is for a private key but not marked secret": func(c *atecc608.Config) { c[20] &^= 0x80 },
		"slot 0: anyone on the bus can replace its key until":   func(*atecc608.Config) {},
		"slot 0: anyone on the bus can replace its key, and":    func(c *atecc608.Config) { c[96] = 0x13 },
		"slot 0: no key can get into it":                        func(c *atecc608.Config) { c[21] = 0 },
		"slot 0: its key works only while":                      func(c *atecc608.Config) { c[97] = 0x10 },
		"slot 0: it is for a private key that this driver":      func(c *atecc608.Config) { c[20] = 0x80 },
		"slot 9: its key type 0":                                func(c *atecc608.Config) { c[96+18] = 0 },
	} {
		r := newRig(t, atecctest.Options{}, atecc608.Options{})
		want := withKeys(t, r.chip, 0)
		quiet, err := r.chip.Plan(t.Context(), want)
		require.NoError(t, err)
		change(&want)
		plan, err := r.chip.Plan(t.Context(), want)
		require.NoError(t, err, says)
		assert.Contains(t, plan.String(), "WARNING: ", says)
		assert.Contains(t, plan.String(), says)
		if want != quiet.Want {
			assert.NotContains(t, quiet.String(), says)
		}
	}
}

// Slots are for signing alone, unless more is asked of them.
func TestSlotsSignOnly(t *testing.T) {
	blank := atecc608.Config(atecctest.BlankConfig())
	for name, test := range map[string]struct {
		use                   atecc608.KeyUse
		slotConfig, keyConfig uint16
	}{
		"sign only":        {atecc608.KeyUse{}, 0x2081, 0x0033},
		"ECDH":             {atecc608.KeyUse{ECDH: true}, 0x2085, 0x0033},
		"always renewable": {atecc608.KeyUse{AlwaysRenewable: true}, 0x2081, 0x0013},
		"both":             {atecc608.KeyUse{ECDH: true, AlwaysRenewable: true}, 0x2085, 0x0013},
	} {
		config, err := blank.WithKeys(test.use, 3)
		require.NoError(t, err)
		assert.Equal(t, test.slotConfig, uint16(config.SlotConfig(3)), name)
		assert.Equal(t, test.keyConfig, uint16(config.KeyConfig(3)), name)
	}
	plain, err := blank.WithSigningKeys(3)
	require.NoError(t, err)
	same, err := blank.WithKeys(atecc608.KeyUse{}, 3)
	require.NoError(t, err)
	assert.Equal(t, same, plain, "WithSigningKeys is for signing only")
	for _, slot := range []int{-1, 8} {
		_, err = blank.WithKeys(atecc608.KeyUse{}, slot)
		assert.ErrorIs(t, err, fs.ErrInvalid)
	}
}

// Generate, then LockSlot: after that nobody can replace the identity. A slot
// that is empty is not locked, because no key could ever get into it.
func TestLockTheIdentity(t *testing.T) {
	ctx := t.Context()
	r := newRig(t, atecctest.Options{Config: provisioned()}, atecc608.Options{})
	require.ErrorIs(t, r.chip.LockSlot(ctx, 0), fs.ErrNotExist, "an empty slot")
	config := configOfChip(t, r.chip)
	require.False(t, config.SlotLocked(0))

	key := generate(t, r.chip.KeyStore(atecc608.Slots{}), keystore.Enrolment).Public()
	generate(t, r.chip.KeyStore(atecc608.Slots{Device: 1}), keystore.Device)
	require.NoError(t, r.chip.LockSlot(ctx, 0))
	genKey := func(slot byte) byte { // by anyone on the bus
		r.model.PowerCycle()
		r.model.Wake()
		r.clock.Advance(tWHI)
		frame := atecc608.Frame(0x40, 4, uint16(slot), nil)
		require.NoError(t, r.model.Tx(0x60, frame, nil))
		r.clock.Advance(atecctest.MaxTimes(0x40, 0))
		answer := make([]byte, 4)
		require.NoError(t, r.model.Tx(0x60, nil, answer))
		return answer[0]
	}
	assert.EqualValues(t, 4, genKey(0), "GenKey in the locked slot: a status")
	assert.EqualValues(t, 67, genKey(1), "GenKey in the open slot: a key")
	again, err := r.chip.PublicKey(ctx, 0)
	require.NoError(t, err)
	assert.True(t, again.Equal(key), "the identity is what it was")
}
