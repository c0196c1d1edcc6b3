//go:build !go1.25

package keystore

import (
	"crypto"
	"crypto/ecdsa"
)

// asPoint makes a [Point] of an *ecdsa.PublicKey, which is none before Go 1.25.
func asPoint(pub crypto.PublicKey) crypto.PublicKey {
	if key, ok := pub.(*ecdsa.PublicKey); ok && key != nil && key.Curve != nil && key.X != nil && key.Y != nil {
		return ecdsaPoint{key}
	}
	return pub
}

type ecdsaPoint struct{ key *ecdsa.PublicKey }

func (p ecdsaPoint) Bytes() ([]byte, error) {
	checked, err := p.key.ECDH() // refuses a point that is not on the curve
	if err != nil {
		return nil, err
	}
	return checked.Bytes(), nil
}
