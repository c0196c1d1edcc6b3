package flash

import (
	"fmt"
	"io"
)

// RandomAccess is what [File] needs. If it also has Sync() error, as an *os.File
// has, that is called after every operation: it returns when the bytes are stored.
type RandomAccess interface {
	io.ReaderAt
	io.WriterAt
}

// File returns flash whose content is in a file of size bytes, such as a dump. An
// operation reads what is there, so that programming clears bits as on a chip.
func File(f RandomAccess, size int64) NOR { return &file{f, max(size, 0)} }

type file struct {
	f    RandomAccess
	size int64
}

func (f *file) Size() int64 { return f.size }

func (f *file) ReadAt(b []byte, off int64) (int, error) {
	if off < 0 || off > f.size {
		return 0, fmt.Errorf("flash: read at 0x%x of 0x%x: %w", off, f.size, ErrBounds)
	}
	part := b[:min(int64(len(b)), f.size-off)]
	n, err := f.f.ReadAt(part, off)
	if err == nil && n < len(b) {
		err = io.EOF
	}
	return n, err
}

func (f *file) Program(off int64, data []byte) error {
	if err := checkProgram(f.size, off, len(data)); err != nil {
		return err
	}
	var buf [ProgramSize]byte
	b := buf[:len(data)]
	if err := Read(f.f, b, off); err != nil {
		return err
	}
	for i, v := range data {
		b[i] &= v
	}
	return f.write(off, b)
}

func (f *file) EraseSector(off int64) error {
	if err := checkErase(f.size, off); err != nil {
		return err
	}
	return f.write(off, NewMemory(SectorSize))
}

func (f *file) write(off int64, b []byte) error {
	if _, err := f.f.WriteAt(b, off); err != nil {
		return fmt.Errorf("flash: write %d bytes at 0x%x: %w", len(b), off, err)
	}
	if s, ok := f.f.(interface{ Sync() error }); ok {
		return s.Sync()
	}
	return nil
}
