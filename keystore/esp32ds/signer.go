package esp32ds

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"math/big"
	"slices"
	"time"

	"github.com/quarklink-go/quarklink/keystore"
)

// Peripheral is the Digital Signature peripheral: ESP-IDF's esp_ds_sign, or the
// registers themselves.
type Peripheral interface {
	// Sign opens the parameters, an esp_ds_data_t, with the eFuse key of the
	// block (hmac_key_id_t, 0 to 5) and returns message^Y mod M. Message and
	// result are little-endian and as long as the RSA key. The parameters
	// start at a multiple of 4 in memory, as esp_ds_sign wants them.
	//
	// Sign changes neither argument and keeps none. It waits while something
	// else uses the hardware, or returns ErrBusy; it returns when ctx ends. A
	// Store never calls it twice at a time.
	Sign(ctx context.Context, block int, params, message []byte) ([]byte, error)
}

// TLS SignatureScheme code points (RFC 8446 section 4.2.3), in order of
// preference: TLS 1.3 takes PSS only, TLS 1.2 PKCS #1 v1.5 too.
var signatureSchemes = [...]uint16{
	0x0804, // rsa_pss_rsae_sha256
	0x0805, // rsa_pss_rsae_sha384
	0x0806, // rsa_pss_rsae_sha512
	0x0401, // rsa_pkcs1_sha256
	0x0501, // rsa_pkcs1_sha384
	0x0601, // rsa_pkcs1_sha512
}

type signer struct {
	key    *heldKey
	engine *engine
	random io.Reader
	// life has the values of the context that opened the signer and never
	// ends: crypto.Signer has no context, so the engine's time-out bounds
	// each signature.
	life context.Context
}

var _ keystore.Restricted = (*signer)(nil)

func (s *Store) newSigner(ctx context.Context, key *heldKey) *signer {
	return &signer{key: key, engine: s.engine, random: s.random, life: context.WithoutCancel(ctx)}
}

// Public returns an *rsa.PublicKey.
func (s *signer) Public() crypto.PublicKey { return s.key.public }

// SignatureSchemes implements keystore.Restricted.
func (s *signer) SignatureSchemes() []uint16 { return slices.Clone(signatureSchemes[:]) }

// Sign implements crypto.Signer as Store.Signer says.
func (s *signer) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if random == nil {
		random = s.random
	}
	block, err := encode(s.key.params.bits, random, digest, opts)
	if err != nil {
		return nil, fmt.Errorf("esp32ds: sign: %w", err)
	}
	signature, err := s.engine.sign(s.life, s.key, block)
	if err != nil {
		return nil, fmt.Errorf("esp32ds: sign: %w", err)
	}
	return signature, nil
}

// engine is the peripheral and what it takes to use it safely.
type engine struct {
	peripheral Peripheral
	timeout    time.Duration
	turn       lock
}

// busyWait is the pause before asking a busy peripheral again.
const busyWait = 5 * time.Millisecond

// sign returns the padded block raised to the private exponent, both big-endian
// and as long as the modulus. The result is checked: a faulty one can reveal the
// private key, so it goes nowhere.
func (e *engine) sign(ctx context.Context, key *heldKey, block []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, e.timeout)
	defer cancel()
	if err := e.turn.take(ctx); err != nil {
		return nil, fmt.Errorf("wait for the peripheral: %w", err)
	}
	defer e.turn.release()

	message := bytes.Clone(block)
	slices.Reverse(message)
	result, err := e.askUntilFree(ctx, key, message)
	if err != nil {
		return nil, err
	}
	signature := bytes.Clone(result)
	slices.Reverse(signature)
	if !opens(key.public, signature, block) {
		return nil, ErrWrongSignature
	}
	return signature, nil
}

func (e *engine) askUntilFree(ctx context.Context, key *heldKey, message []byte) ([]byte, error) {
	for {
		result, err := e.peripheral.Sign(ctx, key.block, key.params.data, message)
		if err == nil {
			return result, nil
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("%w: %w", err, ctx.Err())
		}
		if !errors.Is(err, ErrBusy) {
			return nil, err
		}
		pause := time.NewTimer(busyWait)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return nil, fmt.Errorf("%w: %w", err, ctx.Err())
		}
	}
}

// opens reports whether the signature is the block's: the one number below the
// modulus that the public exponent turns into the block.
func opens(pub *rsa.PublicKey, signature, block []byte) bool {
	if len(signature) != len(block) {
		return false
	}
	z := new(big.Int).SetBytes(signature)
	if z.Cmp(pub.N) >= 0 {
		return false
	}
	z.Exp(z, big.NewInt(int64(pub.E)), pub.N)
	return z.Cmp(new(big.Int).SetBytes(block)) == 0
}
