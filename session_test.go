package quarklink_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/quarklinktest"
)

// drip answers with text, n bytes at a time, and then nothing more.
func drip(text string, n int, every time.Duration) quarklinktest.Fault {
	return raw(func(w io.Writer) {
		for at := 0; at < len(text); at += n {
			if _, err := io.WriteString(w, text[at:min(at+n, len(text))]); err != nil {
				return
			}
			time.Sleep(every)
		}
	})
}

// raw answers with whatever say writes to the connection, which stays open until
// the client closes it.
func raw(say func(io.Writer)) quarklinktest.Fault {
	return quarklinktest.Answer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		defer conn.Close()
		say(conn)
		io.Copy(io.Discard, conn)
	}))
}

// lateEnd lets the instance's goroutines notice that their connections are gone
// before the bubble of a test ends.
func lateEnd() { time.Sleep(5 * time.Minute) }

// endless is a header, or a body, that does not end.
func endless(start, filler string) string {
	for len(start) < 4<<10 {
		start += filler
	}
	return start
}

// TestDrip: an answer that drips in without an end is given up after five
// minutes, each of five times.
func TestDrip(t *testing.T) {
	for name, answer := range map[string]string{
		"header": endless("HTTP/1.1 200 OK\r\nX: ", "x"),
		"body":   endless("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 60000\r\n\r\n", " "),
		"error":  endless("HTTP/1.1 400 Bad Request\r\nContent-Length: 60000\r\n\r\n", " "),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				defer lateEnd()
				server, c := newMember(t, quarklinktest.Batch{})
				server.Fault(quarklinktest.CallStatus, drip(answer, 3, time.Second))
				start := time.Now()
				_, err := c.Status(t.Context())
				took := time.Since(start)
				if name == "error" { // what came of it is told
					require.ErrorIs(t, err, quarklink.ErrGeneral)
					assert.Equal(t, 5*time.Minute, took)
					return
				}
				require.ErrorIs(t, err, quarklink.ErrCommunication)
				assert.ErrorContains(t, err, "5m0s")
				assert.Equal(t, 5, server.Stats().Calls[quarklinktest.CallStatus])
				assert.GreaterOrEqual(t, took, 25*time.Minute)
				assert.Less(t, took, 26*time.Minute)
				time.Sleep(2 * time.Second) // the instance notices at its next word
				assert.Equal(t, 0, server.Stats().Open, "connections open")
			})
		})
	}
}

// TestAnswerWithinFiveMinutes: a slow answer is an answer, and the waits that an
// instance asks for do not count.
func TestAnswerWithinFiveMinutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		defer lateEnd()
		server, c := newMember(t, quarklinktest.Batch{})
		answer := "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n" + `{"state":"enrolled"}`
		server.Fault(quarklinktest.CallStatus, quarklinktest.Refuse(503, quarklinktest.ProblemUnavailable, 9*time.Minute).Times(3))
		server.Fault(quarklinktest.CallStatus, drip(answer, 1, 290*time.Second/time.Duration(len(answer))))
		status, err := c.Status(t.Context())
		require.NoError(t, err)
		assert.Equal(t, quarklink.StateEnrolled, status.State)
	})
}

// TestSlowDownload: 64 KiB in each ten minutes are enough, less is a lost
// connection, and so is nothing for two minutes.
func TestSlowDownload(t *testing.T) {
	const size = 200 << 10
	image := make([]byte, size)
	header := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", size)
	for _, test := range []struct {
		name  string
		chunk int
		every time.Duration
		lost  time.Duration // when, after the start; 0: never
		says  string
	}{
		{"enough", 1 << 10, 9 * time.Second, 0, ""},
		{"too slow", 1 << 10, 9400 * time.Millisecond, 63*9400*time.Millisecond + 10*time.Minute, "65536 bytes in 10m0s"},
		{"rare", 64 << 10, 119 * time.Second, 0, ""},
		{"too rare", 64 << 10, 121 * time.Second, 2 * time.Minute, "silent"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				defer lateEnd()
				server, c := newMember(t, asIs(image))
				server.Fault(quarklinktest.CallFirmware, raw(func(w io.Writer) {
					io.WriteString(w, header)
					for left := image; len(left) > 0; left = left[min(test.chunk, len(left)):] {
						if _, err := w.Write(left[:min(test.chunk, len(left))]); err != nil {
							return
						}
						time.Sleep(test.every)
					}
				}))
				start := time.Now()
				_, err := c.FirmwareUpdate(t.Context(), quarklink.FirmwareOptions{Slot: newSlot(t, size), Verifier: anything})
				if test.lost == 0 {
					require.NoError(t, err)
					return
				}
				require.ErrorIs(t, err, quarklink.ErrConnectionLost)
				onlyCode(t, err)
				assert.ErrorContains(t, err, test.says)
				assert.Equal(t, test.lost, time.Since(start))
			})
		})
	}
}

// TestSlowHeaderOfADownload: what comes before the image has five minutes.
func TestSlowHeaderOfADownload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		defer lateEnd()
		server, c := newMember(t, asIs([]byte("image")))
		server.Fault(quarklinktest.CallFirmware, drip(endless("HTTP/1.1 200 OK\r\nX: ", "x"), 3, time.Second).Times(1))
		start := time.Now()
		_, err := c.FirmwareUpdate(t.Context(), quarklink.FirmwareOptions{Slot: newSlot(t, 1<<20), Verifier: anything})
		require.NoError(t, err)
		assert.GreaterOrEqual(t, time.Since(start), 5*time.Minute)
		assert.Less(t, time.Since(start), 6*time.Minute)
	})
}

// TestSlowSlot: how long the slot takes is not the network's fault.
func TestSlowSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, c := newMember(t, asIs(make([]byte, 300<<10)))
		_, err := c.FirmwareUpdate(t.Context(), quarklink.FirmwareOptions{Slot: newSlot(t, 1<<20), Verifier: anything,
			Progress: func(int64, int64) { time.Sleep(time.Hour) }})
		require.NoError(t, err)
	})
}

// TestCallEndsItsConnection: when the context of a call ends, or the client is
// closed, the call returns at that moment and the connection is closed, whatever
// the instance has said so far.
func TestCallEndsItsConnection(t *testing.T) {
	for name, answer := range map[string]string{
		"nothing":             "",
		"half a header":       "HTTP/1.1 200 OK\r\nConte",
		"half a body":         "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n{",
		"half an error":       "HTTP/1.1 400 Bad Request\r\nContent-Length: 20\r\n\r\n{",
		"an interim answer":   "HTTP/1.1 100 Continue\r\n\r\n",
		"half a chunk":        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nx",
		"a redirect, in half": "HTTP/1.1 307 Temporary Redirect\r\nLocation: /x\r\nContent-Length: 20\r\n\r\n",
	} {
		for _, how := range []string{"context", "Close"} {
			t.Run(name+"/"+how, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					defer lateEnd()
					server, c := newMember(t, quarklinktest.Batch{})
					server.Fault(quarklinktest.CallStatus, raw(func(w io.Writer) { io.WriteString(w, answer) }))
					ctx, want := t.Context(), net.ErrClosed
					if how == "context" {
						var cancel context.CancelFunc
						ctx, cancel = context.WithTimeout(ctx, 10*time.Second)
						defer cancel()
						want = context.DeadlineExceeded
					} else {
						time.AfterFunc(10*time.Second, func() { c.Close() })
					}
					start := time.Now()
					_, err := c.Status(ctx)
					require.ErrorIs(t, err, want)
					assert.Equal(t, 10*time.Second, time.Since(start))
					synctest.Wait()
					assert.Equal(t, 0, server.Stats().Open, "connections open")
				})
			})
		}
	}
}

// TestSwitchingProtocols: an instance that switches protocols is left at once,
// whatever it goes on to say.
func TestSwitchingProtocols(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		defer lateEnd()
		server, c := newMember(t, quarklinktest.Batch{})
		var stopped error
		server.Fault(quarklinktest.CallStatus, raw(func(w io.Writer) {
			io.WriteString(w, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")
			for stopped == nil {
				_, stopped = w.Write(make([]byte, 1<<10))
				time.Sleep(time.Second)
			}
		}))
		start := time.Now()
		_, err := c.Status(t.Context())
		var e *quarklink.Error
		require.ErrorAs(t, err, &e)
		assert.Equal(t, 101, e.HTTPStatus)
		assert.Zero(t, time.Since(start))
		time.Sleep(3 * time.Second)
		synctest.Wait()
		require.Error(t, stopped, "the connection stays open")
		assert.Equal(t, 0, server.Stats().Open)
	})
}

// TestNoCompression: nothing that the client sends invites a compressed answer.
func TestNoCompression(t *testing.T) {
	server, c := newMember(t, quarklinktest.Batch{})
	var header http.Header
	server.Fault(quarklinktest.CallStatus, quarklinktest.Answer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		header = r.Header.Clone()
		w.WriteHeader(http.StatusForbidden)
	})))
	_, err := c.Status(t.Context())
	require.Error(t, err)
	assert.NotContains(t, header, "Accept-Encoding")
}
