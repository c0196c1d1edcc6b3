package quarklink

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/quarklink-go/quarklink/internal/est"
	"github.com/quarklink-go/quarklink/internal/exchange"
	"github.com/quarklink-go/quarklink/internal/problem"
	"github.com/quarklink-go/quarklink/internal/retry"
	"github.com/quarklink-go/quarklink/store"
	"github.com/quarklink-go/quarklink/transport"
)

// Code is a result code of the C library, one to one with quarklink_return_t
// of its public header quarklink.h.
//
// The failures among them (all but 0, 10 to 14 and 24) are errors: each has an
// Err… value for errors.Is, and errors.As finds the Code itself in an error of
// this package. The others are results and are never returned as errors.
type Code int

// The result codes, with the C library's names.
const (
	CodeGeneral            Code = -1 // QUARKLINK_ERROR
	CodeInvalidParameter   Code = -2 // QUARKLINK_INVALID_PARAMETER
	CodeCACerts            Code = -3 // QUARKLINK_CACERTS_ERROR
	CodeCommunication      Code = -4 // QUARKLINK_COMMUNICATION_ERROR
	CodeValueNotAvailable  Code = -5 // QUARKLINK_VALUE_NOT_AVAILABLE
	CodeStorage            Code = -6 // QUARKLINK_NVM_ERROR
	CodeNotInitialised     Code = -7 // QUARKLINK_NOT_INITIALISED
	CodeAzureProvisioning  Code = -8 // QUARKLINK_AZURE_PROVISIONING_ERROR
	CodeSuccess            Code = 0  // QUARKLINK_SUCCESS
	CodeEnrolled           Code = 10 // QUARKLINK_STATUS_ENROLLED
	CodeUpdateRequired     Code = 11 // QUARKLINK_STATUS_FWUPDATE_REQUIRED
	CodeNotEnrolled        Code = 12 // QUARKLINK_STATUS_NOT_ENROLLED
	CodeCertificateExpired Code = 13 // QUARKLINK_STATUS_CERTIFICATE_EXPIRED
	CodeRevoked            Code = 14 // QUARKLINK_STATUS_REVOKED
	CodeWrongSignature     Code = 20 // QUARKLINK_FWUPDATE_WRONG_SIGNATURE
	CodeMissingSignature   Code = 21 // QUARKLINK_FWUPDATE_MISSING_SIGNATURE
	CodeUpdate             Code = 22 // QUARKLINK_FWUPDATE_ERROR
	CodeNoUpdate           Code = 23 // QUARKLINK_FWUPDATE_NO_UPDATE
	CodeUpdated            Code = 24 // QUARKLINK_FWUPDATE_UPDATED
	CodeConnectionLost     Code = 25 // QUARKLINK_FW_UPDATE_WIFI_LOST
	CodeDeviceDoesNotExist Code = 30 // QUARKLINK_DEVICE_DOES_NOT_EXIST
	CodeDeviceRevoked      Code = 31 // QUARKLINK_DEVICE_REVOKED
	CodeNoCredentials      Code = 40 // QUARKLINK_CONTEXT_NO_CREDENTIALS_STORED
	CodeNoEnrolment        Code = 41 // QUARKLINK_CONTEXT_NO_ENROLMENT_INFO_STORED
	CodeNothingStored      Code = 42 // QUARKLINK_CONTEXT_NOTHING_STORED
)

// The failures, for errors.Is.
var (
	ErrGeneral            error = CodeGeneral            // whatever has no code of its own; the wrapped error says what
	ErrInvalidParameter   error = CodeInvalidParameter   // a value given by the caller
	ErrCACerts            error = CodeCACerts            // the issuing certificates, or a device certificate that does not chain to them
	ErrCommunication      error = CodeCommunication      // the instance, or DialHub's hub, could not be reached, or is not the one that was pinned
	ErrValueNotAvailable  error = CodeValueNotAvailable  // the instance has no such thing for this device, or not yet
	ErrStorage            error = CodeStorage            // the Store failed, a record is damaged, or a Slot could not be read
	ErrNotInitialised     error = CodeNotInitialised     // no instance is known: provision the device or call SetInstance
	ErrAzureProvisioning  error = CodeAzureProvisioning  // the instance could not provision the device at Azure
	ErrWrongSignature     error = CodeWrongSignature     // the image is signed, but by no trusted key
	ErrMissingSignature   error = CodeMissingSignature   // the image is not signed
	ErrUpdate             error = CodeUpdate             // the image is damaged, not for this device, or could not be written
	ErrNoUpdate           error = CodeNoUpdate           // no update is to be installed
	ErrConnectionLost     error = CodeConnectionLost     // the download broke off, or was shorter than announced
	ErrDeviceDoesNotExist error = CodeDeviceDoesNotExist // the DeviceID is in no batch of the instance
	ErrDeviceRevoked      error = CodeDeviceRevoked      // an operator revoked the device
	ErrNoCredentials      error = CodeNoCredentials      // the enrolment is stored, the instance is not: no call of ours, see ErrNotInitialised
	ErrNoEnrolment        error = CodeNoEnrolment        // the instance is stored, the enrolment is not: normal at first boot
	ErrNothingStored      error = CodeNothingStored      // neither is stored
)

// Causes that have no code of their own; they come with the nearest code.
var (
	// ErrClock says that the device's clock is wrong: it is earlier than a
	// certificate of the instance, or before Config.ClockFloor and refuses one, or
	// refuses a certificate that the instance has only just issued. The text has
	// both times. It comes with CodeCommunication.
	ErrClock = transport.ErrClock
	// ErrNoVerifier says that FirmwareUpdate was called without a Verifier. It
	// comes with CodeInvalidParameter.
	ErrNoVerifier = errors.New("no firmware verifier: set FirmwareOptions.Verifier")
	// ErrSlotTooSmall says that the image due does not fit the Slot; nothing
	// was written. It comes with CodeUpdate.
	ErrSlotTooSmall = errors.New("the image does not fit the slot")
	// ErrCertificateExpired says that Renew came too late: the certificate
	// expired while the device was offline. Enrol. It comes with CodeGeneral.
	ErrCertificateExpired = errors.New("the device certificate has expired: enrol again")
	// ErrNotNewer says that the instance renewed a certificate by one that
	// expires no later. It was not accepted. It comes with CodeGeneral.
	ErrNotNewer = errors.New("the renewed certificate expires no later than the present one")
	// ErrAwaitsRestart says that the image due is installed, and nothing says
	// that it runs: restart the device, and set Config.Firmware. It comes with
	// CodeNoUpdate.
	ErrAwaitsRestart = errors.New("the image due is installed and awaits a restart")
	// ErrRefusedBefore says that the device has refused the image due before,
	// and does not fetch it again. It comes with CodeNoUpdate.
	ErrRefusedBefore = errors.New("the image due was refused before")
)

var codeTexts = map[Code]string{
	CodeGeneral:            "failed",
	CodeInvalidParameter:   "invalid parameter",
	CodeCACerts:            "certificate chain not acceptable",
	CodeCommunication:      "communication failed",
	CodeValueNotAvailable:  "not available",
	CodeStorage:            "storage failed",
	CodeNotInitialised:     "not initialised: no instance is known",
	CodeAzureProvisioning:  "Azure provisioning failed",
	CodeSuccess:            "success",
	CodeEnrolled:           "enrolled",
	CodeUpdateRequired:     "firmware update due",
	CodeNotEnrolled:        "not enrolled",
	CodeCertificateExpired: "certificate expired",
	CodeRevoked:            "revoked",
	CodeWrongSignature:     "firmware signature not trusted",
	CodeMissingSignature:   "firmware not signed",
	CodeUpdate:             "firmware update failed",
	CodeNoUpdate:           "no firmware update to install",
	CodeUpdated:            "firmware updated",
	CodeConnectionLost:     "connection lost during the firmware update",
	CodeDeviceDoesNotExist: "the instance does not know the device",
	CodeDeviceRevoked:      "device revoked",
	CodeNoCredentials:      "no instance stored",
	CodeNoEnrolment:        "no enrolment stored",
	CodeNothingStored:      "nothing stored",
}

// String describes the code in a few words.
func (c Code) String() string {
	if text, ok := codeTexts[c]; ok {
		return text
	}
	return "code " + strconv.Itoa(int(c))
}

// Error returns the same text as String: a Code that is a failure serves as an
// error.
func (c Code) Error() string { return c.String() }

// isFailure tells the codes that are errors from those that are results.
func (c Code) isFailure() bool { return c < 0 || c >= 20 && c != CodeUpdated }

// Error is every error that this package's calls return: the call, the code,
// and the cause.
//
// When the caller's context ended the call, the Error has no Code (it is 0) and
// is errors.Is the context's error.
type Error struct {
	Op         string // the call that failed, such as "enrol"
	Code       Code   // 0 if the context ended the call
	HTTPStatus int    // of the instance's answer; 0 if the cause is no answer
	// Problem is what the instance's answer names as the reason, "" if none. It
	// can be found by errors.Is and errors.As too.
	Problem Problem
	Err     error // the cause: the step that failed and why
}

// Problem is the reason that an instance gives for refusing a request: the type
// of the problem document (RFC 9457) that it answered with. Of an instance's own
// types, which begin with "urn:quarklink:error:", it is what follows; of others
// it is the whole URI, at most 256 visible ASCII characters.
//
// It is an error for errors.Is, as in errors.Is(err, ProblemBadCSR), and
// errors.As finds the Problem of any error of this package that has one. Most
// lead to a [Code] of their own, which says the same whether or not an answer was
// the reason: prefer that.
type Problem string

// The problems that an instance names.
const (
	ProblemDeviceUnknown     Problem = problem.DeviceUnknown     // in no batch: CodeDeviceDoesNotExist
	ProblemDeviceRevoked     Problem = problem.DeviceRevoked     // by an operator: CodeDeviceRevoked
	ProblemNotEnrolled       Problem = problem.NotEnrolled       // no certificate is valid: CodeValueNotAvailable
	ProblemBadCSR            Problem = problem.BadCSR            // the CSR breaks the policy: CodeGeneral
	ProblemBadToken          Problem = problem.BadToken          // the token is none of the instance's: CodeGeneral
	ProblemAzureProvisioning Problem = problem.AzureProvisioning // the instance failed at Azure: CodeAzureProvisioning
	ProblemNoFirmware        Problem = problem.NoFirmware        // no update is due: CodeNoUpdate
	ProblemUnavailable       Problem = problem.Unavailable       // for now: CodeCommunication
)

// Error returns the problem as it stands.
func (p Problem) Error() string { return string(p) }

// Error says which call failed, what the code means if it means more than that,
// and why.
func (e *Error) Error() string {
	var s strings.Builder
	s.WriteString("quarklink: " + e.Op)
	if e.Code != CodeSuccess && (e.Code != CodeGeneral || e.Err == nil) {
		fmt.Fprintf(&s, ": %s (%d)", e.Code, int(e.Code))
	}
	if e.Err != nil {
		s.WriteString(": " + e.Err.Error())
	}
	return s.String()
}

// Unwrap gives errors.Is and errors.As the Code, the Problem and the cause.
func (e *Error) Unwrap() []error {
	var all []error
	if e.Code.isFailure() {
		all = append(all, e.Code)
	}
	if e.Problem != "" {
		all = append(all, e.Problem)
	}
	if e.Err != nil {
		all = append(all, e.Err)
	}
	return all
}

// RetryAfter returns how long the instance asked to be left alone (the
// Retry-After field of its answer, RFC 9110 section 10.2.3), if err comes from
// an answer that said so. The wait counts from the moment the answer came.
func RetryAfter(err error) (time.Duration, bool) {
	var answer *problem.Error
	if errors.As(err, &answer) && answer.HasAfter {
		return answer.After, true
	}
	return 0, false
}

// fail makes the Error of a call that ctx may have ended.
func fail(ctx context.Context, op string, code Code, cause error) error {
	if ended := ctx.Err(); ended != nil {
		return &Error{Op: op, Err: &endedError{ended, cause}}
	}
	return newError(op, code, cause)
}

// endedError is the cause of a call that its context ended. It says what the
// call was at, but is that for errors.Is no more: such a call has no Code. What
// the instance last answered stays to be found, for RetryAfter.
type endedError struct{ ended, at error }

func (e *endedError) Error() string {
	if errors.Is(e.at, e.ended) {
		return e.at.Error()
	}
	return e.ended.Error() + ": " + e.at.Error()
}

func (e *endedError) Unwrap() []error {
	var answer *problem.Error
	if errors.As(e.at, &answer) {
		return []error{e.ended, answer}
	}
	return []error{e.ended}
}

// newError makes the Error of a call. A code that the cause carries decides;
// code is for causes that carry none.
func newError(op string, code Code, cause error) *Error {
	e := &Error{Op: op, Code: code, Err: cause}
	var answer *problem.Error
	if errors.As(cause, &answer) {
		e.HTTPStatus, e.Problem = answer.Status, Problem(answer.Name())
	}
	if c, ok := causeCode(cause); ok {
		e.Code = c
	}
	return e
}

// problemCodes are the codes of the problem types that the instance answers
// with.
var problemCodes = map[Problem]Code{
	ProblemDeviceUnknown:     CodeDeviceDoesNotExist,
	ProblemDeviceRevoked:     CodeDeviceRevoked,
	ProblemNotEnrolled:       CodeValueNotAvailable,
	ProblemAzureProvisioning: CodeAzureProvisioning,
	ProblemNoFirmware:        CodeNoUpdate,
	ProblemBadCSR:            CodeGeneral,
	ProblemBadToken:          CodeGeneral,
	ProblemUnavailable:       CodeCommunication,
}

// causeCode finds the code that a cause carries: what the instance says counts
// more than what was being asked of it.
func causeCode(cause error) (Code, bool) {
	var answer *problem.Error
	if errors.As(cause, &answer) {
		if code, ok := problemCodes[Problem(answer.Name())]; ok {
			return code, true
		}
		if answer.Status == http.StatusAccepted {
			return CodeValueNotAvailable, true // not yet
		}
		if _, again := retry.Again(answer); again {
			return CodeCommunication, true
		}
	}
	var code Code
	switch {
	case errors.Is(cause, est.ErrCACerts), errors.Is(cause, est.ErrChain):
		return CodeCACerts, true
	case errors.As(cause, &code):
		return code, true
	case errors.Is(cause, ErrClock), errors.Is(cause, exchange.ErrMalformed):
		return CodeCommunication, true
	case errors.Is(cause, store.ErrDamaged):
		return CodeStorage, true
	case errors.Is(cause, fs.ErrInvalid):
		return CodeInvalidParameter, true
	}
	return 0, false
}

// withCode gives a cause the code it leads to, without changing what it says.
func withCode(code Code, err error) error {
	if err == nil {
		return nil
	}
	return codedError{err, code, false}
}

// stands makes err the result of its call whether or not the context ends before
// the call does.
func stands(err error) error { return codedError{err, CodeSuccess, true} }

type codedError struct {
	error
	code   Code // CodeSuccess: the cause's
	stands bool
}

func (e codedError) Unwrap() []error {
	if e.code == CodeSuccess {
		return []error{e.error}
	}
	return []error{e.code, e.error}
}
