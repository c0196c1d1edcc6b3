// A device that is provisioned over a serial line.
package main

import (
	"context"
	"net"
	"os"

	"github.com/quarklink-go/quarklink/transport/uart"
)

func main() {
	port, _ := net.Pipe()
	d := uart.Device{Port: port}
	if _, err := d.RootCA(context.Background()); err != nil {
		os.Exit(1)
	}
	if err := d.SendDeviceID(context.Background(), ""); err != nil {
		os.Exit(1)
	}
}
