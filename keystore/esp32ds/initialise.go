package esp32ds

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"

	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/store"
)

// InitialiseOptions say how [Store.Initialise] does its work. The zero value is
// right for a blank chip.
type InitialiseOptions struct {
	// Bits is the length of both keys: 2048, 3072, or 4096 where the chip
	// takes that. 0: 3072.
	Bits int
	// NewIdentity allows to initialise a chip that was initialised before and
	// has lost its parameters: it gets new keys and a new DeviceID, whatever
	// was enrolled is void, and one more eFuse key block is spent. What is
	// left of the old parameters is overwritten.
	NewIdentity bool
	// Reserve is the number of free key blocks to leave for Secure Boot
	// digests and flash encryption. 0: none.
	Reserve int
	// GenerateKey makes one RSA key of that many bits, with a hardware
	// accelerator for instance, and keeps no copy: Initialise overwrites the
	// private numbers of what it is given. Nil: rsa.GenerateKey with
	// Config.Random.
	GenerateKey func(ctx context.Context, bits int) (*rsa.PrivateKey, error)
}

// roles in the order in which their records are written: the enrolment key last,
// for until it is overwritten an old DeviceID holds.
var roles = [...]keystore.Role{keystore.Device, keystore.Enrolment}

// DefaultBits is the length of keys when InitialiseOptions say nothing.
const DefaultBits = 3072

// InitialisationsLeft returns how often the chip can still be initialised: the
// number of its free eFuse key blocks, 6 for a blank chip, or 0 once read
// protection is locked. Of these, InitialiseOptions.Reserve keeps as many as it
// says. Virtual eFuses are [ErrVirtualEFuse].
func (s *Store) InitialisationsLeft(ctx context.Context) (int, error) {
	if err := s.turn.take(ctx); err != nil {
		return 0, fmt.Errorf("esp32ds: count key blocks: %w", err)
	}
	defer s.turn.release()
	fuses, err := s.readEFuses(ctx)
	if err != nil {
		return 0, fmt.Errorf("esp32ds: count key blocks: %w", err)
	}
	if fuses.ReadProtectionLocked {
		return 0, nil
	}
	return len(fuses.freeBlocks()), nil
}

// Initialise makes the enrolment key and the device key, stores their
// parameters, burns the eFuse key that opens both into the highest free key
// block (the highest because flash encryption cannot use BLOCK_KEY5 of an
// ESP32-C3, C6, H2 or S3), and has the chip make a signature with each. It
// overwrites the private keys and the eFuse key in memory when it is done with
// them; copies that Go's crypto packages made are left to the garbage collector.
//
// A power cut at any instant leaves a chip for which the next Initialise does
// the right thing. Parameters are stored before the eFuse key is burned, so that
// a burned key always has them: cut before the burn, it starts over and no key
// block is spent; cut within, it completes what was begun if the whole key
// reached its block and its purpose can still be set, and otherwise takes another
// block. Until it is complete there are no keys: Signer says fs.ErrNotExist.
//
// The error is fs.ErrExist if both keys are there and work; to give up an
// identity on purpose, delete the records first. It is [ErrIdentityLost] if the
// chip was initialised before and the parameters are gone, which only
// InitialiseOptions.NewIdentity overrides; so it does for a damaged record, which
// is [store.ErrDamaged]. [ErrNoKeyBlock], [ErrReadProtection] and
// [ErrVirtualEFuse] say why nothing can be burned; nothing was stored then.
// Options out of range are fs.ErrInvalid.
func (s *Store) Initialise(ctx context.Context, opts InitialiseOptions) error {
	if opts.Bits == 0 {
		opts.Bits = DefaultBits
	}
	if opts.Bits < minBits || !s.chip.takesBits(opts.Bits) {
		return fmt.Errorf("esp32ds: initialise: keys of %d bits, need 2048, 3072 or 4096 up to %v's %d: %w", opts.Bits, s.chip, s.chip.MaxBits(), fs.ErrInvalid)
	}
	if opts.Reserve < 0 {
		return fmt.Errorf("esp32ds: initialise: %d key blocks in reserve: %w", opts.Reserve, fs.ErrInvalid)
	}
	if opts.GenerateKey == nil {
		opts.GenerateKey = s.generateKey
	}
	if err := s.turn.take(ctx); err != nil {
		return fmt.Errorf("esp32ds: initialise: %w", err)
	}
	defer s.turn.release()
	if err := s.initialise(ctx, opts); err != nil {
		return fmt.Errorf("esp32ds: initialise: %w", err)
	}
	return nil
}

func (s *Store) initialise(ctx context.Context, opts InitialiseOptions) error {
	fuses, err := s.readEFuses(ctx)
	if err != nil {
		return err
	}
	completed, err := s.resume(ctx, fuses, opts.NewIdentity)
	if completed || err != nil {
		return err
	}
	block, err := chooseBlock(fuses, opts)
	if err != nil {
		return err
	}
	hmacKey, keys, err := s.makeKeys(ctx, block, opts)
	defer clear(hmacKey[:])
	if err != nil {
		return err
	}
	for _, role := range roles {
		if err := s.persist(ctx, role, keys[role]); err != nil {
			return err
		}
	}
	if err := s.efuse.BurnKey(ctx, block, hmacKey); err != nil {
		return fmt.Errorf("burn eFuse key block %d: %w", block, err)
	}
	if err := s.seal(ctx, block); err != nil {
		return err
	}
	return s.try(ctx, keys)
}

// resume deals with what an earlier Initialise left. It reports true if that is
// now complete, false without an error if there is nothing to save, and
// fs.ErrExist if there is nothing to do.
func (s *Store) resume(ctx context.Context, fuses EFuseState, mayLose bool) (completed bool, err error) {
	keys := make(map[keystore.Role]*heldKey)
	for _, role := range roles {
		key, err := s.load(ctx, role)
		switch {
		case err == nil:
			keys[role] = key
		case errors.Is(err, fs.ErrNotExist), mayLose && errors.Is(err, store.ErrDamaged):
			return false, nil
		default:
			return false, err
		}
	}
	block := keys[keystore.Enrolment].block
	if keys[keystore.Device].block != block {
		return false, nil
	}
	b := fuses.Blocks[block]
	if b.holdsKey() {
		if err := s.try(ctx, keys); useless(err) {
			return false, nil // the parameters are another chip's
		} else if err != nil {
			return false, err
		}
		if b.sealed() {
			return false, fmt.Errorf("both keys are there, in eFuse key block %d: %w", block, fs.ErrExist)
		}
		return true, s.seal(ctx, block)
	}
	switch {
	case b.ReadProtected || !opensBoth(keys, b.Key):
		return false, nil // free, spent, or in use for something else
	case fuses.ReadProtectionLocked, b.Purpose&^PurposeDS != 0, b.PurposeLocked && b.Purpose != PurposeDS:
		return false, nil // the key is there but cannot be sealed any more
	}
	if err := s.seal(ctx, block); err != nil {
		return false, err
	}
	return true, s.try(ctx, keys)
}

func opensBoth(keys map[keystore.Role]*heldKey, hmacKey [32]byte) bool {
	for _, key := range keys {
		if key.params.Check(hmacKey, key.public) != nil {
			return false
		}
	}
	return true
}

// seal makes sure that the block is protected.
func (s *Store) seal(ctx context.Context, block int) error {
	fuses, err := s.readEFuses(ctx)
	if err != nil || fuses.Blocks[block].sealed() {
		return err
	}
	if err := s.efuse.Protect(ctx, block); err != nil {
		return fmt.Errorf("protect eFuse key block %d: %w", block, err)
	}
	if fuses, err = s.readEFuses(ctx); err != nil {
		return err
	}
	if !fuses.Blocks[block].sealed() {
		return fmt.Errorf("eFuse key block %d does not read back as protected: %w", block, ErrFail)
	}
	return nil
}

// try has the chip sign with each key.
func (s *Store) try(ctx context.Context, keys map[keystore.Role]*heldKey) error {
	digest := sha256.Sum256([]byte("quarklink: try the key"))
	for _, role := range roles {
		if err := s.tryKey(ctx, keys[role], digest[:]); err != nil {
			return fmt.Errorf("try key %s: %w", role, err)
		}
	}
	return nil
}

// tryKey tries more than once: a fault passes, useless parameters stay useless.
func (s *Store) tryKey(ctx context.Context, key *heldKey, digest []byte) error {
	block, err := encode(key.params.bits, nil, digest, crypto.SHA256)
	if err != nil {
		return err
	}
	for range 3 {
		if _, err = s.engine.sign(ctx, key, block); !useless(err) {
			break
		}
	}
	return err
}

// useless reports whether the error says that the parameters do not belong to
// the eFuse key.
func useless(err error) bool {
	return errors.Is(err, ErrInvalidDigest) || errors.Is(err, ErrInvalidPadding) || errors.Is(err, ErrWrongSignature)
}

func chooseBlock(fuses EFuseState, opts InitialiseOptions) (int, error) {
	free := fuses.freeBlocks()
	if old := fuses.keyHolder(); old >= 0 && !opts.NewIdentity {
		return 0, fmt.Errorf("eFuse key block %d holds a key: %w; InitialiseOptions.NewIdentity makes a new identity and spends one of the %d key blocks left", old, ErrIdentityLost, len(free))
	}
	if fuses.ReadProtectionLocked {
		return 0, ErrReadProtection
	}
	if len(free) <= opts.Reserve {
		return 0, fmt.Errorf("%w: %d of %d left, of which %d are reserved; the chip cannot be initialised again", ErrNoKeyBlock, len(free), KeyBlocks, opts.Reserve)
	}
	return free[len(free)-1], nil
}

func (s *Store) makeKeys(ctx context.Context, block int, opts InitialiseOptions) (hmacKey [32]byte, keys map[keystore.Role]*heldKey, err error) {
	var random [len(hmacKey) + 2*16]byte
	if _, err := io.ReadFull(s.random, random[:]); err != nil {
		return hmacKey, nil, fmt.Errorf("read random bytes: %w", err)
	}
	copy(hmacKey[:], random[:])
	ivs := map[keystore.Role][16]byte{
		keystore.Enrolment: [16]byte(random[32:48]),
		keystore.Device:    [16]byte(random[48:]),
	}
	clear(random[:])
	if ivs[keystore.Enrolment] == ivs[keystore.Device] {
		return hmacKey, nil, errors.New("the random source repeats itself: Config.Random must be a cryptographic one")
	}
	keys = make(map[keystore.Role]*heldKey)
	for _, role := range roles {
		private, err := opts.GenerateKey(ctx, opts.Bits)
		if err != nil {
			return hmacKey, nil, fmt.Errorf("make key %s: %w", role, err)
		}
		defer wipe(private)
		params, err := Encrypt(s.chip, private, hmacKey, ivs[role])
		if err != nil {
			return hmacKey, nil, fmt.Errorf("make key %s: %w", role, err)
		}
		if params.bits != opts.Bits {
			return hmacKey, nil, fmt.Errorf("make key %s: GenerateKey made %d bits, asked for %d", role, params.bits, opts.Bits)
		}
		keys[role] = &heldKey{block, &rsa.PublicKey{N: private.N, E: private.E}, params}
	}
	if keys[keystore.Enrolment].public.N.Cmp(keys[keystore.Device].public.N) == 0 {
		return hmacKey, nil, errors.New("GenerateKey made the same key twice")
	}
	return hmacKey, keys, nil
}

// wipe overwrites the private numbers of a key, as far as they can be reached.
func wipe(key *rsa.PrivateKey) {
	if key == nil {
		return
	}
	for _, x := range append([]*big.Int{key.D, key.Precomputed.Dp, key.Precomputed.Dq, key.Precomputed.Qinv}, key.Primes...) {
		if x != nil {
			clear(x.Bits())
			x.SetInt64(0)
		}
	}
}

// generateKey returns early if ctx ends; making the key then goes on unheard.
func (s *Store) generateKey(ctx context.Context, bits int) (*rsa.PrivateKey, error) {
	type outcome struct {
		key *rsa.PrivateKey
		err error
	}
	done := make(chan outcome, 1)
	go func() {
		key, err := rsa.GenerateKey(s.random, bits)
		done <- outcome{key, err}
	}()
	select {
	case o := <-done:
		return o.key, o.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// persist stores the record and makes sure of it: what follows cannot be undone.
func (s *Store) persist(ctx context.Context, role keystore.Role, key *heldKey) error {
	name, err := RecordName(role)
	if err != nil {
		return err
	}
	record, err := EncodeRecord(role, key.block, key.public, key.params)
	if err != nil {
		return err
	}
	delete(s.signers, role)
	if err := s.records.Put(ctx, name, record); err != nil {
		return fmt.Errorf("store record %q: %w", name, err)
	}
	stored, err := s.records.Get(ctx, name)
	if err != nil {
		return fmt.Errorf("read record %q back: %w", name, err)
	}
	if !bytes.Equal(stored, record) {
		return fmt.Errorf("record %q does not read back as it was stored: %w", name, store.ErrDamaged)
	}
	return nil
}
