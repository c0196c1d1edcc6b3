package quarklink_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/internal/counterpart"
	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/quarklinktest"
	"github.com/quarklink-go/quarklink/store"
	"github.com/quarklink-go/quarklink/transport"
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

// TestKeys: what New and Enrol make of key stores that cannot do everything.
func TestKeys(t *testing.T) {
	ctx := t.Context()
	_, err := quarklink.New(ctx, quarklink.Config{})
	assert.ErrorIs(t, err, quarklink.ErrInvalidParameter, "no key store")
	_, err = quarklink.New(ctx, quarklink.Config{KeyStore: noKeys{}})
	assert.ErrorIs(t, err, fs.ErrNotExist, "a store without keys that makes none")
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	server := newServer(t, quarklinktest.Options{InMemory: true})
	require.NoError(t, server.AddBatch(quarklinktest.Batch{Name: "batch"}))
	for name, signer := range map[string]crypto.Signer{"RSA": key, "RSA that makes PSS only": pssOnly{key}} {
		t.Run(name, func(t *testing.T) {
			c := newClient(t, new(store.Mem), at(server),
				func(cfg *quarklink.Config) { cfg.KeyStore = keystore.Static(signer) })
			require.NoError(t, server.AddDevices("batch", c.DeviceID()))
			_, err := c.Enrol(ctx)
			assert.NoError(t, err)
		})
	}
}

type noKeys struct{}

func (noKeys) Signer(context.Context, keystore.Role) (crypto.Signer, error) {
	return nil, fs.ErrNotExist
}

// pssOnly is a signer that a chip might be: it makes RSA-PSS with SHA-256.
type pssOnly struct{ *rsa.PrivateKey }

func (pssOnly) SignatureSchemes() []uint16 { return []uint16{0x0804} }

func (k pssOnly) Sign(r io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if _, ok := opts.(*rsa.PSSOptions); !ok || opts.HashFunc() != crypto.SHA256 {
		return nil, errors.New("this chip makes RSA-PSS with SHA-256 only")
	}
	return k.PrivateKey.Sign(r, digest, opts)
}

// TestDeviceIDWithOpenSSL compares with what openssl makes of the stored key.
func TestDeviceIDWithOpenSSL(t *testing.T) {
	openssl := counterpart.Program(t, "openssl")
	dir := privateDir(t)
	c := newClient(t, store.Dir(dir))
	pass := filepath.Join(t.TempDir(), "secret")
	b, _ := secret(t.Context())
	require.NoError(t, os.WriteFile(pass, b, 0o600))
	public := exec.CommandContext(t.Context(), openssl, "pkey", "-in", filepath.Join(dir, "key-esk"), "-passin",
		"file:"+pass, "-pubout", "-outform", "DER")
	der, err := public.Output()
	require.NoError(t, err)
	sum := exec.CommandContext(t.Context(), openssl, "dgst", "-sha256", "-r")
	sum.Stdin = strings.NewReader(string(der))
	line, err := sum.Output()
	require.NoError(t, err)
	got, _, _ := strings.Cut(string(line), " ")
	assert.Equal(t, got, string(c.DeviceID()), "openssl makes the same of the key")
}

var errChip = errors.New("the chip does not answer")

// brokenSigner signs a few times, then no more.
type brokenSigner struct {
	crypto.Signer
	left *int
}

func (s brokenSigner) Sign(r io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if *s.left--; *s.left < 0 {
		return nil, errChip
	}
	return s.Signer.Sign(r, digest, opts)
}

// TestBrokenSigner: a key that does not sign is not a network that fails.
func TestBrokenSigner(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	for signatures := range 5 {
		left := signatures
		_, c := newMember(t, quarklinktest.Batch{}, func(cfg *quarklink.Config) {
			cfg.KeyStore = keystore.Static(brokenSigner{key, &left})
		})
		_, err := c.Enrol(t.Context())
		assert.ErrorIs(t, err, errChip, "a key that makes %d signatures", signatures)
		assert.NotErrorIs(t, err, quarklink.ErrCommunication, "a key that makes %d signatures", signatures)
	}
	for _, keys := range []keystore.KeyStore{keystore.Static(nil), nilKeys{}} {
		_, err := quarklink.New(t.Context(), quarklink.Config{KeyStore: keys})
		assert.Error(t, err, "New with no key at all")
	}
	_, c := newMember(t, quarklinktest.Batch{}, func(cfg *quarklink.Config) {
		cfg.Transport = transport.Func(func(context.Context) (net.Conn, error) { return nil, nil })
	})
	_, err = c.Status(t.Context())
	assert.Error(t, err, "a status over no stream at all")
}

// nilKeys has no keys, and makes none either.
type nilKeys struct{ noKeys }

func (nilKeys) Generate(context.Context, keystore.Role) (crypto.Signer, error) { return nil, nil }

func TestParseDeviceID(t *testing.T) {
	good := strings.Repeat("0123456789abcdef", 4)
	id, err := quarklink.ParseDeviceID(good)
	require.NoError(t, err)
	assert.Equal(t, good, string(id))
	for _, bad := range []string{
		"", good[1:], good + "0", strings.ToUpper(good), " " + good[1:], good[:63] + "\n", good[:63] + "g",
		good[:62] + "é",
	} {
		id, err := quarklink.ParseDeviceID(bad)
		assert.ErrorIs(t, err, quarklink.ErrInvalidParameter, "%q", bad)
		assert.Empty(t, id, "%q", bad)
	}
}
