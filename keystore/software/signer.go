package software

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
)

// signer is all that leaves the store: it can sign and name its public key, and
// hides the rest from type assertions and from fmt.
type signer struct{ key crypto.Signer }

var _ fmt.Formatter = (*signer)(nil)

// Public returns an *ecdsa.PublicKey or an *rsa.PublicKey.
func (s *signer) Public() crypto.PublicKey { return s.key.Public() }

// Sign signs a digest of opts.HashFunc, which is SHA-256, SHA-384 or SHA-512. A
// nil random source means crypto/rand.
func (s *signer) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if opts == nil {
		return nil, errors.New("software: sign: no options, so the digest's hash is unknown")
	}
	switch hash := opts.HashFunc(); hash {
	case crypto.SHA256, crypto.SHA384, crypto.SHA512:
		if len(digest) != hash.Size() {
			return nil, fmt.Errorf("software: sign: digest of %d bytes, %v has %d", len(digest), hash, hash.Size())
		}
	default:
		return nil, fmt.Errorf("software: sign: unsupported hash %v, need SHA-256, SHA-384 or SHA-512", hash)
	}
	if _, isRSA := s.key.(*rsa.PrivateKey); !isRSA {
		if _, pss := opts.(*rsa.PSSOptions); pss {
			return nil, errors.New("software: sign: PSS asked of an ECDSA key")
		}
	}
	if random == nil {
		random = rand.Reader
	}
	signature, err := s.key.Sign(random, digest, opts)
	if err != nil {
		return nil, fmt.Errorf("software: sign: %w", err)
	}
	return signature, nil
}

// Format implements [fmt.Formatter]: every verb prints the same.
func (s *signer) Format(f fmt.State, _ rune) {
	io.WriteString(f, "software.Signer(private key not shown)")
}
