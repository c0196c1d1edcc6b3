package nvs

import "slices"

// repair finishes or undoes what was left half done, and reports
// whether there was something. Every state that a cut during repair leaves is
// one that resolve reads the same way.
func (p *Partition) repair() (bool, error) {
	repaired := false
	for _, pg := range p.list {
		for _, r := range pg.garbage {
			if err := p.eraseRun(pg, r); err != nil {
				return false, err
			}
			repaired = true
		}
	}
	for _, pg := range p.dirty {
		if err := p.erasePage(pg); err != nil {
			return false, err
		}
		repaired = true
	}
	if repaired {
		return true, nil
	}
	for _, pg := range slices.Clone(p.list) {
		if len(p.free) == 0 || pg.state != stateFreeing && !pg.flipped {
			continue
		}
		if err := p.setState(pg, stateFreeing); err != nil {
			return false, err
		}
		if err := p.evacuate(pg); err != nil {
			return false, err
		}
		repaired = true
	}
	if repaired || p.leave {
		return repaired, nil
	}
	for _, pg := range p.list {
		for _, r := range pg.unwiped {
			if err := p.wipe(pg, r); err != nil {
				return false, err
			}
		}
		pg.unwiped = nil
	}
	return false, nil
}
