package software

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io/fs"

	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/store"
)

var _ keystore.Rotator = (*Store)(nil)

// staged is the place of the key that is to follow the device key, in the record
// key-dsk-next.
const staged = keystore.Device + "-next"

// Stage makes the key that is to follow the device key, as Generate makes that,
// and stores it beside it. See [keystore.Rotator]. For [keystore.Enrolment] the
// error is errors.ErrUnsupported; the other errors are those of Signer and
// Generate.
func (s *Store) Stage(ctx context.Context, role keystore.Role) (crypto.Signer, error) {
	var key crypto.Signer
	err := s.rotate(ctx, "stage", role, func() (err error) {
		key, err = s.stage(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	return key, nil
}

// Commit makes the staged key the device key. See [keystore.Rotator]. A staged
// key that does not open, because it is damaged or the secret is wrong, takes
// nobody's place.
func (s *Store) Commit(ctx context.Context, role keystore.Role) error {
	return s.rotate(ctx, "commit", role, func() error { return s.commit(ctx) })
}

// Discard deletes the staged key. See [keystore.Rotator].
func (s *Store) Discard(ctx context.Context, role keystore.Role) error {
	return s.rotate(ctx, "discard", role, func() error { return s.discard(ctx) })
}

func (s *Store) rotate(ctx context.Context, op string, role keystore.Role, do func() error) error {
	if role == keystore.Enrolment {
		return fmt.Errorf("software: %s %s: it is the device's identity and never changes: %w", op, role, errors.ErrUnsupported)
	}
	done, err := s.takeFor(ctx, role)
	if err == nil {
		defer done()
		delete(s.signers, staged) // another process may have changed it
		err = do()
	}
	if err != nil {
		return fmt.Errorf("software: %s %s: %w", op, role, err)
	}
	return nil
}

func (s *Store) stage(ctx context.Context) (crypto.Signer, error) {
	key, err := s.open(ctx, staged)
	if errors.Is(err, store.ErrDamaged) {
		// It was nobody's key yet.
		if err = s.discard(ctx); err == nil {
			err = fs.ErrNotExist
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		key, err = s.create(ctx, staged)
	}
	if errors.Is(err, fs.ErrExist) { // another process was faster
		key, err = s.open(ctx, staged)
	}
	return key, err
}

// commit writes the staged key to the device key's record before it deletes the
// other.
func (s *Store) commit(ctx context.Context) error {
	key, err := s.open(ctx, staged)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	from, to := recordName(staged), recordName(keystore.Device)
	_, payload, err := store.DecodeRecord(from, s.signers[staged].record)
	if err != nil {
		return err
	}
	record := store.EncodeRecord(to, recordVersion, payload)
	if err := s.records.Put(ctx, to, record); err != nil {
		return err
	}
	s.signers[keystore.Device] = opened{key, record}
	return s.discard(ctx)
}

func (s *Store) discard(ctx context.Context) error {
	delete(s.signers, staged)
	return s.records.Delete(ctx, recordName(staged))
}
