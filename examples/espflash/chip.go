package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/quarklink-go/quarklink/esp/flash"
	"github.com/quarklink-go/quarklink/esp/image"
	"github.com/quarklink-go/quarklink/esp/otadata"
	"github.com/quarklink-go/quarklink/esp/partition"
)

// chip is the flash of a chip, decrypted, and where things are in it.
type chip struct {
	options
	flash      flash.NOR
	encrypted  bool
	bootloader int64 // where the ROM looks for it
	table      *partition.Table
	tableAt    int64
}

// bootloaderOffset returns where the chip's ROM looks for the bootloader.
func bootloaderOffset(c image.Chip) int64 {
	switch c {
	case image.ESP32, image.ESP32S2:
		return 0x1000
	case image.ESP32P4, image.ESP32C5:
		return 0x2000
	}
	return 0
}

// errEncrypted is what flash looks like without its key.
var errEncrypted = errors.New("no partition table: if the flash is encrypted, name its key with -key; if the table is elsewhere, its offset with -table")

func openChip(f flash.NOR, o options) (*chip, error) {
	c := &chip{options: o, flash: f}
	if o.key != nil {
		if err := c.decrypt(f); err != nil {
			return nil, err
		}
	} else if err := c.findTable(f); err != nil {
		return nil, err
	}
	if !c.haveChip {
		c.chip = c.guessChip()
	}
	c.bootloader = bootloaderOffset(c.chip)
	return c, nil
}

// findTable looks for the partition table: where -table says, or else where Espressif
// and QuarkLink have it, or in any sector before the first partition can be.
func (c *chip) findTable(f flash.NOR) error {
	places := []int64{c.tableOffset}
	if c.tableOffset == 0 {
		places = []int64{partition.DefaultOffset, partition.QuarkLinkOffset}
		for at := int64(flash.SectorSize); at <= 0x40000; at += flash.SectorSize {
			places = append(places, at)
		}
	}
	var damaged error
	for _, at := range places {
		t, err := partition.Read(f, partition.Layout{TableOffset: uint32(at)})
		if err == nil {
			c.table, c.tableAt = t, at
			return nil
		}
		// What begins as a table does is a damaged one, unless there is a good one.
		if damaged == nil && !errors.Is(err, partition.ErrMagic) && startsAsTable(f, at) {
			damaged = fmt.Errorf("partition table at 0x%x: %w", at, err)
		}
	}
	if damaged != nil {
		return damaged
	}
	return errEncrypted
}

func startsAsTable(f flash.NOR, at int64) bool {
	var b [2]byte
	return flash.Read(f, b[:], at) == nil && b == [2]byte{0xAA, 0x50}
}

// decrypt finds the table with the key, and then knows what is encrypted: the bootloader
// and the table, applications, otadata, NVS keys, and partitions that say so.
func (c *chip) decrypt(f flash.NOR) error {
	ciphers, err := c.ciphers()
	if err != nil {
		return fmt.Errorf("-key: %w", err)
	}
	for _, cipher := range ciphers {
		all, err := flash.Encrypted(f, cipher)
		if err != nil {
			return err
		}
		if c.findTable(all) == nil {
			return c.decryptWith(f, cipher)
		}
	}
	if c.findTable(f) == nil {
		return errors.New("-key: the partition table is not encrypted, so this flash is not")
	}
	return errors.New("-key: nothing decrypts to a partition table: this is not the key of this flash (or the table is elsewhere: -table)")
}

func (c *chip) decryptWith(f flash.NOR, cipher *flash.Cipher) (err error) {
	end := f.Size() / flash.SectorSize * flash.SectorSize
	ranges := []flash.Range{{Offset: 0, Size: min(end, c.tableAt+flash.SectorSize)}}
	for _, p := range c.table.Partitions {
		from, to := int64(p.Offset), min(int64(p.Offset)+int64(p.Size), end)
		if isEncrypted(p) && from%flash.SectorSize == 0 && to%flash.SectorSize == 0 && from < to {
			ranges = append(ranges, flash.Range{Offset: from, Size: to - from})
		}
	}
	if c.flash, err = flash.Encrypted(f, cipher, ranges...); err != nil {
		return fmt.Errorf("the table's partitions overlap: %w", err)
	}
	c.encrypted = true
	return nil
}

// ciphers returns what the key may be for: both schemes take 32 bytes, and without -chip
// only the flash says which it is.
func (c *chip) ciphers() ([]*flash.Cipher, error) {
	const flashCryptConfig = 15 // what ESP-IDF burns
	var list []*flash.Cipher
	if !c.haveChip || c.chip != image.ESP32 {
		cipher, err := flash.NewXTS(c.key)
		if err != nil {
			return nil, err
		}
		list = append(list, cipher)
	}
	if len(c.key) == 32 && !c.haveChip || c.haveChip && c.chip == image.ESP32 {
		cipher, err := flash.NewESP32(c.key, flashCryptConfig)
		if err != nil {
			return nil, err
		}
		list = append(list, cipher)
	}
	return list, nil
}

func isEncrypted(p partition.Partition) bool {
	ota := p.Type == partition.Data && p.Subtype == partition.DataOTA
	keys := p.Type == partition.Data && p.Subtype == partition.DataNVSKeys
	return p.Type == partition.App || ota || keys || p.Flags&partition.Encrypted != 0
}

// guessChip takes the chip from the bootloader that lies where that chip's ROM looks, or
// else from the first application.
func (c *chip) guessChip() image.Chip {
	for _, at := range []int64{0, 0x1000, 0x2000} {
		if h, err := image.ReadHeader(io.NewSectionReader(c.flash, at, c.tableAt-at), c.tableAt-at); err == nil && bootloaderOffset(h.Chip) == at {
			return h.Chip
		}
	}
	for _, p := range c.table.Partitions {
		if p.Type != partition.App {
			continue
		}
		if h, err := image.ReadHeader(io.NewSectionReader(c.flash, int64(p.Offset), int64(p.Size)), int64(p.Size)); err == nil {
			return h.Chip
		}
	}
	return image.Chip(0xFFFF)
}

// slots returns the OTA slots as the bootloader counts them, and what it was built for.
func (c *chip) slots() (byNumber map[int]partition.Partition, b otadata.Bootloader) {
	byNumber = make(map[int]partition.Partition)
	b.Rollback = c.rollback
	for _, p := range c.table.Partitions {
		n := int(p.Subtype) - int(partition.AppOTA0)
		switch {
		case p.Type != partition.App:
		case p.Subtype == partition.AppFactory:
			byNumber[otadata.Factory] = p
			b.Factory = true
		case n >= 0 && n < 16:
			if _, again := byNumber[n]; !again {
				b.Slots++
			}
			byNumber[n] = p
		}
	}
	return byNumber, b
}

// region returns a partition, cut where the dump ends.
func (c *chip) region(p partition.Partition) (r *io.SectionReader, size int64, whole bool) {
	end := min(int64(p.Offset)+int64(p.Size), c.flash.Size())
	size = max(0, end-int64(p.Offset))
	return io.NewSectionReader(c.flash, int64(p.Offset), size), size, size == int64(p.Size)
}
