package atecctest_test

import (
	"errors"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/quarklink-go/quarklink/keystore/atecc608/atecctest"
)

// What a bus master sees of a chip: it wakes it, asks for its revision, finds it
// busy, and reads the reply.
func Example() {
	var clock atecctest.Clock
	chip := atecctest.New(atecctest.Options{})
	chip.SetClock(clock.Now)

	chip.Tx(0, []byte{0}, nil) // the wake pulse
	clock.Advance(1500 * time.Microsecond)
	chip.Tx(0x60, []byte{0x03, 0x07, 0x30, 0x00, 0x00, 0x00, 0x03, 0x5d}, nil)
	fmt.Println(errors.Is(chip.Tx(0x60, []byte{0}, nil), atecctest.ErrNACK))
	clock.Advance(5 * time.Millisecond)
	reply := make([]byte, 7)
	if err := chip.Tx(0x60, []byte{0}, reply); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("% x\n", reply)
	// Output:
	// true
	// 07 00 00 60 03 83 bb
}

// Faults on demand: here the reply to the first read arrives damaged.
func ExampleChip_SetFaults() {
	chip := atecctest.New(atecctest.Options{WakeTime: -1})
	reads := 0
	chip.SetFaults(func(t atecctest.Transaction) atecctest.Fault {
		if t.Read == 0 {
			return atecctest.NoFault
		}
		if reads++; reads == 1 {
			return atecctest.BadCRC
		}
		return atecctest.NoFault
	})
	chip.Tx(0, []byte{0}, nil)
	for range 2 {
		answer := make([]byte, 4)
		chip.Tx(0x60, []byte{0}, answer)
		fmt.Printf("% x\n", answer)
	}
	// Output:
	// 04 11 33 03
	// 04 11 33 43
}

// Traffic with a real chip, recorded once, is played to a driver ever after.
func ExampleRecorder() {
	recorder := atecctest.NewRecorder(atecctest.New(atecctest.Options{WakeTime: -1}))
	recorder.Tx(0, []byte{0}, nil)
	recorder.Tx(0x60, nil, make([]byte, 4))
	recorder.Trace().WriteTo(os.Stdout)

	player := atecctest.NewPlayer(recorder.Trace())
	player.Tx(0, []byte{0}, nil)
	fmt.Println(player.Close())
	// Output:
	// 00 00 - NACK
	// 60 - 04113343
	// atecctest: not as in the trace: 1 of 2 operations left over
}
