package nvs

import (
	"fmt"

	"github.com/quarklink-go/quarklink/esp/flash"
)

// Everything here is ordered so that a cut, also within one program operation,
// leaves only what scanItems knows: the first entry of an item is marked as
// written before its others exist and marked as erased after them.

// current is the page that is being filled.
func (p *Partition) current() *page { return p.list[len(p.list)-1] }

// append writes an item to the current page, which must have room.
func (p *Partition) append(e entry, data []byte) error {
	pg := p.current()
	if err := p.writeHeader(pg); err != nil {
		return err
	}
	e.seal()
	r := run{uint8(pg.next), uint8(e.span())}
	if err := p.writeFirst(pg, r, &e); err != nil {
		return err
	}
	if err := p.writeEntries(pg, int(r.entry)+1, data); err != nil {
		return err
	}
	if err := p.mark(pg, r.rest(), slotWritten); err != nil {
		return err
	}
	pg.items = append(pg.items, newItem(&e, r))
	return nil
}

// copyItem writes an item of another page to the current page as it is.
func (p *Partition) copyItem(from *page, it item) error {
	pg := p.current()
	var e entry
	if err := p.readEntry(from, int(it.entry), &e); err != nil {
		return err
	}
	r := run{uint8(pg.next), it.span}
	if err := p.writeFirst(pg, r, &e); err != nil {
		return err
	}
	for i := 1; i < int(it.span); i++ {
		if err := p.readEntry(from, int(it.entry)+i, &e); err != nil {
			return err
		}
		if err := p.writeEntries(pg, int(r.entry)+i, e[:]); err != nil {
			return err
		}
	}
	if err := p.mark(pg, r.rest(), slotWritten); err != nil {
		return err
	}
	for _, d := range p.damage {
		if d.Page == from.no && d.Entry == int(it.entry) {
			d.Page, d.Entry = pg.no, int(r.entry)
		}
	}
	it.entry = r.entry
	pg.items = append(pg.items, it)
	return nil
}

// writeFirst writes and marks the first entry of an item at r, the next free
// entries of the page.
func (p *Partition) writeFirst(pg *page, r run, e *entry) error {
	pg.next += int(r.span)
	if err := p.writeEntries(pg, int(r.entry), e[:]); err != nil {
		return err
	}
	return p.mark(pg, r.first(), slotWritten)
}

// writeEntries programs data into the entries from the i-th on, the last one
// padded with FF.
func (p *Partition) writeEntries(pg *page, i int, data []byte) error {
	off := pg.entryOff(i)
	for len(data) > 0 {
		n := min(len(data), int(flash.ProgramSize-off%flash.ProgramSize))
		b := p.buf[:entries(n)*entrySize]
		fill(b[copy(b, data[:n]):], 0xFF)
		p.encrypt(b, off)
		if err := p.program(off, b); err != nil {
			return fmt.Errorf("page %d entry %d: %w", pg.no, i, err)
		}
		data = data[n:]
		off += int64(len(b))
	}
	return nil
}

func (r run) first() run { return run{r.entry, 1} }
func (r run) rest() run  { return run{r.entry + 1, r.span - 1} }

// mark clears bits of the states of the entries of r so that they become s, if
// they can.
func (p *Partition) mark(pg *page, r run, s slot) error {
	before := pg.table
	for i := range int(r.span) {
		pg.clear(int(r.entry)+i, s)
	}
	if pg.table == before {
		return nil
	}
	const word = 4
	from := int(r.entry) / 4 / word * word
	to := ((int(r.entry)+int(r.span)-1)/4/word + 1) * word
	if err := p.program(pg.off()+tableOff+int64(from), pg.table[from:to]); err != nil {
		return fmt.Errorf("page %d table: %w", pg.no, err)
	}
	return nil
}

// eraseRun marks entries as erased and wipes them. Each state loses its upper
// bit first: on the way from empty to erased it then never reads as written.
func (p *Partition) eraseRun(pg *page, r run) error {
	for _, part := range [2]run{r.rest(), r.first()} {
		for _, s := range [2]slot{slotHalf, slotErased} {
			if err := p.mark(pg, part, s); err != nil {
				return err
			}
		}
	}
	if p.leave {
		return nil
	}
	return p.wipe(pg, r)
}

// wipe programs the bytes of entries to zeros.
func (p *Partition) wipe(pg *page, r run) error {
	b := p.buf[:]
	fill(b, 0)
	off := pg.entryOff(int(r.entry))
	for left := int(r.span) * entrySize; left > 0; {
		n := min(left, int(flash.ProgramSize-off%flash.ProgramSize))
		if err := p.program(off, b[:n]); err != nil {
			return fmt.Errorf("page %d: wipe: %w", pg.no, err)
		}
		off += int64(n)
		left -= n
	}
	return nil
}
