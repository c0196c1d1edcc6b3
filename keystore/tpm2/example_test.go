package tpm2_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/keystore/tpm2"
	"github.com/quarklink-go/quarklink/store"
)

// A device agent opens the TPM once, and gives its keys to quarklink.
func Example() {
	ctx := context.Background()
	tpm, err := tpm2.Open(ctx, tpm2.Options{}) // /dev/tpmrm0
	if err != nil {
		fmt.Println(err)
		return
	}
	defer tpm.Close()
	records := store.Dir("/var/lib/agent")
	keys, err := tpm.KeyStore(records, tpm2.KeyOptions{})
	if err != nil {
		fmt.Println(err)
		return
	}
	device, err := quarklink.New(ctx, quarklink.Config{KeyStore: keys, Store: records})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer device.Close()
	fmt.Println(device.DeviceID())
}

// Errors tell what is to be done. None of them is fs.ErrNotExist, which would say that
// a new identity may be made.
func ExampleOpen() {
	_, err := tpm2.Open(context.Background(), tpm2.Options{Path: "/dev/no-such-tpm"})
	switch {
	case errors.Is(err, tpm2.ErrNoTPM):
		fmt.Println("no TPM: is it switched on in the machine's set-up?")
	case errors.Is(err, tpm2.ErrPermission):
		fmt.Println("no permission: is the service in group tss?")
	case errors.Is(err, tpm2.ErrBusy):
		fmt.Println("busy: another program has opened it")
	}
	fmt.Println("absent key:", errors.Is(err, fs.ErrNotExist))
	// Output:
	// no TPM: is it switched on in the machine's set-up?
	// absent key: false
}

// A key that other programs may use too: exported, it is still bound to the TPM.
func ExampleStore_Export() {
	ctx := context.Background()
	tpm, err := tpm2.Open(ctx, tpm2.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer tpm.Close()
	keys, err := tpm.KeyStore(store.Dir("/var/lib/agent"), tpm2.KeyOptions{})
	if err != nil {
		fmt.Println(err)
		return
	}
	file, err := keys.Export(ctx, keystore.Device)
	if err != nil {
		fmt.Println(err)
		return
	}
	// openssl pkey -provider tpm2 -provider default -in device.pem -pubout
	fmt.Printf("%s", file)
}
