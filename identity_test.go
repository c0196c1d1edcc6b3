package quarklink_test

import (
	"context"
	"crypto"
	"errors"
	"io/fs"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/quarklinktest"
	"github.com/quarklink-go/quarklink/store"
)

// A volume that is not mounted is not a blank device: nothing is made, nothing
// written, and once it is mounted the device is who it was.
func TestRequireIdentity(t *testing.T) {
	parent := t.TempDir()
	st := store.Dir(filepath.Join(parent, "volume"))
	id := newClient(t, st).DeviceID()

	unmounted := store.Dir(filepath.Join(parent, "mountpoint"))
	c, err := quarklink.New(t.Context(), quarklink.Config{
		KeyStore: newKeys(t, unmounted), Store: unmounted, RequireIdentity: true})
	require.ErrorIs(t, err, fs.ErrNotExist)
	assert.Nil(t, c)
	for _, hint := range []string{"RequireIdentity", "mounted"} {
		assert.ErrorContains(t, err, hint)
	}
	assert.NoDirExists(t, string(unmounted))

	mounted := newClient(t, st, func(cfg *quarklink.Config) { cfg.RequireIdentity = true })
	assert.Equal(t, id, mounted.DeviceID())
}

// The device key is not the identity: it is made even so.
func TestRequireIdentityMakesADeviceKey(t *testing.T) {
	server := newServer(t, quarklinktest.Options{InMemory: true})
	st := new(store.Mem)
	newClient(t, st)
	require.NoError(t, st.Delete(t.Context(), "key-dsk"))
	c := newClient(t, st, at(server), func(cfg *quarklink.Config) { cfg.RequireIdentity = true })
	member(t, server, c, quarklinktest.Batch{})
	_, err := c.Enrol(t.Context())
	assert.NoError(t, err)
}

// faultyKeys is a key store whose Signer fails for one role, and that would make
// any key it is asked for.
type faultyKeys struct {
	keystore.Generator
	role keystore.Role
	err  error
	made []keystore.Role
}

func (k *faultyKeys) Signer(ctx context.Context, role keystore.Role) (crypto.Signer, error) {
	if role == k.role {
		return nil, k.err
	}
	return k.Generator.Signer(ctx, role)
}

func (k *faultyKeys) Generate(ctx context.Context, role keystore.Role) (crypto.Signer, error) {
	k.made = append(k.made, role)
	return k.Generator.Generate(ctx, role)
}

// Only fs.ErrNotExist says that there is no key. Whatever else a key store says,
// no key is made: it would be a new identity.
func TestNoKeyIsMadeOnAnotherError(t *testing.T) {
	for name, fault := range map[string]error{
		"a chip that does not answer": errors.New("no answer on the bus"),
		"a damaged key":               store.ErrDamaged,
		"a key for another":           fs.ErrPermission,
		"a key that exists":           fs.ErrExist,
		"a bad request":               fs.ErrInvalid,
		"a timeout of the store":      context.DeadlineExceeded,
	} {
		t.Run(name, func(t *testing.T) {
			keys := &faultyKeys{Generator: newKeys(t, new(store.Mem)), role: keystore.Enrolment, err: fault}
			c, err := quarklink.New(t.Context(), quarklink.Config{KeyStore: keys})
			require.ErrorIs(t, err, fault)
			assert.Nil(t, c)
			assert.Empty(t, keys.made)
		})
	}
}
