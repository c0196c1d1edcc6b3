package quarklink_test

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/esp/image"
	"github.com/quarklink-go/quarklink/esp/secureboot"
)

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
		require.NoError(t, err)
		return b
	}
	f, err := os.Open(filepath.Join("esp", "image", "testdata", filepath.Base(name)+".gz"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	require.NoError(t, err)
	defer f.Close()
	z, err := gzip.NewReader(f)
	require.NoError(t, err)
	b, err := io.ReadAll(z)
	require.NoError(t, err)
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
			require.NoError(t, err)
			verifier := secureboot.Verifier{Chip: v.chip, Schemes: schemes, Trusted: []secureboot.Digest{digest}}
			done, err := c.FirmwareUpdate(t.Context(), quarklink.FirmwareOptions{Slot: slot, Verifier: verifier})
			var e *quarklink.Error
			if v.code == 0 {
				require.NoError(t, err)
				assert.Equal(t, int64(len(img)), slot.active)
			} else {
				require.ErrorAs(t, err, &e)
				assert.Equal(t, v.code, e.Code)
				assert.Zero(t, slot.active)
			}
			assert.Equal(t, v.code == 0, done.Installed)
			if len(img) > 0 {
				assert.Len(t, server.Outcomes(c.DeviceID()), 1)
			}
		})
	}
	assert.GreaterOrEqual(t, ran, 10, "files found")
	if root := os.Getenv("QUARKLINK_VECTORS"); root != "" {
		for _, folder := range []string{"signed", "bad", "images"} {
			files, err := filepath.Glob(filepath.Join(root, folder, "*.bin"))
			require.NoError(t, err)
			for _, file := range files {
				if name := folder + "/" + filepath.Base(file); !named[name] {
					t.Logf("%s is new: no verdict in the table yet", name)
				}
			}
		}
	}
}
