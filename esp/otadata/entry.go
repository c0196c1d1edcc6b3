package otadata

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/quarklink-go/quarklink/esp/flash"
)

// Size is the least that an otadata partition has, in bytes: two sectors.
const Size = 2 * flash.SectorSize

// EntrySize is the length of an entry in bytes (esp_ota_select_entry_t).
const EntrySize = 32

// State is what is known of the application that an entry chooses
// (esp_ota_img_states_t). Any other number counts as a valid one.
type State uint32

// The states.
const (
	New           State = 0 // to be started for the first time
	PendingVerify State = 1 // was started for the first time
	Valid         State = 2 // has confirmed itself
	Invalid       State = 3 // was rolled back
	Aborted       State = 4 // was started and did not confirm itself
	Undefined     State = 0xFFFFFFFF
)

// String returns the name that ESP-IDF uses, such as "PENDING_VERIFY".
func (s State) String() string {
	switch s {
	case New:
		return "NEW"
	case PendingVerify:
		return "PENDING_VERIFY"
	case Valid:
		return "VALID"
	case Invalid:
		return "INVALID"
	case Aborted:
		return "ABORTED"
	case Undefined:
		return "UNDEFINED"
	}
	return fmt.Sprintf("state(0x%x)", uint32(s))
}

// erasedSeq is the sequence number of an erased sector.
const erasedSeq = 0xFFFFFFFF

// Entry is what one sector says. It is comparable. An erased sector is an entry of
// ones, with Undefined as its state.
type Entry struct {
	Seq   uint32   // slot = (Seq-1) mod number of slots, in 32 bits
	Label [20]byte // of no use; erased, or what was there
	State State    // not covered by the CRC
	CRC   uint32   // of Seq alone
}

// Erased is the entry of an erased sector.
func Erased() Entry {
	e := Entry{Seq: erasedSeq, State: Undefined, CRC: 0xFFFFFFFF}
	for i := range e.Label {
		e.Label[i] = 0xFF
	}
	return e
}

// Sealed reports whether the CRC is that of the sequence number.
func (e Entry) Sealed() bool { return e.CRC == seqCRC(e.Seq) }

// ruledOut reports whether the entry is ruled out by its sequence number or its state,
// whatever its CRC (bootloader_common_ota_select_invalid).
func (e Entry) ruledOut() bool {
	return e.Seq == erasedSeq || e.State == Invalid || e.State == Aborted
}

// Counts reports whether the entry takes part in the choice: it is neither erased,
// nor Invalid, nor Aborted, and its CRC is right.
func (e Entry) Counts() bool { return !e.ruledOut() && e.Sealed() }

func seqCRC(seq uint32) uint32 {
	var b [4]byte
	binary.LittleEndian.PutUint32(b[:], seq)
	return crc32.Update(0xFFFFFFFF, crc32.IEEETable, b[:])
}

// Slot returns the slot that the entry chooses among n, whether or not it counts.
// Without slots it is Factory.
func (e Entry) Slot(n int) int {
	if n <= 0 {
		return Factory
	}
	return int((e.Seq - 1) % uint32(n))
}

// encode returns the EntrySize bytes of the entry, little-endian.
func (e Entry) encode() []byte {
	b := make([]byte, EntrySize)
	binary.LittleEndian.PutUint32(b, e.Seq)
	copy(b[4:24], e.Label[:])
	binary.LittleEndian.PutUint32(b[24:], uint32(e.State))
	binary.LittleEndian.PutUint32(b[28:], e.CRC)
	return b
}

func decode(b []byte) Entry {
	return Entry{
		Seq:   binary.LittleEndian.Uint32(b),
		Label: [20]byte(b[4:24]),
		State: State(binary.LittleEndian.Uint32(b[24:])),
		CRC:   binary.LittleEndian.Uint32(b[28:]),
	}
}

// Data is both sectors.
type Data [2]Entry

// Read reads both sectors from the start of an otadata partition. Whatever is in
// them is an entry; an error is one of r, io.ErrUnexpectedEOF if r is too short.
func Read(r io.ReaderAt) (Data, error) {
	var d Data
	b := make([]byte, EntrySize)
	for i := range d {
		if err := flash.Read(r, b, int64(i)*flash.SectorSize); err != nil {
			return Data{}, fmt.Errorf("otadata: sector %d: %w", i, err)
		}
		d[i] = decode(b)
	}
	return d, nil
}

// Active returns the sector that decides, 0 or 1, or -1 if neither counts
// (bootloader_common_get_active_otadata). The larger sequence number decides, and
// sector 0 if they are equal.
func (d Data) Active() int {
	switch {
	case d[0].Counts() && (!d[1].Counts() || d[0].Seq >= d[1].Seq):
		return 0
	case d[1].Counts():
		return 1
	}
	return -1
}
