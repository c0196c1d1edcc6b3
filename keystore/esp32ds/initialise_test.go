package esp32ds_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/keystore/esp32ds"
	"github.com/quarklink-go/quarklink/keystore/esp32ds/dstest"
	"github.com/quarklink-go/quarklink/store"
)

// device is what outlives a power cut: a chip and its flash.
type device struct {
	chip    *dstest.Chip
	records *store.Mem
}

func newDevice() device {
	return device{dstest.New(esp32ds.ESP32C3), new(store.Mem)}
}

// boot makes a store, as a program does that starts.
func (d device) boot(tb testing.TB) *esp32ds.Store {
	d.chip.PowerUp()
	return newStore(tb, esp32ds.ESP32C3, d.chip, d.records)
}

// state is all that an operation which fails has to leave alone.
func (d device) state(tb testing.TB) string {
	var b strings.Builder
	fmt.Fprintln(&b, d.chip.Registers())
	for _, name := range []string{"ds-esk", "ds-dsk"} {
		record, err := d.records.Get(tb.Context(), name)
		fmt.Fprintf(&b, "%x %v\n", record, err)
	}
	return b.String()
}

// withFuses returns a device with the same flash and other eFuses.
func (d device) withFuses(tb testing.TB, r dstest.Registers) device {
	tb.Helper()
	other := newDevice()
	other.chip.SetRegisters(r)
	for _, name := range []string{"ds-esk", "ds-dsk"} {
		record, err := d.records.Get(tb.Context(), name)
		must(tb, err)
		must(tb, other.records.Put(tb.Context(), name, record))
	}
	return other
}

func (d device) used() (blocks int) {
	for _, key := range d.chip.Registers().Keys {
		if key != [32]byte{} {
			blocks++
		}
	}
	return blocks
}

// identities returns the two public keys, each of which has just signed.
func identities(tb testing.TB, s *esp32ds.Store) (esk, dsk *rsa.PublicKey) {
	tb.Helper()
	keys := make(map[keystore.Role]*rsa.PublicKey)
	for _, role := range []keystore.Role{keystore.Enrolment, keystore.Device} {
		signer, err := s.Signer(tb.Context(), role)
		must(tb, err)
		digest := sha256.Sum256([]byte(role))
		signature, err := signer.Sign(nil, digest[:], crypto.SHA256)
		must(tb, err)
		keys[role] = signer.Public().(*rsa.PublicKey)
		must(tb, rsa.VerifyPKCS1v15(keys[role], crypto.SHA256, digest[:], signature))
	}
	return keys[keystore.Enrolment], keys[keystore.Device]
}

// opened makes sure that both keys are there. Initialise has just had the chip
// sign with them, which takes a while: see identities.
func opened(tb testing.TB, s *esp32ds.Store) {
	tb.Helper()
	for _, role := range []keystore.Role{keystore.Enrolment, keystore.Device} {
		if _, err := s.Signer(tb.Context(), role); err != nil {
			tb.Error(err)
		}
	}
}

func left(tb testing.TB, s *esp32ds.Store) int {
	tb.Helper()
	n, err := s.InitialisationsLeft(tb.Context())
	must(tb, err)
	return n
}

func TestInitialise(t *testing.T) {
	ctx := t.Context()
	d := newDevice()
	s := d.boot(t)
	for _, role := range []keystore.Role{keystore.Enrolment, keystore.Device} {
		if _, err := s.Signer(ctx, role); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s of a blank chip: %v", role, err)
		}
	}
	if _, err := s.Signer(ctx, "psk"); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("unknown role: %v", err)
	}
	if n := left(t, s); n != 6 {
		t.Errorf("%d initialisations left of a blank chip", n)
	}
	must(t, s.Initialise(ctx, small(t)))
	if n := left(t, s); n != 5 {
		t.Errorf("%d initialisations left after the first", n)
	}
	esk, dsk := identities(t, s)
	if !esk.Equal(&loadKey(t, "rsa2048-esk").PublicKey) || !dsk.Equal(&loadKey(t, "rsa2048-dsk").PublicKey) {
		t.Error("other keys than were made")
	}
	fuses, err := d.chip.ReadEFuses(ctx)
	must(t, err)
	if want := (esp32ds.KeyBlock{Purpose: esp32ds.PurposeDS, ReadProtected: true, WriteProtected: true, PurposeLocked: true}); fuses.Blocks[5] != want {
		t.Errorf("key block 5 is %+v", fuses.Blocks[5])
	}
	hmacKey := d.chip.Registers().Keys[5]
	var ivs []string
	for _, name := range []string{"ds-esk", "ds-dsk"} {
		record, err := d.records.Get(ctx, name)
		must(t, err)
		if bytes.Contains(record, hmacKey[:]) || len(record) > 2<<10 {
			t.Errorf("record %s holds the eFuse key, or is long: %d bytes", name, len(record))
		}
		_, payload, err := store.DecodeRecord(name, record)
		must(t, err)
		ivs = append(ivs, string(payload[11:27]))
	}
	if ivs[0] == ivs[1] {
		t.Error("both parameters have one IV")
	}

	before := d.state(t)
	for _, again := range []*esp32ds.Store{s, d.boot(t)} {
		for _, newIdentity := range []bool{false, true} {
			opts := small(t)
			opts.NewIdentity = newIdentity
			if err := again.Initialise(ctx, opts); !errors.Is(err, fs.ErrExist) {
				t.Errorf("initialised again: %v", err)
			}
		}
	}
	if d.state(t) != before {
		t.Error("initialising again changed something")
	}
	if again, _ := identities(t, d.boot(t)); !again.Equal(esk) {
		t.Error("another identity after a restart")
	}
}

// TestGenerate makes real keys; the example makes some of the default length.
func TestGenerate(t *testing.T) {
	s := newDevice().boot(t)
	must(t, s.Initialise(t.Context(), esp32ds.InitialiseOptions{Bits: 2048}))
	esk, dsk := identities(t, s)
	if esk.N.BitLen() != 2048 || dsk.N.BitLen() != 2048 || esk.Equal(dsk) {
		t.Errorf("keys of %d and %d bits", esk.N.BitLen(), dsk.N.BitLen())
	}
}

// TestIdentityLost erases the flash again and again, until the chip is used up.
func TestIdentityLost(t *testing.T) {
	ctx := t.Context()
	d := newDevice()
	must(t, d.boot(t).Initialise(ctx, small(t)))
	old, _ := identities(t, d.boot(t))
	for block := 4; block >= 0; block-- {
		*d.records = store.Mem{}
		s := d.boot(t)
		before := d.state(t)
		err := s.Initialise(ctx, small(t))
		if !errors.Is(err, esp32ds.ErrIdentityLost) || errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), fmt.Sprintf("one of the %d key blocks left", block+1)) {
			t.Fatalf("after erasing the flash: %v", err)
		}
		if d.state(t) != before {
			t.Fatal("ErrIdentityLost, yet something changed")
		}
		opts := small(t)
		opts.NewIdentity = true
		opts.GenerateKey(ctx, 2048) // swaps the two keys
		must(t, s.Initialise(ctx, opts))
		if esk, _ := identities(t, d.boot(t)); esk.Equal(old) {
			t.Error("the identity is not new")
		}
		if d.chip.Registers().Keys[block] == [32]byte{} || left(t, s) != block {
			t.Errorf("key block %d is not the one used; %d left", block, left(t, s))
		}
	}
	*d.records = store.Mem{}
	before := d.state(t)
	opts := small(t)
	opts.NewIdentity = true
	if err := d.boot(t).Initialise(ctx, opts); !errors.Is(err, esp32ds.ErrNoKeyBlock) || d.state(t) != before {
		t.Errorf("chip used up: %v", err)
	}
}

// TestPartlyLost loses or damages one record of two.
func TestPartlyLost(t *testing.T) {
	ctx := t.Context()
	for _, name := range []string{"ds-esk", "ds-dsk"} {
		for what, c := range map[string]struct {
			spoil func(d device)
			want  error
		}{
			"deleted": {func(d device) { d.records.Delete(ctx, name) }, esp32ds.ErrIdentityLost},
			"damaged": {func(d device) {
				record, _ := d.records.Get(ctx, name)
				record[len(record)/2] ^= 1
				d.records.Put(ctx, name, record)
			}, store.ErrDamaged},
			"another device's": {func(d device) {
				other := newDevice()
				other.boot(t).Initialise(ctx, small(t))
				record, _ := other.records.Get(ctx, name)
				d.records.Put(ctx, name, record)
			}, esp32ds.ErrIdentityLost},
		} {
			d := newDevice()
			s := d.boot(t)
			must(t, s.Initialise(ctx, small(t)))
			oldESK, oldDSK := identities(t, s)
			c.spoil(d)
			before := d.state(t)
			if err := d.boot(t).Initialise(ctx, small(t)); !errors.Is(err, c.want) || d.state(t) != before {
				t.Errorf("%s %s: %v", name, what, err)
			}
			opts := small(t)
			opts.NewIdentity = true
			opts.GenerateKey(ctx, 2048) // swaps the two keys
			must(t, s.Initialise(ctx, opts))
			for _, s := range []*esp32ds.Store{s, d.boot(t)} {
				if esk, dsk := identities(t, s); !esk.Equal(oldDSK) || !dsk.Equal(oldESK) {
					t.Errorf("%s %s: the keys are not the new ones", name, what)
				}
			}
			if d.used() != 2 {
				t.Errorf("%s %s: %d key blocks used", name, what, d.used())
			}
		}
	}
}

// TestAnotherDevicesFlash: its parameters open nothing here.
func TestAnotherDevicesFlash(t *testing.T) {
	ctx := t.Context()
	d, other := newDevice(), newDevice()
	must(t, d.boot(t).Initialise(ctx, small(t)))
	must(t, other.boot(t).Initialise(ctx, small(t)))
	d.records = other.records
	signer, err := d.boot(t).Signer(ctx, keystore.Enrolment)
	must(t, err)
	digest := sha256.Sum256(nil)
	if _, err := signer.Sign(nil, digest[:], crypto.SHA256); !errors.Is(err, esp32ds.ErrInvalidDigest) {
		t.Errorf("sign: %v", err)
	}
	if err := d.boot(t).Initialise(ctx, small(t)); !errors.Is(err, esp32ds.ErrIdentityLost) {
		t.Errorf("initialise: %v", err)
	}
	blank := device{dstest.New(esp32ds.ESP32C3), other.records}
	if _, err := blank.boot(t).Signer(ctx, keystore.Enrolment); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("on a blank chip: %v", err)
	}
}

func TestInitialiseRefuses(t *testing.T) {
	ctx := t.Context()
	digestsAndFlashKey := func(c *dstest.Chip) { // key blocks 0, 1 and 3 in use
		var r dstest.Registers
		r.BLOCK0 = [6]uint32{0x05800b00, 0x8, 0xa9000000, 0x40}
		r.Keys[0], r.Keys[1], r.Keys[3] = [32]byte{1}, [32]byte{2}, [32]byte{3}
		c.SetRegisters(r)
	}
	for name, c := range map[string]struct {
		chip func(*dstest.Chip)
		opts func(*esp32ds.InitialiseOptions)
		want error
	}{
		"virtual eFuses": {chip: func(c *dstest.Chip) { c.SetVirtual(true) }, want: esp32ds.ErrVirtualEFuse},
		"read protection locked": {chip: func(c *dstest.Chip) {
			c.SetRegisters(dstest.Registers{BLOCK0: [6]uint32{1}})
		}, want: esp32ds.ErrReadProtection},
		"reserve": {chip: digestsAndFlashKey, opts: func(o *esp32ds.InitialiseOptions) { o.Reserve = 3 }, want: esp32ds.ErrNoKeyBlock},
		"no key block": {chip: func(c *dstest.Chip) {
			r := dstest.Registers{BLOCK0: [6]uint32{0: 1 << 23, 1: 1 << 1, 2: 0, 3: 0x0f}} // 0 locked, 1 hidden, 2 of some purpose
			r.BLOCK0[0] |= 1 << (8 + 3)                                                    // 3 with its purpose locked
			r.Keys[4], r.Keys[5] = [32]byte{31: 1}, [32]byte{0: 1}
			c.SetRegisters(r)
		}, want: esp32ds.ErrNoKeyBlock},
		"1024 bits":        {opts: func(o *esp32ds.InitialiseOptions) { o.Bits = 1024 }, want: fs.ErrInvalid},
		"2049 bits":        {opts: func(o *esp32ds.InitialiseOptions) { o.Bits = 2049 }, want: fs.ErrInvalid},
		"4096 bits":        {opts: func(o *esp32ds.InitialiseOptions) { o.Bits = 4096 }, want: fs.ErrInvalid},
		"negative reserve": {opts: func(o *esp32ds.InitialiseOptions) { o.Reserve = -1 }, want: fs.ErrInvalid},
		"no keys":          {opts: func(o *esp32ds.InitialiseOptions) { o.GenerateKey = keysFrom() }},
		"other length":     {opts: func(o *esp32ds.InitialiseOptions) { o.GenerateKey = keysFrom(loadKey(t, "rsa3072-esk")) }},
		"same key twice":   {opts: func(o *esp32ds.InitialiseOptions) { o.GenerateKey = keysFrom(loadKey(t, "rsa2048-esk")) }},
		"nil key":          {opts: func(o *esp32ds.InitialiseOptions) { o.GenerateKey = keysFrom(nil) }, want: esp32ds.ErrInvalidArg},
	} {
		d := newDevice()
		if c.chip != nil {
			c.chip(d.chip)
		}
		opts := small(t)
		if c.opts != nil {
			c.opts(&opts)
		}
		before := d.state(t)
		err := d.boot(t).Initialise(ctx, opts)
		if err == nil || (c.want != nil && !errors.Is(err, c.want)) {
			t.Errorf("%s: %v", name, err)
		}
		if d.state(t) != before {
			t.Errorf("%s: something changed", name)
		}
	}

	d := newDevice()
	d.chip.SetRegisters(dstest.Registers{BLOCK0: [6]uint32{1}})
	if n := left(t, d.boot(t)); n != 0 {
		t.Errorf("%d initialisations left with read protection locked", n)
	}
	d.chip.SetVirtual(true)
	if _, err := d.boot(t).InitialisationsLeft(ctx); !errors.Is(err, esp32ds.ErrVirtualEFuse) {
		t.Errorf("initialisations left on virtual eFuses: %v", err)
	}
	d = newDevice()
	must(t, d.boot(t).Initialise(ctx, small(t)))
	d.chip.SetVirtual(true)
	if _, err := d.boot(t).Signer(ctx, keystore.Enrolment); !errors.Is(err, esp32ds.ErrVirtualEFuse) {
		t.Errorf("open on virtual eFuses: %v", err)
	}

	d = newDevice()
	digestsAndFlashKey(d.chip)
	opts := small(t)
	opts.Reserve = 2
	must(t, d.boot(t).Initialise(ctx, opts))
	if n := left(t, d.boot(t)); n != 2 {
		t.Errorf("%d key blocks left, 2 were reserved", n)
	}
	for name, random := range map[string]*bytes.Reader{"zeros": bytes.NewReader(make([]byte, 1000)), "nothing": bytes.NewReader(nil)} {
		d := newDevice()
		s := newStore(t, esp32ds.ESP32C3, d.chip, d.records, func(cfg *esp32ds.Config) { cfg.Random = random })
		if err := s.Initialise(ctx, small(t)); err == nil || d.used() != 0 {
			t.Errorf("a random source of %s: %v", name, err)
		}
	}
}

// lying claims that its virtual eFuses are real.
type lying struct{ *dstest.Chip }

func (l lying) ReadEFuses(ctx context.Context) (esp32ds.EFuseState, error) {
	fuses, err := l.Chip.ReadEFuses(ctx)
	fuses.Virtual = false
	return fuses, err
}

func TestUnnoticedVirtualEFuses(t *testing.T) {
	chip := dstest.New(esp32ds.ESP32C3)
	chip.SetVirtual(true)
	s := newStore(t, esp32ds.ESP32C3, chip, new(store.Mem), func(cfg *esp32ds.Config) { cfg.EFuse = lying{chip} })
	if err := s.Initialise(t.Context(), small(t)); !errors.Is(err, esp32ds.ErrHMACFail) {
		t.Errorf("the chip has no key, and yet: %v", err)
	}
}

// TestFaultWhileTrying: one faulty signature does not make a good key useless.
func TestFaultWhileTrying(t *testing.T) {
	ctx := t.Context()
	d := newDevice()
	flip := dstest.Fault{Corrupt: func(z []byte) []byte { z[3] ^= 1; return z }}
	d.chip.Inject(flip, flip, dstest.Fault{}, flip)
	must(t, d.boot(t).Initialise(ctx, small(t)))

	d = newDevice()
	d.chip.Inject(dstest.Fault{Err: esp32ds.ErrTimeout})
	if err := d.boot(t).Initialise(ctx, small(t)); !errors.Is(err, esp32ds.ErrTimeout) {
		t.Errorf("time-out: %v", err)
	}
	opts := small(t)
	opts.NewIdentity = true // must not make it throw a good key away
	d.chip.Inject(dstest.Fault{Err: esp32ds.ErrTimeout})
	if err := d.boot(t).Initialise(ctx, opts); !errors.Is(err, esp32ds.ErrTimeout) {
		t.Errorf("time-out again: %v", err)
	}
	if err := d.boot(t).Initialise(ctx, opts); !errors.Is(err, fs.ErrExist) {
		t.Errorf("after the time-out: %v", err)
	}
	identities(t, d.boot(t))

	d = newDevice() // what a power cut left is tried when it is completed
	s := d.boot(t)
	d.chip.CutPower(8)
	if err := s.Initialise(ctx, small(t)); !errors.Is(err, dstest.ErrPowerCut) {
		t.Fatal(err)
	}
	d.chip.Inject(dstest.Fault{Err: esp32ds.ErrTimeout})
	if err := d.boot(t).Initialise(ctx, small(t)); !errors.Is(err, esp32ds.ErrTimeout) {
		t.Errorf("time-out after a power cut: %v", err)
	}
}

func TestInitialiseCancelled(t *testing.T) {
	d := newDevice()
	s := d.boot(t)
	ctx, cancel := context.WithCancel(t.Context())
	opts := small(t)
	generate := opts.GenerateKey
	opts.GenerateKey = func(ctx context.Context, bits int) (*rsa.PrivateKey, error) {
		cancel()
		return generate(ctx, bits)
	}
	before := d.state(t)
	if err := s.Initialise(ctx, opts); !errors.Is(err, context.Canceled) || d.state(t) != before {
		t.Errorf("cancelled while it made the keys: %v", err)
	}
	if err := s.Initialise(ctx, esp32ds.InitialiseOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled before: %v", err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	cancel()
	if _, err := s.Signer(ctx, keystore.Enrolment); !errors.Is(err, context.Canceled) {
		t.Errorf("Signer: %v", err)
	}
	if _, err := s.InitialisationsLeft(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("InitialisationsLeft: %v", err)
	}
}

// cancelling cancels at the first byte that is read.
type cancelling struct {
	io.Reader
	cancel func()
}

func (c cancelling) Read(p []byte) (int, error) {
	c.cancel()
	return c.Reader.Read(p)
}

// TestGenerateCancelled: making a key cannot be interrupted, waiting for it can.
func TestGenerateCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	d := newDevice()
	s := newStore(t, esp32ds.ESP32C3, d.chip, d.records, func(cfg *esp32ds.Config) { cfg.Random = cancelling{rand.Reader, cancel} })
	before := d.state(t)
	if err := s.Initialise(ctx, esp32ds.InitialiseOptions{Bits: 2048}); !errors.Is(err, context.Canceled) || d.state(t) != before {
		t.Errorf("cancelled while a key is made: %v", err)
	}
}

// TestSlowGenerateKey: whoever wants a key while keys are being made waits no
// longer than it wants to.
func TestSlowGenerateKey(t *testing.T) {
	opts := small(t)
	synctest.Test(t, func(t *testing.T) {
		d := newDevice()
		s := d.boot(t)
		generate := opts.GenerateKey
		opts.GenerateKey = func(ctx context.Context, bits int) (*rsa.PrivateKey, error) {
			time.Sleep(time.Minute)
			return generate(ctx, bits)
		}
		done := make(chan error)
		go func() { done <- s.Initialise(t.Context(), opts) }()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		if _, err := s.Signer(ctx, keystore.Enrolment); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Second {
			t.Errorf("impatient: %v after %v", err, time.Since(start))
		}
		if _, err := s.Signer(t.Context(), keystore.Enrolment); err != nil || time.Since(start) != 2*time.Minute {
			t.Errorf("patient: %v after %v", err, time.Since(start))
		}
		must(t, <-done)
	})
}

// unprotecting is a chip whose blocks stay unprotected, in spite of what it says.
type unprotecting struct {
	*dstest.Chip
	locked uint32 // what of WR_DIS is set all the same
}

func (u unprotecting) BurnKey(ctx context.Context, block int, key [32]byte) error {
	err := u.Chip.BurnKey(ctx, block, key)
	r := u.Chip.Registers()
	r.BLOCK0[0] = u.locked
	u.Chip.SetRegisters(r)
	return err
}

func (u unprotecting) Protect(context.Context, int) error { return nil }

// TestProtectionThatDoesNotTake: a block that is not seen to be protected is none.
func TestProtectionThatDoesNotTake(t *testing.T) {
	ctx := t.Context()
	for _, locked := range []uint32{0, 1 << (23 + 5), 1 << (8 + 5)} {
		d := newDevice()
		s := newStore(t, esp32ds.ESP32C3, d.chip, d.records, func(cfg *esp32ds.Config) { cfg.EFuse = unprotecting{d.chip, locked} })
		for range 2 {
			if err := s.Initialise(ctx, small(t)); !errors.Is(err, esp32ds.ErrFail) {
				t.Errorf("WR_DIS %#x: %v", locked, err)
			}
		}
		if _, err := s.Signer(ctx, keystore.Enrolment); !errors.Is(err, fs.ErrNotExist) || d.used() != 1 {
			t.Errorf("WR_DIS %#x: Signer: %v, %d key blocks used", locked, err, d.used())
		}
		must(t, d.boot(t).Initialise(ctx, small(t)))
		identities(t, d.boot(t))
	}
}

// flash is a store whose power is cut after some writes, before or after the
// last one takes effect.
type flash struct {
	*store.Mem
	writes int
	lose   bool // the write that is cut
}

func (f *flash) Put(ctx context.Context, name string, data []byte) error {
	if f.writes--; f.writes < 0 || f.writes == 0 && f.lose {
		return dstest.ErrPowerCut
	}
	err := f.Mem.Put(ctx, name, data)
	if f.writes == 0 {
		return dstest.ErrPowerCut
	}
	return err
}

func (f *flash) Get(ctx context.Context, name string) ([]byte, error) {
	if f.writes <= 0 {
		return nil, dstest.ErrPowerCut
	}
	return f.Mem.Get(ctx, name)
}

// TestPowerCutWhileStoring cuts before, between and after the two writes, with a
// blank chip and with one that is given a new identity. No key block is lost.
func TestPowerCutWhileStoring(t *testing.T) {
	ctx := t.Context()
	for _, blank := range []bool{true, false} {
		for writes := 1; writes <= 2; writes++ {
			for _, lose := range []bool{true, false} {
				name := fmt.Sprintf("blank %v, write %d, lost %v", blank, writes, lose)
				d := newDevice()
				opts := small(t)
				if !blank {
					must(t, d.boot(t).Initialise(ctx, small(t)))
					must(t, d.records.Delete(ctx, "ds-dsk"))
					opts.NewIdentity = true
				}
				already := d.used()
				s := newStore(t, esp32ds.ESP32C3, d.chip, &flash{d.records, writes, lose})
				if err := s.Initialise(ctx, opts); !errors.Is(err, dstest.ErrPowerCut) {
					t.Fatalf("%s: %v", name, err)
				}
				if d.used() != already {
					t.Errorf("%s: a key was burned whose parameters are not stored", name)
				}
				if _, err := d.boot(t).Signer(ctx, keystore.Device); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s: the device key is said to be there: %v", name, err)
				}
				must(t, d.boot(t).Initialise(ctx, opts))
				opened(t, d.boot(t))
				if d.used() != already+1 {
					t.Errorf("%s: %d key blocks used", name, d.used())
				}
			}
		}
	}
}

// forgetful is a store that says it has stored a record when it has not, or
// not that one.
type forgetful struct {
	*store.Mem
	damage bool
}

func (f forgetful) Put(ctx context.Context, name string, data []byte) error {
	if !f.damage {
		return nil
	}
	data = bytes.Clone(data)
	data[len(data)-1] ^= 1
	return f.Mem.Put(ctx, name, data)
}

// TestStoreThatLies: no key is burned whose parameters cannot be read back.
func TestStoreThatLies(t *testing.T) {
	for _, damage := range []bool{false, true} {
		d := newDevice()
		s := newStore(t, esp32ds.ESP32C3, d.chip, forgetful{d.records, damage})
		if err := s.Initialise(t.Context(), small(t)); err == nil || d.used() != 0 {
			t.Errorf("damaged %v: %v, %d key blocks used", damage, err, d.used())
		}
	}
}

// steps is how many words are burned: the key's 8, and 3 of BLOCK0.
const steps = 11

// TestNotQuiteSealed: a key that works but for the locks that a power cut left
// open is not there yet, for a program initialises only if there is none.
func TestNotQuiteSealed(t *testing.T) {
	ctx := t.Context()
	d := newDevice()
	must(t, d.boot(t).Initialise(ctx, small(t)))
	whole := d.chip.Registers()
	for _, missing := range []uint32{1 << (23 + 5), 1 << (8 + 5), 1<<(23+5) | 1<<(8+5)} {
		r := whole
		r.BLOCK0[0] &^= missing
		cut := d.withFuses(t, r)
		if _, err := cut.boot(t).Signer(ctx, keystore.Enrolment); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("WR_DIS lacks %#x: Signer: %v", missing, err)
		}
		must(t, cut.boot(t).Initialise(ctx, small(t)))
		if cut.chip.Registers() != whole {
			t.Errorf("WR_DIS lacks %#x: not completed", missing)
		}
		identities(t, cut.boot(t))
	}
}

// TestWiped keeps what GenerateKey returned, as it must not.
func TestWiped(t *testing.T) {
	var kept []*rsa.PrivateKey
	opts := small(t)
	generate := opts.GenerateKey
	opts.GenerateKey = func(ctx context.Context, bits int) (*rsa.PrivateKey, error) {
		key, err := generate(ctx, bits)
		if err == nil {
			key.Precompute()
			kept = append(kept, key)
		}
		return key, err
	}
	d := newDevice()
	must(t, d.boot(t).Initialise(t.Context(), opts))
	identities(t, d.boot(t))
	if len(kept) != 2 {
		t.Fatalf("%d keys made", len(kept))
	}
	for _, key := range kept {
		pre := key.Precomputed
		for i, x := range append([]*big.Int{key.D, pre.Dp, pre.Dq, pre.Qinv}, key.Primes...) {
			words := x.Bits()
			if x.Sign() != 0 || slices.ContainsFunc(words[:cap(words)], func(w big.Word) bool { return w != 0 }) {
				t.Errorf("private number %d is still in memory", i)
			}
		}
	}
}

// TestKeyBlockPrinted: after a power cut software can still read the key that is
// to become hidden, and somebody logs the eFuses.
func TestKeyBlockPrinted(t *testing.T) {
	ctx := t.Context()
	chip := dstest.New(esp32ds.ESP32C3)
	chip.CutPower(8) // the key is whole, and not hidden
	key := [32]byte(bytes.Repeat([]byte{0xa7}, 32))
	if err := chip.BurnKey(ctx, 3, key); !errors.Is(err, dstest.ErrPowerCut) {
		t.Fatal(err)
	}
	chip.PowerUp()
	fuses, err := chip.ReadEFuses(ctx)
	must(t, err)
	if fuses.Blocks[3].Key != key {
		t.Fatal("the key is hidden")
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d", "%x", "%X", "%o", "%b", "%c", "%U"} {
		for _, v := range []any{fuses, &fuses, fuses.Blocks[3], &fuses.Blocks[3], fuses.Blocks[:]} {
			text := fmt.Sprintf(verb, v)
			for _, secret := range []string{"167", "a7", "A7", "247", "10100111", "\u00a7", "§"} {
				if strings.Contains(text, secret) {
					t.Errorf("%s of %T prints the key: %.300s", verb, v, text)
					break
				}
			}
		}
	}
	text, err := json.Marshal(fuses)
	must(t, err)
	if bytes.Contains(text, []byte("167")) {
		t.Errorf("as JSON: %s", text)
	}
	if text := fmt.Sprint(fuses.Blocks[3], fuses.Blocks[4]); text != "{Purpose:0 ReadProtected:false WriteProtected:false PurposeLocked:false Key:not printed} "+
		"{Purpose:0 ReadProtected:false WriteProtected:false PurposeLocked:false Key:zeros}" {
		t.Error(text)
	}
}

// TestPowerCutWhileBurning cuts at every word. Where the key block is whole and
// can still be protected the initialisation is completed; where not, another
// block is used, but nobody has to say that an identity was lost.
func TestPowerCutWhileBurning(t *testing.T) {
	ctx := t.Context()
	for cut := 0; cut <= steps; cut++ {
		d := newDevice()
		s := d.boot(t)
		d.chip.CutPower(cut)
		err := s.Initialise(ctx, small(t))
		if cut == steps {
			must(t, err)
			identities(t, d.boot(t))
			continue
		}
		if !errors.Is(err, dstest.ErrPowerCut) {
			t.Fatalf("cut %d: %v", cut, err)
		}
		if _, err := d.boot(t).Signer(ctx, keystore.Enrolment); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("cut %d: the key is said to be there: %v", cut, err)
		}
		must(t, d.boot(t).Initialise(ctx, small(t)))
		opened(t, d.boot(t))
		spent := 0
		if 0 < cut && cut < 8 || cut > 8 { // the model locks the purpose before it sets it
			spent = 1
		}
		if d.used() != 1+spent {
			t.Errorf("cut %d: %d key blocks used", cut, d.used())
		}
		if err := d.boot(t).Initialise(ctx, small(t)); !errors.Is(err, fs.ErrExist) {
			t.Errorf("cut %d: initialised, and yet: %v", cut, err)
		}
	}
}

// TestPowerCutTwice cuts the recovery as well.
func TestPowerCutTwice(t *testing.T) {
	ctx := t.Context()
	for _, cut := range []int{3, 8, 10} {
		for again := 0; again < steps; again++ {
			d := newDevice()
			s := d.boot(t)
			d.chip.CutPower(cut)
			if err := s.Initialise(ctx, small(t)); !errors.Is(err, dstest.ErrPowerCut) {
				t.Fatalf("cut %d: %v", cut, err)
			}
			s = d.boot(t)
			d.chip.CutPower(again)
			if err := s.Initialise(ctx, small(t)); err == nil {
				break // the recovery burns less than that
			}
			if err := d.boot(t).Initialise(ctx, small(t)); err != nil {
				t.Fatalf("cut %d, then %d: %v", cut, again, err)
			}
			opened(t, d.boot(t))
		}
	}
}

// TestEveryState tries each combination of what a power cut can leave of a key
// block, whatever the order in which a chip burns.
func TestEveryState(t *testing.T) {
	ctx := t.Context()
	d := newDevice()
	must(t, d.boot(t).Initialise(ctx, small(t)))
	whole := d.chip.Registers().Keys[5]
	partial := whole
	clear(partial[12:])
	for _, key := range [][32]byte{whole, partial} {
		for _, purpose := range []uint32{0, 3, 7} {
			for protection := range uint32(8) {
				read, write, lock := protection&1, protection>>1&1, protection>>2
				name := fmt.Sprintf("key whole %v, purpose %d, read-protected %d, write-protected %d, purpose locked %d", key == whole, purpose, read, write, lock)
				r := dstest.Registers{BLOCK0: [6]uint32{0: write<<(23+5) | lock<<(8+5), 1: read << 5, 3: purpose << 12}}
				r.Keys[5] = key
				cut := d.withFuses(t, r)
				var want error
				wantUsed := 1
				switch {
				case protection == 7 && purpose == 7 && key == whole:
					want = fs.ErrExist
				case read == 1 && purpose == 7 && key == whole: // complete but for locks
				case read == 1 && purpose == 7: // cannot be told from a lost identity
					want = esp32ds.ErrIdentityLost
				case read == 0 && key == whole && (purpose == 7 || lock == 0): // completed
				default:
					wantUsed = 2
				}
				err := cut.boot(t).Initialise(ctx, small(t))
				if !errors.Is(err, want) || cut.used() != wantUsed {
					t.Errorf("%s: %v, %d key blocks used", name, err, cut.used())
				}
				if want != esp32ds.ErrIdentityLost {
					opened(t, cut.boot(t))
				}
			}
		}
	}
}

// TestCannotBeSealed leaves a whole key in its block, and something else in the
// way of protecting it.
func TestCannotBeSealed(t *testing.T) {
	ctx := t.Context()
	d := newDevice()
	must(t, d.boot(t).Initialise(ctx, small(t)))
	key := d.chip.Registers().Keys[5]
	for name, c := range map[string]struct {
		block0 [6]uint32
		want   error
		used   int
	}{
		"read protection locked": {[6]uint32{0: 1}, esp32ds.ErrReadProtection, 1},
		"another purpose":        {[6]uint32{3: 8 << 12}, nil, 2},
	} {
		r := dstest.Registers{BLOCK0: c.block0}
		r.Keys[5] = key
		cut := d.withFuses(t, r)
		if err := cut.boot(t).Initialise(ctx, small(t)); !errors.Is(err, c.want) || cut.used() != c.used {
			t.Errorf("%s: %v, %d key blocks used", name, err, cut.used())
		}
	}
}

func TestNewRefuses(t *testing.T) {
	chip := dstest.New(esp32ds.ESP32C3)
	good := esp32ds.Config{Chip: esp32ds.ESP32C3, Peripheral: chip, EFuse: chip, Records: new(store.Mem), Random: bytes.NewReader(nil)}
	if _, err := esp32ds.New(good); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*esp32ds.Config){
		"no chip":           func(c *esp32ds.Config) { c.Chip = 0 },
		"unknown chip":      func(c *esp32ds.Config) { c.Chip = 12 },
		"no peripheral":     func(c *esp32ds.Config) { c.Peripheral = nil },
		"no eFuses":         func(c *esp32ds.Config) { c.EFuse = nil },
		"no records":        func(c *esp32ds.Config) { c.Records = nil },
		"no random source":  func(c *esp32ds.Config) { c.Random = nil },
		"negative time-out": func(c *esp32ds.Config) { c.Timeout = -1 },
	} {
		cfg := good
		change(&cfg)
		if _, err := esp32ds.New(cfg); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
