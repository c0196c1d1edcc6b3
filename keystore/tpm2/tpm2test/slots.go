package tpm2test

import (
	"fmt"

	gotpm "github.com/google/go-tpm/tpm2"
)

// Objects are transient objects that some other program holds in the TPM.
type Objects struct {
	tpm     *TPM
	handles []gotpm.TPMHandle
}

// Fill loads n objects of somebody else's, each of which takes one of the TPM's
// slots; swtpm has 3. They stay until they are released or the power is cut.
func (t *TPM) Fill(n int) (*Objects, error) {
	o := &Objects{tpm: t}
	for range n {
		rsp, err := gotpm.CreatePrimary{
			PrimaryHandle: gotpm.TPMRHNull,
			InPublic:      gotpm.New2B(gotpm.ECCSRKTemplate),
		}.Execute(t.direct())
		if err != nil {
			o.Release()
			return nil, fmt.Errorf("tpm2test: fill slot %d of %d: %w", len(o.handles)+1, n, err)
		}
		o.handles = append(o.handles, rsp.ObjectHandle)
	}
	return o, nil
}

// Handles returns the handles of the objects.
func (o *Objects) Handles() []uint32 {
	all := make([]uint32, len(o.handles))
	for i, h := range o.handles {
		all[i] = uint32(h)
	}
	return all
}

// Release flushes the objects. One that is no longer there is an error: somebody
// flushed what was not his.
func (o *Objects) Release() error {
	var first error
	for _, h := range o.handles {
		if _, err := (gotpm.FlushContext{FlushHandle: h}).Execute(o.tpm.direct()); err != nil && first == nil {
			first = fmt.Errorf("tpm2test: release object 0x%08x: %w", uint32(h), err)
		}
	}
	o.handles = nil
	return first
}

// The kinds of things that a TPM holds: the first handle of each (TPM 2.0 Part 2,
// section 7.2).
const (
	Transient  uint32 = 0x80000000
	Persistent uint32 = 0x81000000
	Sessions   uint32 = 0x02000000 // loaded sessions
)

// Held returns the handles of one kind that are in use.
func (t *TPM) Held(kind uint32) ([]uint32, error) {
	rsp, err := gotpm.GetCapability{Capability: gotpm.TPMCapHandles, Property: kind, PropertyCount: 64}.Execute(t.direct())
	if err != nil {
		return nil, fmt.Errorf("tpm2test: list handles: %w", err)
	}
	list, err := rsp.CapabilityData.Data.Handles()
	if err != nil {
		return nil, fmt.Errorf("tpm2test: list handles: %w", err)
	}
	var held []uint32
	for _, h := range list.Handle {
		held = append(held, uint32(h))
	}
	return held, nil
}

// Clear does what "clear the TPM" does in a machine's set-up: TPM2_Clear. What
// belongs to the owner is gone for good.
func (t *TPM) Clear() error {
	auth := gotpm.AuthHandle{Handle: gotpm.TPMRHLockout, Auth: gotpm.PasswordAuth(nil)}
	if _, err := (gotpm.Clear{AuthHandle: auth}).Execute(t.direct()); err != nil {
		return fmt.Errorf("tpm2test: clear: %w", err)
	}
	return nil
}

// SetOwnerAuth sets the owner's authorization value, which was empty.
func (t *TPM) SetOwnerAuth(auth []byte) error {
	_, err := gotpm.HierarchyChangeAuth{
		AuthHandle: gotpm.AuthHandle{Handle: gotpm.TPMRHOwner, Auth: gotpm.PasswordAuth(nil)},
		NewAuth:    gotpm.TPM2BAuth{Buffer: auth},
	}.Execute(t.direct())
	if err != nil {
		return fmt.Errorf("tpm2test: set owner auth: %w", err)
	}
	return nil
}

// Evict removes a persistent object.
func (t *TPM) Evict(handle uint32) error {
	h := gotpm.TPMHandle(handle)
	public, err := gotpm.ReadPublic{ObjectHandle: h}.Execute(t.direct())
	if err == nil {
		_, err = gotpm.EvictControl{
			Auth:             gotpm.AuthHandle{Handle: gotpm.TPMRHOwner, Auth: gotpm.PasswordAuth(nil)},
			ObjectHandle:     gotpm.NamedHandle{Handle: h, Name: public.Name},
			PersistentHandle: h,
		}.Execute(t.direct())
	}
	if err != nil {
		return fmt.Errorf("tpm2test: evict 0x%08x: %w", handle, err)
	}
	return nil
}
