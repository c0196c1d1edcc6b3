package atecc608_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"errors"
	"io/fs"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/keystore/atecc608"
	"github.com/quarklink-go/quarklink/keystore/atecc608/atecctest"
	"github.com/quarklink-go/quarklink/keystore/atecc608/goecdsa"
)

// What the operations cost on the bus, counted by the model. cryptoauthlib
// takes 21 transactions and 183 bytes to sign, and 7 and 82 for a key, with a
// chip that is never busy; 99 and 64 transactions with the longest times.
var costs = []struct {
	name  string
	times func(opcode, chipMode byte) time.Duration
	sign  int // transactions at most
	key   int
}{
	{"never busy", atecctest.NeverBusy, 8, 6},
	{"longest times", atecctest.MaxTimes, 10, 8},
}

func TestTransactions(t *testing.T) {
	digest := sha256.Sum256(nil)
	for _, test := range costs {
		r := newRig(t, atecctest.Options{Config: provisioned(), Times: test.times}, atecc608.Options{})
		signer := generate(t, r.chip.KeyStore(atecc608.Slots{}), keystore.Enrolment)
		var last atecctest.Stats
		for range 20 { // the driver learns how long the chip takes
			before := r.model.Stats()
			if _, err := signer.Sign(nil, digest[:], crypto.SHA256); err != nil {
				t.Fatal(err)
			}
			last = r.model.Stats().Sub(before)
		}
		if last.Transactions > test.sign {
			t.Errorf("%s: sign takes %+v, want at most %d transactions", test.name, last, test.sign)
		}

		var key, open atecctest.Stats
		for range 20 {
			r.model.SetSlot(1, nil)
			if _, err := r.chip.Signer(t.Context(), 1); !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
			before := r.model.Stats()
			if _, err := r.chip.GenerateKey(t.Context(), 1); err != nil {
				t.Fatal(err)
			}
			key = r.model.Stats().Sub(before)
			if _, err := r.chip.Signer(t.Context(), 1); err != nil {
				t.Fatal(err)
			}
			open = r.model.Stats().Sub(before).Sub(key)
		}
		if key.Transactions > test.key {
			t.Errorf("%s: making a key takes %+v, want at most %d transactions", test.name, key, test.key)
		}
		if open.Transactions > test.key {
			t.Errorf("%s: opening a key takes %+v, want at most %d transactions", test.name, open, test.key)
		}
		t.Logf("%s: sign %d transactions, %d bytes; make a key %d, %d; open a key %d, %d", test.name,
			last.Transactions, last.Bytes(), key.Transactions, key.Bytes(), open.Transactions, open.Bytes())
	}
}

// Clocks that are divided: Sign takes so long that the watchdog would act
// between Nonce and Sign, were the chip not sent through idle.
func TestSlowClocks(t *testing.T) {
	digest := sha256.Sum256(nil)
	for name, mode := range map[string]byte{"M1": 0x28, "M2": 0x68} {
		r := newRig(t, atecctest.Options{
			Config:   provisioned(func(c *[128]byte) { c[19] = mode }),
			Times:    atecctest.MaxTimes,
			Watchdog: 700 * time.Millisecond, // the least that the data sheet allows
		}, atecc608.Options{})
		signer := generate(t, r.chip.KeyStore(atecc608.Slots{}), keystore.Enrolment)
		for range 3 {
			before := r.model.Stats()
			signature, err := signer.Sign(nil, digest[:], crypto.SHA256)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if !ecdsa.VerifyASN1(signer.Public().(*ecdsa.PublicKey), digest[:], signature) {
				t.Fatalf("%s: wrong signature", name)
			}
			pulses, want := r.model.Stats().Sub(before).Pulses, 1
			if name == "M2" { // 20 ms + 665 ms + wake and polling
				want = 2
			}
			if pulses != want {
				t.Errorf("%s: %d wake pulses, want %d", name, pulses, want)
			}
		}
		// Many commands in one call.
		if _, err := r.chip.SHA256(t.Context(), make([]byte, 64*40)); err != nil {
			t.Errorf("%s: SHA-256: %v", name, err)
		}
	}
}

// Whatever some other program left the chip in, the next call works.
func TestUnknownState(t *testing.T) {
	r := newRig(t, atecctest.Options{Config: provisioned(), Times: atecctest.MaxTimes}, atecc608.Options{})
	signer := generate(t, r.chip.KeyStore(atecc608.Slots{}), keystore.Enrolment)
	digest := sha256.Sum256(nil)
	wake := func() {
		r.model.Tx(0, []byte{0}, nil)
		r.clock.Advance(tWHI)
	}
	tx := func(w []byte, read int) { r.model.Tx(0x60, w, make([]byte, read)) }
	for name, disturb := range map[string]func(){
		"asleep":                 func() { tx([]byte{1}, 0) },
		"idle":                   func() { wake(); tx([]byte{2}, 0) },
		"awake, answer unread":   wake,
		"awake, answer read":     func() { wake(); tx(nil, 4) },
		"awake, read past end":   func() { wake(); tx(nil, 40) },
		"half a command":         func() { wake(); tx([]byte{3, 7, 0x30}, 0) },
		"half a command at once": func() { wake(); tx([]byte{3, 39}, 0) },
		"a reply half read": func() {
			wake()
			tx([]byte{3, 7, 0x30, 0, 0, 0, 0x03, 0x5d}, 0)
			r.clock.Advance(time.Second / 10)
			tx(nil, 2)
		},
		"busy with a long command": func() {
			wake()
			tx([]byte{3, 7, 0x40, 4, 1, 0, 0x80, 0x05}, 0) // GenKey in slot 1, or its CRC is wrong: busy or not
		},
		"random bytes": func() {
			wake()
			junk := make([]byte, 20)
			for i := range junk {
				junk[i] = byte(rand.Uint32())
			}
			junk[0] = 3
			tx(junk, 0)
		},
		"power cycle":     r.model.PowerCycle,
		"watchdog is due": func() { wake(); r.clock.Advance(699 * time.Millisecond) },
	} {
		disturb()
		if _, err := signer.Sign(nil, digest[:], crypto.SHA256); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// timedBus takes as long as a bus of that clock.
type timedBus struct {
	*atecctest.Chip
	clock *atecctest.Clock
	hz    int
}

func (b timedBus) Tx(addr uint16, w, r []byte) error {
	err := b.Chip.Tx(addr, w, r)
	bytes := 1 // the address
	if err == nil {
		bytes += len(w) + len(r)
	}
	b.clock.Advance(time.Duration(bytes*9) * time.Second / time.Duration(b.hz))
	return err
}

// Trouble in finding the chip: each is its own error, in bounded time.
func TestFindTheChip(t *testing.T) {
	type setup struct {
		model atecctest.Options
		opts  atecc608.Options
		hz    int  // of a bus that takes its time; 0: no time at all
		awake bool // the chip is awake at the start
		deaf  bool // the bus refuses address 0
		want  error
	}
	at0x35 := provisioned(func(c *[128]byte) { c[16] = 0x6a })
	for name, s := range map[string]setup{
		"at 100 kHz":                {hz: 100_000},
		"no chip":                   {opts: atecc608.Options{Address: 0x11}, model: atecctest.Options{Config: provisioned(func(c *[128]byte) { c[16] = 0x20 })}, hz: 100_000, want: atecc608.ErrNoChip},
		"at another address":        {model: atecctest.Options{Config: at0x35}, want: atecc608.ErrAddress},
		"at 400 kHz":                {model: atecctest.Options{BusHz: 400_000}, hz: 400_000, want: atecc608.ErrBusSpeed},
		"at 400 kHz, but awake":     {model: atecctest.Options{BusHz: 400_000}, awake: true, want: atecc608.ErrBusSpeed},
		"the bus refuses address 0": {deaf: true, want: atecc608.ErrNoChip},
	} {
		t.Run(name, func(t *testing.T) {
			clock := new(atecctest.Clock)
			model := atecctest.New(s.model)
			model.SetClock(clock.Now)
			if s.awake {
				model.Wake()
				clock.Advance(tWHI)
				model.Tx(atecctest.DefaultAddress, nil, make([]byte, 4))
			}
			var bus atecc608.Bus = model
			if s.hz != 0 {
				bus = timedBus{model, clock, s.hz}
			}
			if s.deaf {
				bus = deafBus{model}
			}
			s.opts.Clock = clock
			start := clock.Now()
			_, err := atecc608.Open(t.Context(), bus, s.opts)
			if !errors.Is(err, s.want) {
				t.Fatalf("%v; want %v", err, s.want)
			}
			for _, other := range []error{atecc608.ErrNoChip, atecc608.ErrAddress, atecc608.ErrBusSpeed} {
				if other != s.want && errors.Is(err, other) {
					t.Errorf("%v is %v too", err, other)
				}
			}
			if errors.Is(err, atecc608.ErrAddress) && !strings.Contains(err.Error(), "0x35") {
				t.Errorf("%v does not say where the chip is", err)
			}
			if took := clock.Now().Sub(start); took > 2*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

// deafBus refuses address 0, as machine.I2C of TinyGo does on the RP2040.
type deafBus struct{ *atecctest.Chip }

func (b deafBus) Tx(addr uint16, w, r []byte) error {
	if addr == 0 {
		return errors.New("reserved address")
	}
	return b.Chip.Tx(addr, w, r)
}

func TestWakeHook(t *testing.T) {
	clock := new(atecctest.Clock)
	model := atecctest.New(atecctest.Options{Config: provisioned()})
	model.SetClock(clock.Now)
	pulses := 0
	_, err := atecc608.Open(t.Context(), deafBus{model}, atecc608.Options{
		Clock: clock,
		Wake:  func(context.Context) error { pulses++; model.Wake(); return nil },
	})
	if err != nil || pulses != 1 {
		t.Fatalf("%v after %d pulses", err, pulses)
	}
	broken := errors.New("no such pin")
	_, err = atecc608.Open(t.Context(), deafBus{model}, atecc608.Options{Clock: clock, Wake: func(context.Context) error { return broken }})
	if !errors.Is(err, broken) {
		t.Fatalf("a hook that fails: %v", err)
	}
}

func TestOtherChip(t *testing.T) {
	clock := new(atecctest.Clock)
	model := atecctest.New(atecctest.Options{Config: provisioned(func(c *[128]byte) { c[6] = 0x50 })}) // an ATECC508A
	model.SetClock(clock.Now)
	if _, err := atecc608.Open(t.Context(), model, atecc608.Options{Clock: clock}); !errors.Is(err, errors.ErrUnsupported) {
		t.Fatal(err)
	}
}

// A call ends with its context, or when its time is over, and the next works.
func TestBounds(t *testing.T) {
	const timeout = 200 * time.Millisecond
	r := newRig(t, atecctest.Options{Config: provisioned(), Times: atecctest.NeverBusy}, atecc608.Options{Timeout: timeout})
	signer := generate(t, r.chip.KeyStore(atecc608.Slots{}), keystore.Enrolment)
	digest := sha256.Sum256(nil)

	r.model.SetFaults(func(tr atecctest.Transaction) atecctest.Fault {
		if tr.Read == 67 { // the signature never comes
			return atecctest.NACK
		}
		return atecctest.NoFault
	})
	start := r.clock.Now()
	if _, err := signer.Sign(nil, digest[:], crypto.SHA256); !errors.Is(err, atecc608.ErrTimeout) {
		t.Errorf("a chip that stays busy: %v", err)
	}
	if took := r.clock.Now().Sub(start); took > timeout {
		t.Errorf("took %v", took)
	}
	r.model.SetFaults(nil)
	if _, err := signer.Sign(nil, digest[:], crypto.SHA256); err != nil {
		t.Errorf("afterwards: %v", err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	r.model.SetFaults(func(atecctest.Transaction) atecctest.Fault { cancel(); return atecctest.NACK })
	if _, err := r.chip.Counter(ctx, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled on the way: %v", err)
	}
	r.model.SetFaults(nil)
	if _, err := r.chip.Counter(ctx, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled before: %v", err)
	}
	if _, err := signer.Sign(nil, digest[:], crypto.SHA256); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// A call waits for its turn no longer than its context or its time, which the
// clock of the options tells: the test's own never plays a part.
func TestTurn(t *testing.T) {
	const timeout = 100 * time.Millisecond
	clock := new(atecctest.Clock)
	model := atecctest.New(atecctest.Options{Config: provisioned()})
	model.SetClock(clock.Now)
	bus := &blockingBus{Chip: model, block: make(chan struct{}), entered: make(chan struct{}, 1)}
	chip, err := atecc608.Open(t.Context(), bus, atecc608.Options{Timeout: timeout, Clock: clock})
	require.NoError(t, err)
	_, err = chip.Config(t.Context())
	require.NoError(t, err)
	bus.on.Store(true)
	counter := func(ctx context.Context) chan error {
		done := make(chan error, 1)
		go func() { _, err := chip.Counter(ctx, 0); done <- err }()
		return done
	}
	first := counter(t.Context())
	<-bus.entered

	second := counter(t.Context())
	select {
	case err := <-second:
		t.Errorf("the clock stands still, but a call does not wait: %v", err)
	case <-time.After(2 * timeout): // may pass by chance, never fail by it
	}
	config := configOfChip(t, chip)
	assert.True(t, config.Locked(), "Config does not wait for a bus that stands still")
	ctx, cancel := context.WithCancel(t.Context())
	third := counter(ctx)
	cancel()
	assert.ErrorIs(t, <-third, context.Canceled)
	for waiting := true; waiting; { // until it has begun to wait, and the time has passed
		clock.Advance(timeout)
		select {
		case err := <-second:
			assert.ErrorIs(t, err, atecc608.ErrTimeout)
			waiting = false
		default:
			runtime.Gosched()
		}
	}
	bus.on.Store(false)
	close(bus.block)
	assert.ErrorIs(t, <-first, atecc608.ErrTimeout, "the call on a bus that stood still")
	_, err = chip.Counter(t.Context(), 0)
	assert.NoError(t, err, "afterwards")
}

// blockingBus stands still when it is switched on.
type blockingBus struct {
	*atecctest.Chip
	on      atomic.Bool
	entered chan struct{}
	block   chan struct{}
}

func (b *blockingBus) Tx(addr uint16, w, r []byte) error {
	if b.on.Load() {
		select {
		case b.entered <- struct{}{}:
		default:
		}
		<-b.block
	}
	return b.Chip.Tx(addr, w, r)
}

// The hard one: every fault, at random, for thousands of signatures.
func TestRandomFaults(t *testing.T) {
	signs := 10_000
	if testing.Short() {
		signs = 500
	}
	const timeout = 2 * time.Second
	r := newRig(t, atecctest.Options{Config: provisioned(), Times: atecctest.MaxTimes}, atecc608.Options{Timeout: timeout})
	signer := generate(t, r.chip.KeyStore(atecc608.Slots{}), keystore.Enrolment)
	public := signer.Public().(*ecdsa.PublicKey)
	random := rand.New(rand.NewPCG(1, 2))
	counts := make(map[atecctest.Fault]int)
	faults := func(percent int) func(atecctest.Transaction) atecctest.Fault {
		return func(atecctest.Transaction) atecctest.Fault {
			if random.IntN(100) >= percent {
				return atecctest.NoFault
			}
			fault := atecctest.Fault(1 + random.IntN(int(atecctest.SelfTestFailed)))
			counts[fault]++
			return fault
		}
	}
	failed := 0
	var longest time.Duration
	for i := range signs {
		r.model.SetFaults(faults(1 + i%20)) // up to a fifth of all transactions
		digest := sha256.Sum256([]byte{byte(i), byte(i >> 8)})
		start := r.clock.Now()
		signature, err := signer.Sign(nil, digest[:], crypto.SHA256)
		longest = max(longest, r.clock.Now().Sub(start))
		switch {
		case err != nil:
			failed++
			r.model.SetFaults(nil)
			if signature, err = signer.Sign(nil, digest[:], crypto.SHA256); err != nil {
				t.Fatalf("sign %d, after the faults have stopped: %v", i, err)
			}
			fallthrough
		default:
			if !ecdsa.VerifyASN1(public, digest[:], signature) {
				t.Fatalf("sign %d: wrong signature", i)
			}
		}
	}
	r.model.SetFaults(nil)
	if longest > timeout {
		t.Errorf("a call took %v, longer than its time-out", longest)
	}
	again, err := r.chip.Signer(t.Context(), 0)
	if err != nil || !public.Equal(again.Public()) {
		t.Errorf("the key is lost: %v", err)
	}
	t.Logf("%d signs, %d failed, longest %v, faults %v", signs, failed, longest, counts)
}

// Keys are made, and counters count, under faults too: one key, and never two
// increments for one.
func TestOnceUnderFaults(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for range 300 {
		r := newRig(t, atecctest.Options{Config: provisioned()}, atecc608.Options{})
		r.model.SetFaults(func(atecctest.Transaction) atecctest.Fault {
			if random.IntN(8) > 0 {
				return atecctest.NoFault
			}
			return atecctest.Fault(1 + random.IntN(int(atecctest.SelfTestFailed)))
		})
		made, err := r.chip.GenerateKey(t.Context(), 0)
		n, countErr := r.chip.Increment(t.Context(), 0)
		r.model.SetFaults(nil)
		if err == nil {
			stored, err := r.chip.PublicKey(t.Context(), 0)
			if err != nil || !stored.Equal(made) {
				t.Fatalf("the key that was returned is not the one in the chip: %v", err)
			}
		}
		counted, err := r.chip.Counter(t.Context(), 0)
		if err != nil || counted > 1 || countErr == nil && (n != 1 || counted != 1) {
			t.Fatalf("increment: %d, %v; the chip counts %d, %v", n, countErr, counted, err)
		}
	}
}

// The driver does the same again when a recorded chip answers, and nothing else.
func TestReplay(t *testing.T) {
	digest := sha256.Sum256(nil)
	use := func(bus atecc608.Bus, clock atecc608.Clock) []byte {
		t.Helper()
		chip, err := atecc608.Open(t.Context(), bus, atecc608.Options{Clock: clock})
		if err != nil {
			t.Fatal(err)
		}
		signer, err := chip.Signer(t.Context(), 0)
		if errors.Is(err, fs.ErrNotExist) {
			if _, err = chip.GenerateKey(t.Context(), 0); err == nil {
				signer, err = chip.Signer(t.Context(), 0)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		signature, err := signer.Sign(nil, digest[:], crypto.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		return signature
	}
	clock := new(atecctest.Clock)
	model := atecctest.New(atecctest.Options{Config: provisioned(), Times: atecctest.MaxTimes})
	model.SetClock(clock.Now)
	recorder := atecctest.NewRecorder(model)
	want := use(recorder, clock)
	player := atecctest.NewPlayer(recorder.Trace())
	if got := use(player, new(atecctest.Clock)); !bytes.Equal(got, want) {
		t.Errorf("signature %x, recorded %x", got, want)
	}
	if err := player.Close(); err != nil {
		t.Error(err)
	}
}

// forgetfulBus lets the chip lose its digest just before a command that needs
// it, and wakes it again, as traffic to other devices may.
type forgetfulBus struct {
	*atecctest.Chip
	clock  *atecctest.Clock
	opcode byte
}

func (b *forgetfulBus) Tx(addr uint16, w, r []byte) error {
	if b.opcode != 0 && len(w) > 2 && w[0] == 3 && w[2] == b.opcode {
		b.opcode = 0
		b.Chip.Tx(addr, []byte{1}, nil)
		b.Chip.Wake()
		b.clock.Advance(tWHI)
	}
	return b.Chip.Tx(addr, w, r)
}

func TestLostDigest(t *testing.T) {
	bus := &forgetfulBus{clock: new(atecctest.Clock), Chip: atecctest.New(atecctest.Options{Config: provisioned()})}
	bus.SetClock(bus.clock.Now)
	chip, err := atecc608.Open(t.Context(), bus, atecc608.Options{Clock: bus.clock, ECDSA: goecdsa.P256{}})
	if err != nil {
		t.Fatal(err)
	}
	signer := generate(t, chip.KeyStore(atecc608.Slots{}), keystore.Enrolment)
	digest := sha256.Sum256(nil)
	bus.opcode = 0x41 // Sign
	signature, err := signer.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		t.Errorf("sign: %v", err)
	}
	bus.opcode = 0x45 // Verify
	if err := chip.Verify(t.Context(), signer.Public().(*ecdsa.PublicKey), digest[:], signature); err != nil {
		t.Errorf("verify: %v", err)
	}
}
