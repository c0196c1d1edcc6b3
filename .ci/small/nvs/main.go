// A device that keeps its records in an encrypted NVS partition.
package main

import (
	"context"
	"crypto/rand"
	"os"

	"github.com/quarklink-go/quarklink/esp/flash"
	"github.com/quarklink-go/quarklink/esp/nvs"
)

func main() {
	if err := run(); err != nil {
		os.Exit(1)
	}
}

func run() error {
	keys, err := nvs.GenerateKeys(rand.Reader)
	if err != nil {
		return err
	}
	p, err := nvs.Open(flash.NewMemory(3*flash.SectorSize), nvs.Options{Keys: keys})
	if err != nil {
		return err
	}
	records, err := p.Namespace("quarklink")
	if err != nil {
		return err
	}
	return records.Put(context.Background(), "instance", []byte("record"))
}
