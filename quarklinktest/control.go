package quarklinktest

import (
	"fmt"
	"time"

	"github.com/quarklink-go/quarklink"
)

// SetPolicy changes the policy of a batch: for certificates and connection
// details that are asked for from now on.
func (s *Server) SetPolicy(name string, p Policy) error {
	if err := p.check(); err != nil {
		return fmt.Errorf("quarklinktest: batch %q: %w", name, err)
	}
	return s.changeBatch(name, func(b *batch) { b.Policy = p })
}

// SetPollAfter changes how long devices of the batch are asked to wait before
// they ask for their status again. 0: nothing is said.
func (s *Server) SetPollAfter(name string, d time.Duration) error {
	if err := checkPollAfter(d); err != nil {
		return fmt.Errorf("quarklinktest: batch %q: %w", name, err)
	}
	return s.changeBatch(name, func(b *batch) { b.PollAfter = d })
}

func (s *Server) changeBatch(name string, change func(*batch)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, err := s.batch(name)
	if err != nil {
		return err
	}
	change(b)
	return s.batchChanged(b)
}

// RemoveBatch removes a batch with all its devices, which are unknown from then
// on.
func (s *Server) RemoveBatch(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.batches[name]
	if b == nil {
		return fmt.Errorf("quarklinktest: there is no batch %q", name)
	}
	for _, d := range s.devices {
		if d.batch == b {
			if err := s.removeDevice(d); err != nil {
				return err
			}
		}
	}
	delete(s.batches, name)
	s.happened(Event{Kind: EventBatch, Batch: name, Detail: "removed"})
	return s.journal.write(entry{RemovedBatch: name})
}

// RemoveDevices removes devices: the Server does not know them from then on, nor
// any certificate that it issued to them. If one is in no batch that is an
// error, and none is removed.
func (s *Server) RemoveDevices(ids ...quarklink.DeviceID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		if s.devices[id] == nil {
			return errNoDevice(id)
		}
	}
	for _, id := range ids {
		if d := s.devices[id]; d != nil { // it may be listed twice
			if err := s.removeDevice(d); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Server) removeDevice(d *device) error {
	s.forget(d)
	s.happened(Event{Kind: EventDevice, DeviceID: d.id, Batch: d.batch.Name, State: "removed"})
	return s.journal.write(entry{RemovedDevice: d.id})
}

// forget drops a device and every certificate that was issued to it.
func (s *Server) forget(d *device) {
	delete(s.devices, d.id)
	for digest, i := range s.issued {
		if i.device == d {
			delete(s.issued, digest)
		}
	}
}

// MoveDevices moves devices to another batch, with their states and
// certificates. If one is in no batch that is an error, and none is moved.
func (s *Server) MoveDevices(batch string, ids ...quarklink.DeviceID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, err := s.batch(batch)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if s.devices[id] == nil {
			return errNoDevice(id)
		}
	}
	for _, id := range ids {
		d := s.devices[id]
		d.batch = b
		if err := s.deviceChanged(d); err != nil {
			return err
		}
	}
	return nil
}

func errNoDevice(id quarklink.DeviceID) error {
	return fmt.Errorf("quarklinktest: device %q is in no batch", string(id))
}

// batchChanged tells and stores that a batch is new or has changed.
func (s *Server) batchChanged(b *batch) error {
	s.happened(Event{Kind: EventBatch, Batch: b.Name})
	return s.journal.writeBatch(b)
}

// deviceChanged tells and stores that a device is new, or its state or batch
// another.
func (s *Server) deviceChanged(d *device) error {
	s.happened(Event{Kind: EventDevice, DeviceID: d.id, Batch: d.batch.Name, State: d.state.String()})
	return s.journal.writeDevice(d)
}
