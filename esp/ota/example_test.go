package ota_test

import (
	"context"
	"fmt"
	"log"

	"github.com/quarklink-go/quarklink/esp/flash"
	"github.com/quarklink-go/quarklink/esp/ota"
	"github.com/quarklink-go/quarklink/esp/otadata"
	"github.com/quarklink-go/quarklink/esp/partition"
)

// A device installs an image, restarts, and keeps it. FirmwareUpdate does the writing
// and verifying with the Slot of FirmwareOptions.
func Example() {
	ctx := context.Background()
	images, err := makeImages() // signed by a key that images.verifier trusts
	if err != nil {
		log.Fatal(err)
	}
	table := &partition.Table{Partitions: []partition.Partition{
		{Label: "otadata", Type: partition.Data, Subtype: partition.DataOTA, Offset: 0x16000, Size: 0x2000},
		{Label: "factory", Type: partition.App, Subtype: partition.AppFactory, Offset: 0x20000, Size: 0x140000},
		{Label: "ota_0", Type: partition.App, Subtype: partition.AppOTA0, Offset: 0x160000, Size: 0x140000},
		{Label: "ota_1", Type: partition.App, Subtype: partition.AppOTA0 + 1, Offset: 0x2A0000, Size: 0x140000},
	}}
	chip := flash.NewMemory(4 << 20)
	running, _ := table.FindLabel("factory")
	cfg := ota.Config{Flash: chip, Table: table, Running: running, Verifier: images.verifier, Rollback: true}

	slot, err := ota.NewSlot(ctx, cfg)
	if err != nil {
		log.Fatal(err)
	}
	img := images.byName["new"]
	if _, err := slot.WriteAt(img, 0); err != nil {
		log.Fatal(err)
	}
	fmt.Println(slot.Partition().Label, slot.Activate(ctx, int64(len(img))))

	// The bootloader starts it, and it confirms itself.
	data, err := flash.Region(chip, 0x16000, otadata.Size)
	if err != nil {
		log.Fatal(err)
	}
	good := func(int) bool { return true }
	if _, _, err := otadata.Boot(data, otadata.Bootloader{Slots: 2, Factory: true, Rollback: true}, good); err != nil {
		log.Fatal(err)
	}
	cfg.Running = slot.Partition()
	trial, err := ota.NewTrial(cfg)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(trial.Pending(ctx))
	fmt.Println(trial.Confirm(ctx))
	fmt.Println(trial.Pending(ctx))
	// Output:
	// ota_0 <nil>
	// true <nil>
	// <nil>
	// false <nil>
}
