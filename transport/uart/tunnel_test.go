package uart

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/transport/uart/tunnel"
)

// seeded is a source of random numbers for tests.
func seeded(seed byte) io.Reader { return rand.NewChaCha8([32]byte{seed}) }

// peers is an instance that a tool can reach: every Dial gives the test the other
// end.
type peers chan net.Conn

func (p peers) Dial(ctx context.Context) (net.Conn, error) {
	tool, instance := net.Pipe()
	select {
	case p <- instance:
		return tool, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// bench is a device's tunnel, the tool at the other end of its line, and the
// instance.
type bench struct {
	tunnel   *Tunnel
	tool     *Tool
	device   *end // the device's end of the line
	port     *end // the tool's
	instance peers
	mu       sync.Mutex
	events   []Event
	stop     func() error
}

func (b *bench) kinds() (kinds []EventKind) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range b.events {
		kinds = append(kinds, e.Kind)
	}
	return kinds
}

func newBench(t *testing.T, change ...func(*bench)) *bench {
	b := &bench{instance: make(peers, 1)}
	b.device, b.port = newWire()
	b.tunnel = &Tunnel{Port: b.device, Random: seeded(1)}
	b.tool = &Tool{Instance: b.instance, Random: seeded(2), OnEvent: func(e Event) {
		b.mu.Lock()
		defer b.mu.Unlock()
		e.Line = bytes.Clone(e.Line)
		b.events = append(b.events, e)
	}}
	for _, c := range change {
		c(b)
	}
	b.stop = serve(t, b.tool, b.port)
	return b
}

// dial returns the device's stream and the instance's end of it.
func (b *bench) dial(t *testing.T) (device, instance net.Conn) {
	t.Helper()
	device, err := b.tunnel.Dial(t.Context())
	require.NoError(t, err)
	return device, <-b.instance
}

func onBench(t *testing.T, f func(t *testing.T, b *bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		f(t, b)
		b.stop()
		synctest.Wait()
		assert.True(t, b.device.deadline().IsZero(), "a deadline was left on the device's port")
	})
}

func TestTunnelStream(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		device, instance := b.dial(t)
		data := make([]byte, 20000)
		rand.NewChaCha8([32]byte{3}).Read(data)
		go func() {
			io.Copy(instance, io.LimitReader(instance, int64(len(data)))) // an echo
			instance.Close()
		}()
		go device.Write(data)
		got, err := io.ReadAll(device)
		require.NoError(t, err)
		assert.True(t, bytes.Equal(data, got))
		require.NoError(t, device.Close())
		assert.ErrorIs(t, device.Close(), net.ErrClosed)
		_, err = device.Read(make([]byte, 1))
		assert.ErrorIs(t, err, net.ErrClosed)
		_, err = device.Write([]byte("x"))
		assert.ErrorIs(t, err, net.ErrClosed)

		// The line is free for a conversation, and for another stream.
		b.stop()
		b.stop = serve(t, &Tool{SSID: "Workshop"}, b.port)
		ssid, err := (&Device{Port: b.device}).SSID(t.Context())
		require.NoError(t, err)
		assert.Equal(t, "Workshop", ssid)
		b.stop()
		b.stop = serve(t, b.tool, b.port)
		device, instance = b.dial(t)
		defer instance.Close()
		require.NoError(t, device.Close())
		time.Sleep(time.Second)
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, e := range b.events {
			if e.Kind == EventTunnelDown && e.FromDevice > 0 {
				assert.NoError(t, e.Err)
				assert.EqualValues(t, len(data), e.FromDevice)
				assert.EqualValues(t, len(data), e.ToDevice)
			}
		}
	})
}

func TestTunnelDeadlines(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		device, instance := b.dial(t)
		defer instance.Close()
		defer device.Close()
		start := time.Now()
		device.SetReadDeadline(start.Add(time.Second))
		_, err := device.Read(make([]byte, 1))
		assert.ErrorIs(t, err, os.ErrDeadlineExceeded)
		assert.Equal(t, time.Second, time.Since(start))
		device.SetReadDeadline(time.Time{})

		device.SetWriteDeadline(time.Now().Add(3 * time.Second))
		n, err := device.Write(make([]byte, 1<<20)) // the instance reads nothing
		assert.ErrorIs(t, err, os.ErrDeadlineExceeded)
		assert.Less(t, n, 20000)
		assert.Equal(t, 4*time.Second, time.Since(start))
		var network net.Error
		require.ErrorAs(t, err, &network)
		assert.True(t, network.Timeout())

		device.SetReadDeadline(time.Now())
		_, err = device.Read(make([]byte, 1))
		assert.ErrorIs(t, err, os.ErrDeadlineExceeded)
		device.SetReadDeadline(time.Time{})
		go instance.Write([]byte("x"))
		_, err = device.Read(make([]byte, 1))
		assert.NoError(t, err, "without a deadline")
	})
}

// halfClosed is a stream to an instance that tells when its half was closed.
type halfClosed struct {
	net.Conn
	closed chan struct{}
}

func (h halfClosed) CloseWrite() error {
	close(h.closed)
	return nil
}

// The instance learns that the device has closed its side, and can still answer.
func TestToolHalfCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		closed := make(chan struct{})
		b := newBench(t, func(b *bench) {
			b.tool.Instance = dialer(func(ctx context.Context) (net.Conn, error) {
				c, err := b.instance.Dial(ctx)
				return halfClosed{c, closed}, err
			})
		})
		device, instance := b.dial(t)
		require.NoError(t, device.(interface{ CloseWrite() error }).CloseWrite())
		<-closed
		go func() { instance.Write([]byte("bye")); instance.Close() }()
		got, err := io.ReadAll(device)
		require.NoError(t, err)
		assert.Equal(t, "bye", string(got))
		require.NoError(t, device.Close())
		b.stop()
	})
}

// The tool learns at once that the device has closed its stream.
func TestTunnelCloseTells(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		device, instance := b.dial(t)
		start := time.Now()
		require.NoError(t, device.Close())
		_, err := instance.Read(make([]byte, 1))
		assert.Equal(t, io.EOF, err)
		assert.Less(t, time.Since(start), time.Second)
	})
}

// slow is a port that takes its time to write, and at first refuses to.
type slow struct {
	*end
	t      *testing.T
	busy   *atomic.Int32
	refuse *atomic.Int32
}

func (p slow) Write(b []byte) (int, error) {
	assert.EqualValues(p.t, 1, p.busy.Add(1), "two write at the same time")
	defer p.busy.Add(-1)
	time.Sleep(2 * time.Millisecond)
	if b[0] != 'I' && p.refuse.Add(-1) >= 0 {
		return 0, os.ErrDeadlineExceeded
	}
	return p.end.Write(b)
}

func (p slow) SetWriteDeadline(time.Time) error { return nil }

// Frames go one after the other whoever sends them, and those that the port does
// not take in time are lost like any that the line loses.
func TestTunnelSlowPort(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		port := slow{b.device, t, new(atomic.Int32), new(atomic.Int32)}
		port.refuse.Store(3)
		b.tunnel.Port = port
		device, instance := b.dial(t)
		go io.Copy(instance, instance)
		data := bytes.Repeat([]byte("0123456789"), 1000)
		go device.Write(data)
		got := make([]byte, len(data))
		_, err := io.ReadFull(device, got)
		require.NoError(t, err)
		assert.Equal(t, data, got)
		instance.Close()
		device.Close()
	})
}

// Nothing but OK is a yes.
func TestTunnelAnswerIsNoYes(t *testing.T) {
	in(t, func(t *testing.T, d *Device, tool *end) {
		no := says("hello\n")
		play(t, tool, no, no, no, no, no)
		_, err := (&Tunnel{Port: d.Port, Random: seeded(1)}).Dial(t.Context())
		assert.ErrorIs(t, err, ErrReply)
	})
}

// A half-closed stream goes on in the other direction.
func TestTunnelCloseWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		device, instance := b.dial(t)
		require.NoError(t, device.(interface{ CloseWrite() error }).CloseWrite())
		_, err := device.Write([]byte("x"))
		assert.ErrorIs(t, err, io.ErrClosedPipe)
		go func() { instance.Write([]byte("still here")); instance.Close() }()
		got, err := io.ReadAll(device)
		require.NoError(t, err)
		assert.Equal(t, "still here", string(got))
		device.Close()
		b.stop()
	})
}

func TestTunnelBusy(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		device, instance := b.dial(t)
		defer instance.Close()
		_, err := b.tunnel.Dial(t.Context())
		assert.ErrorIs(t, err, ErrTunnelBusy)
		require.NoError(t, device.Close())
		device, again := b.dial(t)
		defer again.Close()
		require.NoError(t, device.Close())
	})
}

// What a tool may do instead of carrying a stream.
func TestTunnelRefusals(t *testing.T) {
	var network *net.OpError
	for name, tc := range map[string]struct {
		tool  Tool
		want  error
		final bool // another try is of no use
	}{
		"a tool that knows no tunnels": {Tool{}, ErrUnsupported, true},
		"an instance out of reach": {Tool{Random: seeded(1), Instance: dialer(func(context.Context) (net.Conn, error) {
			return nil, errors.New("no route")
		})}, tunnel.ErrUnreachable, false},
		"an instance that never answers": {Tool{Random: seeded(1), Instance: dialer(func(ctx context.Context) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		})}, tunnel.ErrUnreachable, false},
		"a dialer of nothing": {Tool{Random: seeded(1), Instance: dialer(func(context.Context) (net.Conn, error) {
			return nil, nil
		})}, tunnel.ErrUnreachable, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				device, port := newWire()
				stop := serve(t, &tc.tool, port)
				_, err := (&Tunnel{Port: device, Random: seeded(2)}).Dial(t.Context())
				require.ErrorIs(t, err, tc.want)
				assert.Equal(t, !tc.final, errors.As(err, &network), "%T", err)
				stop()
			})
		})
	}
}

type dialer func(context.Context) (net.Conn, error)

func (d dialer) Dial(ctx context.Context) (net.Conn, error) { return d(ctx) }

func TestTunnelNeeds(t *testing.T) {
	_, err := (&Tunnel{Random: seeded(1)}).Dial(t.Context())
	assert.ErrorContains(t, err, "needs a Port")
	device, _ := newWire()
	_, err = (&Tunnel{Port: device}).Dial(t.Context())
	assert.ErrorContains(t, err, "a Random")
	_, err = (&Tunnel{Port: device, Random: strings.NewReader("1234567")}).Dial(t.Context())
	assert.ErrorIs(t, err, io.ErrUnexpectedEOF)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = (&Tunnel{Port: device, Random: seeded(1)}).Dial(ctx)
	assert.ErrorIs(t, err, context.Canceled)
	assert.Empty(t, device.out.sent(), "nothing is sent")
}

// A tool that answers garbage, or says OK and then garbage.
func TestTunnelGarbage(t *testing.T) {
	for _, first := range []string{"", "OK\n"} {
		synctest.Test(t, func(t *testing.T) {
			device, tool := newWire()
			done := make(chan struct{})
			go func() {
				defer close(done)
				random := rand.New(rand.NewPCG(1, 1))
				tool.Write([]byte(first))
				for range 600 {
					time.Sleep(100 * time.Millisecond)
					garbage := make([]byte, 100)
					for i := range garbage {
						garbage[i] = byte(random.Uint32())
					}
					tool.Write([]byte(first))
					tool.Write(garbage)
				}
			}()
			start := time.Now()
			_, err := (&Tunnel{Port: device, Random: seeded(2)}).Dial(t.Context())
			assert.Error(t, err)
			assert.Less(t, time.Since(start), 40*time.Second)
			<-done
		})
	}
}

// The cable is pulled in each state; whoever waits is told.
func TestTunnelUnplugged(t *testing.T) {
	pull := func(b *bench) { b.device.in.close() } // the tool is told afterwards
	for name, f := range map[string]func(t *testing.T, b *bench){
		"asking": func(t *testing.T, b *bench) {
			b.stop()
			time.AfterFunc(500*time.Millisecond, func() { pull(b) })
			_, err := b.tunnel.Dial(t.Context())
			assert.ErrorIs(t, err, io.EOF)
		},
		"opening": func(t *testing.T, b *bench) {
			b.instance <- nil // so that the tool's dial waits
			time.AfterFunc(500*time.Millisecond, func() { pull(b) })
			_, err := b.tunnel.Dial(t.Context())
			assert.ErrorIs(t, err, io.EOF)
			<-b.instance
		},
		"reading": func(t *testing.T, b *bench) {
			device, instance := b.dial(t)
			time.AfterFunc(500*time.Millisecond, func() { pull(b) })
			_, err := device.Read(make([]byte, 1))
			assert.ErrorIs(t, err, io.EOF, "the port's")
			assert.NotEqual(t, io.EOF, err, "which is not the end of the stream")
			require.NoError(t, device.Close())
			b.port.in.close()
			_, err = instance.Read(make([]byte, 1))
			assert.Equal(t, io.EOF, err, "the instance is told")
		},
		"writing": func(t *testing.T, b *bench) {
			device, instance := b.dial(t)
			defer instance.Close()
			time.AfterFunc(500*time.Millisecond, func() { pull(b) })
			_, err := device.Write(make([]byte, 1<<20))
			assert.ErrorIs(t, err, io.EOF)
			require.NoError(t, device.Close())
		},
		"closing": func(t *testing.T, b *bench) {
			device, instance := b.dial(t)
			defer instance.Close()
			pull(b)
			require.NoError(t, device.Close())
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t)
				f(t, b)
				b.port.in.close()
				synctest.Wait()
				assert.Error(t, b.stop())
			})
		})
	}
}

// A dial that its context ends leaves the port free.
func TestTunnelDialCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.instance <- nil
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		start := time.Now()
		_, err := b.tunnel.Dial(ctx)
		assert.ErrorIs(t, err, context.DeadlineExceeded)
		assert.LessOrEqual(t, time.Since(start), 2*time.Second+time.Millisecond)
		<-b.instance
		(<-b.instance).Close() // what the tool had begun
		device, instance := b.dial(t)
		instance.Close()
		device.Close()
		b.stop()
	})
}

// A tool that has nobody to carry to any more, and a device that comes back.
func TestTunnelRestarts(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		// The device loses its power, and its new program asks for its Wi-Fi.
		device, instance := b.dial(t)
		device.(*stream).mu.Lock()
		device.(*stream).fail(errors.New("power cut"))
		device.(*stream).mu.Unlock()
		device.Close()
		b.device.Write([]byte("ets Jun  8 2016\r\nrst:0x1 (POWERON_RESET),boot:0x13\r\nI (30) boot: up\r\n"))
		_, err := (&Device{Port: b.device}).SSID(t.Context())
		assert.ErrorIs(t, err, ErrRefused)
		start := time.Now()
		_, err = instance.Read(make([]byte, 1))
		assert.Equal(t, io.EOF, err, "the stream of before has ended")
		assert.Less(t, time.Since(start), time.Second, "as soon as the device asked for something")
		time.Sleep(time.Second)
		assert.Contains(t, b.kinds(), EventResetSeen)

		// The tool is started again: the device's stream ends with an error.
		device, instance = b.dial(t)
		defer instance.Close()
		b.stop()
		b.stop = serve(t, b.tool, b.port)
		_, err = device.Read(make([]byte, 1))
		require.Error(t, err)
		assert.NotEqual(t, io.EOF, err)
		device.Close()
		device, instance = b.dial(t)
		defer instance.Close()
		device.Close()
	})
}

// Two tools hear the same line. The device hears both, and ends with an error or
// goes through; it never gets a mixture.
func TestTunnelTwoTools(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		other := make(peers, 1)
		second := newLine()
		stop := serve(t, &Tool{Instance: other, Random: seeded(9)}, &end{in: second, out: b.port.out})
		b.tunnel.Port = tee{b.device, second}
		device, err := b.tunnel.Dial(t.Context())
		if err == nil {
			done := make(chan struct{})
			defer close(done)
			for _, p := range []peers{b.instance, other} {
				go func() {
					select {
					case c := <-p:
						io.Copy(c, c)
					case <-done: // it was the other one that was asked
					}
				}()
			}
			device.SetDeadline(time.Now().Add(time.Minute))
			device.Write([]byte("hello"))
			got, err := io.ReadAll(io.LimitReader(device, 5))
			assert.True(t, strings.HasPrefix("hello", string(got)), "%q", got)
			assert.True(t, err != nil || len(got) == 5)
			device.Close()
		}
		b.stop()
		stop()
	})
}

// tee is a port whose writes two tools hear.
type tee struct {
	*end
	second *line
}

func (p tee) Write(b []byte) (int, error) {
	p.second.write(b)
	return p.end.Write(b)
}

// A device that floods the tool, before and in a stream, is still heard.
func TestToolFlooded(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		flood := make([]byte, 1<<20)
		rand.NewChaCha8([32]byte{4}).Read(flood)
		b.device.Write(flood)
		device, instance := b.dial(t)
		b.device.Write(flood)
		go instance.Write([]byte("hello"))
		got := make([]byte, 5)
		_, err := io.ReadFull(device, got)
		require.NoError(t, err)
		assert.Equal(t, "hello", string(got))
		instance.Close()
		device.Close()
	})
}

// The console goes on beside a stream, and nothing of the frames shows in it.
func TestToolConsoleInStream(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		device, instance := b.dial(t)
		go io.Copy(io.Discard, instance)
		for range 20 {
			device.Write(bytes.Repeat([]byte("secret\n"), 100))
			b.device.Write([]byte("I (12) wifi: up\r\n"))
			b.device.Write([]byte("\x05\x06of a frame\n\x00")) // half of one
			time.Sleep(100 * time.Millisecond)
		}
		b.mu.Lock()
		lines := 0
		for _, e := range b.events {
			if e.Kind == EventConsole {
				assert.Equal(t, "I (12) wifi: up", string(e.Line))
				lines++
			}
		}
		b.mu.Unlock()
		assert.Equal(t, 20, lines)
		instance.Close()
		device.Close()
	})
}

// It counts what Go's net.Conn, the tool and the lines of this bench allocate
// around the core, which itself allocates nothing.
func BenchmarkTunnelStream(b *testing.B) {
	device, port := newWire()
	instance := make(peers, 1)
	ctx, cancel := context.WithCancel(b.Context())
	served := make(chan error)
	go func() { served <- (&Tool{Instance: instance, Random: seeded(2)}).Serve(ctx, port) }()
	c, err := (&Tunnel{Port: device, Random: seeded(1)}).Dial(ctx)
	require.NoError(b, err)
	far := <-instance
	go io.Copy(far, far)
	buf := make([]byte, 1024)
	b.SetBytes(int64(len(buf)))
	b.ReportAllocs()
	for b.Loop() {
		c.Write(buf)
		io.ReadFull(c, buf)
	}
	c.Close()
	cancel()
	<-served
}
