package esp32ds

import "fmt"

// Chip is a chip of the ESP32 family that has a Digital Signature peripheral.
// Its number is that of image headers (esp_chip_id_t), so that a chip read from
// an image converts. The zero value is the original ESP32, which has none and is
// refused everywhere.
type Chip uint16

// The chips that have the peripheral.
const (
	ESP32S2 Chip = 2
	ESP32C3 Chip = 5
	ESP32S3 Chip = 9
	ESP32C6 Chip = 13
	ESP32H2 Chip = 16
	ESP32P4 Chip = 18
	ESP32C5 Chip = 23
)

// chips has each chip's name and the width of its operands in bits, which is
// also its longest key (SOC_RSA_MAX_BIT_LEN).
var chips = []struct {
	id      Chip
	name    string
	maxBits int
}{
	{ESP32S2, "esp32s2", 4096},
	{ESP32C3, "esp32c3", 3072},
	{ESP32S3, "esp32s3", 4096},
	{ESP32C6, "esp32c6", 3072},
	{ESP32H2, "esp32h2", 3072},
	{ESP32P4, "esp32p4", 4096},
	{ESP32C5, "esp32c5", 3072},
}

// ParseChip returns the chip of that name, as [Chip.String] writes it: lower
// case, without a hyphen.
func ParseChip(name string) (Chip, error) {
	for _, c := range chips {
		if c.name == name {
			return c.id, nil
		}
	}
	return 0, fmt.Errorf("esp32ds: no chip with a Digital Signature peripheral is named %q (want a name like \"esp32c3\")", name)
}

// String returns the name that Espressif's tools use, such as "esp32c3", or
// "chip(7)" for a chip without the peripheral.
func (c Chip) String() string {
	for _, known := range chips {
		if known.id == c {
			return known.name
		}
	}
	return fmt.Sprintf("chip(%d)", uint16(c))
}

// MaxBits returns the length of the longest RSA key in bits, 3072 or 4096; 0 for
// a chip without the peripheral.
func (c Chip) MaxBits() int {
	for _, known := range chips {
		if known.id == c {
			return known.maxBits
		}
	}
	return 0
}

// takesBits reports whether the chip takes keys of that length (the
// ESP_DS_RSA constants of esp_ds.h).
func (c Chip) takesBits(bits int) bool {
	switch bits {
	case 1024, 2048, 3072, 4096:
		return bits <= c.MaxBits()
	}
	return false
}
