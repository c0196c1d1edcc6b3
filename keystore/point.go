//go:build go1.25

package keystore

import "crypto"

// asPoint returns the key itself: an *ecdsa.PublicKey is a [Point].
func asPoint(pub crypto.PublicKey) crypto.PublicKey { return pub }
