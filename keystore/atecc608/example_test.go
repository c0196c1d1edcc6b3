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
	"github.com/quarklink-go/quarklink/keystore/atecc608/goecdsa"
)

// Opening the chip and signing with the key in slot 0. On a device the bus is
// one of periph.io's or a machine.I2C.
func Example() {
	ctx := context.Background()
	config := provisioned()
	bus := atecctest.New(atecctest.Options{Config: config})

	chip, err := atecc608.Open(ctx, bus, atecc608.Options{ECDSA: goecdsa.P256{}})
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

// The board of the application note, an M5Stack EduKit: its chip is a
// TrustCustom part at the address of a TNGTLS part, with the key in slot 0. The
// key is made on the bench; then the slot is locked, for ever, so that nobody
// can replace the device's identity.
func Example_eduKit() {
	ctx := context.Background()
	bus := atecctest.New(atecctest.Options{Config: provisioned(func(c *[128]byte) {
		c[16] = 0x35 << 1 // TCUSTOM, configured for address 0x35
	})})

	chip, err := atecc608.Open(ctx, bus, atecc608.Options{Address: 0x35, ECDSA: goecdsa.P256{}})
	if err != nil {
		log.Fatal(err)
	}
	esk, err := chip.KeyStore(atecc608.Slots{Enrolment: 0, Device: 0}).Generate(ctx, keystore.Enrolment)
	if err != nil {
		log.Fatal(err)
	}
	if err := chip.LockSlot(ctx, 0); err != nil { // cannot be undone
		log.Fatal(err)
	}
	config, err := chip.Config(ctx)
	if err != nil {
		log.Fatal(err)
	}
	deviceID, err := keystore.Fingerprint(esk.Public())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("bytes of the DeviceID:", len(deviceID))
	fmt.Println("slot 0 locked:", config.SlotLocked(0))
	// Output:
	// bytes of the DeviceID: 32
	// slot 0 locked: true
}

// On a microcontroller the chip checks its own signatures, and no elliptic curve
// is linked into the program.
func Example_microcontroller() {
	ctx := context.Background()
	bus := atecctest.New(atecctest.Options{Config: provisioned()})

	chip, err := atecc608.Open(ctx, bus, atecc608.Options{})
	if err != nil {
		log.Fatal(err)
	}
	signer, err := chip.KeyStore(atecc608.Slots{}).Generate(ctx, keystore.Enrolment)
	if err != nil {
		log.Fatal(err)
	}
	digest := sha256.Sum256([]byte("message"))
	signature, err := signer.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(chip.Verify(ctx, signer.Public(), digest[:], signature))
	// Output: <nil>
}

// A blank chip is provisioned once, for ever. Someone who may decide reads the
// plan first.
func ExampleChip_Provision() {
	ctx := context.Background()
	chip, err := atecc608.Open(ctx, atecctest.New(atecctest.Options{}), atecc608.Options{})
	if err != nil {
		log.Fatal(err)
	}
	have, err := chip.Config(ctx)
	if err != nil {
		log.Fatal(err)
	}
	want, err := have.WithSigningKeys(0, 1, 2)
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
	config, err := chip.Config(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("locked:", config.Locked(), config.DataLocked())
	// Output:
	// ATECC608 with serial number 0123514c6b2e9017ee at address 0x60:
	// write configuration bytes  20 to  23: 81 20 81 20, was 83 20 87 20
	// write configuration bytes  24 to  27: 81 20 c4 8f, was 8f 20 c4 8f
	// lock the configuration zone FOR EVER
	// lock the data and OTP zones FOR EVER
	// WARNING: slot 0: anyone on the bus can replace its key until the slot is locked: for the enrolment key Generate, then LockSlot
	// WARNING: slot 1: anyone on the bus can replace its key until the slot is locked: for the enrolment key Generate, then LockSlot
	// WARNING: slot 2: anyone on the bus can replace its key until the slot is locked: for the enrolment key Generate, then LockSlot
	// This cannot be undone.
	// locked: true true
}
