package quarklink_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/quarklinktest"
	"github.com/quarklink-go/quarklink/store"
)

// twoSlots is a device's flash: the slot that runs and the inactive one, which
// changes places with it at the restart after Activate. Its writes lose power
// together with those of the Store.
type twoSlots struct {
	slots   [2]*flashSlot
	sizes   [2]int64
	next    int // the slot that starts next
	running int
	cut     *cutStore // nil: the power stays
}

func newTwoSlots(t *testing.T, factory []byte) *twoSlots {
	f := &twoSlots{slots: [2]*flashSlot{newSlot(t, 1<<20), newSlot(t, 1<<20)}}
	_, err := f.slots[0].WriteAt(factory, 0)
	require.NoError(t, err)
	f.sizes[0] = int64(len(factory))
	return f
}

// restart starts what was activated last.
func (f *twoSlots) restart() { f.running = f.next }

// runs is what runs.
func (f *twoSlots) runs(t *testing.T) []byte {
	img := make([]byte, f.sizes[f.running])
	_, err := f.slots[f.running].ReadAt(img, 0)
	require.NoError(t, err)
	return img
}

func (f *twoSlots) inactive() *flashSlot { return f.slots[1-f.running] }

func (f *twoSlots) write(do func() error) error {
	if f.cut == nil {
		return do()
	}
	return f.cut.write(do)
}

func (f *twoSlots) Size() int64 { return f.inactive().Size() }

func (f *twoSlots) ReadAt(p []byte, off int64) (int, error) {
	if f.cut != nil && f.cut.dead {
		return 0, errCut
	}
	return f.inactive().ReadAt(p, off)
}

func (f *twoSlots) WriteAt(p []byte, off int64) (n int, err error) {
	err = f.write(func() error {
		n, err = f.inactive().WriteAt(p, off)
		return err
	})
	return n, err
}

func (f *twoSlots) Activate(ctx context.Context, size int64) error {
	return f.write(func() error {
		if err := f.inactive().Activate(ctx, size); err != nil {
			return err
		}
		f.next, f.sizes[1-f.running] = 1-f.running, size
		return nil
	})
}

// TestUpdatePowerCut cuts power at every write to the Store and to the flash
// while a device installs an update, restarts, and enrols: it always starts a
// whole image, ends up with the new one and enrolled, and has nothing left to do
// and nothing left over, whatever its program says of what runs.
func TestUpdatePowerCut(t *testing.T) {
	factory, update := []byte("factory image"), bytes.Repeat([]byte("update"), 10000)
	digest := sha256.Sum256(update)
	version := map[string]string{string(factory): "1.8.0", string(update): "1.8.1"}
	type info = quarklink.FirmwareInfo
	for name, says := range map[string]func(img []byte) info{
		"says the digest":  func(img []byte) info { return info{SHA256: sha256.Sum256(img)} },
		"says the version": func(img []byte) info { return info{Version: version[string(img)]} },
		"says nothing":     func(img []byte) info { return info{} },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				eachCut(t, func(t *testing.T, st store.Creator, cut *cutStore) error {
					d := &cutDevice{server: newServer(t, quarklinktest.Options{InMemory: true}), records: st,
						flash: newTwoSlots(t, factory), says: says}
					defer d.server.Close()
					member(t, d.server, newClient(t, st, at(d.server)), quarklinktest.Batch{})
					publish(t, d.server, string(update), "1.8.1")
					d.flash.cut = cut
					var power store.Creator = cut
					for range 6 {
						d.flash.restart()
						if img := d.flash.runs(t); !bytes.Equal(img, factory) && !bytes.Equal(img, update) {
							return fmt.Errorf("half an image runs: %d bytes", len(img))
						}
						if err := d.start(t, power); err != nil && power == st {
							return fmt.Errorf("a start with power: %w", err)
						}
						if cut.dead { // and then the power stays
							power, d.flash.cut = st, nil
						}
					}
					return d.done(t, digest, name != "says nothing")
				})
			})
		})
	}
}

// cutDevice is a device that may lose power.
type cutDevice struct {
	server  *quarklinktest.Server
	records store.Creator
	flash   *twoSlots
	says    func(img []byte) quarklink.FirmwareInfo
}

func (d *cutDevice) client(t *testing.T, st store.Creator) *quarklink.Client {
	return newClient(t, st, at(d.server), func(cfg *quarklink.Config) { cfg.Firmware = d.says(d.flash.runs(t)) })
}

// start is what a program does at each start of the device.
func (d *cutDevice) start(t *testing.T, st store.Creator) error {
	c := d.client(t, st)
	defer c.Close()
	status, err := c.Status(t.Context())
	if err != nil {
		return err
	}
	if status.NeedsUpdate() {
		_, err := c.FirmwareUpdate(t.Context(), quarklink.FirmwareOptions{Slot: d.flash, Verifier: anything})
		return err
	}
	if status.NeedsEnrolment() {
		_, err = c.Enrol(t.Context())
	}
	return err
}

// done says what is missing from the end of an update.
func (d *cutDevice) done(t *testing.T, digest [32]byte, reported bool) error {
	c := d.client(t, d.records)
	status, err := c.Status(t.Context())
	switch {
	case err != nil:
		return err
	case sha256.Sum256(d.flash.runs(t)) != digest:
		return fmt.Errorf("the update does not run")
	case status.NeedsUpdate() || status.NeedsEnrolment():
		return fmt.Errorf("there is something left to do: %+v", status)
	}
	_, err = d.records.Get(t.Context(), "update")
	if left := err == nil; left == reported {
		return fmt.Errorf("the record of the update is there: %v", left)
	}
	if n := d.server.Stats().Calls[quarklinktest.CallFirmware]; n > 2 {
		return fmt.Errorf("%d downloads", n)
	}
	return nil
}
