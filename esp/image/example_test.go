package image_test

import (
	"bytes"
	"fmt"
	"log"

	"github.com/quarklink-go/quarklink/esp/image"
)

// Say what an image is, and whether it arrived whole.
func ExampleRead() {
	file, err := image.Minimal(image.ESP32C3, image.App{Project: "blinky", Version: "1.2.3", SecureVersion: 2})
	if err != nil {
		log.Fatal(err)
	}

	m, err := image.Read(bytes.NewReader(file), int64(len(file)))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(m.App.Project, m.App.Version, "for", m.Header.Chip)
	fmt.Println("SHA-256 matches:", m.HashMatches())

	file[100] ^= 1
	_, err = image.Read(bytes.NewReader(file), int64(len(file)))
	fmt.Println(err)
	// Output:
	// blinky 1.2.3 for esp32c3
	// SHA-256 matches: true
	// image: offset 0x12f: wrong checksum: 0xc6, but the segments give 0xc7
}

// Lay out an application as esptool elf2image --secure-pad-v2 does.
func ExampleBuilder() {
	app, err := image.App{Project: "blinky", Version: "1.2.3"}.MarshalBinary()
	if err != nil {
		log.Fatal(err)
	}
	b := image.Builder{Header: image.NewHeader(image.ESP32C3), SecurePad: true}
	b.Header.Entry = 0x42010020
	b.Add(0x3C000020, append(app, "constants"...))
	b.Add(0x42010020, []byte("code"))
	b.Add(0x3FC80000, []byte("variables"))
	file, err := b.Bytes()
	if err != nil {
		log.Fatal(err)
	}

	m, err := image.Read(bytes.NewReader(file), int64(len(file)))
	if err != nil {
		log.Fatal(err)
	}
	for _, s := range m.Segments {
		fmt.Printf("0x%08x: %5d bytes at 0x%05x\n", s.Address, s.Length, s.Offset)
	}
	fmt.Println(m.Length, "bytes")
	// Output:
	// 0x3c000020:   268 bytes at 0x00020
	// 0x3fc80000:    12 bytes at 0x00134
	// 0x00000000: 65232 bytes at 0x00148
	// 0x42010020:     4 bytes at 0x10020
	// 0x00000000: 65444 bytes at 0x1002c
	// 131072 bytes
}
