package quarklinktest_test

import (
	"context"
	"crypto"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/quarklinktest"
)

// newClient makes the library's client, which has no instance yet.
func newClient(t *testing.T, s *quarklinktest.Server) *quarklink.Client {
	t.Helper()
	c, err := quarklink.New(t.Context(), quarklink.Config{
		KeyStore: twoKeys{newKey(t), newKey(t)}, Transport: s.Carrier(),
	})
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

type twoKeys struct{ esk, dsk crypto.Signer }

func (k twoKeys) Signer(_ context.Context, role keystore.Role) (crypto.Signer, error) {
	if role == keystore.Enrolment {
		return k.esk, nil
	}
	return k.dsk, nil
}

// Devices that know nothing are provisioned side by side, each on its own cable,
// and then enrol.
func TestToolProvisionsDevices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, quarklinktest.Options{InMemory: true})
		require.NoError(t, s.AddBatch(quarklinktest.Batch{Name: "b"}))
		wifi := quarklink.Network{SSID: "Workshop", Password: "correct horse"}
		tool := quarklinktest.NewTool(s, "b", wifi)
		require.NoError(t, tool.Check())
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var tools, devices sync.WaitGroup
		for range 5 {
			client := newClient(t, s)
			deviceEnd, toolEnd := quarklinktest.Pipe()
			tools.Go(func() {
				assert.ErrorIs(t, tool.Serve(ctx, toolEnd), context.Canceled)
			})
			devices.Go(func() {
				network, err := client.Provision(ctx, deviceEnd, quarklink.ProvisionOptions{})
				assert.NoError(t, err)
				assert.Equal(t, wifi, network)
				_, err = client.Enrol(ctx)
				assert.NoError(t, err)
				assert.Len(t, s.Certificates(client.DeviceID()), 1)
			})
		}
		devices.Wait()
		cancel()
		tools.Wait()
		assert.Len(t, s.Devices("b"), 5)
	})
}

// A device of another batch, or one for a batch that does not exist, is refused.
func TestToolRefuses(t *testing.T) {
	s := newServer(t, quarklinktest.Options{InMemory: true})
	require.NoError(t, s.AddBatch(quarklinktest.Batch{Name: "b", Devices: []quarklink.DeviceID{id(1)}}))
	require.NoError(t, s.AddBatch(quarklinktest.Batch{Name: "other"}))
	for batch, wantErr := range map[string]bool{"b": false, "other": true, "none": true} {
		tool := quarklinktest.NewTool(s, batch, quarklink.Network{})
		assert.Equal(t, wantErr, tool.OnDeviceID(t.Context(), string(id(1))) != nil, batch)
	}
}

func ExampleNewTool() {
	instance, err := quarklinktest.NewServer(quarklinktest.Options{InMemory: true})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer instance.Close()
	if err := instance.AddBatch(quarklinktest.Batch{Name: "My_MQTT_Batch"}); err != nil {
		fmt.Println(err)
		return
	}
	tool := quarklinktest.NewTool(instance, "My_MQTT_Batch", quarklink.Network{SSID: "Workshop"})

	// The device's program gets one end of the cable, the tool the other.
	device, cable := quarklinktest.Pipe()
	served := make(chan error)
	go func() { served <- tool.Serve(context.Background(), cable) }()
	fmt.Fprintf(device, "IEF DATA\n\x00ql_endpoint\n")
	reply := make([]byte, 64)
	n, _ := device.Read(reply)
	fmt.Printf("%q\n", reply[:n])
	device.Close()
	fmt.Println(<-served)
	// Output:
	// "instance.test\n"
	// uart: read: EOF
}
