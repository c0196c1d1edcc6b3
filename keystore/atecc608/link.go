package atecc608

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Times of the data sheet (ATECC608B summary section 2.3) and of
// cryptoauthlib.
const (
	wakeDelay     = 1500 * time.Microsecond // tWHI, from the pulse to the first transaction
	selfTestDelay = 25 * time.Millisecond   // more than tWHIST: the power-on self test
	watchdogLeast = 700 * time.Millisecond  // from waking to forced sleep
	longest       = 1200 * time.Millisecond // any command that some other program may have begun
	readReply     = 10 * time.Millisecond   // at 100 kHz, with a margin

	shortestPulse = 67 * time.Microsecond // nine bits at 133 kHz; faster, and eight are less than 60 µs
	fastestBus    = 9 * time.Microsecond  // nine bits at 1 MHz; less was never on the bus
)

// link is what is known of the chip between transactions.
type link struct {
	awake    bool
	used     bool      // a command was sent since it woke
	answered bool      // the pulse has woken it before
	woken    time.Time // when the watchdog began, at the latest
	slowness int       // 0, 1, 2: the clock divider
	// typical is how long each command took lately: polling begins then.
	typical map[byte]time.Duration
	buffer  [1 + maxCommand]byte
}

// call is one turn at the chip.
type call struct {
	*Chip
	*link
	ctx context.Context
	end time.Time
}

// How a call may be repeated after trouble.
type repeat bool

const (
	repeatable repeat = true  // doing it twice does no harm
	once       repeat = false // only if the chip has certainly not done it
)

const maxAttempts = 10

// do waits for the chip and runs f in one turn, again if there was trouble and
// it may be repeated. The chip is left idle, or asleep after an error.
func (c *Chip) do(ctx context.Context, step string, may repeat, f func(*call) error) error {
	err := c.inTurn(ctx, may, f)
	if err != nil {
		return fmt.Errorf("atecc608: %s: %w", step, err)
	}
	return nil
}

func (c *Chip) inTurn(ctx context.Context, may repeat, f func(*call) error) error {
	l := &call{Chip: c, link: &c.link, ctx: ctx, end: c.clock.Now().Add(c.timeout)}
	if err := l.take(); err != nil {
		return err
	}
	defer c.endTurn()
	if c.lock != nil {
		unlock, err := l.lockBus()
		if err != nil {
			return err
		}
		defer unlock()
	}
	for attempt := 1; ; attempt++ {
		err := f(l)
		if err == nil {
			l.leave(wordIdle)
			return nil
		}
		var trouble *failure
		if !errors.As(err, &trouble) {
			l.leave(wordIdle)
			return err
		}
		l.leave(wordSleep) // also clears errors that the chip latches
		if attempt == maxAttempts || may == once && !trouble.notExecuted {
			return err
		}
		if pauseErr := l.pause(time.Duration(attempt) * time.Millisecond); pauseErr != nil {
			return fmt.Errorf("%w; before that: %w", pauseErr, err)
		}
	}
}

// endTurn shows what the turn has read of the configuration.
func (c *Chip) endTurn() {
	if c.known {
		config := c.config
		c.mu.Lock()
		c.shown = &config
		c.mu.Unlock()
	}
	<-c.turn
}

// take waits for the caller's turn.
func (l *call) take() error {
	if err := l.ctx.Err(); err != nil {
		return err
	}
	select { // the usual case needs no timer
	case l.turn <- struct{}{}:
		return nil
	default:
	}
	ctx, stop := context.WithCancel(l.ctx)
	defer stop()
	expired := make(chan error, 1)
	go func() { expired <- wait(ctx, l.clock, l.timeout) }()
	select {
	case l.turn <- struct{}{}:
		return nil
	case err := <-expired: // or the context has ended
		if err == nil {
			err = ErrTimeout
		}
		return fmt.Errorf("waiting for other calls: %w", err)
	}
}

// wait waits while another call may be using the clock.
func wait(ctx context.Context, clock Clock, d time.Duration) error {
	if patient, ok := clock.(interface {
		Wait(ctx context.Context, d time.Duration) error
	}); ok {
		return patient.Wait(ctx, d)
	}
	return clock.Sleep(ctx, d)
}

// lockBus calls Options.Lock, with what is left of the call's time.
func (l *call) lockBus() (unlock func(), err error) {
	ctx, stop := context.WithTimeout(l.ctx, l.end.Sub(l.clock.Now()))
	defer stop()
	unlock, err = l.lock(ctx)
	switch {
	case err == nil:
		return unlock, nil
	case l.ctx.Err() != nil:
		return nil, l.ctx.Err()
	case ctx.Err() != nil:
		return nil, fmt.Errorf("waiting for the bus: %w", ErrTimeout)
	}
	return nil, fmt.Errorf("Options.Lock: %w", err)
}

// leave sends the chip into idle or sleep. If that fails, the next wake finds
// out.
func (l *call) leave(word byte) {
	if l.awake {
		l.awake = false
		l.bus.Tx(l.address, []byte{word}, nil)
	}
}

// check says whether the call may go on.
func (l *call) check() error {
	if err := l.ctx.Err(); err != nil {
		return err
	}
	if !l.clock.Now().Before(l.end) {
		return ErrTimeout
	}
	return nil
}

// pause waits for d, or as long as the call may last.
func (l *call) pause(d time.Duration) error {
	if left := l.end.Sub(l.clock.Now()); d > left {
		d = left
	}
	if d > 0 {
		if err := l.clock.Sleep(l.ctx, d); err != nil {
			return err
		}
	}
	return l.check()
}

func (l *call) send(w []byte) error {
	if err := l.check(); err != nil {
		return err
	}
	if err := l.bus.Tx(l.address, w, nil); err != nil {
		return &failure{err: fmt.Errorf("write to the chip: %w", err), notExecuted: true}
	}
	return nil
}

func (l *call) receive(r []byte) error {
	if err := l.check(); err != nil {
		return err
	}
	if err := l.bus.Tx(l.address, nil, r); err != nil {
		return &failure{err: fmt.Errorf("read from the chip: %w", err)}
	}
	return nil
}

// wake brings the chip from any state into a known one: just woken, with nothing
// read yet and the whole of the watchdog's time ahead. A chip that something
// else has woken would ignore the pulse and go to sleep when it is least
// expected; so it is told to idle first, which keeps what was loaded into it. A
// chip that is asleep or idle does not even hear that. One that is still busy
// answers nothing: it is waited for.
func (l *call) wake() error {
	var signs wakeSigns
	for give := l.clock.Now().Add(longest); l.clock.Now().Before(give); {
		woke, err := l.tryWake(&signs)
		if woke || err != nil {
			return err
		}
		if signs.strange == maxStrange && !l.answered {
			return fmt.Errorf("something else answers at 0x%02x: %w", l.address, ErrOtherDevice)
		}
		delay := selfTestDelay
		if l.bus.Tx(l.address, []byte{wordSleep}, nil) == nil {
			signs.heard, delay = true, wakeDelay
		}
		if err := l.pause(delay); err != nil {
			return err
		}
	}
	return fmt.Errorf("wake at address 0x%02x: %w", l.address, signs.explain(l.answered))
}

// maxStrange is how many answers that are none of a chip's make it another
// device.
const maxStrange = 4

// wakeSigns is what can be learnt from a chip that does not wake.
type wakeSigns struct {
	failed  Status // its self test has failed
	heard   bool   // it was there, and was told to idle or to sleep
	short   bool   // the pulse was too short
	strange int    // answers in a row that are not of the protocol
	bus     error  // what the bus says
}

func (s *wakeSigns) explain(answered bool) error {
	switch {
	case s.failed != 0:
		return s.failed
	case s.short || s.heard && !answered:
		return ErrBusSpeed
	case s.bus != nil:
		return fmt.Errorf("%w; the bus says: %w", ErrNoChip, s.bus)
	}
	return ErrNoChip
}

// tryWake makes one wake pulse and reports whether the chip has woken by it.
func (l *call) tryWake(signs *wakeSigns) (woke bool, err error) {
	if err := l.check(); err != nil {
		return false, err
	}
	if l.bus.Tx(l.address, []byte{wordIdle}, nil) == nil {
		signs.heard = true
	}
	start := l.clock.Now()
	if err := l.sendPulse(); err != nil {
		return false, err
	}
	if took := l.clock.Now().Sub(start); l.Chip.pulse == nil && took >= fastestBus && took < shortestPulse {
		signs.short = true
	}
	if err := l.pause(wakeDelay); err != nil {
		return false, err
	}
	var answer [4]byte
	if err := l.receive(answer[:]); err != nil {
		var trouble *failure
		if !errors.As(err, &trouble) {
			return false, err
		}
		signs.bus, signs.strange = trouble.err, 0 // not worth more tries than these
		return false, nil
	}
	status, ok := wakeStatus(answer)
	switch {
	case ok && status == StatusWoken:
		l.awake, l.used, l.answered, l.woken = true, false, true, start
		return true, nil
	case ok && (status == StatusSelfTest || status == StatusRandomness):
		signs.failed = status
	}
	if signs.strange++; ok {
		signs.strange = 0
	}
	return false, nil
}

// checked passes on an error that ends the call, and drops trouble.
func (l *call) checked(err error) error {
	var trouble *failure
	if errors.As(err, &trouble) {
		return nil
	}
	return err
}

func (l *call) sendPulse() error {
	if err := l.check(); err != nil {
		return err
	}
	if l.Chip.pulse != nil {
		if err := l.Chip.pulse(l.ctx); err != nil {
			return fmt.Errorf("Options.Wake: %w", err)
		}
		return nil
	}
	// Nobody acknowledges address 0, so an error is what is expected.
	l.bus.Tx(0, []byte{0}, nil)
	return nil
}

// wakeStatus reads the answer to the wake pulse. Microchip's documents print
// the one for a failed self test with a CRC that is not right: both are taken.
func wakeStatus(answer [4]byte) (Status, bool) {
	if answer == [4]byte{4, 7, 0xc4, 0x40} {
		return StatusSelfTest, true
	}
	data, ok := parseReply(answer[:])
	if !ok {
		return 0, false
	}
	return Status(data[0]), true
}

// whyNoChip looks for a chip elsewhere before it says that there is none.
func (l *call) whyNoChip(err error) error {
	for _, other := range otherAddresses {
		if other == l.address {
			continue
		}
		if err := l.sendPulse(); err != nil {
			return err
		}
		if err := l.pause(wakeDelay); err != nil {
			return err
		}
		var answer [4]byte
		if l.bus.Tx(other, nil, answer[:]) != nil {
			continue
		}
		if status, ok := wakeStatus(answer); ok && status == StatusWoken {
			l.bus.Tx(other, []byte{wordSleep}, nil)
			return fmt.Errorf("nothing at 0x%02x, but a chip at 0x%02x: %w", l.address, other, ErrAddress)
		}
	}
	return err
}

// exec has the chip carry out one command and returns the reply's data, which
// is valid until the next. It wakes the chip if it must, and before the
// watchdog could cut the command short it passes through idle, which keeps
// what earlier commands of the call have loaded.
func (l *call) exec(cmd command) ([]byte, error) {
	limit := maxTime(cmd.opcode, l.slowness)
	if l.awake && l.used && l.clock.Now().Sub(l.woken)+limit+pollStep(limit)+readReply > watchdogLeast {
		l.leave(wordIdle)
	}
	if !l.awake {
		if err := l.wake(); err != nil {
			return nil, err
		}
	}
	l.used = true
	if err := l.send(cmd.frame(l.buffer[:0])); err != nil {
		return nil, err
	}
	r := l.buffer[:max(cmd.reply, 1)+overhead]
	if err := l.await(cmd.opcode, limit, r); err != nil {
		return nil, err
	}
	data, err := l.reply(r)
	if err != nil {
		return nil, err
	}
	if len(data) == 1 && data[0] != 0 {
		return nil, Status(data[0]).trouble()
	}
	if len(data) != max(cmd.reply, 1) {
		return nil, &failure{err: errUnwanted}
	}
	return data, nil
}

// await reads the reply as soon as the command is done: until then the chip
// does not acknowledge. It begins when such a command is typically done, and
// learns when that is.
func (l *call) await(opcode byte, limit time.Duration, r []byte) error {
	step := pollStep(limit)
	first, known := l.typical[opcode]
	if !known {
		first = limit / 2
	}
	start := l.clock.Now()
	if err := l.pause(first); err != nil {
		return err
	}
	for polls := 0; ; polls++ {
		asked := l.clock.Now()
		err := l.receive(r)
		if err == nil {
			typical := first - step
			if polls > 0 {
				typical = asked.Sub(start) - step
			}
			if l.typical == nil {
				l.typical = make(map[byte]time.Duration)
			}
			l.typical[opcode] = max(typical, 0)
			return nil
		}
		if err := l.checked(err); err != nil {
			return err
		}
		if l.clock.Now().Sub(start) > 2*limit+selfTestDelay {
			return &failure{err: errNoReply}
		}
		if err := l.pause(step); err != nil {
			return err
		}
	}
}

// pollStep is the time between polls.
func pollStep(limit time.Duration) time.Duration {
	return min(max(limit/20, time.Millisecond), 10*time.Millisecond)
}

// reply checks the reply that was read, and reads it again from its beginning
// if it has arrived damaged: the chip keeps it until the next command.
func (l *call) reply(r []byte) ([]byte, error) {
	const reads = 4
	for read := 1; ; read++ {
		if data, ok := parseReply(r); ok {
			return data, nil
		}
		if read == reads {
			return nil, &failure{err: errReply}
		}
		if err := l.send([]byte{wordReset}); err != nil {
			return nil, &failure{err: err}
		}
		if err := l.receive(r); err != nil {
			return nil, err
		}
	}
}

// maxTime is the longest execution time of a command: cryptoauthlib's tables
// for the ATECC608 (calib_execution.c), one column for each clock divider.
func maxTime(opcode byte, slowness int) time.Duration {
	ms := [3]int{50, 50, 75}
	switch opcode {
	case opRead, opInfo:
		ms = [3]int{5, 5, 5}
	case opNonce:
		ms = [3]int{20, 20, 20}
	case opRandom:
		ms = [3]int{23, 23, 23}
	case opCounter:
		ms = [3]int{25, 25, 25}
	case opLock:
		ms = [3]int{35, 35, 35}
	case opSHA:
		ms = [3]int{36, 42, 75}
	case opWrite:
		ms = [3]int{45, 45, 45}
	case opECDH:
		ms = [3]int{75, 172, 531}
	case opVerify:
		ms = [3]int{105, 295, 1085}
	case opGenKey:
		ms = [3]int{115, 215, 653}
	case opSign:
		ms = [3]int{115, 220, 665}
	}
	return time.Duration(ms[slowness]) * time.Millisecond
}
