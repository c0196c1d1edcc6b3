package tunnel

import (
	"bytes"
	"math/rand/v2"
	"time"
)

// cable is a serial line of two directions on virtual time. It takes as long as
// a real one: every byte has its slot, and comes out a latency later.
type cable struct {
	now  time.Duration
	ends [2]*End
	ways [2]*way // by the end that sends
	turn func()  // the application: called whenever time has passed
}

// way is one direction.
type way struct {
	slot    time.Duration // that a byte takes
	latency time.Duration
	// fault, if not nil, takes a byte that goes onto the line and returns what
	// comes out, which may be nothing.
	fault func(at time.Duration, b byte) []byte
	slots int // bytes that went onto the line
	free  time.Duration
	queue []arrival
}

type arrival struct {
	at time.Duration
	b  byte
}

const (
	baud115200 = 11520 // bytes a second
	usb        = 16 * time.Millisecond
)

func newWay() *way { return &way{slot: time.Second / baud115200, latency: usb} }

func newCable(o Options) *cable {
	return &cable{ends: [2]*End{New(o), New(o)}, ways: [2]*way{newWay(), newWay()}}
}

func (w *way) put(now time.Duration, p []byte) {
	for _, b := range p {
		w.free = max(w.free, now) + w.slot
		w.slots++
		out := []byte{b}
		if w.fault != nil {
			out = w.fault(w.free, b)
		}
		for _, b := range out {
			w.queue = append(w.queue, arrival{w.free + w.latency, b})
		}
	}
}

func (w *way) take(now time.Duration, buf []byte) []byte {
	n := 0
	for n < len(w.queue) && n < cap(buf) && w.queue[n].at <= now {
		buf = append(buf, w.queue[n].b)
		n++
	}
	w.queue = w.queue[n:]
	return buf
}

// flush puts all that the ends want to say onto the line.
func (c *cable) flush() {
	for i, e := range c.ends {
		for {
			out := e.Output(c.now)
			if len(out) == 0 {
				break
			}
			c.ways[i].put(c.now, out)
		}
	}
}

// step goes to the next instant at which something happens, and lets it happen.
// It returns false if nothing will ever happen again.
func (c *cable) step() bool {
	if c.turn != nil {
		c.turn()
	}
	c.flush()
	next := Never
	for i := range c.ends {
		next = min(next, c.ends[i].Deadline())
		if q := c.ways[i].queue; len(q) > 0 {
			next = min(next, q[0].at)
		}
	}
	if next == Never {
		return false
	}
	c.now = max(c.now, next)
	var buf [64]byte
	for i, e := range c.ends {
		e.Input(c.now, c.ways[1-i].take(c.now, buf[:0]))
	}
	return true
}

// open makes a stream, as a device and a tool do it.
func (c *cable) open(r *rand.Rand) bool {
	device, tool := c.ends[0], c.ends[1]
	device.Open(c.now, nonceOf(r))
	for !device.Established() {
		if device.Done() || !c.step() {
			return false
		}
		if tool.Asked() {
			tool.Accept(c.now, nonceOf(r))
		}
	}
	return true
}

func nonceOf(r *rand.Rand) (n [8]byte) {
	for i := range n {
		n[i] = byte(r.Uint32())
	}
	return n
}

// source is an application that writes so many bytes, which sink checks.
type source struct {
	rand *rand.Rand
	left int
	buf  []byte
}

func newSource(seed uint64, n int) *source {
	return &source{rand: rand.New(rand.NewPCG(seed, 1)), left: n}
}

// next returns up to n bytes of what comes next, which may be asked for again
// until taken.
func (s *source) next(n int) []byte {
	for len(s.buf) < min(n, s.left) {
		s.buf = append(s.buf, byte(s.rand.Uint32()))
	}
	return s.buf[:min(n, s.left)]
}

func (s *source) took(n int) { s.buf = s.buf[n:]; s.left -= n }

// check takes bytes that have arrived and reports whether they are what comes.
func (s *source) check(p []byte) bool {
	if len(p) > s.left || !bytes.Equal(p, s.next(len(p))) {
		return false
	}
	s.took(len(p))
	return true
}

// damage changes one byte in n.
func damage(r *rand.Rand, n int) func(time.Duration, byte) []byte {
	return func(_ time.Duration, b byte) []byte {
		if r.IntN(n) == 0 {
			return []byte{b ^ byte(1+r.IntN(255))}
		}
		return []byte{b}
	}
}

// deaf loses everything.
func deaf(time.Duration, byte) []byte { return nil }
