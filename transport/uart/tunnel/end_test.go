package tunnel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// opened returns a cable with a stream on it.
func opened(t testing.TB, o Options) *cable {
	t.Helper()
	c := newCable(o)
	require.True(t, c.open(rand.New(rand.NewPCG(1, 1))), "no stream")
	c.run(200 * time.Millisecond)
	require.True(t, c.ends[1].Established())
	return c
}

// run lets that much time pass.
func (c *cable) run(d time.Duration) {
	until := c.now + d
	for c.next() <= until && c.step() {
	}
	c.now = until
}

// next returns when something happens next.
func (c *cable) next() time.Duration {
	c.flush()
	next := Never
	for i := range c.ends {
		next = min(next, c.ends[i].Deadline())
		if q := c.ways[i].queue; len(q) > 0 {
			next = min(next, q[0].at)
		}
	}
	return next
}

// say puts a frame with a right check on the line to that end.
func (c *cable) say(to int, key uint32, body ...byte) {
	out := make([]byte, 300)
	frame := encode(out[1:], append(make([]byte, 0, 260), body...), key)
	c.ways[1-to].put(c.now, out[:1+len(frame)])
}

func TestStreamInOrder(t *testing.T) {
	c := opened(t, Options{})
	device, tool := c.ends[0], c.ends[1]
	require.Equal(t, 5, device.Write(c.now, []byte("hello")))
	device.CloseWrite(c.now)
	c.run(time.Second)
	var buf [20]byte
	assert.Equal(t, "hello", string(buf[:tool.Read(c.now, buf[:])]))
	assert.True(t, tool.EOF())
	assert.True(t, device.Flushed())
	assert.False(t, device.Done(), "the tool has not closed its side")
	assert.Zero(t, device.Write(c.now, []byte("more")), "after CloseWrite")

	require.Equal(t, 3, tool.Write(c.now, []byte("bye")), "half closed")
	tool.CloseWrite(c.now)
	c.run(time.Second)
	assert.Equal(t, "bye", string(buf[:device.Read(c.now, buf[:])]))
	assert.True(t, device.EOF())
	for _, e := range c.ends {
		assert.True(t, e.Done())
		assert.NoError(t, e.Err())
		assert.Equal(t, Never, e.Deadline())
	}
}

// The last acknowledgement may be lost: who has finished answers a peer that has
// not heard of it.
func TestLastAcknowledgementLost(t *testing.T) {
	c := opened(t, Options{})
	device, tool := c.ends[0], c.ends[1]
	tool.CloseWrite(c.now)
	c.run(time.Second)
	device.CloseWrite(c.now)
	c.flush()
	c.ways[1].fault = deaf
	for !tool.Done() {
		require.True(t, c.step())
	}
	require.NoError(t, tool.Err())
	c.run(50 * time.Millisecond)
	assert.False(t, device.Done())
	c.ways[1].fault = nil
	c.run(5 * time.Second)
	assert.True(t, device.Done())
	assert.NoError(t, device.Err())
}

// A reader that does not read stops the writer, and no byte is lost; the writer
// goes on even if the word that there is room again is lost.
func TestFlowControl(t *testing.T) {
	for _, loses := range []bool{false, true} {
		c := opened(t, Options{Receive: 300, Send: 1000})
		device, tool := c.ends[0], c.ends[1]
		src, dst := newSource(1, 1000), newSource(1, 1000)
		src.took(tool.Write(c.now, src.next(1000)))
		c.run(5 * time.Second)
		assert.Equal(t, 300, device.Readable())
		require.NoError(t, tool.Err())
		buf := make([]byte, 300)
		require.True(t, dst.check(buf[:device.Read(c.now, buf)]))
		if loses {
			c.ways[0].fault = deaf
			c.run(300 * time.Millisecond)
			c.ways[0].fault = nil
		}
		for range 10 {
			c.run(3 * time.Second)
			require.True(t, dst.check(buf[:device.Read(c.now, buf)]))
		}
		assert.Zero(t, dst.left, "loses: %v", loses)
		assert.True(t, tool.Flushed())
	}
}

// An idle stream lives for ever, and one whose peer has gone does not.
func TestKeepAlive(t *testing.T) {
	c := opened(t, Options{})
	slots := c.ways[0].slots
	c.run(time.Hour)
	for _, e := range c.ends {
		assert.False(t, e.Done())
	}
	each := (c.ways[0].slots - slots) / int(time.Hour/(5*time.Second))
	assert.Less(t, each, 30, "bytes each five seconds")

	c.ways[0].fault = deaf
	gone := c.now
	for !c.ends[1].Done() {
		require.True(t, c.step())
	}
	assert.ErrorIs(t, c.ends[1].Err(), ErrSilent)
	assert.LessOrEqual(t, c.now-gone, 21*time.Second)
	c.run(time.Second)
	assert.ErrorIs(t, c.ends[0].Err(), ErrSilent, "it was told by a reset")
}

// A peer that speaks but never acknowledges what it was sent.
func TestNeverAcknowledges(t *testing.T) {
	c := opened(t, Options{})
	device, key := c.ends[0], c.ends[0].key
	c.ways[0].fault = deaf // the real tool hears nothing
	device.Write(c.now, []byte("hello"))
	begin := c.now
	for !device.Done() {
		c.run(time.Second)
		c.say(0, key, typeAck, 0, 0, 4, 0)
	}
	assert.ErrorIs(t, device.Err(), ErrSilent)
	assert.LessOrEqual(t, c.now-begin, 23*time.Second)
}

func TestNoTool(t *testing.T) {
	c := newCable(Options{})
	c.ways[0].fault = deaf
	assert.False(t, c.open(rand.New(rand.NewPCG(1, 1))))
	assert.ErrorIs(t, c.ends[0].Err(), ErrSilent)
	assert.InDelta(t, 20, c.now.Seconds(), 0.1)
}

func TestRefusals(t *testing.T) {
	for reason, want := range map[Reason]error{
		ReasonUnreachable: ErrUnreachable, ReasonFailed: ErrReset, 77: ErrReset, ReasonVersion: ErrVersion,
	} {
		c := newCable(Options{})
		c.ends[0].Open(0, [8]byte{1})
		for !c.ends[1].Asked() {
			require.True(t, c.step())
		}
		c.ends[1].Refuse(c.now, reason)
		c.run(time.Second)
		assert.True(t, c.ends[0].Done())
		assert.ErrorIs(t, c.ends[0].Err(), want)
		assert.True(t, c.ends[1].Done())
	}
}

func TestOtherVersion(t *testing.T) {
	c := newCable(Options{})
	c.say(1, 0, append([]byte{typeOpen, Version + 1}, make([]byte, 12)...)...)
	c.run(time.Second)
	assert.False(t, c.ends[1].Asked())
	frame, _, _ := bytes.Cut(c.ends[1].out[1:], []byte{0})
	got, ok := decode(frame)
	require.True(t, ok)
	assert.Equal(t, []byte{typeRefuse, 0, 0, 0, 0, 0, 0, 0, 0, byte(ReasonVersion)}, got[:10])
}

// A device that was restarted asks again: the stream before ends, and nothing of
// it gets into the new one.
func TestDeviceRestarts(t *testing.T) {
	c := opened(t, Options{})
	c.ends[1].Write(c.now, []byte("for the old one"))
	c.flush()
	c.ends[0] = New(Options{})
	c.ends[0].Open(c.now, [8]byte{2})
	for !c.ends[1].Asked() {
		require.True(t, c.step())
	}
	assert.ErrorIs(t, c.ends[1].Err(), ErrRestarted)
	c.ends[1].Accept(c.now, [8]byte{3})
	c.run(5 * time.Second)
	assert.True(t, c.ends[0].Established())
	assert.True(t, c.ends[1].Established())
	assert.Zero(t, c.ends[0].Readable())
}

// A tool that was restarted says that it does not know the stream.
func TestToolRestarts(t *testing.T) {
	c := opened(t, Options{})
	c.ends[1] = New(Options{})
	c.ends[0].Write(c.now, make([]byte, 500))
	begin := c.now
	for !c.ends[0].Done() {
		require.True(t, c.step())
	}
	assert.ErrorIs(t, c.ends[0].Err(), ErrRestarted)
	assert.Less(t, c.now-begin, time.Second)
}

// A late copy of the request that made the stream does not end it.
func TestLateRequest(t *testing.T) {
	c := opened(t, Options{})
	c.say(1, 0, append(append([]byte{typeOpen, Version}, c.ends[0].nonce[:]...), 8, 0, 0, 240)...)
	c.run(time.Second)
	assert.False(t, c.ends[1].Asked())
	assert.True(t, c.ends[1].Established())
}

// A device whose random numbers are always the same does not get into the stream
// of its former life: it gets a new one, when the tool has noticed.
func TestSameNonceAgain(t *testing.T) {
	c := opened(t, Options{})
	c.ends[1].Write(c.now, []byte("for the old one"))
	nonce := c.ends[0].nonce
	c.ends[0] = New(Options{})
	c.ends[0].Open(c.now, nonce)
	for !c.ends[1].Asked() {
		require.True(t, c.step())
		require.False(t, c.ends[0].Established())
	}
	assert.ErrorIs(t, c.ends[1].Err(), ErrRestarted)
	c.ends[1].Accept(c.now, [8]byte{9})
	c.run(5 * time.Second)
	assert.True(t, c.ends[0].Established())
	assert.Zero(t, c.ends[0].Readable())
}

// What is not a request for a stream that can be is not taken for one.
func TestBadRequests(t *testing.T) {
	for _, limits := range [][4]byte{{0, 15, 0, 240}, {0x40, 0, 0, 240}, {8, 0, 0, 15}, {8, 0, 0, 241}, {8, 0, 1, 0}} {
		c := newCable(Options{})
		c.say(1, 0, append([]byte{typeOpen, Version, 1, 2, 3, 4, 5, 6, 7, 8}, limits[:]...)...)
		c.run(time.Second)
		assert.False(t, c.ends[1].Asked(), "%x", limits)
	}
	c := newCable(Options{})
	c.say(1, 0, typeOpen, Version, 1, 2, 3, 4, 5, 6, 7, 8, 0x3F, 0xFF, 0, 16)
	c.run(time.Second)
	assert.True(t, c.ends[1].Asked())
}

// A frame of another stream that comes twice may be a repetition of the line's;
// two different ones are a peer in that stream.
func TestStrangers(t *testing.T) {
	c := newCable(Options{})
	probe := []byte{typeProbe, 0, 0, 4, 0}
	c.say(1, 7, probe...)
	c.say(1, 7, probe...)
	c.run(time.Second)
	assert.Zero(t, c.ways[1].slots)
	c.say(1, 8, typeFin, 0, 0)
	c.run(time.Second)
	assert.Zero(t, c.ways[1].slots, "each of another stream")
	c.say(1, 8, probe...)
	c.run(time.Second)
	frame, _, _ := bytes.Cut(c.ends[1].out[1:], []byte{0})
	decoded, ok := decode(frame)
	require.True(t, ok)
	body, key, _ := keyOf(decoded)
	assert.Equal(t, []byte{typeReset, byte(ReasonUnknown)}, body)
	assert.EqualValues(t, 8, key)
}

// Nonces whose CRC is 0 make a stream whose key is 1: 0 is no stream's.
func TestKeyIsNever0(t *testing.T) {
	var device, tool [8]byte
	copy(device[:], "a device")
	copy(tool[:], "tool")
	// Run the CRC backwards from its end to find the last four bytes.
	want := uint32(0xFFFFFFFF)
	for range 4 {
		for i, entry := range crc32.IEEETable {
			if entry>>24 == want>>24 {
				want = (want^entry)<<8 | uint32(i)
				break
			}
		}
	}
	state := ^crc32.Update(crc32.ChecksumIEEE(device[:]), crc32.IEEETable, tool[:4])
	binary.LittleEndian.PutUint32(tool[4:], state^want)
	require.Zero(t, crc32.Update(crc32.ChecksumIEEE(device[:]), crc32.IEEETable, tool[:]))
	assert.EqualValues(t, 1, streamKey(&device, &tool))
}

// An acknowledgement that has no room for all says so, and the sender does not
// take for lost what it was not told of.
func TestMoreThanAnAcknowledgementTells(t *testing.T) {
	r := receiver{ring: make([]byte, 2048)}
	r.begin()
	for i := range ackRanges {
		require.True(t, r.data(0, uint16(10+20*i), []byte("0123456789")))
	}
	assert.Zero(t, r.appendAck(nil)[2]&0x80)
	require.True(t, r.data(0, 1000, []byte("0123456789")))
	ack := r.appendAck(nil)
	assert.NotZero(t, ack[2]&0x80)
	assert.Len(t, ack, ackSize-1+2*ackRanges)

	s := sender{ring: make([]byte, 2048), segments: make([]segment, 0, maxSegments)}
	s.begin()
	s.setPeer(peer{2048, MinFrame})
	s.pace.flight = 1 << 14
	s.write(make([]byte, 1000))
	var c Counters
	for len(s.next(0, nil, &c)) > 0 {
	}
	require.Greater(t, len(s.segments), 40)
	body := []byte{typeAck, 0, 0, 8 | 0x80, 0, MinFrame, MinFrame}
	_, ok := s.ack(time.Second, body)
	require.True(t, ok)
	assert.Equal(t, lost, s.segments[0].state)
	assert.Equal(t, acked, s.segments[1].state)
	require.NotEmpty(t, s.next(time.Second, nil, &c), "again")
	_, ok = s.ack(2*time.Second, []byte{typeAck, 0, 2 * MinFrame, 8 | 0x80, 0})
	require.True(t, ok)
	for _, g := range s.segments { // all sent before what has come, but of them nothing was told
		require.Equal(t, inFlight, g.state)
	}
}

// The request goes again when its answer was lost, and makes one stream.
func TestAcceptLost(t *testing.T) {
	c := newCable(Options{})
	c.ways[1].fault = deaf
	c.ends[0].Open(0, [8]byte{1})
	for !c.ends[1].Asked() {
		require.True(t, c.step())
	}
	c.ends[1].Accept(c.now, [8]byte{2})
	key := c.ends[1].key
	c.run(100 * time.Millisecond)
	c.ways[1].fault = nil
	c.run(time.Second)
	assert.True(t, c.ends[0].Established())
	assert.Equal(t, key, c.ends[0].key)
	assert.False(t, c.ends[1].Asked())
}

// What arrives whole and cannot be ends the stream at both ends.
func TestProtocolBroken(t *testing.T) {
	data := func(at uint16, n int) []byte {
		return append(binary.BigEndian.AppendUint16(nil, dataBit<<8|at), make([]byte, n)...)
	}
	for name, body := range map[string][]byte{
		"data beyond the window":              data(2048, 1),
		"data across the window's edge":       data(2000, 49),
		"data from before the stream":         data(0x7fff, 1),
		"data far away":                       data(0x4000, 10),
		"data without bytes":                  data(0, 0),
		"acknowledgement too short":           {typeAck, 0, 0, 0},
		"acknowledgement of what was not":     {typeAck, 0, 1, 4, 0},
		"acknowledgement far away":            {typeAck, 0x40, 0, 4, 0},
		"acknowledgement with a vast window":  {typeAck, 0, 0, 0x40, 0},
		"acknowledgement of a piece not sent": {typeAck, 0, 0, 4, 0, 1, 1},
		"acknowledgement with half a run":     {typeAck, 0, 0, 4, 0, 1},
		"acknowledgement with a long number":  {typeAck, 0, 0, 4, 0, 0x80, 0x80, 1},
		"end beyond the window":               {typeFin, 0x10, 0},
		"end before the stream":               {typeFin, 0x7f, 0xff},
		"end too short":                       {typeFin, 0},
		"end too long":                        {typeFin, 0, 0, 0},
		"reset too long":                      {typeReset, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			c := opened(t, Options{})
			c.say(0, c.ends[0].key, body...)
			c.run(2 * time.Second)
			assert.ErrorIs(t, c.ends[0].Err(), ErrProtocol)
			assert.ErrorIs(t, c.ends[1].Err(), ErrProtocol)

			c = opened(t, Options{})
			c.ways[0].fault = deaf // so that the peer cannot be the one that notices
			c.say(0, c.ends[0].key, body...)
			c.run(500 * time.Millisecond)
			assert.ErrorIs(t, c.ends[0].Err(), ErrProtocol, "noticed here")
		})
	}
}

// The same, where it takes something that came before.
func TestProtocolBrokenLater(t *testing.T) {
	for name, bodies := range map[string][2][]byte{
		"the end moves":           {{typeFin, 0, 9}, {typeFin, 0, 8}},
		"data beyond the end":     {{typeFin, 0, 9}, {dataBit, 9, 'x'}},
		"data across the end":     {{typeFin, 0, 9}, {dataBit, 8, 'x', 'y'}},
		"the end before data":     {{dataBit, 8, 'x'}, {typeFin, 0, 8}},
		"data after all of it":    {{typeFin, 0, 0}, {dataBit, 0, 'x'}},
		"an empty run":            {nil, {typeAck, 0, 0, 4, 0, 1, 0}},
		"a run that is not apart": {nil, {typeAck, 0, 0, 4, 0, 0, 1}},
	} {
		t.Run(name, func(t *testing.T) {
			c := opened(t, Options{})
			c.ways[0].fault = deaf
			device := c.ends[0]
			device.Write(c.now, []byte("hello"))
			if bodies[0] != nil {
				c.say(0, device.key, bodies[0]...)
			}
			c.run(100 * time.Millisecond)
			require.NoError(t, device.Err())
			c.say(0, device.key, bodies[1]...)
			c.run(100 * time.Millisecond)
			assert.ErrorIs(t, device.Err(), ErrProtocol)
		})
	}
}

// What is not ours or not whole, and types that may come to be, change nothing.
func TestIgnored(t *testing.T) {
	for name, say := range map[string]func(c *cable){
		"unknown type":          func(c *cable) { c.say(0, c.ends[0].key, 0x55, 1, 2, 3) },
		"another stream":        func(c *cable) { c.say(0, 12345, typeReset, 0) },
		"accept of another":     func(c *cable) { c.say(0, 0, append([]byte{typeAccept}, make([]byte, 21)...)...) },
		"refusal of another":    func(c *cable) { c.say(0, 0, append([]byte{typeRefuse}, make([]byte, 9)...)...) },
		"a short open":          func(c *cable) { c.say(0, 0, typeOpen, 1, 2) },
		"an open of no window":  func(c *cable) { c.say(0, 0, append([]byte{typeOpen, Version}, make([]byte, 12)...)...) },
		"zeros":                 func(c *cable) { c.ways[1].put(c.now, make([]byte, 500)) },
		"bytes without an end":  func(c *cable) { c.ways[1].put(c.now, append(make([]byte, 0), bytes500()...)) },
		"a block that is short": func(c *cable) { c.ways[1].put(c.now, []byte{0, 200, 1, 0}) },
	} {
		t.Run(name, func(t *testing.T) {
			c := opened(t, Options{})
			say(c)
			c.run(time.Second)
			c.ends[1].Write(c.now, []byte("hello"))
			c.run(2 * time.Second)
			var buf [9]byte
			assert.Equal(t, "hello", string(buf[:c.ends[0].Read(c.now, buf[:])]))
			assert.NoError(t, c.ends[0].Err())
			assert.NoError(t, c.ends[1].Err())
		})
	}
}

func bytes500() []byte {
	b := make([]byte, 500)
	for i := range b {
		b[i] = 'x'
	}
	return b
}

func TestReset(t *testing.T) {
	c := opened(t, Options{})
	c.ends[0].Write(c.now, []byte("hello"))
	c.ends[0].Reset(c.now, ReasonClosed)
	assert.ErrorIs(t, c.ends[0].Err(), ErrClosed)
	c.run(time.Second)
	assert.ErrorIs(t, c.ends[1].Err(), ErrReset)
	assert.False(t, c.ends[1].EOF())

	c = opened(t, Options{})
	gone := errors.New("it asks for its Wi-Fi")
	slots := c.ways[1].slots
	c.ends[1].Drop(gone)
	c.run(time.Second)
	assert.Equal(t, gone, c.ends[1].Err())
	assert.Equal(t, slots, c.ways[1].slots, "nothing is said to a device that has other things in mind")
}

// A reset that was lost is said again to a peer that goes on.
func TestResetLost(t *testing.T) {
	c := opened(t, Options{})
	c.ways[0].fault = deaf
	c.ends[0].Reset(c.now, ReasonClosed)
	c.run(100 * time.Millisecond)
	c.ways[0].fault = nil
	c.ends[1].Write(c.now, []byte("hello"))
	c.run(time.Second)
	assert.ErrorIs(t, c.ends[1].Err(), ErrRestarted)
}

// Console lines come out as they went in, between frames and behind the last one.
func TestText(t *testing.T) {
	c := opened(t, Options{})
	var got []byte
	c.ends[1].Text = func(p []byte) { got = append(got, p...) }
	c.ways[0].put(c.now, []byte("I (1) boot\r\n"))
	c.ends[0].Write(c.now, []byte("hello"))
	c.run(100 * time.Millisecond)
	c.ways[0].put(c.now, []byte("I (2) last\r\n"))
	c.run(100 * time.Millisecond)
	assert.Contains(t, string(got), "I (1) boot\r\n")
	assert.Contains(t, string(got), "I (2) last\r\n")
	c.run(time.Second)
	assert.Equal(t, 5, c.ends[1].Readable())
}

// All memory is taken when an end is made, and is what the documentation says.
func TestMemory(t *testing.T) {
	e := New(Options{})
	size := int(unsafe.Sizeof(*e)) + cap(e.in) + cap(e.body) + cap(e.out) +
		cap(e.send.ring) + cap(e.receive.ring) + cap(e.send.segments)*int(unsafe.Sizeof(segment{}))
	t.Logf("%d bytes, of them %d in the struct", size, unsafe.Sizeof(*e))
	assert.LessOrEqual(t, size, 8192)
}

func TestNoAllocation(t *testing.T) {
	c := opened(t, Options{})
	c.ways[1].fault, c.ways[0].fault = damage(rand.New(rand.NewPCG(1, 1)), 200), damage(rand.New(rand.NewPCG(1, 1)), 200)
	device, tool := c.ends[0], c.ends[1]
	buf, data := make([]byte, 512), make([]byte, 512)
	var line [2][]byte
	now := c.now
	allocs := testing.AllocsPerRun(2000, func() {
		now += 10 * time.Millisecond
		tool.Write(now, data)
		device.Write(now, data[:10])
		for i, e := range []*End{device, tool} {
			line[i] = line[i][:0]
			for out := e.Output(now); len(out) > 0; out = e.Output(now) {
				line[i] = append(line[i], out...)
			}
		}
		if n := len(line[0]); n > 10 && now/time.Millisecond%70 == 0 {
			line[0][n/2]++
		}
		device.Input(now, line[1])
		tool.Input(now, line[0])
		device.Read(now, buf)
		tool.Read(now, buf)
	})
	assert.Less(t, allocs, 1.0)
	assert.Greater(t, device.Counters().Received, uint64(100000))
}

func BenchmarkEnd(b *testing.B) {
	c := opened(b, Options{})
	device, tool := c.ends[0], c.ends[1]
	data, buf := make([]byte, 1024), make([]byte, 1024)
	now := c.now
	b.ReportAllocs()
	b.ResetTimer()
	for device.counters.Received < uint64(b.N) {
		now += time.Millisecond
		tool.Write(now, data)
		for out := tool.Output(now); len(out) > 0; out = tool.Output(now) {
			device.Input(now, out)
		}
		device.Read(now, buf)
		for out := device.Output(now); len(out) > 0; out = device.Output(now) {
			tool.Input(now, out)
		}
	}
	b.SetBytes(1)
}
