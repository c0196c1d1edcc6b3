package quarklink_test

import (
	"bytes"
	"context"
	"crypto"
	"io/fs"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/keystore/software"
	"github.com/quarklink-go/quarklink/quarklinktest"
	"github.com/quarklink-go/quarklink/store"
)

// spoil flips a bit of a record.
func spoil(t *testing.T, st store.Store, name string) {
	t.Helper()
	data, err := st.Get(t.Context(), name)
	require.NoError(t, err)
	data[len(data)/2] ^= 1
	require.NoError(t, st.Put(t.Context(), name, data))
}

// TestDamagedDeviceKey: a damaged device key is no dead end. The device says
// that it needs to enrol, and Enrol gives it another key, as the same device.
func TestDamagedDeviceKey(t *testing.T) {
	ctx := t.Context()
	server, st := newServer(t, quarklinktest.Options{InMemory: true}), new(store.Mem)
	before := newClient(t, st, at(server))
	member(t, server, before, quarklinktest.Batch{})
	first, err := before.Enrol(ctx)
	require.NoError(t, err)
	spoil(t, st, "key-dsk")

	var log bytes.Buffer
	c := newClient(t, st, at(server), func(cfg *quarklink.Config) {
		cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
	})
	status, err := c.Status(ctx)
	require.NoError(t, err)
	assert.False(t, status.HasEnrolment)
	assert.True(t, status.NeedsEnrolment())
	_, err = c.HubTLSConfig(ctx)
	assert.ErrorIs(t, err, quarklink.ErrStorage)
	assert.ErrorIs(t, err, store.ErrDamaged)

	second, err := c.Enrol(ctx)
	require.NoError(t, err)
	assert.Contains(t, log.String(), "device key is damaged and is replaced")
	assert.Equal(t, before.DeviceID(), c.DeviceID())
	assert.False(t, second.Certificate.Equal(first.Certificate))
	for _, c := range []*quarklink.Client{c, newClient(t, st, at(server))} {
		assert.True(t, second.Certificate.Equal(shown(t, c)))
		status, err := c.Status(ctx)
		require.NoError(t, err)
		assert.False(t, status.NeedsEnrolment())
	}
}

// TestDamagedDeviceKeyPowerCut cuts power at every write of that Enrol.
func TestDamagedDeviceKeyPowerCut(t *testing.T) {
	eachCut(t, func(t *testing.T, st store.Creator, cut *cutStore) error {
		server := newServer(t, quarklinktest.Options{InMemory: true})
		before := newClient(t, st, at(server))
		member(t, server, before, quarklinktest.Batch{})
		_, err := before.Enrol(t.Context())
		require.NoError(t, err)
		spoil(t, st, "key-dsk")
		_, err = newClient(t, cut, at(server)).Enrol(t.Context())
		if !cut.dead {
			return err
		}
		require.ErrorIs(t, err, errCut)
		c := newClient(t, st, at(server))
		e, err := c.Enrol(t.Context())
		require.NoError(t, err)
		issued := server.Certificates(c.DeviceID())
		require.Len(t, issued, 2)
		assert.True(t, e.Certificate.Equal(issued[1]))
		assert.True(t, e.Certificate.Equal(shown(t, c)))
		return nil
	})
}

// failingKeys has an error for the device key.
type failingKeys struct {
	keystore.KeyStore
	err error
}

func (k failingKeys) Signer(ctx context.Context, role keystore.Role) (crypto.Signer, error) {
	if role == keystore.Device {
		return nil, k.err
	}
	return k.KeyStore.Signer(ctx, role)
}

// rotatingKeys is failingKeys of a store that could replace the key.
type rotatingKeys struct {
	failingKeys
	keystore.Rotator
	staged *int
}

func (k rotatingKeys) Signer(ctx context.Context, role keystore.Role) (crypto.Signer, error) {
	return k.failingKeys.Signer(ctx, role)
}

func (k rotatingKeys) Stage(ctx context.Context, role keystore.Role) (crypto.Signer, error) {
	*k.staged++
	return k.Rotator.Stage(ctx, role)
}

// TestDeviceKeyIsNotDamaged: a chip that does not answer now, or a wrong secret,
// makes nobody enrol again, and no other key either.
func TestDeviceKeyIsNotDamaged(t *testing.T) {
	for name, failure := range map[string]error{"busy": errChip, "secret": software.ErrSecret} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			server, st := newServer(t, quarklinktest.Options{InMemory: true}), new(store.Mem)
			c := newClient(t, st, at(server))
			member(t, server, c, quarklinktest.Batch{})
			_, err := c.Enrol(ctx)
			require.NoError(t, err)
			staged := 0
			keys := newKeys(t, st)
			c = newClient(t, st, at(server), func(cfg *quarklink.Config) {
				cfg.KeyStore = rotatingKeys{failingKeys{keys, failure}, keys, &staged}
			})
			status, err := c.Status(ctx)
			require.NoError(t, err)
			assert.True(t, status.HasEnrolment)
			_, err = c.Enrol(ctx)
			assert.ErrorIs(t, err, failure)
			assert.Zero(t, staged)
		})
	}
}

// TestDamagedDeviceKeyStays: a key store that cannot replace a key says so.
func TestDamagedDeviceKeyStays(t *testing.T) {
	_, c := newMember(t, quarklinktest.Batch{}, func(cfg *quarklink.Config) {
		keys := cfg.KeyStore
		_, err := keys.(keystore.Generator).Generate(context.Background(), keystore.Enrolment)
		require.NoError(t, err)
		cfg.KeyStore = failingKeys{keys, store.ErrDamaged}
	})
	_, err := c.Enrol(t.Context())
	require.ErrorIs(t, err, quarklink.ErrStorage)
	assert.ErrorContains(t, err, "cannot replace")
}

// TestLostDeviceKey: an enrolment without its key is none, and Enrol makes
// another.
func TestLostDeviceKey(t *testing.T) {
	server := newServer(t, quarklinktest.Options{InMemory: true})
	st := new(store.Mem)
	c := newClient(t, st, at(server))
	member(t, server, c, quarklinktest.Batch{})
	ctx := t.Context()
	first, err := c.Enrol(ctx)
	require.NoError(t, err)
	require.NoError(t, st.Delete(ctx, "key-dsk"))
	again := newClient(t, st, at(server))
	_, err = again.HubTLSConfig(ctx)
	assert.ErrorIs(t, err, fs.ErrNotExist, "HubTLSConfig without the device key")
	s, err := again.Status(ctx)
	require.NoError(t, err)
	assert.True(t, s.NeedsEnrolment(), "without the device key")
	second, err := again.Enrol(ctx)
	require.NoError(t, err)
	assert.NotEqual(t, first.Certificate.Raw, second.Certificate.Raw, "the certificate is over the new key")
	s, err = again.Status(ctx)
	require.NoError(t, err)
	assert.False(t, s.NeedsEnrolment(), "after another enrolment")

	// Another key in its place: the certificate is not over it.
	other := newKeys(t, new(store.Mem))
	_, err = other.Generate(ctx, keystore.Device)
	require.NoError(t, err)
	swapped := newClient(t, st, at(server), func(cfg *quarklink.Config) {
		cfg.KeyStore = mixedKeys{cfg.KeyStore,
			other}
	})
	_, err = swapped.HubTLSConfig(ctx)
	assert.ErrorIs(t, err, quarklink.ErrGeneral, "HubTLSConfig with another device key")
	s, err = swapped.Status(ctx)
	require.NoError(t, err)
	assert.True(t, s.NeedsEnrolment(), "with another device key")
}

// mixedKeys takes its keys from two stores.
type mixedKeys struct{ enrolment, device keystore.KeyStore }

func (m mixedKeys) Signer(ctx context.Context, role keystore.Role) (crypto.Signer, error) {
	if role == keystore.Device {
		return m.device.Signer(ctx, role)
	}
	return m.enrolment.Signer(ctx, role)
}
