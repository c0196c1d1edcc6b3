package uart

import (
	"bytes"
	"context"
	"encoding/pem"
	"io"
	"os"
	"slices"
	"sync"
	"testing"
	"time"
)

// line is one direction of a serial line in memory: writes never wait, reads
// do. It knows deadlines, and lives on virtual time under testing/synctest.
type line struct {
	mu       sync.Mutex
	changed  *sync.Cond
	buf      []byte
	log      []byte // all that was ever written
	writes   int
	atMost   int // bytes that one Read returns; 0: any number
	closed   bool
	deadline time.Time
	timer    *time.Timer
}

func newLine() *line {
	l := new(line)
	l.changed = sync.NewCond(&l.mu)
	return l
}

func (l *line) write(p []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf = append(l.buf, p...)
	l.log = append(l.log, p...)
	l.writes++
	l.changed.Broadcast()
}

func (l *line) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.changed.Broadcast()
}

func (l *line) sent() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.log)
}

func (l *line) read(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		switch {
		// As os.File and net.Conn do: the deadline counts even if bytes are there.
		case !l.deadline.IsZero() && !time.Now().Before(l.deadline):
			return 0, os.ErrDeadlineExceeded
		case len(l.buf) > 0:
			if l.atMost > 0 {
				p = p[:min(len(p), l.atMost)]
			}
			n := copy(p, l.buf)
			l.buf = l.buf[n:]
			return n, nil
		case l.closed:
			return 0, io.EOF
		}
		l.changed.Wait()
	}
}

func (l *line) setDeadline(t time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.timer != nil {
		l.timer.Stop()
	}
	l.deadline = t
	if !t.IsZero() {
		l.timer = time.AfterFunc(time.Until(t), func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.changed.Broadcast()
		})
	}
	l.changed.Broadcast()
}

// end is one end of a serial line.
type end struct{ in, out *line }

// newWire returns the device's end and the tool's end of a line.
func newWire() (device, tool *end) {
	a, b := newLine(), newLine()
	return &end{in: a, out: b}, &end{in: b, out: a}
}

func (e *end) Read(p []byte) (int, error)        { return e.in.read(p) }
func (e *end) Write(p []byte) (int, error)       { e.out.write(p); return len(p), nil }
func (e *end) SetReadDeadline(t time.Time) error { e.in.setDeadline(t); return nil }

func (e *end) deadline() time.Time {
	e.in.mu.Lock()
	defer e.in.mu.Unlock()
	return e.in.deadline
}

// play is a tool made by hand. For each request that comes it calls the next
// function with what it may answer through say; further requests are ignored.
// It ends when the test does. It returns the requests seen so far.
func play(t *testing.T, tool *end, steps ...func(say func(string))) (requests func() []string) {
	t.Helper()
	var mu sync.Mutex
	var seen []string
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		release := interrupt(ctx, tool)
		defer release()
		var find finder
		var one [1]byte
		for {
			if _, err := tool.Read(one[:]); err != nil {
				return
			}
			key := find.add(one[0])
			if key == "" {
				continue
			}
			mu.Lock()
			seen = append(seen, key)
			n := len(seen)
			mu.Unlock()
			if n <= len(steps) && steps[n-1] != nil {
				steps[n-1](func(s string) { tool.Write([]byte(s)) })
			}
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(seen)
	}
}

// says answers at once.
func says(s string) func(func(string)) {
	return func(say func(string)) { say(s) }
}

// testFile returns a file of testdata.
func testFile(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// testRoot returns the DER of a PEM file of testdata.
func testRoot(t testing.TB, name string) []byte {
	t.Helper()
	block, rest := pem.Decode(testFile(t, name))
	if block == nil || len(bytes.TrimSpace(rest)) > 0 {
		t.Fatalf("%s is not one PEM block", name)
	}
	return block.Bytes
}
