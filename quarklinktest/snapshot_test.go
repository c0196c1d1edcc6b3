package quarklinktest_test

import (
	"context"
	"strings"
	"testing"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/keystore/software"
	"github.com/quarklink-go/quarklink/quarklinktest"
	"github.com/quarklink-go/quarklink/store"
)

// TestSnapshot restarts the instance: an enrolled device knows it again, is
// known, and gets the same certificate for the same request.
func TestSnapshot(t *testing.T) {
	st := new(store.Mem)
	live := func(server *quarklinktest.Server, batch quarklinktest.Batch) (quarklink.DeviceID, *quarklink.Enrolment) {
		t.Helper()
		keys, err := software.New(st, software.Options{Iterations: 1,
			Secret: func(context.Context) ([]byte, error) { return []byte("a secret of thirty-two characters"), nil }})
		if err != nil {
			t.Fatal(err)
		}
		i := server.Instance()
		c, err := quarklink.New(t.Context(), quarklink.Config{KeyStore: keys, Store: st, Instance: &i, Transport: server.Carrier()})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := server.AddBatch(batch); err != nil {
			t.Fatal(err)
		}
		if err := server.AddDevices(batch.Name, c.DeviceID()); err != nil {
			t.Fatal(err)
		}
		e, err := c.Enrol(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return c.DeviceID(), e
	}
	first := newServer(t, quarklinktest.Options{InMemory: true})
	id, before := live(first, quarklinktest.Batch{Name: "one"})
	snapshot, err := first.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	first.Close()

	second := newServer(t, quarklinktest.Options{InMemory: true, Snapshot: snapshot})
	if !second.Instance().Root.Equal(first.Instance().Root) {
		t.Error("another root")
	}
	// What AddBatch would replace is not taken before it.
	if second.Publish("one", quarklinktest.Firmware{Image: strings.NewReader("image"), AsIs: true}) == nil {
		t.Error("an image was published to a batch that is yet to be added")
	}
	if len(second.Devices("one")) != 1 {
		t.Error("the snapshot's device is not in its batch")
	}
	again, after := live(second, quarklinktest.Batch{Name: "one"})
	if again != id || !after.Certificate.Equal(before.Certificate) || len(second.Certificates(id)) != 1 {
		t.Errorf("%d certificates", len(second.Certificates(id)))
	}
	if second.AddBatch(quarklinktest.Batch{Name: "one"}) == nil {
		t.Error("a batch was added twice")
	}
	for name, bad := range map[string][]byte{"empty": {}, "no JSON": []byte("x"), "half": snapshot[:len(snapshot)/2], "no keys": []byte("{}")} {
		if s, err := quarklinktest.NewServer(quarklinktest.Options{InMemory: true, Snapshot: bad}); err == nil {
			s.Close()
			t.Errorf("snapshot %s: no error", name)
		}
	}
}
