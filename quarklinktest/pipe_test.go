package quarklinktest_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

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
				m, err := a.Write(rest[:n])
				assert.Equal(t, n, m)
				assert.NoError(t, err)
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
			require.NoError(t, err)
			require.NotEqual(t, 0, n)
		}
		assert.Equal(t, sent, got.Bytes(), "other bytes")
	})
}

// Both directions work at once, and a Write is not torn apart by another.
func TestPipeIsConcurrent(t *testing.T) {
	bothWays(t, func(t *testing.T, a, b net.Conn) {
		const writers, size = 8, 100_000 // each more than the buffer holds
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				_, err := a.Write(bytes.Repeat([]byte{byte(w)}, size))
				assert.NoError(t, err)
			})
			wg.Go(func() {
				_, err := b.Write([]byte{byte(w)})
				assert.NoError(t, err)
			})
		}
		wg.Go(func() {
			buf := make([]byte, size)
			seen := map[byte]bool{}
			for range writers {
				_, err := io.ReadFull(b, buf)
				assert.NoError(t, err)
				seen[buf[0]] = true
				assert.Equal(t, size, bytes.Count(buf, buf[:1]), "a write of")
			}
			assert.Len(t, seen, writers)
		})
		wg.Go(func() {
			_, err := io.ReadFull(a, make([]byte, writers))
			assert.NoError(t, err)
		})
		wg.Wait()
	})
}

// A write waits for room, and for nothing else.
func TestPipeIsBounded(t *testing.T) {
	bothWays(t, func(t *testing.T, a, b net.Conn) {
		full, err := a.Write(make([]byte, 64<<10))
		require.NoError(t, err)
		require.Equal(t, 64<<10, full)
		a.SetWriteDeadline(time.Now().Add(time.Second))
		start := time.Now()
		n, err := a.Write(make([]byte, 10))
		require.Equal(t, 0, n, "no room")
		require.ErrorIs(t, err, os.ErrDeadlineExceeded, "no room")
		require.Equal(t, time.Second, time.Since(start), "no room")
		b.Read(make([]byte, 4))
		a.SetWriteDeadline(time.Now().Add(time.Second))
		n, err = a.Write(make([]byte, 10))
		require.Equal(t, 4, n, "room for half")
		require.ErrorIs(t, err, os.ErrDeadlineExceeded, "room for half")
		// The write after one that was cut short goes on.
		a.SetWriteDeadline(time.Time{})
		go io.ReadAll(b)
		n, err = a.Write(make([]byte, 100_000))
		require.Equal(t, 100_000, n, "room again")
		require.NoError(t, err, "room again")
	})
}

func TestPipeReadDeadline(t *testing.T) {
	bothWays(t, func(t *testing.T, a, b net.Conn) {
		buf := make([]byte, 10)
		read := func(want error, after time.Duration) {
			t.Helper()
			start := time.Now()
			n, err := a.Read(buf)
			require.ErrorIs(t, err, want)
			if err != nil {
				require.Zero(t, n)
			}
			require.Equal(t, after, time.Since(start))
		}
		a.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		read(os.ErrDeadlineExceeded, 100*time.Millisecond)
		read(os.ErrDeadlineExceeded, 0)
		var timeout net.Error
		_, err := a.Read(buf)
		assert.ErrorAs(t, err, &timeout, "is no time-out to package net")
		assert.True(t, timeout.Timeout(), "is no time-out to package net")

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
		_, err = a.Write([]byte("y"))
		assert.NoError(t, err)
		_, err = b.Read(buf)
		assert.NoError(t, err)
		a.SetDeadline(time.Now())
		_, err = a.Write([]byte("y"))
		assert.ErrorIs(t, err, os.ErrDeadlineExceeded, "write after SetDeadline")
	})
}

func TestPipeClose(t *testing.T) {
	bothWays(t, func(t *testing.T, a, b net.Conn) {
		buf := make([]byte, 10)
		a.Write([]byte("pending"))
		assert.NoError(t, a.Close())
		assert.NoError(t, a.Close(), "close again")
		_, err := a.Read(buf)
		assert.ErrorIs(t, err, net.ErrClosed, "read after close")
		_, err = a.Write(buf)
		assert.ErrorIs(t, err, net.ErrClosed, "write after close")
		assert.ErrorIs(t, a.SetDeadline(time.Now()), net.ErrClosed, "deadline after close")
		_, err = b.Write(buf)
		assert.ErrorIs(t, err, io.ErrClosedPipe, "write to a closed end")
		n, err := b.Read(buf)
		assert.Equal(t, "pending", string(buf[:n]), "what was sent before")
		assert.NoError(t, err, "what was sent before")
		for range 2 {
			n, err := b.Read(buf)
			assert.Equal(t, 0, n, "at the end")
			assert.Equal(t, io.EOF, err, "at the end")
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
				_, err := op(make([]byte, 1))
				assert.ErrorIs(t, err, want, what)
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
				_, err := op(make([]byte, 1))
				assert.ErrorIs(t, err, net.ErrClosed)
			})
		}
		synctest.Wait()
		a.Close()
		wg.Wait()
	})
}

func TestPipeEmptyReadAndWrite(t *testing.T) {
	bothWays(t, func(t *testing.T, a, b net.Conn) {
		n, err := a.Read(nil)
		assert.Equal(t, 0, n, "read nothing")
		assert.NoError(t, err, "read nothing")
		a.Write(make([]byte, 64<<10))
		n, err = a.Write(nil)
		assert.Equal(t, 0, n, "write nothing")
		assert.NoError(t, err, "write nothing")
		assert.Equal(t, "pipe", a.LocalAddr().Network(), "addresses")
		assert.Equal(t, "pipe", b.RemoteAddr().String(), "addresses")
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
		got, err := io.Copy(io.Discard, to)
		require.NoError(b, err)
		require.Equal(b, int64(n)*16<<10, got)
		return time.Since(start)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(b, err)
	defer l.Close()
	dialled, err := net.Dial("tcp", l.Addr().String())
	require.NoError(b, err)
	accepted, err := l.Accept()
	require.NoError(b, err)
	defer accepted.Close()
	from, to := quarklinktest.Pipe()
	b.SetBytes(16 << 10)
	b.ResetTimer()
	ours := transfer(b, from, to, b.N)
	b.StopTimer()
	b.ReportMetric(float64(transfer(b, dialled, accepted, b.N))/float64(ours), "tcp/pipe")
}
