package tpm2

import (
	"bytes"
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

// persist makes sure that the key is at its handle, and puts it there if the handle
// is free.
func (w *work) persist(k *key) error {
	return w.try(func() error {
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
		return w.evictControl(k, o)
	})
}

func (w *work) evictControl(k *key, o object) error {
	auth, err := w.secret(w.tpm.opts.OwnerAuth)
	if err != nil {
		return err
	}
	_, err = gotpm.EvictControl{
		Auth:             gotpm.AuthHandle{Handle: gotpm.TPMRHOwner, Auth: unsalted(auth)},
		ObjectHandle:     gotpm.NamedHandle{Handle: o.handle, Name: gotpm.TPM2BName{Buffer: o.name}},
		PersistentHandle: gotpm.TPMIDHPersistent(k.handle),
	}.Execute(w)
	if answered(err, gotpm.TPMRCBadAuth, gotpm.TPMRCAuthFail) {
		return fmt.Errorf("%w: Options.OwnerAuth: %w", ErrAuth, err)
	}
	if answered(err, gotpm.TPMRCNVDefined) {
		return fmt.Errorf("%w: 0x%08x: %w", ErrHandleUsed, k.handle, err)
	}
	if err != nil {
		return fmt.Errorf("make the key persistent: %w", err)
	}
	return nil
}
