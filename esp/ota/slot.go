package ota

import (
	"context"
	"fmt"

	"github.com/quarklink-go/quarklink/esp/flash"
	"github.com/quarklink-go/quarklink/esp/otadata"
	"github.com/quarklink-go/quarklink/esp/partition"
)

// Slot is the OTA partition into which an update goes. It satisfies quarklink's Slot.
// One goroutine at a time uses it, and nothing else writes to the flash meanwhile.
type Slot struct {
	device *device
	flash  flash.NOR
	number int
	ready  bool // otadata does not choose the slot
}

// NewSlot chooses the slot for an update: the one after the application that runs,
// in the order of their numbers, or ota_0 if that is the factory application. While
// the one that runs is on trial the slot to go back to is passed over; if no other is
// left the error is [ErrOnTrial]. Without a slot that is free it is [ErrTable].
// Nothing is written yet.
func NewSlot(ctx context.Context, cfg Config) (*Slot, error) {
	d, err := open(cfg)
	if err != nil {
		return nil, err
	}
	keep, err := d.fallback(ctx)
	if err != nil {
		return nil, fmt.Errorf("ota: choose a slot: %w", err)
	}
	n := len(d.slots)
	for i := range n {
		number := (d.running + 1 + i) % n
		if number == d.running || number == keep {
			continue
		}
		r, err := d.region(d.slots[number])
		if err != nil {
			return nil, fmt.Errorf("ota: %w", err)
		}
		return &Slot{device: d, flash: r, number: number}, nil
	}
	if keep >= 0 {
		return nil, fmt.Errorf("ota: ota_%d: %w", keep, ErrOnTrial)
	}
	return nil, fmt.Errorf("ota: no OTA slot but the one that runs: %w", ErrTable)
}

// fallback returns the slot to which a trial goes back, or otadata.Factory if there is
// no trial or no slot is needed for it.
func (d *device) fallback(ctx context.Context) (int, error) {
	pending, err := d.onTrial(ctx)
	if err != nil || !pending {
		return otadata.Factory, err
	}
	data, err := otadata.Read(d.data)
	if err != nil {
		return otadata.Factory, err
	}
	data, _ = d.without(data, d.running)
	for _, slot := range data.Select(d.bootloader()).Order {
		if slot != d.running && d.verify(ctx, slot) == nil {
			return slot, nil
		}
	}
	return otadata.Factory, ctx.Err()
}

// Partition returns the partition that the slot is.
func (s *Slot) Partition() partition.Partition { return s.device.slots[s.number] }

// Size returns how many bytes the slot holds.
func (s *Slot) Size() int64 { return s.flash.Size() }

// ReadAt reads back what is in the slot.
func (s *Slot) ReadAt(b []byte, off int64) (int, error) { return s.flash.ReadAt(b, off) }

// writeUnit is what encrypted flash is written in, on every chip. The end of an image
// that is no multiple of it is filled up with 0xFF.
const writeUnit = 32

// WriteAt writes b, erasing each sector of 4096 bytes whose start the write reaches,
// and reads it back: flash.ErrProgram is flash that does not keep it, which is also
// what a write into a sector that was written before is, unless it begins at its
// start. off is a multiple of 32. A write that does not fit is flash.ErrBounds, and
// nothing of it is written.
//
// Before the first write otadata is made to choose the application that runs, if it
// chooses another: the bootloader is not to look for an image in a slot that is half
// written.
func (s *Slot) WriteAt(b []byte, off int64) (int, error) {
	if off < 0 || off%writeUnit != 0 || off > s.Size() || int64(len(b)) > s.Size()-off {
		return 0, fmt.Errorf("ota: write %d bytes at 0x%x of ota_%d, which has 0x%x: %w", len(b), off, s.number, s.Size(), flash.ErrBounds)
	}
	if err := s.prepare(); err != nil {
		return 0, fmt.Errorf("ota: make ota_%d inactive: %w", s.number, err)
	}
	for done := 0; done < len(b); {
		at := off + int64(done)
		part := b[done:min(len(b), done+int(flash.SectorSize-at%flash.SectorSize))]
		if err := s.writeSector(part, at); err != nil {
			return done, fmt.Errorf("ota: ota_%d: %w", s.number, err)
		}
		done += len(part)
	}
	return len(b), nil
}

// writeSector writes within one sector.
func (s *Slot) writeSector(b []byte, off int64) error {
	if off%flash.SectorSize == 0 {
		if err := flash.Erase(s.flash, off, flash.SectorSize); err != nil {
			return err
		}
	}
	whole := len(b) / writeUnit * writeUnit
	if err := flash.Write(s.flash, off, b[:whole]); err != nil || whole == len(b) {
		return err
	}
	var last [writeUnit]byte
	for i := copy(last[:], b[whole:]); i < writeUnit; i++ {
		last[i] = 0xFF
	}
	return flash.Write(s.flash, off+int64(whole), last[:])
}

// prepare takes the choice of the slot back, and has the application that runs
// chosen: it may have been started because the one that was chosen did not verify.
func (s *Slot) prepare() error {
	if s.ready {
		return nil
	}
	d := s.device
	if err := d.unchoose(s.number); err != nil {
		return err
	}
	data, err := otadata.Read(d.data)
	if err != nil {
		return err
	}
	active := data.Active()
	if d.running >= 0 && (active < 0 || data[active].Slot(len(d.slots)) != d.running) {
		b := d.bootloader()
		b.Rollback = false // it runs: it needs no trial
		if err := otadata.SetBoot(d.data, b, d.running); err != nil {
			return err
		}
	}
	s.ready = true
	return nil
}

// Activate verifies the image in the first size bytes of the slot and makes it the one
// that starts next, on trial if the bootloader rolls back. A power cut leaves the
// choice as it was or as it becomes.
func (s *Slot) Activate(ctx context.Context, size int64) error {
	if size <= 0 || size > s.Size() {
		return fmt.Errorf("ota: activate 0x%x bytes of ota_%d, which has 0x%x: %w", size, s.number, s.Size(), flash.ErrBounds)
	}
	if err := s.device.Verifier.Verify(ctx, s.flash, size); err != nil {
		return fmt.Errorf("ota: activate ota_%d: %w", s.number, err)
	}
	s.ready = false
	b := s.device.bootloader()
	if err := otadata.SetBoot(s.device.data, b, s.number); err != nil {
		return fmt.Errorf("ota: activate ota_%d: %w", s.number, err)
	}
	data, err := otadata.Read(s.device.data)
	if err != nil {
		return fmt.Errorf("ota: activate ota_%d: %w", s.number, err)
	}
	if c := data.Select(b); c.Start != s.number {
		return fmt.Errorf("ota: activate ota_%d: otadata does not choose it: %s", s.number, c.Reason)
	}
	return nil
}
