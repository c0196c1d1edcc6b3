// Package keystore says what quarklink asks of whatever holds a device's
// private keys: software, an ATECC608, the Digital Signature peripheral of an
// ESP32, a TPM 2.0, or anything else that yields a [crypto.Signer].
//
// A private key never leaves its store: no interface here exports one. The one
// method of [KeyStore] is all that a store must have; what more it can do it
// says with a further interface that is found by type assertion: [Generator]
// for a store that makes keys, [Rotator] for one that can replace the Device
// key, [Restricted] for a signer that cannot make every signature of its key
// type. The checks of package keystoretest say whether a store keeps what is
// promised here.
package keystore

import (
	"context"
	"crypto"
	"fmt"
	"io/fs"
)

// Role names one of the two keys of a device.
type Role string

const (
	// Enrolment is the key pair ESK/EPK: the device's identity. The DeviceID
	// is the SHA-256 of its public half.
	Enrolment Role = "esk"
	// Device is the key pair DSK/DPK, which enrolment certifies and the device
	// shows to its IoT hub.
	Device Role = "dsk"
)

// KeyStore gives access to the device's keys. Implementations are safe for
// concurrent use.
//
// A call whose context ends returns promptly with the context's error, unless it
// succeeds.
type KeyStore interface {
	// Signer returns the key of that role; the store decides how it is held.
	// An absent key is fs.ErrNotExist, and that is the only case in which a
	// caller may make one: a damaged key, or a chip that does not answer, is
	// any other error. A key that is damaged for good, so that no secret and no
	// patience will open it, is store.ErrDamaged: a Device key of which a store
	// says so is replaced, if the store is a [Rotator].
	//
	// A store that has one key for everything returns it for both roles.
	//
	// The signer's Public is cached, so that it cannot fail, and the same on
	// every call and after every restart. Its Sign refuses a digest that has
	// not the length of its hash, and may be called from several goroutines at
	// once. A signer needs no closing: Signer may be called any number of times.
	Signer(ctx context.Context, role Role) (crypto.Signer, error)
}

// Generator is a KeyStore that can make keys.
type Generator interface {
	KeyStore
	// Generate makes the key of that role and returns it once it is stored for
	// good. It never overwrites: an existing key is fs.ErrExist. Of several
	// calls at once, also from several processes, one makes the key and the
	// others get fs.ErrExist. After a context's error there is no key, nor will
	// there be one.
	//
	// A store that cannot make keys on a chip may make the Device key together
	// with the Enrolment key, at the device's initialisation; the Device key is
	// there then.
	//
	// The signer does not give away the private key: it is no
	// *ecdsa.PrivateKey, *rsa.PrivateKey or the like.
	Generate(ctx context.Context, role Role) (crypto.Signer, error)
}

// Restricted is a Signer that cannot make every signature of its key type, as
// a chip that signs SHA-256 digests only.
type Restricted interface {
	crypto.Signer
	// SignatureSchemes returns the TLS SignatureScheme code points that the
	// signer can make, in order of preference (RFC 8446 section 4.2.3). They
	// are uint16 rather than tls.SignatureScheme so that a key store for a
	// microcontroller does not depend on crypto/tls.
	SignatureSchemes() []uint16
}

// Static returns a KeyStore that has this one signer for both roles: a key that
// some other program made and keeps. A nil signer is fs.ErrNotExist.
func Static(s crypto.Signer) KeyStore { return static{s} }

type static struct{ signer crypto.Signer }

func (s static) Signer(_ context.Context, role Role) (crypto.Signer, error) {
	if s.signer == nil {
		return nil, fmt.Errorf("keystore: Static has no signer for %q: %w", role, fs.ErrNotExist)
	}
	return s.signer, nil
}
