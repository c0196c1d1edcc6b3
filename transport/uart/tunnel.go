package uart

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/quarklink-go/quarklink/transport/uart/tunnel"
)

// ErrTunnelBusy means that the tunnel has a stream already: a cable carries one
// at a time.
var ErrTunnelBusy = errors.New("uart: the tunnel carries a stream already; close that first")

// closeWait is how long Close waits for the peer to acknowledge what was
// written. In that time 115200 baud carry 11 KB, which is more than there can be.
const closeWait = time.Second

// Tunnel carries a device's byte streams to its instance through the serial line
// and the tool at its other end (see [Tool.Instance]): it is the
// transport.Transport of a device that has no network. The tool sees what passes,
// so the Client of package quarklink runs TLS through it, and so does
// transport.TLS{Under: tunnel}.
//
// A stream survives lost, damaged and repeated bytes, and console lines of either
// side between them. It ends with an error if the tool is restarted, cannot reach
// the instance, or says nothing for Patience. Specification: docs/tunnel.md.
//
// Port and Random are required, the other fields may stay zero; they must not be
// changed after the first Dial. Dial is safe for concurrent use, but the line
// carries one stream at a time, and no conversation ([Device]) meanwhile: a
// second Dial returns [ErrTunnelBusy] until the first stream is closed.
type Tunnel struct {
	// Port is the line. While there is a stream one goroutine reads it; it ends
	// when the stream is closed.
	Port Port
	// Random makes the numbers that tell one stream from another, eight bytes for
	// each: crypto/rand's Reader, or the chip's generator. They need not be
	// secret, but a device that starts up with the same ones relies on the tool's.
	Random io.Reader
	// Timeout is how long to wait for the tool's answer to the request for a
	// tunnel before it is sent again. 0 means 1 s.
	Timeout time.Duration
	// Tries is how often that request is sent at most. 0 means 5.
	Tries int
	// Options choose memory and patience of a stream. Zero: 8 KiB, 20 s.
	Options tunnel.Options

	mu     sync.Mutex
	device *Device     // asks for the tunnel
	end    *tunnel.End // serves one stream after the other
	epoch  time.Time
	live   *stream // the last one
}

// Dial asks the tool for a stream to the instance, and returns it when the tool
// has reached the instance. It is a net.Conn with deadlines and with
// CloseWrite() error; its Close waits, for up to one second, until the tool has
// acknowledged what was written, and leaves the port free.
//
// Errors: [ErrUnsupported] from a tool that knows no tunnels or carries none;
// and, in a *net.OpError, [ErrNoAnswer], those of package tunnel, such as
// tunnel.ErrUnreachable, [ErrTunnelBusy], the context's, and the port's.
func (t *Tunnel) Dial(ctx context.Context) (net.Conn, error) {
	s, err := t.dial(ctx)
	if err != nil && (errors.Is(err, ErrUnsupported) || errors.Is(err, ErrRefused)) {
		return nil, err // not a *net.OpError: another try is of no use
	}
	if err != nil {
		return nil, opError("dial", err)
	}
	return s, nil
}

func (t *Tunnel) dial(ctx context.Context) (*stream, error) {
	if t.Port == nil || t.Random == nil {
		return nil, errors.New("a Tunnel needs a Port and a Random, such as crypto/rand's Reader")
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var nonce [8]byte
	if _, err := io.ReadFull(t.Random, nonce[:]); err != nil {
		return nil, fmt.Errorf("make a nonce: %w", err)
	}
	s, err := t.claim(ctx)
	if err != nil {
		return nil, err
	}
	if err := t.ask(ctx); err != nil {
		close(s.gone)
		return nil, err
	}
	s.mu.Lock()
	s.end.Open(s.now(), nonce)
	s.mu.Unlock()
	go s.serve()
	if err := s.await(ctx); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// claim takes the line for a new stream, when the one before has left it.
func (t *Tunnel) claim(ctx context.Context) (*stream, error) {
	for {
		t.mu.Lock()
		before := t.live
		if before == nil || isClosed(before.gone) {
			if t.end == nil {
				t.end, t.epoch = tunnel.New(t.Options), time.Now()
				t.device = &Device{Port: t.Port, Timeout: t.Timeout, Tries: t.Tries}
				if t.Timeout <= 0 {
					t.device.Timeout = time.Second
				}
			}
			t.live = &stream{link: newLink(t.Port, t.end, t.epoch), gone: make(chan struct{})}
			defer t.mu.Unlock()
			return t.live, nil
		}
		t.mu.Unlock()
		before.mu.Lock()
		leaving := before.closed
		before.mu.Unlock()
		if !leaving {
			return nil, ErrTunnelBusy
		}
		select {
		case <-before.gone:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func isClosed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// ask asks the tool for a tunnel, in the conversation of the provisioning.
func (t *Tunnel) ask(ctx context.Context) error {
	return t.device.exchange(ctx, KeyTunnel, KeyTunnel, func(reply []byte) error {
		if string(reply) != replyOK {
			return errors.New("neither a yes nor a refusal")
		}
		return nil
	})
}

// await returns when the stream is there.
func (s *stream) await(ctx context.Context) error {
	stop := context.AfterFunc(ctx, s.wake)
	defer stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.flush()
	for !s.end.Established() {
		if err := ctx.Err(); err != nil {
			return err
		}
		if s.end.Done() {
			return s.over()
		}
		s.changed.Wait()
	}
	return nil
}

// serve reads the line for as long as there is a stream and it is not closed.
func (s *stream) serve() {
	defer close(s.gone)
	defer s.release()
	chunk := make([]byte, 256)
	for {
		n, err := s.read(chunk)
		s.mu.Lock()
		s.end.Input(s.now(), chunk[:n])
		if err != nil {
			s.fail(err)
		}
		s.flush()
		s.changed.Broadcast()
		over := s.broken != nil || s.closed && s.left()
		if over {
			s.alone()
		}
		s.mu.Unlock()
		if over {
			return
		}
	}
}

// left takes what comes after Close, and reports whether the stream has left the
// line. It is called with the lock held.
func (s *stream) left() bool {
	var scratch [64]byte
	for s.end.Read(s.now(), scratch[:]) > 0 {
	}
	if !s.end.Done() && !s.end.Flushed() && s.now() < s.wakeAt {
		s.flush()
		return false
	}
	for range 2 { // nobody will be there to say it again
		s.end.Reset(s.now(), tunnel.ReasonClosed)
		s.flush()
	}
	return true
}
