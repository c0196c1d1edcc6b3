package main

import (
	"context"
	"crypto/rand"
	"errors"
	"io/fs"

	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/keystore/atecc608"
	"github.com/quarklink-go/quarklink/keystore/atecc608/atecctest"
	"github.com/quarklink-go/quarklink/keystore/atecc608/goecdsa"
	"github.com/quarklink-go/quarklink/keystore/esp32ds"
	"github.com/quarklink-go/quarklink/keystore/esp32ds/dstest"
	"github.com/quarklink-go/quarklink/keystore/software"
)

// opener opens the device's keys, at every power-up again.
type opener func(ctx context.Context) (keystore.KeyStore, error)

// newOpener returns what opens the key store. The chips are models, which live
// as long as the process.
func (p *play) newOpener() opener {
	switch p.keyStore {
	case "atecc608":
		chip := atecctest.New(atecctest.Options{})
		return func(ctx context.Context) (keystore.KeyStore, error) { return p.openATECC608(ctx, chip) }
	case "esp32ds":
		chip := dstest.New(esp32ds.Chip(p.kind))
		return func(ctx context.Context) (keystore.KeyStore, error) { return p.openESP32DS(ctx, chip) }
	case "tpm2":
		return p.tpm.open
	}
	return p.openSoftware
}

func (p *play) openSoftware(context.Context) (keystore.KeyStore, error) {
	return software.New(p.files.records, software.Options{Secret: p.files.secret, Iterations: 1})
}

// openATECC608 provisions the chip if it is blank: on a real one that cannot be
// undone, and a program would ask first.
func (p *play) openATECC608(ctx context.Context, bus atecc608.Bus) (keystore.KeyStore, error) {
	chip, err := atecc608.Open(ctx, bus, atecc608.Options{ECDSA: goecdsa.P256{}})
	if err != nil {
		return nil, err
	}
	config, err := chip.Config(ctx)
	if err != nil {
		return nil, err
	}
	if !config.DataLocked() {
		want, err := config.WithSigningKeys(0)
		if err != nil {
			return nil, err
		}
		plan, err := chip.Plan(ctx, want)
		if err != nil {
			return nil, err
		}
		if err := chip.Provision(ctx, plan); err != nil {
			return nil, err
		}
		p.say("keys", "ATECC608 was blank: configured for a key in slot 0, and locked for good")
	}
	return chip.KeyStore(atecc608.Slots{}), nil
}

// openESP32DS makes both identities if the chip has none: they cost one of its
// eFuse key blocks.
func (p *play) openESP32DS(ctx context.Context, chip *dstest.Chip) (keystore.KeyStore, error) {
	keys, err := esp32ds.New(esp32ds.Config{
		Chip: esp32ds.Chip(p.kind), Peripheral: chip, EFuse: chip, Records: p.files.records, Random: rand.Reader})
	if err != nil {
		return nil, err
	}
	if _, err := keys.Signer(ctx, keystore.Enrolment); !errors.Is(err, fs.ErrNotExist) {
		return keys, err
	}
	if err := keys.Initialise(ctx, esp32ds.InitialiseOptions{Reserve: 2}); err != nil {
		return nil, err
	}
	left, err := keys.InitialisationsLeft(ctx)
	if err != nil {
		return nil, err
	}
	p.say("keys", "Digital Signature peripheral initialised: two RSA-3072 keys, %d eFuse key blocks left", left)
	return keys, nil
}
