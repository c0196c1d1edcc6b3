package nvs

import (
	"bytes"
	"slices"
)

// set stores a value under a key: the new one is complete before the old one
// is erased, of whatever type that is. Equal values are not written again.
func (p *Partition) set(ns uint8, key string, t Type, data []byte) error {
	old, err := p.find(ns, key, noChunk)
	if err != nil {
		return err
	}
	if len(old) == 1 && old[0].it.typ.class() == t && old[0].it.typ != Blob {
		if v, err := p.value(ns, key, t); err == nil && bytes.Equal(v, data) {
			return nil
		}
	}
	if t == Blob {
		err = p.setBlob(ns, key, data, old)
	} else {
		err = p.setItem(ns, key, t, data)
	}
	if err != nil {
		return err
	}
	pg := p.current()
	return p.eraseKey(ns, key, ref{pg, &pg.items[len(pg.items)-1]})
}

func (p *Partition) setItem(ns uint8, key string, t Type, data []byte) error {
	e := newEntry(ns, t, noChunk, key)
	if t == String {
		e.setData(data)
	} else {
		copy(e.value(), data)
		data = nil
	}
	if err := p.makeRoom(e.span()); err != nil {
		return err
	}
	return p.append(e, data)
}

// setBlob writes a blob with the chunk numbers that old, if it is one, does
// not use.
func (p *Partition) setBlob(ns uint8, key string, data []byte, old []ref) error {
	start := uint8(0)
	for _, r := range old {
		if r.it.typ != blobIndex {
			continue
		}
		e, err := p.entry(r.pg, r.it)
		if err != nil {
			return err
		}
		start = e.start() ^ chunkStart
	}
	return p.writeBlob(ns, key, data, start)
}

// eraseKey erases all values of a key but the one at keep, which is nil to
// keep none.
func (p *Partition) eraseKey(ns uint8, key string, keep ref) error {
	var page, entry = -1, -1
	if keep.pg != nil {
		page, entry = keep.pg.no, int(keep.it.entry)
	}
	for {
		found, err := p.find(ns, key, noChunk)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(found, func(r ref) bool { return r.pg.no != page || int(r.it.entry) != entry })
		if i < 0 {
			return nil
		}
		if err := p.eraseValue(found[i]); err != nil {
			return err
		}
	}
}

// eraseValue erases an item and, if it is a blob's index, then its chunks.
func (p *Partition) eraseValue(r ref) error {
	e, err := p.entry(r.pg, r.it)
	if err != nil {
		return err
	}
	if err := p.eraseItem(r); err != nil || e.typ() != blobIndex {
		return err
	}
	return p.eraseChunks(e.ns(), e.name(), e.start(), e.chunks())
}

func (p *Partition) eraseItem(r ref) error {
	gone := r.it.run()
	r.pg.items = slices.DeleteFunc(r.pg.items, func(it item) bool { return it.entry == gone.entry })
	return p.eraseRun(r.pg, gone)
}

// eraseIf erases all items that f names: indices and single items, then
// chunks, so that no index is ever left without its chunks.
func (p *Partition) eraseIf(f func(*item) bool) error {
	for _, chunks := range [2]bool{false, true} {
		for _, pg := range p.list {
			for i := 0; i < len(pg.items); {
				it := &pg.items[i]
				if (it.typ == blobChunk) != chunks || !f(it) {
					i++
					continue
				}
				if err := p.eraseItem(ref{pg, it}); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
