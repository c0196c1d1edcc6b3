package quarklink_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/quarklinktest"
	"github.com/quarklink-go/quarklink/store"
)

// firmware is an image that only the test's own Verifiers judge.
func firmware(content, version string) quarklinktest.Firmware {
	return quarklinktest.Firmware{Image: strings.NewReader(content), Version: version}
}

func publish(t *testing.T, server *quarklinktest.Server, content, version string) {
	t.Helper()
	require.NoError(t, server.Publish("batch", firmware(content, version)))
}

// field is one device in a batch, that can be started again and again.
type field struct {
	server  *quarklinktest.Server
	records *store.Mem
	log     bytes.Buffer
}

func newField(t *testing.T) *field {
	t.Helper()
	f := &field{server: newServer(t, quarklinktest.Options{InMemory: true}), records: new(store.Mem)}
	member(t, f.server, newClient(t, f.records, at(f.server)), quarklinktest.Batch{})
	return f
}

// start starts the device, which says that it runs info.
func (f *field) start(t *testing.T, info quarklink.FirmwareInfo) *quarklink.Client {
	t.Helper()
	return newClient(t, f.records, at(f.server), func(cfg *quarklink.Config) {
		cfg.Firmware = info
		cfg.Logger = slog.New(slog.NewTextHandler(&f.log, nil))
	})
}

func (f *field) downloads() int { return int(f.server.Stats().Calls[quarklinktest.CallFirmware]) }

// stored returns the record "update" as JSON has it; nil if there is none.
func (f *field) stored(t *testing.T) map[string]any {
	t.Helper()
	data, err := f.records.Get(t.Context(), "update")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	require.NoError(t, err)
	version, payload, err := store.DecodeRecord("update", data)
	require.NoError(t, err)
	require.EqualValues(t, 1, version)
	require.LessOrEqual(t, len(payload), 1<<10)
	var r map[string]any
	require.NoError(t, json.Unmarshal(payload, &r))
	return r
}

func (f *field) update(t *testing.T, c *quarklink.Client, change ...func(*quarklink.FirmwareOptions)) error {
	t.Helper()
	o := quarklink.FirmwareOptions{Slot: newSlot(t, 1<<20), Verifier: anything}
	for _, change := range change {
		change(&o)
	}
	done, err := c.FirmwareUpdate(t.Context(), o)
	assert.Equal(t, err == nil, done.Installed)
	return err
}

func refusing(err error) func(*quarklink.FirmwareOptions) {
	return func(o *quarklink.FirmwareOptions) {
		o.Verifier = verifierFunc(func(context.Context, io.ReaderAt, int64) error { return err })
	}
}

// TestInstalledOnce: a program that does not say what runs installs an update
// once, learns what to say, and gets to enrol.
func TestInstalledOnce(t *testing.T) {
	f := newField(t)
	publish(t, f.server, "image", "1.8.1")
	digest := sha256.Sum256([]byte("image"))
	require.NoError(t, f.update(t, f.start(t, quarklink.FirmwareInfo{})))
	for range 4 {
		c := f.start(t, quarklink.FirmwareInfo{})
		status, err := c.Status(t.Context())
		require.NoError(t, err)
		assert.True(t, status.AwaitsRestart)
		assert.False(t, status.NeedsUpdate())
		assert.Equal(t, quarklink.CodeNotEnrolled, status.Code())
		again := func(o *quarklink.FirmwareOptions) { o.Again = true }
		for _, change := range []func(*quarklink.FirmwareOptions){func(*quarklink.FirmwareOptions) {}, again} {
			err = f.update(t, c, change)
			require.ErrorIs(t, err, quarklink.ErrAwaitsRestart)
			require.ErrorIs(t, err, quarklink.ErrNoUpdate)
			onlyCode(t, err)
			assert.ErrorContains(t, err, "set Config.Firmware.SHA256")
			assert.ErrorContains(t, err, fmt.Sprintf("%x", digest))
		}
	}
	assert.Equal(t, 1, f.downloads())
	assert.Len(t, f.server.Outcomes(f.start(t, quarklink.FirmwareInfo{}).DeviceID()), 1)
	done, err := f.start(t, quarklink.FirmwareInfo{}).FirmwareUpdate(t.Context(),
		quarklink.FirmwareOptions{Slot: newSlot(t, 1<<20), Verifier: anything})
	require.ErrorIs(t, err, quarklink.ErrAwaitsRestart)
	assert.Equal(t, digest, done.Manifest.SHA256, "which image that is")
}

// TestReported: an update that Config.Firmware reports, by its digest or, if that
// is zero, its version, is done; then it may be installed again some day.
func TestReported(t *testing.T) {
	digest := sha256.Sum256([]byte("image"))
	for _, test := range []struct {
		name string
		says quarklink.FirmwareInfo
		done bool
	}{
		{"the digest", quarklink.FirmwareInfo{SHA256: digest}, true},
		{"the digest and another version", quarklink.FirmwareInfo{SHA256: digest, Version: "1.8.0"}, true},
		{"the version", quarklink.FirmwareInfo{Version: "1.8.1"}, true},
		{"the version and another digest", quarklink.FirmwareInfo{SHA256: [32]byte{1}, Version: "1.8.1"}, false},
		{"another version", quarklink.FirmwareInfo{Version: "1.8.0"}, false},
		{"nothing", quarklink.FirmwareInfo{Chip: "esp32c3"}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newField(t)
			publish(t, f.server, "image", "1.8.1")
			require.NoError(t, f.update(t, f.start(t, quarklink.FirmwareInfo{Version: "1.8.0"})))
			assert.Equal(t, "activated", f.stored(t)["stage"])

			status, err := f.start(t, test.says).Status(t.Context())
			require.NoError(t, err)
			assert.Equal(t, !test.done, status.AwaitsRestart)
			assert.Equal(t, !test.done, status.Firmware != nil)
			assert.Equal(t, !test.done, f.stored(t) != nil, "the record is there")

			// Somebody puts the old firmware back.
			old := f.start(t, quarklink.FirmwareInfo{Version: "1.8.0"})
			status, err = old.Status(t.Context())
			require.NoError(t, err)
			assert.Equal(t, test.done, status.NeedsUpdate())
			if test.done {
				require.NoError(t, f.update(t, old))
				assert.Equal(t, 2, f.downloads())
			} else {
				require.ErrorIs(t, f.update(t, old), quarklink.ErrAwaitsRestart)
				publish(t, f.server, "another image", "1.8.2")
				require.NoError(t, f.update(t, old), "another is offered")
			}
		})
	}
}

// TestOfferOfWhatRuns: an instance that offers the image that runs does not make
// the device install it again and again.
func TestOfferOfWhatRuns(t *testing.T) {
	digest := sha256.Sum256([]byte("image"))
	long := strings.Repeat("1", 100)
	for _, test := range []struct {
		name string
		says quarklink.FirmwareInfo
		from int // downloads before
	}{
		{"by digest", quarklink.FirmwareInfo{SHA256: digest}, 1},
		{"by version", quarklink.FirmwareInfo{Version: long}, 1},
		{"by digest, from the factory on", quarklink.FirmwareInfo{SHA256: digest}, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newField(t)
			publish(t, f.server, "image", long)
			if test.from > 0 {
				require.NoError(t, f.update(t, f.start(t, quarklink.FirmwareInfo{})))
			}
			c := f.start(t, test.says)
			answerStatus(f.server, c.DeviceID(), quarklink.StateEnrolled,
				fmt.Sprintf(`"firmware": {"size": 5, "version": "%s", "sha256": "%x"}`, long, digest))
			for range 3 {
				status, err := c.Status(t.Context())
				require.NoError(t, err)
				assert.Nil(t, status.Firmware)
				require.ErrorIs(t, f.update(t, c), quarklink.ErrNoUpdate)
			}
			assert.Equal(t, test.from, f.downloads())
		})
	}
}

// TestRefusedOnce: an image that was refused is not fetched again until there is
// a reason to.
func TestRefusedOnce(t *testing.T) {
	type info = quarklink.FirmwareInfo
	says := info{Version: "1.8.0", Chip: "esp32c3"}
	for _, test := range []struct {
		name  string
		says  quarklink.FirmwareInfo // after it
		again bool
		other bool // another image is offered
		tried bool
	}{
		{name: "nothing has changed", says: says},
		{name: "Again", says: says, again: true, tried: true},
		{name: "another is offered", says: says, other: true, tried: true},
		{name: "another version runs", says: info{Version: "1.7.0", Chip: "esp32c3"}, tried: true},
		{name: "another digest runs", says: info{Version: "1.8.0", Chip: "esp32c3", SHA256: [32]byte{1}}, tried: true},
		{name: "the chip is named otherwise", says: info{Version: "1.8.0", Chip: "esp32s3"}, tried: true},
		{name: "the eFuses are virtual", says: info{Version: "1.8.0", Chip: "esp32c3", VirtualEFuse: true},
			tried: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newField(t)
			publish(t, f.server, "image", "1.8.1")
			c := f.start(t, says)
			require.ErrorIs(t, f.update(t, c, refusing(quarklink.ErrWrongSignature)), quarklink.ErrWrongSignature)
			for range 3 {
				c = f.start(t, says)
				status, err := c.Status(t.Context())
				require.NoError(t, err)
				assert.True(t, status.FirmwareRefused)
				assert.False(t, status.NeedsUpdate())
				assert.Equal(t, quarklink.CodeNotEnrolled, status.Code())
				err = f.update(t, c)
				require.ErrorIs(t, err, quarklink.ErrRefusedBefore)
				require.ErrorIs(t, err, quarklink.ErrNoUpdate)
				onlyCode(t, err)
				assert.ErrorContains(t, err, "FirmwareOptions.Again")
			}
			require.Equal(t, 1, f.downloads())
			require.Len(t, f.server.Outcomes(c.DeviceID()), 1, "the refusal is told once")

			if test.other {
				publish(t, f.server, "another image", "1.8.2")
			}
			c = f.start(t, test.says)
			if !test.again {
				status, err := c.Status(t.Context())
				require.NoError(t, err)
				assert.Equal(t, test.tried, status.NeedsUpdate())
			}
			err := f.update(t, c, func(o *quarklink.FirmwareOptions) { o.Again = test.again })
			assert.Equal(t, test.tried, err == nil, "%v", err)
			assert.Equal(t, test.tried, f.downloads() == 2)
		})
	}
}

// coded is a Verifier's error with a FirmwareCode.
type coded int

func (c coded) Error() string     { return fmt.Sprint("mine, ", int(c)) }
func (c coded) FirmwareCode() int { return int(c) }

// TestWhatIsAVerdict: what carries a firmware code is stored and told, and
// nothing else.
func TestWhatIsAVerdict(t *testing.T) {
	for _, test := range []struct {
		name    string
		says    error // the Verifier
		want    error
		verdict quarklink.Code
	}{
		{"wraps ErrUpdate", quarklink.ErrUpdate, quarklink.ErrUpdate, 22},
		{"wraps ErrMissingSignature", quarklink.ErrMissingSignature, quarklink.ErrMissingSignature, 21},
		{"has FirmwareCode 20", coded(20), quarklink.ErrWrongSignature, 20},
		{"has FirmwareCode 0", coded(0), quarklink.ErrUpdate, 22},
		{"has no code", errFlash, quarklink.ErrGeneral, 0},
		{"wraps another code", quarklink.ErrCommunication, quarklink.ErrCommunication, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newField(t)
			publish(t, f.server, "image", "1.8.1")
			c := f.start(t, quarklink.FirmwareInfo{})
			err := f.update(t, c, refusing(fmt.Errorf("mine: %w", test.says)))
			require.ErrorIs(t, err, test.want)
			onlyCode(t, err)
			told := f.server.Outcomes(c.DeviceID())
			if test.verdict == 0 {
				assert.Empty(t, told)
				assert.Nil(t, f.stored(t))
				require.NoError(t, f.update(t, c))
				return
			}
			require.Len(t, told, 1)
			assert.Equal(t, test.verdict, told[0].Code)
			assert.Equal(t, map[string]any{
				"device": string(c.DeviceID()), "sha256": fmt.Sprintf("%x", sha256.Sum256([]byte("image"))),
				"size":    5.0,
				"version": "1.8.1", "stage": "refused", "code": float64(test.verdict), "reported": "6991a4538a05cf2d",
			}, f.stored(t))
		})
	}
}

// TestNoVerdict: what has to do with the slot or with the network is not stored
// as a refusal.
func TestNoVerdict(t *testing.T) {
	for _, test := range []struct {
		name  string
		slot  func(*flashSlot)
		fault quarklinktest.Fault
		want  error
	}{
		{name: "the flash cannot be written", slot: func(s *flashSlot) { s.failAt = 1 }, want: quarklink.ErrUpdate},
		{name: "the slot cannot be activated", slot: func(s *flashSlot) {
			s.onActivate = func() error { return errFlash }
		}, want: quarklink.ErrUpdate},
		{name: "the connection is lost", fault: quarklinktest.CutOff(3), want: quarklink.ErrConnectionLost},
		{name: "it is gone", fault: quarklinktest.Refuse(404, quarklinktest.ProblemNoFirmware, 0),
			want: quarklink.ErrNoUpdate},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newField(t)
				publish(t, f.server, "image", "1.8.1")
				c := f.start(t, quarklink.FirmwareInfo{})
				if test.slot == nil {
					f.server.Fault(quarklinktest.CallFirmware, test.fault.Times(1))
					test.slot = func(*flashSlot) {}
				}
				require.ErrorIs(t, f.update(t, c, func(o *quarklink.FirmwareOptions) {
					test.slot(o.Slot.(*flashSlot))
				}), test.want)
				assert.NotEqual(t, "refused", f.stored(t)["stage"])
				status, err := c.Status(t.Context())
				require.NoError(t, err)
				assert.True(t, status.NeedsUpdate())
				require.NoError(t, f.update(t, c))
			})
		})
	}
}

// TestUpdateRecordNotUsed: a record that says nothing of use is logged and holds
// nothing up.
func TestUpdateRecordNotUsed(t *testing.T) {
	digest := fmt.Sprintf("%x", sha256.Sum256([]byte("image")))
	other := strings.Repeat("7", 64)
	for _, test := range []struct {
		name    string
		data    []byte
		silence bool // there is nothing to log
	}{
		{name: "damaged", data: []byte("update")},
		{name: "of a later version", data: store.EncodeRecord("update", 2,
			[]byte(`{"sha256":"`+digest+`","stage":"activated"}`))},
		{name: "not JSON", data: store.EncodeRecord("update", 1, []byte("update"))},
		{name: "half a digest", data: store.EncodeRecord("update", 1, []byte(`{"sha256":"77","stage":"activated"}`))},
		{name: "of another device", data: store.EncodeRecord("update", 1,
			[]byte(`{"device":"`+other+`","sha256":"`+digest+`","stage":"activated"}`))},
		{name: "of a stage that a later library has", silence: true, data: store.EncodeRecord("update", 1,
			[]byte(`{"sha256":"`+digest+`","stage":"download","offset":65536}`))},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newField(t)
			publish(t, f.server, "image", "1.8.1")
			require.NoError(t, f.records.Put(t.Context(), "update", test.data))
			c := f.start(t, quarklink.FirmwareInfo{})
			status, err := c.Status(t.Context())
			require.NoError(t, err)
			assert.True(t, status.NeedsUpdate())
			assert.Equal(t, !test.silence, strings.Contains(f.log.String(), "level=WARN"), f.log.String())
			require.NoError(t, f.update(t, c))
			assert.Equal(t, "activated", f.stored(t)["stage"])
		})
	}
}

// TestUpdateRecordAdopted: a record that names no device is this device's.
func TestUpdateRecordAdopted(t *testing.T) {
	f := newField(t)
	publish(t, f.server, "image", "1.8.1")
	require.NoError(t, f.records.Put(t.Context(), "update", store.EncodeRecord("update", 1,
		fmt.Appendf(nil, `{"sha256":"%x","size":5,"stage":"activated","told":true}`, sha256.Sum256([]byte("image"))))))
	require.ErrorIs(t, f.update(t, f.start(t, quarklink.FirmwareInfo{})), quarklink.ErrAwaitsRestart)
}

// TestUpdateRecordIsBounded: whatever the instance calls an image, its record
// stays below 1 KiB, which stored checks.
func TestUpdateRecordIsBounded(t *testing.T) {
	for name, version := range map[string]string{
		"escaped": strings.Repeat("<", 64), "long": strings.Repeat("<", 65),
		"endless": strings.Repeat("1", 9999), "not ASCII": "ä",
	} {
		t.Run(name, func(t *testing.T) {
			f := newField(t)
			publish(t, f.server, "image", version)
			c := f.start(t, quarklink.FirmwareInfo{})
			require.Error(t, f.update(t, c, refusing(quarklink.ErrWrongSignature)))
			if name == "escaped" {
				assert.Equal(t, version, f.stored(t)["version"])
			} else {
				assert.NotContains(t, f.stored(t), "version")
			}
		})
	}
}

// updateStore fails what is asked of it for the record "update".
type updateStore struct {
	store.Store
	get, put, delete error
	puts             int
	failFrom         int // the first Put that fails, from 1
}

func (s *updateStore) Get(ctx context.Context, name string) ([]byte, error) {
	if name == "update" && s.get != nil {
		return nil, s.get
	}
	return s.Store.Get(ctx, name)
}

func (s *updateStore) Put(ctx context.Context, name string, data []byte) error {
	if name == "update" {
		if s.puts++; s.put != nil && s.puts >= s.failFrom {
			return s.put
		}
	}
	return s.Store.Put(ctx, name, data)
}

func (s *updateStore) Delete(ctx context.Context, name string) error {
	if name == "update" && s.delete != nil {
		return s.delete
	}
	return s.Store.Delete(ctx, name)
}

// TestUpdateStoreFails: nothing is activated that could not be remembered as
// verified; once it is activated, or refused, that stands.
func TestUpdateStoreFails(t *testing.T) {
	start := func(t *testing.T, f *field, st *updateStore, info quarklink.FirmwareInfo) *quarklink.Client {
		st.Store = f.records
		return newClient(t, f.records, at(f.server), func(cfg *quarklink.Config) {
			cfg.Store, cfg.Firmware = st, info
			cfg.Logger = slog.New(slog.NewTextHandler(&f.log, nil))
		})
	}
	t.Run("to remember it as verified", func(t *testing.T) {
		f := newField(t)
		publish(t, f.server, "image", "1.8.1")
		c := start(t, f, &updateStore{put: errFlash, failFrom: 1}, quarklink.FirmwareInfo{})
		slot := newSlot(t, 1<<20)
		_, err := c.FirmwareUpdate(t.Context(), quarklink.FirmwareOptions{Slot: slot, Verifier: anything})
		require.ErrorIs(t, err, quarklink.ErrStorage)
		onlyCode(t, err)
		assert.Zero(t, slot.active)
		assert.Empty(t, f.server.Outcomes(c.DeviceID()))
	})
	t.Run("to remember it as activated", func(t *testing.T) {
		f := newField(t)
		publish(t, f.server, "image", "1.8.1")
		c := start(t, f, &updateStore{put: errFlash, failFrom: 2}, quarklink.FirmwareInfo{})
		require.NoError(t, f.update(t, c))
		assert.Equal(t, "verified", f.stored(t)["stage"])
		assert.Contains(t, f.log.String(), errFlash.Error())
	})
	t.Run("to remember it as refused", func(t *testing.T) {
		f := newField(t)
		publish(t, f.server, "image", "1.8.1")
		c := start(t, f, &updateStore{put: errFlash, failFrom: 1}, quarklink.FirmwareInfo{})
		err := f.update(t, c, refusing(quarklink.ErrWrongSignature))
		require.ErrorIs(t, err, quarklink.ErrWrongSignature)
		onlyCode(t, err)
		assert.Contains(t, f.log.String(), errFlash.Error())
	})
	t.Run("to say what it remembers", func(t *testing.T) {
		f := newField(t)
		publish(t, f.server, "image", "1.8.1")
		c := start(t, f, &updateStore{get: errFlash}, quarklink.FirmwareInfo{})
		status, err := c.Status(t.Context())
		require.NoError(t, err)
		assert.True(t, status.NeedsUpdate())
		assert.Contains(t, f.log.String(), errFlash.Error())
	})
	t.Run("to forget it", func(t *testing.T) {
		f := newField(t)
		publish(t, f.server, "image", "1.8.1")
		st := &updateStore{delete: errFlash}
		require.NoError(t, f.update(t, start(t, f, st, quarklink.FirmwareInfo{})))
		_, err := start(t, f, st, quarklink.FirmwareInfo{Version: "1.8.1"}).Status(t.Context())
		require.NoError(t, err)
		assert.Contains(t, f.log.String(), errFlash.Error())
	})
}

// TestActivatedIsRemembered although the call's context ends as the slot is
// being activated.
func TestActivatedIsRemembered(t *testing.T) {
	f := newField(t)
	publish(t, f.server, "image", "1.8.1")
	ctx, cancel := context.WithCancel(t.Context())
	slot := newSlot(t, 1<<20)
	slot.onActivate = func() error { cancel(); return nil }
	c := f.start(t, quarklink.FirmwareInfo{})
	done, err := c.FirmwareUpdate(ctx, quarklink.FirmwareOptions{Slot: slot, Verifier: anything})
	require.NoError(t, err)
	assert.True(t, done.Installed)
	assert.Equal(t, "activated", f.stored(t)["stage"])
}
