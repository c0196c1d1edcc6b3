package ota

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/quarklink-go/quarklink/esp/flash"
	"github.com/quarklink-go/quarklink/esp/otadata"
	"github.com/quarklink-go/quarklink/esp/partition"
)

var (
	// ErrTable is the error of a table in which nothing can be updated: no
	// otadata partition, no OTA slot that is free, slots that are not ota_0,
	// ota_1 and so on, or a partition outside the flash.
	ErrTable = errors.New("the partition table has no place for an update")

	// ErrOnTrial is the error of [NewSlot] while the application that runs is on
	// trial and the only other slot holds the one to go back to: confirm it or
	// roll it back first.
	ErrOnTrial = errors.New("the running application is on trial, and the other slot is needed to go back")

	// ErrNoFallback is the error of [Trial.Rollback] if no other application
	// would start.
	ErrNoFallback = errors.New("no other application to go back to")

	// ErrNotChosen is the error of [Trial.Rollback] if otadata does not choose the
	// application that runs: there is nothing to take back.
	ErrNotChosen = errors.New("otadata does not choose the running application")
)

// Verifier decides whether an image may run. secureboot.Verifier is one, and so is
// quarklink's Verifier.
type Verifier interface {
	Verify(ctx context.Context, image io.ReaderAt, size int64) error
}

// Config says what a Slot and a Trial work on. All but Rollback and OnTrial is
// required.
type Config struct {
	// Flash is the whole flash, as the program on the chip sees it: through
	// flash.Encrypted if it is encrypted.
	Flash flash.NOR
	// Table is its partition table.
	Table *partition.Table
	// Running is the partition of the application that runs, as
	// esp_ota_get_running_partition returns it: one of Table, factory or ota_n.
	Running partition.Partition
	// Verifier judges an image before it is activated, and the one that a
	// rollback goes back to.
	Verifier Verifier
	// Rollback: the bootloader was built with
	// CONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE.
	Rollback bool
	// OnTrial says, for a bootloader that does not roll back, whether the
	// application that runs is on trial, by the application's own record. Nil
	// means that it never is.
	OnTrial func(context.Context) (bool, error)
}

// device is a Config whose parts were found.
type device struct {
	Config
	data    flash.NOR // otadata
	slots   []partition.Partition
	factory *partition.Partition
	running int // slot, or otadata.Factory
}

func open(cfg Config) (*device, error) {
	switch {
	case cfg.Flash == nil || cfg.Table == nil:
		return nil, fmt.Errorf("ota: Config needs Flash and Table: %w", fs.ErrInvalid)
	case cfg.Verifier == nil:
		return nil, fmt.Errorf("ota: Config.Verifier is nil: %w", fs.ErrInvalid)
	}
	d := &device{Config: cfg, running: -2}
	if err := d.findApps(); err != nil {
		return nil, fmt.Errorf("ota: %w", err)
	}
	data, ok := cfg.Table.Find(partition.Data, partition.DataOTA)
	if !ok || data.Size < otadata.Size {
		return nil, fmt.Errorf("ota: no otadata partition of 0x%x bytes: %w", otadata.Size, ErrTable)
	}
	var err error
	if d.data, err = d.region(data); err != nil {
		return nil, fmt.Errorf("ota: %w", err)
	}
	return d, nil
}

// findApps finds the applications' partitions, as the bootloader does: of several of
// one subtype the last counts.
func (d *device) findApps() error {
	bySlot := make(map[int]partition.Partition)
	for _, p := range d.Table.Partitions {
		slot := int(p.Subtype) - int(partition.AppOTA0)
		switch {
		case p.Type != partition.App:
			continue
		case p.Subtype == partition.AppFactory:
			d.factory = &p
			slot = otadata.Factory
		case slot < 0 || slot > 15:
			continue
		default:
			bySlot[slot] = p
		}
		if p == d.Running {
			d.running = slot
		}
	}
	if d.running == -2 {
		return fmt.Errorf("Config.Running, %q at 0x%x, is no application of the table: %w", d.Running.Label, d.Running.Offset, ErrTable)
	}
	for slot := range len(bySlot) {
		p, ok := bySlot[slot]
		if !ok {
			return fmt.Errorf("%d OTA slots, and none is ota_%d: %w", len(bySlot), slot, ErrTable)
		}
		d.slots = append(d.slots, p)
	}
	return nil
}

func (d *device) bootloader() otadata.Bootloader {
	return otadata.Bootloader{Slots: len(d.slots), Factory: d.factory != nil, Rollback: d.Rollback}
}

// partition returns that of a slot, or of the factory application.
func (d *device) partition(slot int) partition.Partition {
	if slot == otadata.Factory {
		return *d.factory
	}
	return d.slots[slot]
}

func (d *device) region(p partition.Partition) (flash.NOR, error) {
	r, err := flash.Region(d.Flash, int64(p.Offset), int64(p.Size))
	if err != nil {
		return nil, fmt.Errorf("partition %q: %w: %w", p.Label, ErrTable, err)
	}
	return r, nil
}

// verify judges the image in a slot. What follows the image does not matter.
func (d *device) verify(ctx context.Context, slot int) error {
	r, err := d.region(d.partition(slot))
	if err != nil {
		return err
	}
	return d.Verifier.Verify(ctx, r, r.Size())
}

// onTrial reports whether the application that runs has yet to confirm itself.
func (d *device) onTrial(ctx context.Context) (bool, error) {
	if !d.Rollback {
		if d.OnTrial == nil {
			return false, nil
		}
		return d.OnTrial(ctx)
	}
	data, err := otadata.Read(d.data)
	if err != nil {
		return false, err
	}
	active := data.Active()
	return active >= 0 && data[active].Slot(len(d.slots)) == d.running && data[active].State == otadata.PendingVerify, nil
}

// without returns otadata in which no entry chooses the slot any more, and the
// sectors that change, in the order in which they do.
func (d *device) without(data otadata.Data, slot int) (otadata.Data, []int) {
	var changed []int
	for {
		active := data.Active()
		if active < 0 || data[active].Slot(len(d.slots)) != slot {
			return data, changed
		}
		data[active].State = otadata.Invalid
		changed = append(changed, active)
	}
}

// unchoose rolls the slot back in flash, until no entry chooses it.
func (d *device) unchoose(slot int) error {
	data, err := otadata.Read(d.data)
	if err != nil {
		return err
	}
	_, changed := d.without(data, slot)
	for range changed {
		if err := otadata.Rollback(d.data); err != nil {
			return err
		}
	}
	return nil
}
