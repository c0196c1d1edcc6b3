package quarklink_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/quarklinktest"
	"github.com/quarklink-go/quarklink/store"
	"github.com/quarklink-go/quarklink/transport"
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
		answer := "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n" +
			`{"state":"enrolled"}`
		server.Fault(quarklinktest.CallStatus,
			quarklinktest.Refuse(503, quarklinktest.ProblemUnavailable, 9*time.Minute).Times(3))
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
		{"too slow", 1 << 10, 9400 * time.Millisecond, 63*9400*time.Millisecond + 10*time.Minute,
			"65536 bytes in 10m0s"},
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
				_, err := c.FirmwareUpdate(t.Context(),
					quarklink.FirmwareOptions{Slot: newSlot(t, size), Verifier: anything})
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
	server.Fault(quarklinktest.CallStatus, quarklinktest.Answer(http.HandlerFunc(
		func(w http.ResponseWriter, r *http.Request) {
			header = r.Header.Clone()
			w.WriteHeader(http.StatusForbidden)
		})))
	_, err := c.Status(t.Context())
	require.Error(t, err)
	assert.NotContains(t, header, "Accept-Encoding")
}

// TestHandshakes counts: a full enrolment takes two handshakes, the status of
// an enrolled device one, and every call after the first on it none.
func TestHandshakes(t *testing.T) {
	server, c := newMember(t, quarklinktest.Batch{})
	ctx := t.Context()
	count := func(what string, want int, f func() error) {
		t.Helper()
		before := server.Stats().Handshakes
		require.NoError(t, f(), what)
		assert.Equal(t, want, server.Stats().Handshakes-before, "handshakes of %s", what)
	}
	status := func() error { _, err := c.Status(ctx); return err }
	count("enrolment", 2, func() error { _, err := c.Enrol(ctx); return err })
	count("status of an enrolled device", 1, status)
	count("status again", 0, status)
	settle(func() bool { return server.Stats().Open == 1 })
	assert.Equal(t, 1, server.Stats().Open, "open connections")
}

// cableConn is a stream of a cable, which carries one at a time.
type cableConn struct {
	net.Conn
	free func()
	once sync.Once
}

func (c *cableConn) Close() error {
	c.once.Do(c.free)
	return c.Conn.Close()
}

// TestOneStream: a connection is closed before the next is opened, whatever
// becomes of the first.
func TestOneStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := newServer(t, quarklinktest.Options{InMemory: true})
		under := server.Carrier()
		var mu sync.Mutex
		taken, dials := false, 0
		cable := transport.Func(func(ctx context.Context) (net.Conn, error) {
			mu.Lock()
			defer mu.Unlock()
			if dials++; taken {
				t.Error("two streams at once")
			}
			conn, err := under.Dial(ctx)
			if err != nil {
				return nil, err
			}
			taken = true
			return &cableConn{Conn: conn, free: func() { mu.Lock(); taken = false; mu.Unlock() }}, nil
		})
		c := newClient(t, new(store.Mem), at(server), func(cfg *quarklink.Config) { cfg.Transport = cable })
		member(t, server, c, quarklinktest.Batch{})
		for _, fault := range []quarklinktest.Fault{quarklinktest.CutOff(1), quarklinktest.LoseAnswer(),
			quarklinktest.LoseRequest(),
			quarklinktest.Delay(time.Hour), quarklinktest.Answer(http.HandlerFunc(
				func(w http.ResponseWriter, _ *http.Request) {
					w.WriteHeader(500)
					w.Write(make([]byte, 1<<20)) // more than the client reads
				}))} {
			for _, call := range []quarklinktest.Call{quarklinktest.CallStatus, quarklinktest.CallTemporary,
				quarklinktest.CallEnrol, quarklinktest.CallConnection} {
				server.Fault(call, fault.Times(1))
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				c.Status(ctx)
				c.Enrol(ctx)
				cancel()
				server.ClearFaults()
			}
		}
		_, err := c.Enrol(t.Context())
		assert.NoError(t, err)
		assert.GreaterOrEqual(t, dials, 30)
		c.Close()
		if taken {
			t.Error("a stream is open after Close")
		}
	})
}

// TestRetryAfter: a wait that is too long is the caller's.
func TestRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, c := newMember(t, quarklinktest.Batch{})
		server.Fault(quarklinktest.CallStatus, quarklinktest.Refuse(429, "", time.Hour))
		start := time.Now()
		_, err := c.Status(t.Context())
		after, ok := quarklink.RetryAfter(err)
		assert.True(t, ok)
		assert.Equal(t, time.Hour, after)
		assert.ErrorIs(t, err, quarklink.ErrCommunication)
		assert.Zero(t, time.Since(start), "what the call waited")
	})
}

// TestAnotherRoot: a server that the root does not vouch for gets no request.
func TestAnotherRoot(t *testing.T) {
	server, other := newServer(t, quarklinktest.Options{}), newServer(t, quarklinktest.Options{})
	c := newClient(t, new(store.Mem), func(cfg *quarklink.Config) {
		i := server.Instance()
		i.Root = other.Instance().Root
		cfg.Instance = &i
	})
	_, err := c.Enrol(t.Context())
	var unverified *tls.CertificateVerificationError
	assert.ErrorIs(t, err, quarklink.ErrCommunication)
	assert.ErrorAs(t, err, &unverified)
	assert.Zero(t, server.Stats().Requests)
	assert.Zero(t, server.Stats().Handshakes)
	// With the right root it works, at once and after a restart.
	require.NoError(t, c.SetInstance(t.Context(), server.Instance()))
	_, err = c.Status(t.Context())
	assert.ErrorIs(t, err, quarklink.ErrDeviceDoesNotExist, "after SetInstance")
}

func TestTLSVersions(t *testing.T) {
	server := newServer(t, quarklinktest.Options{TLS12: true})
	_, err := newClient(t, new(store.Mem), at(server)).Status(t.Context())
	assert.ErrorIs(t, err, quarklink.ErrCommunication, "TLS 1.2 without asking for it")
	c := newClient(t, new(store.Mem), at(server), func(cfg *quarklink.Config) { cfg.MinTLS = tls.VersionTLS12 })
	member(t, server, c, quarklinktest.Batch{})
	_, err = c.Enrol(t.Context())
	assert.NoError(t, err, "TLS 1.2 asked for")
}

// TestAuthenticator: a transport that brings its own trust is used as it is,
// and the instance cannot be changed under it.
func TestAuthenticator(t *testing.T) {
	server := newServer(t, quarklinktest.Options{})
	roots := x509.NewCertPool()
	roots.AddCert(server.Instance().Root)
	i := server.Instance()
	modem := transport.TLS{Addr: net.JoinHostPort(i.Endpoint, fmt.Sprint(i.Port)), Roots: roots}
	bare := quarklink.Instance{Endpoint: i.Endpoint, Port: i.Port}
	c := newClient(t, new(store.Mem), func(cfg *quarklink.Config) { cfg.Instance, cfg.Transport = &bare, modem })
	member(t, server, c, quarklinktest.Batch{})
	_, err := c.Enrol(t.Context())
	assert.NoError(t, err)
	assert.ErrorIs(t, c.SetInstance(t.Context(), i), quarklink.ErrInvalidParameter, "SetInstance")
	blank := newClient(t, new(store.Mem), func(cfg *quarklink.Config) { cfg.Transport = modem })
	line := &spy{Port: answer(t, nil)}
	_, err = blank.Provision(t.Context(), line, quarklink.ProvisionOptions{NoNetwork: true})
	assert.ErrorIs(t, err, quarklink.ErrInvalidParameter)
	assert.Empty(t, line.asked())
	assert.Zero(t, line.sent.Len(), "bytes sent")
}

// TestHungDial: an attempt to connect that leads nowhere ends with the call
// that made it, and the next call makes a new one.
func TestHungDial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := newServer(t, quarklinktest.Options{InMemory: true})
		good := server.Carrier()
		dials, ended := 0, 0
		c := newClient(t, new(store.Mem), at(server), func(cfg *quarklink.Config) {
			cfg.Transport = transport.Func(func(ctx context.Context) (net.Conn, error) {
				if dials++; dials > 1 {
					return good.Dial(ctx)
				}
				<-ctx.Done()
				ended++
				return nil, ctx.Err()
			})
		})
		member(t, server, c, quarklinktest.Batch{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := c.Status(ctx)
		assert.ErrorIs(t, err, context.DeadlineExceeded, "the call that hung")
		synctest.Wait()
		assert.Equal(t, 1, ended, "dials that ended with their call")
		_, err = c.Status(t.Context())
		require.NoError(t, err, "the next call")
		assert.Equal(t, 2, dials)
	})
}

// TestSilence: calls without a deadline do not wait for ever for an instance
// that has fallen silent.
func TestSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, c := newMember(t, asIs([]byte("image")))
		server.Fault(quarklinktest.CallStatus, quarklinktest.Delay(30*24*time.Hour))
		start := time.Now()
		_, err := c.Status(t.Context())
		assert.ErrorIs(t, err, quarklink.ErrCommunication, "silence before the answer")
		assert.LessOrEqual(t, time.Since(start), time.Hour)
		server.ClearFaults()

		server.Fault(quarklinktest.CallFirmware, quarklinktest.Answer(http.HandlerFunc(
			func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Length", "5")
				w.Write([]byte("im"))
				w.(http.Flusher).Flush()
				<-r.Context().Done()
			})))
		start = time.Now()
		_, err = c.FirmwareUpdate(t.Context(), quarklink.FirmwareOptions{Slot: newSlot(t, 1<<20), Verifier: anything})
		assert.ErrorIs(t, err, quarklink.ErrConnectionLost, "silence in the middle of an image")
		assert.LessOrEqual(t, time.Since(start), time.Hour)
	})
}

// modem is an Authenticator that looks for its own key.
type modem struct {
	transport.TLS
	seen func(crypto.PrivateKey)
}

func (m modem) As(id *tls.Certificate) transport.Transport {
	m.seen(id.PrivateKey)
	return m.TLS.As(id)
}

// TestAuthenticatorSeesItsKey: what the key store returned is what a transport
// with a key of its own must recognise.
func TestAuthenticatorSeesItsKey(t *testing.T) {
	server := newServer(t, quarklinktest.Options{InMemory: true})
	i := server.Instance()
	roots := x509.NewCertPool()
	roots.AddCert(i.Root)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	shown := 0
	c := newClient(t, new(store.Mem), func(cfg *quarklink.Config) {
		cfg.KeyStore, cfg.Instance = keystore.Static(key), &i
		cfg.Transport = modem{transport.TLS{ServerName: i.Endpoint, Roots: roots, Under: server.Carrier()},
			func(k crypto.PrivateKey) {
				if shown++; k != crypto.PrivateKey(key) {
					t.Errorf("the modem is shown a %T", k)
				}
			}}
	})
	member(t, server, c, quarklinktest.Batch{})
	_, err = c.Enrol(t.Context())
	require.NoError(t, err)
	assert.Equal(t, 2, shown, "certificates that the modem was given")
}

// TestSilenceAfterIdle: a connection that was idle is as patient as a new one.
func TestSilenceAfterIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, c := newMember(t, quarklinktest.Batch{})
		_, err := c.Status(t.Context())
		require.NoError(t, err)
		time.Sleep(58 * time.Second)
		server.Fault(quarklinktest.CallStatus, quarklinktest.Delay(90*time.Second))
		start := time.Now()
		_, err = c.Status(t.Context())
		require.NoError(t, err)
		assert.Equal(t, 90*time.Second, time.Since(start))
		assert.Equal(t, 1, server.Stats().Handshakes)
	})
}

// TestOneStreamAfterHungHandshake: the stream of a handshake that leads nowhere
// is closed before the next call opens one.
func TestOneStreamAfterHungHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := newServer(t, quarklinktest.Options{InMemory: true})
		under := server.Carrier()
		var mu sync.Mutex
		taken, dials := false, 0
		c := newClient(t, new(store.Mem), at(server), func(cfg *quarklink.Config) {
			cfg.Transport = transport.Func(func(ctx context.Context) (net.Conn, error) {
				mu.Lock()
				defer mu.Unlock()
				if taken {
					t.Error("two streams at once")
				}
				taken = true
				free := func() { mu.Lock(); taken = false; mu.Unlock() }
				if dials++; dials == 1 {
					silent, peer := quarklinktest.Pipe()
					t.Cleanup(func() { peer.Close() })
					return &cableConn{Conn: silent, free: free}, nil
				}
				conn, err := under.Dial(ctx)
				return &cableConn{Conn: conn, free: free}, err
			})
		})
		member(t, server, c, quarklinktest.Batch{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := c.Status(ctx)
		assert.ErrorIs(t, err, context.DeadlineExceeded, "the call that hung")
		_, err = c.Status(t.Context())
		assert.NoError(t, err, "the next call")
	})
}
