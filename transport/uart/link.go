package uart

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/quarklink-go/quarklink/transport/uart/tunnel"
)

const (
	// frameLimit and replyLimit are how long a line may refuse to take a frame of
	// the tunnel or a reply of the conversation. What it has not taken by then is
	// lost, with which both can live: a terminal whose other end nobody reads must
	// not keep this end from reading.
	frameLimit = time.Second
	replyLimit = 10 * time.Second
	// again is when the deadline is looked at again that has passed while
	// somebody was writing.
	again = 20 * time.Millisecond
)

// link drives an end of the tunnel at a port. One goroutine reads the port. Any
// may use the stream, and sends itself what there is to send then, so that
// nobody has to wake the one that reads.
type link struct {
	port  Port
	epoch time.Time // the zero of the End's time

	mu      sync.Mutex
	changed sync.Cond // whenever anything of the stream may have changed
	end     *tunnel.End
	sending bool          // somebody is, and will send what comes to be sent too
	reply   []byte        // of the conversation, goes before the frames
	out     []byte        // what is being sent
	armed   time.Duration // the port's read deadline
	wakeAt  time.Duration // read is to return then, if not 0
	stopped bool          // reading is to end
	broken  error         // how the port has failed
}

func newLink(port Port, end *tunnel.End, epoch time.Time) *link {
	l := &link{port: port, epoch: epoch, end: end, armed: -1, out: make([]byte, 0, 256)}
	l.changed.L = &l.mu
	return l
}

func (l *link) now() time.Duration { return time.Since(l.epoch) }

// read waits for bytes from the line, or until the End has something to do.
func (l *link) read(chunk []byte) (int, error) {
	l.mu.Lock()
	err := l.arm()
	l.mu.Unlock()
	if err != nil {
		return 0, err
	}
	n, err := l.port.Read(chunk)
	switch {
	case n > 0:
		return n, nil
	case err == nil:
		time.Sleep(time.Millisecond) // a port that should be in Poll
	case !errors.Is(err, os.ErrDeadlineExceeded):
		return 0, fmt.Errorf("read: %w", err)
	}
	return 0, nil
}

// arm sets the port's read deadline for what the End waits for. It is called
// with the lock held, whenever that may have changed.
func (l *link) arm() error {
	at := l.end.Deadline()
	if l.wakeAt > 0 {
		at = min(at, l.wakeAt)
	}
	if l.sending {
		at = max(at, l.now()+again)
	}
	if l.stopped {
		at = 0 // a deadline in the past is not a date long ago: a device's clock may start at 1970
	}
	if at == l.armed {
		return nil
	}
	var deadline time.Time
	if at != tunnel.Never {
		deadline = l.epoch.Add(at)
	}
	l.armed = at
	return setReadDeadline(l.port, deadline)
}

// stop makes a Read that waits, and all to come, return. It is called with the
// lock held.
func (l *link) stop() {
	l.stopped = true
	l.arm()
	if w, ok := l.port.(writeDeadliner); ok {
		w.SetWriteDeadline(time.Now())
	}
}

// release leaves no deadline on the port.
func (l *link) release() {
	l.port.SetReadDeadline(time.Time{})
	if w, ok := l.port.(writeDeadliner); ok {
		w.SetWriteDeadline(time.Time{})
	}
}

// flush sends all that there is to send. It is called with the lock held, which
// it gives up while the port takes the bytes.
func (l *link) flush() {
	if l.sending {
		return
	}
	l.sending = true
	for l.broken == nil {
		out, limit := l.reply, replyLimit
		if l.reply = nil; out == nil {
			l.out, limit = append(l.out[:0], l.end.Output(l.now())...), frameLimit
			out = l.out
		}
		if len(out) == 0 {
			break
		}
		l.mu.Unlock()
		err := l.write(out, limit)
		l.mu.Lock()
		if err != nil {
			l.fail(fmt.Errorf("write: %w", err))
		}
	}
	l.sending = false
	l.arm()
	l.changed.Broadcast() // for who waits to be alone
}

// alone waits until nobody is sending. It is called with the lock held.
func (l *link) alone() {
	for l.sending {
		l.changed.Wait()
	}
}

// write gives bytes to the port, or loses them if that takes too long.
func (l *link) write(p []byte, limit time.Duration) error {
	if w, ok := l.port.(writeDeadliner); ok {
		w.SetWriteDeadline(time.Now().Add(limit))
	}
	if _, err := l.port.Write(p); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return nil
}

// fail ends the stream because the port has failed. It is called with the lock
// held.
func (l *link) fail(err error) {
	if l.broken == nil {
		l.broken = err
	}
	l.end.Drop(l.broken)
	l.stopped = true
	l.changed.Broadcast()
}
