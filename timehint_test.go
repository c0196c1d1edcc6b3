package quarklink_test

import (
	"context"
	"net/http"
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

// TestTimeHint: the time is that of the last answer of the instance, whatever that
// says, and of no one else.
func TestTimeHint(t *testing.T) {
	today := newCalendar()
	server := newServer(t, quarklinktest.Options{InMemory: true, Now: today.time})
	c := newClient(t, new(store.Mem), at(server), today.on)
	_, ok := c.TimeHint()
	assert.False(t, ok, "before the first answer")

	own := server.Instance()
	stranger := own
	stranger.Root = newRoot(t, "stranger")
	require.NoError(t, c.SetInstance(t.Context(), stranger))
	_, err := c.Status(t.Context())
	require.Error(t, err)
	_, ok = c.TimeHint()
	assert.False(t, ok, "an instance that is not verified proves nothing")

	require.NoError(t, c.SetInstance(t.Context(), own))
	_, err = c.Status(t.Context())
	require.ErrorIs(t, err, quarklink.ErrDeviceDoesNotExist)
	for _, later := range []time.Duration{0, time.Hour, -30 * time.Minute} {
		today.pass(later)
		c.Status(t.Context())
		hint, ok := c.TimeHint()
		assert.True(t, ok)
		assert.Equal(t, today.now, hint, "also if the instance's clock was set back")
	}
}

// undated is a writer of answers without a Date field.
type undated struct{ http.ResponseWriter }

func (u undated) WriteHeader(status int) {
	u.Header()["Date"] = nil // else net/http adds it
	u.ResponseWriter.WriteHeader(status)
}

// TestTimeHintOfACertificate: where answers have no Date, it is known that a fresh
// certificate is valid.
func TestTimeHintOfACertificate(t *testing.T) {
	server, c := newMember(t, quarklinktest.Batch{})
	for _, call := range []quarklinktest.Call{quarklinktest.CallCACerts, quarklinktest.CallTemporary,
		quarklinktest.CallEnrol, quarklinktest.CallConnection, quarklinktest.CallStatus} {
		require.NoError(t, server.Fault(call, quarklinktest.Intercept(
			func(w http.ResponseWriter, r *http.Request, real http.Handler) { real.ServeHTTP(undated{w}, r) })))
	}
	_, err := c.Status(t.Context())
	require.NoError(t, err)
	_, ok := c.TimeHint()
	assert.False(t, ok)
	e, err := c.Enrol(t.Context())
	require.NoError(t, err)
	hint, ok := c.TimeHint()
	assert.True(t, ok)
	assert.Equal(t, e.Certificate.NotBefore.UTC(), hint)
}

// counting counts the writes of each record.
type counting struct {
	*store.Mem
	mu   sync.Mutex
	puts map[string]int
}

func (c *counting) Put(ctx context.Context, name string, data []byte) error {
	c.mu.Lock()
	c.puts[name]++
	c.mu.Unlock()
	return c.Mem.Put(ctx, name, data)
}

// TestTimeHintIsStored: Run stores the time once a day, and a device that starts
// knows it before it reaches anyone.
func TestTimeHintIsStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := &counting{Mem: new(store.Mem), puts: map[string]int{}}
		server, c := newRunner(t, quarklinktest.Batch{}, func(cfg *quarklink.Config) { cfg.Store = st })
		defer server.Close()
		r := start(t, c, quarklink.Loop{})
		time.Sleep(10*24*time.Hour + time.Hour)
		r.stop(t)
		require.NoError(t, c.Close())
		assert.GreaterOrEqual(t, st.puts["time"], 9)
		assert.LessOrEqual(t, st.puts["time"], 11)

		restarted := newClient(t, st.Mem)
		hint, ok := restarted.TimeHint()
		assert.True(t, ok)
		assert.False(t, hint.After(time.Now()))
		assert.Less(t, time.Since(hint), 26*time.Hour)
	})
}

// TestTimeHintIsDamaged: a damaged time is none, and is replaced.
func TestTimeHintIsDamaged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, record := range map[string][]byte{
			"no record":  []byte("x"),
			"no JSON":    store.EncodeRecord("time", 1, []byte("x")),
			"no time":    store.EncodeRecord("time", 1, []byte(`{"time":"yesterday"}`)),
			"of another": store.EncodeRecord("update", 1, []byte(`{"time":"2030-01-01T00:00:00Z"}`)),
		} {
			st := new(store.Mem)
			require.NoError(t, st.Put(t.Context(), "time", record))
			server, c := newRunner(t, quarklinktest.Batch{}, func(cfg *quarklink.Config) { cfg.Store = st })
			_, ok := c.TimeHint()
			assert.False(t, ok, name)
			r := start(t, c, quarklink.Loop{})
			time.Sleep(time.Minute)
			r.stop(t)
			require.NoError(t, c.Close())
			server.Close()
			hint, ok := newClient(t, st).TimeHint()
			assert.True(t, ok, name)
			assert.WithinDuration(t, time.Now(), hint, 2*time.Minute, name)
		}
	})
}
