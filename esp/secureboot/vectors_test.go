package secureboot_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/quarklink-go/quarklink/esp/image"
	"github.com/quarklink-go/quarklink/esp/secureboot"
	"github.com/quarklink-go/quarklink/esp/secureboot/sbecdsa"
)

// The digests of the keys that signed the test data, as espsecure
// digest_sbv2_public_key wrote them.
var digests = map[string]string{
	"rsa1":      "cd83cc02a291b2bcdfd40cde657aaacfb48e246f450ca3567ea5a8cfc9c72375",
	"rsa2":      "18c38fc2b24d7c12ee432ddb4a03d5d7b4c71c2d2244e7f597c37ea24a843326",
	"rsa3":      "7477249059a8f6cb94acc9572d90213dcf80402cc326a821b1522006660eb40d",
	"rsa_wrong": "356bfc3520eeea13ec0c4850d1de9b6d36e019180655cc83d8c164d5ffa1e775",
	"ec192":     "0eb39d296d21e25863cdec057548af586711bf7b94ae90ac5efd69450f285dc3",
	"ec256":     "69d6bcff5f185c0a1be92d5c1a0b7f69f760d3e7b6be76ece6100cce2f8f05c6",
	"ec256b":    "4b5cb50710fa900a1591398841e22d753914d59441f869280bda5ce82f837a00",
	"ec384":     "fdda7c41fbc4a7557df5bfd65bafbdad42e29499bc885b39fba00faad548371d",
}

// fuses returns the digests that an eFuse set such as "rsa1,rsa2" names.
func fuses(tb testing.TB, set string) []secureboot.Digest {
	tb.Helper()
	var trusted []secureboot.Digest
	for _, name := range strings.Split(set, ",") {
		d, err := secureboot.ParseDigest(digests[name])
		if err != nil {
			tb.Fatalf("eFuse set %q: %v", set, err)
		}
		trusted = append(trusted, d)
	}
	return trusted
}

// unpack returns the content of a gzip file.
func unpack(tb testing.TB, path ...string) []byte {
	tb.Helper()
	f, err := os.Open(filepath.Join(path...))
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		tb.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// espSigned returns a file that espsecure signed.
func espSigned(tb testing.TB, name string) []byte {
	return unpack(tb, "..", "image", "testdata", name+".gz")
}

// verdict of espsecure and of ESP-IDF's verifier.
type verdict struct {
	File    string
	Size    int64
	SHA256  string
	Accepts []string `json:"device_accepts_with_efuse"`
	Rejects []string `json:"device_rejects_with_efuse"`
}

func verdicts(tb testing.TB, dir string) map[string]verdict {
	tb.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "verdicts.json"))
	if err != nil {
		tb.Fatal(err)
	}
	var list []verdict
	if err := json.Unmarshal(b, &list); err != nil {
		tb.Fatal(err)
	}
	m := make(map[string]verdict)
	for _, v := range list {
		m[v.File] = v
	}
	return m
}

// schemes are all that there are: what a chip has is Verifier.Chip's business.
var schemes = []secureboot.Scheme{secureboot.RSA(), sbecdsa.Scheme()}

const (
	good   = "esp32c3_small_v1.0.0_padv2.rsa1.bin"
	good2  = "esp32c3_small_v1.0.0_padv2.rsa1+2.bin"
	sector = 0x20000 // where the small images' signature sector starts
)

// corrections that the makers of the bad files made after the damage.
func fixCRC(b []byte, block int) {
	raw := b[sector+block*1216:]
	binary.LittleEndian.PutUint32(raw[1196:], crc32.ChecksumIEEE(raw[:1196]))
}

func erase(b []byte) {
	for i := range b {
		b[i] = 0xFF
	}
}

// files lists every file of the test data: how it comes from one that
// espsecure signed, and the verdict when the right keys are trusted. Where
// the verdict is nil, the eFuse sets of verdicts.json decide between nil and
// ErrSignature.
//
// A derived file is the very file that was judged: its SHA-256 is compared
// with the one in verdicts.json.
var files = []struct {
	name, from string
	make       func(tb testing.TB, b []byte) []byte
	chip       image.Chip
	want, also error
	accepts    []string // eFuse sets that no device was given
}{
	{name: "signed/esp32_small_v1.0.0.sbv1.bin", chip: image.ESP32, want: secureboot.ErrNoSignature, also: secureboot.ErrSecureBootV1},
	{name: "signed/esp32_small_v1.0.0_padv2.rsa1.bin", chip: image.ESP32},
	{name: "signed/esp32c3_big_v1.0.0_padv2.rsa1.bin", chip: image.ESP32C3},
	{name: "signed/esp32c3_small_v1.0.0_padv2.rsa1+2.bin", chip: image.ESP32C3},
	{name: "signed/esp32c3_small_v1.0.0_padv2.rsa1.bin", chip: image.ESP32C3},
	{name: "signed/esp32c3_small_v1.0.0_padv2.rsa2.bin", chip: image.ESP32C3},
	{name: "signed/esp32c3_small_v1.0.0_unpadded.rsa1.bin", chip: image.ESP32C3},
	{name: "signed/esp32c3_small_v1.1.0_padv2.rsa1.bin", chip: image.ESP32C3},
	{name: "signed/esp32c6_small_v1.0.0_padv2.ec256.bin", chip: image.ESP32C6, accepts: []string{"ec256"}},
	{name: "signed/esp32s3_small_v1.0.0_padv2.rsa1_append2_append3.bin", chip: image.ESP32S3, accepts: []string{"rsa3"}},

	{name: "images/esp32_small_v1.0.0_padv2.bin", from: "esp32_small_v1.0.0_padv2.rsa1.bin", make: cut(sector), chip: image.ESP32, want: secureboot.ErrNoSignature},
	{name: "images/esp32c3_big_v1.0.0_padv2.bin", from: "esp32c3_big_v1.0.0_padv2.rsa1.bin", make: cut(1 << 20), chip: image.ESP32C3, want: secureboot.ErrNoSignature},
	{name: "images/esp32c3_small_v1.0.0.bin", from: "esp32c3_small_v1.0.0_unpadded.rsa1.bin", make: cut(69760), chip: image.ESP32C3, want: secureboot.ErrNoSignature},
	{name: "images/esp32c3_small_v1.0.0_padv2.bin", from: good, make: cut(sector), chip: image.ESP32C3, want: secureboot.ErrNoSignature},
	{name: "images/esp32c3_small_v1.1.0_padv2.bin", from: "esp32c3_small_v1.1.0_padv2.rsa1.bin", make: cut(sector), chip: image.ESP32C3, want: secureboot.ErrNoSignature},
	{name: "images/esp32c6_small_v1.0.0_padv2.bin", from: "esp32c6_small_v1.0.0_padv2.ec256.bin", make: cut(sector), chip: image.ESP32C6, want: secureboot.ErrNoSignature},
	{name: "images/esp32s3_small_v1.0.0_padv2.bin", from: "esp32s3_small_v1.0.0_padv2.rsa1_append2_append3.bin", make: cut(sector), chip: image.ESP32S3, want: secureboot.ErrNoSignature},

	{name: "bad/ec256_rs_zero.bin", from: "esp32c6_small_v1.0.0_padv2.ec256.bin", make: func(_ testing.TB, b []byte) []byte {
		clear(b[sector+101 : sector+165])
		fixCRC(b, 0)
		return b
	}, chip: image.ESP32C6, want: secureboot.ErrSignature},
	{name: "bad/ec256_sig_flip_crcfixed.bin", from: "esp32c6_small_v1.0.0_padv2.ec256.bin", make: func(_ testing.TB, b []byte) []byte {
		b[sector+101] ^= 1
		fixCRC(b, 0)
		return b
	}, chip: image.ESP32C6, want: secureboot.ErrSignature},
	{name: "bad/empty.bin", from: good, make: cut(0), chip: image.ESP32C3, want: secureboot.ErrImage, also: image.ErrTruncated},
	{name: "bad/flip_ff_padding_before_sector.bin", from: "esp32c3_small_v1.0.0_unpadded.rsa1.bin", make: flip(0x11FF6), chip: image.ESP32C3, want: secureboot.ErrSignature},
	{name: "bad/flip_image_text.bin", from: good, make: flip(0x10100), chip: image.ESP32C3, want: secureboot.ErrImage, also: image.ErrChecksum},
	{name: "bad/flip_image_text_digestfixed.bin", from: good, make: func(_ testing.TB, b []byte) []byte {
		b[0x10100] ^= 1
		b[sector-33] ^= 1
		fixDigests(b)
		return b
	}, chip: image.ESP32C3, want: secureboot.ErrSignature},
	{name: "bad/flip_xor_checksum.bin", from: good, make: flip(sector - 33), chip: image.ESP32C3, want: secureboot.ErrImage, also: image.ErrChecksum},
	{name: "bad/hdr_magic.bin", from: good, make: flip(0), chip: image.ESP32C3, want: secureboot.ErrImage, also: image.ErrMagic},
	{name: "bad/hdr_seg17.bin", from: good, make: func(_ testing.TB, b []byte) []byte { b[1] = 17; return b }, chip: image.ESP32C3, want: secureboot.ErrImage, also: image.ErrSegments},
	{name: "bad/pkcs1v15.bin", from: good, make: otherSector("pkcs1v15"), chip: image.ESP32C3, want: secureboot.ErrSignature},
	{name: "bad/pss_salt0.bin", from: good, make: otherSector("pss_salt0"), chip: image.ESP32C3, want: secureboot.ErrSignature}, // stricter than the device
	{name: "bad/pubkey_rsa2_sig_rsa1.bin", from: "esp32c3_small_v1.0.0_padv2.rsa2.bin", make: func(tb testing.TB, b []byte) []byte {
		copy(b[sector+812:], espSigned(tb, good)[sector+812:sector+1196])
		fixCRC(b, 0)
		return b
	}, chip: image.ESP32C3, want: secureboot.ErrSignature},
	{name: "bad/rinv_flip_crcfixed.bin", from: good, make: func(_ testing.TB, b []byte) []byte {
		b[sector+0x1AF] ^= 1
		fixCRC(b, 0)
		return b
	}, chip: image.ESP32C3, want: secureboot.ErrSignature},
	{name: "bad/seg_len_huge.bin", from: good, make: func(_ testing.TB, b []byte) []byte {
		binary.LittleEndian.PutUint32(b[28:], 0xFFFFFFF0)
		return b
	}, chip: image.ESP32C3, want: secureboot.ErrImage, also: image.ErrSegments},
	{name: "bad/sig_flip_crcfixed.bin", from: good, make: func(_ testing.TB, b []byte) []byte {
		b[sector+0x331] ^= 1
		fixCRC(b, 0)
		return b
	}, chip: image.ESP32C3, want: secureboot.ErrSignature},
	{name: "bad/sig_flip_nocrcfix.bin", from: good, make: flip(sector + 0x331), chip: image.ESP32C3, want: secureboot.ErrSignature},
	{name: "bad/signed_ok_wrong_chip_s3.bin", from: good, make: func(tb testing.TB, b []byte) []byte {
		b[12] = byte(image.ESP32S3)
		fixDigests(b)
		return otherSector("signed_ok_wrong_chip_s3")(tb, b)
	}, chip: image.ESP32C3, want: secureboot.ErrImage, also: image.ErrChip},
	{name: "bad/three_block0_erased.bin", from: good, make: otherSector("three_block0_erased"), chip: image.ESP32C3, accepts: []string{"rsa3"}},
	{name: "bad/trailing_partition.bin", from: good, make: func(_ testing.TB, b []byte) []byte {
		partition := make([]byte, 0x140000)
		erase(partition)
		copy(partition, b)
		return partition
	}, chip: image.ESP32C3},
	{name: "bad/trunc_header.bin", from: good, make: cut(20), chip: image.ESP32C3, want: secureboot.ErrImage, also: image.ErrTruncated},
	{name: "bad/trunc_mid_block.bin", from: good, make: cut(sector + 600), chip: image.ESP32C3, want: secureboot.ErrImage, also: image.ErrTruncated},
	{name: "bad/trunc_no_sector.bin", from: good, make: cut(sector), chip: image.ESP32C3, want: secureboot.ErrNoSignature},
	{name: "bad/two_block0_badsig.bin", from: good2, make: func(_ testing.TB, b []byte) []byte {
		b[sector+0x334] ^= 1
		fixCRC(b, 0)
		return b
	}, chip: image.ESP32C3},
	{name: "bad/unsigned_ff_sector.bin", from: good, make: func(_ testing.TB, b []byte) []byte { erase(b[sector:]); return b }, chip: image.ESP32C3, want: secureboot.ErrNoSignature},
	{name: "bad/wrong_key.bin", from: good, make: otherSector("wrong_key"), chip: image.ESP32C3, want: secureboot.ErrSignature},
}

func cut(n int) func(testing.TB, []byte) []byte {
	return func(_ testing.TB, b []byte) []byte { return b[:n] }
}

func flip(at int) func(testing.TB, []byte) []byte {
	return func(_ testing.TB, b []byte) []byte { b[at] ^= 1; return b }
}

// fixDigests recomputes the appended SHA-256, the digest in block 0 and its CRC.
func fixDigests(b []byte) {
	sum := sha256.Sum256(b[:sector-32])
	copy(b[sector-32:], sum[:])
	sum = sha256.Sum256(b[:sector])
	copy(b[sector+4:], sum[:])
	fixCRC(b, 0)
}

// otherSector replaces the signature sector: whoever made it had the key.
func otherSector(name string) func(testing.TB, []byte) []byte {
	return func(tb testing.TB, b []byte) []byte {
		copy(b[sector:], unpack(tb, "testdata", name+".sector.gz"))
		return b
	}
}

// content makes the file and proves that it is the one that was judged.
func content(tb testing.TB, i int, judged verdict) []byte {
	tb.Helper()
	f := files[i]
	var b []byte
	if f.make == nil {
		b = espSigned(tb, filepath.Base(f.name))
	} else {
		b = f.make(tb, espSigned(tb, f.from))
	}
	if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != judged.SHA256 {
		tb.Fatalf("%s: not the file that was judged", f.name)
	}
	return b
}

// bad returns the file of that name in the table.
func bad(tb testing.TB, name string) []byte {
	tb.Helper()
	for i, f := range files {
		if f.name == name {
			return content(tb, i, verdicts(tb, "testdata")[name])
		}
	}
	tb.Fatalf("%s is not in the table", name)
	return nil
}

func verify(v secureboot.Verifier, b []byte) error {
	return v.Verify(context.Background(), bytes.NewReader(b), int64(len(b)))
}

func TestVerdicts(t *testing.T) {
	judged := verdicts(t, "testdata")
	for i, f := range files {
		t.Run(f.name, func(t *testing.T) {
			v, ok := judged[f.name]
			if !ok {
				t.Fatal("not in verdicts.json")
			}
			delete(judged, f.name)
			b := content(t, i, v)
			if dir := os.Getenv("QUARKLINK_VECTORS"); dir != "" {
				original, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(f.name)))
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(original, b) {
					t.Error("differs from the file in QUARKLINK_VECTORS")
				}
			}

			accepts := slices.Concat(v.Accepts, f.accepts)
			sets := slices.Concat(accepts, v.Rejects, []string{"rsa1", "rsa3", "rsa1,rsa2,rsa3", "ec256", "ec256b"})
			for _, set := range sets {
				want := f.want
				if want == nil && !slices.Contains(accepts, set) {
					want = secureboot.ErrSignature
				}
				err := verify(secureboot.Verifier{Schemes: schemes, Chip: f.chip, Trusted: fuses(t, set)}, b)
				if (err == nil) != (want == nil) || !errors.Is(err, want) || f.also != nil && !errors.Is(err, f.also) {
					t.Errorf("eFuse %s: %v, want %v %v", set, err, want, f.also)
				}
				checkCode(t, err)
			}
		})
	}
	for name := range judged {
		t.Errorf("%s is in verdicts.json, but not in the table", name)
	}
}

// checkCode holds err to the promise that its verdict is found by shape.
func checkCode(t *testing.T, err error) {
	t.Helper()
	want := 0
	for code, sentinel := range map[int]error{20: secureboot.ErrSignature, 21: secureboot.ErrNoSignature, 22: secureboot.ErrImage} {
		if errors.Is(err, sentinel) {
			want += code
		}
	}
	var coded interface{ FirmwareCode() int }
	got := 0
	if errors.As(err, &coded) {
		got = coded.FirmwareCode()
	}
	if got != want {
		t.Errorf("%v: FirmwareCode %d, want %d", err, got, want)
	}
}

// TestVectorsFolder holds every file of the whole folder to the verdict of
// its own verdicts.json, those that the table above does not know included.
func TestVectorsFolder(t *testing.T) {
	dir := os.Getenv("QUARKLINK_VECTORS")
	if dir == "" {
		t.Skip("QUARKLINK_VECTORS is not set; TestVerdicts judges the same files")
	}
	stricter := map[string]bool{"bad/pss_salt0.bin": true} // than the device
	judged := verdicts(t, dir)
	for _, sub := range []string{"images", "signed", "bad"} {
		names, err := filepath.Glob(filepath.Join(dir, sub, "*.bin"))
		if err != nil || len(names) == 0 {
			t.Errorf("%s: %d files, %v", sub, len(names), err)
		}
		for _, name := range names {
			if _, ok := judged[sub+"/"+filepath.Base(name)]; !ok {
				t.Errorf("%s has no verdict", name)
			}
		}
	}
	for _, v := range judged {
		folder, base := filepath.Split(filepath.FromSlash(v.File))
		name, _, _ := strings.Cut(base, "_")
		if folder = filepath.Base(folder); folder == "bad" {
			if name = "esp32c3"; strings.HasPrefix(base, "ec256_") {
				name = "esp32c6"
			}
		}
		chip, err := image.ParseChip(name)
		if err != nil {
			t.Errorf("%s: %v", v.File, err)
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(v.File)))
		if err != nil {
			t.Fatal(err)
		}
		accepts := v.Accepts
		if part := strings.Split(base, "."); folder == "signed" && len(v.Accepts)+len(v.Rejects) == 0 {
			accepts = part[len(part)-2 : len(part)-1] // no device ran: the key that the name says
		}
		for _, set := range slices.Concat(accepts, v.Rejects, []string{"rsa_wrong,ec256b"}) {
			want := slices.Contains(accepts, set) && !stricter[v.File]
			if v.File == "bad/wrong_key.bin" && set == "rsa_wrong,ec256b" {
				want = true
			}
			if err := verify(secureboot.Verifier{Schemes: schemes, Chip: chip, Trusted: fuses(t, set)}, b); (err == nil) != want {
				t.Errorf("%s, eFuse %s: %v, want accepted: %v", v.File, set, err, want)
			}
		}
	}
}
