// Package image reads and builds firmware images of the ESP32 family: the
// files that esptool's elf2image makes and ESP-IDF's bootloader starts.
//
// An image is a 24-byte header, up to 16 segments (8 bytes of header, then
// data), a one-byte XOR checksum of the data at the end of a 16-byte block
// and, as a rule, the SHA-256 of everything before it. The first segment of
// an application starts with its descriptor, [App]. All integers are
// little-endian. A Secure Boot signature follows the image; package
// secureboot reads, checks and makes it.
//
// [Read] takes the whole image apart and checks it as the bootloader does.
// [Builder] makes one from segments, laying them out as elf2image does;
// [Minimal] makes the smallest one, for test harnesses.
//
// # What protects which byte
//
// The checksum covers the data of the segments alone. The header, the
// headers of the segments and the fill before the checksum are covered by
// the appended SHA-256, if there is one, and a wrong SHA-256 is reported by
// [Image.HashMatches], not refused by Read: the bootloader ignores it under a
// valid signature. None of this is security: only a signature is.
//
// Facts: ESP-IDF v5.3.1 (esp_app_format.h, esp_image_format.c), esptool 4.11.
package image
