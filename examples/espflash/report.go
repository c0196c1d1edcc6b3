package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/quarklink-go/quarklink/esp/flash"
	"github.com/quarklink-go/quarklink/esp/image"
	"github.com/quarklink-go/quarklink/esp/nvs"
	"github.com/quarklink-go/quarklink/esp/otadata"
	"github.com/quarklink-go/quarklink/esp/partition"
	"github.com/quarklink-go/quarklink/esp/secureboot"
)

// report is what is in a flash. Its JSON is what -format json prints.
type report struct {
	Size       int64       `json:"size"`
	Chip       string      `json:"chip"`
	Encrypted  bool        `json:"encrypted"`
	Bootloader part        `json:"bootloader"`
	Table      tableReport `json:"table"`
	Partitions []part      `json:"partitions"`
	Boot       *boot       `json:"boot,omitempty"`
	Trust      *trust      `json:"trust,omitempty"`
}

type tableReport struct {
	Offset  int64  `json:"offset"`
	MD5     bool   `json:"md5"`
	Problem string `json:"problem,omitempty"` // what Espressif's generator would refuse
}

// part is a part of the flash: a partition, or the bootloader.
type part struct {
	Label     string     `json:"label"`
	Type      string     `json:"type"`
	Subtype   string     `json:"subtype"`
	Offset    int64      `json:"offset"`
	Size      int64      `json:"size"`
	Encrypted bool       `json:"encrypted,omitempty"`
	Image     *appImage  `json:"image,omitempty"`
	Entries   []entry    `json:"otadata,omitempty"`
	NVS       *nvsReport `json:"nvs,omitempty"`
	Problem   string     `json:"problem,omitempty"`
}

type appImage struct {
	Chip          string      `json:"chip"`
	Project       string      `json:"project,omitempty"`
	Version       string      `json:"version,omitempty"`
	SecureVersion uint32      `json:"secureVersion,omitempty"`
	IDF           string      `json:"idf,omitempty"`
	Length        int64       `json:"length"`
	SHA256        string      `json:"sha256"`
	Signatures    []signature `json:"signatures"`
}

type signature struct {
	Block     int    `json:"block"`
	Algorithm string `json:"algorithm,omitempty"`
	Key       string `json:"key,omitempty"`
	Problem   string `json:"problem,omitempty"`
}

type entry struct {
	Sequence uint32 `json:"sequence"`
	State    string `json:"state"`
	CRC      bool   `json:"crc"`
	Erased   bool   `json:"erased,omitempty"`
}

// boot is which application starts.
type boot struct {
	Chosen string   `json:"chosen"` // by otadata
	Starts string   `json:"starts"` // the first in order whose image is good
	Order  []string `json:"order"`
	Reason string   `json:"reason"`
}

type nvsReport struct {
	Encrypted bool       `json:"encrypted"`
	Values    []nvsValue `json:"values"`
	Damage    []string   `json:"damage,omitempty"`
}

type nvsValue struct {
	Namespace string `json:"namespace"`
	Key       string `json:"key"`
	Type      string `json:"type"`
	Size      int    `json:"size"`
	Value     string `json:"value,omitempty"`
}

// report looks at everything. What is wrong with a part is said there; an error is one
// of the dump itself.
func (c *chip) report(ctx context.Context) (*report, error) {
	r := &report{Size: c.flash.Size(), Chip: c.chip.String(), Encrypted: c.encrypted}
	if c.chip == 0xFFFF {
		r.Chip = "unknown"
	}
	r.Table = tableReport{Offset: c.tableAt, MD5: !c.table.NoMD5}
	layout := partition.Layout{TableOffset: uint32(c.tableAt), FlashSize: c.flash.Size()}
	if err := c.table.Check(layout); err != nil {
		r.Table.Problem = err.Error()
	}
	r.Bootloader = part{Label: "bootloader", Type: "bootloader", Offset: c.bootloader, Size: c.tableAt - c.bootloader, Encrypted: c.encrypted}
	c.lookAtImage(&r.Bootloader, io.NewSectionReader(c.flash, c.bootloader, c.tableAt-c.bootloader), c.tableAt-c.bootloader)
	for _, p := range c.table.Partitions {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		r.Partitions = append(r.Partitions, c.lookAt(p))
	}
	r.Boot = c.lookAtBoot(ctx)
	if len(c.trust) > 0 {
		r.Trust = c.walk(ctx)
	}
	return r, nil
}

func (c *chip) lookAt(p partition.Partition) part {
	out := part{
		Label: p.Label, Type: p.Type.String(), Subtype: p.Type.SubtypeName(p.Subtype),
		Offset: int64(p.Offset), Size: int64(p.Size), Encrypted: c.encrypted && isEncrypted(p),
	}
	r, size, whole := c.region(p)
	if !whole {
		out.Problem = fmt.Sprintf("it ends at 0x%x, the dump at 0x%x", int64(p.Offset)+int64(p.Size), c.flash.Size())
		if size == 0 {
			return out
		}
	}
	switch {
	case p.Type == partition.App:
		c.lookAtImage(&out, r, size)
	case p.Type == partition.Data && p.Subtype == partition.DataOTA:
		data, err := otadata.Read(r)
		if err != nil {
			out.Problem = err.Error()
			break
		}
		for _, e := range data {
			out.Entries = append(out.Entries, entry{e.Seq, e.State.String(), e.Sealed(), e == otadata.Erased()})
		}
	case p.Type == partition.Data && p.Subtype == partition.DataNVS:
		var err error
		if out.NVS, err = c.lookAtNVS(r, size); err != nil {
			out.Problem = err.Error()
		}
	}
	return out
}

// lookAtImage describes the image at the start of r.
func (c *chip) lookAtImage(p *part, r io.ReaderAt, size int64) {
	m, err := image.Read(r, size)
	if err != nil {
		if blank, errBlank := flash.Blank(r, 0, min(size, flash.SectorSize)); errBlank == nil && blank && !c.encrypted {
			return // nothing is there
		}
		p.Problem = err.Error()
		return
	}
	p.Image = &appImage{Chip: m.Header.Chip.String(), Length: m.Length, SHA256: hex.EncodeToString(m.SHA256[:]), Signatures: []signature{}}
	if m.App != nil {
		p.Image.Project, p.Image.Version = m.App.Project, m.App.Version
		p.Image.SecureVersion, p.Image.IDF = m.App.SecureVersion, m.App.IDFVersion
	}
	list, err := secureboot.Signatures(r, size, schemes()...)
	if err != nil {
		p.Problem = err.Error()
		return
	}
	for _, s := range list {
		out := signature{Block: s.Block, Algorithm: s.Algorithm}
		if s.Algorithm != "" {
			out.Key = s.Key.String()
		}
		if s.Err != nil {
			out.Problem = s.Err.Error()
		}
		p.Image.Signatures = append(p.Image.Signatures, out)
	}
}

// lookAtBoot says which application starts. Without -trust an image is good if it is
// whole; the chip may ask for more.
func (c *chip) lookAtBoot(ctx context.Context) *boot {
	slots, b := c.slots()
	p, ok := c.table.Find(partition.Data, partition.DataOTA)
	data := otadata.Data{otadata.Erased(), otadata.Erased()}
	if ok {
		r, _, _ := c.region(p)
		var err error
		if data, err = otadata.Read(r); err != nil {
			return nil
		}
	}
	choice := data.Select(b)
	out := &boot{Chosen: slotName(choice.Start), Reason: choice.Reason, Order: []string{}}
	for _, slot := range choice.Order {
		out.Order = append(out.Order, slotName(slot))
		if p, ok := slots[slot]; ok && out.Starts == "" && c.good(ctx, p) == nil {
			out.Starts = slotName(slot)
		}
	}
	return out
}

// good judges the image in a partition: as the chip does with -trust, else whether it is
// whole.
func (c *chip) good(ctx context.Context, p partition.Partition) error {
	r, size, _ := c.region(p)
	if len(c.trust) > 0 {
		return c.verifier().Verify(ctx, r, size)
	}
	_, err := image.Read(r, size)
	return err
}

func slotName(slot int) string {
	if slot == otadata.Factory {
		return "factory"
	}
	return "ota_" + strconv.Itoa(slot)
}

func (c *chip) lookAtNVS(r io.ReaderAt, size int64) (*nvsReport, error) {
	out := &nvsReport{Values: []nvsValue{}}
	p, err := nvs.OpenReader(r, size, nvs.Options{})
	if errors.Is(err, nvs.ErrKeys) {
		keys, errKeys := c.findNVSKeys()
		if errKeys != nil {
			return nil, errKeys
		}
		out.Encrypted = true
		p, err = nvs.OpenReader(r, size, nvs.Options{Keys: keys})
	}
	if err != nil {
		return nil, err
	}
	entries, err := p.Entries()
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		v := nvsValue{Namespace: e.Namespace, Key: e.Key, Type: e.Type.String(), Size: e.Size}
		if c.values {
			v.Value = c.value(p, e)
		}
		out.Values = append(out.Values, v)
	}
	damage, err := p.Check()
	if err != nil {
		return nil, err
	}
	for _, d := range damage {
		out.Damage = append(out.Damage, d.Error())
	}
	return out, nil
}

// findNVSKeys takes the keys of the file that was named, or those in the flash.
func (c *chip) findNVSKeys() (*nvs.Keys, error) {
	if c.nvsKeys != nil {
		return nvs.ParseKeys(c.nvsKeys)
	}
	p, ok := c.table.Find(partition.Data, partition.DataNVSKeys)
	if !ok {
		return nil, errors.New("encrypted, and the table has no nvs_keys partition: name the keys with -nvs-keys")
	}
	b := make([]byte, flash.SectorSize)
	if err := flash.Read(c.flash, b, int64(p.Offset)); err != nil {
		return nil, fmt.Errorf("NVS keys: %w", err)
	}
	keys, err := nvs.ParseKeys(b)
	if err != nil && !c.encrypted {
		return nil, fmt.Errorf("encrypted, and so seem the keys in %q: -key, or -nvs-keys: %w", p.Label, err)
	}
	return keys, err
}

// value returns a value fit for printing.
func (c *chip) value(p *nvs.Partition, e nvs.Entry) string {
	n, err := p.Namespace(e.Namespace)
	if err != nil {
		return err.Error()
	}
	b, err := n.Raw(e.Key, e.Type)
	switch {
	case err != nil:
		return err.Error()
	case e.Type == nvs.String:
		return strconv.Quote(string(b))
	case e.Type == nvs.Blob:
		return hex.EncodeToString(b)
	}
	return integer(e.Type, b)
}

// integer prints a little-endian integer.
func integer(t nvs.Type, b []byte) string {
	var v uint64
	for i := len(b) - 1; i >= 0; i-- {
		v = v<<8 | uint64(b[i])
	}
	switch t {
	case nvs.I8, nvs.I16, nvs.I32, nvs.I64:
		shift := 64 - 8*len(b)
		return strconv.FormatInt(int64(v<<shift)>>shift, 10)
	}
	return strconv.FormatUint(v, 10)
}
