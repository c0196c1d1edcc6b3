package atecc608

import (
	"context"
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

// Clock tells the time and waits. The driver uses no other.
type Clock interface {
	Now() time.Time
	// Sleep returns nil after d, or the context's error as soon as it ends.
	Sleep(ctx context.Context, d time.Duration) error
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
	clock   Clock
	life    context.Context // for calls that have none

	turn chan struct{} // holds one token; who takes it owns link, config and empty
	link link

	config Config              // as last read
	empty  [numSlots]time.Time // when the slot was last found empty

	mu    sync.Mutex
	shown Config // config as of the last turn, for those who have none
}

// Open finds the chip, whatever state it is in, and reads its configuration.
// It changes nothing. ctx bounds Open alone; its values serve later calls that
// have no context.
//
// Errors: [ErrNoChip], [ErrAddress], [ErrBusSpeed]; errors.ErrUnsupported if
// what answers is another chip, such as an ATECC508A; fs.ErrInvalid for an
// address of more than 7 bits. A blank chip is no error here.
func Open(ctx context.Context, bus Bus, opts Options) (*Chip, error) {
	c := &Chip{
		bus:     bus,
		address: opts.Address,
		timeout: opts.Timeout,
		pulse:   opts.Wake,
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
		config, err := l.identify()
		if errors.Is(err, ErrNoChip) {
			return l.whyNoChip(err)
		}
		c.config = config
		return err
	})
	if err != nil {
		return nil, err
	}
	return c, nil
}

// identify reads the configuration of a chip that says it is an ATECC608.
func (l *call) identify() (Config, error) {
	const family = 0x60 // third byte of the revision
	revision, err := l.exec(command{opcode: opInfo, reply: 4})
	if err != nil {
		return Config{}, err
	}
	if revision[2] != family {
		return Config{}, fmt.Errorf("the chip's revision is % x: no ATECC608: %w", revision, errors.ErrUnsupported)
	}
	config, err := l.readConfig()
	if err != nil {
		return Config{}, err
	}
	l.slowness = config.slowness()
	return config, nil
}

// Config returns the configuration zone as [Open] read it, or as Provision,
// Plan, or opening a signer has read it since. It does not use the chip, nor
// wait for a call that does.
func (c *Chip) Config() Config {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.shown
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
