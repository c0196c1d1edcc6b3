package quarklinktest_test

import (
	"context"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/keystore/software"
	"github.com/quarklink-go/quarklink/quarklinktest"
	"github.com/quarklink-go/quarklink/store"
)

// TestSnapshot restarts the instance: an enrolled device knows it again, is
// known, and gets the same certificate for the same request.
func TestSnapshot(t *testing.T) {
	st := new(store.Mem)
	live := func(server *quarklinktest.Server, batch quarklinktest.Batch) (quarklink.DeviceID, *quarklink.Enrolment) {
		t.Helper()
		keys, err := software.New(st, software.Options{Iterations: 1,
			Secret: func(context.Context) ([]byte, error) { return []byte("a secret of thirty-two characters"), nil }})
		require.NoError(t, err)
		i := server.Instance()
		c, err := quarklink.New(t.Context(), quarklink.Config{KeyStore: keys, Store: st, Instance: &i,
			Transport: server.Carrier()})
		require.NoError(t, err)
		defer c.Close()
		require.NoError(t, server.AddBatch(batch))
		require.NoError(t, server.AddDevices(batch.Name, c.DeviceID()))
		e, err := c.Enrol(t.Context())
		require.NoError(t, err)
		return c.DeviceID(), e
	}
	first := newServer(t, quarklinktest.Options{InMemory: true})
	id, before := live(first, quarklinktest.Batch{Name: "one"})
	snapshot, err := first.Snapshot()
	require.NoError(t, err)
	first.Close()

	second := newServer(t, quarklinktest.Options{InMemory: true, Snapshot: snapshot})
	assert.True(t, second.Instance().Root.Equal(first.Instance().Root), "another root")
	// What AddBatch would replace is not taken before it.
	assert.Error(t, second.Publish("one", quarklinktest.Firmware{Image: strings.NewReader("image"), AsIs: true}),
		"an image was published to a batch that is yet to be added")
	assert.Len(t, second.Devices("one"), 1, "the snapshot's device is not in its batch")
	again, after := live(second, quarklinktest.Batch{Name: "one"})
	assert.Equal(t, id, again)
	assert.True(t, after.Certificate.Equal(before.Certificate))
	assert.Len(t, second.Certificates(id), 1)
	assert.Error(t, second.AddBatch(quarklinktest.Batch{Name: "one"}), "a batch was added twice")
	for name, bad := range map[string][]byte{"empty": {}, "no JSON": []byte("x"),
		"half": snapshot[:len(snapshot)/2], "no keys": []byte("{}")} {
		if s, err := quarklinktest.NewServer(quarklinktest.Options{InMemory: true, Snapshot: bad}); err == nil {
			s.Close()
			t.Errorf("snapshot %s: no error", name)
		}
	}
}
