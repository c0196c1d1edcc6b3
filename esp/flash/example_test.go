package flash_test

import (
	"fmt"
	"log"

	"github.com/quarklink-go/quarklink/esp/flash"
)

// A partition is a region of the flash. What is written over without an erase
// does not read back.
func ExampleRegion() {
	chip := flash.NewMemory(4 << 20)
	nvs, err := flash.Region(chip, 0xE000, 0x8000)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(flash.Write(nvs, 0, []byte("one")))
	fmt.Printf("%s\n", chip[0xE000:0xE003])
	fmt.Println(flash.Write(nvs, 0, []byte("two")))
	fmt.Println(flash.Erase(nvs, 0, flash.SectorSize), flash.Write(nvs, 0, []byte("two")))
	// Output:
	// <nil>
	// one
	// flash: program 3 bytes at 0x0: 0x64 at 0x0, want 0x74: flash does not keep what is written
	// <nil> <nil>
}
