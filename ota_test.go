package quarklink_test

import (
	"bytes"
	"compress/gzip"
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
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

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
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, d)
	}
	return digests
}

// signed returns a minimal image, signed with each key.
func signed(t testing.TB, chip image.Chip, keys ...crypto.Signer) []byte {
	t.Helper()
	img, err := image.Minimal(chip, image.App{Project: "blinky", Version: "1.8.1"})
	if err != nil {
		t.Fatal(err)
	}
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
	must(t, server.Publish("batch", quarklinktest.Firmware{Image: bytes.NewReader(plain)}))
	var steps []int64
	options.Progress = func(done, total int64) {
		if total != 2*sector {
			t.Errorf("total %d", total)
		}
		steps = append(steps, done)
	}
	done, err := c.FirmwareUpdate(ctx, options)
	if err != nil {
		t.Fatal(err)
	}
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
	must(t, server.AddDevices("batch", again.DeviceID()))
	if s, err := again.Status(ctx); err != nil || s.Firmware != nil {
		t.Errorf("after the update: %+v, %v", s, err)
	}
	cfg := quarklink.Config{KeyStore: newKeys(t, new(store.Mem)), Firmware: quarklink.FirmwareInfo{Version: "1\n"}}
	if _, err := quarklink.New(ctx, cfg); !errors.Is(err, quarklink.ErrInvalidParameter) {
		t.Errorf("a version with a newline: %v", err)
	}
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
	if _, err := c.FirmwareUpdate(t.Context(), quarklink.FirmwareOptions{Verifier: anything}); !errors.Is(err, quarklink.ErrInvalidParameter) {
		t.Errorf("without a slot: %v", err)
	}
	if _, err := c.FirmwareUpdate(t.Context(), quarklink.FirmwareOptions{Slot: slot, Verifier: secureboot.Verifier{}}); !errors.Is(err, secureboot.ErrNoTrustedKey) {
		t.Errorf("with a verifier that trusts nobody: %v", err)
	}
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
		once.Do(func() { must(t, server.Publish("batch", *asIs(second).Firmware)) })
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

// vectors are files that Espressif's tools made, the keys that are trusted for
// them, and the code that FirmwareUpdate gives: 0 is installed.
var vectors = []struct {
	file, trust string
	chip        image.Chip
	code        quarklink.Code
}{
	{"signed/esp32_small_v1.0.0.sbv1.bin", "rsa1", image.ESP32, 21},
	{"signed/esp32_small_v1.0.0_padv2.rsa1.bin", "rsa1", image.ESP32, 0},
	{"signed/esp32c3_big_v1.0.0_padv2.rsa1.bin", "rsa1", image.ESP32C3, 0},
	{"signed/esp32c3_small_v1.0.0_padv2.rsa1+2.bin", "rsa1", image.ESP32C3, 0},
	{"signed/esp32c3_small_v1.0.0_padv2.rsa1+2.bin", "rsa2", image.ESP32C3, 0},
	{"signed/esp32c3_small_v1.0.0_padv2.rsa1+2.bin", "rsa3", image.ESP32C3, 20},
	{"signed/esp32c3_small_v1.0.0_padv2.rsa1.bin", "rsa1", image.ESP32C3, 0},
	{"signed/esp32c3_small_v1.0.0_padv2.rsa1.bin", "rsa2", image.ESP32C3, 20},
	{"signed/esp32c3_small_v1.0.0_padv2.rsa1.bin", "rsa1", image.ESP32S3, 22},
	{"signed/esp32c3_small_v1.0.0_padv2.rsa2.bin", "rsa2", image.ESP32C3, 0},
	{"signed/esp32c3_small_v1.0.0_unpadded.rsa1.bin", "rsa1", image.ESP32C3, 0},
	{"signed/esp32c3_small_v1.1.0_padv2.rsa1.bin", "rsa1", image.ESP32C3, 0},
	{"signed/esp32c6_small_v1.0.0_padv2.ec256.bin", "ec256", image.ESP32C6, 0},
	{"signed/esp32c6_small_v1.0.0_padv2.ec256.bin", "ec256b", image.ESP32C6, 20},
	{"signed/esp32s3_small_v1.0.0_padv2.rsa1_append2_append3.bin", "rsa3", image.ESP32S3, 0},
	{"images/esp32_small_v1.0.0_padv2.bin", "rsa1", image.ESP32, 21},
	{"images/esp32c3_big_v1.0.0_padv2.bin", "rsa1", image.ESP32C3, 21},
	{"images/esp32c3_small_v1.0.0.bin", "rsa1", image.ESP32C3, 21},
	{"images/esp32c3_small_v1.0.0_padv2.bin", "rsa1", image.ESP32C3, 21},
	{"images/esp32c3_small_v1.1.0_padv2.bin", "rsa1", image.ESP32C3, 21},
	{"images/esp32c6_small_v1.0.0_padv2.bin", "ec256", image.ESP32C6, 21},
	{"images/esp32s3_small_v1.0.0_padv2.bin", "rsa1", image.ESP32S3, 21},
	{"bad/ec256_rs_zero.bin", "ec256", image.ESP32C6, 20},
	{"bad/ec256_sig_flip_crcfixed.bin", "ec256", image.ESP32C6, 20},
	{"bad/empty.bin", "rsa1", image.ESP32C3, 22},
	{"bad/flip_ff_padding_before_sector.bin", "rsa1", image.ESP32C3, 20},
	{"bad/flip_image_text.bin", "rsa1", image.ESP32C3, 22},
	{"bad/flip_image_text_digestfixed.bin", "rsa1", image.ESP32C3, 20},
	{"bad/flip_xor_checksum.bin", "rsa1", image.ESP32C3, 22},
	{"bad/hdr_magic.bin", "rsa1", image.ESP32C3, 22},
	{"bad/hdr_seg17.bin", "rsa1", image.ESP32C3, 22},
	{"bad/pkcs1v15.bin", "rsa1", image.ESP32C3, 20},
	{"bad/pss_salt0.bin", "rsa1", image.ESP32C3, 20},
	{"bad/pubkey_rsa2_sig_rsa1.bin", "rsa1", image.ESP32C3, 20},
	{"bad/pubkey_rsa2_sig_rsa1.bin", "rsa2", image.ESP32C3, 20},
	{"bad/rinv_flip_crcfixed.bin", "rsa1", image.ESP32C3, 20},
	{"bad/seg_len_huge.bin", "rsa1", image.ESP32C3, 22},
	{"bad/sig_flip_crcfixed.bin", "rsa1", image.ESP32C3, 20},
	{"bad/sig_flip_nocrcfix.bin", "rsa1", image.ESP32C3, 20},
	{"bad/signed_ok_wrong_chip_s3.bin", "rsa1", image.ESP32C3, 22},
	{"bad/three_block0_erased.bin", "rsa2", image.ESP32C3, 0},
	{"bad/three_block0_erased.bin", "rsa1", image.ESP32C3, 20},
	{"bad/trailing_partition.bin", "rsa1", image.ESP32C3, 0},
	{"bad/trunc_header.bin", "rsa1", image.ESP32C3, 22},
	{"bad/trunc_mid_block.bin", "rsa1", image.ESP32C3, 22},
	{"bad/trunc_no_sector.bin", "rsa1", image.ESP32C3, 21},
	{"bad/two_block0_badsig.bin", "rsa2", image.ESP32C3, 0},
	{"bad/two_block0_badsig.bin", "rsa1", image.ESP32C3, 20},
	{"bad/unsigned_ff_sector.bin", "rsa1", image.ESP32C3, 21},
	{"bad/wrong_key.bin", "rsa1", image.ESP32C3, 20},
}

var vectorDigests = map[string]string{
	"rsa1":   "cd83cc02a291b2bcdfd40cde657aaacfb48e246f450ca3567ea5a8cfc9c72375",
	"rsa2":   "18c38fc2b24d7c12ee432ddb4a03d5d7b4c71c2d2244e7f597c37ea24a843326",
	"rsa3":   "7477249059a8f6cb94acc9572d90213dcf80402cc326a821b1522006660eb40d",
	"ec256":  "69d6bcff5f185c0a1be92d5c1a0b7f69f760d3e7b6be76ece6100cce2f8f05c6",
	"ec256b": "4b5cb50710fa900a1591398841e22d753914d59441f869280bda5ce82f837a00",
}

// vector returns a file of the test data, from the copies in esp/image where
// there is one; nil if it is nowhere here.
func vector(t *testing.T, name string) []byte {
	t.Helper()
	if root := os.Getenv("QUARKLINK_VECTORS"); root != "" {
		b, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	f, err := os.Open(filepath.Join("esp", "image", "testdata", filepath.Base(name)+".gz"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestFirmwareVectors has a device download every file that Espressif's tools
// made. What each is refused for is tested to the bit in package secureboot,
// which derives the bad files itself; here it is the whole way, and the files
// that this checkout does not have are only taken from QUARKLINK_VECTORS.
func TestFirmwareVectors(t *testing.T) {
	named := map[string]bool{}
	ran := 0
	for _, v := range vectors {
		named[v.file] = true
		img := vector(t, v.file)
		if img == nil {
			continue
		}
		ran++
		t.Run(fmt.Sprintf("%s/%s/%v", v.file, v.trust, v.chip), func(t *testing.T) {
			batch := asIs(img)
			batch.Firmware.Attributes = map[string]string{} // the image alone decides
			server, c := newMember(t, batch)
			slot := newSlot(t, 2<<20)
			digest, err := secureboot.ParseDigest(vectorDigests[v.trust])
			if err != nil {
				t.Fatal(err)
			}
			verifier := secureboot.Verifier{Chip: v.chip, Schemes: schemes, Trusted: []secureboot.Digest{digest}}
			done, err := c.FirmwareUpdate(t.Context(), quarklink.FirmwareOptions{Slot: slot, Verifier: verifier})
			var e *quarklink.Error
			if got := errors.As(err, &e); got != (v.code != 0) || got && e.Code != v.code {
				t.Errorf("error %v, want code %d", err, v.code)
			}
			if want := v.code == 0; done.Installed != want || want && slot.active != int64(len(img)) || !want && slot.active != 0 {
				t.Errorf("installed %v, active %d", done.Installed, slot.active)
			}
			if n := len(server.Outcomes(c.DeviceID())); n != 1 && len(img) > 0 {
				t.Errorf("the instance was told %d outcomes", n)
			}
		})
	}
	if ran < 10 {
		t.Errorf("only %d files were found", ran)
	}
	if root := os.Getenv("QUARKLINK_VECTORS"); root != "" {
		for _, folder := range []string{"signed", "bad", "images"} {
			files, err := filepath.Glob(filepath.Join(root, folder, "*.bin"))
			if err != nil {
				t.Fatal(err)
			}
			for _, file := range files {
				if name := folder + "/" + filepath.Base(file); !named[name] {
					t.Logf("%s is new: no verdict in the table yet", name)
				}
			}
		}
	}
}

// pattern is an endless ReaderAt.
type pattern byte

func (p pattern) ReadAt(b []byte, off int64) (int, error) {
	for i := range b {
		b[i] = byte(p) ^ byte(off+int64(i)) ^ byte((off+int64(i))>>11)
	}
	return len(b), nil
}

// bigImage writes a signed image of 16 MiB to a file, and returns its length.
func bigImage(t testing.TB, key crypto.Signer) (*os.File, int64) {
	t.Helper()
	b := image.Builder{Header: image.NewHeader(image.ESP32C3)}
	app, err := image.App{Project: "big", Version: "2"}.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	b.Add(0x3C000020, app)
	b.AddReader(0x3FC80000, pattern(1), 8<<20)
	b.AddReader(0x42100020, pattern(2), 8<<20)
	file, err := os.CreateTemp(t.TempDir(), "image")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	if _, err := b.WriteTo(file); err != nil {
		t.Fatal(err)
	}
	size, err := b.Size()
	if err != nil {
		t.Fatal(err)
	}
	trailer, at, err := sbsign.ImageAt(rand.Reader, file, size, key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.WriteAt(trailer, at); err != nil {
		t.Fatal(err)
	}
	return file, at + int64(len(trailer))
}

// BenchmarkFirmwareUpdate updates with an image of 16 MiB over loopback TCP and
// reports how far the live heap (after a collection at each MiB) rises above
// where it began: it must stay within 4 MiB.
func BenchmarkFirmwareUpdate(b *testing.B) {
	key := signingKeys()[0]
	file, size := bigImage(b, key)
	server := newServer(b, quarklinktest.Options{})
	records := new(store.Mem)
	c := newClient(b, records, at(server))
	member(b, server, c, quarklinktest.Batch{Firmware: &quarklinktest.Firmware{Image: file, Size: size, AsIs: true}})
	verifier := secureboot.Verifier{Chip: image.ESP32C3, Schemes: schemes, Trusted: trusted(b, key)}
	slot := newSlot(b, 32<<20)
	live := func() float64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc)
	}
	peak := 0.0
	b.SetBytes(size)
	for b.Loop() {
		start, next := live(), int64(0)
		sample := func() { peak = max(peak, live()-start) }
		_, err := c.FirmwareUpdate(b.Context(), quarklink.FirmwareOptions{
			Slot: slot,
			Verifier: verifierFunc(func(ctx context.Context, img io.ReaderAt, size int64) error {
				sample()
				defer sample()
				return verifier.Verify(ctx, img, size)
			}),
			Progress: func(done, _ int64) {
				if done >= next {
					sample()
					next += 1 << 20
				}
			},
		})
		if err != nil {
			b.Fatal(err)
		}
		if err := records.Delete(b.Context(), "update"); err != nil { // or it would not be installed again
			b.Fatal(err)
		}
	}
	b.ReportMetric(peak/(4<<20), "heap/limit")
	if peak > 4<<20 {
		b.Errorf("the live heap rose by %.1f MiB", peak/(1<<20))
	}
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
		if _, err := c.FirmwareUpdate(t.Context(), quarklink.FirmwareOptions{Slot: newSlot(t, 1<<20), Verifier: slow}); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if _, err := c.Status(t.Context()); err != nil || time.Since(start) > time.Second || dials != 3 {
			t.Errorf("status: %v after %v, %d dials", err, time.Since(start), dials)
		}
	})
}
