package esp32ds

import (
	"context"
	"fmt"
)

// KeyBlocks is the number of eFuse key blocks of every chip that has the
// peripheral: BLOCK_KEY0 to BLOCK_KEY5 (BLOCK4 to BLOCK9).
const KeyBlocks = 6

// PurposeDS is the key purpose of a block whose key opens parameters:
// HMAC_DOWN_DIGITAL_SIGNATURE.
const PurposeDS = 7

// EFuse is the chip's eFuses, as far as keys are concerned. Key blocks are
// numbered from 0, as in BLOCK_KEY0. A Store never calls it twice at a time.
// Behind it are ESP-IDF's functions of esp_efuse.h.
type EFuse interface {
	// ReadEFuses reads the present state, not a cached one.
	ReadEFuses(ctx context.Context) (EFuseState, error)
	// BurnKey burns the key into a free block, sets its purpose to PurposeDS,
	// and protects the key from reading and writing and the purpose from
	// writing, in this order as far as the chip lets it:
	//
	//	esp_efuse_write_key(EFUSE_BLK_KEY0 + block, ESP_EFUSE_KEY_PURPOSE_HMAC_DOWN_DIGITAL_SIGNATURE, key, 32)
	//
	// A block that is not free is ErrInvalidState. The key must be kept
	// nowhere else.
	BurnKey(ctx context.Context, block int, key [32]byte) error
	// Protect does what a power cut kept BurnKey from doing: it sets whatever
	// is not yet set of purpose and protection and leaves the key alone. In
	// one batch: esp_efuse_set_key_purpose, esp_efuse_set_key_dis_read,
	// esp_efuse_set_key_dis_write, esp_efuse_set_keypurpose_dis_write. A
	// field that is locked at another value is an error.
	Protect(ctx context.Context, block int) error
}

// EFuseState is what the eFuses say about keys.
type EFuseState struct {
	// Virtual: the eFuses are emulated (CONFIG_EFUSE_VIRTUAL).
	Virtual bool
	// ReadProtectionLocked: RD_DIS is write-protected (WR_DIS bit 0), so that
	// no further block can be hidden from software.
	ReadProtectionLocked bool
	Blocks               [KeyBlocks]KeyBlock
}

// KeyBlock is the state of one eFuse key block. Packages fmt and encoding/json,
// and so log and log/slog, write it without the key: after a power cut that may be
// the very key that is to become hidden.
type KeyBlock struct {
	Purpose        uint8    // KEY_PURPOSE_n: 0 is user data, and what an unused block has
	ReadProtected  bool     // esp_efuse_get_key_dis_read
	WriteProtected bool     // esp_efuse_get_key_dis_write
	PurposeLocked  bool     // esp_efuse_get_keypurpose_dis_write
	Key            [32]byte `json:"-"` // what software reads; zeros if ReadProtected
}

// Format implements fmt.Formatter: every verb prints all but Key.
func (b KeyBlock) Format(f fmt.State, _ rune) {
	key := "zeros"
	if b.Key != [32]byte{} {
		key = "not printed"
	}
	fmt.Fprintf(f, "{Purpose:%d ReadProtected:%t WriteProtected:%t PurposeLocked:%t Key:%s}", b.Purpose, b.ReadProtected, b.WriteProtected, b.PurposeLocked, key)
}

// free reports whether nothing at all was burned (esp_efuse_key_block_unused).
func (b KeyBlock) free() bool { return b == KeyBlock{} }

// holdsKey reports whether the peripheral, and nothing else, has a key here.
func (b KeyBlock) holdsKey() bool { return b.Purpose == PurposeDS && b.ReadProtected }

// sealed reports whether BurnKey has nothing left to do.
func (b KeyBlock) sealed() bool { return b.holdsKey() && b.WriteProtected && b.PurposeLocked }

// freeBlocks returns the numbers of the free blocks, in ascending order.
func (s EFuseState) freeBlocks() []int {
	var free []int
	for i, b := range s.Blocks {
		if b.free() {
			free = append(free, i)
		}
	}
	return free
}

// keyHolder returns the number of a block that holds a key, or -1.
func (s EFuseState) keyHolder() int {
	for i, b := range s.Blocks {
		if b.holdsKey() {
			return i
		}
	}
	return -1
}
