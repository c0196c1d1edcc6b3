package keystore

import (
	"context"
	"crypto"
)

// Rotator is a Generator that can put a new key in the place of an old one, in
// two steps, so that the new key can be certified and tried before the old one
// is given up.
//
// Only the Device key is ever replaced. For Enrolment, whose key is the device's
// identity, and for a store in which both roles share a key, each method fails
// with errors.ErrUnsupported and changes nothing.
type Rotator interface {
	Generator
	// Stage makes a key that is to follow that of the role, and returns it once
	// it is stored for good; Signer goes on to return the old one. A key that is
	// staged already is returned as it is, so that a power cut loses none; a
	// staged key that is damaged is made anew. Whether the role has a key, or a
	// damaged one, makes no difference.
	Stage(ctx context.Context, role Role) (crypto.Signer, error)
	// Commit makes the staged key the role's, for good, and gives up the old
	// one. After a power cut at any instant either key is the role's, and
	// another Commit does the rest. With no key staged it does nothing, so that
	// it may be repeated.
	Commit(ctx context.Context, role Role) error
	// Discard gives up the staged key. With no key staged it does nothing.
	Discard(ctx context.Context, role Role) error
}
