// A device that installs an update signed by RSA, and confirms it.
package main

import (
	"context"
	"os"

	"github.com/quarklink-go/quarklink/esp/flash"
	"github.com/quarklink-go/quarklink/esp/image"
	"github.com/quarklink-go/quarklink/esp/ota"
	"github.com/quarklink-go/quarklink/esp/partition"
	"github.com/quarklink-go/quarklink/esp/secureboot"
)

func main() {
	if err := run(context.Background()); err != nil {
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	cipher, err := flash.NewXTS(make([]byte, 32))
	if err != nil {
		return err
	}
	chip, err := flash.Encrypted(flash.NewMemory(1<<20), cipher)
	if err != nil {
		return err
	}
	cfg := ota.Config{
		Flash: chip, Table: &partition.Table{},
		Verifier: secureboot.Verifier{Chip: image.ESP32C3, Schemes: []secureboot.Scheme{secureboot.RSA()}},
	}
	slot, err := ota.NewSlot(ctx, cfg)
	if err != nil {
		return err
	}
	if _, err := slot.WriteAt(make([]byte, flash.SectorSize), 0); err != nil {
		return err
	}
	if err := slot.Activate(ctx, flash.SectorSize); err != nil {
		return err
	}
	trial, err := ota.NewTrial(cfg)
	if err != nil {
		return err
	}
	return trial.Confirm(ctx)
}
