package tunnel

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"pgregory.net/rapid"
)

// faults are what goes wrong on one direction of the line: each is one in so
// many bytes, 0 for never.
type faults struct {
	Damage, Lose, Insert int
	BurstLost, Repeat    int // 200 bytes at once
	Console              int // a line of a console, before one frame in so many
	Stall                int // the line stands still for up to 3 s, before one frame in so many
}

// plan is what happens to one run of two ends.
type plan struct {
	Seed             uint64
	Device, Tool     faults // of what that side sends
	DeviceO, ToolO   Options
	DeviceN, ToolN   int // bytes that each sends
	DeviceRestart    time.Duration
	ToolRestart      time.Duration // 0: never
	DeviceGone       bool          // it does not come back after its restart
	SlowRead         int           // an application reads so many bytes at a time, 0: all
	DeviceClosesLast bool
}

func drawFaults(t *rapid.T, name string) faults {
	rare := func(what string, least int) int {
		if rapid.Bool().Draw(t, name+" "+what+"?") {
			return 0
		}
		return rapid.IntRange(least, 20*least).Draw(t, name+" one in, "+what)
	}
	return faults{
		Damage: rare("damage", 60), Lose: rare("lose", 100), Insert: rare("insert", 100),
		BurstLost: rare("burst", 1500), Repeat: rare("repeat", 1500),
		Console: rare("console", 5), Stall: rare("stall", 40),
	}
}

func drawPlan(t *rapid.T) plan {
	p := plan{
		Seed:   rapid.Uint64().Draw(t, "seed"),
		Device: drawFaults(t, "device"), Tool: drawFaults(t, "tool"),
		DeviceN: rapid.IntRange(0, 3000).Draw(t, "device sends"),
		ToolN:   rapid.IntRange(0, 6000).Draw(t, "tool sends"),
	}
	options := func(who string) Options {
		return Options{
			Receive:  rapid.IntRange(256, 3000).Draw(t, who+" receive"),
			Send:     rapid.IntRange(256, 3000).Draw(t, who+" send"),
			Frame:    rapid.IntRange(MinFrame, MaxFrame).Draw(t, who+" frame"),
			Patience: 8 * time.Second,
		}
	}
	p.DeviceO, p.ToolO = options("device"), options("tool")
	restart := func(who string) time.Duration {
		if rapid.IntRange(0, 3).Draw(t, who+" restarts") > 0 {
			return 0
		}
		return time.Duration(rapid.IntRange(1, 900).Draw(t, who+" restarts after ms")) * time.Millisecond
	}
	p.DeviceRestart, p.ToolRestart = restart("device"), restart("tool")
	p.DeviceGone = rapid.Bool().Draw(t, "device gone")
	p.SlowRead = rapid.IntRange(0, 200).Draw(t, "slow read")
	p.DeviceClosesLast = rapid.Bool().Draw(t, "device closes last")
	return p
}

// apply makes the faults of a direction.
func (f faults) apply(w *way, r *rand.Rand) {
	var last [200]byte
	count, dead := 0, time.Duration(0)
	in := func(n int) bool { return n > 0 && r.IntN(n) == 0 }
	w.fault = func(at time.Duration, b byte) []byte {
		last[count%len(last)] = b
		count++
		if in(f.BurstLost) {
			dead = at + time.Duration(len(last))*w.slot
		}
		if at < dead {
			return nil
		}
		var out []byte
		switch {
		case in(f.Lose):
		case in(f.Damage):
			out = append(out, b^byte(1+r.IntN(255)))
		case in(f.Insert):
			out = append(out, b, byte(r.Uint32()))
		default:
			out = append(out, b)
		}
		if in(f.Repeat) && count >= len(last) {
			for i := range last {
				out = append(out, last[(count+i)%len(last)])
			}
		}
		return out
	}
}

// noise is what another program writes to the line before a frame.
func (f faults) noise(w *way, now time.Duration, r *rand.Rand) {
	in := func(n int) bool { return n > 0 && r.IntN(n) == 0 }
	if in(f.Console) {
		w.put(now, []byte(fmt.Sprintf("I (%d) wifi: state %d\r\n", r.IntN(1e6), r.IntN(9))))
	}
	if in(f.Stall) {
		w.free = max(w.free, now) + time.Duration(r.IntN(3000))*time.Millisecond
	}
}

// side is an application at one end. What it sends and expects follows from the
// key of its stream, so that bytes of another stream are noticed.
type side struct {
	name     string
	key      uint32
	out, in  *source
	total    int
	expect   int
	closed   bool // it has closed its side
	eof      bool // it has seen the other's
	problem  string
	sessions int
}

func (s *side) start(key uint32, outSeed, inSeed uint64) {
	*s = side{name: s.name, key: key, total: s.total, expect: s.expect, problem: s.problem, sessions: s.sessions + 1,
		out: newSource(uint64(key)<<8|outSeed, s.total), in: newSource(uint64(key)<<8|inSeed, s.expect)}
}

// turn lets the application read and write. last: it closes only after the other.
func (s *side) turn(e *End, now time.Duration, slow int, last bool) {
	if s.out == nil || e.key != s.key {
		return
	}
	if s.out.left > 0 {
		s.out.took(e.Write(now, s.out.next(e.Writable())))
	}
	buf := make([]byte, 300)
	if slow > 0 {
		buf = buf[:slow]
	}
	if n := e.Read(now, buf); !s.in.check(buf[:n]) {
		s.problem = fmt.Sprintf("%s: %d bytes that are not what was sent", s.name, n)
	}
	if e.EOF() {
		s.eof = true
		if s.in.left > 0 {
			s.problem = fmt.Sprintf("%s: the stream ended in order %d bytes early", s.name, s.in.left)
		}
	}
	if s.out.left == 0 && !s.closed && (!last || s.eof) && e.Established() {
		e.CloseWrite(now)
		s.closed = true
	}
}

// runPlan plays a plan. It returns whether the last stream went through in order
// at both ends, and what was wrong, or "".
func runPlan(p plan) (inOrder bool, problem string) {
	r := rand.New(rand.NewPCG(p.Seed, 5))
	c := &cable{ends: [2]*End{New(p.DeviceO), New(p.ToolO)}, ways: [2]*way{newWay(), newWay()}}
	p.Device.apply(c.ways[0], r)
	p.Tool.apply(c.ways[1], r)
	device := &side{name: "device", total: p.DeviceN, expect: p.ToolN}
	tool := &side{name: "tool", total: p.ToolN, expect: p.DeviceN}
	restarted := false
	clean := p.Device == (faults{}) && p.Tool == (faults{})

	c.ends[0].Open(0, nonceOf(r))
	for c.now < 30*time.Minute {
		d, l := c.ends[0], c.ends[1]
		if p.DeviceRestart > 0 && c.now >= p.DeviceRestart {
			p.DeviceRestart, restarted = 0, true
			c.ends[0] = New(p.DeviceO)
			*device = side{name: "device", total: p.DeviceN, expect: p.ToolN, problem: device.problem}
			c.ways[0].put(c.now, []byte("ets Jun  8 2016 00:22:57\r\n\r\nrst:0x1 (POWERON_RESET),boot:0x13\r\n"))
			d = c.ends[0]
			if !p.DeviceGone {
				d.Open(c.now, nonceOf(r))
			}
		}
		if p.ToolRestart > 0 && c.now >= p.ToolRestart {
			p.ToolRestart, restarted = 0, true
			c.ends[1] = New(p.ToolO)
			*tool = side{name: "tool", total: p.ToolN, expect: p.DeviceN, problem: tool.problem}
			l = c.ends[1]
		}
		if l.Asked() {
			l.Accept(c.now, nonceOf(r))
			tool.start(l.key, 2, 1)
		}
		if d.Established() && d.key != device.key {
			device.start(d.key, 1, 2)
		}
		device.turn(d, c.now, p.SlowRead, p.DeviceClosesLast)
		tool.turn(l, c.now, p.SlowRead, !p.DeviceClosesLast)
		if problem := device.problem + tool.problem; problem != "" {
			return false, problem
		}
		for i, f := range []faults{p.Device, p.Tool} {
			if out := c.ends[i].Output(c.now); len(out) > 0 {
				f.noise(c.ways[i], c.now, r)
				c.ways[i].put(c.now, out)
			}
		}
		if d.Done() && l.Done() && d.Readable() == 0 && l.Readable() == 0 && len(c.ways[0].queue)+len(c.ways[1].queue) == 0 {
			break
		}
		if !c.step() && d.Readable() == 0 && l.Readable() == 0 {
			break
		}
	}
	d, l := c.ends[0], c.ends[1]
	switch {
	case !d.Done() || !l.Done():
		return false, fmt.Sprintf("it hangs: device done %v, tool done %v at %v", d.Done(), l.Done(), c.now)
	case clean && !restarted && (d.Err() != nil || l.Err() != nil):
		return false, fmt.Sprintf("on a clean line: device %v, tool %v", d.Err(), l.Err())
	case device.key != 0 && d.Err() == nil && (device.out.left > 0 || device.in.left > 0 || !device.eof):
		return false, fmt.Sprintf("device: in order, but %d bytes unsent and %d not come", device.out.left, device.in.left)
	case tool.key != 0 && l.Err() == nil && (tool.out.left > 0 || tool.in.left > 0 || !tool.eof):
		return false, fmt.Sprintf("tool: in order, but %d bytes unsent and %d not come", tool.out.left, tool.in.left)
	case d.Err() == nil && device.key != 0 && device.key == tool.key && tool.in.left > 0:
		return false, "in order for the device, but the tool has not got all"
	case l.Err() == nil && tool.key != 0 && device.key == tool.key && device.in.left > 0:
		return false, "in order for the tool, but the device has not got all"
	}
	return d.Err() == nil && l.Err() == nil && device.key != 0 && device.key == tool.key, ""
}

// TestRandom plays random schedules of everything that a line can do: what
// arrives is what was sent, or the stream ends with an error at both ends, and
// none hangs. QUARKLINK_SCHEDULES says how many; a failure prints its plan.
func TestRandom(t *testing.T) {
	checks := "10000"
	if n := os.Getenv("QUARKLINK_SCHEDULES"); n != "" {
		checks = n
	} else if testing.Short() || raceEnabled {
		checks = "500"
	}
	before := flag.Lookup("rapid.checks").Value.String()
	flag.Set("rapid.checks", checks)
	defer flag.Set("rapid.checks", before)
	inOrder, all := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		p := drawPlan(t)
		ordered, problem := runPlan(p)
		if problem != "" {
			t.Fatalf("%s\n%+v", problem, p)
		}
		all++
		if ordered {
			inOrder++
		}
	})
	t.Logf("%d schedules: %d streams went through in order, the others ended with an error", all, inOrder)
	assert.Greater(t, inOrder, all/4, "the schedules are too rough to show anything")
	assert.Less(t, inOrder, all*9/10, "the schedules are too gentle to show anything")
}
