package nvs

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// makeRoom begins a new page if the current one has no room for n entries.
func (p *Partition) makeRoom(n int) error {
	if p.current().room() >= n {
		return nil
	}
	if err := p.nextPage(); err != nil {
		return err
	}
	if p.current().room() < n {
		return ErrNoSpace
	}
	return nil
}

// nextPage closes the current page and begins another one, as ESP-IDF does: a
// free page as long as one more remains, else the copy of the page that has
// the most to gain, the oldest of those.
func (p *Partition) nextPage() error {
	if pg := p.current(); pg.state == stateActive {
		if err := p.setState(pg, stateFull); err != nil {
			return err
		}
	}
	if len(p.free) >= 2 {
		return p.activate()
	}
	var victim *page
	least := pageSlots
	for _, pg := range p.list {
		if n := pg.used(); n < least {
			victim, least = pg, n
		}
	}
	if victim == nil || len(p.free) == 0 {
		return ErrNoSpace
	}
	if err := p.setState(victim, stateFreeing); err != nil {
		return err
	}
	return p.evacuate(victim)
}

// evacuate copies what is in a page marked as freeing to a new page and erases
// it. A cut before the last item is copied leaves a copy that is to be
// discarded, one after it a page that is to be erased: see resolveFreeing.
func (p *Partition) evacuate(from *page) error {
	if pg := p.current(); pg != from && pg.state == stateActive {
		if err := p.setState(pg, stateFull); err != nil {
			return err
		}
	}
	if err := p.activate(); err != nil {
		return err
	}
	if err := p.writeHeader(p.current()); err != nil {
		return err
	}
	// What is damaged goes first: once all else is there the copy is complete.
	for _, damaged := range [2]bool{true, false} {
		for _, it := range from.items {
			if it.is(markDamaged) != damaged {
				continue
			}
			if err := p.copyItem(from, it); err != nil {
				return err
			}
		}
	}
	p.list = slices.DeleteFunc(p.list, func(pg *page) bool { return pg == from })
	if err := p.erasePage(from); err != nil {
		return err
	}
	p.free = append(p.free, from)
	return nil
}

// activate makes the first free page the current one. Its header is written
// with its first item.
func (p *Partition) activate() error {
	if len(p.free) == 0 {
		return ErrNoSpace
	}
	pg := p.free[0]
	p.free = slices.Delete(p.free, 0, 1)
	*pg = page{no: pg.no, state: stateBlank, seq: p.seq}
	fill(pg.table[:], 0xFF)
	p.seq++
	p.list = append(p.list, pg)
	return nil
}

// writeHeader makes a page active that has no header yet.
func (p *Partition) writeHeader(pg *page) error {
	if pg.state != stateBlank {
		return nil
	}
	h := header(pg.seq)
	if err := p.program(pg.off(), h[:]); err != nil {
		return fmt.Errorf("page %d header: %w", pg.no, err)
	}
	pg.state = stateActive
	return nil
}

func (p *Partition) setState(pg *page, s pageState) error {
	var b [4]byte
	binary.LittleEndian.PutUint32(b[:], uint32(s))
	if err := p.program(pg.off(), b[:]); err != nil {
		return fmt.Errorf("page %d state: %w", pg.no, err)
	}
	pg.state = s
	return nil
}

// erasePage erases a page. Its header goes first, to zeros: whatever a cut
// leaves of the page after that has no valid header.
func (p *Partition) erasePage(pg *page) error {
	if err := p.program(pg.off(), make([]byte, headerSize)); err != nil {
		return fmt.Errorf("page %d header: %w", pg.no, err)
	}
	if err := p.flash.EraseSector(pg.off()); err != nil {
		return fmt.Errorf("page %d: erase: %w", pg.no, err)
	}
	blank, err := p.blank(pg.off(), sectorSize)
	if err != nil {
		return err
	}
	if !blank {
		return fmt.Errorf("page %d: erase: bits stay clear: is the flash write-protected or worn?", pg.no)
	}
	return nil
}
