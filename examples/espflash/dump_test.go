package main

import (
	"archive/zip"
	"compress/gzip"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/esp/flash"
	"github.com/quarklink-go/quarklink/esp/image"
	"github.com/quarklink-go/quarklink/esp/partition"
	"github.com/quarklink-go/quarklink/esp/secureboot/sbsign"
)

const (
	rsa1   = "cd83cc02a291b2bcdfd40cde657aaacfb48e246f450ca3567ea5a8cfc9c72375" // Espressif's tools signed the applications
	nvsAt  = 0xE000
	dataAt = 0x16000
	ota1At = 0x2A0000
)

// bootKey signs the bootloader: Espressif's tools signed none.
func bootKey(t testing.TB) *rsa.PrivateKey {
	t.Helper()
	b, err := os.ReadFile("../../keystore/esp32ds/testdata/rsa3072-dsk.pem")
	require.NoError(t, err)
	block, _ := pem.Decode(b)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	require.NoError(t, err)
	return key.(*rsa.PrivateKey)
}

// trusted is what is in eFuse: the digests of both keys.
func trusted(t testing.TB) string {
	t.Helper()
	d, err := sbsign.KeyDigest(bootKey(t).Public())
	require.NoError(t, err)
	return rsa1 + "," + d.String()
}

func gunzip(t testing.TB, name string) []byte {
	t.Helper()
	f, err := os.Open("../../esp/image/testdata/" + name + ".gz")
	require.NoError(t, err)
	defer f.Close()
	z, err := gzip.NewReader(f)
	require.NoError(t, err)
	b, err := io.ReadAll(z)
	require.NoError(t, err)
	return b
}

func unzip(t testing.TB, archive, name string) []byte {
	t.Helper()
	z, err := zip.OpenReader("../../esp/" + archive)
	require.NoError(t, err)
	defer z.Close()
	f, err := z.Open(name)
	require.NoError(t, err)
	defer f.Close()
	b, err := io.ReadAll(f)
	require.NoError(t, err)
	return b
}

// newDump makes 4 MiB of flash from what Espressif's tools and libraries made: QuarkLink's
// table, an encrypted NVS partition with its keys, otadata with an update that was not
// started yet, and signed applications in all slots.
func newDump(t testing.TB) flash.Memory {
	t.Helper()
	m := flash.NewMemory(4 << 20)
	boot := image.Builder{Header: image.NewHeader(image.ESP32C3)}
	boot.Add(0x3FCD5820, make([]byte, 4000))
	boot.Add(0x403CC710, []byte("a second-stage bootloader of no use"+"\x00"))
	img, err := boot.Bytes()
	require.NoError(t, err)
	img, err = sbsign.Image(rand.Reader, img, bootKey(t))
	require.NoError(t, err)
	copy(m, img)
	table, err := os.ReadFile("../../esp/partition/testdata/partition-table-esp32-c3-sb-fe.bin")
	require.NoError(t, err)
	copy(m[partition.QuarkLinkOffset:], table)
	copy(m[nvsAt:], unzip(t, "nvs/testdata/esp-idf-5.3.1.zip", "small_xts.bin"))
	copy(m[dataAt:], unzip(t, "otadata/testdata/otadata.zip", "state_ota0_VALID_ota1_NEW.bin"))
	copy(m[0x20000:], gunzip(t, "esp32c3_small_v1.0.0_padv2.rsa1.bin"))
	copy(m[0x160000:], gunzip(t, "esp32c3_small_v1.0.0_padv2.rsa1+2.bin"))
	copy(m[ota1At:], gunzip(t, "esp32c3_small_v1.1.0_padv2.rsa1.bin"))
	copy(m[0x3E0000:], unzip(t, "nvs/testdata/esp-idf-5.3.1.zip", "nvs_keys.bin"))
	return m
}

// newESP32Dump makes 1 MiB of flash of an original ESP32, whose bootloader lies at
// 0x1000, with Espressif's default place of the table.
func newESP32Dump(t testing.TB) flash.Memory {
	t.Helper()
	m := flash.NewMemory(1 << 20)
	boot := image.Builder{Header: image.NewHeader(image.ESP32)}
	boot.Add(0x3FFF0018, make([]byte, 4000))
	img, err := boot.Bytes()
	require.NoError(t, err)
	img, err = sbsign.Image(rand.Reader, img, bootKey(t))
	require.NoError(t, err)
	copy(m[0x1000:], img)
	table := partition.Table{Partitions: []partition.Partition{
		{Label: "nvs", Type: partition.Data, Subtype: partition.DataNVS, Offset: 0x9000, Size: 0x6000},
		{Label: "factory", Type: partition.App, Subtype: partition.AppFactory, Offset: 0x10000, Size: 0xF0000},
	}}
	b, err := table.MarshalBinary()
	require.NoError(t, err)
	copy(m[partition.DefaultOffset:], b)
	copy(m[0x10000:], gunzip(t, "esp32_small_v1.0.0_padv2.rsa1.bin"))
	return m
}

// encrypt encrypts what a chip with flash encryption has encrypted.
func encrypt(t testing.TB, m flash.Memory, c *flash.Cipher) flash.Memory {
	t.Helper()
	out := append(flash.Memory(nil), m...)
	for _, r := range []struct{ from, to int64 }{{0, 0xE000}, {dataAt, 0x18000}, {0x20000, 0x3E1000}} {
		require.NoError(t, c.Encrypt(out[r.from:r.to], m[r.from:r.to], r.from))
	}
	return out
}

func save(t testing.TB, m []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "flash.bin")
	require.NoError(t, os.WriteFile(name, m, 0o600))
	return name
}
