package flash

import (
	"fmt"
	"io"
)

// Region returns size bytes of f from off, such as a partition. Both are multiples
// of [SectorSize] and lie within f, else the error is [ErrBounds].
func Region(f NOR, off, size int64) (NOR, error) {
	if off < 0 || size < 0 || off%SectorSize != 0 || size%SectorSize != 0 || off > f.Size() || size > f.Size()-off {
		return nil, fmt.Errorf("flash: region of 0x%x bytes at 0x%x in flash of 0x%x: %w", size, off, f.Size(), ErrBounds)
	}
	return region{f, off, size}, nil
}

type region struct {
	f         NOR
	off, size int64
}

func (r region) raw() NOR    { return region{raw(r.f), r.off, r.size} }
func (r region) Size() int64 { return r.size }

func (r region) ReadAt(b []byte, off int64) (int, error) {
	if off < 0 || off > r.size {
		return 0, fmt.Errorf("flash: read at 0x%x of 0x%x: %w", off, r.size, ErrBounds)
	}
	part := b[:min(int64(len(b)), r.size-off)]
	n, err := r.f.ReadAt(part, r.off+off)
	if err == nil && n < len(b) {
		err = io.EOF
	}
	return n, err
}

func (r region) Program(off int64, data []byte) error {
	if err := checkProgram(r.size, off, len(data)); err != nil {
		return err
	}
	return r.f.Program(r.off+off, data)
}

func (r region) EraseSector(off int64) error {
	if err := checkErase(r.size, off); err != nil {
		return err
	}
	return r.f.EraseSector(r.off + off)
}
