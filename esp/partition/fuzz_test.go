package partition_test

import (
	"errors"
	"reflect"
	"testing"

	"github.com/quarklink-go/quarklink/esp/partition"
)

// FuzzParse: whatever is read is written and read again as the same, and
// nothing else is read than what fits into the flash.
func FuzzParse(f *testing.F) {
	for _, file := range files {
		f.Add(testdata(f, file.name))
		f.Add(testdata(f, file.name)[:0x121])
	}
	f.Add(testdata(f, "everything.bin"))
	f.Fuzz(func(t *testing.T, b []byte) {
		const flashSize = 16 << 20
		table, err := partition.Parse(b, flashSize)
		if err != nil {
			var format *partition.FormatError
			if !errors.As(err, &format) || format.Offset < 0 || format.Offset > int64(len(b)) || format.Line != 0 {
				t.Fatalf("%#v", err)
			}
			return
		}
		for _, p := range table.Partitions {
			if uint64(p.Offset)+uint64(p.Size) > flashSize {
				t.Fatalf("%+v is beyond the flash", p)
			}
		}
		roundTrip(t, table)
		table.Check(partition.Layout{FlashSize: flashSize})
		if _, err := table.MarshalCSV(); err != nil && !errors.Is(err, partition.ErrLabel) && !errors.Is(err, partition.ErrFlags) {
			t.Fatal(err)
		}
	})
}

// FuzzParseCSV: whatever is read is a table that passes the checks, and is
// read again as the same from both of its forms.
func FuzzParseCSV(f *testing.F) {
	for _, name := range []string{"everything.csv", "everything.out.csv", files[0].name, files[3].name} {
		f.Add(testdata(f, name))
	}
	f.Add([]byte("\uFEFFa,app,ota_1,-0x10,+1_0K,readonly:encrypted,#\r\nb,data,,0x20000,-3M,:"))
	f.Fuzz(func(t *testing.T, b []byte) {
		layout := partition.Layout{BootloaderOffset: 0x1000, RecoveryOffset: 0x200000}
		table, err := partition.ParseCSV(b, layout)
		if err != nil {
			var format *partition.FormatError
			if !errors.As(err, &format) || format.Line < 1 || format.Line > len(b)+1 {
				t.Fatalf("%#v", err)
			}
			return
		}
		if err := table.Check(layout); err != nil {
			t.Fatal(err)
		}
		roundTrip(t, table)
		csv, err := table.MarshalCSV()
		if errors.Is(err, partition.ErrLabel) {
			return // cut after a space
		}
		if err != nil {
			t.Fatal(err)
		}
		if again, err := partition.ParseCSV(csv, layout); err != nil || !reflect.DeepEqual(again, table) {
			t.Fatalf("%s\n%+v, %v, want %+v", csv, again, err, table)
		}
	})
}

func roundTrip(t *testing.T, table *partition.Table) {
	t.Helper()
	b, err := table.MarshalBinary()
	if err != nil || len(b) != partition.TableSize {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	if again, err := partition.Parse(b, 0); err != nil || !reflect.DeepEqual(again, table) {
		t.Fatalf("%+v, %v, want %+v", again, err, table)
	}
}
