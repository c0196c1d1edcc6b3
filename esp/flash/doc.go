// Package flash is serial NOR flash as ESP32 chips have it, for all packages that
// work on it: one interface, [NOR], and what implements it: a chip's flash behind
// three functions of ESP-IDF, [Memory], a [File] with a dump, a [Region] of
// another flash and, on Linux, an MTD character device ([OpenMTD]).
//
// NOR flash clears bits when it is programmed and sets them only by erasing a
// whole sector. What is written over without an erase becomes the AND of old and
// new, and every implementation here behaves like that, so that a mistake shows
// before it reaches a chip.
//
// [Encrypted] is an encrypted flash as the program on the chip sees it, so that
// everything above works on the dump of one with its key. The schemes are those of
// espsecure 4.11 (encrypt_flash_data).
//
// Package flashtest has a model with power cuts, wear and defects.
package flash
