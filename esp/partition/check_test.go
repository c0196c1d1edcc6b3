package partition_test

import (
	"errors"
	"testing"

	"github.com/quarklink-go/quarklink/esp/partition"
)

// What the generator refuses is refused, at the offset of the field; and what
// is just right passes.
func TestCheck(t *testing.T) {
	const (
		app, data = partition.App, partition.Data
		overlap   = 4
		size      = 8
		label     = 12
		flags     = 28
	)
	type p = partition.Partition
	nvs := p{Label: "nvs", Type: data, Subtype: partition.DataNVS, Offset: 0x9000, Size: 0x6000}
	factory := p{Label: "factory", Type: app, Offset: 0x10000, Size: 0x100000}
	otadata := p{Label: "otadata", Type: data, Subtype: partition.DataOTA, Offset: 0x110000, Size: 0x2000}
	custom := p{Label: "custom", Type: 0x77, Subtype: 0x88, Offset: 0x120000, Size: 1, Flags: 1 << 31}
	change := func(p p, f func(*partition.Partition)) partition.Partition { f(&p); return p }

	at := partition.Layout{TableOffset: 0xD000, FlashSize: 4 << 20}
	for _, test := range []struct {
		name   string
		layout partition.Layout
		table  []partition.Partition
		want   error
		offset int64 // of the field in the last partition
	}{
		{"usual", partition.Layout{}, []p{nvs, factory, otadata, custom}, nil, 0},
		{"in any order", partition.Layout{}, []p{custom, factory, otadata, nvs}, nil, 0},
		{"a type without a name", partition.Layout{}, []p{change(factory, func(p *p) { p.Type, p.Offset = 0xFF, 0x9000 })}, nil, 0},

		{"app not at 64 KiB", at, []p{change(factory, func(p *p) { p.Offset = 0x18000 })}, partition.ErrAlignment, 4},
		{"data not at 4 KiB", at, []p{change(custom, func(p *p) { p.Offset += 0x800 })}, partition.ErrAlignment, 4},
		{"app of odd size", at, []p{change(factory, func(p *p) { p.Size += 0x800 })}, partition.ErrAlignment, size},
		{"app of 4 KiB more", at, []p{change(factory, func(p *p) { p.Size += 0x1000 })}, nil, 0},
		{"readonly otadata", at, []p{change(otadata, func(p *p) { p.Flags = partition.ReadOnly })}, partition.ErrFlags, flags},
		{"readonly core dump", at, []p{change(otadata, func(p *p) { p.Subtype, p.Flags = partition.DataCoreDump, partition.ReadOnly })}, partition.ErrFlags, flags},
		{"readonly app", at, []p{change(factory, func(p *p) { p.Flags = partition.ReadOnly })}, nil, 0},
		{"small NVS", partition.Layout{}, []p{change(nvs, func(p *p) { p.Size = 0x2000 })}, partition.ErrSize, size},
		{"small NVS, readonly", partition.Layout{}, []p{change(nvs, func(p *p) { p.Size, p.Flags = 0x2000, partition.ReadOnly })}, nil, 0},
		{"label not UTF-8", at, []p{change(factory, func(p *p) { p.Label = "\xC3" })}, partition.ErrLabel, label},
		{"one label twice", at, []p{factory, otadata, change(custom, func(p *p) { p.Label = "factory" })}, partition.ErrDuplicate, label},
		{"otadata twice", at, []p{factory, otadata, change(otadata, func(p *p) { p.Label, p.Offset = "other", 0x200000 })}, partition.ErrDuplicate, 3},
		{"otadata of 4 KiB", at, []p{change(otadata, func(p *p) { p.Size = 0x1000 })}, partition.ErrSize, size},
		{"TEE otadata of 4 KiB", at, []p{change(otadata, func(p *p) { p.Subtype, p.Size = partition.DataTEEOTA, 0x1000 })}, partition.ErrSize, size},
		{"both otadata", at, []p{otadata, change(otadata, func(p *p) { p.Label, p.Subtype, p.Offset = "tee", partition.DataTEEOTA, 0x200000 })}, nil, 0},

		{"in the table's sector", partition.Layout{}, []p{factory, change(nvs, func(p *p) { p.Offset = 0x8000 })}, partition.ErrOverlap, overlap},
		{"in a table elsewhere", at, []p{factory, change(custom, func(p *p) { p.Offset = 0xD000 })}, partition.ErrOverlap, overlap},
		{"where the bootloader is", at, []p{factory, change(custom, func(p *p) { p.Offset = 0 })}, partition.ErrOverlap, overlap},
		{"after the table", at, []p{factory, change(custom, func(p *p) { p.Offset = 0xE000 })}, nil, 0},
		{"the bootloader itself", at, []p{factory, {Label: "boot", Type: partition.Bootloader, Size: 0xD000}}, nil, 0},
		{"the bootloader in the table", at, []p{{Label: "table", Type: partition.PartitionTable, Offset: 0xD000, Size: 0x1000},
			{Label: "boot", Type: partition.Bootloader, Size: 0xD000}}, nil, 0},
		{"the other bootloader there", at, []p{factory, {Label: "boot", Type: partition.Bootloader, Subtype: partition.BootloaderOTA, Size: 0xD000}}, partition.ErrOverlap, overlap},
		{"overlap by a byte", at, []p{change(custom, func(p *p) { p.Size = 0x1001 }), change(custom, func(p *p) { p.Label, p.Offset = "x", 0x121000 })}, partition.ErrOverlap, overlap},
		{"one within another", at, []p{factory, change(custom, func(p *p) { p.Offset = 0x20000 })}, partition.ErrOverlap, overlap},

		{"ends with the flash", at, []p{factory, change(custom, func(p *p) { p.Offset, p.Size = 0x300000, 0x100000 })}, nil, 0},
		{"ends after the flash", at, []p{factory, change(custom, func(p *p) { p.Offset, p.Size = 0x300000, 0x100001 })}, partition.ErrFlashSize, size},
		{"flash unknown", partition.Layout{}, []p{factory, change(custom, func(p *p) { p.Offset, p.Size = 0xFFFFF000, 0x1000 })}, nil, 0},
	} {
		table := partition.Table{Partitions: test.table}
		err := table.Check(test.layout)
		if test.want == nil {
			if err != nil {
				t.Errorf("%s: %v", test.name, err)
			}
			continue
		}
		wantError(t, test.name, err, test.want, int64(len(test.table)-1)*32+test.offset)
	}
}

// What the bootloader accepts and the generator does not is a table for
// Parse, and none for Check.
func TestParseDoesNotCheck(t *testing.T) {
	table := partition.Table{NoMD5: true, Partitions: []partition.Partition{
		{Label: "same", Type: partition.App, Offset: 0x1001, Size: 3},
		{Label: "same", Type: partition.App, Offset: 0x1001, Size: 3},
	}}
	b, err := table.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	read, err := partition.Parse(b, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := read.Check(partition.Layout{}); !errors.Is(err, partition.ErrAlignment) {
		t.Error(err)
	}
}

func TestFind(t *testing.T) {
	table := partition.Table{Partitions: virtualEFuse}
	if p, ok := table.Find(partition.App, partition.AppOTA0+1); !ok || p.Label != "ota_1" {
		t.Errorf("ota_1: %+v, %v", p, ok)
	}
	if p, ok := table.Find(partition.Data, partition.DataOTA); !ok || p.Label != "otadata" {
		t.Errorf("otadata, whose subtype number factory has too: %+v, %v", p, ok)
	}
	if p, ok := table.Find(partition.App, partition.AppOTA0+2); ok || p != (partition.Partition{}) {
		t.Errorf("ota_2: %+v, %v", p, ok)
	}
	if p, ok := table.FindLabel("nvs"); !ok || p.Offset != 0xE000 {
		t.Errorf("nvs: %+v, %v", p, ok)
	}
	if p, ok := table.FindLabel("nvs_"); ok || p != (partition.Partition{}) {
		t.Errorf("nvs_: %+v, %v", p, ok)
	}
}
