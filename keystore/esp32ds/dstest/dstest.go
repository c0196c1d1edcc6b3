// Package dstest is a software model of the Digital Signature peripheral of
// ESP32 chips and of the eFuse key blocks that it takes its keys from, for
// testing what uses package esp32ds without a chip.
//
// The model shares no code with package esp32ds: it works from the bytes, as the
// chip does.
package dstest

import (
	"context"
	"errors"
	"sync"

	"github.com/quarklink-go/quarklink/keystore/esp32ds"
)

// ErrPowerCut is what everything returns from the instant at which
// [Chip.CutPower] cuts the power until [Chip.PowerUp].
var ErrPowerCut = errors.New("dstest: the power is cut")

// Chip is one chip: a Digital Signature peripheral and its eFuses. It is an
// [esp32ds.Peripheral] and an [esp32ds.EFuse], safe for concurrent use; as the
// peripheral without a driver's lock it answers esp32ds.ErrBusy to a second call
// while one is running.
type Chip struct {
	kind esp32ds.Chip

	busy sync.Mutex // held while the peripheral computes

	mu         sync.Mutex // guards what follows
	registers  Registers
	virtual    *Registers // the emulated eFuses, if any
	faults     []Fault
	signatures int
	countdown  int // burn steps until the power is cut; negative: it is not
	off        bool
}

var (
	_ esp32ds.Peripheral = (*Chip)(nil)
	_ esp32ds.EFuse      = (*Chip)(nil)
)

// New returns a blank chip. A kind without the peripheral gives a chip that
// refuses every signature.
func New(kind esp32ds.Chip) *Chip { return &Chip{kind: kind, countdown: -1} }

// Fault is what goes wrong with one signature. The zero value is none.
type Fault struct {
	// Err is returned instead of a result: one of package esp32ds's codes, or
	// esp32ds.ErrBusy.
	Err error
	// Hang makes the peripheral stay busy until the call's context ends, and
	// then return esp32ds.ErrTimeout.
	Hang bool
	// Corrupt changes the result, which is little-endian. What it returns is
	// returned.
	Corrupt func(result []byte) []byte
}

// Inject makes the next signatures fail, one fault each, in order.
func (c *Chip) Inject(faults ...Fault) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.faults = append(c.faults, faults...)
}

// Signatures returns how many exponentiations the chip has done.
func (c *Chip) Signatures() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.signatures
}

// CutPower cuts the power after that many burn steps more; 0 cuts it before the
// next. A burn step is one 32-bit word of a key block or of BLOCK0.
func (c *Chip) CutPower(steps int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.countdown = steps
}

// PowerUp ends a power cut, or one that has not come yet. EFuses keep what was
// burned.
func (c *Chip) PowerUp() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.countdown, c.off = -1, false
}

// up is what every access begins with.
func (c *Chip) up(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if c.off {
		return ErrPowerCut
	}
	return nil
}
