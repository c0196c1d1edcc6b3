package secureboot

import "errors"

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
// the Verifier lacks a key.
var (
	// ErrImage: not an image for this chip, or a damaged one. A sentinel of
	// package image says what is wrong. Code 22.
	ErrImage error = &verdict{22, "not a valid firmware image"}

	// ErrNoSignature: the image is sound, but there is no signature block
	// where one belongs. Code 21.
	ErrNoSignature error = &verdict{21, "image is not signed for Secure Boot V2"}

	// ErrSignature: there are signature blocks, but none is valid under a
	// trusted key. Code 20.
	ErrSignature error = &verdict{20, "no valid signature by a trusted key"}

	// ErrSecureVersion: the signature is good, but the image's secure
	// version is below the anti-rollback floor. Code 22.
	ErrSecureVersion error = &verdict{22, "secure version below the anti-rollback floor"}
)

// ErrSecureBootV1 accompanies ErrNoSignature when the image carries a
// signature of the original ESP32's Secure Boot V1, which no digest of a V2
// key can verify.
var ErrSecureBootV1 = errors.New("image is signed for Secure Boot V1")

// ErrNoTrustedKey is the error of a [Verifier] without trusted digests.
var ErrNoTrustedKey = errors.New("secureboot: Verifier.Trusted is empty: set the digests of the keys whose images may run")

type verdict struct {
	code int
	text string
}

func (v *verdict) Error() string { return v.text }

// FirmwareCode returns the result code of quarklink-client.
func (v *verdict) FirmwareCode() int { return v.code }
