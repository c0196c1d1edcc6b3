package otadata

import (
	"errors"
	"fmt"

	"github.com/quarklink-go/quarklink/esp/flash"
)

var (
	// ErrNothingBoots is the error of [Boot] if no image verifies.
	ErrNothingBoots = errors.New("otadata: no slot has an image that starts")

	// ErrSlot is the error of a slot that the table does not have.
	ErrSlot = errors.New("no such OTA slot")

	// ErrNoEntry is the error of [Confirm] and [Rollback] if no sector decides, as
	// when the factory application runs.
	ErrNoEntry = errors.New("no entry of otadata counts: the factory application runs, or none was ever chosen")
)

// SetBoot makes a slot, 0 to b.Slots-1, the one that the bootloader starts next, as
// esp_ota_set_boot_partition does: the sector that does not decide gets the next
// sequence number of that slot, with the state New if the bootloader rolls back, else
// Undefined. The image has to be complete and verified before.
//
// A power cut leaves the choice as it was or as it becomes. Sequence numbers end at
// 2³²-2. ESP-IDF does not go on from there; SetBoot begins again with slot+1 and then
// erases the sector that decided until then.
//
// An error of f leaves otadata as a power cut does. A slot that does not exist is
// [ErrSlot].
func SetBoot(f flash.NOR, b Bootloader, slot int) error {
	if slot < 0 || slot >= b.Slots {
		return fmt.Errorf("otadata: ota_%d of %d: %w", slot, b.Slots, ErrSlot)
	}
	d, err := Read(f)
	if err != nil {
		return err
	}
	state := Undefined
	if b.Rollback {
		state = New
	}
	active := d.Active()
	if active < 0 {
		return write(f, 0, newEntry(d[0], uint32(slot+1), state))
	}
	other := 1 - active
	seq, ok := nextSeq(d[active].Seq, slot, b.Slots)
	if ok {
		return write(f, other, newEntry(d[other], seq, state))
	}
	if err := write(f, other, newEntry(d[other], uint32(slot+1), state)); err != nil {
		return err
	}
	return flash.Erase(f, int64(active)*flash.SectorSize, flash.SectorSize)
}

// nextSeq returns the smallest number from seq on that chooses the slot of n, and
// whether there is one.
func nextSeq(seq uint32, slot, n int) (uint32, bool) {
	next := (uint64(slot) + 1) % uint64(n)
	if least := uint64(seq); least > next {
		next += (least - next + uint64(n) - 1) / uint64(n) * uint64(n)
	}
	return uint32(next), next < erasedSeq
}

// Confirm makes the entry that decides Valid, as
// esp_ota_mark_app_valid_cancel_rollback does: the application that runs is to be
// started again. It writes nothing if the entry is Valid already. If no entry counts
// the error is [ErrNoEntry].
func Confirm(f flash.NOR) error { return mark(f, Valid) }

// Rollback makes the entry that decides Invalid, as
// esp_ota_mark_app_invalid_rollback_and_reboot does before it restarts: the bootloader
// then starts what the other entry chooses, or the factory application. Whether that
// is any good has to be known before. If no entry counts the error is [ErrNoEntry].
func Rollback(f flash.NOR) error { return mark(f, Invalid) }

func mark(f flash.NOR, state State) error {
	d, err := Read(f)
	if err != nil {
		return err
	}
	active := d.Active()
	if active < 0 {
		return fmt.Errorf("otadata: mark %v: %w", state, ErrNoEntry)
	}
	if d[active].State == state {
		return nil
	}
	d[active].State = state
	return write(f, active, d[active])
}

// newEntry is what ESP-IDF makes of an entry that was read: it keeps the label.
func newEntry(was Entry, seq uint32, state State) Entry {
	return Entry{Seq: seq, Label: was.Label, State: state, CRC: seqCRC(seq)}
}

// write erases a sector and writes an entry.
func write(f flash.NOR, sector int, e Entry) error {
	off := int64(sector) * flash.SectorSize
	err := flash.Erase(f, off, flash.SectorSize)
	if err == nil {
		err = flash.Write(f, off, e.encode())
	}
	if err != nil {
		return fmt.Errorf("otadata: write sector %d: %w", sector, err)
	}
	return nil
}
