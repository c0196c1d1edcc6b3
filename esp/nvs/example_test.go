package nvs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log"

	"github.com/quarklink-go/quarklink/esp/flash"
	"github.com/quarklink-go/quarklink/esp/nvs"
)

func Example() {
	flash := flash.NewMemory(8 * flash.SectorSize) // on a device: a Flash over its partition
	p, err := nvs.Open(flash, nvs.Options{})
	if err != nil {
		log.Fatal(err)
	}
	ns, err := p.Namespace("quarklink")
	if err != nil {
		log.Fatal(err)
	}
	err = errors.Join(
		ns.SetString("endpoint", "fabric.example.com"),
		nvs.SetInt(ns, "port", uint16(6000)),
	)
	if err != nil {
		log.Fatal(err)
	}
	port, err := nvs.GetInt[uint16](ns, "port")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(port)
	_, err = ns.GetString("absent")
	fmt.Println(errors.Is(err, fs.ErrNotExist))
	// Output:
	// 6000
	// true
}

// A listing of a partition read from a chip, encrypted with the HMAC scheme.
func ExampleOpenReader() {
	keys, err := nvs.KeysFromHMAC(bytes.Repeat([]byte{0x2A}, 32)) // the chip's eFuse
	if err != nil {
		log.Fatal(err)
	}
	image := exampleImage(keys)

	p, err := nvs.OpenReader(bytes.NewReader(image), int64(len(image)), nvs.Options{Keys: keys})
	if err != nil {
		log.Fatal(err)
	}
	list, err := p.Entries()
	if err != nil {
		log.Fatal(err)
	}
	for _, e := range list {
		fmt.Println(e.Namespace, e.Key, e.Type, e.Size)
	}
	stats, err := p.Stats()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(stats.Used, "of", stats.Total, "entries")

	_, err = nvs.OpenReader(bytes.NewReader(image), int64(len(image)), nvs.Options{})
	fmt.Println(err)
	// Output:
	// quarklink endpoint string 18
	// quarklink key-esk blob 300
	// 15 of 378 entries
	// nvs: open: page 0: none of 15 entries reads without keys (is the partition encrypted?): wrong NVS keys
}

func exampleImage(keys *nvs.Keys) flash.Memory {
	flash := flash.NewMemory(3 * flash.SectorSize)
	p, err := nvs.Open(flash, nvs.Options{Keys: keys})
	if err != nil {
		log.Fatal(err)
	}
	ns, err := p.Namespace("quarklink")
	if err != nil {
		log.Fatal(err)
	}
	if err := errors.Join(ns.SetString("endpoint", "fabric.example.com"), ns.SetBlob("key-esk", make([]byte, 300))); err != nil {
		log.Fatal(err)
	}
	return flash
}

// A namespace holds a client's records and its software keys.
func ExampleNamespace_Create() {
	ctx := context.Background()
	p, err := nvs.Open(flash.NewMemory(3*flash.SectorSize), nvs.Options{})
	if err != nil {
		log.Fatal(err)
	}
	records, err := p.Namespace("quarklink")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(records.Create(ctx, "key-esk", []byte("first")))
	fmt.Println(records.Create(ctx, "key-esk", []byte("second")))
	data, err := records.Get(ctx, "key-esk")
	fmt.Printf("%s %v\n", data, err)
	// Output:
	// <nil>
	// nvs: quarklink/key-esk: file already exists
	// first <nil>
}

// What a flipped bit has made unreadable is not taken for absent.
func ExamplePartition_Check() {
	ctx := context.Background()
	flash := flash.NewMemory(3 * flash.SectorSize)
	p, err := nvs.Open(flash, nvs.Options{})
	if err != nil {
		log.Fatal(err)
	}
	ns, err := p.Namespace("quarklink")
	if err != nil {
		log.Fatal(err)
	}
	if err := ns.SetString("endpoint", "fabric.example.com"); err != nil {
		log.Fatal(err)
	}
	flash[bytes.Index(flash, []byte("endpoint"))] ^= 0x10

	p, err = nvs.Open(flash, nvs.Options{})
	if err != nil {
		log.Fatal(err)
	}
	ns, err = p.Namespace("quarklink")
	if err != nil {
		log.Fatal(err)
	}
	damage, err := p.Check()
	for _, d := range damage {
		fmt.Println(&d)
	}
	fmt.Println(err)
	_, err = ns.Get(ctx, "key-esk")
	fmt.Println(errors.Is(err, nvs.ErrDamaged), errors.Is(err, fs.ErrNotExist))
	// Output:
	// page 0 entries 1 to 2: checksum of the entry is wrong
	// <nil>
	// true false
}

func ExampleKeys() {
	keys, err := nvs.GenerateKeys(bytes.NewReader(make([]byte, 64))) // crypto/rand.Reader, of course
	if err != nil {
		log.Fatal(err)
	}
	again, err := nvs.ParseKeys(keys.Partition())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(keys, *again == *keys)
	// Output: [redacted] true
}
