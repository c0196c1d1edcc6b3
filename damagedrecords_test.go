package quarklink_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/keystore/software"
	"github.com/quarklink-go/quarklink/store"
)

// TestDamagedRecords flips every bit of each stored record: New fails for the
// key alone, and what needs a damaged record says so until it is replaced.
func TestDamagedRecords(t *testing.T) {
	root := newRoot(t, "instance root")
	st := new(store.Mem)
	ctx := t.Context()
	c := newClient(t, st)
	instance := quarklink.Instance{Endpoint: "instance.example", Root: root}
	require.NoError(t, c.SetInstance(ctx, instance))
	open := func() (*quarklink.Client, error) {
		keys, err := software.New(st, software.Options{Secret: secret, Iterations: 1})
		require.NoError(t, err)
		return quarklink.New(ctx, quarklink.Config{KeyStore: keys, Store: st})
	}
	flips := func(name string, check func(bit int)) {
		good, err := st.Get(ctx, name)
		require.NoError(t, err)
		for bit := 0; bit < 8*len(good); bit += 5 {
			bad := bytes.Clone(good)
			bad[bit/8] ^= 1 << (bit % 8)
			require.NoError(t, st.Put(ctx, name, bad))
			check(bit)
		}
		for _, half := range [][]byte{good[:len(good)/2], good[:1], {}} {
			require.NoError(t, st.Put(ctx, name, half))
			check(-1)
		}
		require.NoError(t, st.Put(ctx, name, good))
	}
	flips("instance", func(bit int) {
		damaged, err := open()
		require.NoError(t, err, "New with instance bit %d", bit)
		defer damaged.Close()
		_, err = damaged.Status(ctx)
		require.ErrorIs(t, err, quarklink.ErrStorage, "Status with instance bit %d", bit)
		_, err = damaged.Instance()
		require.ErrorIs(t, err, quarklink.ErrStorage, "Instance with instance bit %d", bit)
		require.NotErrorIs(t, err, quarklink.ErrNotInitialised, "Instance with instance bit %d", bit)
		if bit != 0 {
			return
		}
		require.NoError(t, damaged.SetInstance(ctx, instance))
		_, err = damaged.Instance()
		assert.NoError(t, err, "a replaced instance is still damaged")
	})
	flips("key-esk", func(bit int) {
		c, err := open()
		if err == nil {
			c.Close()
			t.Fatalf("key bit %d: New accepted a damaged key", bit)
		}
		require.ErrorIs(t, err, quarklink.ErrStorage, "key bit %d", bit)
		require.ErrorIs(t, err, store.ErrDamaged, "key bit %d", bit)
	})
	again, err := open()
	require.NoError(t, err)
	assert.Equal(t, c.DeviceID(), again.DeviceID(), "the identity survives")
	again.Close()
}

// TestOversizedRecord: a file that no record can be is damage that the Store
// itself notices.
func TestOversizedRecord(t *testing.T) {
	dir := privateDir(t)
	st := store.Dir(dir)
	before := newClient(t, st)
	for _, name := range []string{"instance", "network", "enrolment", "csr"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), make([]byte, store.MaxSize+1), 0o600))
	}
	c := newClient(t, st)
	assert.Equal(t, before.DeviceID(), c.DeviceID())
	_, err := c.Enrolment()
	assert.ErrorIs(t, err, quarklink.ErrStorage, "Enrolment")
	assert.NoError(t, c.SetInstance(t.Context(),
		quarklink.Instance{Endpoint: "instance.example", Root: newRoot(t, "root")}), "SetInstance, which mends it")
}

// TestRecordOfALaterVersion is refused, not misread.
func TestRecordOfALaterVersion(t *testing.T) {
	st := new(store.Mem)
	c := newClient(t, st)
	ctx := t.Context()
	require.NoError(t, c.SetInstance(ctx, quarklink.Instance{Endpoint: "instance.example", Root: newRoot(t, "root")}))
	i, err := c.Instance()
	require.NoError(t, err)
	assert.EqualValues(t, quarklink.DefaultPort, i.Port)
	data, err := st.Get(ctx, "instance")
	require.NoError(t, err)
	version, payload, err := store.DecodeRecord("instance", data)
	require.NoError(t, err)
	require.NoError(t, st.Put(ctx, "instance", store.EncodeRecord("instance", version+1, payload)))
	_, err = newClient(t, st).Instance()
	assert.ErrorIs(t, err, quarklink.ErrStorage)
	assert.ErrorContains(t, err, "version")
}
