// Package nvs reads and writes ESP-IDF's non-volatile storage: the partition
// of type data, subtype nvs, in which an ESP32 keeps its settings, plain or
// encrypted with AES-XTS. It works on a chip's flash and on an image in a file.
//
// [Open] opens a partition for writing over a [flash.NOR], [OpenReader] one to be
// read only. Values are named by namespace and key, and are integers, strings
// or blobs:
//
//	p, err := nvs.Open(flash, nvs.Options{Keys: keys})
//	ns, err := p.Namespace("quarklink")
//	port, err := nvs.GetInt[uint16](ns, "port")
//	err = ns.SetString("endpoint", "fabric.example.com")
//
// A [Namespace] also has the methods of store.Creator, so that a device's
// records and its software keys can live in an encrypted partition.
//
// # Power cuts
//
// Everything stored survives a power cut at any instant, also one in the
// middle of programming or erasing, and one during the recovery from the one
// before: a key then reads as its old value or as its new one. Open finds what
// was half done and finishes or undoes it; OpenReader looks past it. (ESP-IDF
// 5.3.1 has instants at which an overwritten blob is lost. What it left behind
// is read here as the old value.)
//
// # Erased values are wiped
//
// ESP-IDF 5.3.1 marks an overwritten or erased value in the page's table of
// states and leaves its bytes readable until the page is collected. This
// package then programs the bytes to zeros, which NOR flash can do without an
// erase and which ESP-IDF never looks at; Open does the same for what it finds
// left behind. [Options.LeaveErased] turns that off.
//
// # One value under a key
//
// Setting a value replaces the one that is there, whatever its type. ESP-IDF
// does the same from v5.2 on, unless CONFIG_NVS_LEGACY_DUP_KEYS_COMPATIBILITY
// gives back what it did before: a value of another type stays beside the new
// one, and each is found by its type. What such a build left is read here as
// it reads it, and goes when the key is set. Up to v5.3.1 a blob still left a
// value of another type in place, and v5.5 no longer does: this package
// follows v5.5.
//
// # Damage
//
// A power cut never looks like damage. What does, a failed checksum in an
// entry that was completely written or a page that cannot be read although it
// holds values, is left alone and copied when its page is collected. As long
// as there is some, a key that is not found is [ErrDamaged] and not
// fs.ErrNotExist, and nothing is created, because the key may be in what
// cannot be read: a device must not make itself a new identity for a flipped
// bit. Everything else still reads and can be set. [Partition.Check] lists the
// damage, [Partition.DiscardDamage] gives it up. A single wrong bit in the
// header of a page is no damage: it is corrected.
//
// Keys that are wrong are told apart from damage ([ErrKeys]), and nothing is
// written.
//
// # Format
//
// Pages of 4096 bytes: a header of 32, a table of two bits for each entry,
// 126 entries of 32 bytes. An item is one entry, or one followed by those that
// hold its data; a blob is chunks, each within a page, and an index. Integers
// are little-endian. Only the entries are encrypted, each for itself with its
// offset in the partition as the tweak. One page is always free, for the page
// that is being collected.
//
// Facts: ESP-IDF v5.3.1 (components/nvs_flash/src: nvs_page.cpp,
// nvs_pagemanager.cpp, nvs_storage.cpp, nvs_types.cpp,
// nvs_encrypted_partition.cpp) and what its library and its generator wrote.
// v5.5 has the same format.
package nvs
