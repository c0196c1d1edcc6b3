package image

import (
	"encoding/binary"
	"fmt"
	"io"
)

const (
	headerSize        = 24
	segmentHeaderSize = 8
	headerMagic       = 0xE9
	maxSegments       = 16
	maxSegmentLength  = 16 << 20 // exclusive
	hashSize          = 32
)

// SPIMode is how the ROM reads the flash at first.
type SPIMode uint8

// The SPI modes.
const (
	QIO  SPIMode = 0
	QOUT SPIMode = 1
	DIO  SPIMode = 2
	DOUT SPIMode = 3
)

// WPPinDisabled in Header.WPPin says that the image does not remap the
// flash's write-protect pin. It is what every image of today holds.
const WPPinDisabled = 0xEE

// Header is the image's header, esp_image_header_t, without the magic byte
// and the number of segments. It is comparable. The zero value is valid but
// seldom meant; start from [NewHeader].
type Header struct {
	Chip              Chip
	Entry             uint32   // address of the first instruction
	SPIMode           SPIMode  // how the ROM reads the flash
	FlashFrequency    uint8    // chip-specific code, 0 to 15; 15 is the undivided clock
	FlashSize         int64    // bytes: 1 MiB << n, n from 0 to 15; 0 builds as 1 MiB
	WPPin             uint8    // GPIO of the flash's WP pin, or WPPinDisabled
	SPIPinDrive       [3]uint8 // drive strengths, two pins in each byte
	MinRevisionLegacy uint8    // lowest chip revision as old ESP-IDF counted it
	MinRevision       uint16   // lowest chip revision, major*100 + minor
	MaxRevision       uint16   // highest chip revision; 0 and 65535 mean any
	HashAppended      bool     // the SHA-256 of the image follows it
}

// NewHeader returns the usual header for chip: DIO, undivided flash clock,
// 4 MiB of flash, any chip revision, SHA-256 appended. Entry is left to set.
func NewHeader(chip Chip) Header {
	return Header{
		Chip: chip, SPIMode: DIO, FlashFrequency: 15, FlashSize: 4 << 20,
		WPPin: WPPinDisabled, MaxRevision: 65535, HashAppended: true,
	}
}

// SupportsRevision reports whether the image may run on a chip of the given
// revision (major*100 + minor, as in eFuse), as the bootloader decides it of an
// application unless the eFuse DISABLE_WAFER_VERSION_MAJOR is burnt: then
// MaxRevision does not count.
func (h Header) SupportsRevision(revision uint16) bool {
	return withinRevisions(revision, h.MinRevision, h.MaxRevision)
}

func withinRevisions(revision, low, high uint16) bool {
	return low <= revision && (high == 0 || high == 65535 || revision <= high)
}

// ReadHeader reads the header of the image at the start of r, which holds
// size bytes. It looks at nothing else, so that an image for the wrong chip
// is known before it is read. Errors: [ErrTruncated], [ErrMagic], those of r.
func ReadHeader(r io.ReaderAt, size int64) (Header, error) {
	rd := reader{src: r, size: size, buf: make([]byte, headerSize)}
	b, err := rd.next(headerSize)
	if err != nil {
		return Header{}, err
	}
	h, _, err := decodeHeader(b)
	return h, err
}

// decodeHeader takes headerSize bytes and returns the number of segments
// beside the header.
func decodeHeader(b []byte) (h Header, segments int, err error) {
	if len(b) < headerSize {
		return h, 0, formatError(int64(len(b)), ErrTruncated, "the header has %d bytes", headerSize)
	}
	if b[0] != headerMagic {
		return h, 0, formatError(0, ErrMagic, "magic byte 0x%02x, want 0x%02x", b[0], headerMagic)
	}
	return Header{
		SPIMode:           SPIMode(b[2]),
		FlashFrequency:    b[3] & 0x0F,
		FlashSize:         1 << 20 << (b[3] >> 4),
		Entry:             binary.LittleEndian.Uint32(b[4:]),
		WPPin:             b[8],
		SPIPinDrive:       [3]uint8{b[9], b[10], b[11]},
		Chip:              Chip(binary.LittleEndian.Uint16(b[12:])),
		MinRevisionLegacy: b[14],
		MinRevision:       binary.LittleEndian.Uint16(b[15:]),
		MaxRevision:       binary.LittleEndian.Uint16(b[17:]),
		HashAppended:      b[23] != 0,
	}, int(b[1]), nil
}

// encode is the inverse of decodeHeader; reserved bytes are zero.
func (h Header) encode(segments int) ([headerSize]byte, error) {
	var b [headerSize]byte
	if h.FlashFrequency > 15 {
		return b, fmt.Errorf("image: flash frequency code %d is not in 0 to 15", h.FlashFrequency)
	}
	size := 0 // the code of 1 MiB
	for h.FlashSize != 0 && h.FlashSize != 1<<20<<size {
		if size++; size > 15 {
			return b, fmt.Errorf("image: flash size %d is not 1 MiB times a power of two up to 32 GiB", h.FlashSize)
		}
	}
	b[0] = headerMagic
	b[1] = byte(segments)
	b[2] = byte(h.SPIMode)
	b[3] = byte(size)<<4 | h.FlashFrequency
	binary.LittleEndian.PutUint32(b[4:], h.Entry)
	b[8] = h.WPPin
	copy(b[9:12], h.SPIPinDrive[:])
	binary.LittleEndian.PutUint16(b[12:], uint16(h.Chip))
	b[14] = h.MinRevisionLegacy
	binary.LittleEndian.PutUint16(b[15:], h.MinRevision)
	binary.LittleEndian.PutUint16(b[17:], h.MaxRevision)
	if h.HashAppended {
		b[23] = 1
	}
	return b, nil
}
