package tpm2

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"io"
	"math/big"

	gotpm "github.com/google/go-tpm/tpm2"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"github.com/quarklink-go/quarklink/keystore"
)

// ecdsaP256SHA256 is the one TLS SignatureScheme that the keys make:
// ecdsa_secp256r1_sha256 (RFC 8446 section 4.2.3).
const ecdsaP256SHA256 = 0x0403

// signer is a key of a Store.
type signer struct {
	tpm    *TPM
	key    *key
	secret func(context.Context) ([]byte, error)
	// life has the values of the context that opened the signer and never ends:
	// crypto.Signer has no context, so Options.Timeout bounds each signature.
	life context.Context
}

var (
	_ keystore.Restricted = (*signer)(nil)
	_ fmt.Formatter       = (*signer)(nil)
)

// Public returns an *ecdsa.PublicKey.
func (s *signer) Public() crypto.PublicKey { return s.key.ecc }

// SignatureSchemes implements keystore.Restricted.
func (s *signer) SignatureSchemes() []uint16 { return []uint16{ecdsaP256SHA256} }

// Format implements fmt.Formatter: every verb prints the same.
func (s *signer) Format(f fmt.State, _ rune) { io.WriteString(f, "tpm2.Signer(key in a TPM)") }

// Sign implements crypto.Signer as Store.Signer says. The random source is the TPM's.
func (s *signer) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	switch {
	case opts == nil:
		return nil, errors.New("tpm2: sign: no options, so the digest's hash is unknown")
	case opts.HashFunc() != crypto.SHA256:
		return nil, fmt.Errorf("tpm2: sign: unsupported hash %v, need SHA-256", opts.HashFunc())
	case len(digest) != crypto.SHA256.Size():
		return nil, fmt.Errorf("tpm2: sign: digest of %d bytes, SHA-256 has %d", len(digest), crypto.SHA256.Size())
	}
	var signature []byte
	err := s.tpm.run(s.life, func(w *work) error {
		return w.useKey(s.key, s.secret, func(h gotpm.AuthHandle) (err error) {
			signature, err = w.sign(h, s.key.ecc, digest)
			return err
		})
	})
	if err != nil {
		return nil, fmt.Errorf("tpm2: sign: %w", err)
	}
	return signature, nil
}

// sign returns the signature in DER, once it is known to be right.
func (w *work) sign(h gotpm.AuthHandle, pub *ecdsa.PublicKey, digest []byte) ([]byte, error) {
	rsp, err := gotpm.Sign{
		KeyHandle: h,
		Digest:    gotpm.TPM2BDigest{Buffer: digest},
		InScheme: gotpm.TPMTSigScheme{
			Scheme:  gotpm.TPMAlgECDSA,
			Details: gotpm.NewTPMUSigScheme(gotpm.TPMAlgECDSA, &gotpm.TPMSSchemeHash{HashAlg: gotpm.TPMAlgSHA256}),
		},
		Validation: gotpm.TPMTTKHashCheck{Tag: gotpm.TPMSTHashCheck}, // the digest is not the TPM's own
	}.Execute(w)
	if err != nil {
		return nil, err
	}
	made, err := rsp.Signature.Signature.ECDSA()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrWrongSignature, err)
	}
	// Numbers, which a TPM may cut leading zeros off.
	r, s := new(big.Int).SetBytes(made.SignatureR.Buffer), new(big.Int).SetBytes(made.SignatureS.Buffer)
	if !ecdsa.Verify(pub, digest, r, s) {
		return nil, ErrWrongSignature
	}
	var b cryptobyte.Builder
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1BigInt(r)
		b.AddASN1BigInt(s)
	})
	return b.Bytes()
}
