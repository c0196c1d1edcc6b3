package nvs

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
)

// scan reads the headers and tables of all pages and the first entry of all
// items. It says of each page what is in it, without regard to the others.
func (p *Partition) scan() error {
	p.list, p.free, p.dirty, p.damage, p.names = nil, nil, nil, nil, nil
	clear(p.named[:])
	p.seq = 0
	var found tally
	for no := range p.pages {
		pg := &p.pages[no]
		*pg = page{no: no}
		if err := p.scanHeader(pg, &found); err != nil {
			return err
		}
		switch {
		case pg.blank:
			p.free = append(p.free, pg)
		case pg.bad:
			p.dirty = append(p.dirty, pg)
		default:
			p.list = append(p.list, pg)
		}
		if !pg.blank {
			if err := p.scanItems(pg, &found); err != nil {
				return err
			}
		}
	}
	if len(p.list) == 0 && found.foreign {
		return ErrNotNVS
	}
	if found.sealed == 0 && found.unsealed > 0 {
		how := "with these keys"
		if p.cipher == nil {
			how = "without keys (is the partition encrypted?)"
		}
		return fmt.Errorf("page %d: none of %d entries reads %s: %w", p.list[0].no, found.unsealed, how, ErrKeys)
	}
	slices.SortStableFunc(p.list, func(a, b *page) int {
		return cmp.Compare(a.seq, b.seq)
	})
	for i, pg := range p.list {
		pg.order = i
		p.seq = pg.seq + 1
		if p.seq == 0 {
			return &Damage{Page: pg.no, Entry: -1, Reason: "impossible sequence number"}
		}
	}
	return nil
}

// tally is what tells a wrong key and a foreign partition from damage.
type tally struct {
	sealed, unsealed int  // entries that begin an item or should
	foreign          bool // a page without a valid header has more than a header
}

// scanHeader reads the header and the table of a page.
func (p *Partition) scanHeader(pg *page, found *tally) error {
	b := p.buf[:entriesOff]
	if err := p.read(b, pg.off()); err != nil {
		return fmt.Errorf("page %d: %w", pg.no, err)
	}
	copy(pg.table[:], b[tableOff:])
	pg.state = pageState(binary.LittleEndian.Uint32(b))
	flipped := !headerSealed(b) && correctBit(b[:headerSize])
	pg.seq = binary.LittleEndian.Uint32(b[seqOff:])
	if headerSealed(b) {
		pg.flipped, pg.odd = flipped, flipped
		version := b[versionOff]
		if version < version2 {
			return fmt.Errorf("page %d: version %d, known are 1 and 2: %w", pg.no, version1-int(version)+1, ErrNewerVersion)
		}
		switch pg.state {
		case stateActive, stateFull, stateFreeing:
		default:
			// A cut while the header was written or cleared, or a flipped
			// bit: what is in the page decides.
			pg.state, pg.odd = stateFull, true
		}
		return nil
	}
	pg.bad = true
	blankHeader := all(b[:headerSize], 0xFF)
	rest, err := p.blank(pg.off()+headerSize, sectorSize-headerSize)
	if err != nil {
		return fmt.Errorf("page %d: %w", pg.no, err)
	}
	pg.blank = blankHeader && rest
	found.foreign = found.foreign || !rest
	if pg.blank {
		pg.state = stateBlank
	}
	return nil
}

func headerSealed(b []byte) bool {
	return binary.LittleEndian.Uint32(b[headerCRC:]) == crc(b[seqOff:headerCRC])
}

// correctBit corrects a header of which one bit is wrong; it leaves others.
func correctBit(h []byte) bool {
	for bit := 8 * seqOff; bit < 8*headerSize; bit++ {
		h[bit/8] ^= 1 << (bit % 8)
		if headerSealed(h) && h[versionOff] >= version2 && all(h[versionOff+1:headerCRC], 0xFF) {
			return true
		}
		h[bit/8] ^= 1 << (bit % 8)
	}
	return false
}

// blank reports whether size bytes at off are all erased.
func (p *Partition) blank(off int64, size int) (bool, error) {
	for size > 0 {
		b := p.buf[:min(size, len(p.buf))]
		if err := p.read(b, off); err != nil {
			return false, err
		}
		if !all(b, 0xFF) {
			return false, nil
		}
		off += int64(len(b))
		size -= len(b)
	}
	return true, nil
}

// scanItems finds the items of a page, and what is in it besides.
//
// What a cut leaves is always one of these, whatever was torn: an entry that
// has content and is not yet written, at the end of the active page; an item
// whose first entry is written and whose others are not all; a half-erased
// entry. See append and eraseRun.
func (p *Partition) scanItems(pg *page, found *tally) error {
	last := pageSlots - 1 // last entry that is not empty
	for last >= 0 && pg.slot(last) == slotEmpty {
		last--
	}
	atTail := func(i int) bool { return pg.state == stateActive && i > last }

	var e entry
	for i := 0; i < pageSlots; {
		state := pg.slot(i)
		off := pg.entryOff(i)
		if err := p.read(e[:], off); err != nil {
			return fmt.Errorf("page %d entry %d: %w", pg.no, i, err)
		}
		unprogrammed := all(e[:], 0xFF)
		wiped := all(e[:], 0)
		p.decrypt(e[:], off)

		one := run{uint8(i), 1}
		switch {
		case state == slotErased:
			if !unprogrammed && !wiped {
				pg.unwiped = addRun(pg.unwiped, one)
			}
			pg.next = i + 1
			i++
		case state == slotHalf:
			pg.garbage = append(pg.garbage, one)
			pg.next = i + 1
			i++
		case state == slotEmpty && unprogrammed:
			i++
		case state == slotEmpty && (atTail(i) || !e.sealed()):
			pg.garbage = append(pg.garbage, one)
			pg.next = i + 1
			i++
		default: // written, or an item in entries that say they are empty
			r, reason := itemRun(pg, i, &e)
			if e.sealed() {
				found.sealed++
			} else if !pg.bad {
				found.unsealed++
			}
			if reason == "" && !pg.isWritten(r) {
				interrupted := pg.state == stateActive && i+int(r.span) > last
				if interrupted || pg.count(r, slotErased)+pg.count(r, slotHalf) > 0 {
					pg.garbage = append(pg.garbage, r)
					pg.next = i + int(r.span)
					i = pg.next
					continue
				}
				reason = fmt.Sprintf("%s of %s: entries are marked as empty", e.typ(), quote(e.name()))
			}
			it := newItem(&e, r)
			if reason != "" {
				it.mark = markDamaged
				if !pg.bad {
					p.addDamage(pg.no, r, reason)
				}
			}
			pg.items = append(pg.items, it)
			pg.next = i + int(r.span)
			i = pg.next
		}
	}
	return nil
}

// itemRun returns the entries of the item that begins with e, the i-th of a
// page, and what is wrong with e, "" if nothing is. Of a bad one nothing is
// believed, not even its length, so that what follows is not lost with it.
func itemRun(pg *page, i int, e *entry) (run, string) {
	one := run{uint8(i), 1}
	if !e.sealed() {
		return one, "checksum of the entry is wrong"
	}
	if e.span() < 1 || i+e.span() > pageSlots {
		return one, fmt.Sprintf("item %s of %d entries reaches beyond the page", quote(e.name()), e.span())
	}
	r := run{uint8(i), uint8(e.span())}
	reason := e.malformed()
	if reason != "" && !pg.isWritten(r) {
		r = one
	}
	return r, reason
}

// addRun appends r, as part of the last run if it continues it.
func addRun(list []run, r run) []run {
	if n := len(list); n > 0 && list[n-1].entry+list[n-1].span == r.entry {
		list[n-1].span += r.span
		return list
	}
	return append(list, r)
}

// addDamage notes damage, as part of the last one if it continues it.
func (p *Partition) addDamage(page int, r run, reason string) {
	if n := len(p.damage); n > 0 {
		last := p.damage[n-1]
		if last.Page == page && last.Entry+last.Entries == int(r.entry) && last.Reason == reason {
			last.Entries += int(r.span)
			return
		}
	}
	p.damage = append(p.damage, &Damage{page, int(r.entry), int(r.span), reason})
}

// quote returns a name from the flash fit for a message.
func quote(name string) string { return fmt.Sprintf("%q", name) }
