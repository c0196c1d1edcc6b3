package quarklink_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/esp/image"
	"github.com/quarklink-go/quarklink/esp/secureboot"
	"github.com/quarklink-go/quarklink/esp/secureboot/sbsign"
	"github.com/quarklink-go/quarklink/quarklinktest"
)

// keepsOld is a slot whose writes change nothing.
type keepsOld struct {
	quarklink.Slot
	old    []byte
	active int64
}

func (s *keepsOld) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(s.old).ReadAt(p, off)
}
func (s *keepsOld) WriteAt(p []byte, _ int64) (int, error)    { return len(p), nil }
func (s *keepsOld) Activate(_ context.Context, n int64) error { s.active = n; return nil }

// TestSlotThatKeepsTheOldImage: an older image of the same size, signed by the
// same key, is not activated in place of the one that was announced.
func TestSlotThatKeepsTheOldImage(t *testing.T) {
	key := signingKeys()[0]
	build := func(version string) []byte {
		img, err := image.Minimal(image.ESP32C3, image.App{Project: "blinky", Version: version})
		require.NoError(t, err)
		img, err = sbsign.Image(rand.Reader, img, key)
		require.NoError(t, err)
		return img
	}
	old, due := build("1.8.0"), build("1.8.1")
	require.Len(t, due, len(old))
	server, c := newMember(t, asIs(due))
	slot := &keepsOld{Slot: newSlot(t, 1<<20), old: old}
	verifier := secureboot.Verifier{Chip: image.ESP32C3, Schemes: schemes, Trusted: trusted(t, key)}
	require.NoError(t, verifier.Verify(t.Context(), slot, int64(len(old))), "the old image is rightly signed")

	done, err := c.FirmwareUpdate(t.Context(), quarklink.FirmwareOptions{Slot: slot, Verifier: verifier})
	require.ErrorIs(t, err, quarklink.ErrUpdate)
	assert.ErrorContains(t, err, "did not keep it")
	onlyCode(t, err)
	assert.False(t, done.Installed)
	assert.Zero(t, slot.active)
	told := server.Outcomes(c.DeviceID())
	require.Len(t, told, 1)
	assert.Equal(t, "failed", told[0].Outcome)
	assert.Equal(t, quarklink.CodeUpdate, told[0].Code)
}

// TestSlotThatCannotBeRead: what the Verifier says after a failed read, good or
// bad, is no verdict. It is neither told nor stored, and the next call tries
// again.
func TestSlotThatCannotBeRead(t *testing.T) {
	readAll := func(ctx context.Context, img io.ReaderAt, size int64) error {
		_, err := io.Copy(io.Discard, io.NewSectionReader(img, 0, size))
		return err
	}
	refuses := func(ctx context.Context, img io.ReaderAt, size int64) error {
		if readAll(ctx, img, size) != nil {
			return quarklink.ErrWrongSignature
		}
		return nil
	}
	accepts := func(ctx context.Context, img io.ReaderAt, size int64) error {
		readAll(ctx, img, size)
		return nil
	}
	for _, test := range []struct {
		name   string
		verify verifierFunc
		pass   int // of the reads from offset 0, the one that fails
		with   error
		want   error
	}{
		{"for the digest", readAll, 1, errFlash, errFlash},
		{"for the digest, at its end", readAll, 1, io.EOF, io.ErrUnexpectedEOF},
		{"by a Verifier that says so", readAll, 2, errFlash, errFlash},
		{"by a Verifier that takes it for a verdict", refuses, 2, errFlash, errFlash},
		{"by a Verifier that takes no notice", accepts, 2, errFlash, errFlash},
		{"by a Verifier, at its end", refuses, 2, io.EOF, io.ErrUnexpectedEOF},
	} {
		t.Run(test.name, func(t *testing.T) {
			server, c := newMember(t, asIs(bytes.Repeat([]byte("image"), 20000)))
			slot := newSlot(t, 1<<20)
			pass := 0
			slot.onRead = func(off int64) error {
				if off == 0 {
					pass++
				}
				if off >= 50000 && pass == test.pass {
					return test.with
				}
				return nil
			}
			options := quarklink.FirmwareOptions{Slot: slot, Verifier: test.verify}
			_, err := c.FirmwareUpdate(t.Context(), options)
			require.ErrorIs(t, err, quarklink.ErrStorage)
			assert.ErrorIs(t, err, test.want)
			assert.ErrorContains(t, err, "slot: read at")
			onlyCode(t, err)
			assert.Zero(t, slot.active)
			assert.Empty(t, server.Outcomes(c.DeviceID()))

			pass = 10 // the flash has recovered
			done, err := c.FirmwareUpdate(t.Context(), options)
			require.NoError(t, err)
			assert.True(t, done.Installed)
		})
	}
}

// TestReadBackObeysContext: neither the digest nor a Verifier that knows no
// context reads on when the call has been cancelled.
func TestReadBackObeysContext(t *testing.T) {
	for pass := 1; pass <= 2; pass++ {
		t.Run(fmt.Sprintf("pass %d", pass), func(t *testing.T) {
			server, c := newMember(t, asIs(bytes.Repeat([]byte("image"), 100000)))
			ctx, cancel := context.WithCancel(t.Context())
			slot := newSlot(t, 1<<20)
			passes, after := 0, 0
			slot.onRead = func(off int64) error {
				if off == 0 {
					passes++
				}
				if ctx.Err() != nil {
					after++
				}
				if passes == pass {
					cancel()
				}
				return nil
			}
			_, err := c.FirmwareUpdate(ctx, quarklink.FirmwareOptions{Slot: slot,
				Verifier: verifierFunc(func(_ context.Context, img io.ReaderAt, size int64) error {
					if n, err := io.Copy(io.Discard, io.NewSectionReader(img, 0, size)); n < size {
						return errors.Join(quarklink.ErrUpdate, err)
					}
					return nil
				})})
			require.ErrorIs(t, err, context.Canceled)
			assert.NotErrorIs(t, err, quarklink.ErrUpdate)
			assert.Zero(t, after, "reads after the cancellation")
			assert.Zero(t, slot.active)
			assert.Empty(t, server.Outcomes(c.DeviceID()))
		})
	}
}

// TestExactFit: a slot may be filled to its last byte, and not beyond.
func TestExactFit(t *testing.T) {
	img := bytes.Repeat([]byte("image"), 3333)
	for _, test := range []struct {
		name string
		size int
		want error
	}{
		{"exactly", len(img), nil},
		{"one byte too small", len(img) - 1, quarklink.ErrSlotTooSmall},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, c := newMember(t, asIs(img))
			slot := newSlot(t, int64(test.size))
			_, err := c.FirmwareUpdate(t.Context(), quarklink.FirmwareOptions{Slot: slot, Verifier: anything})
			require.ErrorIs(t, err, test.want)
			if test.want == nil {
				assert.EqualValues(t, len(img), slot.active)
			} else {
				assert.Zero(t, slot.writes)
			}
		})
	}
}

// TestLengthAboveTheManifest: a Content-Length that says too much is refused
// before the slot is touched.
func TestLengthAboveTheManifest(t *testing.T) {
	server, c := newMember(t, asIs([]byte("image")))
	body(server, []byte("image and more"))
	slot := newSlot(t, 1<<20)
	_, err := c.FirmwareUpdate(t.Context(), quarklink.FirmwareOptions{Slot: slot, Verifier: anything})
	require.ErrorIs(t, err, quarklink.ErrUpdate)
	assert.ErrorContains(t, err, "the image has 14 bytes, and 5 were announced")
	assert.Zero(t, slot.writes)
}

// TestActivateFails: a slot that cannot be activated is told of, and is no
// reason to refuse the image for good.
func TestActivateFails(t *testing.T) {
	server, c := newMember(t, asIs([]byte("image")))
	slot := newSlot(t, 1<<20)
	slot.onActivate = func() error { return errFlash }
	options := quarklink.FirmwareOptions{Slot: slot, Verifier: anything}
	done, err := c.FirmwareUpdate(t.Context(), options)
	require.ErrorIs(t, err, quarklink.ErrUpdate)
	require.ErrorIs(t, err, errFlash)
	assert.ErrorContains(t, err, "slot: activate")
	onlyCode(t, err)
	assert.False(t, done.Installed)
	told := server.Outcomes(c.DeviceID())
	require.Len(t, told, 1)
	assert.Equal(t, "failed", told[0].Outcome)
	assert.Equal(t, quarklink.CodeUpdate, told[0].Code)
	status, err := c.Status(t.Context())
	require.NoError(t, err)
	assert.True(t, status.NeedsUpdate())

	slot.onActivate = nil
	done, err = c.FirmwareUpdate(t.Context(), options)
	require.NoError(t, err)
	assert.True(t, done.Installed)
}

// answerStatus has the instance answer Status with the device's ID and whatever
// is given, without any check.
func answerStatus(server *quarklinktest.Server, id quarklink.DeviceID, state quarklink.State, more string) {
	server.Fault(quarklinktest.CallStatus, quarklinktest.Answer(http.HandlerFunc(
		func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"deviceID": %q, "state": %q, %s}`, id, state.String(), more)
		})))
}

// TestUpdateOfARevokedDevice: it gets none, whatever the instance offers.
func TestUpdateOfARevokedDevice(t *testing.T) {
	server, c := newMember(t, quarklinktest.Batch{})
	answerStatus(server, c.DeviceID(), quarklink.StateRevoked,
		fmt.Sprintf(`"firmware": {"size": 5, "sha256": "%064x"}`, 7))
	status, err := c.Status(t.Context())
	require.NoError(t, err)
	assert.False(t, status.NeedsUpdate())
	_, err = c.FirmwareUpdate(t.Context(), quarklink.FirmwareOptions{Slot: newSlot(t, 1<<20), Verifier: anything})
	require.ErrorIs(t, err, quarklink.ErrDeviceRevoked)
	onlyCode(t, err)
	assert.Zero(t, server.Stats().Calls[quarklinktest.CallFirmware])
}

// TestAnnouncedSizes: an image without bytes, or with fewer, is refused before
// anything is fetched.
func TestAnnouncedSizes(t *testing.T) {
	for size, want := range map[int64]error{
		0: quarklink.ErrUpdate, -1: quarklink.ErrUpdate, -1 << 63: quarklink.ErrUpdate,
		1<<63 - 1: quarklink.ErrSlotTooSmall,
	} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			server, c := newMember(t, quarklinktest.Batch{})
			answerStatus(server, c.DeviceID(), quarklink.StateEnrolled,
				fmt.Sprintf(`"firmware": {"size": %d, "sha256": "%064x"}`, size, 7))
			slot := newSlot(t, 1<<20)
			_, err := c.FirmwareUpdate(t.Context(), quarklink.FirmwareOptions{Slot: slot, Verifier: anything})
			require.ErrorIs(t, err, want)
			require.ErrorIs(t, err, quarklink.ErrUpdate)
			assert.Zero(t, slot.writes)
			assert.Zero(t, server.Stats().Calls[quarklinktest.CallFirmware])
		})
	}
}
