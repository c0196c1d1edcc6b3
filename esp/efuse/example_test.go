package efuse_test

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/quarklink-go/quarklink/esp/efuse"
)

// A digest goes into eFuse and Secure Boot is turned on. What was burnt cannot
// be taken back.
func Example() {
	chip, err := efuse.Blank(efuse.ESP32C3)
	if err != nil {
		fmt.Println(err)
		return
	}
	batch, err := efuse.NewBatch(efuse.ESP32C3)
	if err != nil {
		fmt.Println(err)
		return
	}
	digest := bytes.Repeat([]byte{0xD1}, 32) // of sbsign.KeyDigest
	if err := batch.SetKey(0, efuse.PurposeSecureBootDigest0, digest); err != nil {
		fmt.Println(err)
		return
	}
	if err := batch.SetField("SECURE_BOOT_EN", 1); err != nil {
		fmt.Println(err)
		return
	}
	chip, err = chip.Burn(batch)
	if err != nil {
		fmt.Println(err)
		return
	}
	key, err := chip.Key(0)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(key.Purpose, "write-protected:", key.WriteProtected, "hidden:", key.ReadProtected)

	_, err = chip.Burn(batch)
	fmt.Println("again:", errors.Is(err, efuse.ErrUsed))
	// Output:
	// SECURE_BOOT_DIGEST0 write-protected: true hidden: false
	// again: true
}

// What remains to be burnt, in the order in which it has to happen.
func ExampleState_Burns() {
	chip, err := efuse.Blank(efuse.ESP32)
	if err != nil {
		fmt.Println(err)
		return
	}
	batch, err := efuse.NewBatch(efuse.ESP32)
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := batch.SetKey(1, efuse.PurposeFlashEncryption, make([]byte, 31)); err != nil {
		fmt.Println(err)
	}
	if err := batch.SetKey(1, efuse.PurposeFlashEncryption, bytes.Repeat([]byte{7}, 32)); err != nil {
		fmt.Println(err)
		return
	}
	burns, err := chip.Burns(batch)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, burn := range burns {
		fmt.Println("block", burn.Block, "takes", len(burn.Bits), "bytes")
	}
	// Output:
	// efuse: set key 1: wrong length: 31 bytes, want 32
	// block 1 takes 32 bytes
	// block 0 takes 28 bytes
}
