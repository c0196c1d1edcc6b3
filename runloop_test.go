package quarklink_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/quarklinktest"
)

// TestRunHubComesBack: when the connection breaks that has lasted, the instance is
// asked and the hub function called within half a minute, however seldom the
// instance wishes to be asked.
func TestRunHubComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, c := newRunner(t, quarklinktest.Batch{PollAfter: 12 * time.Hour})
		defer server.Close()
		defer c.Close()
		breaks := make(chan struct{})
		var contexts []context.Context
		r := start(t, c, quarklink.Loop{Hub: func(ctx context.Context, _ *quarklink.Enrolment) error {
			contexts = append(contexts, ctx)
			select {
			case <-breaks:
				return errors.New("broken")
			case <-ctx.Done():
				return ctx.Err()
			}
		}})
		time.Sleep(time.Hour)
		asked := server.Stats().Calls[quarklinktest.CallStatus]
		breaks <- struct{}{}
		time.Sleep(30 * time.Second)
		synctest.Wait()
		assert.Equal(t, asked+1, server.Stats().Calls[quarklinktest.CallStatus])
		assert.Len(t, contexts, 2, "calls of the hub function")
		require.Error(t, contexts[0].Err(), "the context of a call ends with it")
		r.stop(t)
	})
}

// TestRunGoesOnlineAgain: each time the instance was not reached the network is
// joined again before it is asked; otherwise it is not.
func TestRunGoesOnlineAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var way *line
		server, c := newRunner(t, quarklinktest.Batch{}, func(cfg *quarklink.Config) {
			way = &line{Transport: cfg.Transport}
			cfg.Transport = way
		})
		defer server.Close()
		defer c.Close()
		r := start(t, c, quarklink.Loop{Online: func(context.Context, quarklink.Network) error { return nil }})
		time.Sleep(12 * time.Hour)
		synctest.Wait()
		require.Equal(t, 1, r.count("online"))
		way.setDown(true)
		time.Sleep(12 * time.Hour)
		synctest.Wait()
		lost := r.count("status failed")
		assert.Greater(t, lost, 5)
		assert.InDelta(t, lost, r.count("online"), 1)
		way.setDown(false)
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		online := r.count("online")
		time.Sleep(12 * time.Hour)
		synctest.Wait()
		assert.Equal(t, online, r.count("online"), "the instance is reached again")
		r.stop(t)
	})
}

// TestRunIsLeftAlone: an instance that wants to be left alone for longer than Run
// would wait is.
func TestRunIsLeftAlone(t *testing.T) {
	for _, call := range []quarklinktest.Call{quarklinktest.CallStatus, quarklinktest.CallTemporary} {
		t.Run(string(call), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server, c := newRunner(t, quarklinktest.Batch{})
				defer server.Close()
				defer c.Close()
				require.NoError(t, server.Fault(call, quarklinktest.Refuse(503, "", 5*time.Hour)))
				r := start(t, c, quarklink.Loop{})
				time.Sleep(5 * time.Hour)
				assert.Equal(t, 1, server.Stats().Calls[call])
				time.Sleep(time.Hour) // its jitter
				assert.Equal(t, 2, server.Stats().Calls[call])
				r.stop(t)
			})
		})
	}
}

// TestRunRenewsInTime: a certificate is renewed when it is due, however seldom the
// instance wishes to be asked.
func TestRunRenewsInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, c := newRunner(t, quarklinktest.Batch{PollAfter: 24 * time.Hour,
			Policy: quarklinktest.Policy{Lifetime: 20 * time.Hour}})
		defer server.Close()
		defer c.Close()
		r := start(t, c, quarklink.Loop{})
		time.Sleep(time.Minute)
		first, err := c.Enrolment()
		require.NoError(t, err)
		time.Sleep(time.Until(first.RenewAt))
		assert.Zero(t, r.count("renew"))
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		assert.Equal(t, 1, r.count("renew"))
		r.stop(t)
	})
}

// TestRunTellsTheEnd: what happened last is told before Run returns, to a reader
// that takes its time.
func TestRunTellsTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, c := newRunner(t, quarklinktest.Batch{})
		defer server.Close()
		defer c.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		told := new(diary)
		err := c.Run(ctx, quarklink.Loop{Hub: hubThatLasts, Event: func(e quarklink.Event) {
			time.Sleep(time.Second)
			told.add(e)
		}})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		steps := told.steps()
		assert.Equal(t, "hub end failed", steps[len(steps)-1])
	})
}
