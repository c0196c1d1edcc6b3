// Package partition reads, checks and makes the partition tables of the ESP32
// family: where in flash the applications, the NVS and the other data are.
//
// A table is one flash sector, by default at 0x8000 and at 0xD000 in
// QuarkLink's projects. It holds up to 95 entries of 32 bytes, as a rule an
// MD5 checksum of them, and an end marker. All integers are little-endian.
//
// [Read] and [Parse] take a table and refuse what the bootloader refuses.
// [Table.Check] refuses what Espressif's generator refuses: partitions that
// overlap, are misaligned or have one name twice. A table that came from
// elsewhere deserves both. [ParseCSV] reads the generator's source files and
// [Table.MarshalBinary] makes the same bytes of them as the generator does;
// [Table.MarshalCSV] goes the other way.
//
// # What protects which byte
//
// The MD5 covers the entries, and any change of one bit in them or in the MD5
// is noticed. It covers neither its own fill (bytes 2 to 15 of its entry), nor
// what follows the first 4 bytes of the end marker: those may change without
// notice. A table without MD5 ([Table.NoMD5]) has nothing but a magic number
// in each entry, and so has a table whose tail was erased: the bootloader
// takes either, an application only if it was built so
// (CONFIG_PARTITION_TABLE_MD5). Who wants the MD5 has to look at NoMD5.
//
// An MD5 is no security, and Secure Boot V2 does not sign the table: what it
// points at is verified, not where it points.
//
// # Stricter than Espressif
//
// Parse also refuses a table without any partition, which is what erased
// flash looks like; an entry after the MD5, which the bootloader counts and
// the application ignores; and an end beyond 4 GiB, where the bootloader's
// addition overflows. ParseCSV expands no environment variables, and refuses
// a '$' rather than take it literally; it refuses a file without partitions,
// and two names that are one after they were cut to 16 bytes.
//
// Facts: ESP-IDF v5.3.1 (flash_partitions.c, partition.c); gen_esp32part.py
// 1.5, whose rules are those of v5.3.1 and the types bootloader and
// partition_table, the TEE's subtypes and the least size of an NVS besides.
package partition
