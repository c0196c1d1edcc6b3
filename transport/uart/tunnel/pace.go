package tunnel

import "time"

const (
	firstTimeout = time.Second // RFC 6298 section 2.1
	minTimeout   = 100 * time.Millisecond
	graceTime    = 30 * time.Millisecond
	maxTimeout   = 2 * time.Second
	queueTime    = 25 * time.Millisecond // what may wait in front of the line
	firstFlight  = 512
	maxFlight    = 1 << 15
)

// pace learns the line's round trip: for the time-out as RFC 6298 does, and for
// how many bytes are on the way at a time. More than the round trip holds would
// only wait in the kernel's queue, and what was lost would wait behind it.
type pace struct {
	smoothed  time.Duration // 0: nothing measured yet
	variation time.Duration
	least     time.Duration
	flight    int  // bytes that may be on the way
	met       bool // the queue has grown once: from now on in small steps
}

func newPace() pace { return pace{flight: firstFlight} }

// timeout returns RFC 6298's time-out.
func (p *pace) timeout() time.Duration {
	if p.smoothed == 0 {
		return firstTimeout
	}
	return max(minTimeout, p.smoothed+4*p.variation+graceTime)
}

// sample takes the round trip of a frame that was sent once, how many bytes of
// the line are acknowledged with it, and what a frame takes there.
func (p *pace) sample(rtt time.Duration, wire, frame int) {
	if p.smoothed == 0 {
		p.smoothed, p.variation, p.least = rtt, rtt/2, rtt
	} else {
		off := rtt - p.smoothed
		p.smoothed += off / 8
		p.variation += (max(off, -off) - p.variation) / 4
		p.least = min(p.least, rtt)
	}
	queue := max(queueTime, p.least/2)
	switch {
	case rtt > p.least+queue:
		p.met = true
		p.flight = max(2*frame, p.flight-wire/8)
	case p.met:
		p.flight = min(maxFlight, p.flight+wire/8)
	default:
		p.flight = min(maxFlight, p.flight+wire)
	}
}

// shrink is for a peer that has not answered twice.
func (p *pace) shrink(frame int) { p.flight, p.met = max(2*frame, p.flight/2), false }

// noise learns how many bytes the line damages, and what size of frame loses
// least by it: small frames pay for their overhead, large ones are hit more
// often. With a loss of one byte in n and an overhead of h the best payload x is
// where x (x + h) = h n, as long as n is much larger than x.
type noise struct {
	bytes int // that have gone over the line, the older ones counting less
	hits  int // of them the damaged ones, in 256ths
}

const (
	hit       = 256
	firstSize = 64
	memory    = 8192 // bytes that count in full
)

// newNoise expects what asks for frames of firstSize bytes.
func newNoise() noise { return noise{bytes: firstSize * (firstSize + overhead) / overhead, hits: hit} }

func (n *noise) arrived(wire int) { n.count(wire, 0) }
func (n *noise) missed(wire int)  { n.count(wire, hit) }

func (n *noise) count(wire, hits int) {
	n.bytes += wire
	n.hits += hits
	if n.bytes > memory {
		n.bytes /= 2
		n.hits /= 2
	}
}

// payload returns the best payload of a frame, at most that large.
func (n *noise) payload(most int) int {
	square := overhead * hit * n.bytes / max(1, n.hits)
	x := MinFrame
	for x < most && (x+1)*(x+1+overhead) <= square {
		x++
	}
	return min(x, most)
}
