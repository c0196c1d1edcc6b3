package atecctest_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/keystore/atecc608/atecctest"
)

// The zero Options are a chip that wakes, works and falls asleep as silicon does
// at its worst.
func TestDefaultWakeTime(t *testing.T) {
	for name, test := range map[string]struct {
		opts atecctest.Options
		want time.Duration
	}{
		"by default":          {atecctest.Options{}, 1500 * time.Microsecond},
		"with a self test":    {atecctest.Options{Config: changed(func(c []byte) { c[90] = 1 })}, 20 * time.Millisecond},
		"at once, by choice":  {atecctest.Options{WakeTime: -1}, 0},
		"another, by choice":  {atecctest.Options{WakeTime: time.Second / 8}, time.Second / 8},
		"choice over options": {atecctest.Options{WakeTime: 1, Config: changed(func(c []byte) { c[90] = 1 })}, 1},
	} {
		l := newLibrary(t, test.opts)
		l.chip.Tx(0, []byte{0}, nil)
		if test.want > 0 {
			l.clock.Advance(test.want - 1)
			assert.ErrorIs(t, l.chip.Tx(0x60, nil, make([]byte, 4)), atecctest.ErrNACK, "%s: too early", name)
			l.clock.Advance(1)
		}
		assert.NoError(t, l.chip.Tx(0x60, nil, make([]byte, 4)), name)
	}
}

// changed is a blank configuration with a change.
func changed(change func(c []byte)) *[128]byte {
	config := atecctest.BlankConfig()
	change(config[:])
	return &config
}

func TestDefaultBusyTimes(t *testing.T) {
	for name, test := range map[string]struct {
		times func(opcode, chipMode byte) time.Duration
		want  time.Duration
	}{
		"by default":            {nil, 23 * time.Millisecond},
		"never busy, by choice": {atecctest.NeverBusy, 0},
	} {
		l := newLibrary(t, atecctest.Options{Times: test.times})
		l.wake()
		random := append([]byte{3, 7, 0x1b, 0, 0, 0}, crc([]byte{7, 0x1b, 0, 0, 0})...)
		require.NoError(t, l.chip.Tx(0x60, random, nil))
		if test.want > 0 {
			l.clock.Advance(test.want - 1)
			assert.ErrorIs(t, l.chip.Tx(0x60, nil, make([]byte, 35)), atecctest.ErrNACK, "%s: too early", name)
			l.clock.Advance(1)
		}
		assert.NoError(t, l.chip.Tx(0x60, nil, make([]byte, 35)), name)
	}
}

func TestDefaultWatchdog(t *testing.T) {
	for name, test := range map[string]struct {
		opts atecctest.Options
		want time.Duration
	}{
		"by default":         {atecctest.Options{}, 700 * time.Millisecond},
		"long":               {atecctest.Options{Config: changed(func(c []byte) { c[19] = 4 })}, 7 * time.Second},
		"another, by choice": {atecctest.Options{Watchdog: 1700 * time.Millisecond}, 1700 * time.Millisecond},
	} {
		l := newLibrary(t, test.opts)
		start := l.clock.Now()
		l.wake()
		l.clock.Advance(test.want - l.clock.Now().Sub(start) - 1)
		assert.NoError(t, l.chip.Tx(0x60, []byte{0}, nil), "%s: just before", name)
		l.clock.Advance(1)
		assert.ErrorIs(t, l.chip.Tx(0x60, []byte{0}, nil), atecctest.ErrNACK, name)
	}
}

func TestUnknownWordAddressesAreNotAcknowledged(t *testing.T) {
	l := newLibrary(t, atecctest.Options{})
	l.wake()
	for word := 4; word < 256; word++ {
		assert.ErrorIs(t, l.chip.Tx(0x60, []byte{byte(word), 7}, nil), atecctest.ErrNACK, "%02x", word)
	}
	assert.NoError(t, l.chip.Tx(0x60, []byte{0}, nil), "a known one")
}

// start sends a command and leaves the chip busy with it.
func (l *library) start(opcode, p1 byte, p2 uint16, data []byte) {
	l.t.Helper()
	l.wake()
	packet := append([]byte{byte(7 + len(data)), opcode, p1, byte(p2), byte(p2 >> 8)}, data...)
	require.NoError(l.t, l.chip.Tx(0x60, append(append([]byte{3}, packet...), crc(packet)...), nil))
}

// A power cut while the chip writes leaves what was, what was to be, or what is
// half written, by choice; after the command's time nothing can be undone.
func TestPowerCutInWrite(t *testing.T) {
	old, fresh := bytes.Repeat([]byte{0x11}, 32), bytes.Repeat([]byte{0x22}, 32)
	torn := append(bytes.Repeat([]byte{0xff}, 16), fresh[:16]...)
	for name, test := range map[string]struct {
		effect atecctest.CutEffect
		after  time.Duration
		want   []byte
	}{
		"undone":           {atecctest.Undone, 44 * time.Millisecond, old},
		"complete":         {atecctest.Complete, 0, fresh},
		"torn":             {atecctest.Torn, 44 * time.Millisecond, torn},
		"undone, too late": {atecctest.Undone, 45 * time.Millisecond, fresh},
		"torn, too late":   {atecctest.Torn, 45 * time.Millisecond, fresh},
	} {
		t.Run(name, func(t *testing.T) {
			config := changed(func(c []byte) {
				c[86], c[87] = 0, 0
				copy(c[20+2*9:], []byte{0, 0}) // slot 9 in clear
			})
			l := newLibrary(t, atecctest.Options{Config: config})
			l.chip.SetSlot(9, old)
			l.start(0x12, 0x82, 9<<3, fresh)
			l.clock.Advance(test.after)
			l.chip.PowerCut(test.effect)
			assert.Equal(t, test.want, l.get(32, 0x02, 0x82, 9<<3))
		})
	}
}

func TestPowerCutInGenKey(t *testing.T) {
	holds := map[atecctest.CutEffect]byte{atecctest.Undone: 1, atecctest.Complete: 1, atecctest.Torn: 0}
	for effect, valid := range holds {
		config := changed(func(c []byte) { c[86], c[87] = 0, 0 })
		l := newLibrary(t, atecctest.Options{Config: config})
		before := l.get(64, 0x40, 4, 0)
		l.start(0x40, 4, 0, nil)
		l.chip.PowerCut(effect)
		assert.Equal(t, valid, l.get(4, 0x30, 1, 0)[0], "effect %d: a key", effect)
		if valid == 1 {
			after := l.get(64, 0x40, 0, 0)
			assert.Equal(t, effect == atecctest.Undone, bytes.Equal(before, after), "effect %d: the old key", effect)
		}
	}
}

// Counters are made to survive a cut.
func TestPowerCutInCounter(t *testing.T) {
	for effect, want := range map[atecctest.CutEffect]byte{atecctest.Undone: 0, atecctest.Complete: 1, atecctest.Torn: 1} {
		l := newLibrary(t, atecctest.Options{})
		l.start(0x24, 1, 0, nil)
		l.chip.PowerCut(effect)
		assert.Equal(t, want, l.get(4, 0x24, 0, 0)[0], "effect %d", effect)
	}
}

// PowerCycle is the cut that undoes.
func TestPowerCycleUndoes(t *testing.T) {
	l := newLibrary(t, atecctest.Options{})
	l.start(0x24, 1, 0, nil)
	l.chip.PowerCycle()
	assert.Equal(t, byte(0), l.get(4, 0x24, 0, 0)[0])
}

// cryptoauthlib asks for the ECDSA test with 0x04, the documents with 0x02.
func TestSelfTestModes(t *testing.T) {
	l := newLibrary(t, atecctest.Options{Watchdog: time.Minute})
	for _, mode := range []byte{0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x3b, 0x3f} {
		assert.Equal(t, []byte{0}, l.get(1, 0x77, mode, 0), "%02x", mode)
	}
	for _, mode := range []byte{0, 0x40, 0x80} {
		l.want(parse, 0x77, mode, 0)
	}
}

func TestSHAEnd(t *testing.T) {
	message := make([]byte, 64)
	want := sha256.Sum256(message)
	l := newLibrary(t, atecctest.Options{})
	l.want(ok, 0x47, 0, 0)
	assert.Equal(t, want[:], l.get(32, 0x47, 2, 64, message), "an ATECC608 takes 64 bytes")
	l = newLibrary(t, atecctest.Options{ShortSHAEnd: true})
	l.want(ok, 0x47, 0, 0)
	l.want(parse, 0x47, 2, 64, message)
	l.want(ok, 0x47, 0, 0)
	short := sha256.Sum256(message[:63])
	assert.Equal(t, short[:], l.get(32, 0x47, 2, 63, message[:63]), "an ATECC508A takes 63")
}

func TestTrafficWakes(t *testing.T) {
	for _, wakes := range []bool{false, true} {
		l := newLibrary(t, atecctest.Options{TrafficWakes: wakes})
		assert.ErrorIs(t, l.chip.Tx(0x48, []byte{0}, nil), atecctest.ErrNACK, "it is not for this chip")
		l.clock.Advance(1500 * time.Microsecond)
		err := l.chip.Tx(0x60, nil, make([]byte, 4))
		assert.Equal(t, wakes, err == nil, "awake")
	}
	// The watchdog counts from the traffic, whatever pulses come later.
	l := newLibrary(t, atecctest.Options{TrafficWakes: true})
	l.chip.Tx(0x48, []byte{0}, nil)
	l.clock.Advance(600 * time.Millisecond)
	l.wake()
	l.clock.Advance(100 * time.Millisecond)
	assert.ErrorIs(t, l.chip.Tx(0x60, []byte{0}, nil), atecctest.ErrNACK)
}

// Both errors that the chip latches last through idle, until it sleeps.
func TestLatchedErrors(t *testing.T) {
	for fault, status := range map[atecctest.Fault]byte{atecctest.SelfTestFailed: 0x07, atecctest.HealthTestFailed: 0x08} {
		l := newLibrary(t, atecctest.Options{})
		l.wake()
		first := true
		l.chip.SetFaults(func(atecctest.Transaction) atecctest.Fault {
			if first {
				first = false
				return fault
			}
			return atecctest.NoFault
		})
		assert.Equal(t, []byte{status}, l.command(0x30, 0, 0), "%v", fault)
		require.NoError(t, l.chip.Tx(0x60, []byte{2}, nil))
		answer := make([]byte, 4)
		l.chip.Tx(0, []byte{0}, nil)
		l.clock.Advance(1500 * time.Microsecond)
		require.NoError(t, l.chip.Tx(0x60, nil, answer))
		assert.Equal(t, status, answer[1], "%v, after idle", fault)
		require.NoError(t, l.chip.Tx(0x60, []byte{1}, nil))
		l.get(4, 0x30, 0, 0)
	}
	assert.Equal(t, "health test failed", atecctest.HealthTestFailed.String())
}

// Microchip's tests suggest that an external Verify works before the data zone
// is locked; no document says so.
func TestVerifyUnlocked(t *testing.T) {
	signing := locked(t, true)
	public := signing.get(64, 0x40, 4, 2)
	digest := sum([]byte("message"))
	signature := signing.sign(2, digest)
	for _, allowed := range []bool{false, true} {
		l := newLibrary(t, atecctest.Options{VerifyUnlocked: allowed, Config: changed(func(c []byte) {
			c[87] = 0
			c[96+2*14] = 0x30 // slot 14: a public key
		})})
		l.chip.SetSlot(14, bytes.Join([][]byte{make([]byte, 4), public[:32], make([]byte, 4), public[32:]}, nil))
		want := byte(exec)
		if allowed {
			want = ok
		}
		l.want(ok, 0x16, 0x43, 0, digest)
		l.want(want, 0x45, 0x22, 4, signature, public)
		l.want(ok, 0x16, 0x43, 0, digest)
		l.want(exec, 0x45, 0x20, 14, signature) // a stored key never
	}
}

// A part that was filled in the factory is easily made.
func TestPartOfTheFactory(t *testing.T) {
	l := newLibrary(t, atecctest.Options{Config: changed(func(c []byte) { c[86], c[87] = 0, 0 })})
	public := locked(t, true).get(64, 0x40, 4, 2)
	l.chip.SetOTP([]byte("x6tjuZMy"))
	l.chip.SetPublicKey(0, public)
	assert.Equal(t, append([]byte("x6tjuZMy"), make([]byte, 24)...), l.get(32, 0x02, 0x81, 0))
	assert.Equal(t, public, l.get(64, 0x40, 0, 0))
	assert.Equal(t, byte(1), l.get(4, 0x30, 1, 0)[0], "the key is valid")
	l.want(ok, 0x16, 0x43, 0, make([]byte, 32))
	l.want(exec, 0x41, 0xa0, 0) // nobody has its private half
	l.chip.SetSlot(0, nil)
	l.want(exec, 0x40, 0, 0)
}

// Several chips hear everything on their wire.
func TestWire(t *testing.T) {
	clock := new(atecctest.Clock)
	one := atecctest.New(atecctest.Options{})
	two := atecctest.New(atecctest.Options{Config: changed(func(c []byte) { c[16] = 0x6a })})
	one.SetClock(clock.Now)
	two.SetClock(clock.Now)
	bus := atecctest.Wire{one, two}
	assert.ErrorIs(t, bus.Tx(0, []byte{0}, nil), atecctest.ErrNACK, "nobody acknowledges the pulse")
	clock.Advance(1500 * time.Microsecond)
	for _, addr := range []uint16{0x60, 0x35} {
		answer := make([]byte, 4)
		require.NoError(t, bus.Tx(addr, nil, answer))
		assert.Equal(t, []byte{4, 0x11, 0x33, 0x43}, answer)
	}
	assert.ErrorIs(t, bus.Tx(0x36, nil, make([]byte, 4)), atecctest.ErrNACK)
}

// Wait leaves it to others to move the clock on.
func TestClockWait(t *testing.T) {
	clock := new(atecctest.Clock)
	done := make(chan error, 1)
	go func() { done <- clock.Wait(t.Context(), time.Second) }()
	for waiting := true; waiting; {
		require.NoError(t, clock.Sleep(t.Context(), time.Second))
		select {
		case err := <-done:
			require.NoError(t, err)
			waiting = false
		default:
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	assert.True(t, errors.Is(clock.Wait(ctx, time.Hour), context.Canceled))
	assert.NoError(t, clock.Wait(t.Context(), 0))
}
