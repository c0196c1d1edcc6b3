package tunnel_test

import (
	"fmt"
	"time"

	"github.com/quarklink-go/quarklink/transport/uart/tunnel"
)

// A main loop drives an end: bytes in, bytes out, and when to come back. Here both
// ends are in one loop, and the line between them is perfect.
func Example() {
	device, tool := tunnel.New(tunnel.Options{}), tunnel.New(tunnel.Options{})
	var now time.Duration // since the start; a firmware has its timer's ticks
	device.Open(now, [8]byte{1, 2, 3, 4, 5, 6, 7, 8})
	sent := false
	var received []byte
	for len(received) < 5 {
		for out := device.Output(now); len(out) > 0; out = device.Output(now) {
			tool.Input(now, out) // a firmware writes it to its UART
		}
		for out := tool.Output(now); len(out) > 0; out = tool.Output(now) {
			device.Input(now, out) // a firmware gets it from its UART
		}
		if tool.Asked() {
			tool.Accept(now, [8]byte{9, 10, 11, 12, 13, 14, 15, 16})
			continue
		}
		if device.Established() && !sent {
			device.Write(now, []byte("hello"))
			sent = true
			continue
		}
		var buf [64]byte
		received = append(received, buf[:tool.Read(now, buf[:])]...)
		now = max(now, min(device.Deadline(), tool.Deadline()))
	}
	fmt.Printf("%s\n", received)
	// Output:
	// hello
}
