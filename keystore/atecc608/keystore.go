package atecc608

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"

	"github.com/quarklink-go/quarklink/keystore"
)

// Slots says which slot, 0 to 15, holds the key of which role. The zero value
// is one key in slot 0 for both.
type Slots struct {
	Enrolment int
	Device    int
}

// KeyStore is a [keystore.Generator] whose keys are in slots of a chip. It is
// safe for concurrent use.
type KeyStore struct {
	chip  *Chip
	slots Slots

	mu      sync.Mutex
	signers map[int]*Signer
}

var _ keystore.Generator = (*KeyStore)(nil)

// KeyStore returns a key store over the chip. It does not use the chip yet.
func (c *Chip) KeyStore(slots Slots) *KeyStore {
	return &KeyStore{chip: c, slots: slots, signers: make(map[int]*Signer)}
}

func (k *KeyStore) slot(role keystore.Role) (int, error) {
	switch role {
	case keystore.Enrolment:
		return k.slots.Enrolment, nil
	case keystore.Device:
		return k.slots.Device, nil
	}
	return 0, fmt.Errorf("atecc608: unknown role %q: %w", role, fs.ErrInvalid)
}

// Signer returns the key of that role, a *[Signer]. The error is as of
// [Chip.Signer], and fs.ErrInvalid for an unknown role. An opened signer is
// kept.
func (k *KeyStore) Signer(ctx context.Context, role keystore.Role) (crypto.Signer, error) {
	slot, err := k.slot(role)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("atecc608: open %s: %w", role, err)
	}
	k.mu.Lock()
	signer := k.signers[slot]
	k.mu.Unlock()
	if signer == nil {
		if signer, err = k.chip.Signer(ctx, slot); err != nil {
			return nil, err
		}
		signer = k.keep(slot, signer)
	}
	return signer, nil
}

// Generate makes the key of that role in the chip. An existing key is
// fs.ErrExist; for other errors see [Chip.GenerateKey]. With one slot for both
// roles the key of one is the key of the other.
func (k *KeyStore) Generate(ctx context.Context, role keystore.Role) (crypto.Signer, error) {
	slot, err := k.slot(role)
	if err != nil {
		return nil, err
	}
	public, err := k.chip.GenerateKey(ctx, slot)
	if err != nil {
		return nil, err
	}
	signer, err := k.chip.signer(ctx, slot, public)
	if err != nil {
		return nil, err
	}
	return k.keep(slot, signer), nil
}

// keep remembers a signer, unless another call has done so meanwhile.
func (k *KeyStore) keep(slot int, s *Signer) *Signer {
	k.mu.Lock()
	defer k.mu.Unlock()
	if first := k.signers[slot]; first != nil && first.public == s.public {
		return first
	}
	k.signers[slot] = s
	return s
}

// Signer signs with the private key in one slot. It is a [keystore.Restricted],
// safe for concurrent use.
type Signer struct {
	chip    *Chip
	slot    int
	public  PublicKey
	limited bool // each use is counted against a limit
}

var _ keystore.Restricted = (*Signer)(nil)

// Signer opens the key in the slot, 0 to 15. The error is fs.ErrNotExist if the
// chip says that there is no key, and then only; [ErrConfigUnlocked] or
// [ErrDataUnlocked] if the chip is not provisioned; [ErrSlot] if the slot is not
// one that signs.
func (c *Chip) Signer(ctx context.Context, slot int) (*Signer, error) {
	public, err := c.PublicKey(ctx, slot)
	if err != nil {
		return nil, err
	}
	return c.signer(ctx, slot, public)
}

func (c *Chip) signer(ctx context.Context, slot int, public PublicKey) (*Signer, error) {
	config, err := c.Config(ctx) // known, from finding the key
	if err != nil {
		return nil, err
	}
	return &Signer{chip: c, slot: slot, public: public, limited: config.SlotConfig(slot).LimitedUse()}, nil
}

// Public returns the public key, as Options.ECDSA has it: an *ecdsa.PublicKey
// with goecdsa.P256{}, else a [PublicKey]. It does not use the chip.
func (s *Signer) Public() crypto.PublicKey {
	if s.chip.ecdsa == nil {
		return s.public
	}
	return s.chip.ecdsa.PublicKey(s.public)
}

// Slot returns the slot that holds the key.
func (s *Signer) Slot() int { return s.slot }

// ecdsaP256SHA256 is ecdsa_secp256r1_sha256 (RFC 8446 section 4.2.3).
const ecdsaP256SHA256 = 0x0403

// SignatureSchemes returns ecdsa_secp256r1_sha256 alone.
func (s *Signer) SignatureSchemes() []uint16 { return []uint16{ecdsaP256SHA256} }

// Sign signs a SHA-256 digest and returns an ECDSA signature in ASN.1. The
// random source is not used: the chip has its own. Another hash, or a digest
// that has not 32 bytes, is [ErrDigest]. The signature has been verified; if the
// chip returns wrong ones all the time the error is [ErrSignature].
//
// A key with a limited number of uses may lose uses when the bus is disturbed.
func (s *Signer) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	step := fmt.Sprintf("sign with slot %d", s.slot)
	if opts == nil || opts.HashFunc() != crypto.SHA256 {
		return nil, fmt.Errorf("atecc608: %s: another hash was used: %w", step, ErrDigest)
	}
	if len(digest) != crypto.SHA256.Size() {
		return nil, fmt.Errorf("atecc608: %s: digest of %d bytes: %w", step, len(digest), ErrDigest)
	}
	may := repeatable
	if s.limited {
		may = once
	}
	var made *signature
	err := s.chip.do(s.chip.life, step, may, func(l *call) error {
		if made == nil {
			signed, err := l.sign(s.slot, digest)
			if errors.Is(err, StatusExecution) {
				return l.refused(s.slot, err)
			}
			if err != nil {
				return err
			}
			made = &signed
		}
		err := l.verify(s.public, digest, made)
		if errors.Is(err, ErrSignature) {
			made = nil
			return &failure{err: err}
		}
		return notExecuted(err) // the signature is there: only the check is repeated
	})
	if err != nil {
		return nil, err
	}
	return made.der(), nil
}

// refused tells a refusal that the configuration explains from one because the
// chip lost the digest, which is worth another try.
func (l *call) refused(slot int, err error) error {
	config, configErr := l.readConfig()
	if configErr != nil {
		return configErr
	}
	if slotErr := config.signingSlot(slot); slotErr != nil {
		return fmt.Errorf("%w: %w", slotErr, err)
	}
	if config.SlotConfig(slot).LimitedUse() {
		return fmt.Errorf("the key's uses may be spent: %w", err)
	}
	return &failure{err: err}
}
