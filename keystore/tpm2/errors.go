package tpm2

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"time"

	gotpm "github.com/google/go-tpm/tpm2"
)

// What can be wrong with the TPM, or between it and the caller. None of these is
// ever fs.ErrNotExist: that says that a key may be made, and here none may.
var (
	// ErrNoTPM says that there is no TPM at Options.Path, or that what is there
	// is none.
	ErrNoTPM = errors.New("no TPM 2.0")
	// ErrPermission says that the process may not open the TPM. The error is
	// fs.ErrPermission too.
	ErrPermission = errors.New("no permission to use the TPM: add the user to the group that owns the device, which is tss on most systems")
	// ErrBusy says that another program has opened the TPM, which allows one
	// only: /dev/tpm0 is such a device, /dev/tpmrm0 is not.
	ErrBusy = errors.New("another program has opened the TPM: end it, or let both use /dev/tpmrm0")
	// ErrConnection says that the connection to the TPM broke in the middle of
	// a command. The next call connects anew.
	ErrConnection = errors.New("the connection to the TPM broke")
	// ErrUnanswered says that the TPM has not answered in time. Nothing more is
	// sent to it until it does, and no call of its key stores succeeds before.
	ErrUnanswered = errors.New("the TPM has not answered: its key stores are unusable until it does")
	// ErrNoP256 says that the TPM does not know the curve P-256, as some old
	// firmware does not.
	ErrNoP256 = errors.New("the TPM does not know the elliptic curve P-256: it needs newer firmware, or is the wrong TPM")
	// ErrOutOfSlots says that the TPM is full. As a [*SlotsError] it tells of what.
	ErrOutOfSlots = errors.New("the TPM is full")
	// ErrLockout says that the TPM refuses authorizations after too many wrong
	// ones. As a [*LockoutError] it tells for how long.
	ErrLockout = errors.New("the TPM is in dictionary attack lockout")
	// ErrAuth says that the TPM did not accept an authorization value: that of
	// the owner (Options.OwnerAuth) or of a key (KeyOptions.KeyAuth).
	ErrAuth = errors.New("the TPM does not accept the authorization value")
	// ErrHandleUsed says that the persistent handle asked for holds an object
	// that is not the key.
	ErrHandleUsed = errors.New("the persistent handle holds another object: choose another handle, or remove the object with tpm2_evictcontrol")
)

// What can be wrong with a stored key. A damaged one is store.ErrDamaged.
var (
	// ErrCleared says that the TPM was cleared since the key was made, in the
	// machine's set-up or with TPM2_Clear: the key and the identity are gone for
	// good. To provision the device again, as a new one, delete the record.
	ErrCleared = errors.New("this TPM was cleared and the identity is gone: to provision again, as a new device, delete the record")
	// ErrOtherTPM says that the key was made in another TPM, as when a disk
	// moved to another machine. Put it back; or, to provision a new device,
	// delete the record.
	ErrOtherTPM = errors.New("the key belongs to another TPM: use that one, or to provision again, as a new device, delete the record")
	// ErrTemplate says that the key was wrapped under another parent than the
	// one its record or file names, or than the one that a format can express.
	ErrTemplate = errors.New("the key is wrapped under another parent template")
	// ErrWrongSignature says that the TPM answered with something that is not
	// the key's signature. It was thrown away; trying again is safe.
	ErrWrongSignature = errors.New("the TPM made a wrong signature, which is not handed out")
)

// SlotsError says who has what the TPM is out of. It is ErrOutOfSlots.
type SlotsError struct {
	What    string   // "slots for objects", "slots for sessions" or "persistent memory"
	Holders []Holder // as many as the TPM tells
	Err     error    // what the TPM said
}

// Holder is an object in the TPM.
type Holder struct {
	Handle      uint32
	Description string // such as "ECC storage key", empty if it cannot be learnt
}

// Error implements error.
func (e *SlotsError) Error() string {
	var held []string
	for _, h := range e.Holders {
		one := fmt.Sprintf("0x%08x", h.Handle)
		if h.Description != "" {
			one += " (" + h.Description + ")"
		}
		held = append(held, one)
	}
	if len(held) == 0 {
		held = []string{"unknown"}
	}
	return fmt.Sprintf("%v: no %s are left; held: %s; end the programs that hold them, or let all use /dev/tpmrm0: %v",
		ErrOutOfSlots, e.What, strings.Join(held, ", "), e.Err)
}

// Unwrap makes it ErrOutOfSlots.
func (e *SlotsError) Unwrap() []error { return []error{ErrOutOfSlots, e.Err} }

// LockoutError says for how long a TPM refuses authorizations. It is ErrLockout.
type LockoutError struct {
	Wait     time.Duration // until the TPM lets the next attempt pass, at most
	Failures uint32        // that the TPM has counted
}

// Error implements error.
func (e *LockoutError) Error() string {
	return fmt.Sprintf("%v after %d wrong authorizations: wait %v, or reset it with tpm2_dictionarylockout", ErrLockout, e.Failures, e.Wait)
}

// Unwrap makes it ErrLockout.
func (e *LockoutError) Unwrap() error { return ErrLockout }

// errAbsent is ErrNoTPM because there is nothing at the path.
var errAbsent = fmt.Errorf("%w: is there one, is it switched on, and is its driver loaded?", ErrNoTPM)

// connectionError says what a failed call of the system means. It hides the system's
// error from errors.Is, in which a missing device would be fs.ErrNotExist: a missing key.
func connectionError(step string, err error) error {
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%w: %s: %v: %w", ErrPermission, step, err, fs.ErrPermission)
	case errors.Is(err, syscall.EBUSY):
		return fmt.Errorf("%w: %s: %v", ErrBusy, step, err)
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%w: %s: %v", errAbsent, step, err)
	case errors.Is(err, errNotTPM), errors.Is(err, syscall.ENODEV), errors.Is(err, syscall.ENXIO),
		errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w: %s: %v", ErrNoTPM, step, err)
	}
	return fmt.Errorf("%w: %s: %v", ErrConnection, step, err)
}

// answered reports whether err is what a TPM answered, and is one of the codes if
// any are given.
func answered(err error, codes ...gotpm.TPMRC) bool {
	var rc gotpm.TPMRC
	if !errors.As(err, &rc) {
		return false
	}
	for _, code := range codes {
		if errors.Is(rc, code) {
			return true
		}
	}
	return len(codes) == 0
}

func full(err error) (what string, is bool) {
	switch {
	case answered(err, gotpm.TPMRCObjectMemory, gotpm.TPMRCObjectHandles, gotpm.TPMRCMemory):
		return "slots for objects", true
	case answered(err, gotpm.TPMRCSessionMemory, gotpm.TPMRCSessionHandles):
		return "slots for sessions", true
	case answered(err, gotpm.TPMRCNVSpace):
		return "persistent memory", true
	}
	return "", false
}

// errMoved says that somebody else's object has got the handle of one of ours.
var errMoved = errors.New("the TPM was reset, and what was loaded is gone")

// forgotten reports whether the TPM has lost what was loaded, as in a reset.
func forgotten(err error) bool {
	return answered(err, gotpm.TPMRCReferenceH0, gotpm.TPMRCReferenceH1, gotpm.TPMRCReferenceH2,
		gotpm.TPMRCReferenceS0, gotpm.TPMRCReferenceS1, gotpm.TPMRCInitialize)
}
