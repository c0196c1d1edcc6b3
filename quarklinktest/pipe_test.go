package quarklinktest_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quarklink-go/quarklink/quarklinktest"
	"github.com/quarklink-go/quarklink/transport/uart"
)

var _ uart.Port = net.Conn(nil)

func ExamplePipe() {
	device, tool := quarklinktest.Pipe()
	fmt.Fprint(device, "IEF DATA\n")
	device.Close()
	text, err := io.ReadAll(tool) // what was sent before, then the end
	fmt.Printf("%q %v\n", text, err)
	// Output: "IEF DATA\n" <nil>
}

// bothWays runs a test on a pipe in each direction, in a bubble of its own.
func bothWays(t *testing.T, test func(t *testing.T, a, b net.Conn)) {
	t.Helper()
	for _, name := range []string{"device to tool", "tool to device"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := quarklinktest.Pipe()
				defer a.Close()
				defer b.Close()
				if name == "tool to device" {
					a, b = b, a
				}
				test(t, a, b)
			})
		})
	}
}

// Bytes arrive in order and whole, whatever the sizes of writes and reads.
func TestPipeCarries(t *testing.T) {
	bothWays(t, func(t *testing.T, a, b net.Conn) {
		sent := make([]byte, 1<<20)
		r := rand.NewChaCha8([32]byte{1})
		r.Read(sent)
		sizes := rand.New(r)
		go func() {
			for rest := sent; len(rest) > 0; {
				n := min(len(rest), sizes.IntN(200_000))
				if m, err := a.Write(rest[:n]); m != n || err != nil {
					t.Errorf("write: %d of %d, %v", m, n, err)
				}
				rest = rest[n:]
			}
			a.Close()
		}()
		var got bytes.Buffer
		buf := make([]byte, 70_000)
		for {
			n, err := b.Read(buf[:1+got.Len()%len(buf)])
			got.Write(buf[:n])
			if err == io.EOF {
				break
			}
			if err != nil || n == 0 {
				t.Fatalf("read: %d, %v", n, err)
			}
		}
		if !bytes.Equal(got.Bytes(), sent) {
			t.Error("other bytes")
		}
	})
}

// Both directions work at once, and a Write is not torn apart by another.
func TestPipeIsConcurrent(t *testing.T) {
	bothWays(t, func(t *testing.T, a, b net.Conn) {
		const writers, size = 8, 100_000 // each more than the buffer holds
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				if _, err := a.Write(bytes.Repeat([]byte{byte(w)}, size)); err != nil {
					t.Error(err)
				}
			})
			wg.Go(func() {
				if _, err := b.Write([]byte{byte(w)}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Go(func() {
			buf := make([]byte, size)
			seen := map[byte]bool{}
			for range writers {
				if _, err := io.ReadFull(b, buf); err != nil {
					t.Error(err)
				}
				seen[buf[0]] = true
				if n := bytes.Count(buf, buf[:1]); n != size {
					t.Errorf("a write of %d bytes came in pieces", size)
				}
			}
			if len(seen) != writers {
				t.Errorf("%d of %d writes", len(seen), writers)
			}
		})
		wg.Go(func() {
			if _, err := io.ReadFull(a, make([]byte, writers)); err != nil {
				t.Error(err)
			}
		})
		wg.Wait()
	})
}

// A write waits for room, and for nothing else.
func TestPipeIsBounded(t *testing.T) {
	bothWays(t, func(t *testing.T, a, b net.Conn) {
		if n, err := a.Write(make([]byte, 64<<10)); n != 64<<10 || err != nil {
			t.Fatalf("a full buffer: %d, %v", n, err)
		}
		a.SetWriteDeadline(time.Now().Add(time.Second))
		start := time.Now()
		n, err := a.Write(make([]byte, 10))
		if n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != time.Second {
			t.Fatalf("no room: %d, %v after %v", n, err, time.Since(start))
		}
		b.Read(make([]byte, 4))
		a.SetWriteDeadline(time.Now().Add(time.Second))
		if n, err = a.Write(make([]byte, 10)); n != 4 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("room for half: %d, %v", n, err)
		}
		// The write after one that was cut short goes on.
		a.SetWriteDeadline(time.Time{})
		go io.ReadAll(b)
		if n, err = a.Write(make([]byte, 100_000)); n != 100_000 || err != nil {
			t.Fatalf("room again: %d, %v", n, err)
		}
	})
}

func TestPipeReadDeadline(t *testing.T) {
	bothWays(t, func(t *testing.T, a, b net.Conn) {
		buf := make([]byte, 10)
		read := func(want error, after time.Duration) {
			t.Helper()
			start := time.Now()
			n, err := a.Read(buf)
			if !errors.Is(err, want) || n != 0 && err != nil || time.Since(start) != after {
				t.Fatalf("read %d, %v after %v; want %v after %v", n, err, time.Since(start), want, after)
			}
		}
		a.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		read(os.ErrDeadlineExceeded, 100*time.Millisecond)
		read(os.ErrDeadlineExceeded, 0)
		var timeout net.Error
		if _, err := a.Read(buf); !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("%v is no time-out to package net", err)
		}

		b.Write([]byte("x"))
		read(os.ErrDeadlineExceeded, 0) // as on a socket, though a byte is there
		a.SetReadDeadline(time.Time{})
		read(nil, 0)

		// Set while a Read waits: earlier, later, and none.
		a.SetReadDeadline(time.Now().Add(time.Hour))
		time.AfterFunc(time.Second, func() { a.SetReadDeadline(time.Now()) })
		read(os.ErrDeadlineExceeded, time.Second)
		a.SetReadDeadline(time.Now().Add(time.Second))
		time.AfterFunc(time.Second/2, func() { a.SetReadDeadline(time.Now().Add(time.Minute)) })
		read(os.ErrDeadlineExceeded, time.Minute+time.Second/2)
		a.SetReadDeadline(time.Now().Add(time.Second))
		time.AfterFunc(time.Second/2, func() { a.SetReadDeadline(time.Time{}) })
		time.AfterFunc(time.Hour, func() { b.Write([]byte("x")) })
		read(nil, time.Hour)

		// One for reading does not concern writing, or the other end.
		a.SetReadDeadline(time.Now())
		if _, err := a.Write([]byte("y")); err != nil {
			t.Error(err)
		}
		if _, err := b.Read(buf); err != nil {
			t.Error(err)
		}
		a.SetDeadline(time.Now())
		if _, err := a.Write([]byte("y")); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("write after SetDeadline: %v", err)
		}
	})
}

func TestPipeClose(t *testing.T) {
	bothWays(t, func(t *testing.T, a, b net.Conn) {
		buf := make([]byte, 10)
		a.Write([]byte("pending"))
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		if err := a.Close(); err != nil {
			t.Errorf("close again: %v", err)
		}
		if _, err := a.Read(buf); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read after close: %v", err)
		}
		if _, err := a.Write(buf); !errors.Is(err, net.ErrClosed) {
			t.Errorf("write after close: %v", err)
		}
		if err := a.SetDeadline(time.Now()); !errors.Is(err, net.ErrClosed) {
			t.Errorf("deadline after close: %v", err)
		}
		if _, err := b.Write(buf); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("write to a closed end: %v", err)
		}
		if n, err := b.Read(buf); string(buf[:n]) != "pending" || err != nil {
			t.Errorf("what was sent before: %q, %v", buf[:n], err)
		}
		for range 2 {
			if n, err := b.Read(buf); n != 0 || err != io.EOF {
				t.Errorf("at the end: %d, %v", n, err)
			}
		}
	})
}

// Closing either end wakes who waits there, and at the other end.
func TestPipeCloseWakes(t *testing.T) {
	bothWays(t, func(t *testing.T, a, b net.Conn) {
		a.Write(make([]byte, 64<<10))
		var wg sync.WaitGroup
		wait := func(what string, op func([]byte) (int, error), want error) {
			wg.Go(func() {
				if _, err := op(make([]byte, 1)); !errors.Is(err, want) {
					t.Errorf("%s: %v, want %v", what, err, want)
				}
			})
		}
		wait("write that waits for room", a.Write, io.ErrClosedPipe)
		wait("write that waits for a write", a.Write, io.ErrClosedPipe)
		wait("read at the other end", a.Read, io.EOF)
		synctest.Wait()
		b.Close()
		wg.Wait()
	})
	bothWays(t, func(t *testing.T, a, b net.Conn) {
		a.Write(make([]byte, 64<<10))
		var wg sync.WaitGroup
		for _, op := range []func([]byte) (int, error){a.Read, a.Write} {
			wg.Go(func() {
				if _, err := op(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
					t.Errorf("%v", err)
				}
			})
		}
		synctest.Wait()
		a.Close()
		wg.Wait()
	})
}

func TestPipeEmptyReadAndWrite(t *testing.T) {
	bothWays(t, func(t *testing.T, a, b net.Conn) {
		if n, err := a.Read(nil); n != 0 || err != nil {
			t.Errorf("read nothing: %d, %v", n, err)
		}
		a.Write(make([]byte, 64<<10))
		if n, err := a.Write(nil); n != 0 || err != nil {
			t.Errorf("write nothing: %d, %v", n, err)
		}
		if a.LocalAddr().Network() != "pipe" || b.RemoteAddr().String() != "pipe" {
			t.Error("addresses")
		}
	})
}

// The carrier's cost beside a loopback socket, in one run: 1 means as fast.
func BenchmarkPipe(b *testing.B) {
	transfer := func(b *testing.B, from, to net.Conn, n int) time.Duration {
		start := time.Now()
		go func() {
			chunk := make([]byte, 16<<10)
			for range n {
				from.Write(chunk)
			}
			from.Close()
		}()
		if got, err := io.Copy(io.Discard, to); err != nil || got != int64(n)*16<<10 {
			b.Fatal(got, err)
		}
		return time.Since(start)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	dialled, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	accepted, err := l.Accept()
	if err != nil {
		b.Fatal(err)
	}
	defer accepted.Close()
	from, to := quarklinktest.Pipe()
	b.SetBytes(16 << 10)
	b.ResetTimer()
	ours := transfer(b, from, to, b.N)
	b.StopTimer()
	b.ReportMetric(float64(transfer(b, dialled, accepted, b.N))/float64(ours), "tcp/pipe")
}
