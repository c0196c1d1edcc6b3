package nvs

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"golang.org/x/crypto/xts"

	"github.com/quarklink-go/quarklink/esp/flash"
)

// Options are what [Open] and [OpenReader] need besides the flash. The zero
// value is right for a plain partition.
type Options struct {
	// Keys decrypt and encrypt the entries; nil for a plain partition.
	Keys *Keys

	// LeaveErased leaves the bytes of overwritten and erased values in the
	// flash until their page is collected, as ESP-IDF 5.3.1 does, instead of
	// wiping them. It saves one or two program operations a value. The flash
	// then is, byte for byte, what ESP-IDF would have written, but where that
	// leaves something behind: part of the old value where a blob replaces a
	// value of another type or is replaced by one, and the chunks of a blob
	// for which the space did not suffice. Here these are erased.
	LeaveErased bool
}

// Partition is an open NVS partition. It is safe for concurrent use; calls run
// one at a time.
//
// It keeps in memory 12 bytes for each item and some 200 for each page, none
// of the values.
type Partition struct {
	mu     sync.Mutex
	r      io.ReaderAt
	flash  flash.NOR // nil: read only
	cipher *xts.Cipher
	leave  bool

	pages []page  // by number
	list  []*page // those with items, oldest first; the last one is being filled
	free  []*page // blank, in the order in which they will be used
	dirty []*page // to be erased: nothing in them counts
	seq   uint32  // of the next page

	names  []namespace
	named  [256]int32 // 1 + the place in names of the first of each index; 0: none
	damage []*Damage  // what load found
	stale  bool       // a write failed in the middle: load before anything else

	buf, back [flash.ProgramSize]byte
}

type namespace struct {
	name  string
	index uint8
}

// Open opens a partition for reading and writing. It finishes or undoes what a
// power cut left half done and, unless [Options.LeaveErased], wipes what was
// erased; so it may write. A blank flash is an empty partition.
//
// The flash must be at least two sectors ([ErrSize]); ESP-IDF recommends
// three. Where Open fails with [ErrNotNVS], [ErrNewerVersion] or [ErrKeys],
// nothing was written. Damage is no failure: see [Partition.Check].
//
// Nothing else may write to the flash while the Partition is in use. It needs
// no closing.
func Open(f flash.NOR, opt Options) (*Partition, error) {
	return open(f, f, f.Size(), 2, opt)
}

// OpenReader opens a partition, or a file with its content, of size bytes for
// reading only: methods that write fail with [ErrReadOnly]. It gives the
// values that Open would.
func OpenReader(r io.ReaderAt, size int64, opt Options) (*Partition, error) {
	return open(r, nil, size, 1, opt)
}

const maxPages = 1 << 12 // 16 MiB, the largest flash of these chips

func open(r io.ReaderAt, f flash.NOR, size int64, least int, opt Options) (*Partition, error) {
	n := size / sectorSize
	if size%sectorSize != 0 || n < int64(least) || n > maxPages {
		return nil, fmt.Errorf("nvs: %d bytes, need %d to %d sectors of %d: %w", size, least, maxPages, sectorSize, ErrSize)
	}
	c, err := opt.Keys.cipher()
	if err != nil {
		return nil, fmt.Errorf("nvs: %w", err)
	}
	p := &Partition{r: r, flash: f, cipher: c, leave: opt.LeaveErased, pages: make([]page, n), stale: true}
	if err := p.ready(); err != nil {
		return nil, err
	}
	return p, nil
}

// ready loads the partition if that was not yet done, or if what is in memory
// may no longer be what is in the flash.
func (p *Partition) ready() error {
	if !p.stale {
		return nil
	}
	if err := p.load(); err != nil {
		return fmt.Errorf("nvs: open: %w", err)
	}
	p.stale = false
	return nil
}

// writable is ready, for calls that write.
func (p *Partition) writable() error {
	if p.flash == nil {
		return fmt.Errorf("nvs: %w", ErrReadOnly)
	}
	return p.ready()
}

// failed notes that a write did not end as planned, unless it was refused
// before or after everything it did was complete.
func (p *Partition) failed(err error) {
	if err != nil && !errors.Is(err, ErrNoSpace) && !errors.Is(err, ErrTooLong) {
		p.stale = true
	}
}

// load reads the partition and, if it may write, repairs it until there is
// nothing to repair.
func (p *Partition) load() error {
	for range len(p.pages) + 8 {
		if err := p.scan(); err != nil {
			return err
		}
		if err := p.resolve(); err != nil {
			return err
		}
		if p.flash == nil {
			return nil
		}
		repaired, err := p.repair()
		if err != nil {
			return fmt.Errorf("repair after a power cut: %w", err)
		}
		if !repaired {
			if len(p.list) == 0 {
				return p.activate()
			}
			return nil
		}
	}
	return errors.New("repair after a power cut does not come to an end: does the flash keep what is written?")
}

// Stats are counts of entries of 32 bytes, as nvs_get_stats has them.
type Stats struct {
	Used       int // by values, chunks, indices and namespaces
	Free       int // all others, erased ones too
	Available  int // Free without the page that is kept for collecting another
	Total      int // 126 for each page
	Namespaces int
}

// Stats returns how much of the partition is used.
func (p *Partition) Stats() (Stats, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.ready(); err != nil {
		return Stats{}, err
	}
	s := Stats{Total: pageSlots * len(p.pages), Namespaces: len(p.names)}
	for _, pg := range p.list {
		for i := range pg.items {
			s.Used += int(pg.items[i].span)
		}
	}
	s.Free = s.Total - s.Used
	s.Available = max(0, s.Free-pageSlots)
	return s, nil
}

// Entry says where a value is and what it is, not what it contains.
type Entry struct {
	Namespace, Key string
	Type           Type // never that of a part of a blob
	Size           int  // of the value in bytes; of a string without its NUL
	Page, Index    int  // where its first entry is; of a blob that of its index
}

// Entries returns all values, in the order in which they lie in the
// partition, oldest page first.
func (p *Partition) Entries() ([]Entry, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.ready(); err != nil {
		return nil, err
	}
	var list []Entry
	for _, pg := range p.list {
		for i := range pg.items {
			it := &pg.items[i]
			if it.is(markDamaged) || it.ns == 0 || it.typ == blobChunk {
				continue
			}
			e, err := p.entry(pg, it)
			if err != nil {
				return nil, fmt.Errorf("nvs: list: %w", err)
			}
			name, ok := p.nsName(it.ns)
			if !ok {
				continue // among the damage
			}
			list = append(list, Entry{name, e.name(), it.typ.class(), e.size(), pg.no, int(it.entry)})
		}
	}
	return list, nil
}

// size returns the length of the value that the entry stands for.
func (e *entry) size() int {
	switch t := e.typ(); {
	case t == blobIndex:
		return int(e.blobSize())
	case t == String:
		return max(0, e.dataSize()-1)
	case e.hasData():
		return e.dataSize()
	default:
		return t.size()
	}
}

// Namespaces returns the names of the namespaces, also of empty ones, in the
// order in which they lie in the partition.
func (p *Partition) Namespaces() ([]string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.ready(); err != nil {
		return nil, err
	}
	list := make([]string, len(p.names))
	for i, n := range p.names {
		list[i] = n.name
	}
	return list, nil
}

func (p *Partition) nsName(index uint8) (string, bool) {
	if at := p.named[index]; at > 0 {
		return p.names[at-1].name, true
	}
	return "", false
}

// addName adds a name; of several for one index the first counts.
func (p *Partition) addName(n namespace) {
	p.names = append(p.names, n)
	if p.named[n.index] == 0 {
		p.named[n.index] = int32(len(p.names))
	}
}

func (p *Partition) nsIndex(name string) (uint8, bool) {
	for _, n := range p.names {
		if n.name == name {
			return n.index, true
		}
	}
	return 0, false
}
