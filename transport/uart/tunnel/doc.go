// Package tunnel is the reliable byte stream that runs through a serial cable
// between a device and a provisioning tool: a state machine into which the
// caller puts the bytes that came from the line and the time, and from which it
// takes the bytes for the line and the time at which to call again. It starts
// no goroutine, knows no port and no clock, and allocates nothing once [New]
// has made its buffers, so that a microcontroller's main loop can drive it.
//
// The wire format and the rules of both sides are in docs/tunnel.md, which is
// written for those who implement it in another language; its test vectors are
// in testdata. Package uart drives an [End] for Go programs: uart.Tunnel on the
// device's side and uart.Tool on the other.
//
// The stream has no secrecy and no authentication of its own: run TLS through
// it. What it promises is that the bytes that arrive are the bytes that were
// sent, from the first on, or that the stream ends with an error.
package tunnel
