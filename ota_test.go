package quarklink_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
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
	options := quarklink.FirmwareOptions{Slot: slot,
		Verifier: secureboot.Verifier{Chip: image.ESP32C3, Schemes: schemes, Trusted: trusted(t, key)}}
	done, err := c.FirmwareUpdate(ctx, options)
	assert.ErrorIs(t, err, quarklink.ErrNoUpdate)
	assert.False(t, done.Installed)
	require.NoError(t, server.Publish("batch", quarklinktest.Firmware{Image: bytes.NewReader(plain)}))
	var steps []int64
	options.Progress = func(done, total int64) {
		assert.EqualValues(t, 2*sector, total)
		steps = append(steps, done)
	}
	done, err = c.FirmwareUpdate(ctx, options)
	require.NoError(t, err)
	assert.True(t, done.Installed)
	assert.Equal(t, "1.8.1", done.Manifest.Version)
	assert.Equal(t, "blinky", done.Manifest.Name)
	assert.Equal(t, done.Manifest.Size, slot.active)
	require.GreaterOrEqual(t, len(steps), 2)
	assert.Zero(t, steps[0])
	assert.EqualValues(t, 2*sector, steps[len(steps)-1])
	told := server.Outcomes(c.DeviceID())
	require.Len(t, told, 1)
	assert.Equal(t, "installed", told[0].Outcome)
	assert.Equal(t, done.Manifest.SHA256, told[0].SHA256)
	assert.Equal(t, 1, server.Stats().Handshakes)

	// The device restarts and says what it runs: nothing is due any more.
	again := newClient(t, new(store.Mem), at(server), func(cfg *quarklink.Config) {
		cfg.Firmware = quarklink.FirmwareInfo{Version: `1.8.1 "beta\`, SHA256: done.Manifest.SHA256, Chip: "esp32c3"}
	})
	require.NoError(t, server.AddDevices("batch", again.DeviceID()))
	s, err := again.Status(ctx)
	require.NoError(t, err)
	assert.Nil(t, s.Firmware, "what is due after the update")
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
		{name: "another chip, and the manifest does not say",
			batch: quarklinktest.Batch{Firmware: &quarklinktest.Firmware{
				Image: bytes.NewReader(signed(t, image.ESP32S3, keys[0])), AsIs: true,
				Attributes: map[string]string{}}},
			want: quarklink.ErrUpdate, also: image.ErrChip, tell: true},
		{name: "virtual eFuses", batch: due(map[string]string{"efuse": "virtual"}), want: quarklink.ErrUpdate,
			tell: true},
		{name: "damaged", batch: flip(0x30), want: quarklink.ErrUpdate, also: image.ErrChecksum, tell: true},
		{name: "cut off within the image", batch: cut(100), want: quarklink.ErrUpdate, also: image.ErrTruncated,
			tell: true},
		{name: "cut off before the signature", batch: cut(sector), want: quarklink.ErrMissingSignature, tell: true},
		{name: "not signed", batch: asIs(signed(t, image.ESP32C3)), want: quarklink.ErrMissingSignature, tell: true},
		{name: "signature erased", batch: change(func(b []byte) []byte {
			return append(b[:sector], bytes.Repeat([]byte{0xFF}, sector)...)
		}), want: quarklink.ErrMissingSignature, tell: true},
		{name: "signed by nobody that is trusted", batch: asIs(signed(t, image.ESP32C3, keys[1])),
			want: quarklink.ErrWrongSignature, tell: true},
		{name: "signature damaged", batch: flip(sector + 900), want: quarklink.ErrWrongSignature, tell: true},
		{name: "too large for the slot", batch: asIs(good), setup: setup{size: sector}, want: quarklink.ErrUpdate,
			also: quarklink.ErrSlotTooSmall, tell: true},
		{name: "connection lost", batch: asIs(good), setup: setup{fault: func(s *quarklinktest.Server) {
			s.Fault(quarklinktest.CallFirmware, quarklinktest.CutOff(5000))
		}}, want: quarklink.ErrConnectionLost},
		{name: "damaged on its way", batch: asIs(good), setup: setup{fault: func(s *quarklinktest.Server) {
			s.Fault(quarklinktest.CallFirmware, quarklinktest.Damage(5000))
		}}, want: quarklink.ErrUpdate, tell: true},
		{name: "shorter than announced", batch: asIs(good), setup: setup{fault: func(s *quarklinktest.Server) {
			body(s,
				good[:len(good)-1])
		}}, want: quarklink.ErrConnectionLost},
		{name: "longer than announced", batch: asIs(good), setup: setup{fault: func(s *quarklinktest.Server) {
			body(s,
				append(bytes.Clone(good), 0))
		}}, want: quarklink.ErrUpdate, tell: true},
		{name: "longer than announced, in chunks", batch: asIs(good),
			setup: setup{fault: func(s *quarklinktest.Server) {
				s.Fault(quarklinktest.CallFirmware, quarklinktest.Answer(http.HandlerFunc(
					func(w http.ResponseWriter, _ *http.Request) {
						w.Write(good)
						w.(http.Flusher).Flush()
						w.Write(good)
					})))
			}}, want: quarklink.ErrUpdate, tell: true},
		{name: "gone when asked for", batch: asIs(good), setup: setup{fault: func(s *quarklinktest.Server) {
			s.Fault(quarklinktest.CallFirmware, quarklinktest.Refuse(404, quarklinktest.ProblemNoFirmware, 0))
		}}, want: quarklink.ErrNoUpdate},
		{name: "the flash does not take it", batch: asIs(good),
			setup: setup{slot: func(s *flashSlot) { s.failAt = 5000 }}, want: quarklink.ErrUpdate, also: errFlash,
			tell: true},
		{name: "the flash stores something else", batch: asIs(good),
			setup: setup{slot: func(s *flashSlot) { s.flipAt = 0x30 }}, want: quarklink.ErrUpdate, tell: true},
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
				assert.ErrorIs(t, err, test.want)
				if test.also != nil {
					assert.ErrorIs(t, err, test.also)
				}
				onlyCode(t, err)
				assert.False(t, done.Installed)
				assert.Zero(t, slot.active)
				assert.NotZero(t, done.Manifest.SHA256, "which image that was")
				var e *quarklink.Error
				told := server.Outcomes(c.DeviceID())
				require.ErrorAs(t, err, &e)
				if !test.tell {
					assert.Empty(t, told)
					return
				}
				require.Len(t, told, 1)
				assert.Equal(t, "failed", told[0].Outcome)
				assert.Equal(t, e.Code, told[0].Code)
			})
		})
	}
}

// body answers the download with something else.
func body(s *quarklinktest.Server, b []byte) {
	s.Fault(quarklinktest.CallFirmware, quarklinktest.Answer(http.HandlerFunc(
		func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(b)))
			w.Write(b)
		})))
}

func TestFirmwareOptions(t *testing.T) {
	_, c := newMember(t, asIs(signed(t, image.ESP32C3)))
	slot := newSlot(t, 1<<20)
	_, err := c.FirmwareUpdate(t.Context(), quarklink.FirmwareOptions{Slot: slot})
	assert.ErrorIs(t, err, quarklink.ErrNoVerifier)
	assert.ErrorIs(t, err, quarklink.ErrInvalidParameter)
	_, err = c.FirmwareUpdate(t.Context(), quarklink.FirmwareOptions{Verifier: anything})
	assert.ErrorIs(t, err, quarklink.ErrInvalidParameter, "without a slot")
	_, err = c.FirmwareUpdate(t.Context(), quarklink.FirmwareOptions{Slot: slot, Verifier: secureboot.Verifier{}})
	assert.ErrorIs(t, err, secureboot.ErrNoTrustedKey, "with a verifier that trusts nobody")
	assert.Zero(t, slot.active)
}

// TestFirmwareChanges publishes another image while the first is being asked
// for: the device starts over with the one that is due.
func TestFirmwareChanges(t *testing.T) {
	first, second := signed(t, image.ESP32C3), append(signed(t, image.ESP32C3), make([]byte, 100)...)
	server, c := newMember(t, asIs(first))
	once := sync.Once{}
	server.Fault(quarklinktest.CallFirmware, quarklinktest.Answer(http.HandlerFunc(
		func(w http.ResponseWriter, _ *http.Request) {
			once.Do(func() { require.NoError(t, server.Publish("batch", *asIs(second).Firmware)) })
			w.WriteHeader(http.StatusPreconditionFailed)
		})).Times(1))
	done, err := c.FirmwareUpdate(t.Context(), quarklink.FirmwareOptions{Slot: newSlot(t, 1<<20), Verifier: anything})
	require.NoError(t, err)
	assert.Equal(t, sha256.Sum256(second), [32]byte(done.Manifest.SHA256))
}

func TestFirmwareCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, c := newMember(t, asIs(signed(t, image.ESP32C3)))
		server.Fault(quarklinktest.CallFirmware, quarklinktest.Delay(time.Hour))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		slot := newSlot(t, 1<<20)
		_, err := c.FirmwareUpdate(ctx, quarklink.FirmwareOptions{Slot: slot, Verifier: anything})
		assert.ErrorIs(t, err, context.DeadlineExceeded)
		assert.NotErrorIs(t, err, quarklink.ErrConnectionLost)
		assert.Zero(t, slot.active)
	})
}

func TestOutcomeDetailIsBounded(t *testing.T) {
	server, c := newMember(t, asIs(signed(t, image.ESP32C3)))
	long := strings.Repeat("ä", 5000)
	_, err := c.FirmwareUpdate(t.Context(), quarklink.FirmwareOptions{Slot: newSlot(t, 1<<20),
		Verifier: verifierFunc(func(context.Context, io.ReaderAt, int64) error {
			return fmt.Errorf("%w: %s", quarklink.ErrUpdate, long)
		})})
	assert.ErrorIs(t, err, quarklink.ErrUpdate)
	told := server.Outcomes(c.DeviceID())
	require.Len(t, told, 1)
	assert.LessOrEqual(t, len(told[0].Detail), 256)
	assert.Equal(t, quarklink.CodeUpdate, told[0].Code)
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
				done, err := c.FirmwareUpdate(t.Context(),
					quarklink.FirmwareOptions{Slot: newSlot(t, 1<<20), Verifier: anything})
				require.NoError(t, err)
				assert.True(t, done.Installed)
				assert.LessOrEqual(t, time.Since(start), time.Minute)
			})
		})
	}
}

// TestFirmwareNeverDecided: an instance that always has another image in mind is
// not asked for ever.
func TestFirmwareNeverDecided(t *testing.T) {
	server, c := newMember(t, asIs([]byte("image")))
	server.Fault(quarklinktest.CallFirmware, quarklinktest.Refuse(412, "", 0))
	_, err := c.FirmwareUpdate(t.Context(), quarklink.FirmwareOptions{Slot: newSlot(t, 1<<20), Verifier: anything})
	assert.Error(t, err)
	assert.LessOrEqual(t, server.Stats().Calls[quarklinktest.CallFirmware], 5)
}

// TestVerifiersCode: a Verifier may wrap the code that its error stands for.
func TestVerifiersCode(t *testing.T) {
	for _, want := range []error{quarklink.ErrUpdate, quarklink.ErrMissingSignature, quarklink.ErrWrongSignature} {
		server, c := newMember(t, asIs([]byte("image")))
		_, err := c.FirmwareUpdate(t.Context(), quarklink.FirmwareOptions{Slot: newSlot(t, 1<<20),
			Verifier: verifierFunc(func(context.Context, io.ReaderAt,
				int64) error {
				return fmt.Errorf("mine: %w", want)
			})})
		assert.ErrorIs(t, err, want)
		onlyCode(t, err)
		told := server.Outcomes(c.DeviceID())
		require.Len(t, told, 1)
		assert.Equal(t, want, told[0].Code)
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
				assert.ErrorIs(t, err, quarklink.ErrWrongSignature)
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
		_, err = c.Status(t.Context())
		require.NoError(t, err)
		assert.LessOrEqual(t, time.Since(start), time.Second)
		assert.Equal(t, 3, dials)
	})
}
