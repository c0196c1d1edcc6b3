package uart_test

import (
	"context"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"strings"

	"github.com/quarklink-go/quarklink/transport/uart"
)

// A device asks for all that it needs; the tool is at the other end of the line,
// which here is a pipe in memory.
func Example() {
	pemText, err := os.ReadFile("testdata/p256.pem")
	if err != nil {
		log.Fatal(err)
	}
	root, _ := pem.Decode(pemText)

	devicePort, toolPort := net.Pipe()
	ctx, cancel := context.WithCancel(context.Background())
	tool := &uart.Tool{
		Endpoint: "myql.quarklink.io",
		RootCA:   root.Bytes,
		SSID:     "Workshop",
		Password: "correct horse",
		OnDeviceID: func(_ context.Context, id string) error {
			fmt.Println("tool: DeviceID", id[:8]+"…")
			return nil
		},
	}
	served := make(chan error)
	go func() { served <- tool.Serve(ctx, toolPort) }()

	device := &uart.Device{Port: devicePort}
	ssid, err := device.SSID(ctx)
	if err != nil {
		log.Fatal(err)
	}
	password, err := device.Password(ctx)
	if err != nil {
		log.Fatal(err)
	}
	endpoint, err := device.Endpoint(ctx)
	if err != nil {
		log.Fatal(err)
	}
	port, err := device.InstancePort(ctx)
	if err != nil {
		log.Fatal(err)
	}
	der, err := device.RootCA(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("device: join %q with a password of %d characters\n", ssid, len(password))
	fmt.Printf("device: instance %s:%d, root certificate of %d bytes\n", endpoint, port, len(der))
	if err := device.SendDeviceID(ctx, strings.Repeat("0123456789abcdef", 4)); err != nil {
		log.Fatal(err)
	}

	cancel()
	fmt.Println("tool:", <-served)
	// Output:
	// device: join "Workshop" with a password of 13 characters
	// device: instance myql.quarklink.io:6000, root certificate of 417 bytes
	// tool: DeviceID 01234567…
	// tool: uart: context canceled
}

// A device reaches the instance through its cable; the tool carries the stream.
func ExampleTunnel() {
	devicePort, toolPort := net.Pipe()
	ctx, cancel := context.WithCancel(context.Background())
	tool := &uart.Tool{Instance: echo{}, Random: rand.Reader} // echo: for a real one transport.TCP(address)
	served := make(chan error)
	go func() { served <- tool.Serve(ctx, toolPort) }()

	carrier := &uart.Tunnel{Port: devicePort, Random: rand.Reader}
	stream, err := carrier.Dial(ctx) // quarklink.Config{Transport: carrier} does this, and TLS through it
	if err != nil {
		log.Fatal(err)
	}
	fmt.Fprint(stream, "hello, instance")
	answer := make([]byte, 15)
	if _, err := io.ReadFull(stream, answer); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", answer)
	stream.Close()
	cancel()
	<-served
	// Output:
	// hello, instance
}

// echo is an instance that says what it hears.
type echo struct{}

func (echo) Dial(context.Context) (net.Conn, error) {
	tool, instance := net.Pipe()
	go io.Copy(instance, instance)
	return tool, nil
}

// A root certificate that the device could not hold is refused before anything
// is sent.
func ExampleTool_Check() {
	pemText, err := os.ReadFile("testdata/rsa2048.pem")
	if err != nil {
		log.Fatal(err)
	}
	root, _ := pem.Decode(pemText)
	tool := &uart.Tool{Endpoint: "myql.quarklink.io", RootCA: root.Bytes}
	fmt.Println(tool.Check())
	tool.MaxReply = uart.DeviceMaxReply // the device runs this library
	fmt.Println(tool.Check())
	// Output:
	// uart: ql_rootCA: 1093 bytes do not fit a reply of 1023 (see MaxReply): invalid argument
	// <nil>
}
