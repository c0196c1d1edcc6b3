package quarklinktest_test

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/quarklinktest"
	"github.com/quarklink-go/quarklink/transport"
	"github.com/quarklink-go/quarklink/transport/uart"
	"github.com/quarklink-go/quarklink/transport/uart/tunnel"
)

// cabled returns a client whose only way to the world is a cable, whose other end
// a tool serves until the test is over.
func cabled(t *testing.T, s *quarklinktest.Server, change func(*uart.Tool)) (*quarklink.Client, uart.Port) {
	t.Helper()
	device, port := quarklinktest.Pipe()
	tool := quarklinktest.NewTool(s, "b", quarklink.Network{SSID: "Workshop", Password: "correct horse"})
	if change != nil {
		change(tool)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var served sync.WaitGroup
	served.Go(func() { assert.ErrorIs(t, tool.Serve(ctx, port), context.Canceled) })
	c, err := quarklink.New(t.Context(), quarklink.Config{
		KeyStore:  twoKeys{newKey(t), newKey(t)},
		Transport: &uart.Tunnel{Port: device, Random: rand.Reader},
	})
	require.NoError(t, err)
	t.Cleanup(func() {
		assert.NoError(t, c.Close())
		cancel()
		served.Wait()
	})
	return c, device
}

// A device without a network does everything through its cable.
func TestTunnelEnrols(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, quarklinktest.Options{InMemory: true})
		require.NoError(t, s.AddBatch(quarklinktest.Batch{Name: "b"}))
		var mu sync.Mutex
		seen := map[uart.EventKind]int{}
		c, port := cabled(t, s, func(tool *uart.Tool) {
			tool.OnEvent = func(e uart.Event) {
				mu.Lock()
				defer mu.Unlock()
				seen[e.Kind]++
				if e.Kind == uart.EventTunnelDown && e.Err != nil {
					// A device that has heard enough may hang up while the
					// instance still says goodbye.
					assert.ErrorIs(t, e.Err, tunnel.ErrReset)
				}
			}
		})
		_, err := c.Provision(t.Context(), port, quarklink.ProvisionOptions{})
		require.NoError(t, err)
		_, err = c.Enrol(t.Context())
		require.NoError(t, err)
		status, err := c.Status(t.Context())
		require.NoError(t, err)
		assert.Equal(t, quarklink.StateEnrolled, status.State)
		assert.Len(t, s.Certificates(c.DeviceID()), 1)
		// The client leaves the line to the conversation, and comes back to it.
		_, err = c.Provision(t.Context(), port, quarklink.ProvisionOptions{})
		require.NoError(t, err)
		_, err = c.Status(t.Context())
		require.NoError(t, err)
		require.NoError(t, c.Close())
		time.Sleep(time.Second)
		mu.Lock()
		defer mu.Unlock()
		assert.Positive(t, seen[uart.EventTunnelUp])
		assert.Equal(t, seen[uart.EventTunnelUp], seen[uart.EventTunnelDown])
	})
}

// recorded is a port that keeps what passes.
type recorded struct {
	uart.Port
	mu   sync.Mutex
	seen []byte
}

func (r *recorded) keep(p []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen = append(r.seen, p...)
}

func (r *recorded) Read(p []byte) (int, error) {
	n, err := r.Port.Read(p)
	r.keep(p[:n])
	return n, err
}

func (r *recorded) Write(p []byte) (int, error) {
	r.keep(p)
	return r.Port.Write(p)
}

// transport.TLS works over the tunnel by itself, and the line shows nothing of
// what passes in it.
func TestTunnelUnderTLS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, quarklinktest.Options{InMemory: true})
		require.NoError(t, s.AddBatch(quarklinktest.Batch{Name: "b"}))
		_, port := cabled(t, s, nil)
		line := &recorded{Port: port}
		roots := x509.NewCertPool()
		roots.AddCert(s.Instance().Root)
		stream, err := transport.TLS{
			ServerName: s.Instance().Endpoint, Roots: roots, Under: &uart.Tunnel{Port: line, Random: rand.Reader},
		}.Dial(t.Context())
		require.NoError(t, err)
		fmt.Fprintf(stream, "GET /.well-known/est/cacerts HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", s.Instance().Endpoint)
		answer, err := io.ReadAll(stream)
		require.NoError(t, err)
		assert.Contains(t, string(answer), "200 OK")
		require.NoError(t, stream.Close())
		line.mu.Lock()
		defer line.mu.Unlock()
		assert.Contains(t, string(line.seen), "ql_tunnel")
		assert.NotContains(t, string(line.seen), "cacerts")
		assert.NotContains(t, string(line.seen), "200 OK")
	})
}
