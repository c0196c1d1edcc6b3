// Package secureboot verifies the signatures of Espressif's Secure Boot V2:
// RSA-3072-PSS, and ECDSA on P-192, P-256 and P-384. Package sbsign makes them.
//
// A signed image is followed, at the next multiple of 4096 bytes, by a sector
// with one to three signature blocks. A chip trusts keys by their [Digest],
// which it holds in eFuse, and runs an image if one block is valid under one
// trusted key. [Verifier] decides the same for an image in a file, in memory
// or in flash, before it is activated; it satisfies quarklink's Verifier by
// shape. [Signatures] says who signed an image.
//
// # Schemes
//
// A Verifier accepts the signature schemes that it is given: [RSA], and ECDSA
// from package sbecdsa. A device is configured for one, and each scheme brings
// its own code, so that a device with RSA has no elliptic curve in its memory.
// Whatever it is given, it refuses what the chip does not have, by ESP-IDF's
// SOC_SECURE_BOOT_V2_RSA, SOC_SECURE_BOOT_V2_ECC and SOC_ECDSA_SUPPORT_CURVE_P384:
//
//	ESP32 (from revision v3.0), ESP32-S2, S3, C3   RSA
//	ESP32-C2, C61                                  ECDSA P-192, P-256
//	ESP32-C6, H2                                   RSA, ECDSA P-192, P-256
//	ESP32-C5, P4                                   RSA, ECDSA P-192, P-256, P-384
//
// P-384 needs a version of ESP-IDF after 5.3.1 that has
// CONFIG_SECURE_BOOT_ECDSA_KEY_LEN_384_BITS.
//
// # Verdict
//
// The verdict is that of ESP-IDF v5.3.1 with these digests in eFuse, but
// stricter in what the chips' ROM, later versions of ESP-IDF or common sense
// refuse too: a PSS salt must have 32 bytes, a block's version must fit its
// content, its precomputed values must be right, the image must be for the
// chip, and on the original ESP32 only block 0 counts. A file that ends within
// the signature sector is refused even after a valid block, where a chip reads
// whatever follows in flash. An application descriptor whose lowest eFuse block
// revision is 65535 asks for that revision, as in v5.3.1; later versions take it
// for unset. The block's own copy of the image digest is ignored, as it is on
// the chip, and so is a wrong SHA-256 appended to the image: the signature
// covers it.
//
// ESP-IDF v5.5 and later versions judge signatures alike, but for one thing in
// which this package is as strict as they are: a block's version has to fit.
//
// # What nothing covers
//
// Changing any other bit of a signed file makes it invalid, but these bytes
// may change without notice:
//
//   - the last 16 bytes of each signature block (offset 1200 to 1215);
//   - the rest of the sector, where there is no block: unused blocks, and the
//     448 bytes after the third;
//   - everything after the sector.
//
// Nothing but the CRC, which anybody can compute, covers the image digest in a
// block, its reserved bytes, and in a block of ECDSA what follows the
// signature; and an ECDSA signature (r, s) may become (r, -s). None of it
// changes the verdict.
//
// A second and a third block protect nothing as long as another is valid.
package secureboot
