package quarklink_test

import (
	"context"
	"crypto"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
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

// A device that cannot make keys on a chip makes both at its initialisation, and
// enrolment certifies the one that was made then.
func TestInitialisationMakesTheDeviceKey(t *testing.T) {
	server := newServer(t, quarklinktest.Options{InMemory: true})
	st := new(store.Mem)
	c := newClient(t, st, at(server))
	dsk, err := newKeys(t, st).Signer(t.Context(), keystore.Device)
	require.NoError(t, err)
	member(t, server, c, quarklinktest.Batch{})
	e, err := c.Enrol(t.Context())
	require.NoError(t, err)
	assert.Equal(t, dsk.Public(), e.Certificate.PublicKey)
}

// onChip makes one key at a time, as a chip does.
type onChip struct {
	keystore.KeyStore
	esk, dsk keystore.Generator
}

func (k onChip) of(role keystore.Role) keystore.Generator {
	if role == keystore.Device {
		return k.dsk
	}
	return k.esk
}

func (k onChip) Signer(ctx context.Context, role keystore.Role) (crypto.Signer, error) {
	return k.of(role).Signer(ctx, role)
}

func (k onChip) Generate(ctx context.Context, role keystore.Role) (crypto.Signer, error) {
	return k.of(role).Generate(ctx, role)
}

// With on-chip generation the device key is made at enrolment, not before.
func TestEnrolmentMakesTheDeviceKeyOnChip(t *testing.T) {
	keys := onChip{esk: newKeys(t, new(store.Mem)), dsk: newKeys(t, new(store.Mem))}
	server := newServer(t, quarklinktest.Options{InMemory: true})
	c := newClient(t, new(store.Mem), at(server), func(cfg *quarklink.Config) { cfg.KeyStore = keys })
	member(t, server, c, quarklinktest.Batch{})
	_, err := keys.Signer(t.Context(), keystore.Device)
	require.ErrorIs(t, err, fs.ErrNotExist)
	e, err := c.Enrol(t.Context())
	require.NoError(t, err)
	dsk, err := keys.Signer(t.Context(), keystore.Device)
	require.NoError(t, err)
	assert.Equal(t, dsk.Public(), e.Certificate.PublicKey)
}

// racing is a key store that another process makes the key in while this one is
// about to.
type racing struct{ keystore.Generator }

func (k racing) Generate(ctx context.Context, role keystore.Role) (crypto.Signer, error) {
	if _, err := k.Generator.Generate(ctx, role); err != nil {
		return nil, err
	}
	return k.Generator.Generate(ctx, role) // too late
}

// Who loses the race for a key uses that of the winner.
func TestLostRaceForAKey(t *testing.T) {
	st := new(store.Mem)
	c := newClient(t, st, func(cfg *quarklink.Config) { cfg.KeyStore = racing{newKeys(t, st)} })
	assert.Equal(t, newClient(t, st).DeviceID(), c.DeviceID())

	server := newServer(t, quarklinktest.Options{InMemory: true})
	require.NoError(t, st.Delete(t.Context(), "key-dsk"))
	c = newClient(t, st, at(server), func(cfg *quarklink.Config) { cfg.KeyStore = racing{newKeys(t, st)} })
	member(t, server, c, quarklinktest.Batch{})
	e, err := c.Enrol(t.Context())
	require.NoError(t, err)
	dsk, err := newKeys(t, st).Signer(t.Context(), keystore.Device)
	require.NoError(t, err)
	assert.Equal(t, dsk.Public(), e.Certificate.PublicKey)
}

// silentStore is a Store that does not answer for one record.
type silentStore struct {
	store.Creator
	name string
}

var errUnread = errors.New("no answer from the flash")

func (s silentStore) Get(ctx context.Context, name string) ([]byte, error) {
	if name == s.name {
		return nil, errUnread
	}
	return s.Creator.Get(ctx, name)
}

// A Store that does not answer is no empty store: New fails, and nothing that is
// stored is taken for absent.
func TestStoreThatDoesNotAnswer(t *testing.T) {
	for _, name := range []string{"instance", "network", "enrolment"} {
		t.Run(name, func(t *testing.T) {
			st := new(store.Mem)
			c, err := quarklink.New(t.Context(), quarklink.Config{
				KeyStore: newKeys(t, st), Store: silentStore{st, name}})
			require.ErrorIs(t, err, errUnread)
			assert.ErrorIs(t, err, quarklink.ErrStorage)
			assert.ErrorContains(t, err, name)
			assert.Nil(t, c)
		})
	}
	t.Run("csr", func(t *testing.T) {
		server := newServer(t, quarklinktest.Options{InMemory: true})
		st := new(store.Mem)
		c := newClient(t, st, at(server), func(cfg *quarklink.Config) { cfg.Store = silentStore{st, "csr"} })
		member(t, server, c, quarklinktest.Batch{})
		_, err := c.Enrol(t.Context())
		require.ErrorIs(t, err, errUnread)
		assert.ErrorIs(t, err, quarklink.ErrStorage)
		assert.Empty(t, server.Certificates(c.DeviceID()))
	})
}

// privateDir makes a folder that nobody else can write, whatever the umask.
func privateDir(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "state")
	require.NoError(t, os.Mkdir(dir, 0o700))
	return dir
}

// Records that others could have put there are not believed, and no key is made
// beside them.
func TestFolderThatOthersCanWrite(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no such modes")
	}
	dir := privateDir(t)
	id := newClient(t, store.Dir(dir)).DeviceID()
	for name, st := range map[string]store.Dir{"its own": store.Dir(dir), "an empty one": store.Dir(privateDir(t))} {
		require.NoError(t, os.Chmod(string(st), 0o777))
		c, err := quarklink.New(t.Context(), quarklink.Config{KeyStore: newKeys(t, st), Store: st})
		require.ErrorIs(t, err, fs.ErrPermission, name)
		assert.Nil(t, c)
		require.NoError(t, os.Chmod(string(st), 0o700))
	}
	assert.Equal(t, id, newClient(t, store.Dir(dir)).DeviceID())
}
