package quarklink_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"math/big"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/esp/flash"
	"github.com/quarklink-go/quarklink/esp/nvs"
	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/keystore/software"
	"github.com/quarklink-go/quarklink/quarklinktest"
	"github.com/quarklink-go/quarklink/store"
	"github.com/quarklink-go/quarklink/transport/uart"
)

// smallPartition is an NVS partition of 32 KiB.
func smallPartition(t *testing.T) *nvs.Partition {
	t.Helper()
	p, err := nvs.Open(flash.NewMemory(8*flash.SectorSize), nvs.Options{})
	require.NoError(t, err)
	return p
}

// resident is a device whose keys and records are in a namespace.
type resident struct {
	*quarklink.Client
	records *nvs.Namespace
	keys    *software.Store
}

// moveIn provisions a device whose namespace has that name.
func moveIn(
	t *testing.T, p *nvs.Partition, name string, server *quarklinktest.Server, a software.Algorithm,
) resident {
	t.Helper()
	ctx := t.Context()
	records, err := p.Namespace(name)
	require.NoError(t, err)
	keys, err := software.New(records, software.Options{Secret: secret, Iterations: 1, Algorithm: a})
	require.NoError(t, err)
	c, err := quarklink.New(ctx, quarklink.Config{KeyStore: keys, Store: records, Transport: server.Carrier()})
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	i := server.Instance()
	_, err = c.Provision(ctx, cable(t, &uart.Tool{Endpoint: i.Endpoint, RootCA: i.Root.Raw,
		SSID:     "a network with a long name, 32 b",
		Password: "a password of sixty-three bytes, which is the longest there is."}),
		quarklink.ProvisionOptions{})
	require.NoError(t, err)
	require.NoError(t, server.AddDevices("batch", c.DeviceID()))
	// What the client keeps of an update has at most 1 KiB.
	require.NoError(t, records.Put(ctx, "update", bytes.Repeat([]byte{'u'}, 1<<10)))
	return resident{c, records, keys}
}

// renews goes through a re-enrolment with all that it can store on its way: a
// staged device key, and a new certificate beside the old one.
func (r resident) renews(t *testing.T, server *quarklinktest.Server) {
	t.Helper()
	ctx := t.Context()
	require.NoError(t, server.Expire(r.DeviceID()))
	_, err := r.keys.Stage(ctx, keystore.Device)
	require.NoError(t, err)
	server.Fault(quarklinktest.CallTemporary, answer202(nil).Times(1))
	_, err = r.Enrol(ctx)
	require.ErrorIs(t, err, quarklink.ErrValueNotAvailable)
	server.Fault(quarklinktest.CallConnection, quarklinktest.Refuse(404, "", 0).Times(1))
	_, err = r.Enrol(ctx)
	require.ErrorContains(t, err, "on purpose")
	_, both := payload(t, r.records, "enrolment")["next"]
	assert.True(t, both, "the new certificate is beside the old one")
	total := 0
	for _, name := range []string{
		"instance", "network", "enrolment", "csr", "update", "key-esk", "key-dsk", "key-dsk-next",
	} {
		data, err := r.records.Get(ctx, name)
		require.NoError(t, err)
		total += len(data)
	}
	t.Logf("%d bytes of records, with a renewal under way", total)
	_, err = r.Enrol(ctx)
	require.NoError(t, err)
	require.NoError(t, r.keys.Commit(ctx, keystore.Device))
	_, err = r.Enrol(ctx)
	require.NoError(t, err)
	_, both = payload(t, r.records, "enrolment")["next"]
	assert.False(t, both)
}

// TestTwoDevicesInNVS: the records of two devices with P-256 keys fit into an NVS
// partition of 32 KiB, whatever they are at.
func TestTwoDevicesInNVS(t *testing.T) {
	p := smallPartition(t)
	server := newServer(t, quarklinktest.Options{InMemory: true})
	require.NoError(t, server.AddBatch(quarklinktest.Batch{Name: "batch"}))
	var devices []resident
	for n := range 2 {
		r := moveIn(t, p, fmt.Sprint("device", n), server, software.P256)
		_, err := r.Enrol(t.Context())
		require.NoError(t, err)
		devices = append(devices, r)
	}
	for range 3 {
		for _, r := range devices {
			r.renews(t, server)
		}
	}
}

// TestRSADeviceInNVS: those of one with RSA-3072 keys fit too, whose authorities,
// all of them, have keys of that size.
func TestRSADeviceInNVS(t *testing.T) {
	if testing.Short() {
		t.Skip("makes RSA keys")
	}
	const signature, key = 384 - 72, 398 - 65 // bytes more than with P-256
	p := smallPartition(t)
	server := newServer(t, quarklinktest.Options{InMemory: true})
	require.NoError(t, server.AddBatch(quarklinktest.Batch{Name: "batch", Policy: quarklinktest.Policy{
		Hub: &quarklink.Hub{Endpoint: "hub.example", Port: 8883, FirmwareUpdateTopic: "devices/firmware",
			Roots: []*x509.Certificate{paddedRoot(t, signature+key)}}}}))
	server.Fault(quarklinktest.CallEnrol, quarklinktest.Reissue(padded(signature)))
	server.Fault(quarklinktest.CallCACerts, quarklinktest.Reissue(padded(signature+key)))
	r := moveIn(t, p, "device", server, software.RSA3072)
	i := server.Instance()
	i.Roots = []*x509.Certificate{paddedRoot(t, signature)} // as if its one root were as large
	require.NoError(t, r.SetInstance(t.Context(), i))
	_, err := r.Enrol(t.Context())
	require.NoError(t, err)
	for range 3 {
		r.renews(t, server)
	}
}

func paddedRoot(t *testing.T, size int) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Unix(0, 0),
		NotAfter: time.Unix(1<<33, 0)}
	padded(size)(template)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return cert
}

// smallStore takes no record that is larger.
type smallStore struct {
	*store.Mem
	size int
}

func (s *smallStore) Put(ctx context.Context, name string, data []byte) error {
	if s.size > 0 && len(data) > s.size {
		return nvs.ErrNoSpace
	}
	return s.Mem.Put(ctx, name, data)
}

// TestNoRoomForBoth: where a new certificate does not fit beside the old one it
// takes that one's place, with the old connection details until its own come.
func TestNoRoomForBoth(t *testing.T) {
	ctx := t.Context()
	server, st := newServer(t, quarklinktest.Options{InMemory: true}), &smallStore{Mem: new(store.Mem)}
	c := newClient(t, st, at(server))
	member(t, server, c, quarklinktest.Batch{})
	first, err := c.Enrol(ctx)
	require.NoError(t, err)
	data, err := st.Get(ctx, "enrolment")
	require.NoError(t, err)
	st.size = len(data) + 100
	require.NoError(t, server.Expire(c.DeviceID()))
	server.Fault(quarklinktest.CallConnection, quarklinktest.Refuse(404, "", 0).Times(1))
	_, err = c.Enrol(ctx)
	require.ErrorContains(t, err, "on purpose")

	e, err := newClient(t, st, at(server)).Enrolment()
	require.NoError(t, err)
	assert.False(t, e.Certificate.Equal(first.Certificate))
	assert.Equal(t, first.Hub, e.Hub)
	status, err := c.Status(ctx)
	require.NoError(t, err)
	assert.True(t, status.NeedsEnrolment())
	_, err = c.Enrol(ctx)
	require.NoError(t, err)
	assert.Len(t, server.Certificates(c.DeviceID()), 2)
}
