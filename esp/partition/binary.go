package partition

import (
	"bytes"
	"crypto/md5"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// An entry, esp_partition_info_t. The MD5 and the end marker take the place
// of one; the MD5 is in the second half of its entry.
const (
	entrySize = 32

	magicAt   = 0
	typeAt    = 2
	subtypeAt = 3
	offsetAt  = 4
	sizeAt    = 8
	labelAt   = 12
	flagsAt   = 28
	md5At     = 16

	entryMagic = 0x50AA
	md5Magic   = 0xEBEB
	endMagic   = 0xFFFF
)

// Read reads the table at l.TableOffset of flash, and refuses what the
// bootloader refuses: see [Parse]. Offsets in errors count from the start of
// flash.
func Read(flash io.ReaderAt, l Layout) (*Table, error) {
	b := make([]byte, TableSize)
	n, err := flash.ReadAt(b, l.tableOffset())
	if n < len(b) && err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("partition: read table at offset 0x%x: %w", l.tableOffset(), err)
	}
	return parse(b[:n], l.tableOffset(), l.flashSize())
}

// Parse takes a table apart that starts at the start of b, and refuses what
// the bootloader refuses: [ErrMagic], [ErrChecksum], [ErrTruncated],
// [ErrCount], and [ErrFlashSize] if a partition ends beyond flashSize bytes
// (0: unknown). Whether the partitions make sense together is the question of
// [Table.Check]. What follows the end marker is ignored.
func Parse(b []byte, flashSize int64) (*Table, error) {
	return parse(b, 0, Layout{FlashSize: flashSize}.flashSize())
}

// parse reports offsets counted from base.
func parse(b []byte, base, flashSize int64) (*Table, error) {
	t := &Table{NoMD5: true}
	for at := 0; at < TableSize; at += entrySize {
		start := base + int64(at)
		if len(b) < at+entrySize {
			return nil, formatError(base+int64(len(b)), ErrTruncated, "the table ends after %d bytes", len(b))
		}
		e := b[at : at+entrySize]
		switch magic := binary.LittleEndian.Uint16(e[magicAt:]); {
		case magic == entryMagic && t.NoMD5:
			p := decode(e)
			if p.end() > flashSize {
				return nil, formatError(start+offsetAt, ErrFlashSize, "%q ends at 0x%x, the flash at 0x%x", p.Label, p.end(), flashSize)
			}
			t.Partitions = append(t.Partitions, p)
		case magic == entryMagic:
			return nil, formatError(start, ErrChecksum, "an entry follows the MD5, which does not cover it")
		case magic == md5Magic && t.NoMD5:
			if sum := md5.Sum(b[:at]); !bytes.Equal(sum[:], e[md5At:]) {
				return nil, formatError(start+md5At, ErrChecksum, "MD5 is %x, that of the entries %x", e[md5At:], sum)
			}
			t.NoMD5 = false
		case magic == md5Magic:
			return nil, formatError(start, ErrChecksum, "a second MD5")
		case magic == endMagic && e[typeAt] == 0xFF && e[subtypeAt] == 0xFF:
			if at == 0 {
				return nil, formatError(start, ErrMagic, "the flash is erased, want a partition table")
			}
			if len(t.Partitions) == 0 {
				return nil, formatError(start, ErrCount, "none")
			}
			return t, nil
		default:
			return nil, formatError(start, ErrMagic, "0x%04x, want 0x%04x", magic, entryMagic)
		}
	}
	return nil, formatError(base+TableSize, ErrTruncated, "all %d bytes are entries", TableSize)
}

func decode(e []byte) Partition {
	label, _, _ := bytes.Cut(e[labelAt:flagsAt], []byte{0})
	return Partition{
		Label:   string(label),
		Type:    Type(e[typeAt]),
		Subtype: Subtype(e[subtypeAt]),
		Offset:  binary.LittleEndian.Uint32(e[offsetAt:]),
		Size:    binary.LittleEndian.Uint32(e[sizeAt:]),
		Flags:   Flags(binary.LittleEndian.Uint32(e[flagsAt:])),
	}
}

// MarshalBinary returns the table as it goes into flash, byte for byte as
// Espressif's generator makes it: [TableSize] bytes, filled with 0xFF. It
// fails if [Parse] would not return an equal table: [ErrCount] if there is no
// partition or more than 94 (95 without MD5), [ErrLabel], [ErrFlashSize].
// Nothing else is checked; see [Table.Check].
func (t *Table) MarshalBinary() ([]byte, error) {
	if err := t.encodable(); err != nil {
		return nil, err
	}
	b := make([]byte, TableSize)
	for i, p := range t.Partitions {
		p.encode(b[i*entrySize:])
	}
	end := len(t.Partitions) * entrySize
	rest := b[end:]
	for i := range rest {
		rest[i] = 0xFF
	}
	if !t.NoMD5 {
		sum := md5.Sum(b[:end])
		binary.LittleEndian.PutUint16(rest[magicAt:], md5Magic)
		copy(rest[md5At:], sum[:])
	}
	return b, nil
}

func (p Partition) encode(e []byte) {
	binary.LittleEndian.PutUint16(e[magicAt:], entryMagic)
	e[typeAt], e[subtypeAt] = byte(p.Type), byte(p.Subtype)
	binary.LittleEndian.PutUint32(e[offsetAt:], p.Offset)
	binary.LittleEndian.PutUint32(e[sizeAt:], p.Size)
	copy(e[labelAt:flagsAt], p.Label)
	binary.LittleEndian.PutUint32(e[flagsAt:], uint32(p.Flags))
}

// encodable reports what the binary form cannot hold.
func (t *Table) encodable() error {
	most := TableSize/entrySize - 1 // the end marker
	if !t.NoMD5 {
		most--
	}
	if n := len(t.Partitions); n == 0 || n > most {
		return formatError(int64(min(n, most)*entrySize), ErrCount, "%d partitions, want 1 to %d", n, most)
	}
	for i, p := range t.Partitions {
		at := int64(i * entrySize)
		if len(p.Label) > MaxLabelLength || strings.IndexByte(p.Label, 0) >= 0 {
			return formatError(at+labelAt, ErrLabel, "%q has more than %d bytes or holds a NUL", p.Label, MaxLabelLength)
		}
		if p.end() > maxFlashSize {
			return formatError(at+offsetAt, ErrFlashSize, "%q ends at 0x%x, want at most 0x%x", p.Label, p.end(), int64(maxFlashSize))
		}
	}
	return nil
}
