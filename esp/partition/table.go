package partition

const (
	// TableSize is the length of a table in bytes, without the rest of its
	// flash sector.
	TableSize = 0xC00
	// SectorSize is the length in bytes of the flash sector that a table
	// has to itself.
	SectorSize = 0x1000
	// DefaultOffset is where in flash the table is if nothing else is said.
	DefaultOffset = 0x8000
	// QuarkLinkOffset is where in flash QuarkLink's projects have it.
	QuarkLinkOffset = 0xD000
	// MaxLabelLength is the longest label in bytes.
	MaxLabelLength = 16

	maxFlashSize = 1 << 32 // what 32-bit offsets reach
)

// Table is a partition table. The zero value has no partitions, which no
// table in flash may have, and is ready to append some.
type Table struct {
	Partitions []Partition // in the order of the table, which need not be that of the flash

	// NoMD5 says that the table holds no MD5 of its entries. Applications
	// refuse such a table unless CONFIG_PARTITION_TABLE_MD5 is off.
	NoMD5 bool
}

// Partition is one entry of a table. It is comparable.
type Partition struct {
	// Label is the partition's name, up to 16 bytes without NUL. One that
	// was read may hold anything, even bytes that are not UTF-8: quote it.
	Label   string
	Type    Type
	Subtype Subtype
	Offset  uint32 // in bytes from the start of flash
	Size    uint32 // in bytes
	Flags   Flags
}

func (p Partition) end() int64 { return int64(p.Offset) + int64(p.Size) }

func (p Partition) is(t Type, s Subtype) bool { return p.Type == t && p.Subtype == s }

// isPrimary reports whether p stands for the bootloader or the table that the
// chip starts with: they alone lie at or below the table.
func (p Partition) isPrimary() bool {
	return p.is(Bootloader, BootloaderPrimary) || p.is(PartitionTable, PartitionTablePrimary)
}

// Find returns the first partition of that type and subtype, as
// esp_partition_find_first does, and whether there is one.
func (t *Table) Find(typ Type, subtype Subtype) (Partition, bool) {
	for _, p := range t.Partitions {
		if p.is(typ, subtype) {
			return p, true
		}
	}
	return Partition{}, false
}

// FindLabel returns the first partition of that label, and whether there is
// one. In a table that passes [Table.Check] there is no other.
func (t *Table) FindLabel(label string) (Partition, bool) {
	for _, p := range t.Partitions {
		if p.Label == label {
			return p, true
		}
	}
	return Partition{}, false
}

// Layout is what a table has to know of the flash around it. The zero value
// is a table at [DefaultOffset] in flash of unknown size.
type Layout struct {
	// TableOffset is where the table is, in bytes from the start of flash;
	// 0 means [DefaultOffset].
	TableOffset uint32

	// FlashSize is that of the flash in bytes. 0 means unknown: then
	// nothing but the 4 GiB of 32-bit offsets is the limit.
	FlashSize int64

	// BootloaderOffset is where the chip's ROM looks for the bootloader:
	// 0x1000 on the original ESP32 and ESP32-S2, 0x2000 on ESP32-P4 and
	// ESP32-C5, 0 on the others. Only the lines of a CSV file whose type is
	// bootloader need it.
	BootloaderOffset uint32

	// RecoveryOffset is where the recovery bootloader is. Only a line of a
	// CSV file of that subtype needs it; without it, 0, that is an error.
	RecoveryOffset uint32
}

func (l Layout) tableOffset() int64 {
	if l.TableOffset == 0 {
		return DefaultOffset
	}
	return int64(l.TableOffset)
}

func (l Layout) flashSize() int64 {
	if l.FlashSize == 0 {
		return maxFlashSize
	}
	return l.FlashSize
}
