package partition_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/quarklink-go/quarklink/esp/partition"
)

// Each line alone, in a table at 0x8000 of 4 MiB of flash: what the generator
// makes of it, by offset, size, type and subtype.
func TestParseCSV(t *testing.T) {
	for _, test := range []struct{ text, want string }{
		{"a,data,nvs,,32K,", "0x9000 0x8000 1 2"},
		{"a,data,nvs,,32K", "0x9000 0x8000 1 2"},
		{"\uFEFFa,data,nvs,,32K", "0x9000 0x8000 1 2"},
		{"# x\r\n\r\n  # y\r\n\ta , data\t,nvs , , 32K \r\n", "0x9000 0x8000 1 2"},
		{"a,DATA,Nvs,,32k", "0x9000 0x8000 1 2"},
		{"a,1,2,,0x8000", "0x9000 0x8000 1 2"},
		{"a,0x1,0b10,,0o100000", "0x9000 0x8000 1 2"},
		{"a,data,,,1", "0x9000 0x1 1 6"},
		{"a,0x40,,,1", "0x9000 0x1 64 6"},
		{"a,254,255,,1", "0x9000 0x1 254 255"},
		{"a,app,factory,,1M", "0x10000 0x100000 0 0"},
		{"a,app,ota_15,,-2M", "0x10000 0x1f0000 0 31"},
		{"a,app,tee_1,0x20000,0", "0x20000 0x0 0 49"},
		{"a,data,spiffs,64k,1", "0x10000 0x1 1 130"},
		{"a,data,spiffs,+0x1_0000,0x1K", "0x10000 0x400 1 130"},
		{"a,data,spiffs,00064K,1", ""}, // Python refuses superfluous zeros
		{"a,data,spiffs,0x10000,00", "0x10000 0x0 1 130"},
		{"a,data,spiffs,64 K,1", "0x10000 0x1 1 130"},
		{"a,data,nvs,,32K,,more,and,more", "0x9000 0x8000 1 2"},
		{"a,bootloader,primary,,", "0x1000 0x7000 2 0"},
		{"a,bootloader,ota,0x10000,ignored", "0x10000 0x7000 2 1"},
		{"a,bootloader,recovery,,", "0x200000 0x7000 2 2"},
		{"a,partition_table,primary,,", "0x8000 0x1000 3 0"},
		{"a,partition_table,ota,,", "0x9000 0x1000 3 1"},
	} {
		layout := partition.Layout{FlashSize: 4 << 20, BootloaderOffset: 0x1000, RecoveryOffset: 0x200000}
		table, err := partition.ParseCSV([]byte(test.text), layout)
		if test.want == "" {
			if !errors.Is(err, partition.ErrSyntax) {
				t.Errorf("%q: %v, want ErrSyntax", test.text, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", test.text, err)
			continue
		}
		p := table.Partitions[0]
		if got := fmt.Sprintf("0x%x 0x%x %d %d", p.Offset, p.Size, uint8(p.Type), uint8(p.Subtype)); got != test.want || p.Label != "a" || p.Flags != 0 || table.NoMD5 {
			t.Errorf("%q: %s, want %s, of %+v", test.text, got, test.want, table)
		}
	}
}

// Every name of a type and subtype is read as it is written.
func TestNames(t *testing.T) {
	for typ := range 5 {
		for subtype := range 256 {
			if typ == int(partition.Bootloader) || typ == int(partition.PartitionTable) {
				continue // their place is not in the file; see TestParseCSV
			}
			p := partition.Partition{Label: "p", Type: partition.Type(typ), Subtype: partition.Subtype(subtype), Offset: 0x10000, Size: 0x2000, Flags: partition.ReadOnly}
			if p.Type == partition.Data && (p.Subtype == partition.DataOTA || p.Subtype == partition.DataCoreDump) {
				p.Flags = partition.Encrypted
			}
			text := fmt.Sprintf("p,%v,%s,0x10000,8K,readonly", p.Type, p.Type.SubtypeName(p.Subtype))
			if p.Flags == partition.Encrypted {
				text = strings.Replace(text, "readonly", "encrypted", 1)
			}
			table, err := partition.ParseCSV([]byte(text), partition.Layout{})
			if err != nil || table.Partitions[0] != p {
				t.Errorf("%s: %+v, %v, want %+v", text, table, err, p)
			}
		}
	}
	for _, test := range []struct{ got, want string }{
		{partition.App.String(), "app"},
		{partition.Bootloader.String(), "bootloader"},
		{partition.PartitionTable.String(), "partition_table"},
		{partition.Type(0x40).String(), "64"},
		{partition.App.SubtypeName(partition.AppOTA0 + 12), "ota_12"},
		{partition.App.SubtypeName(0x21), "33"},
		{partition.Data.SubtypeName(partition.DataOTA), "ota"},
		{partition.Bootloader.SubtypeName(partition.BootloaderRecovery), "recovery"},
		{partition.PartitionTable.SubtypeName(2), "2"},
		{partition.Type(0x40).SubtypeName(0), "0"},
	} {
		if test.got != test.want {
			t.Errorf("%q, want %q", test.got, test.want)
		}
	}
}

// What is wrong with a file is said with its line.
func TestParseCSVErrors(t *testing.T) {
	const head = "# Name, Type\nnvs,data,nvs,,32K\n\n" // the next line is 4, the next offset 0x11000
	for _, test := range []struct {
		name, text string
		want       error
		line       int
	}{
		{"empty", "", partition.ErrCount, 1},
		{"comments alone", "# a\n\n# b\n", partition.ErrCount, 4},
		{"type empty", head + "a,,nvs,,4K", partition.ErrSyntax, 4},
		{"type missing", head + "a", partition.ErrSyntax, 4},
		{"type unknown", head + "a,nvs,nvs,,4K", partition.ErrSyntax, 4},
		{"type too large", head + "a,256,nvs,,4K", partition.ErrSyntax, 4},
		{"type negative", head + "a,-1,1,,4K", partition.ErrSyntax, 4},
		{"subtype of an app empty", head + "a,app,,,4K", partition.ErrSyntax, 4},
		{"subtype of another type", head + "a,app,nvs,,4K", partition.ErrSyntax, 4},
		{"subtype unknown", head + "a,app,ota_16,,4K", partition.ErrSyntax, 4},
		{"subtype of a custom type", head + "a,0x40,ota,,4K", partition.ErrSyntax, 4},
		{"subtype too large", head + "a,data,0x100,,4K", partition.ErrSyntax, 4},
		{"offset no number", head + "a,data,nvs,here,4K", partition.ErrSyntax, 4},
		{"offset as C has it", head + "a,data,nvs,0400000,4K", partition.ErrSyntax, 4},
		{"offset within the one before", head + "a,data,nvs,0x10000,4K", partition.ErrOverlap, 4},
		{"offset negative", head + "a,data,nvs,-0x20000,4K", partition.ErrOverlap, 4},
		{"offset in the table", "a,data,nvs,0x8000,12K", partition.ErrOverlap, 1},
		{"size empty", head + "a,data,fat,,", partition.ErrSyntax, 4},
		{"size a unit alone", head + "a,data,fat,,K", partition.ErrSyntax, 4},
		{"size beyond 32 bits", head + "a,data,fat,,4097M", partition.ErrSyntax, 4},
		{"size beyond 64 bits", head + "a,data,fat,,99999999999999999999", partition.ErrSyntax, 4},
		{"size times its unit beyond 64 bits", head + "a,data,fat,,9223372036854775807M", partition.ErrSyntax, 4},
		{"size of 4 GiB", head + "a,data,fat,,4096M", partition.ErrFlashSize, 4},
		{"end before the start", head + "a,data,fat,,-64K", partition.ErrSize, 4},
		{"end beyond 32 bits", head + "a,data,fat,0xFFFFF000,8K", partition.ErrFlashSize, 4},
		{"end beyond the flash", head + "a,data,fat,,4M", partition.ErrFlashSize, 4},
		{"flag unknown", head + "a,data,fat,,4K,secret", partition.ErrFlags, 4},
		{"flag in capitals", head + "a,data,fat,,4K,Encrypted", partition.ErrFlags, 4},
		{"flags apart", head + "a,data,fat,,4K,encrypted : readonly", partition.ErrFlags, 4},
		{"flag not allowed", head + "a,data,coredump,,4K,readonly", partition.ErrFlags, 4},
		{"misaligned", head + "a,data,fat,0x11001,4K", partition.ErrAlignment, 4},
		{"app of odd size", head + "a,app,test,,0x1001", partition.ErrAlignment, 4},
		{"otadata too large", head + "a,data,ota,,12K", partition.ErrSize, 4},
		{"NVS too small", head + "a,data,nvs,,8K", partition.ErrSize, 4},
		{"name twice", head + "nvs,data,fat,,4K", partition.ErrDuplicate, 4},
		{"name twice after cutting", "sixteen bytes..1,data,fat,,4K\r# \rsixteen bytes..12,data,fat,,4K", partition.ErrDuplicate, 3},
		{"name cut within a letter", head + "sixteen bytes..é,data,fat,,4K", partition.ErrLabel, 4},
		{"name with a NUL", head + "a\x00b,data,fat,,4K", partition.ErrLabel, 4},
		{"variable", head + "a,data,fat,$OFFSET,4K", partition.ErrSyntax, 4},
		{"not UTF-8", head + "a\xFF,data,fat,,4K", partition.ErrSyntax, 4},
		{"UTF-16", "\xFF\xFEa\x00,\x00", partition.ErrSyntax, 1},
		{"binary", string(testdata(t, good)), partition.ErrSyntax, 1},
		{"recovery nowhere", head + "a,bootloader,recovery,,", partition.ErrSyntax, 4},
		{"too many", strings.Repeat("\n", 5) + manyLines(95), partition.ErrCount, 5 + 95},
		{"far too many", manyLines(100_000), partition.ErrCount, 97},
	} {
		_, err := partition.ParseCSV([]byte(test.text), partition.Layout{FlashSize: 4 << 20})
		var format *partition.FormatError
		if !errors.Is(err, test.want) || !errors.As(err, &format) || format.Line != test.line || format.Offset != 0 {
			t.Errorf("%s: %v, want %v in line %d", test.name, err, test.want, test.line)
		} else if !strings.Contains(err.Error(), fmt.Sprintf("line %d:", test.line)) {
			t.Errorf("%s: %v does not name the line", test.name, err)
		}
	}
	if _, err := partition.ParseCSV([]byte(manyLines(94)), partition.Layout{}); err != nil {
		t.Error(err)
	}
	layout := partition.Layout{BootloaderOffset: 0x9000}
	if _, err := partition.ParseCSV([]byte("a,bootloader,primary,,"), layout); !errors.Is(err, partition.ErrSyntax) {
		t.Errorf("bootloader above the table: %v", err)
	}
}

func manyLines(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "p%d,data,fat,,4K\n", i)
	}
	return b.String()
}

// A table that CSV cannot hold is not written, rather than another one.
func TestMarshalCSVErrors(t *testing.T) {
	for _, label := range []string{"a,b", " a", "a ", "#a", "a\nb", "a\u2028b", "$HOME", "\xFF", "\u00A0a"} {
		table := partition.Table{Partitions: []partition.Partition{{Label: label, Offset: 0x10000, Size: 0x1000}}}
		_, err := table.MarshalCSV()
		wantError(t, fmt.Sprintf("%q", label), err, partition.ErrLabel, 12)
	}
	table := partition.Table{Partitions: []partition.Partition{{Label: "a", Flags: 4}}}
	_, err := table.MarshalCSV()
	wantError(t, "flags", err, partition.ErrFlags, 28)
}
