// Package otadata reads and writes ESP-IDF's otadata: the partition of two sectors
// that says which application an ESP32's bootloader starts.
//
// Each sector holds one [Entry]: a sequence number, whose remainder names the slot
// (ota_0, ota_1, …), and a state. The larger number of those that count decides.
// [Data.Select] decides exactly as the bootloader does and says why, [Boot] also
// writes what the bootloader writes back and goes on to the next slot if an image
// does not verify. [SetBoot], [Confirm] and [Rollback] are what an application does;
// the bytes that they write are those of ESP-IDF's esp_ota_ops.c.
//
// # Rollback
//
// A bootloader built with CONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE gives a new
// application one start: it finds [New], makes it [PendingVerify], and at the next
// start makes that [Aborted] unless the application has confirmed itself ([Valid])
// in between. Without it states stay [Undefined] and nothing is rolled back by
// itself. Either kind passes over an entry that is [Invalid] or [Aborted].
//
// # Power cuts
//
// A sector is erased before it is written. SetBoot writes the sector that does not
// count, so that the other decides until it is done. Confirm and Rollback rewrite the
// one that counts, in place, as ESP-IDF does: a cut in between loses it, and the
// entry before it decides, or the factory application, as after a rollback.
//
// Facts: ESP-IDF v5.3.1 (bootloader_utility.c, bootloader_common_loader.c,
// esp_flash_partitions.h, esp_ota_ops.c); v5.5 does the same. The comparison of
// sequence numbers does not wrap; see SetBoot.
package otadata
