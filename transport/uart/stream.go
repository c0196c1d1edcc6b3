package uart

import (
	"io"
	"net"
	"os"
	"time"

	"github.com/quarklink-go/quarklink/transport/uart/tunnel"
)

// stream is the net.Conn of a stream through the tunnel. All its state is guarded
// by the link's lock.
type stream struct {
	*link
	closed   bool
	finished bool // CloseWrite was called
	writing  bool // a Write is under way; others wait, so that none is torn apart

	readUntil, writeUntil until

	// gone is closed when the goroutine has ended that reads the port for this
	// stream alone. nil: the tool's, which reads the port whether there is a
	// stream or not.
	gone chan struct{}
}

// until is a deadline of a stream. Its timer is made once and set again.
type until struct {
	at    time.Time
	timer *time.Timer
}

func (u *until) over() bool { return !u.at.IsZero() && !time.Now().Before(u.at) }

// set is called with the lock held.
func (u *until) set(t time.Time, wake func()) {
	if u.timer != nil {
		u.timer.Stop()
	}
	u.at = t
	wait := time.Until(t)
	if t.IsZero() || wait <= 0 {
		return
	}
	if u.timer == nil {
		u.timer = time.AfterFunc(wait, wake)
		return
	}
	u.timer.Reset(wait)
}

func (s *stream) wake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changed.Broadcast()
}

// Read returns what has come, as soon as there is any; io.EOF after all of it
// when the peer has closed its side.
func (s *stream) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.closed:
			return 0, opError("read", net.ErrClosed)
		case s.readUntil.over():
			return 0, opError("read", os.ErrDeadlineExceeded)
		case len(p) == 0:
			return 0, nil
		}
		if n := s.end.Read(s.now(), p); n > 0 {
			s.flush()
			return n, nil
		}
		switch {
		case s.end.EOF():
			return 0, io.EOF
		case s.end.Done():
			return 0, opError("read", s.over())
		}
		s.changed.Wait()
	}
}

// Write returns when the tunnel has taken all of p, not when the peer has.
func (s *stream) Write(p []byte) (n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	mine := false
	defer func() {
		if mine {
			s.writing = false
			s.changed.Broadcast()
		}
	}()
	for {
		switch {
		case s.closed:
			return n, opError("write", net.ErrClosed)
		case s.end.Done():
			return n, opError("write", s.over())
		case s.writeUntil.over():
			return n, opError("write", os.ErrDeadlineExceeded)
		case s.finished:
			return n, opError("write", io.ErrClosedPipe)
		}
		if mine || !s.writing {
			mine, s.writing = true, true
			m := s.end.Write(s.now(), p[n:])
			n += m
			if m > 0 {
				s.flush()
			}
			if n == len(p) {
				return n, nil
			}
			if m > 0 {
				continue // room may have come while the lock was given up
			}
		}
		s.changed.Wait()
	}
}

// over returns why the stream is over.
func (s *stream) over() error {
	if err := s.end.Err(); err != nil {
		return err
	}
	return io.ErrClosedPipe
}

// CloseWrite tells the peer that nothing more will be written; it may go on to.
func (s *stream) CloseWrite() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return opError("close", net.ErrClosed)
	case s.end.Done():
		return opError("close", s.over())
	}
	s.finished = true
	s.end.CloseWrite(s.now())
	s.flush()
	s.changed.Broadcast()
	return nil
}

func (s *stream) SetDeadline(t time.Time) error {
	s.SetReadDeadline(t)
	return s.SetWriteDeadline(t)
}

func (s *stream) SetReadDeadline(t time.Time) error  { return s.setDeadline(&s.readUntil, t) }
func (s *stream) SetWriteDeadline(t time.Time) error { return s.setDeadline(&s.writeUntil, t) }

func (s *stream) setDeadline(u *until, t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return opError("set", net.ErrClosed)
	}
	u.set(t, s.wake)
	s.changed.Broadcast()
	return nil
}

// shut makes everything that waits for the stream, and all to come, fail. It is
// called with the lock held, and reports whether it was the first to be.
func (s *stream) shut() bool {
	if s.closed {
		return false
	}
	s.closed = true
	s.readUntil.set(time.Time{}, nil)
	s.writeUntil.set(time.Time{}, nil)
	s.changed.Broadcast()
	return true
}

// Close on the device's side sends what was written, tells the peer that the
// stream is closed, and returns when the port is free. See [Tunnel.Dial]. On the
// tool's side it resets the stream.
func (s *stream) Close() error {
	if !s.hangUp(tunnel.ReasonClosed) {
		return opError("close", net.ErrClosed)
	}
	return nil
}

// hangUp closes the stream and reports whether it was the first to.
func (s *stream) hangUp(reason tunnel.Reason) bool {
	s.mu.Lock()
	first := s.shut()
	if first && s.gone == nil {
		s.end.Reset(s.now(), reason)
	} else if first {
		s.wakeAt, s.armed = s.now(), -1 // whoever else may have used the port
		if s.end.Established() {
			s.end.CloseWrite(s.now())
			s.wakeAt += closeWait
		}
	}
	s.flush()
	s.mu.Unlock()
	if s.gone != nil {
		<-s.gone
	}
	return first
}

func (s *stream) LocalAddr() net.Addr  { return address{} }
func (s *stream) RemoteAddr() net.Addr { return address{} }

type address struct{}

func (address) Network() string { return "uart" }
func (address) String() string  { return "tunnel" }

func opError(op string, err error) error {
	return &net.OpError{Op: op, Net: "uart", Source: address{}, Addr: address{}, Err: err}
}
