package transport_test

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"

	"github.com/quarklink-go/quarklink/transport"
)

// A modem's socket, a cable or a test's pipe becomes a carrier by a function.
func ExampleFunc() {
	modem := transport.Func(func(ctx context.Context) (net.Conn, error) {
		here, there := net.Pipe()
		go func() {
			fmt.Fprint(there, "hello")
			there.Close()
		}()
		return here, nil
	})
	conn, err := modem.Dial(context.Background())
	if err != nil {
		fmt.Println(err)
		return
	}
	buf := make([]byte, 5)
	n, _ := conn.Read(buf)
	fmt.Println(string(buf[:n]))
	// Output: hello
}

// Without roots there is nothing to trust, and so no connection.
func ExampleTLS() {
	_, err := transport.TLS{Addr: "instance.example:6000"}.Dial(context.Background())
	fmt.Println(err)

	pinned := transport.TLS{Addr: "instance.example:6000", Roots: x509.NewCertPool()}
	var _ transport.Authenticator = pinned
	// Output: transport: TLS without roots: set Roots to the instance's root certificate
}
