package esp32ds

import (
	"context"
	"crypto"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/store"
)

// DefaultTimeout bounds one signature when Config says nothing: several times
// what a 4096-bit key takes on the slowest chip.
const DefaultTimeout = 5 * time.Second

// Config says what a [Store] works with. All but Timeout is required.
type Config struct {
	Chip       Chip
	Peripheral Peripheral
	EFuse      EFuse
	// Records keeps the parameters, as the records ds-esk and ds-dsk.
	Records store.Store
	// Random is a cryptographic random source: crypto/rand's Reader, or the
	// chip's generator, which has full entropy only while radio or bootloader
	// entropy is on. It makes the eFuse key, the salts of PSS signatures and,
	// unless InitialiseOptions.GenerateKey does, the RSA keys: in programs for
	// Go 1.26 and later rsa.GenerateKey uses crypto/rand's Reader whatever it
	// is given. It has to be safe for concurrent use.
	Random io.Reader
	// Timeout bounds one signature, waiting for the peripheral included.
	// 0: DefaultTimeout.
	Timeout time.Duration
}

// Store is a [keystore.KeyStore] whose keys only the Digital Signature
// peripheral can use. It is no keystore.Generator: see [Store.Initialise].
//
// It is safe for concurrent use. It locks the peripheral against itself only, so
// make one Store for a chip.
type Store struct {
	chip    Chip
	efuse   EFuse
	records store.Store
	random  io.Reader
	engine  *engine

	turn    lock // guards efuse, records and signers
	signers map[keystore.Role]*signer
}

var _ keystore.KeyStore = (*Store)(nil)

// New returns a key store on a chip. It touches neither the chip nor the records
// yet. A Config that lacks something or names a chip without the peripheral is
// fs.ErrInvalid.
func New(cfg Config) (*Store, error) {
	switch {
	case cfg.Chip.MaxBits() == 0:
		return nil, fmt.Errorf("esp32ds: %v has no Digital Signature peripheral: %w", cfg.Chip, fs.ErrInvalid)
	case cfg.Peripheral == nil || cfg.EFuse == nil || cfg.Records == nil || cfg.Random == nil:
		return nil, fmt.Errorf("esp32ds: Config needs Peripheral, EFuse, Records and Random: %w", fs.ErrInvalid)
	case cfg.Timeout < 0:
		return nil, fmt.Errorf("esp32ds: time-out %v: %w", cfg.Timeout, fs.ErrInvalid)
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	return &Store{
		chip:    cfg.Chip,
		efuse:   cfg.EFuse,
		records: cfg.Records,
		random:  cfg.Random,
		engine:  &engine{peripheral: cfg.Peripheral, timeout: cfg.Timeout, turn: newLock()},
		turn:    newLock(),
		signers: make(map[keystore.Role]*signer),
	}, nil
}

// Signer returns the key of that role, a [keystore.Restricted] whose public key
// is an *rsa.PublicKey. The error is fs.ErrNotExist if the chip is not
// initialised or a power cut kept it from becoming so: call [Store.Initialise].
// It is [store.ErrDamaged] for a damaged record, ErrInvalidArg for one made for
// another chip, [ErrVirtualEFuse], fs.ErrInvalid for an unknown role.
//
// The signer signs digests of SHA-256, SHA-384 and SHA-512: PKCS #1 v1.5 or,
// given *rsa.PSSOptions, PSS with any salt length. A nil random source means
// Config.Random; PKCS #1 v1.5 uses none. A signature is bounded by
// Config.Timeout, then context.DeadlineExceeded, and safe to try again after any
// error. It is safe for concurrent use.
func (s *Store) Signer(ctx context.Context, role keystore.Role) (crypto.Signer, error) {
	signer, err := s.open(ctx, role)
	if err != nil {
		return nil, fmt.Errorf("esp32ds: open %s: %w", role, err)
	}
	return signer, nil
}

func (s *Store) open(ctx context.Context, role keystore.Role) (*signer, error) {
	if err := s.turn.take(ctx); err != nil {
		return nil, err
	}
	defer s.turn.release()
	if signer, ok := s.signers[role]; ok {
		return signer, nil
	}
	key, err := s.load(ctx, role)
	if err != nil {
		return nil, err
	}
	fuses, err := s.readEFuses(ctx)
	if err != nil {
		return nil, err
	}
	if !fuses.Blocks[key.block].sealed() {
		return nil, fmt.Errorf("parameters are stored, but their key was not burned into eFuse key block %d, or is not protected yet: initialise: %w", key.block, fs.ErrNotExist)
	}
	s.signers[role] = s.newSigner(ctx, key)
	return s.signers[role], nil
}

func (s *Store) load(ctx context.Context, role keystore.Role) (*heldKey, error) {
	name, err := RecordName(role)
	if err != nil {
		return nil, err
	}
	record, err := s.records.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	return decodeRecord(role, s.chip, record)
}

func (s *Store) readEFuses(ctx context.Context) (EFuseState, error) {
	fuses, err := s.efuse.ReadEFuses(ctx)
	if err != nil {
		return EFuseState{}, fmt.Errorf("read the eFuses: %w", err)
	}
	if fuses.Virtual {
		return EFuseState{}, ErrVirtualEFuse
	}
	return fuses, nil
}

// lock is a mutex that is waited for no longer than a context lives.
type lock chan struct{}

func newLock() lock { return make(lock, 1) }

func (l lock) take(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case l <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l lock) release() { <-l }
