package nvs

import "encoding/binary"

const (
	headerSize = 32
	tableSize  = 32
	tableOff   = headerSize
	entriesOff = headerSize + tableSize
	pageSlots  = 126 // entries in a page

	version1   = 0xFF
	version2   = 0xFE // versions count down; what we write
	seqOff     = 4
	versionOff = 8
	headerCRC  = 28
)

// pageState is the first word of a page's header. Its steps clear bits, so
// that they need no erase.
type pageState uint32

const (
	stateBlank   pageState = 0xFFFFFFFF // erased; as the state of a listed page: chosen, its header not yet written
	stateActive  pageState = 0xFFFFFFFE // being filled
	stateFull    pageState = 0xFFFFFFFC
	stateFreeing pageState = 0xFFFFFFF8 // its items are being copied to the newest page
)

// slot is the state of one entry: two bits in the page's table.
type slot uint8

const (
	slotErased  slot = 0b00
	slotHalf    slot = 0b01 // on the way from empty to erased
	slotWritten slot = 0b10
	slotEmpty   slot = 0b11
)

// page is what is kept in memory of a page.
type page struct {
	no    int // number of the sector in the partition
	state pageState
	seq   uint32 // pages are as old as this is low
	table [tableSize]byte
	next  int  // first entry that was never programmed, pageSlots if there is none
	order int  // position by seq, while items are resolved
	blank bool // erased throughout
	bad   bool // header fails its checksum
	odd   bool // header is sound but for a bit or the state; of no use without items

	discarded bool // decided to be erased: nothing in it counts

	flipped bool // a bit of the header was corrected, here, not in the flash

	items   []item // ascending by entry
	garbage []run  // entries that belong to no item: to be erased
	unwiped []run  // erased entries whose bytes are still there
}

// item is what is kept in memory of an item, a value or part of one.
type item struct {
	hash  uint32 // see hashOf
	ns    uint8
	typ   Type
	chunk uint8
	entry uint8
	span  uint8
	mark  mark
}

type mark uint8

const (
	markDamaged mark = 1 << iota // cannot be read; kept as it is
	markDead                     // superseded or left over
	markKept                     // chunk that a live index refers to
)

// newItem returns the item that begins with e and has the entries r.
func newItem(e *entry, r run) item {
	return item{hash: hashOf(e.ns(), e.key(), e.chunk()), ns: e.ns(), typ: e.typ(), chunk: e.chunk(), entry: r.entry, span: r.span}
}

// run is a range of entries of a page.
type run struct{ entry, span uint8 }

func (pg *page) off() int64           { return int64(pg.no) * sectorSize }
func (pg *page) entryOff(i int) int64 { return pg.off() + entriesOff + int64(i)*entrySize }
func (pg *page) slot(i int) slot      { return slot(pg.table[i/4]>>(i%4*2)) & 3 }
func (pg *page) clear(i int, s slot)  { pg.table[i/4] &^= uint8(^s&3) << (i % 4 * 2) }
func (pg *page) isWritten(r run) bool { return pg.count(r, slotWritten) == int(r.span) }
func (pg *page) used() int            { return pg.count(run{0, pageSlots}, slotWritten) }
func (it *item) run() run             { return run{it.entry, it.span} }
func (it *item) is(m mark) bool       { return it.mark&m != 0 }

// count returns how many entries of r are in state s.
func (pg *page) count(r run, s slot) (n int) {
	for i := int(r.entry); i < int(r.entry)+int(r.span); i++ {
		if pg.slot(i) == s {
			n++
		}
	}
	return n
}

// room returns how many entries can still be written to the page.
func (pg *page) room() int {
	switch pg.state {
	case stateBlank:
		return pageSlots
	case stateActive:
		return pageSlots - pg.next
	}
	return 0
}

// header returns the header of a fresh page.
func header(seq uint32) (h [headerSize]byte) {
	fill(h[:], 0xFF)
	binary.LittleEndian.PutUint32(h[:], uint32(stateActive))
	binary.LittleEndian.PutUint32(h[seqOff:], seq)
	h[versionOff] = version2
	binary.LittleEndian.PutUint32(h[headerCRC:], crc(h[seqOff:headerCRC]))
	return h
}
