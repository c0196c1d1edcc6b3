package quarklink_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/esp/image"
	"github.com/quarklink-go/quarklink/esp/secureboot"
	"github.com/quarklink-go/quarklink/esp/secureboot/sbecdsa"
	"github.com/quarklink-go/quarklink/esp/secureboot/sbsign"
	"github.com/quarklink-go/quarklink/quarklinktest"
	"github.com/quarklink-go/quarklink/store"
	"github.com/quarklink-go/quarklink/transport"
)

// signingKeys returns two RSA-3072 keys; making them takes a while.
var signingKeys = sync.OnceValue(func() [2]crypto.Signer {
	var keys [2]crypto.Signer
	for i := range keys {
		key, err := rsa.GenerateKey(rand.Reader, 3072)
		if err != nil {
			panic(err)
		}
		keys[i] = key
	}
	return keys
})

// schemes are all that there are.
var schemes = []secureboot.Scheme{secureboot.RSA(), sbecdsa.Scheme()}

func trusted(t testing.TB, keys ...crypto.Signer) []secureboot.Digest {
	t.Helper()
	var digests []secureboot.Digest
	for _, key := range keys {
		d, err := sbsign.KeyDigest(key.Public())
		require.NoError(t, err)
		digests = append(digests, d)
	}
	return digests
}

// signed returns a minimal image, signed with each key.
func signed(t testing.TB, chip image.Chip, keys ...crypto.Signer) []byte {
	t.Helper()
	img, err := image.Minimal(chip, image.App{Project: "blinky", Version: "1.8.1"})
	require.NoError(t, err)
	if len(keys) > 0 {
		if img, err = sbsign.Image(rand.Reader, img, keys...); err != nil {
			t.Fatal(err)
		}
	}
	return img
}

// asIs publishes an image without a change.
func asIs(img []byte) quarklinktest.Batch {
	return quarklinktest.Batch{Firmware: &quarklinktest.Firmware{Image: bytes.NewReader(img), AsIs: true}}
}

func TestFirmwareUpdate(t *testing.T) {
	key := signingKeys()[0]
	plain := signed(t, image.ESP32C3)
	server, c := newMember(t, quarklinktest.Batch{SigningKey: key}, func(cfg *quarklink.Config) {
		cfg.Firmware = quarklink.FirmwareInfo{Version: "1.8.0", Chip: "esp32c3"}
	})
	ctx := t.Context()
	slot := newSlot(t, 1<<20)
	options := quarklink.FirmwareOptions{Slot: slot, Verifier: secureboot.Verifier{Chip: image.ESP32C3, Schemes: schemes, Trusted: trusted(t, key)}}
	if done, err := c.FirmwareUpdate(ctx, options); !errors.Is(err, quarklink.ErrNoUpdate) || done.Installed {
		t.Errorf("no update due: %+v, %v", done, err)
	}
	require.NoError(t, server.Publish("batch", quarklinktest.Firmware{Image: bytes.NewReader(plain)}))
	var steps []int64
	options.Progress = func(done, total int64) {
		if total != 2*sector {
			t.Errorf("total %d", total)
		}
		steps = append(steps, done)
	}
	done, err := c.FirmwareUpdate(ctx, options)
	require.NoError(t, err)
	if !done.Installed || done.Manifest.Version != "1.8.1" || done.Manifest.Name != "blinky" || slot.active != done.Manifest.Size {
		t.Errorf("installed %+v, active %d", done, slot.active)
	}
	if len(steps) < 2 || steps[0] != 0 || steps[len(steps)-1] != 2*sector {
		t.Errorf("progress %v", steps)
	}
	if o := server.Outcomes(c.DeviceID()); len(o) != 1 || o[0].Outcome != "installed" || o[0].SHA256 != done.Manifest.SHA256 {
		t.Errorf("the instance was told %+v", o)
	}
	if n := server.Stats().Handshakes; n != 1 {
		t.Errorf("%d handshakes", n)
	}

	// The device restarts and says what it runs: nothing is due any more.
	again := newClient(t, new(store.Mem), at(server), func(cfg *quarklink.Config) {
		cfg.Firmware = quarklink.FirmwareInfo{Version: `1.8.1 "beta\`, SHA256: done.Manifest.SHA256, Chip: "esp32c3"}
	})
	require.NoError(t, server.AddDevices("batch", again.DeviceID()))
	if s, err := again.Status(ctx); err != nil || s.Firmware != nil {
		t.Errorf("after the update: %+v, %v", s, err)
	}
	cfg := quarklink.Config{KeyStore: newKeys(t, new(store.Mem)), Firmware: quarklink.FirmwareInfo{Version: "1\n"}}
	_, err = quarklink.New(ctx, cfg)
	assert.ErrorIs(t, err, quarklink.ErrInvalidParameter, "a version with a newline")
}

// TestFirmwareRefused: each class of what can be wrong with an image, its
// delivery or the slot has its own error, and nothing is activated.
func TestFirmwareRefused(t *testing.T) {
	keys := signingKeys()
	good := signed(t, image.ESP32C3, keys[0])
	change := func(f func(b []byte) []byte) quarklinktest.Batch { return asIs(f(bytes.Clone(good))) }
	cut := func(n int) quarklinktest.Batch { return change(func(b []byte) []byte { return b[:n] }) }
	flip := func(at int) quarklinktest.Batch {
		return change(func(b []byte) []byte { b[at] ^= 1; return b })
	}
	due := func(attributes map[string]string) quarklinktest.Batch {
		b := asIs(good)
		b.Firmware.Attributes = attributes
		return b
	}
	type setup struct {
		fault func(*quarklinktest.Server)
		slot  func(*flashSlot)
		size  int64 // of the slot
	}
	for _, test := range []struct {
		name  string
		batch quarklinktest.Batch
		setup setup
		want  error
		also  error
		tell  bool // the instance is told of the failure
	}{
		{name: "not an image", batch: flip(0), want: quarklink.ErrUpdate, also: image.ErrMagic, tell: true},
		{name: "another chip", batch: asIs(signed(t, image.ESP32S3, keys[0])), want: quarklink.ErrUpdate, tell: true},
		{name: "another chip, and the manifest does not say", batch: quarklinktest.Batch{Firmware: &quarklinktest.Firmware{
			Image: bytes.NewReader(signed(t, image.ESP32S3, keys[0])), AsIs: true, Attributes: map[string]string{}}}, want: quarklink.ErrUpdate, also: image.ErrChip, tell: true},
		{name: "virtual eFuses", batch: due(map[string]string{"efuse": "virtual"}), want: quarklink.ErrUpdate, tell: true},
		{name: "damaged", batch: flip(0x30), want: quarklink.ErrUpdate, also: image.ErrChecksum, tell: true},
		{name: "cut off within the image", batch: cut(100), want: quarklink.ErrUpdate, also: image.ErrTruncated, tell: true},
		{name: "cut off before the signature", batch: cut(sector), want: quarklink.ErrMissingSignature, tell: true},
		{name: "not signed", batch: asIs(signed(t, image.ESP32C3)), want: quarklink.ErrMissingSignature, tell: true},
		{name: "signature erased", batch: change(func(b []byte) []byte {
			return append(b[:sector], bytes.Repeat([]byte{0xFF}, sector)...)
		}), want: quarklink.ErrMissingSignature, tell: true},
		{name: "signed by nobody that is trusted", batch: asIs(signed(t, image.ESP32C3, keys[1])), want: quarklink.ErrWrongSignature, tell: true},
		{name: "signature damaged", batch: flip(sector + 900), want: quarklink.ErrWrongSignature, tell: true},
		{name: "too large for the slot", batch: asIs(good), setup: setup{size: sector}, want: quarklink.ErrUpdate, also: quarklink.ErrSlotTooSmall, tell: true},
		{name: "connection lost", batch: asIs(good), setup: setup{fault: func(s *quarklinktest.Server) {
			s.Fault(quarklinktest.CallFirmware, quarklinktest.CutOff(5000))
		}}, want: quarklink.ErrConnectionLost},
		{name: "damaged on its way", batch: asIs(good), setup: setup{fault: func(s *quarklinktest.Server) {
			s.Fault(quarklinktest.CallFirmware, quarklinktest.Damage(5000))
		}}, want: quarklink.ErrUpdate, tell: true},
		{name: "shorter than announced", batch: asIs(good), setup: setup{fault: func(s *quarklinktest.Server) { body(s, good[:len(good)-1]) }}, want: quarklink.ErrConnectionLost},
		{name: "longer than announced", batch: asIs(good), setup: setup{fault: func(s *quarklinktest.Server) { body(s, append(bytes.Clone(good), 0)) }}, want: quarklink.ErrUpdate, tell: true},
		{name: "longer than announced, in chunks", batch: asIs(good), setup: setup{fault: func(s *quarklinktest.Server) {
			s.Fault(quarklinktest.CallFirmware, quarklinktest.Answer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Write(good)
				w.(http.Flusher).Flush()
				w.Write(good)
			})))
		}}, want: quarklink.ErrUpdate, tell: true},
		{name: "gone when asked for", batch: asIs(good), setup: setup{fault: func(s *quarklinktest.Server) {
			s.Fault(quarklinktest.CallFirmware, quarklinktest.Refuse(404, quarklinktest.ProblemNoFirmware, 0))
		}}, want: quarklink.ErrNoUpdate},
		{name: "the flash does not take it", batch: asIs(good), setup: setup{slot: func(s *flashSlot) { s.failAt = 5000 }}, want: quarklink.ErrUpdate, also: errFlash, tell: true},
		{name: "the flash stores something else", batch: asIs(good), setup: setup{slot: func(s *flashSlot) { s.flipAt = 0x30 }}, want: quarklink.ErrUpdate, tell: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server, c := newMember(t, test.batch, func(cfg *quarklink.Config) { cfg.Firmware.Chip = "esp32c3" })
				if test.setup.fault != nil {
					test.setup.fault(server)
				}
				if test.setup.size == 0 {
					test.setup.size = 1 << 20
				}
				slot := newSlot(t, test.setup.size)
				if test.setup.slot != nil {
					test.setup.slot(slot)
				}
				done, err := c.FirmwareUpdate(t.Context(), quarklink.FirmwareOptions{Slot: slot,
					Verifier: secureboot.Verifier{Chip: image.ESP32C3, Schemes: schemes, Trusted: trusted(t, keys[0])}})
				if !errors.Is(err, test.want) || test.also != nil && !errors.Is(err, test.also) {
					t.Errorf("error %v, want %v (%v)", err, test.want, test.also)
				}
				onlyCode(t, err)
				if done.Installed || slot.active != 0 {
					t.Error("installed all the same")
				}
				if done.Manifest.SHA256 == [32]byte{} {
					t.Error("which image that was is not said")
				}
				var e *quarklink.Error
				told := server.Outcomes(c.DeviceID())
				if !errors.As(err, &e) || test.tell != (len(told) == 1) || test.tell && (told[0].Outcome != "failed" || told[0].Code != e.Code) {
					t.Errorf("the instance was told %+v of %v", told, err)
				}
			})
		})
	}
}

// body answers the download with something else.
func body(s *quarklinktest.Server, b []byte) {
	s.Fault(quarklinktest.CallFirmware, quarklinktest.Answer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(b)))
		w.Write(b)
	})))
}

func TestFirmwareOptions(t *testing.T) {
	_, c := newMember(t, asIs(signed(t, image.ESP32C3)))
	slot := newSlot(t, 1<<20)
	if _, err := c.FirmwareUpdate(t.Context(), quarklink.FirmwareOptions{Slot: slot}); !errors.Is(err, quarklink.ErrNoVerifier) || !errors.Is(err, quarklink.ErrInvalidParameter) {
		t.Errorf("without a verifier: %v", err)
	}
	_, err := c.FirmwareUpdate(t.Context(), quarklink.FirmwareOptions{Verifier: anything})
	assert.ErrorIs(t, err, quarklink.ErrInvalidParameter, "without a slot")
	_, err = c.FirmwareUpdate(t.Context(), quarklink.FirmwareOptions{Slot: slot, Verifier: secureboot.Verifier{}})
	assert.ErrorIs(t, err, secureboot.ErrNoTrustedKey, "with a verifier that trusts nobody")
	if slot.active != 0 {
		t.Error("activated")
	}
}

// TestFirmwareChanges publishes another image while the first is being asked
// for: the device starts over with the one that is due.
func TestFirmwareChanges(t *testing.T) {
	first, second := signed(t, image.ESP32C3), append(signed(t, image.ESP32C3), make([]byte, 100)...)
	server, c := newMember(t, asIs(first))
	once := sync.Once{}
	server.Fault(quarklinktest.CallFirmware, quarklinktest.Answer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		once.Do(func() { require.NoError(t, server.Publish("batch", *asIs(second).Firmware)) })
		w.WriteHeader(http.StatusPreconditionFailed)
	})).Times(1))
	done, err := c.FirmwareUpdate(t.Context(), quarklink.FirmwareOptions{Slot: newSlot(t, 1<<20), Verifier: anything})
	if err != nil || done.Manifest.SHA256 != sha256.Sum256(second) {
		t.Errorf("installed %x, %v", done.Manifest.SHA256, err)
	}
}

func TestFirmwareCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, c := newMember(t, asIs(signed(t, image.ESP32C3)))
		server.Fault(quarklinktest.CallFirmware, quarklinktest.Delay(time.Hour))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		slot := newSlot(t, 1<<20)
		_, err := c.FirmwareUpdate(ctx, quarklink.FirmwareOptions{Slot: slot, Verifier: anything})
		if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, quarklink.ErrConnectionLost) || slot.active != 0 {
			t.Errorf("error %v, active %d", err, slot.active)
		}
	})
}

func TestOutcomeDetailIsBounded(t *testing.T) {
	server, c := newMember(t, asIs(signed(t, image.ESP32C3)))
	long := strings.Repeat("ä", 5000)
	_, err := c.FirmwareUpdate(t.Context(), quarklink.FirmwareOptions{Slot: newSlot(t, 1<<20),
		Verifier: verifierFunc(func(context.Context, io.ReaderAt, int64) error {
			return fmt.Errorf("%w: %s", quarklink.ErrUpdate, long)
		})})
	if !errors.Is(err, quarklink.ErrUpdate) {
		t.Error(err)
	}
	if o := server.Outcomes(c.DeviceID()); len(o) != 1 || len(o[0].Detail) > 256 || o[0].Code != quarklink.CodeUpdate {
		t.Errorf("told %+v", o)
	}
}

// TestOutcomeIsBounded: what is installed should run, whether or not the
// instance wants to hear of it.
func TestOutcomeIsBounded(t *testing.T) {
	for name, fault := range map[string]quarklinktest.Fault{
		"silent":      quarklinktest.Delay(72 * time.Hour),
		"unavailable": quarklinktest.Refuse(503, quarklinktest.ProblemUnavailable, 10*time.Minute),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server, c := newMember(t, asIs([]byte("image")))
				server.Fault(quarklinktest.CallOutcome, fault)
				start := time.Now()
				done, err := c.FirmwareUpdate(t.Context(), quarklink.FirmwareOptions{Slot: newSlot(t, 1<<20), Verifier: anything})
				if err != nil || !done.Installed || time.Since(start) > time.Minute {
					t.Errorf("installed %v, %v, after %v", done.Installed, err, time.Since(start))
				}
			})
		})
	}
}

// TestFirmwareNeverDecided: an instance that always has another image in mind is
// not asked for ever.
func TestFirmwareNeverDecided(t *testing.T) {
	server, c := newMember(t, asIs([]byte("image")))
	server.Fault(quarklinktest.CallFirmware, quarklinktest.Refuse(412, "", 0))
	if _, err := c.FirmwareUpdate(t.Context(), quarklink.FirmwareOptions{Slot: newSlot(t, 1<<20), Verifier: anything}); err == nil {
		t.Error("no error")
	}
	if n := server.Stats().Calls[quarklinktest.CallFirmware]; n > 5 {
		t.Errorf("asked %d times", n)
	}
}

// TestVerifiersCode: a Verifier may wrap the code that its error stands for.
func TestVerifiersCode(t *testing.T) {
	for _, want := range []error{quarklink.ErrUpdate, quarklink.ErrMissingSignature, quarklink.ErrWrongSignature} {
		server, c := newMember(t, asIs([]byte("image")))
		_, err := c.FirmwareUpdate(t.Context(), quarklink.FirmwareOptions{Slot: newSlot(t, 1<<20),
			Verifier: verifierFunc(func(context.Context, io.ReaderAt, int64) error { return fmt.Errorf("mine: %w", want) })})
		if !errors.Is(err, want) {
			t.Errorf("error %v, want %v", err, want)
		}
		onlyCode(t, err)
		if told := server.Outcomes(c.DeviceID()); len(told) != 1 || told[0].Code != want {
			t.Errorf("told %+v", told)
		}
	}
}

// TestVerdictStands: what the Verifier has decided is the result, though the
// context ends, or the client is closed, while the instance is being told.
func TestVerdictStands(t *testing.T) {
	refuse := verifierFunc(func(context.Context, io.ReaderAt, int64) error { return quarklink.ErrWrongSignature })
	for _, how := range []string{"deadline", "Close"} {
		t.Run(how, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server, c := newMember(t, asIs([]byte("image")))
				server.Fault(quarklinktest.CallOutcome, quarklinktest.Delay(time.Hour))
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				if how == "Close" {
					time.AfterFunc(5*time.Second, func() { c.Close() })
				}
				_, err := c.FirmwareUpdate(ctx, quarklink.FirmwareOptions{Slot: newSlot(t, 1<<20), Verifier: refuse})
				if !errors.Is(err, quarklink.ErrWrongSignature) {
					t.Errorf("error %v", err)
				}
				onlyCode(t, err)
			})
		})
	}
}

// TestOutcomeLeavesTheLineFree: an attempt to tell the outcome that led nowhere
// does not hold up the next call.
func TestOutcomeLeavesTheLineFree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := newServer(t, quarklinktest.Options{InMemory: true})
		under, dials := server.Carrier(), 0
		c := newClient(t, new(store.Mem), at(server), func(cfg *quarklink.Config) {
			cfg.Transport = transport.Func(func(ctx context.Context) (net.Conn, error) {
				if dials++; dials == 2 {
					<-ctx.Done()
					return nil, ctx.Err()
				}
				return under.Dial(ctx)
			})
		})
		member(t, server, c, asIs([]byte("image")))
		slow := verifierFunc(func(context.Context, io.ReaderAt, int64) error {
			time.Sleep(3 * time.Minute) // the idle connection is gone afterwards
			return nil
		})
		_, err := c.FirmwareUpdate(t.Context(), quarklink.FirmwareOptions{Slot: newSlot(t, 1<<20), Verifier: slow})
		require.NoError(t, err)
		start := time.Now()
		if _, err := c.Status(t.Context()); err != nil || time.Since(start) > time.Second || dials != 3 {
			t.Errorf("status: %v after %v, %d dials", err, time.Since(start), dials)
		}
	})
}
