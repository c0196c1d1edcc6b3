package image

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
)

// AppSize is the length of an encoded application descriptor in bytes.
const AppSize = 256

// AppOffset is where the descriptor is in the image of an application.
const AppOffset = headerSize + segmentHeaderSize

const appMagic = 0xABCD5432

// App is the application descriptor, esp_app_desc_t: the first 256 bytes of
// the first segment's data, at offset 0x20 of the image.
//
// The strings come from the image as they are, up to the first NUL: before
// the signature has been verified, anybody may have written them. They may
// hold at most 32 bytes (Time and Date 16).
type App struct {
	SecureVersion uint32 // anti-rollback version
	Version       string // version of the application
	Project       string
	Time          string // of compilation
	Date          string
	IDFVersion    string
	ELFSHA256     [32]byte // of the ELF file that the image was made from

	MinEFuseBlockRevision uint16 // lowest version of the chip's eFuse blocks, major*100 + minor
	MaxEFuseBlockRevision uint16 // highest; 0 and 65535 mean any

	// MMUPageSize is the unit of mapping flash in bytes, a power of two;
	// 0 if the descriptor does not say.
	MMUPageSize uint32
}

// MarshalBinary returns the descriptor's 256 bytes. It fails if a string is
// too long or holds a NUL, or MMUPageSize is not a power of two.
func (a App) MarshalBinary() ([]byte, error) {
	b := make([]byte, AppSize)
	binary.LittleEndian.PutUint32(b, appMagic)
	binary.LittleEndian.PutUint32(b[4:], a.SecureVersion)
	for _, f := range []struct {
		name, value string
		field       []byte
	}{
		{"version", a.Version, b[16:48]},
		{"project", a.Project, b[48:80]},
		{"time", a.Time, b[80:96]},
		{"date", a.Date, b[96:112]},
		{"IDF version", a.IDFVersion, b[112:144]},
	} {
		if len(f.value) > len(f.field) || bytes.IndexByte([]byte(f.value), 0) >= 0 {
			return nil, fmt.Errorf("image: application descriptor: %s %q has more than %d bytes or holds a NUL", f.name, f.value, len(f.field))
		}
		copy(f.field, f.value)
	}
	copy(b[144:176], a.ELFSHA256[:])
	binary.LittleEndian.PutUint16(b[176:], a.MinEFuseBlockRevision)
	binary.LittleEndian.PutUint16(b[178:], a.MaxEFuseBlockRevision)
	if a.MMUPageSize != 0 {
		if a.MMUPageSize == 1 || bits.OnesCount32(a.MMUPageSize) != 1 {
			return nil, fmt.Errorf("image: application descriptor: MMU page size %d is not a power of two", a.MMUPageSize)
		}
		b[180] = byte(bits.TrailingZeros32(a.MMUPageSize))
	}
	return b, nil
}

// UnmarshalBinary is the inverse of [App.MarshalBinary]. It ignores what
// follows the first 256 bytes and fails if they are not a descriptor.
func (a *App) UnmarshalBinary(b []byte) error {
	if len(b) < AppSize || binary.LittleEndian.Uint32(b) != appMagic {
		return errors.New("image: not an application descriptor")
	}
	*a = App{
		SecureVersion:         binary.LittleEndian.Uint32(b[4:]),
		Version:               untilNUL(b[16:48]),
		Project:               untilNUL(b[48:80]),
		Time:                  untilNUL(b[80:96]),
		Date:                  untilNUL(b[96:112]),
		IDFVersion:            untilNUL(b[112:144]),
		ELFSHA256:             [32]byte(b[144:176]),
		MinEFuseBlockRevision: binary.LittleEndian.Uint16(b[176:]),
		MaxEFuseBlockRevision: binary.LittleEndian.Uint16(b[178:]),
	}
	if log2 := b[180]; log2 != 0 && log2 < 32 {
		a.MMUPageSize = 1 << log2
	}
	return nil
}

// SupportsEFuseBlockRevision reports whether the application may run on a chip
// whose eFuse blocks have that version (major*100 + minor), as the bootloader
// decides it on all chips but the original ESP32, unless the eFuse
// DISABLE_BLK_VERSION_MAJOR is burnt: then MaxEFuseBlockRevision does not count.
func (a App) SupportsEFuseBlockRevision(revision uint16) bool {
	return withinRevisions(revision, a.MinEFuseBlockRevision, a.MaxEFuseBlockRevision)
}

func untilNUL(field []byte) string {
	text, _, _ := bytes.Cut(field, []byte{0})
	return string(text)
}
