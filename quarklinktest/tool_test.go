package quarklinktest_test

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"

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
	if err != nil {
		t.Fatal(err)
	}
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
		if err := s.AddBatch(quarklinktest.Batch{Name: "b"}); err != nil {
			t.Fatal(err)
		}
		wifi := quarklink.Network{SSID: "Workshop", Password: "correct horse"}
		tool := quarklinktest.NewTool(s, "b", wifi)
		if err := tool.Check(); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var tools, devices sync.WaitGroup
		for range 5 {
			client := newClient(t, s)
			deviceEnd, toolEnd := quarklinktest.Pipe()
			tools.Go(func() {
				if err := tool.Serve(ctx, toolEnd); !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
			})
			devices.Go(func() {
				network, err := client.Provision(ctx, deviceEnd, quarklink.ProvisionOptions{})
				if err != nil || network != wifi {
					t.Errorf("provision: %q, %v", network.SSID, err)
				}
				if _, err := client.Enrol(ctx); err != nil {
					t.Error(err)
				}
				if n := len(s.Certificates(client.DeviceID())); n != 1 {
					t.Errorf("%d certificates", n)
				}
			})
		}
		devices.Wait()
		cancel()
		tools.Wait()
		if n := len(s.Devices("b")); n != 5 {
			t.Errorf("%d devices in the batch", n)
		}
	})
}

// A device of another batch, or one for a batch that does not exist, is refused.
func TestToolRefuses(t *testing.T) {
	s := newServer(t, quarklinktest.Options{InMemory: true})
	if err := s.AddBatch(quarklinktest.Batch{Name: "b", Devices: []quarklink.DeviceID{id(1)}}); err != nil {
		t.Fatal(err)
	}
	if err := s.AddBatch(quarklinktest.Batch{Name: "other"}); err != nil {
		t.Fatal(err)
	}
	for batch, wantErr := range map[string]bool{"b": false, "other": true, "none": true} {
		tool := quarklinktest.NewTool(s, batch, quarklink.Network{})
		if err := tool.OnDeviceID(t.Context(), string(id(1))); (err != nil) != wantErr {
			t.Errorf("batch %q: %v", batch, err)
		}
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
