package quarklink

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"github.com/quarklink-go/quarklink/internal/api"
	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/store"
)

// State is what an instance thinks of a device.
type State int

// The states. A device that is in no batch has none: Status returns
// ErrDeviceDoesNotExist.
const (
	StateUnknown       State = iota // the instance named a state that this library does not know
	StateNotEnrolled                // in a batch, and no device certificate is valid
	StateEnrolled                   // a device certificate was issued
	StatePendingRevoke              // enrolled, and about to be revoked
	StateRevoked                    // no service but Status until an operator allows a new enrolment
)

var stateNames = [...]string{"unknown", "not_enrolled", "enrolled", "pending_revoke", "revoked"}

// String returns the name that the instance uses, such as "not_enrolled".
func (s State) String() string {
	if s < 0 || int(s) >= len(stateNames) {
		s = StateUnknown
	}
	return stateNames[s]
}

func parseState(name string) State {
	for s, n := range stateNames {
		if n == name {
			return State(s)
		}
	}
	return StateUnknown
}

// Status is the answer to "how do I stand?".
type Status struct {
	State State
	// CertificateExpired: the instance says so of the device certificate, or
	// the device's own clock does.
	CertificateExpired bool
	// HasEnrolment: the device certificate and where to connect with it are
	// both stored on the device, and so is the certificate's key. It is false
	// if another instance issued them, if the key is damaged, and while a new
	// certificate waits for its connection details, although then Enrolment
	// returns the old one.
	HasEnrolment bool
	// RenewalDue: the certificate is past the share of its lifetime after which
	// it is renewed, or a renewal has begun and not ended.
	RenewalDue bool
	// Batch is the name of the device's batch, for people.
	Batch string
	// Firmware describes the update that is due; nil if none is. The image that
	// runs, by Config.Firmware, is none.
	Firmware *Manifest
	// AwaitsRestart: that update is installed. Restart the device; if it has
	// been restarted, Config.Firmware does not say that the update runs.
	AwaitsRestart bool
	// FirmwareRefused: the device refused that update before.
	FirmwareRefused bool
	// PollAfter is when the instance would like to be asked again; 0 if it
	// does not mind.
	PollAfter time.Duration
}

// NeedsEnrolment reports whether Enrol is called for: the device is neither
// revoked nor about to be, and it is not enrolled, or its certificate has
// expired, or it does not have what enrolment stores.
func (s Status) NeedsEnrolment() bool {
	if s.State == StateRevoked || s.State == StatePendingRevoke {
		return false
	}
	return s.State == StateNotEnrolled || s.CertificateExpired || !s.HasEnrolment
}

// NeedsRenewal reports whether Renew is called for: the device is enrolled, its
// certificate is due to be renewed, and has not expired. After that it is Enrol
// that is called for.
func (s Status) NeedsRenewal() bool {
	return s.State == StateEnrolled && s.HasEnrolment && s.RenewalDue && !s.CertificateExpired
}

// NeedsUpdate reports whether FirmwareUpdate is called for: the device is not
// revoked, and an update is due that was neither refused nor awaits a restart.
func (s Status) NeedsUpdate() bool {
	return s.State != StateRevoked && s.Firmware != nil && !s.AwaitsRestart && !s.FirmwareRefused
}

// Code returns what the C library's quarklink_status returns, the first that
// holds: CodeRevoked, CodeUpdateRequired (if NeedsUpdate), CodeNotEnrolled,
// CodeCertificateExpired, CodeEnrolled. An update comes before enrolment
// because the Initial Enrolment Firmware never enrols and yet must learn of its
// update; a pending revocation counts as enrolled. A state that this library
// does not know is CodeGeneral.
func (s Status) Code() Code {
	switch {
	case s.State == StateRevoked:
		return CodeRevoked
	case s.NeedsUpdate():
		return CodeUpdateRequired
	case s.State == StateNotEnrolled:
		return CodeNotEnrolled
	case s.CertificateExpired:
		return CodeCertificateExpired
	case s.State == StateEnrolled, s.State == StatePendingRevoke:
		return CodeEnrolled
	}
	return CodeGeneral
}

// Manifest describes an image that the instance wants on the device. It is
// information only and not signed: what decides is the signed image itself.
type Manifest struct {
	Name    string
	Version string
	Size    int64    // bytes, the signature included
	SHA256  [32]byte // of all Size bytes
	// SecureVersion is the anti-rollback counter that the image is said to
	// have; the image's own signed one counts.
	SecureVersion uint32
	// Attributes say for what the image is: "chip" (such as "esp32c3"),
	// "efuse" ("real" or "virtual").
	Attributes map[string]string
}

func manifest(f *api.Firmware) *Manifest {
	if f == nil {
		return nil
	}
	return &Manifest{Name: f.Name, Version: f.Version, Size: f.Size, SHA256: f.SHA256,
		SecureVersion: f.SecureVersion, Attributes: f.Attributes}
}

// Status asks the instance how the device stands, with the identity
// certificate, so that it works before enrolment and after the device
// certificate has expired. A revoked device gets a Status too: an error means
// that the status could not be learnt.
//
// A DeviceID that is in no batch is ErrDeviceDoesNotExist: normal until the
// provisioning tool has put it there, so wait and ask again.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var status Status
	err := c.run(ctx, "status", func(ctx context.Context) (err error) {
		status, err = c.status(ctx)
		return err
	})
	return status, err
}

func (c *Client) status(ctx context.Context) (Status, error) {
	s, err := c.identitySession()
	if err != nil {
		return Status{}, err
	}
	var answer api.Status
	err = c.ask(ctx, "ask for the status", func(ctx context.Context) (err error) {
		answer, err = s.api.Status(ctx)
		return err
	})
	if err != nil {
		return Status{}, err
	}
	if answer.DeviceID != "" && answer.DeviceID != string(c.id) {
		return Status{}, fmt.Errorf("the answer is about another device, %.64q", answer.DeviceID)
	}
	status := Status{
		State:              parseState(answer.State),
		CertificateExpired: answer.CertificateExpired,
		Batch:              answer.Batch,
		Firmware:           manifest(answer.Firmware),
		PollAfter:          pollAfter(answer.PollAfter),
	}
	c.consider(ctx, &status)
	if err := c.bind(ctx, true); err != nil {
		c.log.LogAttrs(ctx, slog.LevelWarn, "stored enrolment does not say to which instance it belongs", slog.Any("error", err))
	}
	if status.State == StateRevoked {
		c.noteRevoked(ctx)
	}
	if e, err := c.current(ctx); err == nil {
		status.HasEnrolment = (e.next == nil || e.next.renews) && !e.stale && c.hasKeyOf(ctx, &e.Enrolment)
		status.RenewalDue = e.next != nil && e.next.renews || !c.now().Before(c.renewAt(e.Certificate))
		status.CertificateExpired = status.CertificateExpired || c.expired(e.Certificate)
	}
	return status, nil
}

// noteRevoked remembers that the present certificate is revoked, so that the next
// enrolment is over another key. That it cannot be stored is no reason to keep
// the status back.
func (c *Client) noteRevoked(ctx context.Context) {
	e, err := c.current(ctx)
	if err != nil || e.revoked {
		return
	}
	e.revoked = true
	if err := c.putEnrolment(ctx, e); err != nil {
		c.log.LogAttrs(ctx, slog.LevelWarn, "revocation is not remembered", slog.Any("error", err))
	}
}

// hasKeyOf reports whether the enrolment can be used: not if its key is gone or
// another. A key store that does not answer now is no reason to enrol again.
func (c *Client) hasKeyOf(ctx context.Context, e *Enrolment) bool {
	dsk, err := c.keys.Signer(ctx, keystore.Device)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false
	case errors.Is(err, store.ErrDamaged):
		c.log.LogAttrs(ctx, slog.LevelWarn, "device key is damaged: enrol to replace it", slog.Any("error", err))
		return false
	case err != nil:
		c.log.LogAttrs(ctx, slog.LevelWarn, "device key not available", slog.Any("error", err))
		return true
	}
	return e.certifies(dsk)
}

const maxPollAfter = 24 * time.Hour

// pollAfter bounds what the instance wishes, so that no answer silences a
// device for good.
func pollAfter(seconds float64) time.Duration {
	if !(seconds > 0) { // also NaN
		return 0
	}
	return time.Duration(min(seconds, maxPollAfter.Seconds()) * float64(time.Second))
}
