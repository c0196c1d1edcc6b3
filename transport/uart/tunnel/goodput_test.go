package tunnel

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// ceiling is the largest share of a line that retransmission of data frames can
// make use of when one byte in n is damaged, whatever the size of the frames.
// A frame arrives if all its bytes and the delimiter before it do.
func ceiling(n float64) (share float64, payload int) {
	for x := 1; x <= MaxFrame; x++ {
		wire := float64(x + overhead)
		if s := float64(x) / wire * math.Pow(1-1/n, wire+1); s > share {
			share, payload = s, x
		}
	}
	return share, payload
}

// transfer sends bytes from the tool to the device and returns the share of the
// line's slots that they took, the handshake included.
func transfer(t testing.TB, c *cable, r *rand.Rand, size int) float64 {
	require.True(t, c.open(r), "no stream")
	device, tool := c.ends[0], c.ends[1]
	from, to := newSource(7, size), newSource(7, size)
	buf := make([]byte, 512)
	bad := false
	c.turn = func() {
		from.took(tool.Write(c.now, from.next(tool.Writable())))
		n := device.Read(c.now, buf)
		bad = bad || !to.check(buf[:n])
	}
	begin := c.now
	for to.left > 0 && !bad {
		require.NoError(t, device.Err())
		require.NoError(t, tool.Err())
		require.True(t, c.step())
	}
	require.False(t, bad, "what arrived is not what was sent")
	slots := (c.now - begin).Seconds() * baud115200
	return float64(size) / slots
}

// lines are the conditions under which the goodput is measured. The ceiling is
// that of retransmission with our overhead, for one byte in n damaged or lost.
var lines = []struct {
	name  string
	least float64 // share of the line
	n     float64
	fault func(r *rand.Rand) func(time.Duration, byte) []byte
}{
	{"clean", 0.88, math.Inf(1), nil},
	{"one byte in 10000 damaged", 0.85, 10000, func(r *rand.Rand) func(time.Duration, byte) []byte { return damage(r, 10000) }},
	{"one byte in 1000 damaged", 0.70, 1000, func(r *rand.Rand) func(time.Duration, byte) []byte { return damage(r, 1000) }},
	{"one byte in 100 damaged", 0.42, 100, func(r *rand.Rand) func(time.Duration, byte) []byte { return damage(r, 100) }},
	{"one byte in 100 lost", 0.42, 100, func(r *rand.Rand) func(time.Duration, byte) []byte { return fault(faults{Lose: 100}, r) }},
	{"bursts of 200 bytes lost, one in 10000 bytes", 0.80, math.Inf(1),
		func(r *rand.Rand) func(time.Duration, byte) []byte { return fault(faults{BurstLost: 10000}, r) }},
	{"bursts of 200 bytes repeated, one in 10000 bytes", 0.80, math.Inf(1),
		func(r *rand.Rand) func(time.Duration, byte) []byte { return fault(faults{Repeat: 10000}, r) }},
}

func fault(f faults, r *rand.Rand) func(time.Duration, byte) []byte {
	w := newWay()
	f.apply(w, r)
	return w.fault
}

func measure(t testing.TB, seed uint64, i int) (share float64, c *cable) {
	r := rand.New(rand.NewPCG(seed, 2))
	c = newCable(Options{})
	if f := lines[i].fault; f != nil {
		c.ways[0].fault, c.ways[1].fault = f(r), f(r)
	}
	return transfer(t, c, r, 256<<10), c
}

// An update of 256 KiB through a line of 115200 baud with USB's latency, in slots
// of the line. Everything is computed, so the figures are the same everywhere.
func TestGoodput(t *testing.T) {
	seeds := uint64(4)
	if testing.Short() || raceEnabled {
		seeds = 1
	}
	for i, line := range lines {
		t.Run(line.name, func(t *testing.T) {
			best, payload := ceiling(line.n)
			for seed := range seeds {
				share, c := measure(t, seed, i)
				t.Logf("goodput %.1f %% of the line; ceiling %.1f %%, with %d bytes a frame; acknowledgements take %.1f %% of the other direction",
					100*share, 100*best, payload, 100*float64(c.ways[0].slots)/float64(c.ways[1].slots))
				assert.GreaterOrEqual(t, share, line.least)
				sent := c.ends[1].Counters()
				assert.Less(t, float64(sent.Again)/float64(sent.Frames), 0.42, "what was not lost is sent again")
				assert.LessOrEqual(t, share, 1.02*best, "luck aside")
			}
		})
	}
}

// Frames shrink when the line begins to damage them, and grow again when it ends.
func TestFrameSizeFollowsTheLine(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	c := newCable(Options{})
	require.True(t, c.open(r))
	device, tool := c.ends[0], c.ends[1]
	data, buf := make([]byte, 2048), make([]byte, 2048)
	c.turn = func() {
		tool.Write(c.now, data)
		device.Read(c.now, buf)
	}
	pass := func(bytes uint64) int {
		for until := device.Counters().Received + bytes; device.Counters().Received < until; {
			require.True(t, c.step())
		}
		return tool.send.noise.payload(MaxFrame)
	}
	assert.Equal(t, MaxFrame, pass(64<<10), "clean")
	c.ways[1].fault = damage(r, 100)
	assert.Less(t, pass(64<<10), 40, "damaged")
	c.ways[1].fault = nil
	assert.Equal(t, MaxFrame, pass(64<<10), "clean again")
}

func BenchmarkGoodput(b *testing.B) {
	for i, line := range lines {
		b.Run(line.name, func(b *testing.B) {
			best, _ := ceiling(line.n)
			total := 0.0
			for n := range b.N {
				share, _ := measure(b, uint64(n), i)
				total += share
			}
			b.ReportMetric(100*total/float64(b.N), "%of-line")
			b.ReportMetric(100*best, "%ceiling")
			b.SetBytes(256 << 10)
		})
	}
}
