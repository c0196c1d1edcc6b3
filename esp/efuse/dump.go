package efuse

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
)

// maxDump bounds what is parsed; every dump is far shorter.
const maxDump = 64 << 10

// ParseRaw reads a dump of whole blocks, BLOCK0 first, each least significant
// byte first: either each with its own length, as espefuse dump --format joint
// writes them, or each in 32 bytes, as ESP-IDF keeps virtual eFuses in the
// partition efuse_em. The length tells which. Another length, or a bit outside a
// block, is [ErrDump]. What is read-protected is zero in the State even if it was
// not in the dump.
func ParseRaw(chip Chip, dump []byte) (State, error) {
	l, err := layoutOf(chip)
	if err != nil {
		return State{}, err
	}
	packed, padded := 0, blockSize*len(l.blocks)
	for _, b := range l.blocks {
		packed += b.size
	}
	if len(dump) != packed && len(dump) != padded {
		return State{}, fmt.Errorf("efuse: %w: %d bytes, want %d or %d for an %s", ErrDump, len(dump), packed, padded, l.name)
	}
	inSlots := len(dump) == padded
	s := State{chip: chip}
	for n, b := range l.blocks {
		size := b.size
		if inSlots {
			size = blockSize
		}
		copy(s.data[n][:], dump[:size])
		dump = dump[size:]
		for _, v := range s.data[n][b.size:] {
			if v != 0 {
				return State{}, fmt.Errorf("efuse: %w: bits after the end of %s", ErrDump, b.name)
			}
		}
	}
	s.hide(l)
	return s, nil
}

// ParseEmulator reads the file of espefuse --virt --path-efuse-file: the
// registers of the controller, the whole file in reverse byte order. Another
// length than the chip's is [ErrDump].
func ParseEmulator(chip Chip, file []byte) (State, error) {
	l, err := layoutOf(chip)
	if err != nil {
		return State{}, err
	}
	if len(file) != l.emulator {
		return State{}, fmt.Errorf("efuse: %w: %d bytes, want %d for an %s", ErrDump, len(file), l.emulator, l.name)
	}
	s := State{chip: chip}
	for n, b := range l.blocks {
		for i := 0; i < b.size; i++ {
			s.data[n][i] = file[len(file)-1-b.register-i]
		}
	}
	s.hide(l)
	return s, nil
}

// ParseJSON reads an object whose members are the chip's blocks by name
// ([Chip.BlockNames]), each a string with its bytes in hex, least significant
// byte first. Every block has to be there, once, whole, and nothing else:
// otherwise the error is [ErrDump]. [State.MarshalJSON] is the inverse.
func ParseJSON(chip Chip, text []byte) (State, error) {
	l, err := layoutOf(chip)
	if err != nil {
		return State{}, err
	}
	if len(text) > maxDump {
		return State{}, fmt.Errorf("efuse: %w: %d bytes of JSON", ErrDump, len(text))
	}
	var blocks map[string]string
	if err := json.Unmarshal(text, &blocks); err != nil {
		return State{}, fmt.Errorf("efuse: %w: %w", ErrDump, err)
	}
	if len(blocks) != len(l.blocks) {
		return State{}, fmt.Errorf("efuse: %w: %d blocks, want %d for an %s", ErrDump, len(blocks), len(l.blocks), l.name)
	}
	s := State{chip: chip}
	for n, b := range l.blocks {
		text, ok := blocks[b.name]
		if !ok || len(text) != 2*b.size {
			return State{}, fmt.Errorf("efuse: %w: %s is absent or does not have %d bytes", ErrDump, b.name, b.size)
		}
		if _, err := hex.Decode(s.data[n][:], []byte(text)); err != nil {
			return State{}, fmt.Errorf("efuse: %w: %s is not hex", ErrDump, b.name)
		}
	}
	s.hide(l)
	return s, nil
}

// MarshalJSON returns the object that [ParseJSON] reads. It contains every key
// that is not read-protected.
func (s State) MarshalJSON() ([]byte, error) {
	l, err := layoutOf(s.chip)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	for n, b := range l.blocks {
		separator := byte(',')
		if n == 0 {
			separator = '{'
		}
		fmt.Fprintf(&out, "%c%q:\"%x\"", separator, b.name, s.data[n][:b.size])
	}
	out.WriteByte('}')
	return out.Bytes(), nil
}
