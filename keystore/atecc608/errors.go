package atecc608

import (
	"errors"
	"fmt"
)

// Status is an error that the chip reports. Test for one with errors.Is, for
// any with errors.As.
type Status byte

// The status codes (cryptoauthlib, calib_command.c isATCAError; data sheet
// section 4.3).
const (
	StatusMismatch   Status = 0x01 // a MAC or a signature is not right
	StatusParse      Status = 0x03 // a command that is never legal
	StatusECCFault   Status = 0x05 // an elliptic-curve calculation failed; it may be repeated
	StatusSelfTest   Status = 0x07 // a self test failed; latched until the chip sleeps
	StatusRandomness Status = 0x08 // the random generator's health test failed; latched likewise
	StatusExecution  Status = 0x0f // legal, but not in this state or configuration
	StatusWoken      Status = 0x11 // the chip has just woken: it lost the command, and all that is volatile
	StatusWatchdog   Status = 0xee // not enough time left before the watchdog acts
	StatusComm       Status = 0xff // the command arrived damaged
)

// Error says what the status means.
func (s Status) Error() string {
	text := "unknown status"
	switch s {
	case StatusMismatch:
		text = "mismatch"
	case StatusParse:
		text = "parse error: the command is not legal"
	case StatusECCFault:
		text = "ECC fault"
	case StatusSelfTest:
		text = "self test failed"
	case StatusRandomness:
		text = "health test of the random generator failed"
	case StatusExecution:
		text = "execution error: not allowed by the chip's state or configuration"
	case StatusWoken:
		text = "the chip was asleep and has woken"
	case StatusWatchdog:
		text = "watchdog about to expire"
	case StatusComm:
		text = "the command arrived damaged"
	}
	return fmt.Sprintf("%s (status 0x%02x)", text, byte(s))
}

// Errors that tell what to do. They come wrapped, with the step that failed.
var (
	// ErrNoChip: nothing answers at the address.
	ErrNoChip = errors.New("no ATECC608 answers: check power, wiring, the pull-ups and the address; the wake pulse needs a bus of at most 100 kHz that can write to address 0, or Options.Wake")
	// ErrOtherDevice: something answers at the address that is no ATECC608.
	ErrOtherDevice = errors.New("what answers there does not behave as an ATECC608: another device has this address, or the chip has another: set Options.Address")
	// ErrAddress: a chip answers, but at another address.
	ErrAddress = errors.New("the chip has another I2C address: set Options.Address")
	// ErrBusSpeed: the chip is there but the wake pulse does not wake it, or
	// the pulse was measured to be too short.
	ErrBusSpeed = errors.New("the bus is too fast for the wake pulse: set it to 100 kHz, or set Options.Wake")
	// ErrConfigUnlocked: the chip is blank. It makes no keys yet, and its
	// random numbers are constant.
	ErrConfigUnlocked = errors.New("the chip's configuration zone is not locked: provision the chip with Plan and Provision, which cannot be undone")
	// ErrDataUnlocked: the configuration is locked but the data zone is not,
	// so that the chip does not sign.
	ErrDataUnlocked = errors.New("the chip's data zone is not locked: finish provisioning with Plan and Provision, which cannot be undone")
	// ErrSlot: the slot's configuration does not allow what was asked. As a
	// rule that cannot be changed any more: use another slot.
	ErrSlot = errors.New("the slot's configuration does not allow this: use another slot")
	// ErrDigest: what is to be signed is not a SHA-256 digest of 32 bytes.
	ErrDigest = errors.New("the chip signs only SHA-256 digests of 32 bytes")
	// ErrSignature: a signature does not verify. From a Signer: the chip
	// returned wrong signatures, or the slot's key is no longer the one that
	// the Signer was opened with; open it again.
	ErrSignature = errors.New("the signature does not verify")
	// ErrTimeout: the call took longer than Options.Timeout.
	ErrTimeout = errors.New("timed out: the chip or the bus does not keep up")
)

// failure is trouble on the way to the chip or back, as opposed to an answer
// of the chip. It may be worth another try.
type failure struct {
	err error
	// notExecuted: the chip has certainly not carried out the command.
	notExecuted bool
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

var (
	errReply    = errors.New("the reply arrived damaged")
	errNoReply  = errors.New("no reply: the chip lost its power or fell asleep")
	errUnwanted = errors.New("the reply has another length than expected")
)

// trouble wraps a status that the command's repetition may cure in a failure.
func (s Status) trouble() error {
	switch s {
	case StatusComm, StatusWatchdog, StatusSelfTest, StatusRandomness, StatusECCFault:
		return &failure{err: s, notExecuted: true}
	case StatusWoken:
		return &failure{err: s}
	}
	return s
}

// notExecuted marks trouble that came before anything that must not be done
// twice. Other errors pass.
func notExecuted(err error) error {
	var trouble *failure
	if errors.As(err, &trouble) {
		return &failure{err: err, notExecuted: true}
	}
	return err
}
