// Package transport carries a device's byte stream to its QuarkLink instance.
//
// [Transport] is one method: dial the one peer that the transport was made for.
// A plain Transport is a carrier (a TCP connection, a cable, a modem's socket)
// and brings no trust of its own: quarklink runs TLS over it. [TLS] is that TLS:
// pinned to the roots it is given, TLS 1.3 with the hybrid post-quantum key
// exchange X25519MLKEM768 first, and without a way to switch verification off.
//
// The serial line protocol of the Initial Enrolment Firmware is in package
// uart, beside this one.
package transport

import (
	"context"
	"crypto/tls"
	"net"
)

// Transport opens byte streams to one peer. Implementations are safe for
// concurrent use.
type Transport interface {
	// Dial opens a stream, or returns an error as soon as ctx ends. What it
	// returns must unblock Read and Write when it is closed or when a deadline
	// passes, as every net.Conn does.
	Dial(ctx context.Context) (net.Conn, error)
}

// Authenticator is a Transport that brings its own trust: the streams it opens
// are already encrypted and their peer is verified, as by a modem with TLS
// inside, or by [TLS].
type Authenticator interface {
	Transport
	// As returns a Transport to the same peer that presents id as its client
	// certificate. Its PrivateKey is the crypto.Signer that the key store
	// returned. A nil id presents none. The receiver is not changed.
	As(id *tls.Certificate) Transport
}

// Func makes a Transport of a dial function.
type Func func(ctx context.Context) (net.Conn, error)

// Dial calls f.
func (f Func) Dial(ctx context.Context) (net.Conn, error) { return f(ctx) }

// TCP returns a carrier that dials addr, "host:port", over TCP.
func TCP(addr string) Transport {
	return Func(func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", addr)
	})
}
