package secureboot_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"log"

	"github.com/quarklink-go/quarklink/esp/image"
	"github.com/quarklink-go/quarklink/esp/secureboot"
	"github.com/quarklink-go/quarklink/esp/secureboot/sbecdsa"
	"github.com/quarklink-go/quarklink/esp/secureboot/sbsign"
)

// A verifier holds what the chip's eFuse holds, and decides as the chip does.
// For RSA the scheme is secureboot.RSA(), and nothing of elliptic curves is linked.
func ExampleVerifier() {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		log.Fatal(err)
	}
	trusted, err := sbsign.KeyDigest(key.Public())
	if err != nil {
		log.Fatal(err)
	}
	unsigned, err := image.Minimal(image.ESP32C6, image.App{Version: "1.2.3", SecureVersion: 4})
	if err != nil {
		log.Fatal(err)
	}
	signed, err := sbsign.Image(rand.Reader, unsigned, key)
	if err != nil {
		log.Fatal(err)
	}

	v := secureboot.Verifier{
		Chip:             image.ESP32C6,
		Schemes:          []secureboot.Scheme{sbecdsa.Scheme()},
		Trusted:          []secureboot.Digest{trusted},
		MinSecureVersion: 4,
	}
	verdict := func(img []byte) error {
		return v.Verify(context.Background(), bytes.NewReader(img), int64(len(img)))
	}
	fmt.Println("signed:", verdict(signed))
	fmt.Println("unsigned:", verdict(unsigned))
	v.MinSecureVersion = 5
	fmt.Println("too old:", errors.Is(verdict(signed), secureboot.ErrSecureVersion))
	v.Chip = image.ESP32S3
	fmt.Println("other chip:", errors.Is(verdict(signed), image.ErrChip))
	// Output:
	// signed: <nil>
	// unsigned: secureboot: image is not signed for Secure Boot V2: no signature block at offset 0x1000
	// too old: true
	// other chip: true
}

// A verdict's result code of quarklink-client is found by shape.
func Example_firmwareCode() {
	err := fmt.Errorf("update: %w", secureboot.ErrNoSignature)
	var coded interface{ FirmwareCode() int }
	if errors.As(err, &coded) {
		fmt.Println(coded.FirmwareCode())
	}
	// Output:
	// 21
}

// The digest of a key, as in eFuse, and back.
func ExampleParseDigest() {
	d, err := secureboot.ParseDigest("cd83cc02a291b2bcdfd40cde657aaacfb48e246f450ca3567ea5a8cfc9c72375")
	fmt.Println(d, err)
	_, err = secureboot.ParseDigest("cd83")
	fmt.Println(err)
	// Output:
	// cd83cc02a291b2bcdfd40cde657aaacfb48e246f450ca3567ea5a8cfc9c72375 <nil>
	// secureboot: key digest has 4 characters, want 64 hexadecimal digits
}
