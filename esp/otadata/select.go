package otadata

import (
	"fmt"

	"github.com/quarklink-go/quarklink/esp/flash"
)

// Factory stands for the factory application where a slot's number is asked for.
const Factory = -1

// Bootloader is what the choice depends on besides otadata: how the bootloader was
// built, and the partition table.
type Bootloader struct {
	// Slots is the number of partitions ota_0, ota_1, …: at most 16. Without
	// any the factory application starts.
	Slots int
	// Factory: the table has a partition app, factory.
	Factory bool
	// Rollback: built with CONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE.
	Rollback bool
}

// Choice is what the bootloader decides, and why.
type Choice struct {
	// Start is the slot from which it starts loading: 0 to Slots-1, or
	// Factory. Without a factory partition Factory means to try every slot.
	Start int
	// Order is every slot that it tries, in order, until an image verifies:
	// from Start down to the factory application, then up from Start. The test
	// application, which comes last, is not among them.
	Order []int
	// Sector is the one that decided, or -1.
	Sector int
	// After is what is in otadata once the bootloader has written back which
	// states have changed: only one with Rollback does.
	After Data
	// Initial: the slot that ends up being started is written to sector 0, as
	// Valid: nothing was chosen before and there is no factory application.
	Initial bool
	// Reason says it all in a sentence.
	Reason string
}

// Select decides as the bootloader does at a start (its function
// bootloader_utility_get_selected_boot_partition, without anti-rollback).
func (d Data) Select(b Bootloader) Choice {
	c := Choice{After: d, Sector: -1, Start: Factory}
	if b.Rollback {
		for i := range c.After {
			if c.After[i].State == PendingVerify {
				c.After[i].State = Aborted
			}
		}
	}
	now := c.After
	switch {
	case b.Slots == 0:
		c.Reason = "the table has no OTA slot: the factory application starts"
		if !b.Factory {
			c.Start = 0
			c.Initial = !now[0].chosen() && !now[1].chosen()
			c.Reason = "the table has no OTA slot and no factory application: nothing can start"
		}
	case now[0].ruledOut() && now[1].ruledOut():
		c.Reason = fmt.Sprintf("%s: the factory application starts", d.why(now))
		if !b.Factory {
			c.Start = 0
			c.Initial = !now[0].chosen() && !now[1].chosen()
			c.Reason = fmt.Sprintf("%s, and there is no factory application: ota_0 starts", d.why(now))
		}
	case now.Active() < 0:
		c.Reason = fmt.Sprintf("%s: the factory application starts", d.why(now))
		if !b.Factory {
			c.Reason = fmt.Sprintf("%s, and there is no factory application: the first slot with a good image starts", d.why(now))
		}
	default:
		c.Sector = now.Active()
		e := now[c.Sector]
		c.Start = e.Slot(b.Slots)
		c.Reason = fmt.Sprintf("sector %d decides, with sequence number %d (%v): ota_%d starts; %s",
			c.Sector, e.Seq, e.State, c.Start, d.whyNot(now, 1-c.Sector))
		if b.Rollback && e.State == New {
			c.After[c.Sector].State = PendingVerify
			c.Reason += "; it has this one start to confirm itself"
		}
	}
	c.Order = b.order(c.Start)
	return c
}

// chosen reports whether somebody once chose a slot by this entry.
func (e Entry) chosen() bool { return e.Seq != erasedSeq && e.Sealed() }

// order returns the slots that are tried.
func (b Bootloader) order(start int) []int {
	var order []int
	for slot := min(start, b.Slots-1); slot >= 0; slot-- {
		order = append(order, slot)
	}
	if b.Factory {
		order = append(order, Factory)
	}
	for slot := start + 1; slot < b.Slots; slot++ {
		order = append(order, slot)
	}
	return order
}

// why says why neither sector decides.
func (d Data) why(now Data) string { return d.whyNot(now, 0) + ", " + d.whyNot(now, 1) }

// whyNot says what is against a sector, or that it is the older one.
func (d Data) whyNot(now Data, sector int) string {
	e := now[sector]
	switch {
	case e == Erased():
		return fmt.Sprintf("sector %d is erased", sector)
	case e.Seq == erasedSeq:
		return fmt.Sprintf("sector %d has no sequence number", sector)
	case d[sector].State == PendingVerify && e.State == Aborted:
		return fmt.Sprintf("sector %d (%d) did not confirm itself after its first start and becomes ABORTED", sector, e.Seq)
	case e.ruledOut():
		return fmt.Sprintf("sector %d (%d) is %v", sector, e.Seq, e.State)
	case !e.Sealed():
		return fmt.Sprintf("sector %d (%d) has a wrong CRC", sector, e.Seq)
	case now[1-sector].Seq == e.Seq:
		return fmt.Sprintf("sector %d has the same number", sector)
	}
	return fmt.Sprintf("sector %d has the lower number %d", sector, e.Seq)
}

// Boot does what the bootloader does at a start, on the flash of an otadata
// partition: it decides, writes states back, and tries the slots until verify, which
// gets a slot's number or Factory, finds a good image. It returns that slot, or
// ErrNothingBoots. verify is not asked for partitions that the table does not have.
//
// It is for looking ahead, and for tests; a bootloader comes before any application.
func Boot(f flash.NOR, b Bootloader, verify func(slot int) bool) (slot int, why Choice, err error) {
	d, err := Read(f)
	if err != nil {
		return 0, Choice{}, err
	}
	c := d.Select(b)
	if b.Rollback {
		for i := range d {
			if d[i].State == PendingVerify {
				d[i].State = Aborted
				if err := write(f, i, d[i]); err != nil {
					return 0, c, err
				}
			}
		}
	}
	if c.Sector >= 0 && d[c.Sector] != c.After[c.Sector] {
		if err := write(f, c.Sector, c.After[c.Sector]); err != nil {
			return 0, c, err
		}
	}
	for _, slot := range c.Order {
		if !verify(slot) {
			continue
		}
		if c.Initial { // so there is no factory application
			err = write(f, 0, newEntry(Erased(), uint32(slot+1), Valid))
		}
		return slot, c, err
	}
	return 0, c, ErrNothingBoots
}
