package tpm2

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"
	"io/fs"

	gotpm "github.com/google/go-tpm/tpm2"

	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/store"
)

// A key that is staged is the record tpm-dsk-next. Committing puts it in the place of
// tpm-dsk, which is the instant that counts; whatever is cut off after that is made
// up for later, by Commit or when the key is opened.

// nextName returns the name of the record that a role's staged key has.
func nextName(role keystore.Role) (string, error) {
	name, err := RecordName(role)
	if err == nil && role != keystore.Device {
		err = fmt.Errorf("the key %s is the device's identity and is never replaced: %w", role, errors.ErrUnsupported)
	}
	return name + "-next", err
}

// Stage implements [keystore.Rotator]. A staged key is wrapped; with a handle in
// KeyOptions.Handles it becomes persistent when it is committed. Errors are those of
// [Store.Generate].
func (s *Store) Stage(ctx context.Context, role keystore.Role) (crypto.Signer, error) {
	signer, err := s.locked(ctx, func() (*signer, error) { return s.stage(ctx, role) })
	if err != nil {
		return nil, fmt.Errorf("tpm2: stage %s: %w", role, err)
	}
	return signer, nil
}

func (s *Store) stage(ctx context.Context, role keystore.Role) (*signer, error) {
	next, err := nextName(role)
	if err != nil {
		return nil, err
	}
	staged, err := s.staged(ctx, role, next)
	if staged != nil {
		return s.openKey(ctx, role, next, staged)
	}
	put := s.records.Create
	if errors.Is(err, store.ErrDamaged) {
		put = s.records.Put
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	k, err := s.create(ctx, role)
	if err != nil {
		return nil, err
	}
	data, err := k.encode(next)
	if err == nil {
		err = put(ctx, next, data)
	}
	if errors.Is(err, fs.ErrExist) { // another process was quicker
		if k, err = s.read(ctx, next); err == nil {
			return s.openKey(ctx, role, next, k)
		}
	}
	if err != nil {
		return nil, err
	}
	return s.keep(ctx, role, next, k), nil
}

// staged returns the staged key. One that is the role's already, because power was
// cut while it was committed, is no longer staged.
func (s *Store) staged(ctx context.Context, role keystore.Role, next string) (*key, error) {
	k, err := s.read(ctx, next)
	if err != nil {
		return nil, err
	}
	name, err := RecordName(role)
	if err != nil {
		return nil, err
	}
	if current, err := s.read(ctx, name); err == nil && bytes.Equal(current.name, k.name) {
		if err := s.discard(ctx, next); err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("record %q: %w", next, fs.ErrNotExist)
	}
	return k, nil
}

// Commit implements [keystore.Rotator]. A persistent key is removed from its handle,
// and the new one put at that of KeyOptions.Handles. If another object is there the
// error is [ErrHandleUsed] and nothing is changed. Should the TPM fail after the new key
// has become the role's, the error is the TPM's; [Store.Signer] then makes up for it.
func (s *Store) Commit(ctx context.Context, role keystore.Role) error {
	_, err := s.locked(ctx, func() (*signer, error) { return nil, s.commit(ctx, role) })
	if err != nil {
		return fmt.Errorf("tpm2: commit %s: %w", role, err)
	}
	return nil
}

func (s *Store) commit(ctx context.Context, role keystore.Role) error {
	next, err := nextName(role)
	if err != nil {
		return err
	}
	name, err := RecordName(role)
	if err != nil {
		return err
	}
	k, err := s.staged(ctx, role, next)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	old, err := s.read(ctx, name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, store.ErrDamaged) {
		return err
	}
	k.handle = s.opts.Handles[role]
	if k.handle != 0 || old != nil && (old.handle != 0 || old.replaces != nil) {
		err = s.tpm.run(ctx, func(w *work) error { return w.planHandles(k, old) })
		if err != nil {
			return err
		}
	}
	data, err := k.encode(name)
	if err != nil {
		return err
	}
	if err := s.records.Put(ctx, name, data); err != nil {
		return err
	}
	s.keep(ctx, role, name, k)
	if err := s.discard(ctx, next); err != nil {
		return err
	}
	return s.settle(ctx, k)
}

// planHandles notes which persistent object a new key replaces, and makes sure that
// its handle will be free.
func (w *work) planHandles(k, old *key) error {
	return w.try(func() error {
		if old != nil {
			for _, at := range []*placed{{old.handle, old.name}, old.replaces} {
				there, err := w.isThere(at)
				if err != nil {
					return err
				}
				if there {
					k.replaces = at
				}
			}
		}
		if k.handle == 0 || k.replaces != nil && k.replaces.handle == k.handle {
			return nil
		}
		return w.checkFree(k.handle)
	})
}

// placed is a persistent object.
type placed struct {
	handle uint32
	name   []byte
}

// isThere reports whether the object is at its handle; nil and handle 0 are none.
func (w *work) isThere(p *placed) (bool, error) {
	if p == nil || p.handle == 0 {
		return false, nil
	}
	name, err := w.nameOf(gotpm.TPMHandle(p.handle))
	if answered(err, gotpm.TPMRCHandle) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at handle 0x%08x: %w", p.handle, err)
	}
	return bytes.Equal(name, p.name), nil
}

// Discard implements [keystore.Rotator]. It does not use the TPM.
func (s *Store) Discard(ctx context.Context, role keystore.Role) error {
	_, err := s.locked(ctx, func() (*signer, error) {
		next, err := nextName(role)
		if err != nil {
			return nil, err
		}
		return nil, s.discard(ctx, next)
	})
	if err != nil {
		return fmt.Errorf("tpm2: discard %s: %w", role, err)
	}
	return nil
}

func (s *Store) discard(ctx context.Context, next string) error {
	if err := s.records.Delete(ctx, next); err != nil {
		return err
	}
	delete(s.signers, next)
	return nil
}
