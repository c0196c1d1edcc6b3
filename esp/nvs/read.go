package nvs

import (
	"bytes"
	"fmt"
	"io/fs"
)

// readEntry reads and decrypts the i-th entry of a page.
func (p *Partition) readEntry(pg *page, i int, e *entry) error {
	off := pg.entryOff(i)
	if err := p.read(e[:], off); err != nil {
		return fmt.Errorf("page %d entry %d: %w", pg.no, i, err)
	}
	p.decrypt(e[:], off)
	return nil
}

// entry reads the first entry of an item, which was sound when it was last read.
func (p *Partition) entry(pg *page, it *item) (entry, error) {
	var e entry
	if err := p.readEntry(pg, int(it.entry), &e); err != nil {
		return e, err
	}
	if !e.sealed() || e.span() != int(it.span) {
		return e, &Damage{pg.no, int(it.entry), 1, "no longer what it was: does something else write to the flash?"}
	}
	return e, nil
}

// data appends the data that follows the first entry of an item to b.
func (p *Partition) data(b []byte, pg *page, it *item, e *entry) ([]byte, error) {
	begin, left := len(b), e.dataSize()
	var part entry
	for i := int(it.entry) + 1; left > 0; i++ {
		if err := p.readEntry(pg, i, &part); err != nil {
			return nil, err
		}
		n := min(left, entrySize)
		b = append(b, part[:n]...)
		left -= n
	}
	if crc(b[begin:]) != e.dataCRC() {
		return nil, &Damage{pg.no, int(it.entry), int(it.span), fmt.Sprintf("%s of %s: checksum of the data is wrong", e.typ(), quote(e.name()))}
	}
	return b, nil
}

// find returns the items of a namespace, key and chunk: at most one but for
// values of different types that ESP-IDF has left under one key.
func (p *Partition) find(ns uint8, key string, chunk uint8) ([]ref, error) {
	padded := padKey(key)
	hash := hashOf(ns, padded[:], chunk)
	var found []ref
	for _, pg := range p.list {
		for i := range pg.items {
			it := &pg.items[i]
			if it.hash != hash || it.ns != ns || it.chunk != chunk || it.is(markDamaged) {
				continue
			}
			e, err := p.entry(pg, it)
			if err != nil {
				return nil, err
			}
			if bytes.Equal(e.key(), padded[:]) {
				found = append(found, ref{pg, it})
			}
		}
	}
	return found, nil
}

// value reads the value of a key: an integer in its bytes, little-endian, a
// string with its NUL, a blob.
func (p *Partition) value(ns uint8, key string, t Type) ([]byte, error) {
	refs, err := p.find(ns, key, noChunk)
	if err != nil {
		return nil, err
	}
	for _, r := range refs {
		if r.it.typ.class() != t {
			continue
		}
		e, err := p.entry(r.pg, r.it)
		if err != nil {
			return nil, err
		}
		switch {
		case r.it.typ == blobIndex:
			return p.blob(r, &e)
		case e.hasData():
			return p.data(make([]byte, 0, e.dataSize()), r.pg, r.it, &e)
		default:
			return e.value()[:t.size()], nil
		}
	}
	if len(refs) > 0 {
		return nil, fmt.Errorf("is %s, not %s: %w", refs[0].it.typ, t, ErrType)
	}
	return nil, p.absent()
}

// absent is the error for what is not found: not fs.ErrNotExist if it may be
// in what is damaged.
func (p *Partition) absent() error {
	if len(p.damage) == 0 {
		return fs.ErrNotExist
	}
	return fmt.Errorf("not found, and may be in what is damaged (%d places, DiscardDamage gives them up), such as %w", len(p.damage), p.damage[0])
}
