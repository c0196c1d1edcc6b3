package image

import "fmt"

// Chip is a chip of the ESP32 family, as the image header numbers it
// (esp_chip_id_t in esp_app_format.h). The zero value is the original ESP32,
// so code that must not assume a chip has to ask for it explicitly.
type Chip uint16

// The chips whose memory map this package knows.
const (
	ESP32    Chip = 0
	ESP32S2  Chip = 2
	ESP32C3  Chip = 5
	ESP32S3  Chip = 9
	ESP32C2  Chip = 12
	ESP32C6  Chip = 13
	ESP32H2  Chip = 16
	ESP32P4  Chip = 18
	ESP32C61 Chip = 20
	ESP32C5  Chip = 23
)

// addressRange is low <= address < high.
type addressRange struct{ low, high uint32 }

// chips holds each chip's name and the two address ranges through which its
// cache maps the flash (instructions and data; equal where the chip has one).
// Sources: SOC_IROM_* and SOC_DROM_* of ESP-IDF's soc.h, esptool's targets.
var chips = []struct {
	id         Chip
	name       string
	irom, drom addressRange
}{
	{ESP32, "esp32", addressRange{0x400D0000, 0x40400000}, addressRange{0x3F400000, 0x3F800000}},
	{ESP32S2, "esp32s2", addressRange{0x40080000, 0x40B80000}, addressRange{0x3F000000, 0x3F3F0000}},
	{ESP32C3, "esp32c3", addressRange{0x42000000, 0x42800000}, addressRange{0x3C000000, 0x3C800000}},
	{ESP32S3, "esp32s3", addressRange{0x42000000, 0x44000000}, addressRange{0x3C000000, 0x3E000000}},
	{ESP32C2, "esp32c2", addressRange{0x42000000, 0x42400000}, addressRange{0x3C000000, 0x3C400000}},
	{ESP32C6, "esp32c6", addressRange{0x42000000, 0x43000000}, addressRange{0x42000000, 0x43000000}},
	{ESP32H2, "esp32h2", addressRange{0x42000000, 0x43000000}, addressRange{0x42000000, 0x43000000}},
	{ESP32P4, "esp32p4", addressRange{0x40000000, 0x44000000}, addressRange{0x40000000, 0x44000000}},
	{ESP32C61, "esp32c61", addressRange{0x42000000, 0x44000000}, addressRange{0x42000000, 0x44000000}},
	{ESP32C5, "esp32c5", addressRange{0x42000000, 0x44000000}, addressRange{0x42000000, 0x44000000}},
}

// String returns the name that Espressif's tools use, such as "esp32c3", or
// "chip(7)" for a number that this package does not know.
func (c Chip) String() string {
	for i := range chips {
		if chips[i].id == c {
			return chips[i].name
		}
	}
	return fmt.Sprintf("chip(%d)", uint16(c))
}

// ParseChip is the inverse of [Chip.String] for the chips that this package
// knows. It is strict: lower case, no hyphen, no spaces.
func ParseChip(name string) (Chip, error) {
	for i := range chips {
		if chips[i].name == name {
			return chips[i].id, nil
		}
	}
	return 0, fmt.Errorf("image: unknown chip %q (want a name like \"esp32c3\")", name)
}

// mapsFlash reports whether the chip reads address from flash through its
// cache, so that the segment's place in the file has to fit its address.
// Nothing is known, and so nothing mapped, on an unknown chip.
func (c Chip) mapsFlash(address uint32) bool {
	for i := range chips {
		if chips[i].id == c {
			return chips[i].irom.contains(address) || chips[i].drom.contains(address)
		}
	}
	return false
}

func (r addressRange) contains(address uint32) bool {
	return r.low <= address && address < r.high
}
