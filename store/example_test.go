package store_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/quarklink-go/quarklink/store"
)

func ExampleDir() {
	folder, err := os.MkdirTemp("", "device")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(folder)
	ctx := context.Background()
	state := store.Dir(folder)

	_, err = state.Get(ctx, "instance")
	fmt.Println("absent:", errors.Is(err, fs.ErrNotExist))

	if err := state.Put(ctx, "instance", []byte("example.quarklink.io")); err != nil {
		fmt.Println(err)
		return
	}
	data, err := state.Get(ctx, "instance")
	fmt.Printf("%s %v\n", data, err)

	err = state.Create(ctx, "instance", []byte("another"))
	fmt.Println("never overwritten:", errors.Is(err, fs.ErrExist))
	// Output:
	// absent: true
	// example.quarklink.io <nil>
	// never overwritten: true
}

func ExampleEncodeRecord() {
	record := store.EncodeRecord("instance", 1, []byte("example.quarklink.io\n"))
	fmt.Printf("%s", record)

	version, payload, err := store.DecodeRecord("instance", record)
	fmt.Printf("%d %q %v\n", version, payload, err)

	record[len(record)-2] ^= 1
	_, _, err = store.DecodeRecord("instance", record)
	fmt.Println(errors.Is(err, store.ErrDamaged), err)
	// Output:
	// quarklink-record instance 1 b7022a495bdb85e3
	// example.quarklink.io
	// 1 "example.quarklink.io\n" <nil>
	// true store: record "instance": wrong checksum: damaged record
}
