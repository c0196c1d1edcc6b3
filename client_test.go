package quarklink_test

import (
	"context"
	"errors"
	"net"
	"os"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/quarklinktest"
	"github.com/quarklink-go/quarklink/store"
)

// TestLife is the application note's figure 2, and then enrolment: over a cable
// and loopback TCP, from a blank device to one with a hub.
func TestLife(t *testing.T) {
	ctx := t.Context()
	server := newServer(t, quarklinktest.Options{})
	require.NoError(t, server.AddBatch(quarklinktest.Batch{Name: "My_MQTT_Batch", PollAfter: 20 * time.Second}))
	st := store.Dir(privateDir(t))
	c := newClient(t, st)
	_, err := c.Status(ctx)
	assert.ErrorIs(t, err, quarklink.ErrNotInitialised, "status of a blank device")

	device, host := quarklinktest.Pipe()
	tool := quarklinktest.NewTool(server, "My_MQTT_Batch", quarklink.Network{SSID: "lab", Password: "correct horse"})
	put := tool.OnDeviceID
	tool.OnDeviceID = func(ctx context.Context, id string) error { // the device is not in the batch yet
		_, err := reopen(t, st).Status(ctx)
		assert.ErrorIs(t, err, quarklink.ErrDeviceDoesNotExist,
			"status before the tool has put the device into the batch")
		return put(ctx, id)
	}
	served := make(chan error)
	go func() { served <- tool.Serve(ctx, host) }()
	network, err := c.Provision(ctx, device, quarklink.ProvisionOptions{})
	require.NoError(t, err)
	device.Close()
	<-served
	assert.Equal(t, "lab", network.SSID)

	status, err := c.Status(ctx)
	require.NoError(t, err)
	assert.Equal(t, quarklink.CodeNotEnrolled, status.Code())
	assert.True(t, status.NeedsEnrolment())
	assert.Equal(t, "My_MQTT_Batch", status.Batch)
	assert.Equal(t, 20*time.Second, status.PollAfter)
	enrolment, err := c.Enrol(ctx)
	require.NoError(t, err)
	assert.Equal(t, string(c.DeviceID()), enrolment.Certificate.Subject.CommonName)
	require.NotNil(t, enrolment.Hub)
	assert.Nil(t, enrolment.Database)
	status, err = c.Status(ctx)
	require.NoError(t, err)
	assert.Equal(t, quarklink.CodeEnrolled, status.Code())
	assert.False(t, status.NeedsEnrolment())

	// A restart keeps all of it.
	again := reopen(t, st)
	stored, err := again.Enrolment()
	require.NoError(t, err)
	assert.Equal(t, enrolment.Certificate.Raw, stored.Certificate.Raw)
	require.NotNil(t, stored.Hub)
	assert.Equal(t, enrolment.Hub.Endpoint, stored.Hub.Endpoint)
	assert.Len(t, stored.Chain, len(enrolment.Chain))
	require.NoError(t, again.ForgetEnrolment(ctx))
	_, err = again.Enrolment()
	assert.ErrorIs(t, err, quarklink.ErrNoEnrolment, "enrolment after ForgetEnrolment")
	require.NoError(t, again.ForgetInstance(ctx))
	last := reopen(t, st)
	_, err = last.Enrolment()
	assert.ErrorIs(t, err, quarklink.ErrNothingStored, "enrolment with nothing stored")
	assert.Equal(t, c.DeviceID(), last.DeviceID(), "forgetting keeps the identity")
}

// TestOneAtATime: calls wait for their turn, obey their context while they do,
// and end with Close.
func TestOneAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, c := newMember(t, quarklinktest.Batch{})
		server.Fault(quarklinktest.CallStatus, quarklinktest.Delay(time.Hour))
		slow := make(chan error)
		go func() { _, err := c.Status(t.Context()); slow <- err }()
		synctest.Wait()

		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := c.Enrol(ctx)
		var e *quarklink.Error
		assert.ErrorIs(t, err, context.DeadlineExceeded, "a call that waited in vain")
		require.ErrorAs(t, err, &e)
		assert.Zero(t, e.Code)
		_, err = c.Enrolment()
		assert.ErrorIs(t, err, quarklink.ErrNoEnrolment, "Enrolment, which needs no turn")
		c.Close()
		err = <-slow
		assert.ErrorIs(t, err, net.ErrClosed, "the call that Close ended")
		assert.NotErrorIs(t, err, context.Canceled)
		_, err = c.Status(t.Context())
		assert.ErrorIs(t, err, net.ErrClosed, "a call after Close")
		c.Close()
	})
}

// TestConcurrentCalls is for the race detector.
func TestConcurrentCalls(t *testing.T) {
	_, c := newMember(t, quarklinktest.Batch{})
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			_, err := c.Status(t.Context())
			assert.NoError(t, err)
		})
		all.Go(func() {
			_, err := c.Enrol(t.Context())
			assert.NoError(t, err)
			c.Enrolment()
			c.Instance()
			c.DeviceID()
		})
	}
	all.Wait()
}

// TestNothingLeftBehind enrols 50 times over loopback TCP and counts goroutines
// and descriptors.
func TestNothingLeftBehind(t *testing.T) {
	server := newServer(t, quarklinktest.Options{})
	require.NoError(t, server.AddBatch(quarklinktest.Batch{Name: "batch"}))
	live := func() {
		c := newClient(t, new(store.Mem), at(server))
		require.NoError(t, server.AddDevices("batch", c.DeviceID()))
		_, err := c.Enrol(t.Context())
		require.NoError(t, err)
		_, err = c.Status(t.Context())
		require.NoError(t, err)
		require.NoError(t, c.Close())
	}
	live() // whatever is made once
	settle(func() bool { return server.Stats().Open == 0 })
	goroutines, files := runtime.NumGoroutine(), descriptors()
	for range 50 {
		live()
	}
	settle(func() bool {
		return server.Stats().Open == 0 && runtime.NumGoroutine() <= goroutines && descriptors() <= files
	})
	assert.LessOrEqual(t, runtime.NumGoroutine(), goroutines, "goroutines after 50 enrolments")
	assert.LessOrEqual(t, descriptors(), files, "descriptors after 50 enrolments")
}

// descriptors returns how many files are open, where the system tells.
func descriptors() int {
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(names)
}

// TestCloseFromCallback: what is called back may close the client.
func TestCloseFromCallback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, c := newMember(t, asIs([]byte("image")))
		_, err := c.FirmwareUpdate(t.Context(), quarklink.FirmwareOptions{Slot: newSlot(t, 1<<20), Verifier: anything,
			Progress: func(int64, int64) { c.Close() }})
		if err != nil && !errors.Is(err, net.ErrClosed) { // nil: it was done before it noticed
			t.Errorf("error %v", err)
		}
		synctest.Wait()
		assert.Zero(t, server.Stats().Open, "connections after Close")
	})
}
