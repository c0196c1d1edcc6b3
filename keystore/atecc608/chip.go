package atecc608

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"
)

// Bus is an I2C bus. Tx writes w to the 7-bit address, then, after a repeated
// START, reads len(r) bytes; an empty slice leaves out its part. It returns an
// error if anything is not acknowledged, and must return in bounded time. The
// driver never passes both slices, nor none. Calls do not overlap.
//
// It is met by i2c.Bus of periph.io and by machine.I2C of TinyGo.
type Bus interface {
	Tx(addr uint16, w, r []byte) error
}

// Clock tells the time and waits. The driver uses no other. It is safe for
// concurrent use.
//
// A call that waits for its turn sleeps on the clock meanwhile. On a virtual
// clock that would make the time pass for the call that has the turn: a Clock
// with a further method Wait, like Sleep but leaving it to others to move the
// time on, is waited on with that. The Clock of atecctest has it.
type Clock interface {
	Now() time.Time
	// Sleep returns nil after d, or the context's error as soon as it ends.
	Sleep(ctx context.Context, d time.Duration) error
}

// ECDSA is what a host may do itself rather than ask the chip. Package goecdsa
// has it from Go's crypto/ecdsa. It is safe for concurrent use.
type ECDSA interface {
	// PublicKey returns the form that the key has outside: what the Public of
	// a [Signer] is.
	PublicKey(key PublicKey) crypto.PublicKey
	// Verify reports whether signature, R and S of 32 bytes each, big-endian,
	// is one of the digest of 32 bytes.
	Verify(key PublicKey, digest []byte, signature [64]byte) bool
}

const (
	// DefaultAddress is the I2C address of a blank ATECC608 and of TrustCustom
	// parts. TNGTLS parts have 0x35, TFLXTLS 0x36, TNGLoRaWAN 0x59.
	DefaultAddress = 0x60
	// DefaultTimeout bounds every call when Options says nothing.
	DefaultTimeout = 5 * time.Second
)

// otherAddresses are where Open looks before it says that there is no chip.
var otherAddresses = [...]uint16{DefaultAddress, 0x35, 0x36, 0x59}

// Options are what [Open] needs besides a bus. The zero value suits a chip at
// 0x60 on a bus of 100 kHz.
type Options struct {
	// Address is the chip's I2C address, 7 bits; 0: [DefaultAddress].
	Address uint16
	// Timeout bounds every call, waiting for its turn included; 0:
	// [DefaultTimeout]. A call may exceed it by one transaction, which cannot
	// be broken off.
	Timeout time.Duration
	// Wake makes the wake pulse: SDA low for at least 60 µs. Nil: the driver
	// writes to address 0. It is called in the course of other calls and never
	// overlaps with Bus.Tx.
	Wake func(ctx context.Context) error
	// ECDSA checks each signature that the chip makes, before it is returned,
	// and says what the Public of a [Signer] is: goecdsa.P256{} is right
	// wherever crypto/tls or crypto/x509 is to use the key. Nil is for a
	// microcontroller without room for that: the chip verifies its signatures
	// itself, which takes it twice as long, and Public is a [PublicKey].
	ECDSA ECDSA
	// Lock keeps other processes from the bus while a call uses the chip. It is
	// called when the call's turn has come; ctx ends when the call's time does.
	// unlock is called at the end of the turn. Nil: no other process uses the
	// bus. On Linux an flock of the bus device does it: see examples/keys.
	Lock func(ctx context.Context) (unlock func(), err error)
	// Clock is for tests; nil: the system's.
	Clock Clock
}

// Chip is one ATECC608. It is safe for concurrent use: calls take turns.
//
// Calls return a [Status] if the chip refuses, [ErrTimeout], [ErrNoChip] if it
// does not answer, the context's error, or the bus's.
type Chip struct {
	bus     Bus
	address uint16
	timeout time.Duration
	pulse   func(ctx context.Context) error
	ecdsa   ECDSA // nil: the chip itself
	lock    func(ctx context.Context) (unlock func(), err error)
	clock   Clock
	life    context.Context // for calls that have none

	turn chan struct{} // holds one token; who takes it owns link, config, known and empty
	link link

	config Config              // as last read
	known  bool                // it has been read
	empty  [numSlots]time.Time // when the slot was last found empty

	mu    sync.Mutex
	shown *Config // config as of the last turn, for those who have none; nil: not read yet
}

// Open finds the chip, whatever state it is in, and asks what it is. It changes
// nothing, and takes six transactions if all goes well. ctx bounds Open alone;
// its values serve later calls that have no context.
//
// Errors: [ErrNoChip], [ErrAddress], [ErrOtherDevice], [ErrBusSpeed];
// errors.ErrUnsupported if what answers is another chip of the family, such as
// an ATECC508A; fs.ErrInvalid for an address of more than 7 bits. A blank chip
// is no error here.
func Open(ctx context.Context, bus Bus, opts Options) (*Chip, error) {
	c := &Chip{
		bus:     bus,
		address: opts.Address,
		timeout: opts.Timeout,
		pulse:   opts.Wake,
		ecdsa:   opts.ECDSA,
		lock:    opts.Lock,
		clock:   opts.Clock,
		life:    context.WithoutCancel(ctx),
		turn:    make(chan struct{}, 1),
	}
	if bus == nil {
		return nil, fmt.Errorf("atecc608: open: no bus: %w", fs.ErrInvalid)
	}
	if c.address == 0 {
		c.address = DefaultAddress
	}
	if c.address > 0x7f {
		return nil, fmt.Errorf("atecc608: open: address 0x%x has more than 7 bits (data sheets print it times two): %w", c.address, fs.ErrInvalid)
	}
	if c.timeout <= 0 {
		c.timeout = DefaultTimeout
	}
	if c.clock == nil {
		c.clock = systemClock{}
	}
	err := c.do(ctx, "open", repeatable, func(l *call) error {
		err := l.identify()
		if errors.Is(err, ErrNoChip) || errors.Is(err, ErrOtherDevice) {
			return l.whyNoChip(err)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return c, nil
}

// identify reads the first quarter of the configuration zone: it has the
// revision and the clock divider. The rest is read when it is needed.
func (l *call) identify() error {
	const family = 0x60 // third byte of the revision
	first, err := l.read(zoneConfig, 0, 32)
	if err != nil {
		return err
	}
	var config Config
	copy(config[:], first)
	if revision := config.Revision(); revision[2] != family {
		return fmt.Errorf("the chip's revision is % x: no ATECC608: %w", revision, errors.ErrUnsupported)
	}
	l.setSlowness(config.slowness())
	return nil
}

// Config returns the configuration zone as it was last read: by Provision, Plan,
// LockSlot, or opening a signer. Only if it never was does Config read it; else
// it does not use the chip, nor wait for a call that does.
func (c *Chip) Config(ctx context.Context) (Config, error) {
	c.mu.Lock()
	shown := c.shown
	c.mu.Unlock()
	if shown != nil {
		return *shown, nil
	}
	var config Config
	err := c.do(ctx, "read the configuration", repeatable, func(l *call) error {
		err := l.refresh()
		config = l.config
		return err
	})
	return config, err
}

// Address returns the I2C address, 7 bits.
func (c *Chip) Address() uint16 { return c.address }

// Sleep puts the chip into its state of least power; the next call wakes it.
// Otherwise it is left idle between calls, which spares the memory cells that
// the random generator's seed is kept in.
func (c *Chip) Sleep(ctx context.Context) error {
	return c.do(ctx, "sleep", repeatable, func(l *call) error {
		if err := l.wake(); err != nil {
			return err
		}
		err := l.send([]byte{wordSleep})
		l.awake = false
		return err
	})
}

// systemClock is the system's clock.
type systemClock struct{}

func (systemClock) Now() time.Time { return time.Now() }

func (systemClock) Sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
