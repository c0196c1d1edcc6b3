package main

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/esp/flash"
	"github.com/quarklink-go/quarklink/esp/otadata"
	"github.com/quarklink-go/quarklink/esp/partition"
	"github.com/quarklink-go/quarklink/esp/secureboot"
)

var update = flag.Bool("update", false, "write the golden files anew")

// espflash runs the program.
func espflash(t testing.TB, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	err := run(t.Context(), args, &out, io.Discard)
	return out.String(), err
}

// golden compares with a file in testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	name = filepath.Join("testdata", name)
	if *update {
		require.NoError(t, os.WriteFile(name, []byte(got), 0o644))
	}
	want, err := os.ReadFile(name)
	require.NoError(t, err)
	assert.Equal(t, string(want), got)
}

func TestGolden(t *testing.T) {
	dump := save(t, newDump(t))
	trust := trusted(t)
	for name, args := range map[string][]string{
		"flash.txt":        {dump},
		"trust.txt":        {"-chip", "esp32c3", "-trust", trust, "-rollback", "-values", dump},
		"flash.json":       {"-format", "json", "-chip", "esp32c3", "-trust", trust, dump},
		"flash.svg":        {"-format", "svg", dump},
		"flash-nonvs.json": {"-format", "json", "-table", "53248", dump},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := espflash(t, args...)
			require.NoError(t, err)
			golden(t, name, got)
			switch filepath.Ext(name) {
			case ".json":
				require.NoError(t, json.Unmarshal([]byte(got), new(report)))
			case ".svg":
				require.NoError(t, xml.Unmarshal([]byte(got), new(struct{})))
			}
		})
	}
}

// With its key an encrypted flash is explained as the plain one is.
func TestEncrypted(t *testing.T) {
	plain := newDump(t)
	for _, size := range []int{32, 64} {
		key := bytes.Repeat([]byte{0x5A, 0xC3}, size/2)
		key[0] = 1 // XTS halves that are alike are refused by some
		c, err := flash.NewXTS(key)
		require.NoError(t, err)
		dump, keyFile := save(t, encrypt(t, plain, c)), save(t, key)
		got, err := espflash(t, "-key", keyFile, dump)
		require.NoError(t, err)
		want, err := os.ReadFile("testdata/flash.txt")
		require.NoError(t, err)
		assert.Equal(t, strings.Replace(string(want), "not encrypted", "encrypted", 1), got)

		trust := []string{"-chip", "esp32c3", "-trust", trusted(t), "-key", keyFile, dump}
		_, err = espflash(t, trust...)
		require.NoError(t, err)
	}
}

// The original ESP32 has its bootloader and its encryption elsewhere.
func TestESP32(t *testing.T) {
	plain := newESP32Dump(t)
	key := bytes.Repeat([]byte{3, 1, 4, 1, 5, 9, 2, 6}, 4)
	c, err := flash.NewESP32(key, 15)
	require.NoError(t, err)
	encrypted := append(flash.Memory(nil), plain...)
	require.NoError(t, c.Encrypt(encrypted[:0x9000], plain[:0x9000], 0))
	require.NoError(t, c.Encrypt(encrypted[0x10000:], plain[0x10000:], 0x10000))
	keyFile := save(t, key)
	trust := []string{"-chip", "esp32", "-trust", trusted(t)}
	for name, args := range map[string][]string{
		"plain":             {save(t, plain)},
		"encrypted":         {"-key", keyFile, save(t, encrypted)},
		"plain, walked":     append(trust, save(t, plain)),
		"encrypted, walked": append(trust, "-key", keyFile, save(t, encrypted)),
	} {
		t.Run(name, func(t *testing.T) {
			out, err := espflash(t, args...)
			require.NoError(t, err)
			assert.Contains(t, out, "esp32, 1 MiB of flash")
			assert.Contains(t, out, "bootloader  bootloader       0x001000  28 KiB   esp32 image")
			assert.Contains(t, out, "esp32\n\nbootloader: signature 0")
			assert.Contains(t, out, "the table has no OTA slot: the factory application starts")
		})
	}

	// An image where no ROM looks for a bootloader does not say which chip it is.
	odd := newDump(t)
	copy(odd, plain[0x1000:0x3000])
	out, err := espflash(t, save(t, odd))
	require.NoError(t, err)
	assert.Contains(t, out, "esp32c3, 4 MiB")
}

// A wrong key, or none, is said to be that: nothing is called damaged.
func TestWrongKey(t *testing.T) {
	key := bytes.Repeat([]byte{1, 2, 3, 4}, 8)
	c, err := flash.NewXTS(key)
	require.NoError(t, err)
	plain := newDump(t)
	dump, right := save(t, encrypt(t, plain, c)), save(t, key)
	key[31] ^= 1
	wrong := save(t, key)
	for _, test := range []struct {
		args []string
		says string
	}{
		{[]string{"-key", wrong, dump}, "not the key of this flash"},
		{[]string{"-chip", "esp32", "-key", right, dump}, "not the key of this flash"},
		{[]string{dump}, "name its key with -key"},
		{[]string{"-key", right, save(t, plain)}, "so this flash is not"},
		{[]string{"-key", save(t, key[:24]), dump}, "need 32 or 64"},
	} {
		_, err := espflash(t, test.args...)
		require.ErrorContains(t, err, test.says)
		assert.NotContains(t, err.Error(), "damaged")
	}
}

// The chain breaks where it was cut, and the exit status says so.
func TestChainBreaks(t *testing.T) {
	trust := []string{"-chip", "esp32c3", "-trust", trusted(t)}
	for _, test := range []struct {
		name   string
		args   []string
		change func(m flash.Memory)
		says   string
		shown  string
	}{
		{"bootloader", nil, func(m flash.Memory) { m[100] ^= 1 }, "bootloader:", "BROKEN  bootloader"},
		{"no bootloader", nil, func(m flash.Memory) { erase(m[:0xD000]) }, "bootloader:", "BROKEN  bootloader"},
		{"bootloader of another key", []string{"-chip", "esp32c3", "-trust", rsa1}, func(flash.Memory) {}, "bootloader:", "is not trusted"},
		{"application", nil, func(m flash.Memory) { m[ota1At+0x10100] ^= 1 }, "application ota_1:", "ota_0 would start instead"},
		{"application that was put there", nil, func(m flash.Memory) {
			copy(m[ota1At:], gunzip(t, "esp32c3_small_v1.0.0_padv2.rsa2.bin"))
		}, "application ota_1:", "is not trusted"},
		{"application of another chip", nil, func(m flash.Memory) {
			copy(m[ota1At:], gunzip(t, "esp32s3_small_v1.0.0_padv2.rsa1_append2_append3.bin"))
		}, "application ota_1:", "another chip"},
		{"application is gone", nil, func(m flash.Memory) { erase(m[ota1At : ota1At+0x140000]) }, "application ota_1:", "has no good image"},
		{"wrong chip", []string{"-chip", "esp32s3", "-trust", trusted(t)}, func(flash.Memory) {}, "bootloader:", "another chip"},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := newDump(t)
			test.change(m)
			args := test.args
			if args == nil {
				args = trust
			}
			out, err := espflash(t, append(args, save(t, m))...)
			require.ErrorContains(t, err, "the chain of trust breaks: "+test.says)
			assert.Contains(t, out, test.shown)
		})
	}
}

func erase(b []byte) { copy(b, flash.NewMemory(len(b))) }

func TestInstall(t *testing.T) {
	key := bytes.Repeat([]byte{9, 8, 7, 6}, 16)
	c, err := flash.NewXTS(key)
	require.NoError(t, err)
	img := save(t, gunzip(t, "esp32c3_small_v1.0.0_padv2.rsa1.bin"))
	for _, encrypted := range []bool{false, true} {
		for _, rollback := range []bool{false, true} {
			t.Run(fmt.Sprintf("%v/%v", encrypted, rollback), func(t *testing.T) {
				m := newDump(t)
				args := []string{"-chip", "esp32c3", "-trust", trusted(t)}
				if encrypted {
					m = encrypt(t, m, c)
					args = append(args, "-key", save(t, key))
				}
				if rollback {
					args = append(args, "-rollback")
				}
				dump := save(t, m)
				// ota_1 starts, so it goes to ota_0, and then to ota_1.
				for _, slot := range []string{"ota_0", "ota_1"} {
					out, err := espflash(t, append(args, "-install", img, dump)...)
					require.NoError(t, err)
					assert.Contains(t, out, slot+" starts")
					assert.Contains(t, out, "holds   application "+slot)
				}
				after, err := os.ReadFile(dump)
				require.NoError(t, err)
				require.Len(t, after, len(m))
				assert.Equal(t, []byte(m[:dataAt]), after[:dataAt], "nothing below otadata changes")
				assert.Equal(t, []byte(m[0x3E0000:]), after[0x3E0000:])
			})
		}
	}
}

// What does not verify or does not fit leaves the dump as it is.
func TestInstallRefuses(t *testing.T) {
	m := newDump(t)
	trust := []string{"-chip", "esp32c3", "-trust", trusted(t)}
	small := newDump(t)
	table, err := partition.Read(small, partition.Layout{TableOffset: partition.QuarkLinkOffset})
	require.NoError(t, err)
	table.Partitions[4].Size = 0x20000 // ota_0
	b, err := table.MarshalBinary()
	require.NoError(t, err)
	copy(small[partition.QuarkLinkOffset:], b)
	nobody := newDump(t)
	for _, at := range []int{0x20000, 0x160000, ota1At} {
		nobody[at] = 0
	}
	for _, test := range []struct {
		name  string
		dump  flash.Memory
		image string
		want  error
		says  string
	}{
		{"another key", m, "esp32c3_small_v1.0.0_padv2.rsa2.bin", secureboot.ErrSignature, ""},
		{"another chip", m, "esp32c6_small_v1.0.0_padv2.ec256.bin", secureboot.ErrImage, "another chip"},
		{"a slot that is too small", small, "esp32c3_small_v1.1.0_padv2.rsa1.bin", nil, `"ota_0" has room for 0x20000`},
		{"nothing that runs", nobody, "esp32c3_small_v1.1.0_padv2.rsa1.bin", nil, "no application in the flash starts"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dump := save(t, test.dump)
			_, err := espflash(t, append(trust, "-install", save(t, gunzip(t, test.image)), dump)...)
			require.Error(t, err)
			if test.want != nil {
				require.ErrorIs(t, err, test.want)
			}
			assert.ErrorContains(t, err, test.says)
			after, err := os.ReadFile(dump)
			require.NoError(t, err)
			assert.Equal(t, []byte(test.dump), after)
		})
	}
}

func TestUsage(t *testing.T) {
	dump := save(t, newDump(t))
	for _, args := range [][]string{
		{}, {dump, dump}, {"-format", "xml", dump}, {"-chip", "z80", dump}, {"-trust", "12", "-chip", "esp32c3", dump},
		{"-trust", rsa1, dump}, {"-install", dump, "-chip", "esp32c3", dump}, {"-table", "100", dump}, {"-table", "-4096", dump},
		{"-key", dump + ".absent", dump}, {dump + ".absent"}, {"-nonsense"}, {save(t, nil)}, {os.DevNull},
	} {
		_, err := espflash(t, args...)
		require.Error(t, err, args)
	}
	_, err := espflash(t, "-help")
	require.ErrorIs(t, err, flag.ErrHelp)
}

// Both sectors of otadata are corrupt: it is said, and what starts then.
func TestOTADataCorrupt(t *testing.T) {
	m := newDump(t)
	m[dataAt+28] ^= 1
	m[dataAt+4096+28] ^= 1
	out, err := espflash(t, save(t, m))
	require.NoError(t, err)
	assert.Contains(t, out, "sector 0 (1) has a wrong CRC, sector 1 (2) has a wrong CRC: the factory application starts.")

	erase(m[dataAt:][:otadata.Size])
	require.NoError(t, otadata.SetBoot(m[dataAt:][:otadata.Size], otadata.Bootloader{Slots: 0xFFFF}, 0))
	out, err = espflash(t, save(t, m))
	require.NoError(t, err)
	assert.Contains(t, out, "ota_0 starts")
}

// Tables that overlap, leave the flash or were moved.
func TestBadTables(t *testing.T) {
	tableOf := func(change func(*partition.Table)) flash.Memory {
		m := newDump(t)
		table, err := partition.Read(m, partition.Layout{TableOffset: partition.QuarkLinkOffset})
		require.NoError(t, err)
		change(table)
		b, err := table.MarshalBinary()
		require.NoError(t, err)
		copy(m[partition.QuarkLinkOffset:], b)
		return m
	}
	trust := []string{"-chip", "esp32c3", "-trust", trusted(t)}

	overlap := tableOf(func(t *partition.Table) { t.Partitions[4].Offset = 0x150000 })
	out, err := espflash(t, append(trust, save(t, overlap))...)
	require.ErrorContains(t, err, "partition table:")
	assert.Contains(t, out, "BROKEN  partition table")

	beyond := tableOf(func(t *partition.Table) { t.Partitions[5].Offset = 0x3F0000 })
	out, err = espflash(t, append(trust, save(t, beyond))...)
	require.Error(t, err)
	assert.Contains(t, out, "it ends at 0x530000, the dump at 0x400000")

	moved := newDump(t)
	copy(moved[0xC000:0xD000], moved[0xD000:0xE000])
	erase(moved[0xD000:0xE000])
	out, err = espflash(t, save(t, moved))
	require.NoError(t, err)
	assert.Contains(t, out, "partition table  0x00c000")

	damaged := newDump(t)
	damaged[0xD000+40] ^= 1
	_, err = espflash(t, save(t, damaged))
	require.ErrorIs(t, err, partition.ErrChecksum)
}

// A dump that ends at any sector is explained as far as it goes.
func TestCutDumps(t *testing.T) {
	m := newDump(t)
	trust := trusted(t)
	for size := flash.SectorSize; size < len(m); size += flash.SectorSize {
		if testing.Short() && size > 0x60000 && size%0x20000 != 0 {
			continue // inside of applications one sector is like the other
		}
		name := save(t, m[:size])
		out, err := espflash(t, "-chip", "esp32c3", "-trust", trust, name)
		if size >= 0x3E1000 {
			require.NoError(t, err, "cut at 0x%x: behind the last partition", size)
			continue
		}
		require.Error(t, err, "cut at 0x%x", size)
		require.NotErrorIs(t, err, io.ErrUnexpectedEOF, "cut at 0x%x", size)
		if size <= 0xD000 {
			require.ErrorIs(t, err, errEncrypted, "cut at 0x%x", size)
			continue
		}
		assert.Contains(t, out, fmt.Sprintf("the dump at 0x%x", size), "cut at 0x%x", size)
		_, err = espflash(t, "-format", "svg", name)
		require.NoError(t, err, "cut at 0x%x", size)
	}
}

// Whatever a flash holds, its text is fit for a terminal.
func TestHostileLabels(t *testing.T) {
	assert.Equal(t, "a?b?c?", printable("a\x1bb\u009bc\xff"))
	m := newDump(t)
	table, err := partition.Read(m, partition.Layout{TableOffset: partition.QuarkLinkOffset})
	require.NoError(t, err)
	table.Partitions[2].Label = "\x1b[2J<script>&"
	b, err := table.MarshalBinary()
	require.NoError(t, err)
	copy(m[partition.QuarkLinkOffset:], b)
	for _, format := range []string{"text", "json", "svg"} {
		out, err := espflash(t, "-format", format, save(t, m))
		require.NoError(t, err)
		assert.NotContains(t, out, "\x1b")
		if format == "svg" {
			assert.NotContains(t, out, "<script>")
		}
	}
}

func TestWriteFails(t *testing.T) {
	dump := save(t, newDump(t))
	failure := errors.New("pipe closed")
	for format := range formats {
		err := run(t.Context(), []string{"-format", format, dump}, failing{failure}, io.Discard)
		if format != "text" {
			require.ErrorIs(t, err, failure, format)
		}
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }
