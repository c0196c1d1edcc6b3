package exchange_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/internal/exchange"
	"github.com/quarklink-go/quarklink/quarklinktest"
)

const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

// server is what the other end of each connection does.
type server struct {
	handle func(conn net.Conn, request *bufio.Reader)
	dials  atomic.Int32
	open   atomic.Int32 // connections that our end has not closed
}

func (s *server) dial(context.Context) (net.Conn, error) {
	here, there := quarklinktest.Pipe()
	s.dials.Add(1)
	s.open.Add(1)
	go func() {
		s.handle(there, bufio.NewReader(there))
		io.Copy(io.Discard, there)
		s.open.Add(-1)
		there.Close()
	}()
	return here, nil
}

// answers is a server that answers each request with the next of the answers,
// and from then on no more.
func answers(all ...string) *server {
	var next atomic.Int32
	return &server{handle: func(conn net.Conn, r *bufio.Reader) {
		for int(next.Load()) < len(all) {
			if _, err := http.ReadRequest(r); err != nil {
				return
			}
			io.WriteString(conn, all[next.Add(1)-1])
		}
	}}
}

func newTransport(t *testing.T, dial func(context.Context) (net.Conn, error)) *exchange.Transport {
	tr := exchange.New(dial, make(chan struct{}, 1))
	t.Cleanup(tr.Close)
	return tr
}

func get(ctx context.Context, tr http.RoundTripper) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://instance.test/x", nil)
	if err != nil {
		return nil, err
	}
	return tr.RoundTrip(req)
}

// read makes an exchange and returns the body.
func read(ctx context.Context, tr http.RoundTripper) (string, error) {
	resp, err := get(ctx, tr)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

// silentLog fails the test if anything reaches the global logger.
func silentLog(t *testing.T) {
	var said bytes.Buffer
	before := log.Writer()
	log.SetOutput(&said)
	t.Cleanup(func() {
		log.SetOutput(before)
		assert.Empty(t, said.String(), "on the global logger")
	})
}

func TestOneConnectionServesAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		chunked := "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
		s := answers(ok, chunked, "HTTP/1.1 204 No Content\r\n\r\n", ok)
		tr := newTransport(t, s.dial)
		for _, want := range []string{"ok", "ok", "", "ok"} {
			got, err := read(t.Context(), tr)
			require.NoError(t, err)
			assert.Equal(t, want, got)
		}
		assert.EqualValues(t, 1, s.dials.Load())
		time.Sleep(59 * time.Second)
		assert.EqualValues(t, 1, s.open.Load(), "after 59 idle seconds")
		time.Sleep(2 * time.Second)
		synctest.Wait()
		assert.EqualValues(t, 0, s.open.Load(), "after 61 idle seconds")
	})
}

// TestRequest looks at what is sent: nothing asks for compression.
func TestRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := make(chan *http.Request, 1)
		s := &server{handle: func(conn net.Conn, r *bufio.Reader) {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			body, _ := io.ReadAll(req.Body)
			req.Body = io.NopCloser(bytes.NewReader(body))
			asked <- req
			io.WriteString(conn, ok)
		}}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://instance.test:6000/a?b",
			strings.NewReader("body"))
		require.NoError(t, err)
		resp, err := newTransport(t, s.dial).RoundTrip(req)
		require.NoError(t, err)
		resp.Body.Close()
		got := <-asked
		assert.Equal(t, "POST", got.Method)
		assert.Equal(t, "/a?b", got.RequestURI)
		assert.Equal(t, "instance.test:6000", got.Host)
		assert.EqualValues(t, 4, got.ContentLength)
		assert.NotContains(t, got.Header, "Accept-Encoding")
		body, err := io.ReadAll(got.Body)
		require.NoError(t, err)
		assert.Equal(t, "body", string(body))
	})
}

// TestNotKept: after these answers the connection is closed at once, and the
// next exchange has its own.
func TestNotKept(t *testing.T) {
	silentLog(t)
	for name, answer := range map[string]string{
		"asked to":            "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
		"HTTP/1.0":            "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
		"more than announced": ok + "HTTP/1.1 200 OK\r\n\r\n",
		"switched protocols":  "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nok",
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := answers(answer, ok)
				tr := newTransport(t, s.dial)
				_, err := read(t.Context(), tr)
				require.NoError(t, err)
				synctest.Wait()
				assert.EqualValues(t, 0, s.open.Load(), "connections open")
				got, err := read(t.Context(), tr)
				require.NoError(t, err)
				assert.Equal(t, "ok", got)
				assert.EqualValues(t, 2, s.dials.Load())
			})
		})
	}
}

// lastWords is a connection whose Read tells the end together with the last
// bytes, as crypto/tls does.
type lastWords struct {
	net.Conn
	words *strings.Reader
}

func (c *lastWords) Write(p []byte) (int, error) { return len(p), nil }

func (c *lastWords) Read(p []byte) (int, error) {
	n, err := c.words.Read(p)
	if err == nil && c.words.Len() == 0 {
		err = io.EOF
	}
	return n, err
}

// TestServerHungUp: a connection that has ended with its answer is not tried
// for another exchange.
func TestServerHungUp(t *testing.T) {
	tr := newTransport(t, func(context.Context) (net.Conn, error) {
		here, _ := net.Pipe()
		return &lastWords{here, strings.NewReader(ok)}, nil
	})
	for range 20 {
		got, err := read(t.Context(), tr)
		require.NoError(t, err)
		assert.Equal(t, "ok", got)
	}
}

// TestUnasked: what a server says unasked closes the connection, and reaches
// neither the next answer nor the global logger.
func TestUnasked(t *testing.T) {
	silentLog(t)
	synctest.Test(t, func(t *testing.T) {
		s := &server{handle: func(conn net.Conn, r *bufio.Reader) {
			if _, err := http.ReadRequest(r); err == nil {
				io.WriteString(conn, ok)
				time.Sleep(time.Second)
				io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
			}
		}}
		tr := newTransport(t, s.dial)
		for range 2 {
			got, err := read(t.Context(), tr)
			require.NoError(t, err)
			assert.Equal(t, "ok", got)
			time.Sleep(2 * time.Second)
			assert.EqualValues(t, 0, s.open.Load())
		}
		assert.EqualValues(t, 2, s.dials.Load())
	})
}

// TestSwitchingProtocols: a 101 is an answer without a body, and its connection
// is closed before the caller has done anything with it.
func TestSwitchingProtocols(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := answers("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n")
		resp, err := get(t.Context(), newTransport(t, s.dial))
		require.NoError(t, err)
		assert.Equal(t, 101, resp.StatusCode)
		synctest.Wait()
		assert.EqualValues(t, 0, s.open.Load())
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		assert.Empty(t, body)
		assert.NotImplements(t, (*io.Writer)(nil), resp.Body)
	})
}

func TestInterimAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const interim = "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
		s := answers("HTTP/1.1 100 Continue\r\n\r\n"+strings.Repeat(interim, 4)+ok, strings.Repeat(interim, 6)+ok)
		tr := newTransport(t, s.dial)
		got, err := read(t.Context(), tr)
		require.NoError(t, err)
		assert.Equal(t, "ok", got)
		_, err = read(t.Context(), tr)
		require.ErrorIs(t, err, exchange.ErrMalformed)
	})
}

// TestHeaderBound: a header of 64 KiB is the largest.
func TestHeaderBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answer := func(size int) string {
			const start, end = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX: ", "\r\n\r\n"
			return start + strings.Repeat("x", size-len(start)-len(end)) + end
		}
		tr := newTransport(t, answers(answer(64<<10), answer(64<<10+1)).dial)
		_, err := read(t.Context(), tr)
		require.NoError(t, err)
		_, err = read(t.Context(), tr)
		require.ErrorIs(t, err, exchange.ErrMalformed)
		assert.ErrorContains(t, err, "65536")
	})
}

// TestContextClosesConnection: whatever an exchange is at when its context
// ends, it ends at that moment, and so does the connection.
func TestContextClosesConnection(t *testing.T) {
	for name, answer := range map[string]string{
		"before the answer": "",
		"in the header":     "HTTP/1.1 200 OK\r\nConte",
		"in the body":       "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345",
		"in a chunk":        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\n12345",
		"no end given":      "HTTP/1.1 200 OK\r\n\r\n12345",
		"interim answer":    "HTTP/1.1 100 Continue\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := answers(answer)
				reason := errors.New("the reason")
				ctx, cancel := context.WithTimeoutCause(t.Context(), 10*time.Second, reason)
				defer cancel()
				start := time.Now()
				_, err := read(ctx, newTransport(t, s.dial))
				require.ErrorIs(t, err, reason)
				assert.Equal(t, 10*time.Second, time.Since(start))
				synctest.Wait()
				assert.EqualValues(t, 0, s.open.Load(), "connections open")
			})
		})
	}
}

// TestBodyLeftUnread: the connection of a body that was not read to its end is
// closed, whether the body is closed or forgotten.
func TestBodyLeftUnread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const long = "HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n"
		s := answers(long, long, ok)
		tr := newTransport(t, s.dial)
		closed, err := get(t.Context(), tr)
		require.NoError(t, err)
		closed.Body.Close()
		synctest.Wait()
		assert.EqualValues(t, 0, s.open.Load(), "after Close")
		_, err = closed.Body.Read(make([]byte, 1))
		require.ErrorIs(t, err, http.ErrBodyReadAfterClose)

		forgotten, err := get(t.Context(), tr)
		require.NoError(t, err)
		got, err := read(t.Context(), tr)
		require.NoError(t, err)
		assert.Equal(t, "ok", got)
		assert.EqualValues(t, 3, s.dials.Load())
		_, err = io.ReadAll(forgotten.Body)
		require.Error(t, err)
	})
}

// TestSilence: a server that says nothing, or takes nothing, for two minutes is
// given up. One that says a little before each two minutes are over is not.
func TestSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := newTransport(t, answers("").dial)
		start := time.Now()
		_, err := read(t.Context(), tr)
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		assert.Equal(t, exchange.Silence, time.Since(start))

		// net.Pipe has no buffer: nobody takes the request.
		tr = newTransport(t, func(context.Context) (net.Conn, error) { here, _ := net.Pipe(); return here, nil })
		start = time.Now()
		_, err = read(t.Context(), tr)
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		assert.Equal(t, exchange.Silence, time.Since(start))

		drip := &server{handle: func(conn net.Conn, r *bufio.Reader) {
			http.ReadRequest(r)
			for _, b := range []byte(ok) {
				time.Sleep(exchange.Silence - time.Second)
				conn.Write([]byte{b})
			}
		}}
		got, err := read(t.Context(), newTransport(t, drip.dial))
		require.NoError(t, err)
		assert.Equal(t, "ok", got)
	})
}

// TestSilenceAfterIdle: the silence is counted from the request, not from the
// answer before.
func TestSilenceAfterIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{handle: func(conn net.Conn, r *bufio.Reader) {
			for range 2 {
				if _, err := http.ReadRequest(r); err != nil {
					return
				}
				time.Sleep(exchange.Silence - time.Second)
				io.WriteString(conn, ok)
			}
		}}
		tr := newTransport(t, s.dial)
		for range 2 {
			got, err := read(t.Context(), tr)
			require.NoError(t, err)
			assert.Equal(t, "ok", got)
			time.Sleep(50 * time.Second)
		}
		assert.EqualValues(t, 1, s.dials.Load())
	})
}

// TestDialBound: a dial that does not end is given up after two minutes, and
// sooner with its context. Until it ends there is no other.
func TestDialBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		var dials atomic.Int32
		late, far := quarklinktest.Pipe()
		tr := newTransport(t, func(context.Context) (net.Conn, error) {
			dials.Add(1)
			<-release
			return late, nil
		})
		start := time.Now()
		_, err := get(t.Context(), tr)
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		assert.NotErrorIs(t, err, context.DeadlineExceeded)
		assert.Equal(t, exchange.Silence, time.Since(start))

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = get(ctx, tr)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		assert.Equal(t, exchange.Silence+time.Second, time.Since(start))
		assert.EqualValues(t, 1, dials.Load())

		close(release)
		_, err = far.Read(make([]byte, 1))
		require.ErrorIs(t, err, io.EOF, "what the late dial opened is closed")
	})
}

// TestDialThatEndsWithItsContext tells its own reason, not the dial's.
func TestDialThatEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := newTransport(t, func(ctx context.Context) (net.Conn, error) {
			<-ctx.Done()
			return nil, errors.New("operation was canceled")
		})
		_, err := get(t.Context(), tr)
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	})
}

// TestDialAfterClose: a dial that finishes after Close is not used, and its
// stream is closed.
func TestDialAfterClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		here, far := quarklinktest.Pipe()
		var tr *exchange.Transport
		tr = newTransport(t, func(context.Context) (net.Conn, error) {
			tr.Close()
			return here, nil
		})
		_, err := get(t.Context(), tr)
		require.ErrorIs(t, err, net.ErrClosed)
		_, err = far.Read(make([]byte, 1))
		require.ErrorIs(t, err, io.EOF)
		_, err = get(t.Context(), tr)
		require.ErrorIs(t, err, net.ErrClosed)
	})
}

func TestDialReturnsNothing(t *testing.T) {
	tr := newTransport(t, func(context.Context) (net.Conn, error) { return nil, nil })
	_, err := get(t.Context(), tr)
	require.ErrorContains(t, err, "neither")
}

// TestConnectionCut tells a connection that broke from an answer that is wrong:
// the first is worth another try.
func TestConnectionCut(t *testing.T) {
	for _, test := range []struct {
		answer string
		want   error
	}{
		{"", io.ErrUnexpectedEOF},
		{"HTTP/1.1 20", io.ErrUnexpectedEOF},
		{"HTTP/1.1 200 OK\r\nContent-Le", io.ErrUnexpectedEOF},
		{"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345", io.ErrUnexpectedEOF},
		{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\n12345", io.ErrUnexpectedEOF},
		{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n", io.ErrUnexpectedEOF},
		{"SSH-2.0-OpenSSH\r\n\r\n", exchange.ErrMalformed},
		{"HTTP/2.0 200 OK\r\n\r\n", exchange.ErrMalformed},
		{"HTTP/1.1 99 Low\r\n\r\n", exchange.ErrMalformed},
		{"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", exchange.ErrMalformed},
		{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", exchange.ErrMalformed},
		{"HTTP/1.1 200 OK\r\n\r\n12345", nil},
	} {
		t.Run(fmt.Sprintf("%q", test.answer), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &server{handle: func(conn net.Conn, r *bufio.Reader) {
					http.ReadRequest(r)
					io.WriteString(conn, test.answer)
					conn.Close()
				}}
				_, err := read(t.Context(), newTransport(t, s.dial))
				require.ErrorIs(t, err, test.want)
			})
		})
	}
}
