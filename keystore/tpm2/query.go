package tpm2

import (
	"fmt"
	"slices"

	gotpm "github.com/google/go-tpm/tpm2"
)

// What a TPM says of itself (TPM 2.0 Part 3, section 30.2). The answers come from
// outside: none is trusted to have the form that was asked for.

const maxListed = 64 // handles of one kind; a TPM has far fewer

// probe makes sure that this is a TPM 2.0 that can make and use the keys.
func (w *work) probe() error {
	family, err := w.property(gotpm.TPMPTFamilyIndicator)
	if err != nil {
		return fmt.Errorf("ask for the TPM's family: %w", err)
	}
	if family != 0x322e3000 { // "2.0"
		return fmt.Errorf("%w: the TPM's family is 0x%08x, which is not 2.0", ErrNoTPM, family)
	}
	rsp, err := gotpm.GetCapability{Capability: gotpm.TPMCapECCCurves, PropertyCount: maxListed}.Execute(w)
	if answered(err) {
		return fmt.Errorf("%w: %w", ErrNoP256, err)
	}
	if err != nil {
		return fmt.Errorf("ask for the TPM's curves: %w", err)
	}
	curves, err := rsp.CapabilityData.Data.ECCCurves()
	if err != nil || !slices.Contains(curves.ECCCurves, gotpm.TPMECCNistP256) {
		return ErrNoP256
	}
	return nil
}

// property returns one of the TPM's numbers.
func (w *work) property(p gotpm.TPMPT) (uint32, error) {
	rsp, err := gotpm.GetCapability{Capability: gotpm.TPMCapTPMProperties, Property: uint32(p), PropertyCount: 1}.Execute(w)
	if err != nil {
		return 0, err
	}
	list, err := rsp.CapabilityData.Data.TPMProperties()
	if err != nil {
		return 0, err
	}
	if len(list.TPMProperty) == 0 || list.TPMProperty[0].Property != p {
		return 0, fmt.Errorf("the TPM does not tell its property 0x%x", uint32(p))
	}
	return list.TPMProperty[0].Value, nil
}

// handles returns the handles of that kind that are in use.
func (w *work) handles(kind gotpm.TPMHT) ([]gotpm.TPMHandle, error) {
	rsp, err := gotpm.GetCapability{Capability: gotpm.TPMCapHandles, Property: uint32(kind) << 24, PropertyCount: maxListed}.Execute(w)
	if err != nil {
		return nil, err
	}
	list, err := rsp.CapabilityData.Data.Handles()
	if err != nil {
		return nil, err
	}
	return list.Handle, nil
}

// nameOf returns the Name of a loaded or persistent object.
func (w *work) nameOf(h gotpm.TPMHandle) ([]byte, error) {
	rsp, err := gotpm.ReadPublic{ObjectHandle: h}.Execute(w)
	if err != nil {
		return nil, err
	}
	_, name, err := contents(rsp.OutPublic)
	return name, err
}
