package nvs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

const (
	// SectorSize is the number of bytes that flash erases at once, and that an
	// NVS page has.
	SectorSize = 4096

	// ProgramSize is the most that is programmed at once, in bytes. A program
	// operation never crosses a multiple of it, as serial NOR flash requires.
	ProgramSize = 256
)

// Flash is the region of NOR flash that holds a partition. Offsets are in
// bytes from its start. One goroutine at a time calls it.
//
// ESP-IDF's esp_partition_read, _write and _erase_range, on the raw partition
// (without flash encryption), are such a region; so is an [Image].
type Flash interface {
	io.ReaderAt

	// Program clears the bits that are 0 in data: each byte of the flash
	// becomes itself AND that of data. It returns when the bytes are stored.
	Program(off int64, data []byte) error

	// EraseSector sets all bits of the sector at off, a multiple of
	// [SectorSize], and returns when that is done.
	EraseSector(off int64) error

	// Size returns the size of the region in bytes, which does not change.
	Size() int64
}

// Image is a partition in memory that behaves like flash: programming clears
// bits, erasing sets them. A partition file read into an Image can be changed
// and written back.
type Image []byte

// NewImage returns an erased Image of size bytes, a multiple of [SectorSize].
// [Open] refuses other sizes.
func NewImage(size int) Image {
	m := make(Image, max(size, 0))
	fill(m, 0xFF)
	return m
}

// Size returns len(m).
func (m Image) Size() int64 { return int64(len(m)) }

// ReadAt implements io.ReaderAt.
func (m Image) ReadAt(b []byte, off int64) (int, error) {
	if off < 0 || off > int64(len(m)) {
		return 0, errors.New("nvs: read outside the image")
	}
	n := copy(b, m[off:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// Program implements Flash; it refuses what a serial NOR flash would not do.
func (m Image) Program(off int64, data []byte) error {
	if off < 0 || off+int64(len(data)) > int64(len(m)) {
		return errors.New("nvs: program outside the image")
	}
	if off%ProgramSize+int64(len(data)) > ProgramSize {
		return fmt.Errorf("nvs: program of %d bytes at %#x crosses a multiple of %d", len(data), off, ProgramSize)
	}
	for i, b := range data {
		m[off+int64(i)] &= b
	}
	return nil
}

// EraseSector implements Flash.
func (m Image) EraseSector(off int64) error {
	if off < 0 || off%SectorSize != 0 || off+SectorSize > int64(len(m)) {
		return fmt.Errorf("nvs: no sector starts at %#x of the image", off)
	}
	fill(m[off:off+SectorSize], 0xFF)
	return nil
}

func fill(b []byte, v byte) {
	for i := range b {
		b[i] = v
	}
}

// all reports whether all bytes are v.
func all(b []byte, v byte) bool {
	return len(b) == 0 || b[0] == v && bytes.Equal(b[1:], b[:len(b)-1])
}

// read fills b from the flash.
func (p *Partition) read(b []byte, off int64) error {
	n, err := p.r.ReadAt(b, off)
	if n < len(b) {
		if err == nil {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("read %d bytes at %#x: %w", len(b), off, err)
	}
	return nil
}

// program programs data, in as many operations as it takes, and reads it back.
func (p *Partition) program(off int64, data []byte) error {
	for len(data) > 0 {
		part := data[:min(len(data), int(ProgramSize-off%ProgramSize))]
		if err := p.flash.Program(off, part); err != nil {
			return fmt.Errorf("program %d bytes at %#x: %w", len(part), off, err)
		}
		back := p.back[:len(part)]
		if err := p.read(back, off); err != nil {
			return err
		}
		for i := range part {
			if back[i]&^part[i] != 0 {
				return fmt.Errorf("program %d bytes at %#x: bits stay set at %#x: is the flash write-protected or worn?", len(part), off, off+int64(i))
			}
		}
		off += int64(len(part))
		data = data[len(part):]
	}
	return nil
}
