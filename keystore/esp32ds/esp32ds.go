// Package esp32ds keeps a device's keys in the Digital Signature peripheral of
// an ESP32-S2, S3, C3 or later chip: RSA private keys that only the chip can
// use.
//
// The peripheral takes a private key as encrypted parameters, [Params], which
// lie in flash for anybody to see, and decrypts them inside the hardware with a
// key derived from an eFuse key block that software can no longer read. It
// raises a block to the private exponent and returns the result; padding is
// software's, and so is checking: a [Store] compares every signature with the
// public key before it hands it out, because one faulty exponentiation can give
// the private key away.
//
// # Initialisation
//
// A key pair has to exist in clear before it can be encrypted, so the device
// cannot make keys as it goes. [Store.Initialise] makes both, the enrolment key
// and the device key, stores their parameters, and then burns the eFuse key
// block that opens them. Each initialisation uses one of the chip's six key
// blocks for good, and Secure Boot and flash encryption need some of the same
// six; [Store.InitialisationsLeft] says how many remain.
//
// The parameters exist in flash only: erasing the flash loses the keys and with
// them the DeviceID. Initialise notices ([ErrIdentityLost]) and makes a new
// identity only when it is told to.
//
// A host can do the same without the device: [Encrypt] makes parameters,
// [EncodeRecord] the record to be flashed, and espefuse burns the key block:
//
//	espefuse.py burn_key BLOCK_KEY5 hmac.bin HMAC_DOWN_DIGITAL_SIGNATURE
//
// # Hardware
//
// A program gives the package its chip as two interfaces: [Peripheral], one
// method that is ESP-IDF's esp_ds_sign, and [EFuse]. Package dstest has a
// software model of both.
//
// Chips: SOC_DIG_SIGN_SUPPORTED and SOC_RSA_MAX_BIT_LEN of ESP-IDF's soc_caps.h.
// The ESP32-C2 and C61 have no RSA accelerator and no such peripheral.
//
// Formats and error codes are those of ESP-IDF v5.3 (esp_ds.h, esp_ds_err.h,
// esp_efuse.h) and of the chapter "Digital Signature" in the chips' technical
// reference manuals.
package esp32ds
