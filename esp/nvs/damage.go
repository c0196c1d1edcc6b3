package nvs

import (
	"errors"
	"fmt"
)

// Check reads everything and returns what is damaged, nil if nothing is.
func (p *Partition) Check() ([]Damage, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.ready(); err != nil {
		return nil, err
	}
	var list []Damage
	for _, d := range p.damage {
		list = append(list, *d)
	}
	_, found, err := p.unreadable()
	if err != nil {
		return nil, fmt.Errorf("nvs: check: %w", err)
	}
	return append(list, found...), nil
}

// unreadable reads all values and returns those whose data is damaged.
func (p *Partition) unreadable() (values []ref, why []Damage, err error) {
	for _, pg := range p.list {
		for i := range pg.items {
			it := &pg.items[i]
			if it.is(markDamaged) || it.typ == blobChunk {
				continue
			}
			e, err := p.entry(pg, it)
			if err == nil && it.typ == blobIndex {
				_, err = p.blob(ref{pg, it}, &e)
			} else if err == nil && e.hasData() {
				_, err = p.data(nil, pg, it, &e)
			}
			var d *Damage
			if errors.As(err, &d) {
				values = append(values, ref{pg, it})
				why = append(why, *d)
			} else if err != nil {
				return nil, nil, err
			}
		}
	}
	return values, why, nil
}

// DiscardDamage erases what [Partition.Check] lists, so that keys that are not
// found are fs.ErrNotExist again. What was lost by the damage then is gone for
// good: take a copy of the flash first.
func (p *Partition) DiscardDamage() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	err := p.writable()
	if err != nil {
		return err
	}
	if err = p.discardDamage(); err == nil {
		p.stale = true // find what depended on it
		return p.ready()
	}
	p.failed(err)
	return fmt.Errorf("nvs: discard damage: %w", err)
}

func (p *Partition) discardDamage() error {
	for {
		values, _, err := p.unreadable()
		if err != nil {
			return err
		}
		if len(values) == 0 {
			break
		}
		if err := p.eraseValue(values[0]); err != nil {
			return err
		}
	}
	err := p.eraseIf(func(it *item) bool {
		_, named := p.nsName(it.ns)
		return it.is(markDamaged) || it.ns != 0 && !named
	})
	if err != nil {
		return err
	}
	for _, d := range p.damage {
		if d.Entry < 0 {
			if err := p.erasePage(&p.pages[d.Page]); err != nil {
				return err
			}
		}
	}
	return nil
}
