package atecc608_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log"

	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/keystore/atecc608"
	"github.com/quarklink-go/quarklink/keystore/atecc608/atecctest"
)

// Opening the chip and signing with the key in slot 0. On a device the bus is
// one of periph.io's or a machine.I2C.
func Example() {
	ctx := context.Background()
	config := provisioned()
	bus := atecctest.New(atecctest.Options{Config: config})

	chip, err := atecc608.Open(ctx, bus, atecc608.Options{})
	if err != nil {
		log.Fatal(err)
	}
	keys := chip.KeyStore(atecc608.Slots{})
	signer, err := keys.Signer(ctx, keystore.Enrolment)
	if errors.Is(err, fs.ErrNotExist) {
		signer, err = keys.Generate(ctx, keystore.Enrolment)
	}
	if err != nil {
		log.Fatal(err)
	}
	digest := sha256.Sum256([]byte("message"))
	signature, err := signer.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(ecdsa.VerifyASN1(signer.Public().(*ecdsa.PublicKey), digest[:], signature))
	// Output: true
}

// A blank chip is provisioned once, for ever. Someone who may decide reads the
// plan first.
func ExampleChip_Provision() {
	ctx := context.Background()
	chip, err := atecc608.Open(ctx, atecctest.New(atecctest.Options{}), atecc608.Options{})
	if err != nil {
		log.Fatal(err)
	}
	want, err := chip.Config().WithSigningKeys(0, 1)
	if err != nil {
		log.Fatal(err)
	}
	plan, err := chip.Plan(ctx, want)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Print(plan)
	if err := chip.Provision(ctx, plan); err != nil { // after asking
		log.Fatal(err)
	}
	config := chip.Config()
	fmt.Println("locked:", config.Locked(), config.DataLocked())
	// Output:
	// ATECC608 with serial number 0123514c6b2e9017ee at address 0x60:
	// write configuration bytes  20 to  23: 87 20 87 20, was 83 20 87 20
	// lock the configuration zone FOR EVER
	// lock the data and OTP zones FOR EVER
	// This cannot be undone.
	// locked: true true
}
