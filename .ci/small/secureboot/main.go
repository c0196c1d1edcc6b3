// A device that verifies RSA signatures.
package main

import (
	"bytes"
	"context"
	"os"

	"github.com/quarklink-go/quarklink/esp/image"
	"github.com/quarklink-go/quarklink/esp/secureboot"
)

func main() {
	var slot [8192]byte
	v := secureboot.Verifier{
		Chip:    image.ESP32C3,
		Schemes: []secureboot.Scheme{secureboot.RSA()},
		Trusted: []secureboot.Digest{{1, 2, 3}},
	}
	if err := v.Verify(context.Background(), bytes.NewReader(slot[:]), int64(len(slot))); err != nil {
		os.Exit(1)
	}
}
