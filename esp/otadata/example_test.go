package otadata_test

import (
	"fmt"
	"log"

	"github.com/quarklink-go/quarklink/esp/flash"
	"github.com/quarklink-go/quarklink/esp/otadata"
)

// An update that does not confirm itself is started once.
func ExampleBoot() {
	f := flash.NewMemory(otadata.Size) // the partition otadata
	b := otadata.Bootloader{Slots: 2, Factory: true, Rollback: true}
	good := func(int) bool { return true }
	start := func() {
		slot, why, err := otadata.Boot(f, b, good)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%d: %s\n", slot, why.Reason)
	}
	start()
	if err := otadata.SetBoot(f, b, 0); err != nil {
		log.Fatal(err)
	}
	start()
	start()
	// Output:
	// -1: sector 0 is erased, sector 1 is erased: the factory application starts
	// 0: sector 0 decides, with sequence number 1 (NEW): ota_0 starts; sector 1 is erased; it has this one start to confirm itself
	// -1: sector 0 (1) did not confirm itself after its first start and becomes ABORTED, sector 1 is erased: the factory application starts
}
