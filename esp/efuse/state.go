package efuse

import (
	"errors"
	"fmt"
)

// The errors of this package, to be found with errors.Is.
var (
	// ErrChip: this package does not know the chip, or it is not the batch's.
	ErrChip = errors.New("unknown or different chip")

	// ErrField: the chip has no such field, block or key.
	ErrField = errors.New("no such eFuse")

	// ErrLength: a value or a key is too long or too short for its place.
	ErrLength = errors.New("wrong length")

	// ErrPurpose: the chip does not take a key of that purpose there.
	ErrPurpose = errors.New("purpose not possible")

	// ErrProtected: what is to be burnt is write-protected, or is
	// read-protected, so that nobody can tell whether it is free.
	ErrProtected = errors.New("eFuse is protected")

	// ErrUsed: the block was written before. A block that is protected by a
	// code is written once, and a key goes into a free block only.
	ErrUsed = errors.New("eFuse block is used")

	// ErrBurnt: a bit would have to go back from 1 to 0.
	ErrBurnt = errors.New("a burnt bit stays burnt")

	// ErrCodingScheme: the ESP32's CODING_SCHEME does not allow it.
	ErrCodingScheme = errors.New("coding scheme does not allow it")

	// ErrDump: the bytes are not a dump of this chip.
	ErrDump = errors.New("not a dump of this chip's eFuses")
)

// State is the content of a chip's eFuses as software reads it: what is
// read-protected is zero. It is a value: [State.Burn] returns a new one. The
// zero value is a blank original ESP32. States compare with ==. Packages fmt
// and log print the chip's name only.
type State struct {
	chip Chip
	data [maxBlocks][blockSize]byte
}

// Blank returns the eFuses of a chip in which nothing is burnt. An unknown
// chip is [ErrChip].
func Blank(chip Chip) (State, error) {
	if _, err := layoutOf(chip); err != nil {
		return State{}, err
	}
	return State{chip: chip}, nil
}

// Format implements fmt.Formatter: no verb prints what may be a key.
func (s State) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "{eFuses of an %s}", s.chip) }

// Chip returns the chip.
func (s State) Chip() Chip { return s.chip }

// Block returns a copy of a block as the chip reads it, least significant byte
// first. A number that the chip does not have is [ErrField].
func (s State) Block(n int) ([]byte, error) {
	l, err := layoutOf(s.chip)
	if err != nil {
		return nil, err
	}
	if n < 0 || n >= len(l.blocks) {
		return nil, fmt.Errorf("efuse: %w: the %s has no block %d", ErrField, l.name, n)
	}
	return append([]byte(nil), s.data[n][:l.blocks[n].size]...), nil
}

// Value returns a field of at most 64 bits as a number. A longer field is
// [ErrLength], an unknown one [ErrField]. What is read-protected is 0.
func (s State) Value(name string) (uint64, error) {
	l, err := layoutOf(s.chip)
	if err != nil {
		return 0, err
	}
	for _, j := range l.joined {
		if j.name != name {
			continue
		}
		low, err := l.field(j.low)
		if err != nil {
			return 0, err
		}
		high, err := s.Value(j.high)
		return s.bits(low) | high<<low.Bits, err
	}
	f, err := l.field(name)
	if err != nil {
		return 0, err
	}
	if f.Bits > 64 {
		return 0, fmt.Errorf("efuse: %s has %d bits, read it with Bytes: %w", name, f.Bits, ErrLength)
	}
	return s.bits(f), nil
}

func (s *State) bits(f Field) uint64 {
	var v uint64
	for i := 0; i < f.Bits; i++ {
		if bit(&s.data[f.Block], f.Bit+i) {
			v |= 1 << i
		}
	}
	return v
}

// Bytes returns a field of whole bytes as the chip stores it, least significant
// byte first. A field of another length is [ErrLength], an unknown one
// [ErrField].
func (s State) Bytes(name string) ([]byte, error) {
	l, err := layoutOf(s.chip)
	if err != nil {
		return nil, err
	}
	f, err := l.field(name)
	if err != nil {
		return nil, err
	}
	if f.Bit%8 != 0 || f.Bits%8 != 0 {
		return nil, fmt.Errorf("efuse: %s is not made of whole bytes: %w", name, ErrLength)
	}
	return append([]byte(nil), s.data[f.Block][f.Bit/8:(f.Bit+f.Bits)/8]...), nil
}

// Writable reports whether no write protection covers the field. A bit that is
// burnt stays burnt all the same. An unknown field is [ErrField].
func (s State) Writable(name string) (bool, error) {
	l, err := layoutOf(s.chip)
	if err != nil {
		return false, err
	}
	f, err := l.field(name)
	if err != nil {
		return false, err
	}
	return f.WrDis == none || !s.bit0(f.WrDis), nil
}

// Readable reports whether no read protection covers any part of the field. An
// unknown field is [ErrField].
func (s State) Readable(name string) (bool, error) {
	l, err := layoutOf(s.chip)
	if err != nil {
		return false, err
	}
	f, err := l.field(name)
	if err != nil {
		return false, err
	}
	return !s.hidden(l, f), nil
}

// hidden reports whether any bit of the field is read-protected.
func (s *State) hidden(l *layout, f Field) bool {
	m := s.hiddenBits(l, f.Block)
	for i := f.Bit; i < f.Bit+f.Bits; i++ {
		if bit(&m, i) {
			return true
		}
	}
	return false
}

// hiddenBits returns the bits of a block that software cannot read.
func (s *State) hiddenBits(l *layout, block int) (m [blockSize]byte) {
	b := l.blocks[block]
	low, high := b.rdDis != none && s.bit0(b.rdDis), b.rdDisHi != none && s.bit0(b.rdDisHi)
	if b.rdDisHi == none {
		high = low
	}
	for i := range m {
		if i < blockSize/2 && low || i >= blockSize/2 && high {
			m[i] = 0xFF
		}
	}
	if s.chip == ESP32 && block == 0 && s.bit0(rdDisConfigESP32) {
		m[13] |= 0x40 // BLK3_PART_RESERVE
		m[23] |= 0xF0 // FLASH_CRYPT_CONFIG
		m[24] |= 0x03 // CODING_SCHEME
		m[25] |= 0x04 // KEY_STATUS
	}
	return m
}

// rdDisConfigESP32 is the fourth bit of the ESP32's RD_DIS: it hides
// BLK3_PART_RESERVE, FLASH_CRYPT_CONFIG, CODING_SCHEME and KEY_STATUS.
const rdDisConfigESP32 = 19

// hide makes read-protected bits zero.
func (s *State) hide(l *layout) {
	for n := range l.blocks {
		m := s.hiddenBits(l, n)
		for i := range m {
			s.data[n][i] &^= m[i]
		}
	}
}

func (s *State) bit0(n int) bool { return bit(&s.data[0], n) }

func bit(b *[blockSize]byte, n int) bool { return b[n/8]>>(n%8)&1 == 1 }

func setBit(b *[blockSize]byte, n int) { b[n/8] |= 1 << (n % 8) }
