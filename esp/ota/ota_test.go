package ota_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/esp/flash"
	"github.com/quarklink-go/quarklink/esp/flash/flashtest"
	"github.com/quarklink-go/quarklink/esp/image"
	"github.com/quarklink-go/quarklink/esp/ota"
	"github.com/quarklink-go/quarklink/esp/otadata"
	"github.com/quarklink-go/quarklink/esp/partition"
	"github.com/quarklink-go/quarklink/esp/secureboot"
	"github.com/quarklink-go/quarklink/esp/secureboot/sbecdsa"
	"github.com/quarklink-go/quarklink/esp/secureboot/sbsign"
)

// What quarklink asks of a slot and of a trial.
var (
	_ quarklink.Slot = (*ota.Slot)(nil)
	_ interface {
		Pending(context.Context) (bool, error)
		Confirm(context.Context) error
		Rollback(context.Context) error
	} = (*ota.Trial)(nil)
)

const slotSize = 0x10000

// images are signed for an ESP32-C6 with one key, and differ in their version.
type images struct {
	verifier secureboot.Verifier
	byName   map[string][]byte
}

var makeImages = sync.OnceValues(func() (images, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return images{}, err
	}
	digest, err := sbsign.KeyDigest(key.Public())
	m := images{
		verifier: secureboot.Verifier{
			Chip: image.ESP32C6, Schemes: []secureboot.Scheme{sbecdsa.Scheme()}, Trusted: []secureboot.Digest{digest},
		},
		byName: make(map[string][]byte),
	}
	for _, name := range []string{"factory", "old", "older", "new"} {
		app, errApp := image.App{Version: name}.MarshalBinary()
		b := image.Builder{Header: image.NewHeader(image.ESP32C6)}
		b.Add(0x40800000, append(app, bytes.Repeat([]byte(name+" image "), 2500)...)[:20000])
		img, errBuild := b.Bytes()
		signed, errSign := sbsign.Image(rand.Reader, img, key)
		err = errors.Join(err, errApp, errBuild, errSign)
		m.byName[name] = signed
	}
	return m, err
})

// bench is a flash with a table and images, and the bootloader's model.
type bench struct {
	images
	b     otadata.Bootloader
	table *partition.Table
	flash *flashtest.Flash
}

func partitions(slots int, factory bool) *partition.Table {
	t := &partition.Table{Partitions: []partition.Partition{
		{Label: "otadata", Type: partition.Data, Subtype: partition.DataOTA, Offset: 0, Size: 0x2000},
	}}
	at := uint32(0x10000)
	add := func(label string, s partition.Subtype) {
		t.Partitions = append(t.Partitions, partition.Partition{Label: label, Subtype: s, Offset: at, Size: slotSize})
		at += slotSize
	}
	if factory {
		add("factory", partition.AppFactory)
	}
	for i := range slots {
		add(fmt.Sprint("ota_", i), partition.AppOTA0+partition.Subtype(i))
	}
	return t
}

// newBench returns a flash in which the slots hold these images.
func newBench(t testing.TB, b otadata.Bootloader, slots map[int]string) *bench {
	t.Helper()
	m, err := makeImages()
	require.NoError(t, err)
	s := &bench{images: m, b: b, table: partitions(b.Slots, b.Factory)}
	content := flash.NewMemory(0x10000 + (b.Slots+1)*slotSize)
	for slot, name := range slots {
		copy(content[s.partition(slot).Offset:], m.byName[name])
	}
	s.flash = flashtest.New(content)
	return s
}

func (s *bench) partition(slot int) partition.Partition {
	sub := partition.AppOTA0 + partition.Subtype(slot)
	if slot == otadata.Factory {
		sub = partition.AppFactory
	}
	p, _ := s.table.Find(partition.App, sub)
	return p
}

// what names the image in a slot of the flash, "" if it is none that verifies.
func (s *bench) what(m flash.Memory, slot int) string {
	p := s.partition(slot)
	for name, img := range s.byName {
		if bytes.Equal(m[p.Offset:][:len(img)], img) {
			return name
		}
	}
	return ""
}

// boot starts the device: the slot, and the image in it.
func (s *bench) boot(t testing.TB, f *flashtest.Flash) (slot int, name string) {
	t.Helper()
	data, err := flash.Region(f, 0, otadata.Size)
	require.NoError(t, err)
	content := f.Content()
	slot, _, err = otadata.Boot(data, s.b, func(slot int) bool { return s.what(content, slot) != "" })
	require.NoError(t, err)
	return slot, s.what(content, slot)
}

func (s *bench) config(f flash.NOR, running int) ota.Config {
	return ota.Config{
		Flash: f, Table: s.table, Running: s.partition(running), Verifier: s.verifier, Rollback: s.b.Rollback,
	}
}

// install writes an image as FirmwareUpdate does.
func install(cfg ota.Config, img []byte) error {
	slot, err := ota.NewSlot(context.Background(), cfg)
	if err != nil {
		return err
	}
	for off := 0; off < len(img); off += 8192 {
		if _, err := slot.WriteAt(img[off:min(len(img), off+8192)], int64(off)); err != nil {
			return err
		}
	}
	return slot.Activate(context.Background(), int64(len(img)))
}

func TestUpdate(t *testing.T) {
	for _, rollback := range []bool{false, true} {
		b := otadata.Bootloader{Slots: 2, Factory: true, Rollback: rollback}
		s := newBench(t, b, map[int]string{otadata.Factory: "factory"})
		slot, name := s.boot(t, s.flash)
		assert.Equal(t, "factory", name)
		for _, next := range []string{"old", "new", "older"} {
			require.NoError(t, install(s.config(s.flash, slot), s.byName[next]))
			slot, name = s.boot(t, s.flash)
			assert.Equal(t, next, name)
			trial, err := ota.NewTrial(s.config(s.flash, slot))
			require.NoError(t, err)
			pending, err := trial.Pending(t.Context())
			require.NoError(t, err)
			assert.Equal(t, rollback, pending)
			require.NoError(t, trial.Confirm(t.Context()))
			pending, err = trial.Pending(t.Context())
			require.NoError(t, err)
			assert.False(t, pending)
			_, name = s.boot(t, s.flash)
			assert.Equal(t, next, name)
		}
	}
}

// On an encrypted flash the same happens, and what is in flash is encrypted.
func TestUpdateOfEncryptedFlash(t *testing.T) {
	xts, err := flash.NewXTS(bytes.Repeat([]byte{7}, 64))
	require.NoError(t, err)
	esp32, err := flash.NewESP32(bytes.Repeat([]byte{7}, 32), 15)
	require.NoError(t, err)
	for _, c := range []*flash.Cipher{xts, esp32} {
		s := newBench(t, otadata.Bootloader{Slots: 2, Rollback: true}, map[int]string{0: "old"})
		content := s.flash.Content()
		require.NoError(t, c.Encrypt(content, content, 0))
		raw := flashtest.New(content)
		view, err := flash.Encrypted(raw, c)
		require.NoError(t, err)
		img := s.byName["new"]
		require.ErrorIs(t, install(s.config(view, 0), img[:len(img)-1]), secureboot.ErrImage, "written, and found short")
		require.NoError(t, install(s.config(view, 0), img))
		assert.NotContains(t, string(raw.Content()), "new image")

		data, err := flash.Region(view, 0, otadata.Size)
		require.NoError(t, err)
		slot, _, err := otadata.Boot(data, s.b, func(int) bool { return true })
		require.NoError(t, err)
		assert.Equal(t, 1, slot)
		got := make([]byte, len(img))
		require.NoError(t, flash.Read(view, got, int64(s.partition(1).Offset)))
		assert.Equal(t, img, got)
	}
}

func TestSlotIsNeverOneThatIsNeeded(t *testing.T) {
	good := map[int]string{otadata.Factory: "factory", 0: "old", 1: "new", 2: "older"}
	for _, test := range []struct {
		name         string
		slots        int
		factory      bool
		running      int
		trial        bool
		want         int
		err          error
		otherDamaged bool
	}{
		{name: "factory runs", slots: 2, factory: true, running: otadata.Factory, want: 0},
		{name: "ota_0 runs", slots: 2, factory: true, running: 0, want: 1},
		{name: "the last runs", slots: 3, running: 2, want: 0},
		{name: "trial with three slots", slots: 3, running: 1, trial: true, want: 2},
		{name: "trial with two slots", slots: 2, running: 1, trial: true, err: ota.ErrOnTrial},
		{name: "trial beside a damaged slot", slots: 2, factory: true, running: 1, trial: true, want: 0, otherDamaged: true},
		{name: "one slot, it runs", slots: 1, factory: true, running: 0, err: ota.ErrTable},
		{name: "one slot, factory runs", slots: 1, factory: true, running: otadata.Factory, want: 0},
	} {
		for _, rollback := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/%v", test.name, rollback), func(t *testing.T) {
				b := otadata.Bootloader{Slots: test.slots, Factory: test.factory, Rollback: rollback}
				has := make(map[int]string)
				for slot := otadata.Factory; slot < test.slots; slot++ {
					if slot >= 0 || test.factory {
						has[slot] = good[slot]
					}
				}
				if test.otherDamaged {
					delete(has, 0)
				}
				s := newBench(t, b, has)
				data, err := flash.Region(s.flash, 0, otadata.Size)
				require.NoError(t, err)
				if test.running >= 0 {
					if test.running > 0 {
						before := otadata.Bootloader{Slots: test.slots}
						require.NoError(t, otadata.SetBoot(data, before, test.running-1))
					}
					require.NoError(t, otadata.SetBoot(data, b, test.running))
				}
				slot, _ := s.boot(t, s.flash)
				require.Equal(t, test.running, slot)
				cfg := s.config(s.flash, slot)
				cfg.OnTrial = func(context.Context) (bool, error) { return test.trial, nil }
				if rollback && !test.trial && test.running >= 0 {
					require.NoError(t, otadata.Confirm(data))
				}
				chosen, err := ota.NewSlot(t.Context(), cfg)
				if test.err != nil {
					require.ErrorIs(t, err, test.err)
					return
				}
				require.NoError(t, err)
				assert.Equal(t, s.partition(test.want), chosen.Partition())
			})
		}
	}
}

func TestSlotWrites(t *testing.T) {
	s := newBench(t, otadata.Bootloader{Slots: 2}, map[int]string{0: "old"})
	slot, err := ota.NewSlot(t.Context(), s.config(s.flash, 0))
	require.NoError(t, err)
	require.EqualValues(t, slotSize, slot.Size())
	data := bytes.Repeat([]byte("0123456789"), 1000)

	n, err := slot.WriteAt(data[:4096], 0)
	require.NoError(t, err)
	assert.Equal(t, 4096, n)
	assert.Equal(t, 1, s.flash.Wear(int64(s.partition(1).Offset)))
	assert.Zero(t, s.flash.Wear(int64(s.partition(1).Offset)+4096), "a sector is erased when it is reached")
	n, err = slot.WriteAt(data[4096:], 4096)
	require.NoError(t, err)
	assert.Equal(t, len(data)-4096, n)
	got := make([]byte, len(data))
	_, err = slot.ReadAt(got, 0)
	require.NoError(t, err)
	assert.Equal(t, data, got)

	_, err = slot.WriteAt(data, 4096) // carried on further back
	require.NoError(t, err)
	_, err = slot.WriteAt([]byte{1}, 4096+32)
	require.ErrorIs(t, err, flash.ErrProgram, "within a sector that was written")

	// The end that is no multiple of 32 is filled up with ones.
	got = make([]byte, 32)
	_, err = slot.ReadAt(got, int64(4096+len(data)/32*32))
	require.NoError(t, err)
	assert.Equal(t, append(bytes.Clone(data[len(data)/32*32:]), bytes.Repeat([]byte{0xFF}, 32-len(data)%32)...), got)

	before := s.flash.Operations()
	for _, bad := range []struct {
		off int64
		n   int
	}{{-32, 32}, {1, 1}, {slotSize - 32, 64}, {slotSize + 32, 0}, {0, slotSize + 1}, {1 << 62, 32}} {
		_, err := slot.WriteAt(make([]byte, bad.n), bad.off)
		require.ErrorIs(t, err, flash.ErrBounds, "%+v", bad)
	}
	assert.Equal(t, before, s.flash.Operations(), "nothing of them was written")
	_, err = slot.ReadAt(make([]byte, 1), slotSize)
	require.ErrorIs(t, err, io.EOF)
}

func TestActivateRefuses(t *testing.T) {
	s := newBench(t, otadata.Bootloader{Slots: 2}, map[int]string{0: "old", 1: "new"})
	slot, err := ota.NewSlot(t.Context(), s.config(s.flash, 0))
	require.NoError(t, err)
	img := s.byName["new"]
	for _, size := range []int64{-1, 0, slotSize + 1} {
		require.ErrorIs(t, slot.Activate(t.Context(), size), flash.ErrBounds)
	}
	require.ErrorIs(t, slot.Activate(t.Context(), int64(len(img))-1), secureboot.ErrImage)
	s.flash.FlipBit(int64(s.partition(1).Offset)+5000, 0)
	require.ErrorIs(t, slot.Activate(t.Context(), int64(len(img))), secureboot.ErrImage)
	assert.Zero(t, s.flash.Operations())
	_, err = slot.WriteAt(img, 0)
	require.NoError(t, err)
	require.NoError(t, slot.Activate(t.Context(), int64(len(img))))

	// Written once more, it is not the one that starts next until it is activated again.
	_, err = slot.WriteAt(img[:4096], 0)
	require.NoError(t, err)
	d, err := otadata.Read(s.flash)
	require.NoError(t, err)
	require.GreaterOrEqual(t, d.Active(), 0)
	assert.Equal(t, 0, d[d.Active()].Slot(2))
}

func TestRollback(t *testing.T) {
	for _, rollback := range []bool{false, true} {
		b := otadata.Bootloader{Slots: 2, Rollback: rollback}
		s := newBench(t, b, map[int]string{0: "old"})
		slot, _ := s.boot(t, s.flash)
		require.NoError(t, install(s.config(s.flash, slot), s.byName["new"]))
		slot, _ = s.boot(t, s.flash)
		require.Equal(t, 1, slot)
		trial, err := ota.NewTrial(s.config(s.flash, slot))
		require.NoError(t, err)

		s.flash.FlipBit(int64(s.partition(0).Offset)+5000, 0)
		before := s.flash.Content()
		require.ErrorIs(t, trial.Rollback(t.Context()), ota.ErrNoFallback)
		assert.Equal(t, before, s.flash.Content())
		s.flash.FlipBit(int64(s.partition(0).Offset)+5000, 0)

		require.NoError(t, trial.Rollback(t.Context()))
		require.ErrorIs(t, trial.Rollback(t.Context()), ota.ErrNotChosen)
		_, name := s.boot(t, s.flash)
		assert.Equal(t, "old", name)
		require.NoError(t, install(s.config(s.flash, 0), s.byName["older"]), "and the slot is free again")
		_, name = s.boot(t, s.flash)
		assert.Equal(t, "older", name)
	}
}

// Without a factory application and with nothing else chosen the bootloader would
// start ota_0 again, whatever is in ota_1.
func TestRollbackToItself(t *testing.T) {
	s := newBench(t, otadata.Bootloader{Slots: 2}, map[int]string{0: "old", 1: "older"})
	_, name := s.boot(t, s.flash)
	require.Equal(t, "old", name)
	trial, err := ota.NewTrial(s.config(s.flash, 0))
	require.NoError(t, err)
	require.ErrorIs(t, trial.Rollback(t.Context()), ota.ErrNoFallback)
	_, name = s.boot(t, s.flash)
	assert.Equal(t, "old", name)
}

// Before a slot is written otadata chooses the application that runs, without a trial:
// here it started because the two that come first in order do not verify.
func TestWriteChoosesWhatRuns(t *testing.T) {
	for _, chosen := range [][]int{{1, 2}, {1, 1}, {2, 2}, {2, 1}} {
		b := otadata.Bootloader{Slots: 3, Factory: true, Rollback: true}
		s := newBench(t, b, map[int]string{0: "old", otadata.Factory: "factory"})
		data, err := flash.Region(s.flash, 0, otadata.Size)
		require.NoError(t, err)
		for _, slot := range chosen {
			require.NoError(t, otadata.SetBoot(data, otadata.Bootloader{Slots: 3}, slot))
		}
		running, _ := s.boot(t, s.flash)
		require.Equal(t, 0, running)
		slot, err := ota.NewSlot(t.Context(), s.config(s.flash, 0))
		require.NoError(t, err)
		require.Equal(t, s.partition(1), slot.Partition())
		_, err = slot.WriteAt(s.byName["new"][:4096], 0)
		require.NoError(t, err)
		d, err := otadata.Read(data)
		require.NoError(t, err)
		require.GreaterOrEqual(t, d.Active(), 0, "chosen before: %v", chosen)
		assert.Equal(t, 0, d[d.Active()].Slot(3), "chosen before: %v", chosen)
		assert.Equal(t, otadata.Undefined, d[d.Active()].State, "chosen before: %v", chosen)
		other := d[1-d.Active()]
		assert.False(t, other.Counts() && other.Slot(3) == 1, "nothing chooses the slot: %v", chosen)
	}
}

// A context that is done stops a rollback before anything is written.
func TestRollbackCancelled(t *testing.T) {
	s := newBench(t, otadata.Bootloader{Slots: 2}, map[int]string{0: "old"})
	require.NoError(t, install(s.config(s.flash, 0), s.byName["new"]))
	trial, err := ota.NewTrial(s.config(s.flash, 1))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	before := s.flash.Content()
	require.ErrorIs(t, trial.Rollback(ctx), context.Canceled)
	assert.Equal(t, before, s.flash.Content())
}

// What the application's record says counts where the bootloader does not roll back.
func TestOnTrial(t *testing.T) {
	s := newBench(t, otadata.Bootloader{Slots: 2}, map[int]string{0: "old"})
	cfg := s.config(s.flash, 0)
	failure := errors.New("record is damaged")
	for _, test := range []struct {
		record func(context.Context) (bool, error)
		want   bool
		err    error
	}{
		{nil, false, nil},
		{func(context.Context) (bool, error) { return true, nil }, true, nil},
		{func(context.Context) (bool, error) { return false, failure }, false, failure},
	} {
		cfg.OnTrial = test.record
		trial, err := ota.NewTrial(cfg)
		require.NoError(t, err)
		pending, err := trial.Pending(t.Context())
		require.ErrorIs(t, err, test.err)
		assert.Equal(t, test.want, pending)
		before := s.flash.Operations()
		require.NoError(t, trial.Confirm(t.Context()))
		assert.Equal(t, before, s.flash.Operations(), "there is nothing to write")
	}
}

func TestConfigRefused(t *testing.T) {
	s := newBench(t, otadata.Bootloader{Slots: 2, Factory: true}, nil)
	good := s.config(s.flash, 0)
	table := func(change func(*partition.Table)) *partition.Table {
		c := partition.Table{Partitions: append([]partition.Partition(nil), s.table.Partitions...)}
		change(&c)
		return &c
	}
	for name, change := range map[string]func(*ota.Config){
		"no flash":            func(c *ota.Config) { c.Flash = nil },
		"no table":            func(c *ota.Config) { c.Table = nil },
		"no verifier":         func(c *ota.Config) { c.Verifier = nil },
		"running is nowhere":  func(c *ota.Config) { c.Running = partition.Partition{} },
		"running was moved":   func(c *ota.Config) { c.Running.Offset += 0x1000 },
		"no otadata":          func(c *ota.Config) { c.Table = table(func(t *partition.Table) { t.Partitions[0].Subtype = 1 }) },
		"otadata of a sector": func(c *ota.Config) { c.Table = table(func(t *partition.Table) { t.Partitions[0].Size = 4096 }) },
		"otadata off flash":   func(c *ota.Config) { c.Table = table(func(t *partition.Table) { t.Partitions[0].Offset = 1 << 30 }) },
		"ota_0 and ota_2":     func(c *ota.Config) { c.Table = table(func(t *partition.Table) { t.Partitions[3].Subtype++ }) },
		"slot off flash": func(c *ota.Config) {
			c.Table = table(func(t *partition.Table) { t.Partitions[3].Size = 1 << 30 })
		},
	} {
		cfg := good
		change(&cfg)
		_, err := ota.NewSlot(t.Context(), cfg)
		assert.Error(t, err, name)
	}
	_, err := ota.NewSlot(t.Context(), good)
	require.NoError(t, err)
}
