package atecc608_test

import (
	"bytes"
	"errors"
	"io/fs"
	"testing"
	"time"

	"github.com/quarklink-go/quarklink/keystore/atecc608"
	"github.com/quarklink-go/quarklink/keystore/atecc608/atecctest"
)

// What would lose a chip is refused before anything is written.
func TestPlanRefuses(t *testing.T) {
	ctx := t.Context()
	for name, change := range map[string]func(*atecc608.Config){
		"another address":            func(c *atecc608.Config) { c[16] = 0x6a },
		"the address not doubled":    func(c *atecc608.Config) { c[16] = 0x60 },
		"an address by UserExtraAdd": func(c *atecc608.Config) { c[85] = 0x6a },
		"UserExtra":                  func(c *atecc608.Config) { c[84] = 1 },
		"slots locked":               func(c *atecc608.Config) { c[88] = 0xfe },
	} {
		r := newRig(t, atecctest.Options{}, atecc608.Options{})
		want := withKeys(t, r.chip, 0)
		change(&want)
		if _, err := r.chip.Plan(ctx, want); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
		good, err := r.chip.Plan(ctx, withKeys(t, r.chip, 0))
		if err != nil {
			t.Fatal(err)
		}
		good.Want = want // changed after it was made
		if err := r.chip.Provision(ctx, good); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("%s, smuggled in: %v", name, err)
		}
		if config := configOf(t, r.model); config != atecctest.BlankConfig() {
			t.Errorf("%s: the chip has changed", name)
		}
	}

	r := newRig(t, atecctest.Options{Config: provisioned()}, atecc608.Options{})
	if _, err := r.chip.Plan(ctx, withKeys(t, r.chip, 5)); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("a locked chip with another configuration: %v", err)
	}
	if _, err := r.chip.Increment(ctx, 0); err != nil {
		t.Fatal(err)
	}
	if plan, err := r.chip.Plan(ctx, configOfChip(t, r.chip)); err != nil || !plan.Done() {
		t.Errorf("a locked chip that has counted: %v", err)
	}
	other := newRig(t, atecctest.Options{}, atecc608.Options{})
	plan, err := other.chip.Plan(ctx, withKeys(t, other.chip, 0))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.chip.Provision(ctx, plan); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("another chip's plan: %v", err)
	}
	if err := r.chip.Provision(ctx, nil); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("no plan: %v", err)
	}
	other.model.Configure(func(c *[128]byte) { c[30] ^= 1 })
	if err := other.chip.Provision(ctx, plan); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("a chip that has changed since: %v", err)
	}
	if _, err := configOfChip(t, r.chip).WithSigningKeys(8); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("slot 8: %v", err)
	}
}

func configOf(t *testing.T, model *atecctest.Chip) (config [128]byte) {
	t.Helper()
	model.Configure(func(c *[128]byte) { config = *c })
	return config
}

// meddler changes the configuration just before it is locked.
type meddler struct{ *atecctest.Chip }

func (m meddler) Tx(addr uint16, w, r []byte) error {
	if len(w) > 3 && w[0] == 3 && w[2] == 0x17 {
		m.Configure(func(c *[128]byte) { c[40] ^= 1 })
	}
	return m.Chip.Tx(addr, w, r)
}

// The CRC that is sent with the lock makes the chip refuse to lock anything else.
func TestLockCRC(t *testing.T) {
	ctx := t.Context()
	clock := new(atecctest.Clock)
	model := atecctest.New(atecctest.Options{})
	model.SetClock(clock.Now)
	chip, err := atecc608.Open(ctx, meddler{model}, atecc608.Options{Clock: clock})
	if err != nil {
		t.Fatal(err)
	}
	plan, err := chip.Plan(ctx, withKeys(t, chip, 0))
	if err != nil {
		t.Fatal(err)
	}
	if err := chip.Provision(ctx, plan); !errors.Is(err, atecc608.StatusExecution) {
		t.Errorf("provision: %v", err)
	}
	if config := configOf(t, model); config[87] != 0x55 {
		t.Error("it is locked")
	}
}

// cut takes the power away at one transaction: before it, or after it with its
// reply lost.
type cut struct {
	*atecctest.Chip
	left  int
	after bool
	cut   atecctest.CutEffect // what becomes of a command that is executing
}

func (c *cut) Tx(addr uint16, w, r []byte) error {
	c.left--
	switch {
	case c.left > 0:
		return c.Chip.Tx(addr, w, r)
	case c.left == 0:
		if c.after {
			c.Chip.Tx(addr, w, r)
		}
		c.PowerCut(c.cut)
	}
	return atecctest.ErrNACK // dark from now on
}

// A power cut at any instant of provisioning, or of making a key, leaves a chip
// that carries on.
func TestPowerCuts(t *testing.T) {
	ctx := t.Context()
	life := func(bus atecc608.Bus, clock atecc608.Clock) error {
		chip, err := atecc608.Open(ctx, bus, atecc608.Options{Clock: clock, Timeout: time.Second})
		if err != nil {
			return err
		}
		have, err := chip.Config(ctx)
		if err != nil {
			return err
		}
		want, err := have.WithSigningKeys(0)
		if err != nil {
			return err
		}
		plan, err := chip.Plan(ctx, want)
		if err != nil {
			return err
		}
		if err := chip.Provision(ctx, plan); err != nil {
			return err
		}
		_, err = chip.GenerateKey(ctx, 0)
		return err
	}
	for n, cuts := 1, 0; ; n++ {
		for at := range 4 {
			after, effect := at > 0, atecctest.CutEffect(max(at-1, 0))
			clock := new(atecctest.Clock)
			model := atecctest.New(atecctest.Options{})
			model.SetClock(clock.Now)
			if err := life(&cut{model, n, after, effect}, clock); err == nil {
				if cuts < 100 {
					t.Fatalf("only %d cuts", cuts)
				}
				return // all of it fits before the cut
			}
			cuts++
			err := life(model, clock)
			if err != nil && !errors.Is(err, fs.ErrExist) { // the key was made just before the cut
				t.Fatalf("cut at transaction %d (%d), then: %v", n, at, err)
			}
			want := atecctest.BlankConfig()
			want[86], want[87] = 0, 0
			copy(want[20:], []byte{0x81, 0x20})
			copy(want[96:], []byte{0x33, 0x00})
			if got := configOf(t, model); !bytes.Equal(got[:], want[:]) {
				t.Fatalf("cut at transaction %d: configuration\n% x, want\n% x", n, got, want)
			}
			chip, err := atecc608.Open(ctx, model, atecc608.Options{Clock: clock})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := chip.Signer(ctx, 0); err != nil {
				t.Fatalf("cut at transaction %d: %v", n, err)
			}
		}
	}
}

// hostile answers what it likes.
type hostile struct {
	script []byte
	clock  *atecctest.Clock
}

func (h *hostile) Tx(addr uint16, w, r []byte) error {
	h.clock.Advance(100 * time.Microsecond)
	if len(h.script) == 0 {
		return atecctest.ErrNACK
	}
	kind := h.script[0]
	h.script = h.script[1:]
	switch {
	case addr == 0 || kind == 0xff:
		return atecctest.ErrNACK
	case len(r) == 0:
		return nil
	case kind < 0x40: // a group that is well formed, as far as the script goes
		n := min(int(kind)+1, len(h.script))
		group := append([]byte{byte(n + 3)}, h.script[:n]...)
		h.script = h.script[n:]
		sum := atecc608.CRC16(group)
		copy(r, append(group, byte(sum), byte(sum>>8)))
	case kind == 0x40:
		copy(r, []byte{0x04, 0x11, 0x33, 0x43})
	default:
		h.script = h.script[copy(r, h.script):]
	}
	return nil
}

// session is the script of a real chip's answers, from opening it to making a key
// and signing with it.
func session(t testing.TB) []byte {
	t.Helper()
	clock := new(atecctest.Clock)
	model := atecctest.New(atecctest.Options{Config: provisioned(), Times: atecctest.NeverBusy})
	model.SetClock(clock.Now)
	recorder := atecctest.NewRecorder(model)
	use := func(bus atecc608.Bus) {
		chip, err := atecc608.Open(t.Context(), bus, atecc608.Options{Clock: clock})
		if err != nil {
			t.Fatal(err)
		}
		chip.Signer(t.Context(), 0)
		if _, err := chip.GenerateKey(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		chip.Certificates(t.Context())
	}
	use(recorder)
	var script []byte
	for _, op := range recorder.Trace() {
		switch {
		case op.NACK:
			script = append(script, 0xff)
		case len(op.Read) == 0:
			script = append(script, 0)
		case len(op.Read) == 4 && op.Read[1] == 0x11:
			script = append(script, 0x40)
		default:
			data := op.Read[1 : op.Read[0]-2]
			script = append(append(script, byte(len(data)-1)), data...)
		}
	}
	use(&hostile{bytes.Clone(script), clock}) // it is what the driver takes for a chip
	return script
}

// Whatever the chip answers: no panic, and no call lasts longer than it may.
func FuzzHostileChip(f *testing.F) {
	f.Add(session(f))
	f.Add(bytes.Repeat([]byte{0x40, 0x40, 0x40, 3, 0, 0, 0x60, 3}, 20))
	f.Add(bytes.Repeat([]byte{0x80, 7, 0xff, 0xff}, 20))
	f.Fuzz(func(t *testing.T, script []byte) {
		clock := new(atecctest.Clock)
		const timeout = time.Second
		bounded := func(call func() error) bool {
			start := clock.Now()
			err := call()
			if took := clock.Now().Sub(start); took > timeout+time.Millisecond {
				t.Errorf("took %v", took)
			}
			return err == nil
		}
		ctx := t.Context()
		var chip *atecc608.Chip
		if !bounded(func() (err error) {
			chip, err = atecc608.Open(ctx, &hostile{script, clock}, atecc608.Options{Clock: clock, Timeout: timeout})
			return err
		}) {
			return
		}
		bounded(func() error { _, err := chip.Signer(ctx, 0); return err })
		bounded(func() error { _, err := chip.GenerateKey(ctx, 0); return err })
		bounded(func() error { _, _, err := chip.Certificates(ctx); return err })
		bounded(func() error { _, err := chip.Increment(ctx, 0); return err })
		bounded(func() error { return chip.ReadSlot(ctx, 8, 0, make([]byte, 72)) })
	})
}
