package quarklink

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/hex"
	"fmt"

	"github.com/quarklink-go/quarklink/keystore"
)

// DeviceID names a device: the SHA-256 of its enrolment public key's DER
// SubjectPublicKeyInfo, as 64 lower-case hexadecimal digits. It is not secret.
// For a public key in a file,
//
//	openssl pkey -pubin -in epk.pem -outform DER | sha256sum
//
// gives the same digits. The zero value names no device.
type DeviceID string

// ParseDeviceID checks that s is 64 lower-case hexadecimal digits and nothing
// else. The error comes with CodeInvalidParameter.
func ParseDeviceID(s string) (DeviceID, error) {
	invalid := func(why string) (DeviceID, error) {
		return "", &Error{Op: "parse DeviceID", Code: CodeInvalidParameter, Err: fmt.Errorf("%s", why)}
	}
	if len(s) != 64 {
		return invalid(fmt.Sprintf("%d characters, need 64", len(s)))
	}
	for i, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return invalid(fmt.Sprintf("character %d is %q, need 0-9 or a-f", i+1, c))
		}
	}
	return DeviceID(s), nil
}

// String returns the 64 digits.
func (id DeviceID) String() string { return string(id) }

// DeviceIDOf returns the DeviceID of the device whose enrolment public key is
// epk. A provisioning tool that reads a key off a secure element uses it; a
// device has it from [Client.DeviceID]. The key types are those of
// [keystore.Fingerprint].
func DeviceIDOf(epk crypto.PublicKey) (DeviceID, error) {
	digest, err := keystore.Fingerprint(epk)
	if err != nil {
		return "", &Error{Op: "DeviceID", Code: CodeInvalidParameter, Err: err}
	}
	return DeviceID(hex.EncodeToString(digest[:])), nil
}

// usableInTLS says so at once if the key store's public keys are of a kind that
// crypto/tls would refuse only when a connection is made.
func usableInTLS(public crypto.PublicKey) error {
	switch public.(type) {
	case *ecdsa.PublicKey, *rsa.PublicKey, ed25519.PublicKey:
		return nil
	}
	return fmt.Errorf("crypto/tls cannot use a key store with public keys of type %T: need *ecdsa.PublicKey, *rsa.PublicKey or ed25519.PublicKey (for an ATECC608: Options.ECDSA)", public)
}
