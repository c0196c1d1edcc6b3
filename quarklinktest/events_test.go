package quarklinktest_test

import (
	"context"
	"fmt"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/quarklinktest"
)

// TestEventsOfALife: each step of a device is told once, in order.
func TestEventsOfALife(t *testing.T) {
	s, d := newBatchServer(t)
	d.enrol()
	require.NoError(t, s.Revoke(d.id))
	c := d.client(d.identity)
	assert.Equal(t, 403, d.get(c, pathFirmware).status)
	require.NoError(t, s.RemoveDevices(d.id))
	require.NoError(t, s.RemoveBatch("b"))

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var told []string
	for e := range s.Events(ctx, 0) {
		assert.Equal(t, uint64(len(told)+1), e.Seq)
		assert.False(t, e.Time.IsZero(), "event %d has no time", e.Seq)
		line := string(e.Kind) + " " + string(e.Call) + e.State
		if e.Kind == quarklinktest.EventRequest {
			line += fmt.Sprint(" ", e.Status)
		}
		if e.Kind != quarklinktest.EventBatch {
			assert.Equal(t, d.id, e.DeviceID, line)
		}
		if told = append(told, line); e.Kind == quarklinktest.EventBatch && e.Detail == "removed" {
			break
		}
	}
	about := s.PastEvents(d.id)
	require.Len(t, about, len(told)-2, "all but those of the batch alone")
	assert.Equal(t, quarklinktest.EventDevice, about[0].Kind)
	assert.Empty(t, s.PastEvents("nobody"))
	assert.Equal(t, []string{
		"batch ", "device not_enrolled", "request temporary 200",
		"certificate ", "device enrolled", "request enrol 200",
		"device revoked", "request firmware 403", "device removed", "batch ",
	}, told)
}

// TestEventsOfASlowReader: a reader that is too slow misses the oldest events,
// which it sees by their numbers, and no other.
func TestEventsOfASlowReader(t *testing.T) {
	s := newServer(t, quarklinktest.Options{InMemory: true})
	require.NoError(t, s.AddBatch(quarklinktest.Batch{Name: "b"}))
	for n := range 12_000 {
		require.NoError(t, s.SetPollAfter("b", time.Duration(n)))
	}
	want := uint64(2_002) // of 12,001 events, the latest 10,000
	for e := range s.Events(t.Context(), 5) {
		require.Equal(t, want, e.Seq)
		if want++; e.Seq == 12_001 {
			break
		}
	}
}

func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, quarklinktest.Options{InMemory: true})
		require.NoError(t, s.AddBatch(quarklinktest.Batch{Name: "b"}))
		device, err := s.NewDevice(t.Context(), "b")
		require.NoError(t, err)
		defer device.Close()
		go func() {
			for range 3 {
				time.Sleep(time.Hour)
				device.Status(t.Context())
			}
			device.Enrol(t.Context())
		}()
		require.NoError(t, s.Wait(t.Context(), func() bool {
			return s.Stats().Calls[quarklinktest.CallStatus] == 3
		}))
		require.NoError(t, s.Wait(t.Context(), func() bool {
			known, _ := s.Device(device.DeviceID())
			return known.State == quarklink.StateEnrolled
		}))

		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.ErrorIs(t, s.Wait(ctx, func() bool { return false }), context.DeadlineExceeded)
		go func() { time.Sleep(time.Minute); s.Close() }()
		require.ErrorIs(t, s.Wait(t.Context(), func() bool { return false }), net.ErrClosed)
	})
}
