package atecctest

import (
	"crypto/rand"
	"errors"
	"io"
	"sync"
	"time"
)

// ErrNACK is what Tx returns when the chip does not acknowledge: there is no
// chip at that address, or it sleeps, idles or is busy.
var ErrNACK = errors.New("atecctest: not acknowledged")

const (
	// DefaultAddress is the 7-bit I2C address of a blank chip.
	DefaultAddress = 0x60

	fastestWake = 133_000 // Hz: above, eight low bits are shorter than the 60 µs that wake the chip
	watchdog    = 700 * time.Millisecond
	watchdog10x = 7 * time.Second // with ChipMode bit 2 set
	wakeTime    = 1500 * time.Microsecond
)

// Options describe a chip. The zero value is a blank ATECC608B, as strict as
// silicon is at its worst: it takes as long as Microchip's tables say, and its
// watchdog acts as early as the data sheet allows. It is on a bus at 100 kHz.
type Options struct {
	// Config is the initial content of the configuration zone, with its locks
	// in bytes 86 to 89; nil: [BlankConfig]. Its byte 16 holds the I2C address
	// times two.
	Config *[128]byte
	// Random is where the chip takes its randomness from, keys included; nil:
	// crypto/rand.
	Random io.Reader
	// Times tells how long the chip is busy with a command; chipMode is byte
	// 19 of the configuration, whose upper five bits divide the clock. Nil:
	// [MaxTimes], the longest that Microchip states. [NeverBusy] makes
	// transactions easy to count.
	Times func(opcode, chipMode byte) time.Duration
	// WakeTime is how long after a wake pulse the chip begins to answer. 0: the
	// data sheet's tWHI, 1.5 ms, or 20 ms if ChipOptions bit 0 asks for the
	// power-on self test; negative: at once.
	WakeTime time.Duration
	// Watchdog is the time from waking to forced sleep. 0: 0.7 s, or ten times
	// that if ChipMode bit 2 is set. The data sheet allows 0.7 s to 1.7 s.
	Watchdog time.Duration
	// TrafficWakes has every transaction with another address on the bus wake
	// the chip, as traffic below some 300 kHz may.
	TrafficWakes bool
	// ShortSHAEnd has the end of a SHA command take at most 63 bytes, as an
	// ATECC508A does; an ATECC608 takes 64.
	ShortSHAEnd bool
	// VerifyUnlocked has the chip verify with an external key before its data
	// zone is locked. Microchip's tests suggest that silicon does; the documents
	// do not say so.
	VerifyUnlocked bool
	// BusHz is the bus clock. 0: 100 kHz. A faster bus than 133 kHz makes a
	// wake pulse that is too short.
	BusHz int
}

// BlankConfig is the configuration zone of an ATECC608B as it leaves the
// factory, both zones unlocked, with a serial number of our own. Slots 0 to 2
// are for private keys.
func BlankConfig() [128]byte {
	return [128]byte{
		0x01, 0x23, 0x51, 0x4c, 0x00, 0x00, 0x60, 0x03, 0x6b, 0x2e, 0x90, 0x17, 0xee, 0x61, 0x4d, 0x00,
		0xc0, 0x00, 0x00, 0x00, 0x83, 0x20, 0x87, 0x20, 0x8f, 0x20, 0xc4, 0x8f, 0x8f, 0x8f, 0x8f, 0x8f,
		0x9f, 0x8f, 0xaf, 0x8f, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
		0x00, 0x00, 0xaf, 0x8f, 0xff, 0xff, 0xff, 0xff, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0xff, 0xff,
		0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
		0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x55, 0x55, 0xff, 0xff, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
		0x33, 0x00, 0x33, 0x00, 0x33, 0x00, 0x1c, 0x00, 0x1c, 0x00, 0x1c, 0x00, 0x1c, 0x00, 0x1c, 0x00,
		0x3c, 0x00, 0x3c, 0x00, 0x3c, 0x00, 0x3c, 0x00, 0x3c, 0x00, 0x3c, 0x00, 0x3c, 0x00, 0x1c, 0x00,
	}
}

// Chip is one chip on a bus of its own. All methods are safe for concurrent
// use; every transaction is atomic, as on a bus. Make one with [New].
type Chip struct {
	opts Options

	mu     sync.Mutex
	now    func() time.Time
	faults func(Transaction) Fault
	stats  Stats

	memory
	state   state
	address uint16    // 7 bits
	woken   time.Time // when the watchdog began
	ready   time.Time // when the chip answers: after waking, after executing
	input   []byte    // of the command being received
	output  []byte    // the reply, read from position
	pos     int
	latched byte // an error that every reply repeats until the chip sleeps
	volatile
	before *memory // what a command that is executing has found; nil: none is
}

type state uint8

const (
	asleep state = iota
	idle
	awake
)

// Word addresses: the first byte of every write.
const (
	wordReset   = 0x00
	wordSleep   = 0x01
	wordIdle    = 0x02
	wordCommand = 0x03
)

// New returns a chip that has just been powered: asleep.
func New(opts Options) *Chip {
	c := &Chip{opts: opts, now: time.Now}
	if opts.Random == nil {
		c.opts.Random = rand.Reader
	}
	c.config = BlankConfig()
	if opts.Config != nil {
		c.config = *opts.Config
	}
	c.erase()
	c.sleep()
	return c
}

// SetClock makes the chip read the time from now, which must not go backwards.
// Without it the chip uses time.Now.
func (c *Chip) SetClock(now func() time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = now
}

// PowerCycle takes the supply away and gives it back, as [Chip.PowerCut] does
// with [Undone].
func (c *Chip) PowerCycle() { c.PowerCut(Undone) }

// CutEffect is what a power cut makes of a command that is executing.
type CutEffect uint8

const (
	Undone   CutEffect = iota // it has had no effect
	Complete                  // it has had all of it
	// Torn: the memory that the command changes was erased, and only its second
	// half is written. A private key is no key then. Counters are never torn:
	// their encoding is made for that.
	Torn
)

// PowerCut takes the supply away and gives it back: whatever is volatile is
// lost, a command that was executing, whose time was not yet over, has had that
// effect, and the chip sleeps.
func (c *Chip) PowerCut(effect CutEffect) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.expire()
	c.cut(effect)
	c.prohibited = false
	c.latch = false
	c.sleep()
}

// Tx is one transaction on the bus: START, the address for writing and w if w
// is not empty; a (repeated) START, the address for reading and r if r is not
// empty; STOP. Both empty is nothing at all. Address 0 is the wake pulse, which
// nobody acknowledges: the result is always [ErrNACK]. Bytes read past the end
// of a reply are 0xFF.
func (c *Chip) Tx(addr uint16, w, r []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(w) == 0 && len(r) == 0 {
		return nil
	}
	c.expire()
	fault := c.nextFault(addr, w, r)
	err := c.transact(addr, w, r, fault)
	c.count(addr, w, r, err)
	return err
}

func (c *Chip) transact(addr uint16, w, r []byte, fault Fault) error {
	switch fault {
	case NACK:
		return ErrNACK
	case BrownOut, WatchdogExpired:
		c.cut(Undone)
		c.sleep()
		return ErrNACK
	case SelfTestFailed:
		c.latched = statusSelfTest
	case HealthTestFailed:
		c.latched = statusRNG
	}
	if addr == 0 {
		if c.opts.BusHz <= fastestWake {
			c.pulse()
		}
		return ErrNACK
	}
	if addr != c.address && c.opts.TrafficWakes {
		c.pulse()
	}
	if addr != c.address || c.state != awake || c.now().Before(c.ready) {
		return ErrNACK
	}
	if len(w) > 0 && w[0] > wordCommand {
		return ErrNACK
	}
	executes := false
	if len(w) > 0 {
		executes = c.write(w)
	}
	var err error
	if len(r) > 0 && c.state == awake {
		switch {
		case len(c.input) > 0: // a command is not complete, or not begun before STOP
			err = ErrNACK
		default:
			c.read(r)
		}
		if fault == BadCRC {
			r[len(r)-1] ^= 0x40
		}
	}
	if executes { // at STOP
		c.run(fault)
	}
	return err
}

// pulse is SDA held low, as by the address byte of a write to address 0. A chip
// that is awake takes no notice.
func (c *Chip) pulse() {
	if c.state == awake {
		return
	}
	c.state = awake
	c.woken = c.now()
	c.ready = c.woken.Add(c.wakeTime())
	c.input = nil
	c.reply(nil, statusWoken)
	if c.latched != 0 {
		c.reply(nil, c.latched)
	}
}

// write takes what the bus master sends, and reports whether a command is now
// complete.
func (c *Chip) write(w []byte) (complete bool) {
	switch w[0] {
	case wordReset:
		c.pos, c.input = 0, nil
	case wordSleep:
		c.sleep()
	case wordIdle:
		c.state, c.input = idle, nil
	case wordCommand:
		if len(w) == 1 && len(c.input) == 0 {
			c.pos = 0 // some drivers rewind this way
			return false
		}
		c.input = append(c.input, w[1:]...)
		return len(c.input) >= int(c.input[0]) // what follows is ignored
	}
	return false
}

func (c *Chip) read(r []byte) {
	n := copy(r, c.output[min(c.pos, len(c.output)):])
	for i := n; i < len(r); i++ {
		r[i] = 0xff
	}
	c.pos += len(r)
}

func (c *Chip) wakeTime() time.Duration {
	const selfTest = 20 * time.Millisecond // tWHIST
	switch {
	case c.opts.WakeTime != 0:
		return max(c.opts.WakeTime, 0)
	case c.chipOptions()&1 != 0:
		return selfTest
	}
	return wakeTime
}

// expire lets the time pass: a command comes to its end, the watchdog acts.
func (c *Chip) expire() {
	if c.before != nil && !c.now().Before(c.ready) {
		c.before = nil
	}
	if c.state == awake && !c.now().Before(c.watchdogEnd()) {
		c.sleep()
	}
}

func (c *Chip) watchdogEnd() time.Time {
	limit := c.opts.Watchdog
	if limit == 0 {
		limit = watchdog
		if c.chipMode()&4 != 0 {
			limit = watchdog10x
		}
	}
	return c.woken.Add(limit)
}

// sleep loses all that is volatile. A new I2C address takes effect.
func (c *Chip) sleep() {
	c.state = asleep
	c.volatile = volatile{}
	c.input, c.output, c.pos, c.latched = nil, nil, 0, 0
	c.address = c.i2cAddress()
}

// run executes the command that has arrived; the reply can be read when its
// time is over.
func (c *Chip) run(fault Fault) {
	group := c.input
	c.input = nil
	start := c.now()
	p, ok := parsePacket(group)
	switch {
	case fault == BadCommand || !ok:
		c.reply(nil, statusComm)
		return
	case c.latched != 0:
		c.reply(nil, c.latched)
		return
	}
	times := c.opts.Times
	if times == nil {
		times = MaxTimes
	}
	busy := times(p.opcode, c.chipMode())
	if !start.Add(busy).Before(c.watchdogEnd()) {
		c.reply(nil, statusWatchdog)
		return
	}
	if fault == ECCFault {
		switch p.opcode {
		case opGenKey, opSign, opVerify, opECDH:
			c.reply(nil, statusECC)
			return
		}
	}
	before := c.memory.clone()
	data, status := c.execute(p)
	c.reply(data, status)
	c.ready = start.Add(busy)
	if busy > 0 {
		c.before = before
	}
}

// cut ends a command that is executing.
func (c *Chip) cut(effect CutEffect) {
	before := c.before
	c.before = nil
	switch {
	case before == nil || effect == Complete:
	case effect == Undone:
		c.memory = *before
	case effect == Torn:
		c.memory.tear(before)
	}
}

func (c *Chip) reply(data []byte, status byte) {
	if data == nil {
		data = []byte{status}
	}
	c.output = makeGroup(data)
	c.pos = 0
}
