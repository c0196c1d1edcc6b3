package quarklinktest

import (
	"cmp"
	"crypto/x509"
	"maps"
	"slices"
	"time"

	"github.com/quarklink-go/quarklink"
)

// Device is what a Server knows of a device.
type Device struct {
	ID       quarklink.DeviceID
	Batch    string
	State    quarklink.State
	LastSeen time.Time // of its latest request; zero: never
	// Version and SHA256 are what it said that it runs; "" if it did not say.
	// SHA256 is 64 hexadecimal digits.
	Version, SHA256 string
	Due             bool                // firmware is published that it does not run, and its share includes it
	Calls           map[Call]int        // how often it made each call
	Certificates    []*x509.Certificate // every device certificate ever issued to it, the oldest first
	Outcomes        []Outcome           // the oldest first
}

// BatchSummary is what a Server knows of a batch.
type BatchSummary struct {
	Name      string
	Policy    Policy
	PollAfter time.Duration
	Firmware  *quarklink.Manifest // published; nil: none
	Share     float64             // of the devices that get it, above 0 and at most 1; 0 without Firmware
	Current   int                 // how many devices say that they run it
	Devices   int
	States    map[quarklink.State]int // how many devices are in each State
	Running   map[string]int          // how many say that they run each version; "" for those that do not say
	Outcomes  map[string]int          // how many devices have told each outcome of the published firmware
	Calls     map[Call]int            // of all its devices
}

// Device returns what is known of a device, and whether it is in a batch at all.
func (s *Server) Device(id quarklink.DeviceID) (Device, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.devices[id]
	if d == nil {
		return Device{}, false
	}
	known := Device{
		ID: d.id, Batch: d.batch.Name, State: d.state, LastSeen: d.lastSeen,
		Version: d.running.version, SHA256: d.running.sha256,
		Due:   d.state != quarklink.StateRevoked && d.due(d.running) != nil,
		Calls: maps.Clone(d.calls), Outcomes: slices.Clone(d.outcomes),
	}
	for _, i := range d.issued {
		known.Certificates = append(known.Certificates, i.cert)
	}
	return known, true
}

// Batches returns what is known of each batch, sorted by name.
func (s *Server) Batches() []BatchSummary {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := map[*batch]int{}
	var all []BatchSummary
	for _, b := range s.batches {
		at[b] = len(all)
		all = append(all, b.summary())
	}
	for _, d := range s.devices {
		all[at[d.batch]].add(d)
	}
	slices.SortFunc(all, func(a, b BatchSummary) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

func (b *batch) summary() BatchSummary {
	sum := BatchSummary{
		Name: b.Name, Policy: b.Policy, PollAfter: b.PollAfter,
		States: map[quarklink.State]int{}, Running: map[string]int{}, Outcomes: map[string]int{}, Calls: map[Call]int{},
	}
	if p := b.published; p != nil {
		m := p.manifest
		sum.Firmware = &quarklink.Manifest{Name: m.Name, Version: m.Version, Size: m.Size, SHA256: m.SHA256,
			SecureVersion: m.SecureVersion, Attributes: maps.Clone(m.Attributes)}
		sum.Share = p.share
	}
	return sum
}

// add counts a device of the batch.
func (sum *BatchSummary) add(d *device) {
	sum.Devices++
	sum.States[d.state]++
	sum.Running[d.running.version]++
	for call, n := range d.calls {
		sum.Calls[call] += n
	}
	p := d.batch.published
	if p == nil {
		return
	}
	if p.runsOn(d.running) {
		sum.Current++
	}
	told := map[string]bool{}
	for _, o := range d.outcomes {
		if o.SHA256 == sum.Firmware.SHA256 && !told[o.Outcome] {
			told[o.Outcome] = true
			sum.Outcomes[o.Outcome]++
		}
	}
}
