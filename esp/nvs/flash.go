package nvs

import (
	"bytes"
	"fmt"

	"github.com/quarklink-go/quarklink/esp/flash"
)

// An NVS page is a sector.
const sectorSize = flash.SectorSize

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
func (p *Partition) read(b []byte, off int64) error { return flash.Read(p.r, b, off) }

// program programs data, in as many operations as it takes, and reads it back.
// Bits that are clear already may stay so: a state is written over another.
func (p *Partition) program(off int64, data []byte) error {
	for len(data) > 0 {
		part := data[:min(len(data), int(flash.ProgramSize-off%flash.ProgramSize))]
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
