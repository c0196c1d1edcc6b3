package tpm2

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"

	gotpm "github.com/google/go-tpm/tpm2"
)

// Persistent handles of the owner (TCG, Registry of Reserved TPM 2.0 Handles and
// Localities, section 2.3).
const (
	firstHandle uint32 = 0x81000000
	lastHandle  uint32 = 0x817fffff
	rsaSRK      uint32 = 0x81000001
	eccSRK      uint32 = 0x81000002
)

func checkHandle(h uint32) error {
	switch {
	case h < firstHandle || h > lastHandle:
		return fmt.Errorf("handle 0x%08x, need 0x%08x to 0x%08x: %w", h, firstHandle, lastHandle, fs.ErrInvalid)
	case h == rsaSRK || h == eccSRK:
		return fmt.Errorf("handle 0x%08x is reserved for a storage root key: %w", h, fs.ErrInvalid)
	}
	return nil
}

// checkFree makes sure that a handle is free, and that there is room for one more.
func (w *work) checkFree(handle uint32) error {
	_, err := w.nameOf(gotpm.TPMHandle(handle))
	if err == nil {
		return fmt.Errorf("%w: 0x%08x", ErrHandleUsed, handle)
	}
	if !answered(err, gotpm.TPMRCHandle) {
		return fmt.Errorf("look at handle 0x%08x: %w", handle, err)
	}
	room, err := w.property(gotpm.TPMPTHRPersistentAvail)
	if err != nil && !answered(err) {
		return fmt.Errorf("ask for room for a persistent key: %w", err)
	}
	if err == nil && room == 0 {
		return w.explain(gotpm.TPMRCNVSpace)
	}
	return nil
}

// persist makes sure that what the key replaces is gone from its handle, and that the
// key is at its own; what is not so it makes so, if the handle is free.
func (w *work) persist(k *key) error {
	return w.try(func() error {
		old, err := w.isThere(k.replaces)
		if err == nil && old {
			err = w.evict(object{gotpm.TPMHandle(k.replaces.handle), k.replaces.name}, k.replaces.handle)
		}
		if err != nil || k.handle == 0 {
			return err
		}
		switch name, err := w.nameOf(gotpm.TPMHandle(k.handle)); {
		case err == nil && bytes.Equal(name, k.name):
			return nil
		case err == nil:
			return fmt.Errorf("%w: 0x%08x", ErrHandleUsed, k.handle)
		case !answered(err, gotpm.TPMRCHandle):
			return fmt.Errorf("look at handle 0x%08x: %w", k.handle, err)
		}
		o, p, err := w.loadKey(k)
		if err != nil {
			return err
		}
		w.flush(p.object)
		defer w.flush(o)
		err = w.evict(o, k.handle)
		if errors.Is(err, ErrHandleUsed) { // by the key itself, if another process was quicker
			if there, _ := w.isThere(&placed{k.handle, k.name}); there {
				return nil
			}
		}
		return err
	})
}

// evict is TPM2_EvictControl: it makes a loaded object persistent at the handle, and
// removes a persistent one from its own.
func (w *work) evict(o object, handle uint32) error {
	auth, err := w.secret(w.tpm.opts.OwnerAuth)
	if err != nil {
		return err
	}
	_, err = gotpm.EvictControl{
		Auth:             gotpm.AuthHandle{Handle: gotpm.TPMRHOwner, Auth: unsalted(auth)},
		ObjectHandle:     gotpm.NamedHandle{Handle: o.handle, Name: gotpm.TPM2BName{Buffer: o.name}},
		PersistentHandle: gotpm.TPMIDHPersistent(handle),
	}.Execute(w)
	switch {
	case answered(err, gotpm.TPMRCBadAuth, gotpm.TPMRCAuthFail):
		return fmt.Errorf("%w: Options.OwnerAuth: %w", ErrAuth, err)
	case answered(err, gotpm.TPMRCNVDefined):
		return fmt.Errorf("%w: 0x%08x: %w", ErrHandleUsed, handle, err)
	case err != nil:
		return fmt.Errorf("make persistent, or remove, at handle 0x%08x: %w", handle, err)
	}
	return nil
}
