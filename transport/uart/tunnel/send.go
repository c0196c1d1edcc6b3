package tunnel

import (
	"encoding/binary"
	"time"
)

// maxSegments is how many data frames may be under way: a window of 2048 bytes in
// the smallest frames that a noisy line asks for.
const maxSegments = 96

// segment is a piece of the stream that was sent and not acknowledged up to
// there: one data frame, or the end of the stream. The segments follow each
// other without a gap from sender.una to sender.nxt.
type segment struct {
	at    time.Duration // when it was sent last
	order uint32        // its number among all transmissions
	len   uint8         // bytes of payload; 0 is the end of the stream
	state segmentState
	again bool // it was sent more than once, so that its round trip is unknown (Karn)
}

type segmentState uint8

const (
	inFlight segmentState = iota
	lost
	acked
)

// size is how many positions the segment takes.
func (s *segment) size() int64 { return max(1, int64(s.len)) }

// wire is how many bytes it takes on the line.
func (s *segment) wire() int { return int(s.len) + overhead }

// sender holds what the peer has not acknowledged, and decides what goes next.
type sender struct {
	ring     []byte
	una      int64 // position of the first byte that is not acknowledged
	nxt      int64 // of the first that was never sent
	end      int64 // behind the last that was written
	edge     int64 // behind the last for which the peer has room
	fin      bool  // nothing more will be written
	frame    int   // the largest payload that the peer takes
	segments []segment
	order    uint32 // transmissions so far
	flight   int    // bytes on the line that are neither acknowledged nor known to be lost
	probe    bool   // ask for an acknowledgement
	shut     bool   // the peer's window is, and the timer runs for that

	has      [maxRanges + 1]span // what the peer has, by its last acknowledgement
	hasCount int

	timer   time.Duration // when the peer last acknowledged something, or the first segment went
	backoff uint          // how often the time-out has passed since then
	pace    pace
	noise   noise
}

func (s *sender) begin() {
	*s = sender{ring: s.ring, segments: s.segments[:0], frame: MaxFrame, pace: newPace(), noise: newNoise()}
}

func (s *sender) setPeer(p peer) { s.frame, s.edge = p.frame, int64(p.window) }

func (s *sender) room() int { return len(s.ring) - int(s.end-min(s.una, s.end)) }

func (s *sender) write(p []byte) int {
	if s.fin {
		return 0
	}
	p = p[:min(len(p), s.room())]
	at := int(s.end % int64(len(s.ring)))
	n := copy(s.ring[at:], p)
	copy(s.ring, p[n:])
	s.end += int64(len(p))
	return len(p)
}

// outstanding reports whether something was sent that is not acknowledged.
func (s *sender) outstanding() bool { return len(s.segments) > 0 }

func (s *sender) flushed() bool {
	if s.fin {
		return s.una > s.end
	}
	return s.una == s.end
}

// blocked reports whether there is something to send but no window for it.
func (s *sender) blocked() bool {
	return len(s.segments) == 0 && s.nxt < s.end && s.edge <= s.nxt
}

// timeout returns when the peer should have acknowledged something.
func (s *sender) timeout() (time.Duration, bool) {
	if s.flight == 0 && !(s.shut && s.blocked()) {
		return 0, false
	}
	return s.timer + min(s.pace.timeout()<<s.backoff, maxTimeout), true
}

// expire is called when the peer has not acknowledged anything in time. At first
// that is put down to the last frames on the line: the oldest that is under way
// goes again, and its acknowledgement will tell of the others. If that does not
// help, all that is under way is taken for lost. With a window that is shut the
// peer is asked whether that still holds.
func (s *sender) expire(now time.Duration) {
	s.timer = now
	s.backoff = min(s.backoff+1, 8)
	if s.flight == 0 {
		s.probe = true
		return
	}
	oldest := true
	for i := range s.segments {
		g := &s.segments[i]
		if g.state != inFlight || !oldest && s.backoff == 1 {
			continue
		}
		g.state = lost
		s.flight -= g.wire()
		if oldest { // of the others nobody can tell
			s.noise.missed(g.wire())
			oldest = false
		}
	}
	if s.backoff > 1 {
		s.pace.shrink(s.noise.payload(s.frame) + overhead)
	}
}

// ack takes an acknowledgement. It returns how many bytes are newly acknowledged
// and whether the peer could say that.
func (s *sender) ack(now time.Duration, body []byte) (bytes int, ok bool) {
	if len(body) < ackSize {
		return 0, false
	}
	next := s.una + distance(binary.BigEndian.Uint16(body[1:]), uint16(s.una&0x7fff))
	limits := binary.BigEndian.Uint16(body[3:])
	window := int64(limits &^ moreRanges)
	if next < 0 || next > s.nxt || window > maxWindow || !s.parse(next, body[ackSize:]) {
		return 0, false
	}
	if next+window > s.edge {
		s.edge = next + window
	}
	arrived, bytes, newest := s.cover(now)
	if !arrived {
		return 0, true
	}
	s.timer, s.backoff = now, 0
	known := s.nxt
	if limits&moreRanges != 0 {
		known = s.has[s.hasCount-1].to
	}
	if newest != nil {
		s.miss(newest.order, known)
	}
	s.drop()
	return bytes, true
}

// parse notes the pieces of the stream that the peer has.
func (s *sender) parse(next int64, runs []byte) bool {
	s.has[0], s.hasCount = span{s.una, next}, 1
	for at := next; len(runs) > 0; {
		var missing, there int64
		var ok bool
		if missing, runs, ok = takeVarint(runs); !ok {
			return false
		}
		if there, runs, ok = takeVarint(runs); !ok {
			return false
		}
		from := at + missing
		at = from + there
		if missing == 0 || there == 0 || at > min(s.nxt, s.end) || s.hasCount == len(s.has) {
			return false
		}
		s.has[s.hasCount] = span{from, at}
		s.hasCount++
	}
	return true
}

// cover marks the segments that the peer has. It returns whether any of them are
// new, of how many bytes, and the one whose last transmission has come and was the
// latest, or nil.
func (s *sender) cover(now time.Duration) (arrived bool, bytes int, newest *segment) {
	wire := 0
	from, k := s.una, 0
	for i := range s.segments {
		g := &s.segments[i]
		to := from + g.size()
		for k < s.hasCount && s.has[k].to < to {
			k++
		}
		if k < s.hasCount && s.has[k].from <= from && g.state != acked {
			if g.state == inFlight {
				s.flight -= g.wire()
			}
			g.state = acked
			s.noise.arrived(g.wire())
			bytes += int(g.len)
			wire += g.wire()
			arrived = true
			// What is acknowledged too soon for its last transmission was not lost
			// before, and does not tell what became of those since.
			soon := g.again && now-g.at < s.pace.least/8*7
			if !soon && (newest == nil || int32(g.order-newest.order) > 0) {
				newest = g
			}
		}
		from = to
	}
	if newest != nil && !newest.again {
		s.pace.sample(now-newest.at, wire, s.noise.payload(s.frame)+overhead)
	}
	return arrived, bytes, newest
}

// miss takes for lost what was sent before something that has arrived, up to
// the position to which the acknowledgement tells: a cable keeps the order.
func (s *sender) miss(order uint32, known int64) {
	at := s.una
	for i := range s.segments {
		g := &s.segments[i]
		if at >= known {
			return
		}
		if g.state == inFlight && int32(g.order-order) < 0 {
			g.state = lost
			s.flight -= g.wire()
			s.noise.missed(g.wire())
		}
		at += g.size()
	}
}

// drop forgets the segments at the front that are acknowledged.
func (s *sender) drop() {
	n := 0
	for n < len(s.segments) && s.segments[n].state == acked {
		s.una += s.segments[n].size()
		n++
	}
	s.segments = s.segments[:copy(s.segments, s.segments[n:])]
}

// next appends the data frame that is to go now, if there is one: what was lost
// first, then what is new, then the end.
func (s *sender) next(now time.Duration, b []byte, c *Counters) []byte {
	most := s.noise.payload(s.frame)
	if s.flight > 0 && s.flight+most+overhead > s.pace.flight {
		return b
	}
	at := s.una
	for i := range s.segments {
		if s.segments[i].state == lost {
			s.fit(i, most)
			c.Again++
			s.segments[i].again = true
			return s.transmit(now, b, i, at, c)
		}
		at += s.segments[i].size()
	}
	if len(s.segments) == cap(s.segments) {
		return b
	}
	n := min(int64(most), s.end-s.nxt, s.edge-s.nxt)
	switch {
	case n > 0 && (n == int64(most) || n == s.end-s.nxt || len(s.segments) == 0): // else wait for more window
	case n <= 0 && s.fin && s.nxt == s.end:
		n = 0
	default:
		if s.blocked() && !s.shut {
			s.timer, s.shut = now, true
		}
		return b
	}
	s.shut = false
	s.segments = append(s.segments, segment{len: uint8(n)})
	s.nxt += max(1, n)
	return s.transmit(now, b, len(s.segments)-1, at, c)
}

// fit gives the lost segment the size that suits the line now: its rest becomes
// another, or what was lost behind it joins it.
func (s *sender) fit(i, most int) {
	g := &s.segments[i]
	if int(g.len) > most {
		if len(s.segments) == cap(s.segments) {
			return
		}
		s.segments = s.segments[:len(s.segments)+1]
		copy(s.segments[i+1:], s.segments[i:])
		s.segments[i+1].len = g.len - uint8(most)
		g.len = uint8(most)
		return
	}
	j := i + 1
	for j < len(s.segments) && s.segments[j].state == lost && s.segments[j].len > 0 && g.len > 0 &&
		int(g.len)+int(s.segments[j].len) <= most {
		g.len += s.segments[j].len
		j++
	}
	s.segments = s.segments[:i+1+copy(s.segments[i+1:], s.segments[j:])]
}

// transmit appends the frame of a segment at that position.
func (s *sender) transmit(now time.Duration, b []byte, i int, at int64, c *Counters) []byte {
	g := &s.segments[i]
	if s.flight == 0 {
		s.timer = now
	}
	g.at, g.order, g.state = now, s.order, inFlight
	s.order++
	s.flight += g.wire()
	c.Frames++
	position := uint16(at & 0x7fff)
	if g.len == 0 {
		return binary.BigEndian.AppendUint16(append(b, typeFin), position)
	}
	b = binary.BigEndian.AppendUint16(b, dataBit<<8|position)
	from := int(at % int64(len(s.ring)))
	n := min(int(g.len), len(s.ring)-from)
	b = append(b, s.ring[from:from+n]...)
	return append(b, s.ring[:int(g.len)-n]...)
}
