package partition_test

import (
	"bytes"
	"errors"
	"fmt"
	"log"
	"os"

	"github.com/quarklink-go/quarklink/esp/partition"
)

// Find the inactive slot of a device in a dump of its flash.
func ExampleRead() {
	table, err := os.ReadFile("testdata/partition-table-esp32-c3-sb-fe.bin")
	if err != nil {
		log.Fatal(err)
	}
	flash := append(make([]byte, partition.QuarkLinkOffset), table...)

	layout := partition.Layout{TableOffset: partition.QuarkLinkOffset, FlashSize: 4 << 20}
	t, err := partition.Read(bytes.NewReader(flash), layout)
	if err != nil {
		log.Fatal(err)
	}
	if err := t.Check(layout); err != nil {
		log.Fatal(err)
	}
	slot, ok := t.Find(partition.App, partition.AppOTA0+1)
	fmt.Printf("%s at 0x%x, %d KiB: %v\n", slot.Label, slot.Offset, slot.Size>>10, ok)
	keys, ok := t.FindLabel("nvs_key")
	fmt.Printf("%s at 0x%x, encrypted %v: %v\n", keys.Label, keys.Offset, keys.Flags&partition.Encrypted != 0, ok)
	// Output:
	// ota_1 at 0x2a0000, 1280 KiB: true
	// nvs_key at 0x3e0000, encrypted true: true
}

// Make the table that is flashed from the CSV file of a project.
func ExampleParseCSV() {
	const project = `# Name,   Type, SubType,  Offset,  Size,  Flags
nvs,      data, nvs,      ,        32K,
otadata,  data, ota,      ,        8K,
factory,  app,  factory,  ,        1280K,
ota_0,    app,  ota_0,    ,        1280K,
ota_1,    app,  ota_1,    ,        -0x3E0000,
nvs_key,  data, nvs_keys, ,        4K,    encrypted
`
	t, err := partition.ParseCSV([]byte(project), partition.Layout{TableOffset: partition.QuarkLinkOffset, FlashSize: 4 << 20})
	if err != nil {
		log.Fatal(err)
	}
	binary, err := t.MarshalBinary()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(binary), "bytes")
	csv, err := t.MarshalCSV()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Print(string(csv))
	// Output:
	// 3072 bytes
	// # ESP-IDF Partition Table
	// # Name, Type, SubType, Offset, Size, Flags
	// nvs,data,nvs,0xe000,32K,
	// otadata,data,ota,0x16000,8K,
	// factory,app,factory,0x20000,1280K,
	// ota_0,app,ota_0,0x160000,1280K,
	// ota_1,app,ota_1,0x2a0000,1280K,
	// nvs_key,data,nvs_keys,0x3e0000,4K,encrypted
}

// Build a table from nothing. What is wrong with it is told by kind and place.
func ExampleTable_Check() {
	t := partition.Table{Partitions: []partition.Partition{
		{Label: "nvs", Type: partition.Data, Subtype: partition.DataNVS, Offset: 0x9000, Size: 0x8000},
		{Label: "factory", Type: partition.App, Subtype: partition.AppFactory, Offset: 0x10000, Size: 0x100000},
	}}
	err := t.Check(partition.Layout{})
	fmt.Println(err)
	fmt.Println(errors.Is(err, partition.ErrOverlap))

	t.Partitions[0].Size = 0x7000
	fmt.Println(t.Check(partition.Layout{}))
	// Output:
	// partition: offset 0x24: overlap: "factory" is at 0x10000, within "nvs" at 0x9000 to 0x10fff
	// true
	// <nil>
}
