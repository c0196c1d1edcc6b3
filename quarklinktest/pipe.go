package quarklinktest

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

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

// pipeBuffer is how many bytes may be under way in each direction.
const pipeBuffer = 64 << 10

// Pipe returns the two ends of a byte stream in memory. It carries a device's
// connection to the instance, and it is a serial cable: each end is a uart.Port.
//
// Unlike net.Pipe it has a buffer, of 64 KiB in each direction, and ends as a
// TCP connection does: after one end is closed the other reads what was sent
// before, then io.EOF, and its writes fail with io.ErrClosedPipe. A call on an end
// that is closed itself fails with net.ErrClosed. A deadline that passes is
// os.ErrDeadlineExceeded. Errors other than io.EOF come in a *net.OpError. Each
// end also has CloseWrite() error, which closes one direction.
//
// Both ends are safe for concurrent use; a Write is not torn apart by others.
// Under testing/synctest a goroutine that waits here is durably blocked.
func Pipe() (device, tool net.Conn) {
	out, back := newStream(), newStream()
	return &pipe{in: back, out: out}, &pipe{in: out, out: back}
}

// pipe is one end: what it reads, and what it writes.
type pipe struct{ in, out *stream }

func (p *pipe) Read(b []byte) (int, error) {
	n, err := p.in.read(b)
	return n, opError("read", err)
}

func (p *pipe) Write(b []byte) (int, error) {
	n, err := p.out.write(b)
	return n, opError("write", err)
}

func (p *pipe) Close() error {
	p.in.closeReader()
	p.out.closeWriter()
	return nil
}

// CloseWrite ends what this end writes, as of a TCP connection; it goes on to read.
func (p *pipe) CloseWrite() error {
	p.out.closeWriter()
	return nil
}

func (p *pipe) SetDeadline(t time.Time) error {
	p.SetReadDeadline(t)
	return p.SetWriteDeadline(t)
}

func (p *pipe) SetReadDeadline(t time.Time) error {
	return opError("set", p.in.setDeadline(&p.in.reader, t))
}

func (p *pipe) SetWriteDeadline(t time.Time) error {
	return opError("set", p.out.setDeadline(&p.out.writer, t))
}

func (p *pipe) LocalAddr() net.Addr  { return pipeAddr{} }
func (p *pipe) RemoteAddr() net.Addr { return pipeAddr{} }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "pipe" }

func opError(op string, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	return &net.OpError{Op: op, Net: "pipe", Source: pipeAddr{}, Addr: pipeAddr{}, Err: err}
}

// stream is one direction. All waiting is on its condition, also that of one
// writer for another: who waits for a mutex is not durably blocked.
type stream struct {
	mu      sync.Mutex
	changed sync.Cond
	data    []byte // under way, at most pipeBuffer
	busy    bool   // a write has begun and not ended

	reader, writer side
}

// side is what happened at one end of a stream.
type side struct {
	closed   bool
	deadline time.Time
	timer    *time.Timer // wakes who waits, at the deadline
}

func (s *side) expired() bool { return !s.deadline.IsZero() && !time.Now().Before(s.deadline) }

func newStream() *stream {
	s := new(stream)
	s.changed.L = &s.mu
	return s
}

func (s *stream) read(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.reader.closed:
			return 0, net.ErrClosed
		case s.reader.expired():
			return 0, os.ErrDeadlineExceeded
		case len(b) == 0:
			return 0, nil
		case len(s.data) > 0:
			n := copy(b, s.data)
			s.data = append(s.data[:0], s.data[n:]...)
			s.changed.Broadcast()
			return n, nil
		case s.writer.closed:
			return 0, io.EOF
		}
		s.changed.Wait()
	}
}

func (s *stream) write(b []byte) (n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	mine := false
	defer func() {
		if mine {
			s.busy = false
			s.changed.Broadcast()
		}
	}()
	for {
		switch {
		case s.writer.closed:
			return n, net.ErrClosed
		case s.reader.closed:
			return n, io.ErrClosedPipe
		case s.writer.expired():
			return n, os.ErrDeadlineExceeded
		case n == len(b):
			return n, nil
		case mine || !s.busy:
			mine, s.busy = true, true
			if m := min(pipeBuffer-len(s.data), len(b)-n); m > 0 {
				s.data = append(s.data, b[n:n+m]...)
				n += m
				s.changed.Broadcast()
				if n == len(b) {
					return n, nil
				}
			}
		}
		s.changed.Wait()
	}
}

func (s *stream) closeReader() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reader.close()
	s.changed.Broadcast()
}

func (s *stream) closeWriter() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writer.close()
	s.changed.Broadcast()
}

func (s *side) close() {
	s.closed = true
	if s.timer != nil {
		s.timer.Stop()
	}
}

func (s *stream) setDeadline(side *side, t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if side.closed {
		return net.ErrClosed
	}
	if side.timer != nil {
		side.timer.Stop()
		side.timer = nil
	}
	side.deadline = t
	if wait := time.Until(t); !t.IsZero() && wait > 0 {
		side.timer = time.AfterFunc(wait, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.changed.Broadcast()
		})
	}
	s.changed.Broadcast()
	return nil
}
