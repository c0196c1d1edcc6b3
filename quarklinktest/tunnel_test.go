package quarklinktest_test

import (
	"context"
	"crypto/rand"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/quarklinktest"
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
