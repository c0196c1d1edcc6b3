package quarklinktest_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/quarklinktest"
)

// A harness for whatever talks to a device: an instance, and a device of a batch.
func ExampleServer_NewDevice() {
	ctx := context.Background()
	server, err := quarklinktest.NewServer(quarklinktest.Options{InMemory: true})
	if err != nil {
		panic(err)
	}
	defer server.Close()
	if err := server.AddBatch(quarklinktest.Batch{Name: "sensors"}); err != nil {
		panic(err)
	}
	device, err := server.NewDevice(ctx, "sensors")
	if err != nil {
		panic(err)
	}
	defer device.Close()
	enrolment, err := device.Enrol(ctx)
	if err != nil {
		panic(err)
	}
	fmt.Println(enrolment.Hub.Addr())
	// Output: instance.test:8883
}

func TestNewDeviceReachesEveryKindOfServer(t *testing.T) {
	unixSocket, err := net.Listen("unix", t.TempDir()+"/socket")
	require.NoError(t, err)
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	for name, o := range map[string]quarklinktest.Options{
		"in memory":             {InMemory: true},
		"TCP":                   {},
		"every address":         {Addr: ":0"},
		"TLS 1.2":               {TLS12: true},
		"TLS 1.2 and 1.3":       {MinTLS: tls.VersionTLS12},
		"listener, TCP":         {Listener: tcp},
		"listener, Unix":        {Listener: unixSocket},
		"name of the caller's":  {Names: []string{"localhost"}},
		"name, in memory":       {InMemory: true, Names: []string{"ql.example.com", "192.0.2.1"}},
		"address, in memory":    {InMemory: true, Names: []string{"192.0.2.1"}},
		"IPv6 address in names": {InMemory: true, Names: []string{"2001:db8::1"}},
	} {
		t.Run(name, func(t *testing.T) {
			server := newServer(t, o)
			require.NoError(t, server.AddBatch(quarklinktest.Batch{Name: "b"}))
			device, err := server.NewDevice(t.Context(), "b")
			require.NoError(t, err)
			defer device.Close()
			if len(o.Names) > 0 {
				assert.Equal(t, o.Names[0], server.Instance().Endpoint)
			}
			_, err = device.Enrol(t.Context())
			require.NoError(t, err)
			status, err := device.Status(t.Context())
			require.NoError(t, err)
			assert.Equal(t, quarklink.CodeEnrolled, status.Code())
		})
	}
}

func TestNewDeviceOfAnUnknownBatch(t *testing.T) {
	server := newServer(t, quarklinktest.Options{InMemory: true})
	_, err := server.NewDevice(t.Context(), "none")
	require.ErrorContains(t, err, `there is no batch "none"`)
}

func TestNewDeviceWithAChangedConfig(t *testing.T) {
	server := newServer(t, quarklinktest.Options{InMemory: true})
	require.NoError(t, server.AddBatch(quarklinktest.Batch{Name: "b"}))
	device, err := server.NewDevice(t.Context(), "b", func(cfg *quarklink.Config) { cfg.Firmware.Version = "1.2.3" })
	require.NoError(t, err)
	defer device.Close()
	_, err = device.Status(t.Context())
	require.NoError(t, err)
	known, ok := server.Device(device.DeviceID())
	require.True(t, ok, "the device is known")
	assert.Equal(t, "1.2.3", known.Version)
}

// TestBothVersions: a server that speaks both takes the newest that the device
// speaks.
func TestBothVersions(t *testing.T) {
	server := newServer(t, quarklinktest.Options{InMemory: true, MinTLS: tls.VersionTLS12})
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		state, err := dialTLS(server, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12,
			MaxVersion: version})
		require.NoError(t, err)
		assert.Equal(t, tls.VersionName(version), tls.VersionName(state.Version))
	}
}

func TestOptionsThatContradict(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	for name, o := range map[string]quarklinktest.Options{
		"memory and address":  {InMemory: true, Addr: "127.0.0.1:0"},
		"memory and listener": {InMemory: true, Listener: listener},
		"address, listener":   {Addr: "127.0.0.1:0", Listener: listener},
		"snapshot and state":  {Snapshot: []byte("{}"), State: t.TempDir()},
		"TLS twice":           {TLS12: true, MinTLS: tls.VersionTLS13},
		"TLS 1.1":             {MinTLS: tls.VersionTLS11},
		"a name with a slash": {Names: []string{"a/b"}},
		"an empty name":       {Names: []string{""}},
		"an address in use":   {Addr: listener.Addr().String()},
		"no address":          {Addr: "nowhere"},
	} {
		t.Run(name, func(t *testing.T) {
			server, err := quarklinktest.NewServer(o)
			if err == nil {
				server.Close()
			}
			require.Error(t, err)
		})
	}
}
