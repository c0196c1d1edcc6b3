// A device whose keys are in the Digital Signature peripheral: it initialises,
// knows its DeviceID and signs.
package main

import (
	"context"
	"crypto"
	"crypto/rand"
	"errors"
	"io/fs"
	"os"

	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/keystore/esp32ds"
	"github.com/quarklink-go/quarklink/keystore/esp32ds/dstest"
	"github.com/quarklink-go/quarklink/store"
)

func main() {
	if err := run(context.Background()); err != nil {
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	chip := dstest.New(esp32ds.ESP32C3)
	keys, err := esp32ds.New(esp32ds.Config{
		Chip: esp32ds.ESP32C3, Peripheral: chip, EFuse: chip, Records: new(store.Mem), Random: rand.Reader,
	})
	if err != nil {
		return err
	}
	if err := keys.Initialise(ctx, esp32ds.InitialiseOptions{Bits: 2048}); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	key, err := keys.Signer(ctx, keystore.Enrolment)
	if err != nil {
		return err
	}
	if _, err := keystore.Fingerprint(key.Public()); err != nil {
		return err
	}
	_, err = key.Sign(rand.Reader, make([]byte, crypto.SHA256.Size()), crypto.SHA256)
	return err
}
