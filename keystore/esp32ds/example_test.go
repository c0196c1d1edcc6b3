package esp32ds_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log"

	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/keystore/esp32ds"
	"github.com/quarklink-go/quarklink/keystore/esp32ds/dstest"
	"github.com/quarklink-go/quarklink/store"
)

// The first start of a device. On a real one the chip is a pair of small types
// in front of ESP-IDF, and the records are in flash.
func Example() {
	ctx := context.Background()
	chip := dstest.New(esp32ds.ESP32C3)
	keys, err := esp32ds.New(esp32ds.Config{
		Chip:       esp32ds.ESP32C3,
		Peripheral: chip,
		EFuse:      chip,
		Records:    new(store.Mem),
		Random:     rand.Reader,
	})
	if err != nil {
		log.Fatal(err)
	}
	_, err = keys.Signer(ctx, keystore.Enrolment)
	if errors.Is(err, fs.ErrNotExist) {
		fmt.Println("not initialised yet")
		err = keys.Initialise(ctx, esp32ds.InitialiseOptions{
			Bits:    2048, // quicker to make than 3072, the default
			Reserve: 2,    // key blocks for Secure Boot and flash encryption
		})
	}
	if err != nil {
		log.Fatal(err)
	}
	signer, err := keys.Signer(ctx, keystore.Enrolment)
	if err != nil {
		log.Fatal(err)
	}
	public := signer.Public().(*rsa.PublicKey)
	digest := sha256.Sum256([]byte("message"))
	signature, err := signer.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		log.Fatal(err)
	}
	left, err := keys.InitialisationsLeft(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("key:", public.N.BitLen(), "bits")
	fmt.Println("signature:", rsa.VerifyPKCS1v15(public, crypto.SHA256, digest[:], signature))
	fmt.Println("free key blocks:", left)
	// Output:
	// not initialised yet
	// key: 2048 bits
	// signature: <nil>
	// free key blocks: 5
}

// Erasing the flash loses the parameters. The device says so, and how many
// identities its chip is still good for, before anything is spent.
func ExampleStore_Initialise_identityLost() {
	ctx := context.Background()
	chip := dstest.New(esp32ds.ESP32S3)
	cfg := esp32ds.Config{Chip: esp32ds.ESP32S3, Peripheral: chip, EFuse: chip, Records: new(store.Mem), Random: rand.Reader}
	keys, err := esp32ds.New(cfg)
	if err != nil {
		log.Fatal(err)
	}
	if err := keys.Initialise(ctx, esp32ds.InitialiseOptions{Bits: 2048}); err != nil {
		log.Fatal(err)
	}

	cfg.Records = new(store.Mem) // the flash was erased
	if keys, err = esp32ds.New(cfg); err != nil {
		log.Fatal(err)
	}
	err = keys.Initialise(ctx, esp32ds.InitialiseOptions{Bits: 2048})
	fmt.Println("lost:", errors.Is(err, esp32ds.ErrIdentityLost))
	if err := keys.Initialise(ctx, esp32ds.InitialiseOptions{Bits: 2048, NewIdentity: true}); err != nil {
		log.Fatal(err)
	}
	left, err := keys.InitialisationsLeft(ctx)
	fmt.Println("free key blocks:", left, err)
	// Output:
	// lost: true
	// free key blocks: 4 <nil>
}

// A provisioning host makes a key and writes its record into the device's flash
// and hmacKey into its eFuses. It keeps neither.
func ExampleEncodeRecord() {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		log.Fatal(err)
	}
	var hmacKey [32]byte
	var iv [16]byte
	rand.Read(hmacKey[:])
	rand.Read(iv[:])
	params, err := esp32ds.Encrypt(esp32ds.ESP32C3, key, hmacKey, iv)
	if err != nil {
		log.Fatal(err)
	}
	const block = 5
	record, err := esp32ds.EncodeRecord(keystore.Enrolment, block, &key.PublicKey, params)
	if err != nil {
		log.Fatal(err)
	}
	name, err := esp32ds.RecordName(keystore.Enrolment)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("flash as", name, "in NVS; less than 2 KiB:", len(record) < 2<<10)
	fmt.Println("esp_ds_data_t:", len(params.Bytes()), "bytes")
	// Output:
	// flash as ds-esk in NVS; less than 2 KiB: true
	// esp_ds_data_t: 1220 bytes
}
