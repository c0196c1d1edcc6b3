package serialport_test

import (
	"context"
	"fmt"
	"os"

	"github.com/quarklink-go/quarklink/transport/serialport"
	"github.com/quarklink-go/quarklink/transport/uart"
)

// A provisioning tool at the first CP210x adapter.
func Example() {
	port, err := serialport.OpenUSB(serialport.USB{VID: 0x10C4, PID: 0xEA60}, serialport.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer port.Close()
	tool := &uart.Tool{Endpoint: "myql.quarklink.io", SSID: "Workshop", Password: uart.Secret(os.Getenv("WIFI_PASSWORD"))}
	fmt.Println(tool.Serve(context.Background(), port))
}
