package secureboot_test

import (
	"crypto"
	"crypto/elliptic"
	"encoding/binary"
	"hash/crc32"
	"slices"
	"testing"

	"github.com/quarklink-go/quarklink/esp/image"
	"github.com/quarklink-go/quarklink/esp/secureboot"
	"github.com/quarklink-go/quarklink/esp/secureboot/sbecdsa"
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
	b := image.Builder{Header: image.NewHeader(image.ESP32C5)}
	b.Add(0x3C000020, first)
	b.Add(0x3FC80000, make([]byte, 3600)) // leaves little padding: its every bit costs an RSA operation
	img, err := b.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	small := minimal(t, image.ESP32C5, app)
	rsa, p192, p256, p384 := rsaKey(t), ecKey(t, sbecdsa.P192()), ecKey(t, elliptic.P256()), ecKey(t, elliptic.P384())
	const blockEnd = 4096 + 1200
	for _, part := range []struct {
		name     string
		key      crypto.Signer
		img      []byte
		from, to int
	}{
		{"RSA/image", rsa, img, 0, len(img)},
		{"RSA/padding", rsa, img, len(img), 4096},
		{"RSA/block", rsa, img, 4096, blockEnd},
		{"P-256/image", p256, small, 0, len(small)},
		{"P-192/block", p192, small, 4096, blockEnd},
		{"P-256/block", p256, small, 4096, blockEnd},
		{"P-384/block", p384, small, 4096, blockEnd},
	} {
		t.Run(part.name, func(t *testing.T) {
			t.Parallel()
			v := secureboot.Verifier{Schemes: schemes, Chip: image.ESP32C5, Trusted: []secureboot.Digest{digestOf(t, part.key)}}
			file := append(sign(t, part.img, part.key), 0xFF) // something after the sector
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

// Who changes a byte of a block and computes the CRC anew gets away with it
// only where the package comment says so.
func TestEveryByteUnderCRC(t *testing.T) {
	img := minimal(t, image.ESP32C5, image.App{})
	type span struct{ from, to int }
	for _, test := range []struct {
		name string
		key  crypto.Signer
		free []span // reserved bytes and image digest, what follows the signature
	}{
		{"RSA", rsaKey(t), []span{{2, 36}}},
		{"P-192", ecKey(t, sbecdsa.P192()), []span{{3, 36}, {101 + 48, 1196}}},
		{"P-256", ecKey(t, elliptic.P256()), []span{{3, 36}, {101 + 64, 1196}}},
		{"P-384", ecKey(t, elliptic.P384()), []span{{3, 52}, {149 + 96, 1196}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			v := secureboot.Verifier{Schemes: schemes, Chip: image.ESP32C5, Trusted: []secureboot.Digest{digestOf(t, test.key)}}
			file := sign(t, img, test.key)
			raw := file[4096:][:1216]
			fixCRC := func() { binary.LittleEndian.PutUint32(raw[1196:], crc32.ChecksumIEEE(raw[:1196])) }
			for _, s := range test.free {
				for at := s.from; at < s.to; at++ {
					raw[at] ^= 0xFF
				}
			}
			fixCRC()
			if err := verify(v, file); err != nil {
				t.Fatalf("what only the CRC covers was changed: %v", err)
			}
			for at := range 1196 {
				if slices.ContainsFunc(test.free, func(s span) bool { return s.from <= at && at < s.to }) {
					continue
				}
				raw[at] ^= 1 << (at % 8)
				fixCRC()
				if err := verify(v, file); err == nil {
					t.Errorf("byte %d changed, and accepted", at)
				}
				raw[at] ^= 1 << (at % 8)
			}
		})
	}
}
