// Package uart speaks QuarkLink's provisioning conversation over a serial
// line: [Device] asks, [Tool], the host program at the other end of the cable,
// answers. What they exchange is an instance (host name, port, root
// certificate), Wi-Fi parameters, and the device's DeviceID.
//
// # On the wire
//
// 115200 baud 8N1 is the usual setting of the line. The tool never speaks
// first. A request is the marker "IEF DATA\n", one NUL, and a key followed by
// "\n"; the key is one of the Key constants, or "deviceID:" followed by the
// DeviceID. The reply is the bare value, "ERROR refused" or "ERROR unsupported".
//
// Requests and keys are those of the vendor's Initial Enrolment Firmware (IEF)
// and so is the bare value; the vendor's own device ends a reply at a gap of
// 100 ms, has no checksum, and never asks twice. This package adds what makes
// the conversation hold on a real line, and stays understood by both the
// vendor's device and the vendor's tool:
//
//   - Tool ends a reply with "\n" (unless [Tool.NoTerminator]) and sends it in
//     one Write. Device takes "\n", "\r\n" or NUL as the end; a tool that sends
//     none of them is recognised by its first reply, see [Device].
//   - Device skips the lines of a console that shares the wire and lines that
//     cannot be a value of the key, and sends a request again when no answer
//     comes. A late answer never counts for the next key.
//
// There is no checksum: damage that leaves a valid value cannot be noticed
// here. A damaged host name or Wi-Fi password shows when it is used.
//
// # The tunnel
//
// A device without a network reaches its instance through the same line:
// [Tunnel] is the transport.Transport that it uses, and a Tool with an Instance
// carries its streams. TLS runs end to end through it. Its protocol is in package
// tunnel and in docs/tunnel.md.
//
// # Trust
//
// The conversation is in clear and the tool is not authenticated: who holds the
// cable decides which instance the device trusts. Provision where that is
// acceptable, such as on the production line.
//
// The package depends on neither crypto/tls nor crypto/x509, and on net for
// net.Conn alone, so that it fits firmware built with TinyGo. Package tunnel needs
// not even that.
package uart

import (
	"context"
	"fmt"
	"io"
	"time"
)

// Port is a serial line. A net.Conn is one, and so is an *os.File on a terminal
// device in raw mode; [Poll] makes one of a port whose Read does not wait.
//
// Read waits until there is at least one byte, or the deadline has passed: then
// its error is os.ErrDeadlineExceeded. The zero time means no deadline.
// SetReadDeadline may be called while a Read waits, and applies to it.
//
// While [Device] or [Tool] uses a Port it sets the deadlines as it needs, and
// leaves none behind. If the Port also has SetWriteDeadline(time.Time) error,
// a cancelled context ends a Write that waits; otherwise a Write must end by
// itself, as it does on a line without flow control.
type Port interface {
	io.ReadWriter
	SetReadDeadline(t time.Time) error
}

type writeDeadliner interface {
	SetWriteDeadline(t time.Time) error
}

// interrupt makes what waits on the port return when ctx is done. The function
// that it returns ends that and removes the deadlines; it must be called.
func interrupt(ctx context.Context, port Port) (release func()) {
	setBoth := func(t time.Time) {
		port.SetReadDeadline(t)
		if w, ok := port.(writeDeadliner); ok {
			w.SetWriteDeadline(t)
		}
	}
	fired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		setBoth(time.Now()) // not a date long ago: a device's clock may start at 1970
		close(fired)
	})
	return func() {
		if !stop() {
			<-fired // else it might set a deadline after we have removed it
		}
		setBoth(time.Time{})
	}
}

// setReadDeadline wraps the error of a port that knows no deadlines.
func setReadDeadline(port Port, t time.Time) error {
	if err := port.SetReadDeadline(t); err != nil {
		return fmt.Errorf("set the port's read deadline (if it has none, use Poll): %w", err)
	}
	return nil
}
