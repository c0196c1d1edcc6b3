package partition_test

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/quarklink-go/quarklink/esp/partition"
)

// quarkLink is where QuarkLink's ESP32-C3 projects have their table.
var quarkLink = partition.Layout{TableOffset: partition.QuarkLinkOffset, FlashSize: 4 << 20}

func testdata(tb testing.TB, name string) []byte {
	tb.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// What QuarkLink's tables hold, with real and with virtual eFuses.
var (
	realEFuse = []partition.Partition{
		{Label: "nvs", Type: partition.Data, Subtype: partition.DataNVS, Offset: 0xE000, Size: 0x8000},
		{Label: "otadata", Type: partition.Data, Subtype: partition.DataOTA, Offset: 0x16000, Size: 0x2000},
		{Label: "phy_init", Type: partition.Data, Subtype: partition.DataPHY, Offset: 0x18000, Size: 0x1000},
		{Label: "factory", Type: partition.App, Subtype: partition.AppFactory, Offset: 0x20000, Size: 0x140000},
		{Label: "ota_0", Type: partition.App, Subtype: partition.AppOTA0, Offset: 0x160000, Size: 0x140000},
		{Label: "ota_1", Type: partition.App, Subtype: partition.AppOTA0 + 1, Offset: 0x2A0000, Size: 0x140000},
		{Label: "nvs_key", Type: partition.Data, Subtype: partition.DataNVSKeys, Offset: 0x3E0000, Size: 0x1000, Flags: partition.Encrypted},
	}
	virtualEFuse = append(append(append([]partition.Partition{}, realEFuse[:3]...),
		partition.Partition{Label: "efuse_em", Type: partition.Data, Subtype: partition.DataEFuse, Offset: 0x19000, Size: 0x2000}),
		realEFuse[3:]...)
)

// files names every file of the test data, and what is in it.
var files = []struct {
	name  string
	want  []partition.Partition
	noMD5 bool
}{
	{"partition-table-esp32-c3-sb-fe.csv", realEFuse, false},
	{"partition-table-esp32-c3-sb-fe.bin", realEFuse, false},
	{"partition-table-esp32-c3-sb-fe.nomd5.bin", realEFuse, true},
	{"partition-table-esp32-c3-sb-fe-vefuse.csv", virtualEFuse, false},
	{"partition-table-esp32-c3-sb-fe-vefuse.bin", virtualEFuse, false},
	{"partition-table-esp32-c3-sb-fe-vefuse.nomd5.bin", virtualEFuse, true},
}

// Every file that Espressif's generator made, or was made from: what is in
// it, that it passes every check, and that we make the same bytes of it.
func TestVectors(t *testing.T) {
	for _, f := range files {
		t.Run(f.name, func(t *testing.T) {
			b := testdata(t, f.name)
			csv := filepath.Ext(f.name) == ".csv"
			var table *partition.Table
			var err error
			if csv {
				table, err = partition.ParseCSV(b, quarkLink)
			} else {
				table, err = partition.Parse(b, quarkLink.FlashSize)
			}
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(table.Partitions, f.want) || table.NoMD5 != f.noMD5 {
				t.Errorf("NoMD5 %v\n%+v, want\n%+v", table.NoMD5, table.Partitions, f.want)
			}
			if err := table.Check(quarkLink); err != nil {
				t.Error(err)
			}
			if csv {
				return // the binaries are held against it below
			}
			if again, err := table.MarshalBinary(); err != nil || !bytes.Equal(again, b) {
				t.Errorf("MarshalBinary differs from what was read: %v", err)
			}
			source := f.name[:len(f.name)-len(".bin")]
			if f.noMD5 {
				source = source[:len(source)-len(".nomd5")]
			}
			made, err := partition.ParseCSV(testdata(t, source+".csv"), quarkLink)
			if err != nil {
				t.Fatal(err)
			}
			made.NoMD5 = f.noMD5
			if again, err := made.MarshalBinary(); err != nil || !bytes.Equal(again, b) {
				t.Errorf("from %s.csv: MarshalBinary differs: %v", source, err)
			}
		})
	}
}

// The folder of test data holds what testdata holds; what it has besides is
// logged.
func TestVectorsFolder(t *testing.T) {
	dir := os.Getenv("QUARKLINK_VECTORS")
	if dir == "" {
		t.Skip("QUARKLINK_VECTORS is not set; TestVectors judges the same files")
	}
	named := make(map[string]bool)
	for _, f := range files {
		named[f.name] = true
		b, err := os.ReadFile(filepath.Join(dir, "partitions", f.name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b, testdata(t, f.name)) {
			t.Errorf("%s differs from its copy in testdata", f.name)
		}
	}
	entries, err := os.ReadDir(filepath.Join(dir, "partitions"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !named[e.Name()] {
			t.Logf("%s is new: no verdict in the table yet", e.Name())
		}
	}
}

// everything.csv uses all that the CSV format has. everything.bin is what the
// functions of gen_esp32part.py 1.5 make of it, everything.out.csv what they
// make of that.
func TestEverything(t *testing.T) {
	layout := partition.Layout{FlashSize: 16 << 20, BootloaderOffset: 0x1000, RecoveryOffset: 0x200000}
	table, err := partition.ParseCSV(testdata(t, "everything.csv"), layout)
	if err != nil {
		t.Fatal(err)
	}
	b, err := table.MarshalBinary()
	if err != nil || !bytes.Equal(b, testdata(t, "everything.bin")) {
		t.Errorf("MarshalBinary differs: %v", err)
	}
	read, err := partition.Parse(b, layout.FlashSize)
	if err != nil || !reflect.DeepEqual(read, table) {
		t.Errorf("%+v, %v, want %+v", read, err, table)
	}
	csv, err := table.MarshalCSV()
	if err != nil || string(csv) != string(testdata(t, "everything.out.csv")) {
		t.Errorf("MarshalCSV differs: %v\n%s", err, csv)
	}
	if again, err := partition.ParseCSV(csv, layout); err != nil || !reflect.DeepEqual(again, table) {
		t.Errorf("read back: %+v, %v, want %+v", again, err, table)
	}
}
