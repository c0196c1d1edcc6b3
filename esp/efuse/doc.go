// Package efuse knows the eFuses of the ESP32 family: their blocks and fields,
// how keys are stored in them, what protects what, and what a burn would do. It
// reads dumps and computes; it burns nothing. The chips are the original ESP32,
// ESP32-S2, C2, C3, S3, C6 and H2.
//
// # Reading
//
// A [State] holds all blocks as software reads them. [ParseRaw], [ParseEmulator]
// and [ParseJSON] make one of a dump. [State.Value] and [State.Bytes] read a field
// by the name that espefuse gives it, [State.Key] the state of a key block.
//
// # Burning
//
// A bit goes from 0 to 1 and never back. A [Batch] collects what is wanted;
// [State.Burns] checks all of it and says what is to be burnt, block by block, and
// [State.Burn] what the chip reads afterwards. Nothing is half checked: a batch
// with one impossible wish is refused whole. Refused are
//
//   - a field whose bit of WR_DIS is burnt, and a block that is read-protected and
//     may hold something ([ErrProtected]);
//   - a key for a block that is not free, and a second write to a block that
//     carries a Reed-Solomon code: all but BLOCK0 on every chip but the original
//     ESP32 ([ErrUsed]);
//   - a value without a bit that is burnt already ([ErrBurnt]);
//   - on the original ESP32, Secure Boot V2 with the coding scheme 3/4
//     ([ErrCodingScheme]).
//
// A wish that is fulfilled already is no error, except for a key: nobody can tell
// which one a protected block holds.
//
// # Byte order
//
// Blocks and fields are bytes as the chip reads them, least significant first. A
// flash-encryption key lies there in the reverse order of its file, a Secure Boot
// digest or an HMAC key in the same order ([Batch.SetKey]).
//
// # How sure this is
//
// Tests compare ESP32 and ESP32-C3 with what espefuse burnt and read, block by
// block and field by field. The tables of the other chips follow ESP-IDF's
// esp_efuse_table.csv and have not met a tool or a chip. They hold what matters to
// security and identity, not calibration.
//
// The package is fit for TinyGo and imports nothing of this module.
package efuse
