package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/quarklink-go/quarklink/esp/flash"
	"github.com/quarklink-go/quarklink/esp/ota"
)

// install puts an image into the inactive slot and activates it, as a device does that
// runs the application which would start now.
func (c *chip) install(ctx context.Context, message io.Writer) error {
	img, err := os.ReadFile(c.options.install)
	if err != nil {
		return err
	}
	boot := c.lookAtBoot(ctx)
	if boot == nil || boot.Starts == "" {
		return errors.New("no application in the flash starts, so none can install another")
	}
	slots, _ := c.slots()
	cfg := ota.Config{Flash: c.flash, Table: c.table, Verifier: c.verifier(), Rollback: c.rollback}
	for slot, p := range slots {
		if slotName(slot) == boot.Starts {
			cfg.Running = p
		}
	}
	slot, err := ota.NewSlot(ctx, cfg)
	if err != nil {
		return err
	}
	if int64(len(img)) > slot.Size() {
		return fmt.Errorf("the image has 0x%x bytes, %q has room for 0x%x", len(img), slot.Partition().Label, slot.Size())
	}
	// Look before anything is written, as a client does by the manifest: the slot may
	// hold the image that a rollback would go to.
	if err := cfg.Verifier.Verify(ctx, flash.Memory(img), int64(len(img))); err != nil {
		return err
	}
	if _, err := slot.WriteAt(img, 0); err != nil {
		return err
	}
	if err := slot.Activate(ctx, int64(len(img))); err != nil {
		return err
	}
	fmt.Fprintf(message, "installed in %s, which starts next\n", slot.Partition().Label)
	return nil
}
