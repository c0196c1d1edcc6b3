package atecc608_test

import (
	"bytes"
	"encoding/hex"
	"testing"

	"github.com/quarklink-go/quarklink/keystore/atecc608"
)

// Groups that Microchip's library makes.
func TestPackets(t *testing.T) {
	for _, want := range []string{"0307300000" + "00035d", "03071b000000" + "24cd", "030740040000" + "8387", "030741a00000" + "7b85"} {
		b, err := hex.DecodeString(want)
		if err != nil {
			t.Fatal(err)
		}
		if got := atecc608.Frame(b[2], b[3], 0, nil); !bytes.Equal(got, b) {
			t.Errorf("% x, want % x", got, b)
		}
	}
	for status, group := range map[byte]string{
		0x00: "04000340", 0x01: "040100c3", 0x03: "04038342", 0x05: "0405c343", 0x07: "040740c2",
		0x08: "040860c0", 0x0f: "040f2342", 0x11: "04113343", 0xee: "04ee3141", 0xff: "04ff0142",
	} {
		b, err := hex.DecodeString(group)
		if err != nil {
			t.Fatal(err)
		}
		if data, ok := atecc608.ParseReply(b); !ok || len(data) != 1 || data[0] != status {
			t.Errorf("%s: % x, %v", group, data, ok)
		}
		if atecc608.Status(status).Error() == "" {
			t.Error("a status without a text")
		}
	}
}

func FuzzParseReply(f *testing.F) {
	f.Add([]byte{4, 0, 3, 0x40})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{0})
	f.Fuzz(func(t *testing.T, r []byte) {
		if len(r) == 0 { // the driver always reads at least four
			return
		}
		if data, ok := atecc608.ParseReply(r); ok && (len(data) < 1 || len(data) != int(r[0])-3) {
			t.Errorf("% x: % x", r, data)
		}
	})
}
