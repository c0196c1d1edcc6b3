package flash

import (
	"fmt"
	"io"
)

// Memory is flash in memory. A file read into a Memory can be changed and written
// back. The zero value is flash of size 0.
type Memory []byte

// NewMemory returns erased flash of size bytes, as a rule a multiple of
// [SectorSize]: a rest cannot be erased again.
func NewMemory(size int) Memory {
	m := make(Memory, max(size, 0))
	for i := range m {
		m[i] = 0xFF
	}
	return m
}

// Size returns len(m).
func (m Memory) Size() int64 { return int64(len(m)) }

// ReadAt implements io.ReaderAt.
func (m Memory) ReadAt(b []byte, off int64) (int, error) {
	if off < 0 || off > int64(len(m)) {
		return 0, fmt.Errorf("flash: read at 0x%x of 0x%x: %w", off, len(m), ErrBounds)
	}
	n := copy(b, m[off:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// Program implements [NOR].
func (m Memory) Program(off int64, data []byte) error {
	if err := checkProgram(m.Size(), off, len(data)); err != nil {
		return err
	}
	for i, b := range data {
		m[off+int64(i)] &= b
	}
	return nil
}

// EraseSector implements [NOR].
func (m Memory) EraseSector(off int64) error {
	if err := checkErase(m.Size(), off); err != nil {
		return err
	}
	for i := range m[off : off+SectorSize] {
		m[off+int64(i)] = 0xFF
	}
	return nil
}
