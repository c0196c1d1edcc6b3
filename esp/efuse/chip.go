package efuse

import "fmt"

// Chip is a chip of the ESP32 family, numbered as in image headers
// (esp_chip_id_t), so that the Chip of package image converts. The zero value
// is the original ESP32.
type Chip uint16

// The chips whose eFuses this package knows.
const (
	ESP32   Chip = 0
	ESP32S2 Chip = 2
	ESP32C3 Chip = 5
	ESP32S3 Chip = 9
	ESP32C2 Chip = 12
	ESP32C6 Chip = 13
	ESP32H2 Chip = 16
)

const (
	maxBlocks = 11
	blockSize = 32 // bytes of the largest block, and of each slot of a padded dump
)

// none is the number of a protection bit that does not exist.
const none = -1

// layout is what differs between chips.
type layout struct {
	chip      Chip
	name      string
	blocks    []blockInfo
	fields    [][]Field
	joined    []joinedField
	uses      []use
	firstKey  int // block of the first key
	lastKey   int
	emulator  int // bytes of espefuse's emulator file
	writeOnce bool
}

// blockInfo describes one block. The protection bits are bits of BLOCK0.
type blockInfo struct {
	name     string
	size     int // bytes
	register int // offset of the read registers from the controller's base
	wrDis    int
	rdDis    int // of the lower half, or of the whole
	rdDisHi  int // of the upper half where it has a bit of its own
}

var layouts = []layout{
	{chip: ESP32, name: "esp32", blocks: blocksESP32, fields: [][]Field{fieldsESP32}, joined: joinedESP32,
		uses: usesESP32, firstKey: 1, lastKey: 3, emulator: 0x120},
	{chip: ESP32S2, name: "esp32s2", blocks: blocksModern, fields: [][]Field{fieldsModern, fieldsS2},
		uses: usesXTS256, firstKey: 4, lastKey: 9, emulator: 0x200, writeOnce: true},
	{chip: ESP32C3, name: "esp32c3", blocks: blocksModern, fields: [][]Field{fieldsModern, fieldsC3},
		joined: joinedC3, uses: usesModern, firstKey: 4, lastKey: 9, emulator: 0x200, writeOnce: true},
	{chip: ESP32S3, name: "esp32s3", blocks: blocksModern, fields: [][]Field{fieldsModern, fieldsS3},
		uses: usesXTS256, firstKey: 4, lastKey: 9, emulator: 0x200, writeOnce: true},
	{chip: ESP32C2, name: "esp32c2", blocks: blocksC2, fields: [][]Field{fieldsC2},
		uses: usesC2, firstKey: 3, lastKey: 3, emulator: 0x200, writeOnce: true},
	{chip: ESP32C6, name: "esp32c6", blocks: blocksModern, fields: [][]Field{fieldsModern, fieldsC6},
		uses: usesModern, firstKey: 4, lastKey: 9, emulator: 0x200, writeOnce: true},
	{chip: ESP32H2, name: "esp32h2", blocks: blocksModern, fields: [][]Field{fieldsModern, fieldsH2},
		uses: usesH2, firstKey: 4, lastKey: 9, emulator: 0x200, writeOnce: true},
}

func layoutOf(chip Chip) (*layout, error) {
	for i := range layouts {
		if layouts[i].chip == chip {
			return &layouts[i], nil
		}
	}
	return nil, fmt.Errorf("efuse: %w: %d (want one of the Chip constants)", ErrChip, uint16(chip))
}

// String returns the name that Espressif's tools use, such as "esp32c3", or
// "chip(7)" for a chip that this package does not know.
func (c Chip) String() string {
	if l, err := layoutOf(c); err == nil {
		return l.name
	}
	return fmt.Sprintf("chip(%d)", uint16(c))
}

// ParseChip returns the chip of that name, as [Chip.String] writes it: lower
// case, no hyphen. Another name is [ErrChip].
func ParseChip(name string) (Chip, error) {
	for i := range layouts {
		if layouts[i].name == name {
			return layouts[i].chip, nil
		}
	}
	return 0, fmt.Errorf("efuse: %w: %q (want a name like \"esp32c3\")", ErrChip, name)
}

// BlockNames returns the names of the chip's blocks, BLOCK0 first, as espefuse
// writes them. It is empty for an unknown chip.
func (c Chip) BlockNames() []string {
	l, err := layoutOf(c)
	if err != nil {
		return nil
	}
	names := make([]string, len(l.blocks))
	for i, b := range l.blocks {
		names[i] = b.name
	}
	return names
}

// Fields returns a copy of the chip's table of fields. It is empty for an
// unknown chip.
func (c Chip) Fields() []Field {
	l, err := layoutOf(c)
	if err != nil {
		return nil
	}
	var all []Field
	for _, table := range l.fields {
		for _, f := range table {
			all = append(all, l.complete(f))
		}
	}
	return all
}

// Field is a named range of bits in one block.
type Field struct {
	Name  string // as espefuse writes it
	Block int    // number of the block, 0 for BLOCK0
	Bit   int    // first bit, counted from the block's least significant one
	Bits  int    // length
	// WrDis is the bit of WR_DIS that forbids burning the field; -1: none does.
	WrDis int
}

// complete fills in the write protection of fields outside BLOCK0, which is
// that of their block.
func (l *layout) complete(f Field) Field {
	if f.Block > 0 {
		f.WrDis = l.blocks[f.Block].wrDis
	}
	return f
}

func (l *layout) field(name string) (Field, error) {
	for _, table := range l.fields {
		for _, f := range table {
			if f.Name == name {
				return l.complete(f), nil
			}
		}
	}
	return Field{}, fmt.Errorf("efuse: %w: the %s has no field %q", ErrField, l.name, name)
}
