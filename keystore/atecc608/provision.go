package atecc608

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
)

// Plan is what [Chip.Provision] would do to one chip. Print it, and let someone
// who may decide read it, before going on.
type Plan struct {
	// Have is the chip's configuration zone as it is, Want as it will be but
	// for the locks.
	Have, Want Config
	// Address is where the chip is now and will stay.
	Address uint16

	chip *Chip
}

// firstWritable is where the configuration zone begins to be writable.
const firstWritable = 16

// Plan compares the chip with the configuration that it is to have and says
// what would be done: words written, then both zones locked. It writes nothing.
// Of want, bytes 0 to 15 and the two lock bytes do not count, nor, on a chip
// whose configuration is locked, the counters, bytes 84 and 85 and the locks of
// slots. A good want is [Config.WithSigningKeys] of the chip's own
// [Chip.Config].
//
// What would lose or harm the chip is refused, with fs.ErrInvalid: an I2C
// address (byte 16) other than the present one, a change of UserExtra or
// UserExtraAdd (bytes 84 and 85), a slot locked from the start (bytes 88 and
// 89), a configuration in which no slot could ever sign, a counter that is not
// encoded as one (bytes 52 to 67), a reserved bit that is set, or, on a chip
// whose configuration is locked already, any difference. What is only unusual or
// dangerous, such as a key that anyone may replace, Plan accepts: the printed
// plan warns of it.
func (c *Chip) Plan(ctx context.Context, want Config) (*Plan, error) {
	var plan *Plan
	err := c.do(ctx, "plan", repeatable, func(l *call) error {
		have, err := l.readConfig()
		if err != nil {
			return err
		}
		copy(want[:firstWritable], have[:])
		copy(want[cfgLockData:], have[cfgLockData:cfgSlotLocked])
		if have.Locked() { // what changes all the same
			copy(want[cfgCounters:], have[cfgCounters:cfgUseLock])
			copy(want[cfgUserExtra:], have[cfgUserExtra:cfgSlotLocked+2])
		}
		plan = &Plan{Have: have, Want: want, Address: c.address, chip: c}
		return plan.check()
	})
	if err != nil {
		return nil, err
	}
	return plan, nil
}

func (p *Plan) check() error {
	refuse := func(format string, args ...any) error {
		return fmt.Errorf(format+": %w", append(args, fs.ErrInvalid)...)
	}
	switch have, want := &p.Have, &p.Want; {
	case have.Locked() && *have != *want:
		return refuse("the configuration zone is locked with another configuration")
	case have.Locked():
		return nil
	case want[cfgI2CAddress] != byte(p.Address<<1):
		return refuse("byte 16 is 0x%02x: the chip would be lost at another address; at 0x%02x it must be 0x%02x (the address times two)",
			want[cfgI2CAddress], p.Address, p.Address<<1)
	case want[cfgUserExtra] != have[cfgUserExtra] || want[cfgUserExtraAdd] != have[cfgUserExtraAdd]:
		return refuse("bytes 84 and 85 (UserExtra, UserExtraAdd) are not changed here")
	case want.I2CAddress() != p.Address:
		return refuse("the chip would be lost at address 0x%02x", want.I2CAddress())
	case want[cfgSlotLocked] != 0xff || want[cfgSlotLocked+1] != 0xff:
		return refuse("bytes 88 and 89 would lock slots before they hold anything: they must be ff ff")
	case !want.counterValid(0) || !want.counterValid(1):
		return refuse("bytes 52 to 67 hold no counters; counters at 0 are ff ff ff ff 00 00 00 00, twice")
	case want.reserved() != "":
		return refuse("%s is reserved and must be zero", want.reserved())
	case !want.signs():
		return refuse("no slot could ever hold a key that signs, and that could not be changed: see Config.WithSigningKeys")
	}
	return nil
}

// words returns the offsets of the words to write.
func (p *Plan) words() []int {
	var offsets []int
	for at := firstWritable; at < len(p.Have); at += 4 {
		if !bytes.Equal(p.Have[at:at+4], p.Want[at:at+4]) {
			offsets = append(offsets, at)
		}
	}
	return offsets
}

// Done reports whether there is nothing to do.
func (p *Plan) Done() bool { return p.Have.Locked() && p.Have.DataLocked() }

// String lists everything that Provision will do.
func (p *Plan) String() string {
	var b strings.Builder
	serial := p.Have.Serial()
	fmt.Fprintf(&b, "ATECC608 with serial number %x at address 0x%02x:\n", serial, p.Address)
	if p.Done() {
		b.WriteString("both zones are locked already; nothing to do\n")
		return b.String()
	}
	for _, at := range p.words() {
		fmt.Fprintf(&b, "write configuration bytes %3d to %3d: % x, was % x\n", at, at+3, p.Want[at:at+4], p.Have[at:at+4])
	}
	if !p.Have.Locked() {
		b.WriteString("lock the configuration zone FOR EVER\n")
	}
	b.WriteString("lock the data and OTP zones FOR EVER\n")
	for _, warning := range p.Want.warnings() {
		fmt.Fprintf(&b, "WARNING: %s\n", warning)
	}
	b.WriteString("This cannot be undone.\n")
	return b.String()
}

// Provision carries out a plan made by this chip's [Chip.Plan]: it writes the
// configuration, reads it back, locks it with its CRC, so that the chip itself
// refuses to lock anything else, and locks the data zone. THIS CANNOT BE
// UNDONE. Afterwards the chip can make keys.
//
// The chip must still be as the plan found it, else fs.ErrInvalid. After a power
// cut, or an error, make a new plan and go on. Each step, not the whole, is
// bounded by Options.Timeout.
//
// The data zone is locked without a CRC, because the content of a new chip's
// slots is not known; nothing is written to them.
func (c *Chip) Provision(ctx context.Context, p *Plan) error {
	const step = "provision"
	if p == nil || p.chip != c {
		return fmt.Errorf("atecc608: %s: the plan is not one for this chip: %w", step, fs.ErrInvalid)
	}
	if err := p.check(); err != nil { // the fields may have been changed
		return fmt.Errorf("atecc608: %s: %w", step, err)
	}
	if err := c.do(ctx, step, repeatable, func(l *call) error { return l.expect(&p.Have) }); err != nil {
		return err
	}
	if p.Done() {
		return nil
	}
	for _, at := range p.words() {
		err := c.do(ctx, fmt.Sprintf("provision: write bytes %d to %d", at, at+3), repeatable, func(l *call) error {
			return l.write(zoneConfig, configAddress(at), p.Want[at:at+4])
		})
		if err != nil {
			return err
		}
	}
	// A lock whose reply was lost is repeated, and then refused because it is
	// in force: what counts is how the chip is in the end.
	err := c.do(ctx, "provision: lock the configuration zone", repeatable, func(l *call) error {
		return l.lockZone(&p.Want, cfgLockConfig, command{opcode: opLock, p1: lockConfig, p2: crc16(p.Want[:])})
	})
	if err != nil {
		return err
	}
	return c.do(ctx, "provision: lock the data zone", repeatable, func(l *call) error {
		want := p.Want
		want[cfgLockConfig] = 0
		return l.lockZone(&want, cfgLockData, command{opcode: opLock, p1: lockData})
	})
}

// expect fails unless the configuration zone is this.
func (l *call) expect(want *Config) error {
	config, err := l.readConfig()
	if err != nil {
		return err
	}
	if config != *want {
		return fmt.Errorf("the chip's configuration is not what it should be; make a new plan: %w", fs.ErrInvalid)
	}
	return nil
}

// lockZone locks one zone if it is not locked, and fails unless the
// configuration is as wanted before, and locked after.
func (l *call) lockZone(want *Config, lockByte int, lock command) error {
	config, err := l.readConfig()
	if err != nil {
		return err
	}
	locked := *want
	locked[lockByte] = 0
	if config == locked {
		return nil
	}
	if err := l.expect(want); err != nil {
		return err
	}
	if _, err := l.exec(lock); err != nil {
		return err
	}
	return l.expect(&locked)
}

// LockSlot locks one slot for ever: its key or its data can neither be written
// nor made anew. THIS CANNOT BE UNDONE. It is for the enrolment key, once it is
// made. The error is fs.ErrNotExist if the slot is for a private key and holds
// none yet, because it never could again; [ErrSlot] if the slot's KeyConfig does
// not allow it; fs.ErrInvalid for a slot other than 0 to 15. Locking a locked
// slot does nothing.
func (c *Chip) LockSlot(ctx context.Context, slot int) error {
	return c.do(ctx, fmt.Sprintf("lock slot %d", slot), repeatable, func(l *call) error {
		if slot < 0 || slot >= numSlots {
			return fmt.Errorf("need 0 to 15: %w", fs.ErrInvalid)
		}
		config, err := l.readConfig()
		if err != nil {
			return err
		}
		switch {
		case !config.Locked():
			return ErrConfigUnlocked
		case config.SlotLocked(slot):
			return nil
		case !config.KeyConfig(slot).Lockable():
			return fmt.Errorf("KeyConfig %04x says that the slot cannot be locked: %w", uint16(config.KeyConfig(slot)), ErrSlot)
		}
		if config.KeyConfig(slot).Private() {
			if holds, err := l.keyValid(slot); err != nil {
				return err
			} else if !holds {
				return fmt.Errorf("it holds no key yet; make one first: %w", fs.ErrNotExist)
			}
		}
		if _, err := l.exec(command{opcode: opLock, p1: lockSlot | byte(slot)<<2}); err != nil {
			return err
		}
		if config, err = l.readConfig(); err != nil {
			return err
		}
		if !config.SlotLocked(slot) {
			return errors.New("the chip accepted the lock, but the slot is not locked")
		}
		return nil
	})
}
