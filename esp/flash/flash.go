package flash

import (
	"errors"
	"fmt"
	"io"
)

const (
	// SectorSize is the number of bytes that flash erases at once.
	SectorSize = 4096

	// ProgramSize is the most that is programmed at once, in bytes. A program
	// operation never crosses a multiple of it, as serial NOR flash requires.
	ProgramSize = 256
)

// ErrBounds is the error of an access outside the flash, of an erase that does not
// start at a sector, and of a program operation that crosses a multiple of
// [ProgramSize].
var ErrBounds = errors.New("no place of the flash")

// ErrProgram is the error of a write whose bytes do not read back: the flash was
// not erased, is write-protected, or is worn out.
var ErrProgram = errors.New("flash does not keep what is written")

// NOR is NOR flash, or a region of it. Offsets are in bytes from its start. One
// goroutine at a time calls it.
//
// ESP-IDF's esp_partition_read_raw, esp_partition_write_raw and
// esp_partition_erase_range are such a region.
type NOR interface {
	io.ReaderAt

	// Program clears the bits that are 0 in data: each byte of the flash
	// becomes itself AND that of data. It returns when the bytes are stored.
	// data is not empty and does not cross a multiple of [ProgramSize].
	Program(off int64, data []byte) error

	// EraseSector sets all bits of the sector at off, a multiple of
	// [SectorSize], and returns when that is done.
	EraseSector(off int64) error

	// Size returns the size in bytes, which does not change.
	Size() int64
}

// Write programs data of any length at off and reads it back. What was there has to
// be erased, or to have all bits that data has: else the error is [ErrProgram].
func Write(f NOR, off int64, data []byte) error {
	var back [ProgramSize]byte
	for len(data) > 0 {
		part := data[:min(len(data), int(ProgramSize-off%ProgramSize))]
		if err := f.Program(off, part); err != nil {
			return fmt.Errorf("flash: program %d bytes at 0x%x: %w", len(part), off, err)
		}
		if err := Read(f, back[:len(part)], off); err != nil {
			return err
		}
		for i := range part {
			if back[i] != part[i] {
				return fmt.Errorf("flash: program %d bytes at 0x%x: 0x%02x at 0x%x, want 0x%02x: %w",
					len(part), off, back[i], off+int64(i), part[i], ErrProgram)
			}
		}
		off += int64(len(part))
		data = data[len(part):]
	}
	return nil
}

// Erase erases size bytes from off, both multiples of [SectorSize], and reads
// them back. Erased flash that is read through decryption is not 0xFF: what is
// checked is what lies below.
func Erase(f NOR, off, size int64) error {
	if off%SectorSize != 0 || size%SectorSize != 0 {
		return fmt.Errorf("flash: erase 0x%x bytes at 0x%x, need multiples of 0x%x: %w", size, off, SectorSize, ErrBounds)
	}
	for end := off + size; off < end; off += SectorSize {
		if err := f.EraseSector(off); err != nil {
			return fmt.Errorf("flash: erase at 0x%x: %w", off, err)
		}
		blank, err := Blank(raw(f), off, SectorSize)
		if err != nil {
			return err
		}
		if !blank {
			return fmt.Errorf("flash: erase at 0x%x: bits stay clear: %w", off, ErrProgram)
		}
	}
	return nil
}

// raw returns flash as it is below encryption.
func raw(f NOR) NOR {
	if view, ok := f.(interface{ raw() NOR }); ok {
		return view.raw()
	}
	return f
}

// Blank reports whether size bytes at off are all 0xFF.
func Blank(r io.ReaderAt, off, size int64) (bool, error) {
	var buf [ProgramSize]byte
	for size > 0 {
		b := buf[:min(size, ProgramSize)]
		if err := Read(r, b, off); err != nil {
			return false, err
		}
		for _, v := range b {
			if v != 0xFF {
				return false, nil
			}
		}
		off += int64(len(b))
		size -= int64(len(b))
	}
	return true, nil
}

// Read fills b from off. A flash that ends before is io.ErrUnexpectedEOF.
func Read(r io.ReaderAt, b []byte, off int64) error {
	n, err := r.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("flash: read %d bytes at 0x%x: %w", len(b), off, err)
}

// checkProgram says what is wrong with a program operation on flash of that size.
func checkProgram(size, off int64, n int) error {
	switch {
	case off < 0 || off > size || int64(n) > size-off:
		return fmt.Errorf("flash: program 0x%x bytes at 0x%x of 0x%x: %w", n, off, size, ErrBounds)
	case off%ProgramSize+int64(n) > ProgramSize:
		return fmt.Errorf("flash: program of %d bytes at 0x%x crosses a multiple of %d: %w", n, off, ProgramSize, ErrBounds)
	}
	return nil
}

// checkErase says what is wrong with an erase on flash of that size.
func checkErase(size, off int64) error {
	if off < 0 || off%SectorSize != 0 || size < SectorSize || off > size-SectorSize {
		return fmt.Errorf("flash: no sector starts at 0x%x of 0x%x: %w", off, size, ErrBounds)
	}
	return nil
}
