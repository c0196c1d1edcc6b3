package nvs

import "fmt"

// blob reads a blob by its index.
func (p *Partition) blob(r ref, e *entry) ([]byte, error) {
	var b []byte
	for i := range e.chunks() {
		chunk := e.start() + uint8(i)
		found, err := p.find(e.ns(), e.name(), chunk)
		if err != nil {
			return nil, err
		}
		if len(found) == 0 {
			return nil, &Damage{r.pg.no, int(r.it.entry), 1, fmt.Sprintf("blob of %s: chunk %#02x is missing", quote(e.name()), chunk)}
		}
		c := found[0]
		ce, err := p.entry(c.pg, c.it)
		if err != nil {
			return nil, err
		}
		if i == 0 {
			b = make([]byte, 0, min(int(e.blobSize()), e.chunks()*maxData))
		}
		if b, err = p.data(b, c.pg, c.it, &ce); err != nil {
			return nil, err
		}
	}
	if uint64(len(b)) != uint64(e.blobSize()) {
		return nil, &Damage{r.pg.no, int(r.it.entry), 1, fmt.Sprintf("blob of %s: chunks of %d bytes for an index of %d", quote(e.name()), len(b), e.blobSize())}
	}
	return b, nil
}

const tinyRest = maxData / 10 // a page with less room than this is left to smaller values

// writeBlob writes the chunks and the index of a blob whose chunks count from
// start. The other version, if there is one, stays as it is. What was written
// is erased again if the space does not suffice.
func (p *Partition) writeBlob(ns uint8, key string, data []byte, start uint8) error {
	if len(data) > min(len(p.pages)-1, maxChunks)*maxData {
		return fmt.Errorf("blob of %d bytes: %w", len(data), ErrTooLong)
	}
	if err := p.beginBlob(len(data)); err != nil {
		return err
	}
	chunks, err := p.writeChunks(ns, key, data, start)
	if err == nil {
		e := newEntry(ns, blobIndex, noChunk, key)
		e.setIndex(len(data), chunks, start)
		if err = p.makeRoom(1); err == nil {
			return p.append(e, nil)
		}
	}
	if err == ErrNoSpace {
		if undo := p.eraseChunks(ns, key, start, chunks); undo != nil {
			return undo
		}
	}
	return err
}

// beginBlob goes on to a new page if the current one has too little room to
// begin a blob in it that does not fit.
func (p *Partition) beginBlob(size int) error {
	for range p.pages {
		room := p.dataRoom()
		if room >= tinyRest || room > 0 && room >= size {
			return nil
		}
		if err := p.nextPage(); err != nil {
			return err
		}
		if p.dataRoom() == room {
			return ErrNoSpace
		}
	}
	return ErrNoSpace
}

// writeChunks writes as many chunks as data needs, each to the end of its
// page, and returns how many that are, also if it fails.
func (p *Partition) writeChunks(ns uint8, key string, data []byte, start uint8) (chunks int, err error) {
	for {
		room := p.dataRoom()
		if room == 0 || chunks == maxChunks {
			return chunks, ErrNoSpace
		}
		part := data[:min(len(data), room)]
		data = data[len(part):]
		e := newEntry(ns, blobChunk, start+uint8(chunks), key)
		e.setData(part)
		if err := p.append(e, part); err != nil {
			return chunks, err
		}
		chunks++
		if len(data) > 0 || p.current().room() == 0 {
			if err := p.nextPage(); err != nil {
				return chunks, err
			}
		}
		if len(data) == 0 {
			return chunks, nil
		}
	}
}

// dataRoom returns how many bytes of data one item in the current page can
// still have.
func (p *Partition) dataRoom() int { return max(0, p.current().room()-1) * entrySize }

// eraseChunks erases the chunks of a blob.
func (p *Partition) eraseChunks(ns uint8, key string, start uint8, chunks int) error {
	for i := range chunks {
		found, err := p.find(ns, key, start+uint8(i))
		if err != nil {
			return err
		}
		for _, r := range found {
			if err := p.eraseItem(r); err != nil {
				return err
			}
		}
	}
	return nil
}
