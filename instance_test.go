package quarklink_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"os"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/quarklinktest"
	"github.com/quarklink-go/quarklink/store"
	"github.com/quarklink-go/quarklink/transport"
)

// An instance changes its root while its devices are in the field: they trust
// both roots meanwhile, and at the end the new one alone.
func TestInstanceChangesItsRoot(t *testing.T) {
	ctx := t.Context()
	before := newServer(t, quarklinktest.Options{InMemory: true})
	after := newServer(t, quarklinktest.Options{InMemory: true}) // the same name, another root
	now := before
	carrier := transport.Func(func(ctx context.Context) (net.Conn, error) { return now.Carrier().Dial(ctx) })
	st := new(store.Mem)
	open := func() *quarklink.Client {
		return newClient(t, st, func(cfg *quarklink.Config) { cfg.Transport = carrier })
	}
	c := open()
	member(t, before, c, quarklinktest.Batch{})
	member(t, after, c, quarklinktest.Batch{})
	require.NoError(t, c.SetInstance(ctx, before.Instance()))
	status := func(server *quarklinktest.Server) error {
		now = server
		again := newClient(t, st, func(cfg *quarklink.Config) { cfg.Transport = carrier }) // a connection of its own
		_, err := again.Status(ctx)
		return err
	}
	require.NoError(t, status(before))
	require.Error(t, status(after), "the new root is not trusted yet")

	both := before.Instance()
	both.Roots = []*x509.Certificate{after.Instance().Root}
	require.NoError(t, c.SetInstance(ctx, both))
	assert.NoError(t, status(before))
	assert.NoError(t, status(after))
	stored, err := open().Instance()
	require.NoError(t, err)
	require.Len(t, stored.Roots, 1)
	assert.True(t, stored.Roots[0].Equal(after.Instance().Root))
	assert.True(t, stored.Root.Equal(before.Instance().Root))

	require.NoError(t, c.SetInstance(ctx, after.Instance()))
	assert.NoError(t, status(after))
	assert.Error(t, status(before), "the old root is not trusted any more")
}

// A stranger's root is not trusted because it is the second or the last.
func TestEachRootIsPinned(t *testing.T) {
	server := newServer(t, quarklinktest.Options{InMemory: true})
	strangers := []*x509.Certificate{newRoot(t, "one"), newRoot(t, "two"), newRoot(t, "three")}
	for n := range 4 {
		roots := slices.Insert(slices.Clone(strangers), n, server.Instance().Root)
		i := quarklink.Instance{Endpoint: quarklinktest.HostName, Root: roots[0], Roots: roots[1:]}
		c := newClient(t, new(store.Mem), at(server), func(cfg *quarklink.Config) { cfg.Instance = &i })
		_, err := c.Status(t.Context())
		assert.ErrorIs(t, err, quarklink.ErrDeviceDoesNotExist, "the root at %d", n)
	}
	i := quarklink.Instance{Endpoint: quarklinktest.HostName, Root: strangers[0], Roots: strangers[1:]}
	c := newClient(t, new(store.Mem), at(server), func(cfg *quarklink.Config) { cfg.Instance = &i })
	_, err := c.Status(t.Context())
	var unknown x509.UnknownAuthorityError
	assert.ErrorAs(t, err, &unknown)
}

// damaged returns root with a bit of its signature changed, so that it parses.
func damaged(t *testing.T, root *x509.Certificate) *x509.Certificate {
	t.Helper()
	raw := slices.Clone(root.Raw)
	raw[len(raw)-1] ^= 1
	cert, err := x509.ParseCertificate(raw)
	require.NoError(t, err)
	return cert
}

func TestInstanceRefused(t *testing.T) {
	root := newRoot(t, "root")
	eight := make([]*x509.Certificate, 8)
	for n := range eight {
		eight[n] = newRoot(t, "further")
	}
	for name, i := range map[string]quarklink.Instance{
		"no endpoint":             {Root: root},
		"an endpoint with a port": {Endpoint: "instance.example:443", Root: root},
		"no root":                 {Endpoint: "instance.example"},
		"further roots alone":     {Endpoint: "instance.example", Roots: []*x509.Certificate{root}},
		"a damaged root":          {Endpoint: "instance.example", Root: damaged(t, root)},
		"an unparsed root":        {Endpoint: "instance.example", Root: new(x509.Certificate)},
		"a damaged further root": {Endpoint: "instance.example", Root: root,
			Roots: []*x509.Certificate{damaged(t, root)}},
		"a further root of nil":    {Endpoint: "instance.example", Root: root, Roots: []*x509.Certificate{nil}},
		"nine roots":               {Endpoint: "instance.example", Root: root, Roots: eight},
		"an unparsed further root": {Endpoint: "instance.example", Root: root, Roots: []*x509.Certificate{{}}},
	} {
		t.Run(name, func(t *testing.T) {
			st := new(store.Mem)
			c := newClient(t, st)
			assert.ErrorIs(t, c.SetInstance(t.Context(), i), quarklink.ErrInvalidParameter)
			_, err := c.Instance()
			assert.ErrorIs(t, err, quarklink.ErrNotInitialised)

			_, err = quarklink.New(t.Context(), quarklink.Config{KeyStore: newKeys(t, st), Instance: &i})
			assert.ErrorIs(t, err, quarklink.ErrInvalidParameter)
		})
	}
}

// What one has given and what one has got is one's own to change.
func TestInstanceIsACopy(t *testing.T) {
	c := newClient(t, new(store.Mem))
	first, second := newRoot(t, "first"), newRoot(t, "second")
	roots := []*x509.Certificate{first, second, second}
	require.NoError(t, c.SetInstance(t.Context(), quarklink.Instance{Endpoint: "a.example", Root: first, Roots: roots}))
	roots[1] = nil
	i, err := c.Instance()
	require.NoError(t, err)
	require.Equal(t, []*x509.Certificate{second}, i.Roots, "each root once")
	i.Roots[0] = nil
	again, err := c.Instance()
	require.NoError(t, err)
	assert.Equal(t, []*x509.Certificate{second}, again.Roots)
}

// A library of before knows one root. It goes on with that one if a device is
// rolled back to it.
func TestInstanceRecordForAnOlderLibrary(t *testing.T) {
	st := new(store.Mem)
	root := newRoot(t, "root")
	i := quarklink.Instance{Endpoint: "a.example", Port: 6001, Root: root,
		Roots: []*x509.Certificate{newRoot(t, "next")}}
	require.NoError(t, newClient(t, st).SetInstance(t.Context(), i))

	data, err := st.Get(t.Context(), "instance")
	require.NoError(t, err)
	version, payload, err := store.DecodeRecord("instance", data)
	require.NoError(t, err)
	assert.Equal(t, 1, int(version))
	var old struct {
		Endpoint string `json:"endpoint"`
		Port     uint16 `json:"port"`
		Root     []byte `json:"root"`
	}
	require.NoError(t, json.Unmarshal(payload, &old))
	assert.Equal(t, "a.example", old.Endpoint)
	assert.Equal(t, uint16(6001), old.Port)
	assert.Equal(t, root.Raw, old.Root)
}

// testdata/provisioned was written by the library as it was before an instance
// could have several roots.
func TestRecordsOfAnOlderLibrary(t *testing.T) {
	st := store.Dir(privateDir(t))
	require.NoError(t, os.CopyFS(string(st), os.DirFS("testdata/provisioned")))
	c := newClient(t, st, func(cfg *quarklink.Config) { cfg.RequireIdentity = true })
	assert.Equal(t, "4cf6b354cc96b1a8e14b3c1268c092958161a25b95f401fae250910121e873e1", string(c.DeviceID()))
	i, err := c.Instance()
	require.NoError(t, err)
	assert.Equal(t, "instance.example", i.Endpoint)
	assert.Equal(t, uint16(6001), i.Port)
	assert.Equal(t, "instance root", i.Root.Subject.CommonName)
	assert.Empty(t, i.Roots)
}

func TestBadInstances(t *testing.T) {
	root := newRoot(t, "root")
	c := newClient(t, new(store.Mem))
	for _, i := range []quarklink.Instance{
		{}, {Endpoint: "x"}, {Root: root}, {Endpoint: "a b", Root: root}, {Endpoint: "host/path", Root: root},
		{Endpoint: "..", Root: root}, {Endpoint: "-x", Root: root}, {Endpoint: "a;b", Root: root},
		{Endpoint: "exämple.com", Root: root},
		{Endpoint: "fe80::1%eth0", Root: root}, {Endpoint: "host", Root: new(x509.Certificate)},
		{Endpoint: "user@host", Root: root}, {Endpoint: "host:1", Root: root}, {Endpoint: "host?x", Root: root},
		{Endpoint: "host#x", Root: root}, {Endpoint: "ho\nst", Root: root},
	} {
		if err := c.SetInstance(t.Context(), i); !errors.Is(err, quarklink.ErrInvalidParameter) {
			t.Errorf("SetInstance(%q): %v", i.Endpoint, err)
		}
		cfg := quarklink.Config{KeyStore: newKeys(t, new(store.Mem)), Instance: &i}
		if _, err := quarklink.New(t.Context(), cfg); !errors.Is(err, quarklink.ErrInvalidParameter) {
			t.Errorf("New with %q: %v", i.Endpoint, err)
		}
		if _, err := cfg.KeyStore.Signer(t.Context(), keystore.Enrolment); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("New with %q made a key: %v", i.Endpoint, err)
		}
	}
	cfg := quarklink.Config{KeyStore: newKeys(t, new(store.Mem)), MinTLS: tls.VersionTLS11}
	_, err := quarklink.New(t.Context(), cfg)
	assert.ErrorIs(t, err, quarklink.ErrInvalidParameter, "New with TLS 1.1")
	for _, endpoint := range []string{"instance.example", "192.0.2.1", "2001:db8::1"} {
		require.NoError(t, c.SetInstance(t.Context(), quarklink.Instance{Endpoint: endpoint, Root: root}))
	}
}
