package nvs

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
)

// ref is an item and its page.
type ref struct {
	pg *page
	it *item
}

// resolve decides, over all pages, which items count: of duplicates that a
// cut left the newer one, of blobs those that are complete. What does not
// count moves from the items to the garbage of its page. It only reads.
func (p *Partition) resolve() error {
	if err := p.resolveFreeing(); err != nil {
		return err
	}
	refs, err := p.sorted()
	if err != nil {
		return err
	}
	all := index{p, refs}
	if err := all.eachKey(all.resolveChunk); err != nil {
		return err
	}
	chunks, err := all.newest()
	if err != nil {
		return err
	}
	if err := all.eachKey(chunks.resolveKey); err != nil {
		return err
	}
	for _, r := range refs {
		if r.it.typ == blobChunk && !r.it.is(markKept) {
			r.it.mark |= markDead // its index is gone, or not yet written
		}
	}
	left, err := all.newest()
	if err != nil {
		return err
	}
	if err := p.keepDamagedPages(left); err != nil {
		return err
	}
	p.dropDiscarded()
	p.sweep()
	p.dropDiscarded()
	return p.loadNames()
}

// resolveFreeing decides which of the page that is being freed and the one
// that its items are being copied to counts. The other one is to be erased.
func (p *Partition) resolveFreeing() error {
	defer p.dropDiscarded()
	n := len(p.list)
	at := slices.IndexFunc(p.list, func(pg *page) bool { return pg.state == stateFreeing })
	if at < 0 || n < 2 || at == n-1 {
		return nil
	}
	from, to := p.list[at], p.list[n-1]
	copied, err := p.contains(to, from)
	if err != nil {
		return err
	}
	if copied {
		p.discard(from) // all are there: only the erase is missing
		return nil
	}
	partial, err := p.contains(from, to)
	if err != nil {
		return err
	}
	if partial {
		p.discard(to)
	}
	return nil
}

// contains reports whether every readable item of b is in a too.
func (p *Partition) contains(a, b *page) (bool, error) {
	for i := range b.items {
		it := &b.items[i]
		if it.is(markDamaged) {
			continue
		}
		found := false
		for j := range a.items {
			other := &a.items[j]
			if found || other.hash != it.hash || other.typ != it.typ || other.is(markDamaged) {
				continue
			}
			c, err := p.compareKeys(ref{a, other}, ref{b, it})
			if err != nil {
				return false, err
			}
			found = c == 0
		}
		if !found {
			return false, nil
		}
	}
	return true, nil
}

// discard adds a page to those to be erased; dropDiscarded takes it off the list.
func (p *Partition) discard(pg *page) {
	pg.discarded = true
	p.dirty = append(p.dirty, pg)
}

// dropDiscarded takes all discarded pages off the list at once: a hostile
// partition may have thousands.
func (p *Partition) dropDiscarded() {
	p.list = slices.DeleteFunc(p.list, func(pg *page) bool { return pg.discarded })
	p.damage = slices.DeleteFunc(p.damage, func(d *Damage) bool { return p.pages[d.Page].discarded })
}

// sorted returns the readable items of the listed pages by hash, then by
// namespace, chunk and key, then newest first.
func (p *Partition) sorted() ([]ref, error) {
	var refs []ref
	for _, pg := range p.list {
		for i := range pg.items {
			if it := &pg.items[i]; !it.is(markDamaged) {
				refs = append(refs, ref{pg, it})
			}
		}
	}
	var failed error
	slices.SortFunc(refs, func(a, b ref) int {
		if a.it.hash != b.it.hash {
			if a.it.hash < b.it.hash {
				return -1
			}
			return 1
		}
		c, err := p.compareKeys(a, b)
		if err != nil {
			failed = err
		}
		if c == 0 {
			c = b.pg.order - a.pg.order
		}
		if c == 0 {
			c = int(b.it.entry) - int(a.it.entry)
		}
		return c
	})
	return refs, failed
}

// compareKeys orders two items by namespace, chunk and key.
func (p *Partition) compareKeys(a, b ref) (int, error) {
	if c := int(a.it.ns) - int(b.it.ns); c != 0 {
		return c, nil
	}
	if c := int(a.it.chunk) - int(b.it.chunk); c != 0 {
		return c, nil
	}
	ea, err := p.entry(a.pg, a.it)
	if err != nil {
		return 0, err
	}
	eb, err := p.entry(b.pg, b.it)
	if err != nil {
		return 0, err
	}
	return bytes.Compare(ea.key(), eb.key()), nil
}

// index finds items by what they are called.
type index struct {
	p    *Partition
	refs []ref // sorted
}

// eachKey calls f for the items of each namespace, key and chunk, newest first.
func (x index) eachKey(f func([]ref) error) error {
	for i := 0; i < len(x.refs); {
		j := i + 1
		for j < len(x.refs) && x.refs[j].it.hash == x.refs[i].it.hash {
			c, err := x.p.compareKeys(x.refs[i], x.refs[j])
			if err != nil {
				return err
			}
			if c != 0 {
				break
			}
			j++
		}
		if err := f(x.refs[i:j]); err != nil {
			return err
		}
		i = j
	}
	return nil
}

// newest returns the index of the newest item of each name that is not dead.
func (x index) newest() (index, error) {
	only := index{x.p, nil}
	err := x.eachKey(func(same []ref) error {
		for _, r := range same {
			if !r.it.is(markDead) {
				only.refs = append(only.refs, r)
				break
			}
		}
		return nil
	})
	return only, err
}

// find returns the item of that name. It takes an index of the newest.
func (x index) find(ns uint8, key []byte, chunk uint8) (ref, bool, error) {
	hash := hashOf(ns, key, chunk)
	var failed error
	i, ok := slices.BinarySearchFunc(x.refs, key, func(r ref, key []byte) int {
		if c := cmp.Compare(r.it.hash, hash); c != 0 {
			return c
		}
		if c := cmp.Compare(r.it.ns, ns); c != 0 {
			return c
		}
		if c := cmp.Compare(r.it.chunk, chunk); c != 0 {
			return c
		}
		e, err := x.p.entry(r.pg, r.it)
		if err != nil {
			failed = err
		}
		return bytes.Compare(e.key(), key)
	})
	if failed != nil || !ok {
		return ref{}, false, failed
	}
	return x.refs[i], true, nil
}

// resolveChunk keeps the newest of the chunks of one number.
func (x index) resolveChunk(same []ref) error {
	if same[0].it.chunk == noChunk {
		return nil
	}
	for _, older := range same[1:] {
		older.it.mark |= markDead
	}
	return nil
}

// resolveKey keeps, of the items of one key, the newest of each type; of a
// blob the newest that is complete. Values of different types under one key
// are something that ESP-IDF can leave; they are one value only where a cut
// was about to make them one, or where ESP-IDF will.
func (x index) resolveKey(same []ref) error {
	if same[0].it.chunk != noChunk {
		return nil
	}
	var live []ref
	for _, r := range same {
		dead := slices.ContainsFunc(live, func(newer ref) bool {
			return newer.it.typ.class() == r.it.typ.class() || x.p.replaces(newer, r)
		})
		if !dead && r.it.typ == blobIndex {
			complete, err := x.keepChunks(r)
			if err != nil {
				return err
			}
			dead = !complete // a cut while a namespace was being erased
		}
		if dead {
			r.it.mark |= markDead
		} else {
			live = append(live, r)
		}
	}
	return nil
}

// replaces reports whether newer, of another type, was written to replace
// older: as the last thing that was written at all, or to the same page that
// is still being filled.
func (p *Partition) replaces(newer, older ref) bool {
	last := p.list[len(p.list)-1]
	if newer.pg != last {
		return false
	}
	items := last.items
	return newer.it == &items[len(items)-1] || last.state == stateActive && older.pg == last
}

// keepChunks reports whether the chunks of a blob are all there, and if so
// keeps them.
func (x index) keepChunks(r ref) (bool, error) {
	e, err := x.p.entry(r.pg, r.it)
	if err != nil {
		return false, err
	}
	var chunks []ref
	size := 0
	for i := range e.chunks() {
		c, ok, err := x.find(e.ns(), e.key(), e.start()+uint8(i))
		if err != nil || !ok {
			return false, err
		}
		ce, err := x.p.entry(c.pg, c.it)
		if err != nil {
			return false, err
		}
		size += ce.dataSize()
		chunks = append(chunks, c)
	}
	if uint64(size) != uint64(e.blobSize()) {
		return false, nil
	}
	for _, c := range chunks {
		c.it.mark |= markKept
	}
	return true, nil
}

// keepDamagedPages tells pages that a cut left, whose items are all elsewhere,
// from those that are damaged: these are not to be erased. Neither has a sound
// header, or state.
func (p *Partition) keepDamagedPages(x index) error {
	for _, pg := range p.list {
		if !pg.odd {
			continue
		}
		lost, err := x.nowhereElse(pg)
		if err != nil {
			return err
		}
		if lost == 0 {
			p.discard(pg) // a cut while it was erased
		}
	}
	var erase []*page
	for _, pg := range p.dirty {
		lost, err := x.nowhereElse(pg)
		if err != nil {
			return err
		}
		if lost == 0 || !pg.bad {
			erase = append(erase, pg)
			continue
		}
		p.damage = append(p.damage, &Damage{Page: pg.no, Entry: -1, Reason: fmt.Sprintf("checksum of the header is wrong; %d items are nowhere else", lost)})
	}
	p.dirty = erase
	return nil
}

// nowhereElse counts the readable items of a page that count on no other page.
func (x index) nowhereElse(pg *page) (lost int, err error) {
	for i := range pg.items {
		it := &pg.items[i]
		if it.is(markDamaged) {
			continue
		}
		e, err := x.p.entry(pg, it)
		if err != nil {
			return 0, err
		}
		r, ok, err := x.find(it.ns, e.key(), it.chunk)
		if err != nil {
			return 0, err
		}
		if !ok || r.pg == pg {
			lost++
		}
	}
	return lost, nil
}

// sweep moves the items that do not count to the garbage.
func (p *Partition) sweep() {
	for _, pg := range p.list {
		kept := pg.items[:0]
		for _, it := range pg.items {
			if it.is(markDead) {
				pg.garbage = append(pg.garbage, it.run())
			} else {
				it.mark &^= markKept
				kept = append(kept, it)
			}
		}
		pg.items = kept
		if pg.odd && len(kept) == 0 {
			p.discard(pg)
		}
	}
}

// loadNames reads the names of the namespaces, and notes values in none.
func (p *Partition) loadNames() error {
	for _, pg := range p.list {
		for i := range pg.items {
			it := &pg.items[i]
			if it.ns != 0 || it.is(markDamaged) || it.typ != U8 {
				continue
			}
			e, err := p.entry(pg, it)
			if err != nil {
				return err
			}
			p.addName(namespace{e.name(), e.value()[0]})
		}
	}
	var noted [256]bool
	for _, pg := range p.list {
		for i := range pg.items {
			it := &pg.items[i]
			if it.ns == 0 || it.is(markDamaged) || noted[it.ns] {
				continue
			}
			if _, ok := p.nsName(it.ns); !ok {
				noted[it.ns] = true
				p.addDamage(pg.no, it.run(), fmt.Sprintf("namespace %d has no name", it.ns))
			}
		}
	}
	return nil
}
