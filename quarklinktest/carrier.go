package quarklinktest

import (
	"context"
	"fmt"
	"net"

	"github.com/quarklink-go/quarklink/transport"
)

// Carrier returns a way to the Server that uses no socket: each stream that it
// dials is one end of a [Pipe]. It is a plain carrier, over which quarklink runs
// TLS. Dialling a Server that is closed is net.ErrClosed.
func (s *Server) Carrier() transport.Transport {
	return transport.Func(func(ctx context.Context) (net.Conn, error) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		device, instance := Pipe()
		if !s.serve(instance) {
			return nil, fmt.Errorf("quarklinktest: dial: %w", net.ErrClosed)
		}
		return device, nil
	})
}
