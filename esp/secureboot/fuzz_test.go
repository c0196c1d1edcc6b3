package secureboot_test

import (
	"crypto/elliptic"
	"errors"
	"testing"

	"github.com/quarklink-go/quarklink/esp/image"
	"github.com/quarklink-go/quarklink/esp/secureboot"
	"github.com/quarklink-go/quarklink/esp/secureboot/sbecdsa"
)

// FuzzVerify: no file of a stranger's is accepted, and each gets one verdict.
func FuzzVerify(f *testing.F) {
	rsa, ec, p192 := rsaKey(f), ecKey(f, elliptic.P256()), ecKey(f, sbecdsa.P192())
	for _, chip := range []image.Chip{image.ESP32, image.ESP32C3, image.ESP32C2, image.ESP32C6} {
		img := minimal(f, chip, image.App{})
		f.Add(img)
	}
	f.Add(sign(f, minimal(f, image.ESP32, image.App{}), rsa))
	f.Add(sign(f, minimal(f, image.ESP32C2, image.App{}), ec)[:5000])
	f.Add(sign(f, minimal(f, image.ESP32C6, image.App{}), rsa, ec, p192))
	for _, name := range []string{good, "esp32_small_v1.0.0.sbv1.bin"} {
		f.Add(espSigned(f, name)[:0x200])
	}
	trusted := fuses(f, "rsa1,rsa2,rsa3,ec192,ec256,ec384")
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, chip := range []image.Chip{image.ESP32, image.ESP32C3, image.ESP32C2, image.ESP32C6} {
			err := verify(secureboot.Verifier{Schemes: schemes, Chip: chip, Trusted: trusted}, b)
			verdicts := 0
			for _, verdict := range []error{secureboot.ErrImage, secureboot.ErrNoSignature, secureboot.ErrSignature} {
				if errors.Is(err, verdict) {
					verdicts++
				}
			}
			if verdicts != 1 {
				t.Fatalf("%v is %d verdicts", err, verdicts)
			}
		}
	})
}
