package esp32ds

import (
	"errors"
	"fmt"
)

// Error is an esp_err_t: what ESP-IDF's functions return other than ESP_OK. A
// [Peripheral] or [EFuse] in front of ESP-IDF returns Error(code), so that its
// failures can be told apart with errors.Is.
type Error int32

// The codes that the functions behind [Peripheral] and [EFuse] return
// (esp_err.h, esp_ds_err.h).
const (
	ErrFail           Error = -1     // ESP_FAIL: among others, an eFuse reads back other than burned
	ErrNoMem          Error = 0x101  // ESP_ERR_NO_MEM
	ErrInvalidArg     Error = 0x102  // ESP_ERR_INVALID_ARG: among others, rsa_length is none that the chip knows
	ErrInvalidState   Error = 0x103  // ESP_ERR_INVALID_STATE: among others, the eFuse key block is in use
	ErrTimeout        Error = 0x107  // ESP_ERR_TIMEOUT
	ErrHMACFail       Error = 0xc001 // ESP_ERR_HW_CRYPTO_DS_HMAC_FAIL: the eFuse key block is not for digital signatures
	ErrInvalidKey     Error = 0xc002 // ESP_ERR_HW_CRYPTO_DS_INVALID_KEY: the peripheral got no key from the HMAC peripheral
	ErrInvalidDigest  Error = 0xc004 // ESP_ERR_HW_CRYPTO_DS_INVALID_DIGEST: parameters altered, or made for another eFuse key
	ErrInvalidPadding Error = 0xc005 // ESP_ERR_HW_CRYPTO_DS_INVALID_PADDING: parameters made wrong
)

var errorTexts = []struct {
	code Error
	text string
}{
	{ErrFail, "ESP_FAIL"},
	{ErrNoMem, "ESP_ERR_NO_MEM"},
	{ErrInvalidArg, "ESP_ERR_INVALID_ARG"},
	{ErrInvalidState, "ESP_ERR_INVALID_STATE"},
	{ErrTimeout, "ESP_ERR_TIMEOUT"},
	{ErrHMACFail, "ESP_ERR_HW_CRYPTO_DS_HMAC_FAIL: the eFuse key block is not for digital signatures"},
	{ErrInvalidKey, "ESP_ERR_HW_CRYPTO_DS_INVALID_KEY: the HMAC peripheral gave no key"},
	{ErrInvalidDigest, "ESP_ERR_HW_CRYPTO_DS_INVALID_DIGEST: the parameters are damaged or belong to another eFuse key"},
	{ErrInvalidPadding, "ESP_ERR_HW_CRYPTO_DS_INVALID_PADDING: the parameters were made wrong"},
}

// Error returns the code's name in ESP-IDF and what it means here.
func (e Error) Error() string {
	for _, known := range errorTexts {
		if known.code == e {
			return known.text
		}
	}
	return fmt.Sprintf("esp_err_t 0x%x", int32(e))
}

var (
	// ErrBusy is what a [Peripheral] that cannot wait returns while something
	// else uses the hardware: the caller tries again until its time-out.
	ErrBusy = errors.New("the Digital Signature peripheral is busy")
	// ErrWrongSignature says that the peripheral's result was not the signature
	// and was thrown away: a fault, or parameters of another key. Trying again
	// is safe.
	ErrWrongSignature = errors.New("the chip computed a wrong signature, which is not handed out")
	// ErrIdentityLost says that the chip was initialised before but the
	// parameters of its keys are gone or useless, as after erasing the flash.
	// The old identity cannot be recovered; see InitialiseOptions.NewIdentity.
	ErrIdentityLost = errors.New("the parameters of this chip's keys are lost, and its identity with them")
	// ErrNoKeyBlock says that no eFuse key block is free: the chip cannot be
	// initialised any more.
	ErrNoKeyBlock = errors.New("no free eFuse key block")
	// ErrReadProtection says that the chip's read protection can no longer be
	// set (RD_DIS is write-protected, as Secure Boot leaves it), so that a key
	// could not be hidden from software.
	ErrReadProtection = errors.New("eFuse read protection is locked: initialise before Secure Boot is enabled, or enable it with CONFIG_SECURE_BOOT_V2_ALLOW_EFUSE_RD_DIS")
	// ErrVirtualEFuse says that the eFuses are emulated: the peripheral takes
	// its key from the real ones.
	ErrVirtualEFuse = errors.New("the eFuses are virtual: the Digital Signature peripheral needs real ones")
)
