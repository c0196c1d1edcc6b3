package partition

import (
	"cmp"
	"slices"
	"unicode/utf8"
)

const (
	appAlignment = 0x10000 // of an application's offset: a page of the flash cache
	alignment    = 0x1000  // of every other offset and of an application's size: a flash sector
	otaDataSize  = 0x2000  // two sectors
	minNVSSize   = 0x3000  // of an NVS that is written
)

// alignment returns what a partition's offset is a multiple of.
func (t Type) alignment() int64 {
	if t == App {
		return appAlignment
	}
	return alignment
}

// Check returns the first thing that Espressif's generator refuses about the
// table, as a *[FormatError] with the offset in its binary form; nil if there
// is none. The generator does not judge types, subtypes and flags without a
// name, empty partitions, nor whether there is anything to boot.
func (t *Table) Check(l Layout) error {
	if err := t.encodable(); err != nil {
		return err
	}
	for i, p := range t.Partitions {
		if err := p.check(int64(i * entrySize)); err != nil {
			return err
		}
	}
	if err := t.checkLabels(); err != nil {
		return err
	}
	if err := t.checkPlaces(l); err != nil {
		return err
	}
	if err := t.checkOTAData(DataOTA); err != nil {
		return err
	}
	return t.checkOTAData(DataTEEOTA)
}

// check looks at one partition, whose entry is at the given offset.
func (p Partition) check(at int64) error {
	align := p.Type.alignment()
	switch {
	case int64(p.Offset)%align != 0:
		return formatError(at+offsetAt, ErrAlignment, "offset 0x%x of %q is not a multiple of 0x%x", p.Offset, p.Label, align)
	case p.Type == App && p.Size%alignment != 0:
		return formatError(at+sizeAt, ErrAlignment, "size 0x%x of %q is not a multiple of 0x%x", p.Size, p.Label, alignment)
	case (p.is(Data, DataOTA) || p.is(Data, DataCoreDump)) && p.Flags&ReadOnly != 0:
		return formatError(at+flagsAt, ErrFlags, "%q is of subtype %s and cannot be readonly", p.Label, p.Type.SubtypeName(p.Subtype))
	case p.is(Data, DataNVS) && p.Size < minNVSSize && p.Flags&ReadOnly == 0:
		return formatError(at+sizeAt, ErrSize, "NVS %q has 0x%x bytes, want 0x%x or readonly", p.Label, p.Size, minNVSSize)
	case !utf8.ValidString(p.Label):
		return formatError(at+labelAt, ErrLabel, "%q is not UTF-8", p.Label)
	}
	return nil
}

func (t *Table) checkLabels() error {
	seen := make(map[string]bool, len(t.Partitions))
	for i, p := range t.Partitions {
		if seen[p.Label] {
			return formatError(int64(i*entrySize+labelAt), ErrDuplicate, "two partitions are called %q", p.Label)
		}
		seen[p.Label] = true
	}
	return nil
}

// checkPlaces goes through the partitions in the order of the flash.
func (t *Table) checkPlaces(l Layout) error {
	order := make([]int, len(t.Partitions))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(i, j int) int {
		return cmp.Compare(t.Partitions[i].Offset, t.Partitions[j].Offset)
	})
	var before *Partition
	for _, i := range order {
		p, at := &t.Partitions[i], int64(i*entrySize)
		if free := l.tableOffset() + SectorSize; int64(p.Offset) < free && !p.isPrimary() {
			return formatError(at+offsetAt, ErrOverlap, "%q is at 0x%x, below the end of the table at 0x%x", p.Label, p.Offset, free)
		}
		if before != nil && int64(p.Offset) < before.end() {
			return formatError(at+offsetAt, ErrOverlap, "%q is at 0x%x, within %q at 0x%x to 0x%x", p.Label, p.Offset, before.Label, before.Offset, before.end()-1)
		}
		if p.end() > l.flashSize() {
			return formatError(at+sizeAt, ErrFlashSize, "%q ends at 0x%x, the flash at 0x%x", p.Label, p.end(), l.flashSize())
		}
		before = p
	}
	return nil
}

// checkOTAData sees that there is at most one otadata of the subtype, of the
// right size.
func (t *Table) checkOTAData(subtype Subtype) error {
	found := false
	for i, p := range t.Partitions {
		at := int64(i * entrySize)
		switch {
		case !p.is(Data, subtype):
			continue
		case found:
			return formatError(at+subtypeAt, ErrDuplicate, "%q is a second partition of subtype %s", p.Label, Data.SubtypeName(subtype))
		case p.Size != otaDataSize:
			return formatError(at+sizeAt, ErrSize, "%q has 0x%x bytes, want 0x%x", p.Label, p.Size, otaDataSize)
		}
		found = true
	}
	return nil
}
