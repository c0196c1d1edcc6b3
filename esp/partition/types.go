package partition

import "strconv"

// Type is what a partition holds in general (esp_partition_type_t). Numbers
// without a name are valid: 0x40 to 0xFE are for applications' own use.
type Type uint8

// The types that have a name.
const (
	App            Type = 0x00 // an image, see package image
	Data           Type = 0x01
	Bootloader     Type = 0x02 // since ESP-IDF v5.4
	PartitionTable Type = 0x03 // since ESP-IDF v5.4
)

// Subtype is what a partition holds in particular (esp_partition_subtype_t).
// What it means depends on the Type, as the names of the constants say.
// Numbers without a name are valid.
type Subtype uint8

// The subtypes that have a name.
const (
	AppFactory Subtype = 0x00 // runs if otadata chooses no other
	AppOTA0    Subtype = 0x10 // AppOTA0+n is ota_n, n from 0 to 15
	AppTest    Subtype = 0x20
	AppTEE0    Subtype = 0x30 // AppTEE0+n is tee_n, n 0 or 1

	DataOTA       Subtype = 0x00 // otadata: which application runs
	DataPHY       Subtype = 0x01
	DataNVS       Subtype = 0x02 // see package nvs
	DataCoreDump  Subtype = 0x03
	DataNVSKeys   Subtype = 0x04
	DataEFuse     Subtype = 0x05 // virtual eFuses
	DataUndefined Subtype = 0x06 // what an empty field of a CSV file means
	DataESPHTTPD  Subtype = 0x80
	DataFAT       Subtype = 0x81
	DataSPIFFS    Subtype = 0x82
	DataLittleFS  Subtype = 0x83
	DataTEEOTA    Subtype = 0x90

	BootloaderPrimary  Subtype = 0x00
	BootloaderOTA      Subtype = 0x01
	BootloaderRecovery Subtype = 0x02

	PartitionTablePrimary Subtype = 0x00
	PartitionTableOTA     Subtype = 0x01
)

// typeNames and subtypeNames are the keywords of gen_esp32part.py.
var typeNames = []struct {
	id   Type
	name string
}{
	{App, "app"},
	{Data, "data"},
	{Bootloader, "bootloader"},
	{PartitionTable, "partition_table"},
}

var subtypeNames = []struct {
	of   Type
	id   Subtype
	name string
}{
	{App, AppFactory, "factory"},
	{App, AppOTA0 + 0, "ota_0"},
	{App, AppOTA0 + 1, "ota_1"},
	{App, AppOTA0 + 2, "ota_2"},
	{App, AppOTA0 + 3, "ota_3"},
	{App, AppOTA0 + 4, "ota_4"},
	{App, AppOTA0 + 5, "ota_5"},
	{App, AppOTA0 + 6, "ota_6"},
	{App, AppOTA0 + 7, "ota_7"},
	{App, AppOTA0 + 8, "ota_8"},
	{App, AppOTA0 + 9, "ota_9"},
	{App, AppOTA0 + 10, "ota_10"},
	{App, AppOTA0 + 11, "ota_11"},
	{App, AppOTA0 + 12, "ota_12"},
	{App, AppOTA0 + 13, "ota_13"},
	{App, AppOTA0 + 14, "ota_14"},
	{App, AppOTA0 + 15, "ota_15"},
	{App, AppTest, "test"},
	{App, AppTEE0 + 0, "tee_0"},
	{App, AppTEE0 + 1, "tee_1"},
	{Data, DataOTA, "ota"},
	{Data, DataPHY, "phy"},
	{Data, DataNVS, "nvs"},
	{Data, DataCoreDump, "coredump"},
	{Data, DataNVSKeys, "nvs_keys"},
	{Data, DataEFuse, "efuse"},
	{Data, DataUndefined, "undefined"},
	{Data, DataESPHTTPD, "esphttpd"},
	{Data, DataFAT, "fat"},
	{Data, DataSPIFFS, "spiffs"},
	{Data, DataLittleFS, "littlefs"},
	{Data, DataTEEOTA, "tee_ota"},
	{Bootloader, BootloaderPrimary, "primary"},
	{Bootloader, BootloaderOTA, "ota"},
	{Bootloader, BootloaderRecovery, "recovery"},
	{PartitionTable, PartitionTablePrimary, "primary"},
	{PartitionTable, PartitionTableOTA, "ota"},
}

// String returns the name that Espressif's tools use, such as "data", or the
// number in decimal, as they write it.
func (t Type) String() string {
	for _, n := range typeNames {
		if n.id == t {
			return n.name
		}
	}
	return strconv.Itoa(int(t))
}

// SubtypeName returns the name that Espressif's tools use for a subtype of t,
// such as "ota_0" or "nvs", or the number in decimal, as they write it.
func (t Type) SubtypeName(s Subtype) string {
	for _, n := range subtypeNames {
		if n.of == t && n.id == s {
			return n.name
		}
	}
	return strconv.Itoa(int(s))
}

// Flags are a partition's flags. Bits without a name are kept.
type Flags uint32

// The flags that have a name.
const (
	Encrypted Flags = 1 << 0 // encrypted if flash encryption is on; applications, otadata and NVS keys are anyway
	ReadOnly  Flags = 1 << 1

	namedFlags = Encrypted | ReadOnly
)

var flagNames = []struct {
	flag Flags
	name string
}{
	{Encrypted, "encrypted"},
	{ReadOnly, "readonly"},
}
