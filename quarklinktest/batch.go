package quarklinktest

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/quarklink-go/quarklink"
)

const (
	// defaultLifetime is that of a device certificate whose policy states none.
	defaultLifetime = 365 * 24 * time.Hour
	// defaultHubPort is that of MQTT over TLS.
	defaultHubPort = 8883
)

// Batch is a named set of devices that share a policy, a firmware and a signing
// key.
type Batch struct {
	Name    string // required
	Devices []quarklink.DeviceID
	Policy  Policy
	// SigningKey signs firmware that is published without a signature. Its
	// type is one that sbsign.Image takes. Nil: firmware is served as it is.
	SigningKey crypto.Signer
	// Firmware is published at once, as by Publish. Nil: none.
	Firmware *Firmware
	// PollAfter is how long a device is asked to wait before it asks for its
	// status again. 0: nothing is said.
	PollAfter time.Duration
}

// Policy is what enrolment hands out: an IoT hub, or a database (Database
// Direct). With neither it is a hub on port 8883 of the instance's host, whose
// root is the instance's; [Server.HubCertificate] makes a certificate for one.
// Both at once is an error.
type Policy struct {
	// Lifetime of a device certificate from its issue on; it begins five
	// minutes before. 0: 365 days.
	Lifetime time.Duration
	// Hub: without Roots the instance's root is meant.
	Hub *quarklink.Hub
	// Database: without Roots the instance's root is meant.
	Database *quarklink.Database
}

// Outcome is what a device told of an image.
type Outcome struct {
	SHA256  [32]byte
	Outcome string // "installed", "confirmed", "rolled_back" or "failed"
	Code    quarklink.Code
	Detail  string    // as the device sent it
	Time    time.Time // when it was told, by Options.Now
}

type batch struct {
	Batch
	published *published // nil: none
	awaited   bool       // its devices come from a snapshot, it itself not yet from AddBatch
}

type device struct {
	id       quarklink.DeviceID
	batch    *batch
	state    quarklink.State
	issued   []*issued // device certificates, the newest last
	outcomes []Outcome
	running  running
	calls    map[Call]int
	lastSeen time.Time
}

// running is what a device says that it runs; "" for what it does not say.
type running struct{ version, sha256 string }

// issued is a certificate that the Server has issued to a device.
type issued struct {
	device  *device
	cert    *x509.Certificate
	proves  proof    // byTemporary or byDevice
	csr     [32]byte // SHA-256 of the request
	renews  [32]byte // SHA-256 of the certificate that it renews; zero: none
	expired bool     // before its time, see Expire
	revoked bool
	retired bool // a newer device certificate has been used
}

func (i *issued) hasExpired(now time.Time) bool { return i.expired || now.After(i.cert.NotAfter) }

func (i *issued) valid(now time.Time) bool { return !i.revoked && !i.retired && !i.hasExpired(now) }

// current returns the device certificate in force, nil if there is none.
func (d *device) current() *issued {
	if n := len(d.issued); n > 0 && !d.issued[n-1].revoked {
		return d.issued[n-1]
	}
	return nil
}

// AddBatch adds a batch. It is an error, and nothing is added, if there is one
// of that name already, if a device is in another batch or listed twice, if a
// DeviceID is not valid, or if the firmware cannot be published.
func (s *Server) AddBatch(b Batch) error {
	if b.Name == "" {
		return errors.New("quarklinktest: batch without a name")
	}
	if err := errors.Join(b.Policy.check(), checkPollAfter(b.PollAfter)); err != nil {
		return fmt.Errorf("quarklinktest: batch %q: %w", b.Name, err)
	}
	added := batch{Batch: b}
	added.Devices, added.Firmware = nil, nil
	if b.Firmware != nil {
		var err error
		if added.published, err = prepare(*b.Firmware, b.SigningKey); err == nil {
			err = s.journal.keepImage(added.published)
		}
		if err != nil {
			return fmt.Errorf("quarklinktest: batch %q: %w", b.Name, err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.batches[b.Name]
	if at == nil {
		at = new(batch)
	} else if !at.awaited {
		return fmt.Errorf("quarklinktest: there is a batch %q already", b.Name)
	}
	listed := map[quarklink.DeviceID]bool{}
	for _, id := range b.Devices {
		if listed[id] {
			return fmt.Errorf("quarklinktest: batch %q lists device %s twice", b.Name, id)
		}
		listed[id] = true
	}
	before := *at
	*at = added
	if err := s.checkDevices(at, b.Devices); err != nil {
		*at = before
		return err
	}
	s.batches[b.Name] = at
	if err := s.batchChanged(at); err != nil {
		return err
	}
	if at.published != nil {
		s.published(at)
	}
	return s.addDevices(at, b.Devices)
}

func (p Policy) check() error {
	if p.Hub != nil && p.Database != nil {
		return errors.New("the policy has both a hub and a database: set one")
	}
	if p.Lifetime < 0 {
		return fmt.Errorf("certificates with a lifetime of %v", p.Lifetime)
	}
	return nil
}

func checkPollAfter(d time.Duration) error {
	if d < 0 {
		return fmt.Errorf("PollAfter is %v", d)
	}
	return nil
}

// AddDevices adds devices to a batch. One that is in it already stays as it is;
// one that is in another batch is an error, and then none is added.
func (s *Server) AddDevices(batch string, ids ...quarklink.DeviceID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, err := s.batch(batch)
	if err != nil {
		return err
	}
	if err := s.checkDevices(b, ids); err != nil {
		return err
	}
	return s.addDevices(b, ids)
}

// checkDevices reports whether the devices can be added to a batch.
func (s *Server) checkDevices(b *batch, ids []quarklink.DeviceID) error {
	for _, id := range ids {
		if _, err := quarklink.ParseDeviceID(string(id)); err != nil {
			return fmt.Errorf("quarklinktest: batch %q: %w", b.Name, err)
		}
		if d := s.devices[id]; d != nil && d.batch != b {
			return fmt.Errorf("quarklinktest: device %s is in batch %q already", id, d.batch.Name)
		}
	}
	return nil
}

func (s *Server) addDevices(b *batch, ids []quarklink.DeviceID) error {
	for _, id := range ids {
		if s.devices[id] != nil {
			continue
		}
		d := newDevice(id, b)
		s.devices[id] = d
		if err := s.deviceChanged(d); err != nil {
			return err
		}
	}
	return nil
}

func newDevice(id quarklink.DeviceID, b *batch) *device {
	return &device{id: id, batch: b, state: quarklink.StateNotEnrolled, calls: map[Call]int{}}
}

func (s *Server) batch(name string) (*batch, error) {
	b := s.batches[name]
	if b == nil {
		return nil, fmt.Errorf("quarklinktest: there is no batch %q", name)
	}
	if b.awaited {
		return nil, fmt.Errorf("quarklinktest: batch %q of the snapshot is to be added again by AddBatch first", name)
	}
	return b, nil
}

// Devices returns the devices of a batch, sorted; none if there is no such
// batch.
func (s *Server) Devices(batch string) []quarklink.DeviceID {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ids []quarklink.DeviceID
	for id, d := range s.devices {
		if d.batch.Name == batch {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// change runs a change of a device that is known.
func (s *Server) change(id quarklink.DeviceID, change func(*device) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.devices[id]
	if d == nil {
		return errNoDevice(id)
	}
	if err := change(d); err != nil {
		return err
	}
	return s.deviceChanged(d)
}

// Revoke revokes a device and every certificate it has: from now on it is
// answered status and nothing else, until AllowEnrolment.
func (s *Server) Revoke(id quarklink.DeviceID) error {
	return s.change(id, func(d *device) error {
		d.state = quarklink.StateRevoked
		for _, i := range s.issued {
			if i.device == d {
				i.revoked = true
			}
		}
		return nil
	})
}

// PendingRevoke says of an enrolled device that it is about to be revoked. It
// is served as before. It is an error if the device is not enrolled.
func (s *Server) PendingRevoke(id quarklink.DeviceID) error {
	return s.change(id, func(d *device) error {
		if d.state != quarklink.StateEnrolled && d.state != quarklink.StatePendingRevoke {
			return fmt.Errorf("quarklinktest: device %s is %v, so its revocation cannot be pending", id, d.state)
		}
		d.state = quarklink.StatePendingRevoke
		return nil
	})
}

// AllowEnrolment lets a revoked device enrol again: it is not enrolled from now
// on. Its old certificates stay revoked. It is an error if the device is not
// revoked.
func (s *Server) AllowEnrolment(id quarklink.DeviceID) error {
	return s.change(id, func(d *device) error {
		if d.state != quarklink.StateRevoked {
			return fmt.Errorf("quarklinktest: device %s is %v, not revoked", id, d.state)
		}
		d.state = quarklink.StateNotEnrolled
		return nil
	})
}

// Expire makes every device certificate of an enrolled device count as expired,
// whatever the clock says. It is an error if the device is not enrolled.
func (s *Server) Expire(id quarklink.DeviceID) error {
	return s.change(id, func(d *device) error {
		if d.current() == nil {
			return fmt.Errorf("quarklinktest: device %s has no certificate that could expire", id)
		}
		for _, i := range d.issued {
			i.expired = true
		}
		return nil
	})
}

// Certificates returns every device certificate ever issued to a device, the
// oldest first, none if the device is unknown.
func (s *Server) Certificates(id quarklink.DeviceID) []*x509.Certificate {
	s.mu.Lock()
	defer s.mu.Unlock()
	var certs []*x509.Certificate
	if d := s.devices[id]; d != nil {
		for _, i := range d.issued {
			certs = append(certs, i.cert)
		}
	}
	return certs
}

// Outcomes returns what a device told of its images, the oldest first, nothing
// if the device is unknown.
func (s *Server) Outcomes(id quarklink.DeviceID) []Outcome {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d := s.devices[id]; d != nil {
		return slices.Clone(d.outcomes)
	}
	return nil
}
