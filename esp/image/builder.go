package image

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
)

// Builder makes an image from segments. Its output is what esptool's
// elf2image makes of the same segments in the same order, byte for byte:
//
//   - Segments that the chip maps from flash are placed so that their offset
//     in the file fits their address, in the order in which they were added.
//     Gaps are filled with pieces of the other segments, or with padding
//     segments (address 0). No two may start in one page: it can be mapped
//     to one place of the flash only.
//   - The other segments follow, in the order in which they were added.
//   - Data is filled with zeros to a multiple of 4 bytes, and so that a
//     mapped segment does not end within the first 36 bytes of a page.
//
// For the application descriptor to be where readers look for it, add the
// segment that starts with it (see [App.MarshalBinary]) first, at an address
// that is 0x20 past a multiple of the page size.
//
// Set Header, usually from [NewHeader], add segments, then call WriteTo or
// Bytes, as often as wanted: they do not change the Builder. It is not safe
// for concurrent use while it is being changed.
type Builder struct {
	Header Header

	// SecurePad adds a last padding segment so that the image ends with a
	// page and the signature sector starts the next (--secure-pad-v2). It
	// needs Header.HashAppended.
	SecurePad bool

	// PageSize is the unit of mapping in bytes: 8192, 16384, 32768 or
	// 65536, the one that the bootloader was built with; 0 is 65536.
	PageSize uint32

	segments []buildSegment
}

// buildSegment is a segment, or a piece of one: length bytes, of which the
// first stored are in data from offset off, and the rest are zero.
type buildSegment struct {
	address     uint32
	data        io.ReaderAt
	off, stored int64
	length      int64
}

// Add adds a segment of the given data, which is not copied.
func (b *Builder) Add(address uint32, data []byte) {
	b.AddReader(address, bytes.NewReader(data), int64(len(data)))
}

// AddReader adds a segment of length bytes that are read from data, from
// offset 0, whenever the image is written.
func (b *Builder) AddReader(address uint32, data io.ReaderAt, length int64) {
	b.segments = append(b.segments, buildSegment{address: address, data: data, stored: length, length: (length + 3) &^ 3})
}

// Size returns the image's length in bytes, or why it cannot be built.
func (b *Builder) Size() (int64, error) {
	_, end, err := b.layout()
	if err != nil {
		return 0, err
	}
	end += 16 - end%16
	if b.Header.HashAppended {
		end += hashSize
	}
	return end, nil
}

// Bytes returns the image.
func (b *Builder) Bytes() ([]byte, error) {
	size, err := b.Size()
	if err != nil {
		return nil, err
	}
	buf := bytes.NewBuffer(make([]byte, 0, size))
	_, err = b.WriteTo(buf)
	return buf.Bytes(), err
}

// WriteTo writes the image to w, reading the data of each segment once and
// keeping none of it. It returns the number of bytes written.
func (b *Builder) WriteTo(w io.Writer) (int64, error) {
	segments, _, err := b.layout()
	if err != nil {
		return 0, err
	}
	header, err := b.Header.encode(len(segments))
	if err != nil {
		return 0, err
	}
	out := &builderWriter{w: w, sum: sha256.New(), checksum: 0xEF, buf: make([]byte, 32<<10)}
	out.write(header[:])
	for i, s := range segments {
		if err := out.writeSegment(s); err != nil {
			return out.n, fmt.Errorf("image: write segment %d at address 0x%x: %w", i, s.address, err)
		}
	}
	fill := make([]byte, 16-out.n%16)
	fill[len(fill)-1] = out.checksum
	out.write(fill)
	if b.Header.HashAppended {
		out.write(out.sum.Sum(nil))
	}
	if out.err != nil {
		return out.n, fmt.Errorf("image: write: %w", out.err)
	}
	return out.n, nil
}

// layout returns the segments in the order of the file, padding included, and
// the offset at which they end.
func (b *Builder) layout() ([]buildSegment, int64, error) {
	page := int64(b.PageSize)
	if page == 0 {
		page = defaultPageSize
	}
	if !validPageSize(uint32(page)) {
		return nil, 0, fmt.Errorf("image: page size %d is not 8192, 16384, 32768 or 65536", page)
	}
	if b.SecurePad && !b.Header.HashAppended {
		return nil, 0, errors.New("image: SecurePad needs Header.HashAppended")
	}
	var mapped, loaded []buildSegment
	for i, s := range b.segments {
		if s.stored < 0 || s.stored >= maxSegmentLength {
			return nil, 0, fmt.Errorf("image: segment %d at address 0x%x: length %d is not below 16 MiB", i, s.address, s.stored)
		}
		if b.Header.Chip.mapsFlash(s.address) {
			if s.address%4 != 0 {
				return nil, 0, fmt.Errorf("image: segment %d: address 0x%x is not a multiple of 4", i, s.address)
			}
			for _, other := range mapped {
				if int64(s.address)/page == int64(other.address)/page {
					return nil, 0, fmt.Errorf("image: segment %d: address 0x%x is in the same page of %d bytes as the segment at 0x%x; join them", i, s.address, page, other.address)
				}
			}
			mapped = append(mapped, s)
		} else {
			loaded = append(loaded, s)
		}
	}

	l := layout{off: headerSize}
	for _, s := range mapped {
		for gap := l.gap(s.address, page); gap >= 0; gap = l.gap(s.address, page) {
			if len(loaded) == 0 || gap <= segmentHeaderSize {
				l.place(buildSegment{length: gap})
				continue
			}
			piece, rest := loaded[0].split(gap)
			l.place(piece)
			if loaded = loaded[1:]; rest.length > 0 {
				loaded = append([]buildSegment{rest}, loaded...)
			}
		}
		// A bootloader of old did not map the last page of a segment that
		// has less than 36 bytes in it.
		if over := (l.off + segmentHeaderSize + s.length) % page; over < 0x24 {
			s.length += 0x24 - over
		}
		l.place(s)
	}
	for _, s := range loaded {
		l.place(s)
	}
	if b.SecurePad {
		const after = segmentHeaderSize + 16 + hashSize // header of the padding, checksum, SHA-256
		l.place(buildSegment{length: (page - (l.off+after)%page) % page})
	}
	if n := len(l.segments); n == 0 || n > maxSegments {
		return nil, 0, fmt.Errorf("image: %d segments with padding, want 1 to %d", n, maxSegments)
	}
	for i, s := range l.segments {
		if s.length >= maxSegmentLength {
			return nil, 0, fmt.Errorf("image: segment %d at address 0x%x: length %d with its fill is not below 16 MiB", i, s.address, s.length)
		}
	}
	return l.segments, l.off, nil
}

// layout is the file as far as it has been laid out.
type layout struct {
	segments []buildSegment
	off      int64 // where the next segment's header goes
}

func (l *layout) place(s buildSegment) {
	l.segments = append(l.segments, s)
	l.off += segmentHeaderSize + s.length
}

// gap returns how many bytes elf2image has a segment placed next have so that
// one after it can be mapped to address, or -1 if it can without. That is up
// to a page more than needed if the place in the page is yet to come.
func (l *layout) gap(address uint32, page int64) int64 {
	missing := page - l.off%page + int64(address)%page - segmentHeaderSize
	if missing%page == 0 {
		return -1
	}
	if missing < segmentHeaderSize {
		missing += page
	}
	return missing - segmentHeaderSize
}

// split cuts s after at most n bytes.
func (s buildSegment) split(n int64) (piece, rest buildSegment) {
	n = min(n, s.length)
	piece, rest = s, s
	piece.length, piece.stored = n, min(n, s.stored)
	rest.length, rest.stored = s.length-n, s.stored-piece.stored
	rest.address += uint32(n)
	rest.off += piece.stored
	return piece, rest
}

// builderWriter writes, counts, hashes. The first error stays.
type builderWriter struct {
	w   io.Writer
	n   int64
	err error
	sum interface {
		io.Writer
		Sum([]byte) []byte
	}
	checksum byte
	buf      []byte
}

func (o *builderWriter) write(p []byte) {
	if o.err != nil {
		return
	}
	o.sum.Write(p)
	n, err := o.w.Write(p)
	o.n += int64(n)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	o.err = err
}

func (o *builderWriter) writeSegment(s buildSegment) error {
	le := func(v uint32) []byte { return []byte{byte(v), byte(v >> 8), byte(v >> 16), byte(v >> 24)} }
	o.write(append(le(s.address), le(uint32(s.length))...))
	for done := int64(0); done < s.length && o.err == nil; {
		p := o.buf[:min(int64(len(o.buf)), s.length-done)]
		stored := max(0, min(int64(len(p)), s.stored-done))
		if stored > 0 {
			if n, err := s.data.ReadAt(p[:stored], s.off+done); int64(n) < stored {
				if err == nil || errors.Is(err, io.EOF) {
					err = io.ErrUnexpectedEOF
				}
				return err
			}
		}
		clear(p[stored:])
		o.checksum ^= xorBytes(p)
		o.write(p)
		done += int64(len(p))
	}
	return o.err
}

// Minimal returns the smallest application image for chip: one segment that
// holds the descriptor alone (336 bytes). It is valid, but nothing that runs:
// it serves harnesses and tests that move images about.
func Minimal(chip Chip, app App) ([]byte, error) {
	for i := range chips {
		if chips[i].id != chip {
			continue
		}
		data, err := app.MarshalBinary()
		if err != nil {
			return nil, err
		}
		b := Builder{Header: NewHeader(chip)}
		b.Header.Entry = chips[i].irom.low
		b.Add(chips[i].drom.low+headerSize+segmentHeaderSize, data)
		return b.Bytes()
	}
	return nil, fmt.Errorf("image: the memory map of %v is not known", chip)
}
