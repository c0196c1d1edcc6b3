package image

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// What can be wrong with an image. The errors of [Read] wrap one of them in
// a *[FormatError] that names the offset.
var (
	// ErrMagic: what is there does not start as an image does. Erased flash does this.
	ErrMagic = errors.New("not an ESP32 image")
	// ErrChip: the image is for another chip.
	ErrChip = errors.New("image for another chip")
	// ErrRevision: the image is for other revisions of the chip. No function
	// of this package returns it.
	ErrRevision = errors.New("image for another revision of the chip")
	// ErrSegments: the number of segments, a length or an address is impossible.
	ErrSegments = errors.New("malformed segments")
	// ErrChecksum: the XOR checksum does not fit the data of the segments.
	ErrChecksum = errors.New("wrong checksum")
	// ErrTruncated: the image ends before its header says.
	ErrTruncated = errors.New("truncated")
)

// FormatError says what is wrong with an image, and where.
type FormatError struct {
	Offset int64  // of the offending field, from the start of the image
	Err    error  // one of the sentinels of this package
	Detail string // what was found, what was expected
}

// Error names the offset, the kind of error and the detail.
func (e *FormatError) Error() string {
	return fmt.Sprintf("image: offset 0x%x: %v: %s", e.Offset, e.Err, e.Detail)
}

// Unwrap returns Err.
func (e *FormatError) Unwrap() error { return e.Err }

func formatError(offset int64, err error, format string, args ...any) error {
	return &FormatError{Offset: offset, Err: err, Detail: fmt.Sprintf(format, args...)}
}

// Segment is one segment of an image that was read. Its data is
// io.NewSectionReader(r, Offset, int64(Length)).
type Segment struct {
	Address uint32 // where the chip loads or maps the data; 0 for padding
	Length  uint32 // of the data in bytes: a multiple of 4 below 16 MiB
	Offset  int64  // of the data, from the start of the image
}

// Image is what [Read] found.
type Image struct {
	Header   Header
	Segments []Segment // in the order of the file; 1 to 16
	App      *App      // nil if the first segment does not start with a descriptor, as in a bootloader

	// Length is that of the image in bytes, from the header to the checksum
	// or the appended SHA-256. What follows is no part of it.
	Length int64

	SHA256         [32]byte // of the image up to the checksum, computed
	AppendedSHA256 [32]byte // the one that the image holds; zero without Header.HashAppended

	// PaddedSHA256 is the SHA-256 of the first PaddedLength bytes: what a
	// Secure Boot V2 signature signs. Bytes between the image and
	// PaddedLength are taken as they are, and as 0xFF, which Espressif's
	// tools put there, where there are none.
	PaddedSHA256 [32]byte
}

// HashMatches reports whether the image holds its own SHA-256: false if the
// hash is wrong, and if there is none.
func (m *Image) HashMatches() bool {
	return m.Header.HashAppended && m.SHA256 == m.AppendedSHA256
}

// PaddedLength is Length rounded up to a multiple of 4096: where the
// signature sector of Secure Boot V2 starts.
func (m *Image) PaddedLength() int64 {
	return (m.Length + sectorSize - 1) / sectorSize * sectorSize
}

const sectorSize = 4096

// defaultPageSize is the unit in which the chips map flash, but for those
// whose application descriptor states a smaller one.
const defaultPageSize = 64 << 10

// Read reads and checks the image at the start of r, which holds size bytes;
// bytes after the image are ignored. It reads every byte once, in order, and
// hashes exactly what it interprets, through a buffer of 4 KiB.
//
// An image that the bootloader would refuse is a *[FormatError] around
// [ErrMagic], [ErrSegments], [ErrChecksum] or [ErrTruncated]; an error of r is
// wrapped. Which chip the image is for is left to the caller, as is a wrong
// appended SHA-256: see [Image.HashMatches].
func Read(r io.ReaderAt, size int64) (*Image, error) {
	rd := newReader(r, size)
	var b [headerSize]byte
	if err := rd.read(b[:]); err != nil {
		return nil, err
	}
	header, count, err := decodeHeader(b[:])
	if err != nil {
		return nil, err
	}
	if count == 0 || count > maxSegments {
		return nil, formatError(1, ErrSegments, "%d segments, want 1 to %d", count, maxSegments)
	}
	m := &Image{Header: header, Segments: make([]Segment, count)}
	if err := m.readSegments(rd); err != nil {
		return nil, err
	}
	if err := m.readEnd(rd); err != nil {
		return nil, err
	}
	return m, nil
}

func (m *Image) readSegments(rd *reader) error {
	pageSize := uint32(defaultPageSize)
	for i := range m.Segments {
		at := rd.off
		var b [segmentHeaderSize]byte
		if err := rd.read(b[:]); err != nil {
			return err
		}
		s := Segment{Address: binary.LittleEndian.Uint32(b[:]), Length: binary.LittleEndian.Uint32(b[4:]), Offset: rd.off}
		m.Segments[i] = s
		if s.Length%4 != 0 || s.Length >= maxSegmentLength {
			return formatError(at+4, ErrSegments, "segment %d: length 0x%x is not a multiple of 4 below 16 MiB", i, s.Length)
		}
		end := s.Offset + int64(s.Length)
		if end > rd.size {
			return formatError(at+4, ErrTruncated, "segment %d ends at 0x%x, the file at 0x%x", i, end, rd.size)
		}
		if i == 0 && s.Length >= AppSize {
			if err := m.readApp(rd); err != nil {
				return err
			}
			if m.App != nil && validPageSize(m.App.MMUPageSize) {
				pageSize = m.App.MMUPageSize
			}
		}
		if m.Header.Chip.mapsFlash(s.Address) && uint32(s.Offset)%pageSize != s.Address%pageSize {
			return formatError(at, ErrSegments, "segment %d: data at 0x%x cannot be mapped to address 0x%x in pages of %d bytes", i, s.Offset, s.Address, pageSize)
		}
		if err := rd.checksumTo(end); err != nil {
			return err
		}
	}
	return nil
}

// readApp reads the descriptor at the start of the first segment, if that is
// what is there.
func (m *Image) readApp(rd *reader) error {
	var b [AppSize]byte
	if err := rd.read(b[:]); err != nil {
		return err
	}
	rd.checksum ^= xorBytes(b[:])
	var app App
	if app.UnmarshalBinary(b[:]) == nil {
		m.App = &app
	}
	return nil
}

// validPageSize reports whether some chip of the family maps flash in pages
// of n bytes.
func validPageSize(n uint32) bool {
	return n == 8<<10 || n == 16<<10 || n == 32<<10 || n == 64<<10
}

// readEnd reads what follows the segments: fill, checksum, SHA-256, and the
// padding up to the signature sector.
func (m *Image) readEnd(rd *reader) error {
	var fill [16]byte
	last := fill[:16-rd.off%16]
	if err := rd.read(last); err != nil {
		return err
	}
	if got := last[len(last)-1]; got != rd.checksum {
		return formatError(rd.off-1, ErrChecksum, "0x%02x, but the segments give 0x%02x", got, rd.checksum)
	}
	rd.sum.Sum(m.SHA256[:0])
	if m.Header.HashAppended {
		if err := rd.read(m.AppendedSHA256[:]); err != nil {
			return err
		}
	}
	m.Length = rd.off
	if err := rd.pad(m.PaddedLength()); err != nil {
		return err
	}
	rd.sum.Sum(m.PaddedSHA256[:0])
	return nil
}
