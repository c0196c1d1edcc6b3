package secureboot_test

import (
	"crypto"
	"crypto/elliptic"
	"testing"

	"github.com/quarklink-go/quarklink/esp/image"
	"github.com/quarklink-go/quarklink/esp/secureboot"
)

// Every byte of a file is either covered, so that changing any bit of it
// makes the file invalid, or one of those that nothing covers: the last 16
// bytes of a block, the unused blocks and the rest of the sector, and what
// follows it (see the package comment).
func TestEveryBit(t *testing.T) {
	app := image.App{Version: "1.0.0", SecureVersion: 1}
	first, err := app.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	b := image.Builder{Header: image.NewHeader(image.ESP32C3)}
	b.Add(0x3C000020, first)
	b.Add(0x3FC80000, make([]byte, 3600)) // leaves little padding: its every bit costs an RSA operation
	img, err := b.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	rsa, ec := rsaKey(t, 0), ecKey(t, elliptic.P256())
	const blockEnd = 4096 + 1200
	for _, part := range []struct {
		name     string
		key      crypto.Signer
		from, to int
	}{
		{"RSA/image", rsa, 0, len(img)},
		{"RSA/padding", rsa, len(img), 4096},
		{"RSA/block", rsa, 4096, blockEnd},
		{"ECDSA/image", ec, 0, len(img)},
		{"ECDSA/block", ec, 4096, blockEnd},
	} {
		t.Run(part.name, func(t *testing.T) {
			t.Parallel()
			v := secureboot.Verifier{Chip: image.ESP32C3, Trusted: []secureboot.Digest{digestOf(t, part.key)}}
			file := append(sign(t, img, part.key), 0xFF) // something after the sector
			if err := verify(v, file); err != nil {
				t.Fatal(err)
			}
			for at := part.from; at < part.to; at++ {
				for bit := range 8 {
					file[at] ^= 1 << bit
					if err := verify(v, file); err == nil {
						t.Fatalf("bit %d of byte 0x%x flipped, and accepted", bit, at)
					}
					file[at] ^= 1 << bit
				}
			}
			for at := blockEnd; at < len(file); at++ {
				file[at] ^= 0xFF
			}
			if err := verify(v, file); err != nil {
				t.Errorf("what nothing covers was changed: %v", err)
			}
		})
	}
}
