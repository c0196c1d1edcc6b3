package atecc608_test

import (
	"context"
	"crypto"
	"errors"
	"io/fs"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/keystore/atecc608"
	"github.com/quarklink-go/quarklink/keystore/atecc608/atecctest"
	"github.com/quarklink-go/quarklink/keystore/atecc608/goecdsa"
)

// cryptoauthlib takes seven transactions to open a chip that is never busy.
func TestOpenReadsOnlyWhatItNeeds(t *testing.T) {
	for name, disturb := range map[string]func(*atecctest.Chip, *atecctest.Clock){
		"asleep": func(*atecctest.Chip, *atecctest.Clock) {},
		"awake":  func(c *atecctest.Chip, clock *atecctest.Clock) { c.Wake(); clock.Advance(tWHI) },
	} {
		clock := new(atecctest.Clock)
		model := atecctest.New(atecctest.Options{Times: atecctest.NeverBusy})
		model.SetClock(clock.Now)
		disturb(model, clock)
		_, err := atecc608.Open(t.Context(), model, atecc608.Options{Clock: clock})
		require.NoError(t, err)
		assert.LessOrEqual(t, model.Stats().Transactions, 6, name)
	}
}

// The configuration is read when it is first asked for, and once.
func TestConfigIsReadOnce(t *testing.T) {
	r := newRig(t, atecctest.Options{Config: provisioned()}, atecc608.Options{})
	first := configOfChip(t, r.chip)
	assert.Equal(t, provisioned()[16:], first[16:])
	before := r.model.Stats()
	assert.Equal(t, first, configOfChip(t, r.chip))
	assert.Equal(t, before, r.model.Stats(), "no transactions")
}

// device is something that is no ATECC608: it acknowledges all that is written
// to its address, and answers with bytes of its own.
type device struct {
	address uint16
	answer  byte
	writes  int
}

func (d *device) Tx(addr uint16, w, r []byte) error {
	if addr != d.address {
		return atecctest.ErrNACK
	}
	if len(w) > 0 {
		d.writes++
	}
	for i := range r {
		r[i] = d.answer
	}
	return nil
}

// both puts a device beside a chip.
type both struct {
	*device
	chip *atecctest.Chip
}

func (b both) Tx(addr uint16, w, r []byte) error {
	if addr == b.device.address {
		return b.device.Tx(addr, w, r)
	}
	return b.chip.Tx(addr, w, r)
}

// A foreign device is told from a chip before much is written to it: each write
// may do who knows what there.
func TestSomethingElseAnswers(t *testing.T) {
	const most = 8
	for _, answer := range []byte{0x00, 0x04, 0x42, 0xff} {
		clock := new(atecctest.Clock)
		other := &device{address: 0x60, answer: answer}
		_, err := atecc608.Open(t.Context(), other, atecc608.Options{Clock: clock})
		require.ErrorIs(t, err, atecc608.ErrOtherDevice, "answers %02x", answer)
		assert.ErrorContains(t, err, "something else answers at 0x60")
		assert.NotErrorIs(t, err, atecc608.ErrBusSpeed)
		assert.LessOrEqual(t, other.writes, most, "writes to it")

		config := provisioned(func(c *[128]byte) { c[16] = 0x6a })
		model := atecctest.New(atecctest.Options{Config: config})
		model.SetClock(clock.Now)
		other.writes = 0
		_, err = atecc608.Open(t.Context(), both{other, model}, atecc608.Options{Clock: clock})
		assert.ErrorIs(t, err, atecc608.ErrAddress, "with the chip at another address")
		assert.LessOrEqual(t, other.writes, most, "writes to it")
	}
}

// A bad wire is no other device: a chip whose first answers arrive damaged is
// found all the same.
func TestDamagedAnswersAreNoOtherDevice(t *testing.T) {
	clock := new(atecctest.Clock)
	model := atecctest.New(atecctest.Options{})
	model.SetClock(clock.Now)
	damaged := 0
	model.SetFaults(func(tr atecctest.Transaction) atecctest.Fault {
		if tr.Read > 0 && damaged < 3 {
			damaged++
			return atecctest.BadCRC
		}
		return atecctest.NoFault
	})
	_, err := atecc608.Open(t.Context(), model, atecc608.Options{Clock: clock})
	assert.NoError(t, err)
	assert.Equal(t, 3, damaged)
}

// A chip that says that its self test fails is a chip.
func TestBrokenChipIsNoOtherDevice(t *testing.T) {
	clock := new(atecctest.Clock)
	model := atecctest.New(atecctest.Options{})
	model.SetClock(clock.Now)
	model.SetFaults(func(atecctest.Transaction) atecctest.Fault { return atecctest.SelfTestFailed })
	_, err := atecc608.Open(t.Context(), model, atecc608.Options{Clock: clock})
	assert.ErrorIs(t, err, atecc608.StatusSelfTest)
	assert.NotErrorIs(t, err, atecc608.ErrOtherDevice)
}

// A latched error of the health test is cleared by sleep, not by idle.
func TestLatchedHealthTest(t *testing.T) {
	r := newRig(t, atecctest.Options{Config: provisioned()}, atecc608.Options{})
	once := true
	r.model.SetFaults(func(tr atecctest.Transaction) atecctest.Fault {
		if once && tr.Opcode != 0 {
			once = false
			return atecctest.HealthTestFailed
		}
		return atecctest.NoFault
	})
	_, err := r.chip.Counter(t.Context(), 0)
	assert.NoError(t, err)

	r.model.SetFaults(func(tr atecctest.Transaction) atecctest.Fault { return atecctest.HealthTestFailed })
	_, err = r.chip.Counter(t.Context(), 0)
	assert.ErrorIs(t, err, atecc608.StatusRandomness)
}

// The clock divider that provisioning writes is known from then on: signing with
// it takes longer than the watchdog leaves after a Nonce.
func TestDividerIsReadAgainAfterProvisioning(t *testing.T) {
	ctx := t.Context()
	r := newRig(t, atecctest.Options{}, atecc608.Options{})
	want := withKeys(t, r.chip, 0)
	want[19] = 0x68
	plan, err := r.chip.Plan(ctx, want)
	require.NoError(t, err)
	require.NoError(t, r.chip.Provision(ctx, plan))
	before := r.model.Stats()
	_, err = r.chip.GenerateKey(ctx, 0) // 653 ms, after two short commands
	require.NoError(t, err)
	polls := r.model.Stats().Sub(before)
	assert.Less(t, polls.Transactions, 60, "transactions of a key, when its time is known")
	signer, err := r.chip.Signer(ctx, 0)
	require.NoError(t, err)
	before = r.model.Stats()
	_, err = signer.Sign(nil, make([]byte, 32), crypto.SHA256)
	require.NoError(t, err)
	assert.Equal(t, 2, r.model.Stats().Sub(before).Pulses, "the chip passes through idle between Nonce and Sign")
}

// The lock of other processes is taken once a call, and given back whatever
// happens.
func TestLockIsTakenAroundEachCall(t *testing.T) {
	ctx := t.Context()
	held, taken := 0, 0
	refuse := errors.New("no such file")
	var err error
	lock := func(context.Context) (func(), error) {
		if err != nil {
			return nil, err
		}
		held++
		taken++
		return func() { held-- }, nil
	}
	clock := new(atecctest.Clock)
	model := atecctest.New(atecctest.Options{Config: provisioned()})
	model.SetClock(clock.Now)
	bus := busFunc(func(addr uint16, w, r []byte) error {
		assert.Equal(t, 1, held, "a transaction outside the lock")
		return model.Tx(addr, w, r)
	})
	chip, openErr := atecc608.Open(ctx, bus, atecc608.Options{Clock: clock, Lock: lock, ECDSA: goecdsa.P256{}})
	require.NoError(t, openErr)
	_, keyErr := chip.PublicKey(ctx, 0)
	require.ErrorIs(t, keyErr, fs.ErrNotExist)
	// Another process makes a key just now: it must not be overwritten.
	first, keyErr := openRaw(t, model, clock).GenerateKey(ctx, 0)
	require.NoError(t, keyErr)
	_, keyErr = chip.GenerateKey(ctx, 0)
	assert.ErrorIs(t, keyErr, fs.ErrExist)
	again, keyErr := chip.PublicKey(ctx, 0)
	require.NoError(t, keyErr)
	assert.Equal(t, first, again)
	assert.Equal(t, 4, taken)
	assert.Zero(t, held)
	err = refuse
	_, keyErr = chip.PublicKey(ctx, 0)
	assert.ErrorIs(t, keyErr, refuse)
}

type busFunc func(addr uint16, w, r []byte) error

func (f busFunc) Tx(addr uint16, w, r []byte) error { return f(addr, w, r) }

// openRaw opens the chip as another process would.
func openRaw(t testing.TB, bus atecc608.Bus, clock atecc608.Clock) *atecc608.Chip {
	t.Helper()
	chip, err := atecc608.Open(t.Context(), bus, atecc608.Options{Clock: clock})
	require.NoError(t, err)
	return chip
}
