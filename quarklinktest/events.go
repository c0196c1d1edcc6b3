package quarklinktest

import (
	"context"
	"iter"
	"time"

	"github.com/quarklink-go/quarklink"
)

// EventKind says what an [Event] is about.
type EventKind string

// The kinds of events.
const (
	EventRequest         EventKind = "request"          // a request was answered, or broken off by a fault
	EventHandshakeFailed EventKind = "handshake_failed" // a connection ended before its handshake was complete
	EventDevice          EventKind = "device"           // a device was added, moved or removed, or its State changed
	EventCertificate     EventKind = "certificate"      // a device certificate was issued
	EventRunning         EventKind = "running"          // a device says that it runs another firmware than before
	EventOutcome         EventKind = "outcome"          // a device told what became of an image
	EventBatch           EventKind = "batch"            // a batch was added, changed or removed
	EventPublished       EventKind = "published"        // firmware was published, or withdrawn if Firmware is empty
)

// Event is something that happened at a Server. Which fields are set depends on
// its Kind; the others are zero. Texts that a device sent stand there as they
// came: escape them before you show them.
type Event struct {
	Seq      uint64             `json:"seq"` // counts from 1
	Time     time.Time          `json:"time"`
	Kind     EventKind          `json:"kind"`
	DeviceID quarklink.DeviceID `json:"deviceID,omitempty"`
	Batch    string             `json:"batch,omitempty"`
	Call     Call               `json:"call,omitempty"`
	Status   int                `json:"status,omitempty"` // HTTP status of a request; 0: broken off
	State    string             `json:"state,omitempty"`  // of a device; "removed" if it was
	Firmware string             `json:"firmware,omitempty"`
	Outcome  string             `json:"outcome,omitempty"`
	Code     quarklink.Code     `json:"code,omitempty"`
	Detail   string             `json:"detail,omitempty"`
}

// keptEvents is how many events a Server remembers.
const keptEvents = 10_000

// events are the latest events.
type events struct {
	last    uint64  // Seq of the latest
	ring    []Event // event n stands at (n-1) % keptEvents
	changed chan struct{}
}

// happened adds an event and wakes who waits. It fills in Seq and Time.
func (s *Server) happened(e Event) {
	s.events.last++
	e.Seq, e.Time = s.events.last, s.now().UTC()
	if len(s.events.ring) < keptEvents {
		s.events.ring = append(s.events.ring, e)
	} else {
		s.events.ring[(e.Seq-1)%keptEvents] = e
	}
	if s.events.changed != nil {
		close(s.events.changed)
		s.events.changed = nil
	}
}

// next returns the event that follows the one numbered after, or a channel that
// is closed when there is one.
func (s *Server) next(after uint64) (Event, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := &s.events
	if after < e.last {
		oldest := e.last - uint64(len(e.ring)) + 1
		return e.ring[(max(after+1, oldest)-1)%keptEvents], nil
	}
	if e.changed == nil {
		e.changed = make(chan struct{})
	}
	return Event{}, e.changed
}

// Events returns the events that follow the one whose Seq is after, 0 for all
// that are remembered, and then each as it happens, until ctx ends or the Server
// is closed. The latest 10,000 are remembered: whoever reads more slowly than
// that misses some, and sees it by their Seq.
func (s *Server) Events(ctx context.Context, after uint64) iter.Seq[Event] {
	return func(yield func(Event) bool) {
		for ctx.Err() == nil {
			e, changed := s.next(after)
			if changed == nil {
				after = e.Seq
				if !yield(e) {
					return
				}
				continue
			}
			select {
			case <-changed:
			case <-ctx.Done():
			case <-s.done:
				return
			}
		}
	}
}

// PastEvents returns the events about one device, the oldest first, of those that
// are remembered.
func (s *Server) PastEvents(id quarklink.DeviceID) []Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	var about []Event
	oldest := s.events.last - uint64(len(s.events.ring)) + 1
	for seq := oldest; seq <= s.events.last; seq++ {
		if e := s.events.ring[(seq-1)%keptEvents]; e.DeviceID == id {
			about = append(about, e)
		}
	}
	return about
}

// Wait returns when until reports true, which it asks now and whenever something
// has happened. until may call the Server's methods:
//
//	err := server.Wait(ctx, func() bool { return server.Stats().Calls[quarklinktest.CallStatus] >= 3 })
//
// If ctx ends before, the error is the context's; if the Server is closed, it is
// net.ErrClosed.
func (s *Server) Wait(ctx context.Context, until func() bool) error {
	for {
		s.mu.Lock()
		after := s.events.last
		s.mu.Unlock()
		if until() {
			return nil
		}
		_, changed := s.next(after)
		if changed == nil {
			continue // something has happened meanwhile
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-s.done:
			return errClosed
		}
	}
}
