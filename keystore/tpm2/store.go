package tpm2

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io/fs"

	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/store"
)

// KeyOptions say how the keys of a [Store] are made and used. The zero value is for
// wrapped keys without an authorization value.
type KeyOptions struct {
	// KeyAuth returns the authorization value of a role's key, at most 32 bytes
	// and none of them zero. It is called when a key is made, which then has
	// that value, and whenever a key that has one is used. nil, and an empty
	// value for a key to be made: it has none. A wrong value is [ErrAuth]; the
	// TPM does not count those for keys made here.
	KeyAuth func(ctx context.Context, role keystore.Role) ([]byte, error)
	// Handles says at which handle a role's key, when it is made, becomes
	// persistent in the TPM: 0x81000000 to 0x817FFFFF (of the owner), except
	// 0x81000001 and 0x81000002, which are for storage root keys. Other programs
	// can use the key there, and it signs a little faster. TPMs have room for
	// very few; the record keeps the wrapped key all the same, so that the key
	// survives its removal from the handle.
	Handles map[keystore.Role]uint32
}

// Store is a [keystore.Rotator] whose keys only its TPM can use. It is safe for
// concurrent use, also by several processes on one store and one TPM: keys are
// created exclusively, so that processes which start at once end with one identity.
//
// An opened key stays in memory, wrapped, as long as the Store; a record that is
// deleted or replaced behind its back is noticed by the next Store.
type Store struct {
	tpm     *TPM
	records store.Creator
	opts    KeyOptions

	turn    chan struct{}      // holds one token; who takes it owns signers
	signers map[string]*signer // by the name of the record
}

var _ keystore.Rotator = (*Store)(nil)

// KeyStore returns a key store on the TPM whose wrapped keys are records of st. It
// touches neither yet. A nil store, and a handle that is not for keys or is there
// twice, are fs.ErrInvalid.
func (t *TPM) KeyStore(st store.Creator, o KeyOptions) (*Store, error) {
	if st == nil {
		return nil, fmt.Errorf("tpm2: KeyStore needs a store: %w", fs.ErrInvalid)
	}
	seen := make(map[uint32]bool)
	for role, handle := range o.Handles {
		err := checkHandle(handle)
		if _, roleErr := RecordName(role); roleErr != nil {
			err = roleErr
		}
		if err == nil && seen[handle] {
			err = fmt.Errorf("handle 0x%08x is given twice: %w", handle, fs.ErrInvalid)
		}
		if err != nil {
			return nil, fmt.Errorf("tpm2: KeyOptions.Handles: %s: %w", role, err)
		}
		seen[handle] = true
	}
	return &Store{tpm: t, records: st, opts: o, turn: make(chan struct{}, 1), signers: make(map[string]*signer)}, nil
}

// Signer returns the key of that role once the TPM has loaded it: a
// [keystore.Restricted] for ECDSA on P-256 with SHA-256. The error is fs.ErrNotExist
// if there is none, and for no other reason; [ErrCleared], [ErrOtherTPM],
// [ErrTemplate] or [store.ErrDamaged] if the TPM does not load it; one of the errors
// of the TPM; fs.ErrInvalid for an unknown role. A persistent key that is gone from
// its handle, by a power cut while it was made or by somebody's hand, is put back
// there; if another object is there the error is [ErrHandleUsed].
//
// The signer is safe for concurrent use, holds nothing in the TPM and shows nothing
// of the key, also when printed. A signature is bounded by Options.Timeout, with
// ErrUnanswered and context.DeadlineExceeded, and safe to try again after any error.
func (s *Store) Signer(ctx context.Context, role keystore.Role) (crypto.Signer, error) {
	signer, err := s.locked(ctx, func() (*signer, error) { return s.open(ctx, role) })
	if err != nil {
		return nil, fmt.Errorf("tpm2: open %s: %w", role, err)
	}
	return signer, nil
}

// Generate makes the key of that role and returns it once it is stored. An existing
// key is fs.ErrExist and stays as it is, also one that is damaged or that the TPM does
// not load: a cleared TPM never makes a new identity by itself. With a handle in
// KeyOptions.Handles the key is made persistent after it is stored; a handle that is
// in use is [ErrHandleUsed], and no key is made.
//
// If the context ends no key is stored. Should the TPM fail after the key is stored,
// before it is persistent, the error is the TPM's; [Store.Signer] then opens the key
// and makes up for it.
func (s *Store) Generate(ctx context.Context, role keystore.Role) (crypto.Signer, error) {
	signer, err := s.locked(ctx, func() (*signer, error) { return s.generate(ctx, role) })
	if err != nil {
		return nil, fmt.Errorf("tpm2: generate %s: %w", role, err)
	}
	return signer, nil
}

// locked runs f when it is the caller's turn, unless the context ends first.
func (s *Store) locked(ctx context.Context, f func() (*signer, error)) (*signer, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-s.turn }()
	return f()
}

func (s *Store) open(ctx context.Context, role keystore.Role) (*signer, error) {
	name, err := RecordName(role)
	if err != nil {
		return nil, err
	}
	if signer, ok := s.signers[name]; ok {
		return signer, nil
	}
	k, err := s.read(ctx, name)
	if err != nil {
		return nil, err
	}
	return s.openKey(ctx, role, name, k)
}

// openKey makes sure that the TPM has what it takes to use the key.
func (s *Store) openKey(ctx context.Context, role keystore.Role, name string, k *key) (*signer, error) {
	err := s.tpm.run(ctx, func(w *work) error {
		if k.handle != 0 || k.replaces != nil {
			if err := w.persist(k); err != nil {
				return err
			}
		}
		if k.handle != 0 {
			return nil
		}
		return w.check(k)
	})
	if err != nil {
		return nil, err
	}
	return s.keep(ctx, role, name, k), nil
}

// check makes sure that the TPM loads the key.
func (w *work) check(k *key) error {
	return w.try(func() error {
		o, p, err := w.loadKey(k)
		if err != nil {
			return err
		}
		w.flush(p.object)
		w.flush(o)
		return nil
	})
}

// read returns the key that a record holds.
func (s *Store) read(ctx context.Context, name string) (*key, error) {
	data, err := s.records.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	return decodeKey(name, data)
}

func (s *Store) generate(ctx context.Context, role keystore.Role) (*signer, error) {
	name, err := s.absent(ctx, role)
	if err != nil {
		return nil, err
	}
	handle := s.opts.Handles[role]
	if handle != 0 {
		if err := s.tpm.run(ctx, func(w *work) error { return w.checkFree(handle) }); err != nil {
			return nil, err
		}
	}
	k, err := s.create(ctx, role)
	if err != nil {
		return nil, err
	}
	k.handle = handle
	return s.add(ctx, role, name, k)
}

// create makes a key. It is not stored anywhere yet.
func (s *Store) create(ctx context.Context, role keystore.Role) (*key, error) {
	var k *key
	err := s.tpm.run(ctx, func(w *work) error {
		auth, err := w.secret(s.secret(role))
		if err != nil {
			return err
		}
		k, err = w.create(auth)
		return err
	})
	if err != nil {
		return nil, err // k is not looked at: the TPM may be at work on it still
	}
	return k, nil
}

// absent returns the name of a role's record once it is known that there is none.
// Creating the record decides; asking first spares the work.
func (s *Store) absent(ctx context.Context, role keystore.Role) (name string, err error) {
	name, err = RecordName(role)
	if err != nil {
		return "", err
	}
	switch _, err := s.records.Get(ctx, name); {
	case err == nil:
		return "", fmt.Errorf("record %q: %w", name, fs.ErrExist)
	case !errors.Is(err, fs.ErrNotExist):
		return "", err
	}
	return name, nil
}

// add stores a new key, and then makes it persistent if that is wanted.
func (s *Store) add(ctx context.Context, role keystore.Role, name string, k *key) (*signer, error) {
	data, err := k.encode(name)
	if err != nil {
		return nil, err
	}
	if err := s.records.Create(ctx, name, data); err != nil {
		return nil, err
	}
	if err := s.settle(ctx, k); err != nil {
		return nil, err
	}
	return s.keep(ctx, role, name, k), nil
}

// settle puts a stored key at its handle. The key is the role's whatever happens, so a
// context that ends does not count any more.
func (s *Store) settle(ctx context.Context, k *key) error {
	if k.handle == 0 && k.replaces == nil {
		return nil
	}
	err := s.tpm.run(context.WithoutCancel(ctx), func(w *work) error { return w.persist(k) })
	if err != nil {
		return fmt.Errorf("the key is stored, and opening it will make up for what failed at its handle 0x%08x: %w", k.handle, afterwards{err})
	}
	return nil
}

// afterwards is an error after the key was stored. It is no context's error, which
// would promise that there is no key.
type afterwards struct{ err error }

func (e afterwards) Error() string { return e.err.Error() }

func (e afterwards) Is(target error) bool {
	return target != context.DeadlineExceeded && target != context.Canceled && errors.Is(e.err, target)
}

func (e afterwards) As(target any) bool { return errors.As(e.err, target) }

func (s *Store) keep(ctx context.Context, role keystore.Role, name string, k *key) *signer {
	s.signers[name] = &signer{tpm: s.tpm, key: k, secret: s.secret(role), life: context.WithoutCancel(ctx)}
	return s.signers[name]
}

// authFunc returns an authorization value.
type authFunc = func(context.Context) ([]byte, error)

// secret returns what asks for the authorization value of a role's key, nil if there
// is nobody to ask.
func (s *Store) secret(role keystore.Role) authFunc {
	if s.opts.KeyAuth == nil {
		return nil
	}
	return func(ctx context.Context) ([]byte, error) { return s.opts.KeyAuth(ctx, role) }
}
