package uart

import (
	"io"
	"os"
	"sync"
	"time"
)

// Poll makes a [Port] of a serial port whose Read returns (0, nil) when no byte
// is there: TinyGo's machine.UART, or go.bug.st/serial after SetReadTimeout.
// The Port's Read asks rw again every interval until a byte or an error comes,
// or until the deadline has passed: then it returns os.ErrDeadlineExceeded.
// What is there already is returned even when the deadline has passed.
//
// An interval of 0 means 1 ms: at 115200 baud 12 bytes arrive in that time, and
// must fit the port's own buffer (machine.UART's takes 128). If rw's Read waits
// by itself, as go.bug.st/serial does for its time-out, a deadline is noticed
// only when that wait is over: keep it at 20 ms or less.
//
// Read and Write may be called at the same time if rw allows that.
func Poll(rw io.ReadWriter, interval time.Duration) Port {
	if interval <= 0 {
		interval = time.Millisecond
	}
	return &polled{ReadWriter: rw, interval: interval}
}

type polled struct {
	io.ReadWriter
	interval time.Duration

	mu       sync.Mutex
	deadline time.Time
}

func (p *polled) SetReadDeadline(t time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.deadline = t
	return nil
}

// remaining returns how long Read may still wait, at most one interval.
func (p *polled) remaining() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.deadline.IsZero() {
		return p.interval
	}
	return min(p.interval, time.Until(p.deadline))
}

func (p *polled) Read(b []byte) (int, error) {
	for {
		n, err := p.ReadWriter.Read(b)
		if n > 0 || err != nil || len(b) == 0 {
			return n, err
		}
		wait := p.remaining()
		if wait <= 0 {
			return 0, os.ErrDeadlineExceeded
		}
		time.Sleep(wait)
	}
}
