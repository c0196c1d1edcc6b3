package quarklink_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
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
		if err != nil {
			t.Fatalf("instance bit %d: New: %v", bit, err)
		}
		defer damaged.Close()
		if _, err := damaged.Status(ctx); !errors.Is(err, quarklink.ErrStorage) {
			t.Fatalf("instance bit %d: Status: %v", bit, err)
		}
		if _, err := damaged.Instance(); !errors.Is(err, quarklink.ErrStorage) || errors.Is(err, quarklink.ErrNotInitialised) {
			t.Fatalf("instance bit %d: Instance: %v", bit, err)
		}
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
		if !errors.Is(err, quarklink.ErrStorage) || !errors.Is(err, store.ErrDamaged) {
			t.Fatalf("key bit %d: %v", bit, err)
		}
	})
	again, err := open()
	if err != nil || again.DeviceID() != c.DeviceID() {
		t.Errorf("the identity did not survive: %v", err)
	}
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
	if c.DeviceID() != before.DeviceID() {
		t.Error("another identity")
	}
	_, err := c.Enrolment()
	assert.ErrorIs(t, err, quarklink.ErrStorage, "Enrolment")
	assert.NoError(t, c.SetInstance(t.Context(), quarklink.Instance{Endpoint: "instance.example", Root: newRoot(t, "root")}), "SetInstance, which mends it")
}

// TestRecordOfALaterVersion is refused, not misread.
func TestRecordOfALaterVersion(t *testing.T) {
	st := new(store.Mem)
	c := newClient(t, st)
	ctx := t.Context()
	require.NoError(t, c.SetInstance(ctx, quarklink.Instance{Endpoint: "instance.example", Root: newRoot(t, "root")}))
	if i, err := c.Instance(); err != nil || i.Port != quarklink.DefaultPort {
		t.Errorf("instance without a port: %+v, %v", i, err)
	}
	data, err := st.Get(ctx, "instance")
	require.NoError(t, err)
	version, payload, err := store.DecodeRecord("instance", data)
	require.NoError(t, err)
	require.NoError(t, st.Put(ctx, "instance", store.EncodeRecord("instance", version+1, payload)))
	if _, err := newClient(t, st).Instance(); !errors.Is(err, quarklink.ErrStorage) || !strings.Contains(err.Error(), "version") {
		t.Errorf("a record of a later version: %v", err)
	}
}
