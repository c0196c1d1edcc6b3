package flash

import (
	"fmt"
	"io"
)

// Range is a part of a flash that is encrypted. Both numbers are multiples of
// [SectorSize].
type Range struct{ Offset, Size int64 }

// Encrypted returns f as the program on a chip sees it: what is read from one of the
// ranges is decrypted, what is programmed there is encrypted. Without ranges all of f
// is encrypted. f is the whole flash: what is at an offset depends on it. Ranges that
// are not of whole sectors, overlap or lie outside f are [ErrBounds].
//
// Encrypted flash is programmed in multiples of [CryptBlock] and once only: to clear
// further bits is not possible, and erased flash does not read as 0xFF. Erase and Write
// know that.
func Encrypted(f NOR, c *Cipher, ranges ...Range) (NOR, error) {
	if len(ranges) == 0 {
		ranges = []Range{{0, f.Size() / SectorSize * SectorSize}}
	}
	v := &view{f, c, make([]bool, (f.Size()+SectorSize-1)/SectorSize)}
	for _, r := range ranges {
		if _, err := Region(f, r.Offset, r.Size); err != nil {
			return nil, fmt.Errorf("flash: encrypted: %w", err)
		}
		for off := r.Offset; off < r.Offset+r.Size; off += SectorSize {
			if v.isEncrypted(off) {
				return nil, fmt.Errorf("flash: encrypted ranges overlap at 0x%x: %w", off, ErrBounds)
			}
			v.encrypted[off/SectorSize] = true
		}
	}
	return v, nil
}

type view struct {
	f         NOR
	c         *Cipher
	encrypted []bool // sectors
}

func (v *view) isEncrypted(off int64) bool { return v.encrypted[off/SectorSize] }

func (v *view) raw() NOR                    { return raw(v.f) }
func (v *view) Size() int64                 { return v.f.Size() }
func (v *view) EraseSector(off int64) error { return v.f.EraseSector(off) }

func (v *view) Program(off int64, data []byte) error {
	if err := checkProgram(v.Size(), off, len(data)); err != nil {
		return err
	}
	if !v.isEncrypted(off) {
		return v.f.Program(off, data)
	}
	var buf [ProgramSize]byte
	if err := v.c.Encrypt(buf[:], data, off); err != nil {
		return err
	}
	return v.f.Program(off, buf[:len(data)])
}

// ReadAt reads sector by sector: one is encrypted or not.
func (v *view) ReadAt(b []byte, off int64) (int, error) {
	if off < 0 || off > v.Size() {
		return 0, fmt.Errorf("flash: read at 0x%x of 0x%x: %w", off, v.Size(), ErrBounds)
	}
	done := 0
	for done < len(b) {
		at := off + int64(done)
		if at == v.Size() {
			return done, io.EOF
		}
		n := min(len(b)-done, int(SectorSize-at%SectorSize), int(min(v.Size()-at, SectorSize)))
		if err := v.readSector(b[done:done+n], at); err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// readSector reads within one sector.
func (v *view) readSector(b []byte, off int64) error {
	if !v.isEncrypted(off) {
		return Read(v.f, b, off)
	}
	skip := int(off % CryptBlock)
	whole := b
	if aligned := (skip + len(b) + CryptBlock - 1) / CryptBlock * CryptBlock; aligned != len(b) {
		whole = make([]byte, aligned)
	}
	if err := Read(v.f, whole, off-int64(skip)); err != nil {
		return err
	}
	if err := v.c.Decrypt(whole, whole, off-int64(skip)); err != nil {
		return err
	}
	copy(b, whole[skip:])
	return nil
}
