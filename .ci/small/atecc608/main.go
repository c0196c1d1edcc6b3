// A device whose keys are in an ATECC608, which verifies its signatures itself:
// it finds the chip, provisions it, makes the enrolment key and locks it, knows
// its DeviceID and its certificates, and signs.
package main

import (
	"context"
	"crypto"
	"errors"
	"io/fs"
	"os"

	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/keystore/atecc608"
)

func main() {
	if err := run(context.Background(), noBus{}); err != nil {
		os.Exit(1)
	}
}

// noBus stands for the machine.I2C of a board; nothing is on it.
type noBus struct{}

func (noBus) Tx(addr uint16, w, r []byte) error { return errors.New("not acknowledged") }

func run(ctx context.Context, bus atecc608.Bus) error {
	chip, err := atecc608.Open(ctx, bus, atecc608.Options{})
	if err != nil {
		return err
	}
	if err := provision(ctx, chip); err != nil {
		return err
	}
	var keys keystore.Generator = chip.KeyStore(atecc608.Slots{Device: 1})
	key, err := keys.Signer(ctx, keystore.Enrolment)
	if errors.Is(err, fs.ErrNotExist) {
		if key, err = keys.Generate(ctx, keystore.Enrolment); err == nil {
			err = chip.LockSlot(ctx, 0)
		}
	}
	if err != nil {
		return err
	}
	if _, err := keystore.Fingerprint(key.Public()); err != nil {
		return err
	}
	if _, _, err := chip.Certificates(ctx); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	digest := make([]byte, crypto.SHA256.Size())
	signature, err := key.Sign(nil, digest, crypto.SHA256)
	if err != nil {
		return err
	}
	return chip.Verify(ctx, key.Public(), digest, signature)
}

func provision(ctx context.Context, chip *atecc608.Chip) error {
	have, err := chip.Config(ctx)
	if err != nil || have.DataLocked() {
		return err
	}
	want, err := have.WithSigningKeys(0, 1)
	if err != nil {
		return err
	}
	plan, err := chip.Plan(ctx, want)
	if err != nil {
		return err
	}
	return chip.Provision(ctx, plan)
}
