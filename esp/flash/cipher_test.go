package flash_test

import (
	"archive/zip"
	"bytes"
	"crypto/aes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/xts"

	"github.com/quarklink-go/quarklink/esp/flash"
	"github.com/quarklink-go/quarklink/esp/flash/flashtest"
)

// encryption is what espsecure encrypted.
type encryption struct {
	Name    string
	Scheme  string
	Address int64
	Config  *uint8 `json:"flash_crypt_conf"`

	key, plain, encrypted []byte
}

func (e encryption) cipher(t testing.TB) *flash.Cipher {
	t.Helper()
	if e.Scheme == "esp32" {
		c, err := flash.NewESP32(e.key, *e.Config)
		require.NoError(t, err)
		return c
	}
	c, err := flash.NewXTS(e.key)
	require.NoError(t, err)
	return c
}

func encryptions(t testing.TB) (list []encryption) {
	t.Helper()
	z, err := zip.OpenReader("testdata/flashenc.zip")
	require.NoError(t, err)
	defer z.Close()
	read := func(name string) []byte {
		var f io.ReadCloser
		if dir := os.Getenv("QUARKLINK_VECTORS"); dir != "" {
			f, err = os.Open(filepath.Join(dir, "flashenc", name))
		} else {
			f, err = z.Open(name)
		}
		require.NoError(t, err)
		defer f.Close()
		b, err := io.ReadAll(f)
		require.NoError(t, err)
		return b
	}
	require.NoError(t, json.Unmarshal(read("cases.json"), &list))
	require.NotEmpty(t, list)
	for i, e := range list {
		list[i].key, list[i].plain, list[i].encrypted = read(e.Name+".key"), read(e.Name+".plain.bin"), read(e.Name+".enc.bin")
	}
	return list
}

func TestEncryptionAsEspsecure(t *testing.T) {
	for _, e := range encryptions(t) {
		t.Run(e.Name, func(t *testing.T) {
			c := e.cipher(t)
			got := make([]byte, len(e.plain))
			require.NoError(t, c.Encrypt(got, e.plain, e.Address))
			assert.Equal(t, e.encrypted, got)
			require.NoError(t, c.Decrypt(got, got, e.Address))
			assert.Equal(t, e.plain, got)

			// In any pieces it is the same.
			for _, size := range []int{16, 48, 112, 240} {
				got := make([]byte, len(e.plain))
				for at := 0; at < len(got); at += size {
					end := min(at+size, len(got))
					require.NoError(t, c.Encrypt(got[at:end], e.plain[at:end], e.Address+int64(at)))
				}
				require.Equal(t, e.encrypted, got, "pieces of %d bytes", size)
			}
			other := bytes.Clone(e.key)
			other[0] ^= 1
			e.key = other
			require.NoError(t, e.cipher(t).Decrypt(got, e.encrypted, e.Address))
			assert.NotEqual(t, e.plain, got, "another key")
		})
	}
}

func TestEncryptionRefuses(t *testing.T) {
	for _, n := range []int{0, 16, 24, 31, 33, 63, 65} {
		_, err := flash.NewXTS(make([]byte, n))
		assert.ErrorIs(t, err, flash.ErrKey, "XTS, %d bytes", n)
	}
	for _, n := range []int{0, 16, 24, 31, 33, 64} {
		_, err := flash.NewESP32(make([]byte, n), 15)
		assert.ErrorIs(t, err, flash.ErrKey, "ESP32, %d bytes", n)
	}
	_, err := flash.NewESP32(make([]byte, 32), 16)
	require.ErrorIs(t, err, flash.ErrKey)

	c, err := flash.NewXTS(make([]byte, 32))
	require.NoError(t, err)
	for _, bad := range []struct {
		n       int
		address int64
	}{{15, 0}, {16, 8}, {16, -16}, {32, 1<<32 - 16}, {16, 1 << 32}} {
		b := make([]byte, bad.n)
		assert.ErrorIs(t, c.Encrypt(b, b, bad.address), flash.ErrBounds, "%+v", bad)
	}
	assert.ErrorIs(t, c.Encrypt(make([]byte, 16), make([]byte, 32), 0), flash.ErrBounds, "a short destination")
	b := make([]byte, 16)
	assert.NoError(t, c.Encrypt(b, b, 1<<32-16), "the last block")
}

func TestCipherPrintsNoKey(t *testing.T) {
	c, err := flash.NewXTS(bytes.Repeat([]byte{0xA5}, 32))
	require.NoError(t, err)
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		assert.Equal(t, "[redacted]", fmt.Sprintf(format, c))
	}
}

// The dump of an encrypted flash: what is in the ranges is decrypted wherever a read
// begins and ends, what is outside is as it is.
func TestEncryptedView(t *testing.T) {
	for _, e := range encryptions(t) {
		t.Run(e.Name, func(t *testing.T) {
			c := e.cipher(t)
			content := flash.NewMemory(4 * flash.SectorSize)
			for i := range content {
				content[i] = byte(i * i >> 5)
			}
			dump := append(flash.Memory(nil), content...)
			require.NoError(t, c.Encrypt(dump[4096:3*4096], content[4096:3*4096], 4096))
			v, err := flash.Encrypted(dump, c, flash.Range{Offset: 4096, Size: 2 * 4096})
			require.NoError(t, err)
			for _, r := range []struct{ off, n int }{
				{0, 4 * 4096}, {4096, 4096}, {4090, 12}, {4097, 1}, {4096 + 7, 9}, {4096 + 7, 4096 * 2}, {8000, 200}, {12280, 20},
			} {
				got := make([]byte, r.n)
				require.NoError(t, flash.Read(v, got, int64(r.off)))
				require.Equal(t, []byte(content[r.off:][:r.n]), got, "%+v", r)
			}
			_, err = v.ReadAt(make([]byte, 32), 4*4096-16)
			require.ErrorIs(t, err, io.EOF)
			_, err = v.ReadAt(make([]byte, 1), -1)
			require.ErrorIs(t, err, flash.ErrBounds)
			_, err = v.ReadAt(make([]byte, 1), 4*4096+1)
			require.ErrorIs(t, err, flash.ErrBounds)
		})
	}
}

// Writing through the view is what a chip does: erase, encrypt, read back.
func TestEncryptedWrites(t *testing.T) {
	for _, e := range encryptions(t) {
		t.Run(e.Name, func(t *testing.T) {
			c := e.cipher(t)
			f := flashtest.New(make([]byte, 4*flash.SectorSize))
			v, err := flash.Encrypted(f, c, flash.Range{Offset: 4096, Size: 2 * 4096})
			require.NoError(t, err)
			region, err := flash.Region(v, 4096, 2*4096)
			require.NoError(t, err)
			data := bytes.Repeat([]byte("sixteen bytes or"), 100)
			require.NoError(t, flash.Erase(region, 0, 4096), "erased flash does not decrypt to ones")
			require.NoError(t, flash.Write(region, 32, data))
			got := make([]byte, len(data))
			require.NoError(t, flash.Read(region, got, 32))
			assert.Equal(t, data, got)
			require.NoError(t, c.Decrypt(got, f.Content()[4096+32:][:len(data)], 4096+32))
			assert.Equal(t, data, got, "in flash it is encrypted")

			require.ErrorIs(t, flash.Write(region, 32, data[1:17]), flash.ErrProgram, "once only")
			require.ErrorIs(t, v.Program(8192, data[:15]), flash.ErrBounds)
			require.ErrorIs(t, v.Program(8192+8, data[:16]), flash.ErrBounds)
			require.ErrorIs(t, v.Program(-16, data[:16]), flash.ErrBounds)

			require.NoError(t, flash.Erase(v, 0, 4096))
			require.NoError(t, flash.Write(v, 1, []byte("plain")))
			assert.Equal(t, "plain", string(f.Content()[1:6]))
		})
	}
}

func TestEncryptedRanges(t *testing.T) {
	c, err := flash.NewXTS(make([]byte, 32))
	require.NoError(t, err)
	f := flash.NewMemory(testSize)
	for name, ranges := range map[string][]flash.Range{
		"overlap": {{0, 8192}, {4096, 4096}}, "outside": {{0, testSize + 4096}}, "negative": {{-4096, 4096}},
		"no sector": {{1, 4096}}, "half a sector": {{0, 100}},
	} {
		_, err := flash.Encrypted(f, c, ranges...)
		assert.ErrorIs(t, err, flash.ErrBounds, name)
	}
	all, err := flash.Encrypted(f, c)
	require.NoError(t, err)
	require.NoError(t, all.Program(testSize-256, make([]byte, 256)))
	assert.NotEqual(t, make([]byte, 256), []byte(f[testSize-256:]))
}

// FuzzEncryption: whatever the pieces, what is encrypted decrypts, and reads through a
// view are those of the whole.
func FuzzEncryption(f *testing.F) {
	f.Add(uint32(0x10000), uint16(100), uint16(50), []byte("data"), true)
	f.Add(uint32(0xFFFFF000), uint16(0), uint16(4096), []byte{}, false)
	xtsCipher, err := flash.NewXTS([]byte("thirty-two bytes for AES-XTS-128"))
	require.NoError(f, err)
	esp32, err := flash.NewESP32([]byte("thirty-two bytes for the ESP32's"), 15)
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, address uint32, from, n uint16, data []byte, esp bool) {
		c := xtsCipher
		if esp {
			c = esp32
		}
		plain := make([]byte, flash.SectorSize)
		copy(plain, data)
		sector := make([]byte, flash.SectorSize)
		at := int64(address &^ (flash.SectorSize - 1))
		require.NoError(t, c.Encrypt(sector, plain, at))
		part := int(from) % flash.SectorSize &^ (flash.CryptBlock - 1)
		end := part + int(n)%(flash.SectorSize-part+1)&^(flash.CryptBlock-1)
		got := make([]byte, end-part)
		require.NoError(t, c.Decrypt(got, sector[part:end], at+int64(part)))
		require.Equal(t, plain[part:end], got)

		require.NoError(t, c.Encrypt(sector, plain, 0))
		view, err := flash.Encrypted(flash.Memory(sector), c)
		require.NoError(t, err)
		anywhere := int(from) % flash.SectorSize
		got = make([]byte, int(n)%(flash.SectorSize-anywhere+1))
		require.NoError(t, flash.Read(view, got, int64(anywhere)))
		require.Equal(t, plain[anywhere:][:len(got)], got)
	})
}

// BenchmarkEncryption compares each scheme with AES-XTS of x/crypto on the same bytes,
// in data units of a sector and of 128 bytes, as the chips have them. It reports theirs
// divided by ours.
func BenchmarkEncryption(b *testing.B) {
	src := make([]byte, 1<<20)
	dst := make([]byte, len(src))
	for _, size := range []int{32, 64} {
		key := make([]byte, size)
		c, err := flash.NewXTS(key)
		require.NoError(b, err)
		theirs, err := xts.NewCipher(aes.NewCipher, key)
		require.NoError(b, err)
		units := func(unit int) time.Duration {
			start := time.Now()
			for at := 0; at < len(src); at += unit {
				theirs.Encrypt(dst[at:at+unit], src[at:at+unit], uint64(at))
			}
			return time.Since(start)
		}
		b.Run(fmt.Sprintf("XTS-AES-%d", size*4), func(b *testing.B) {
			b.SetBytes(int64(len(src)))
			ours, sector, small := time.Hour, time.Hour, time.Hour
			for b.Loop() {
				start := time.Now()
				if err := c.Encrypt(dst, src, 0); err != nil {
					b.Fatal(err)
				}
				ours = min(ours, time.Since(start))
				sector, small = min(sector, units(flash.SectorSize)), min(small, units(128))
			}
			b.ReportMetric(float64(sector)/float64(ours), "of-sectors")
			b.ReportMetric(float64(small)/float64(ours), "of-units")
		})
	}
	c, err := flash.NewESP32(make([]byte, 32), 15)
	require.NoError(b, err)
	b.Run("ESP32", func(b *testing.B) {
		b.SetBytes(int64(len(src)))
		for b.Loop() {
			if err := c.Encrypt(dst, src, 0); err != nil {
				b.Fatal(err)
			}
		}
	})
}
