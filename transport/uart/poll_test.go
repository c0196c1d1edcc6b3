package uart

import (
	"errors"
	"io"
	"os"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// ring is a serial port such as TinyGo's machine.UART: Read returns (0, nil)
// when nothing is there.
type ring struct{ in, out *line }

func (r ring) Read(p []byte) (int, error) {
	r.in.mu.Lock()
	defer r.in.mu.Unlock()
	if len(r.in.buf) == 0 && r.in.closed {
		return 0, io.ErrClosedPipe
	}
	n := copy(p, r.in.buf)
	r.in.buf = r.in.buf[n:]
	return n, nil
}

func (r ring) Write(p []byte) (int, error) { r.out.write(p); return len(p), nil }

func TestPollDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in := newLine()
		port := Poll(ring{in: in}, 0)
		var b [8]byte
		start := time.Now()

		port.SetReadDeadline(start.Add(10500 * time.Microsecond))
		n, err := port.Read(b[:])
		if took := time.Since(start); n != 0 || err != os.ErrDeadlineExceeded || took != 10500*time.Microsecond {
			t.Errorf("%d, %v after %v", n, err, took)
		}
		in.write([]byte("ab"))
		if n, err := port.Read(b[:]); n != 2 || err != nil {
			t.Errorf("after the deadline: %d, %v", n, err)
		}

		// No deadline, then one that is set while Read waits.
		port.SetReadDeadline(time.Time{})
		time.AfterFunc(time.Minute, func() { port.SetReadDeadline(time.Now()) })
		start = time.Now()
		_, err = port.Read(b[:])
		if took := time.Since(start); !errors.Is(err, os.ErrDeadlineExceeded) || took > time.Minute+time.Millisecond {
			t.Errorf("%v after %v", err, took)
		}

		port.SetReadDeadline(time.Time{})
		if n, err := port.Read(nil); n != 0 || err != nil {
			t.Errorf("empty buffer: %d, %v", n, err)
		}
		time.AfterFunc(time.Second, in.close)
		if _, err := port.Read(b[:]); err != io.ErrClosedPipe {
			t.Error(err)
		}
	})
}

// Both sides on polled ports.
func TestPollConversation(t *testing.T) {
	in(t, func(t *testing.T, d *Device, toolEnd *end) {
		d.Port = Poll(ring{toolEnd.out, toolEnd.in}, 5*time.Millisecond)
		stop := serve(t, &Tool{Endpoint: "myql.quarklink.io", RootCA: testRoot(t, "p256.pem"), SSID: "Workshop"},
			Poll(ring{toolEnd.in, toolEnd.out}, 0))
		got, err := all(t.Context(), d)
		if err != nil || !slices.Equal(got[:4], []string{"Workshop", "", "myql.quarklink.io", "6000"}) {
			t.Errorf("%.60q, %v", got, err)
		}
		stop()
		d.Port = toolEnd // which has no deadline left either
	})
}
