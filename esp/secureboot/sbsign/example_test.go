package sbsign_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/quarklink-go/quarklink/esp/image"
	"github.com/quarklink-go/quarklink/esp/secureboot/sbsign"
)

// Sign a file in place, without reading it into memory; doing it again with
// another key adds a second signature.
func ExampleImageAt() {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	unsigned, err := image.Minimal(image.ESP32C6, image.App{Version: "1.2.3"})
	if err != nil {
		log.Fatal(err)
	}
	name := filepath.Join(dir, "firmware.bin")
	if err := os.WriteFile(name, unsigned, 0o600); err != nil {
		log.Fatal(err)
	}

	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		log.Fatal(err)
	}
	defer f.Close()
	for range 2 {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			log.Fatal(err)
		}
		info, err := f.Stat()
		if err != nil {
			log.Fatal(err)
		}
		trailer, at, err := sbsign.ImageAt(rand.Reader, f, info.Size(), key)
		if err != nil {
			log.Fatal(err)
		}
		if _, err := f.WriteAt(trailer, at); err != nil {
			log.Fatal(err)
		}
		fmt.Println(len(trailer), "bytes written at", at)
	}
	// Output:
	// 7856 bytes written at 336
	// 4096 bytes written at 4096
}
