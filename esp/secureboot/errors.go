package secureboot

import (
	"errors"

	"github.com/quarklink-go/quarklink/esp/secureboot/internal/sigblock"
)

// The verdicts on an image that is not to run. Each is tried in this order,
// and an error of [Verifier.Verify] wraps the first that holds.
//
// Every verdict has a method FirmwareCode() int with the result code of
// quarklink-client that stands for it, to be found by shape:
//
//	var coded interface{ FirmwareCode() int }
//	if errors.As(err, &coded) { … coded.FirmwareCode() … }
//
// An error without it says nothing of the image: it could not be read, or
// the Verifier is not complete.
var (
	// ErrImage: not an image for this chip or its revision, or a damaged one.
	// A sentinel of package image says what is wrong. Code 22.
	ErrImage error = sigblock.ErrImage

	// ErrNoSignature: the image is sound, but there is no signature block
	// where one belongs. Code 21.
	ErrNoSignature error = &sigblock.Verdict{Code: 21, Text: "image is not signed for Secure Boot V2"}

	// ErrSignature: there are signature blocks, but none is valid under a
	// trusted key and a scheme of the chip and of the Verifier. Code 20.
	ErrSignature error = &sigblock.Verdict{Code: 20, Text: "no valid signature by a trusted key"}

	// ErrSecureVersion: the signature is good, but the image's secure
	// version is below the anti-rollback floor. Code 22.
	ErrSecureVersion error = &sigblock.Verdict{Code: 22, Text: "secure version below the anti-rollback floor"}
)

// ErrSecureBootV1 accompanies ErrNoSignature when the image carries a
// signature of the original ESP32's Secure Boot V1, which no digest of a V2
// key can verify.
var ErrSecureBootV1 = errors.New("image is signed for Secure Boot V1")

// What is wrong with a [Verifier] or its chip. None is a verdict on an image.
var (
	// ErrNoTrustedKey: there are no trusted digests.
	ErrNoTrustedKey = errors.New("secureboot: Verifier.Trusted is empty: set the digests of the keys whose images may run")

	// ErrNoScheme: there are no signature schemes.
	ErrNoScheme = errors.New("secureboot: Verifier.Schemes is empty: set secureboot.RSA() or sbecdsa.Scheme(), whichever the device is configured for")

	// ErrNoSecureBootV2: the chip is an original ESP32 below revision v3.0
	// (ECO 3), which knows Secure Boot V1 only.
	ErrNoSecureBootV2 = errors.New("secureboot: an ESP32 below revision v3.0 (ECO 3) has no Secure Boot V2")
)
