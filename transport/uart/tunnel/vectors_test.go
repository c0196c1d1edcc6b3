package tunnel

import (
	"encoding/hex"
	"encoding/json"
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the test vectors anew")

// hexBytes is bytes as docs/tunnel.md has them in JSON.
type hexBytes []byte

func (h hexBytes) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(h)), nil }

func (h *hexBytes) UnmarshalText(text []byte) (err error) {
	*h, err = hex.DecodeString(string(text))
	return err
}

func vectors(t *testing.T, name string, v any, write func() any) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		data, err := json.MarshalIndent(write(), "", " ")
		require.NoError(t, err)
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(path, append(data, '\n'), 0o644))
	}
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(data, v))
}

type frameVectors struct {
	Frames []frameVector `json:"frames"`
	Bad    []badVector   `json:"bad"`
	Keys   []keyVector   `json:"keys"`
}

type frameVector struct {
	Name string   `json:"name"`
	Key  uint32   `json:"key"`
	Body hexBytes `json:"body"` // without check
	Line hexBytes `json:"line"` // with the zero at the end
}

type badVector struct {
	Name string   `json:"name"`
	Key  uint32   `json:"key"`
	Line hexBytes `json:"line"`
}

type keyVector struct {
	Device hexBytes `json:"device"`
	Tool   hexBytes `json:"tool"`
	Key    uint32   `json:"key"`
}

func TestFrameVectors(t *testing.T) {
	var v frameVectors
	vectors(t, "frames.json", &v, func() any { return makeFrameVectors() })
	require.NotEmpty(t, v.Frames)
	for _, f := range v.Frames {
		line := encode(make([]byte, 300), append(make([]byte, 0, 300), f.Body...), f.Key)
		assert.Equal(t, f.Line, hexBytes(line), f.Name)
		decoded, ok := decode(append([]byte(nil), f.Line[:len(f.Line)-1]...))
		require.True(t, ok, f.Name)
		body, key, ok := keyOf(decoded)
		require.True(t, ok, f.Name)
		assert.Equal(t, f.Body, hexBytes(body), f.Name)
		assert.Equal(t, f.Key, key, f.Name)
	}
	require.NotEmpty(t, v.Bad)
	for _, f := range v.Bad {
		decoded, ok := decode(append([]byte(nil), f.Line...))
		if ok {
			_, key, enough := keyOf(decoded)
			assert.False(t, enough && key == f.Key, f.Name)
		}
	}
	for _, k := range v.Keys {
		device, tool := [8]byte(k.Device), [8]byte(k.Tool)
		assert.Equal(t, k.Key, streamKey(&device, &tool))
	}
}

func makeFrameVectors() frameVectors {
	var v frameVectors
	const key = 0xC0FFEE42
	full := append([]byte{dataBit | 0x12, 0x34}, make([]byte, MaxFrame)...)
	for i := range MaxFrame {
		full[2+i] = byte(i + 1)
	}
	for _, f := range []frameVector{
		{Name: "open", Body: hexBytes{typeOpen, Version, 1, 2, 3, 4, 5, 6, 7, 8, 8, 0, 0, 240}},
		{Name: "accept", Body: hexBytes{typeAccept, 1, 2, 3, 4, 5, 6, 7, 8, Version, 9, 10, 11, 12, 13, 14, 15, 16, 8, 0, 0, 240}},
		{Name: "refuse", Body: hexBytes{typeRefuse, 1, 2, 3, 4, 5, 6, 7, 8, byte(ReasonUnreachable)}},
		{Name: "acknowledgement", Key: key, Body: hexBytes{typeAck, 0, 0, 8, 0}},
		{Name: "acknowledgement, 64 missing, 300 there", Key: key, Body: hexBytes{typeAck, 0, 64, 7, 0xC0, 64, 0xAC, 2}},
		{Name: "acknowledgement, more than it tells", Key: key, Body: hexBytes{typeAck, 0, 64, 0x87, 0xC0, 64, 32}},
		{Name: "probe", Key: key, Body: hexBytes{typeProbe, 1, 0, 8, 0}},
		{Name: "end at 300", Key: key, Body: hexBytes{typeFin, 1, 44}},
		{Name: "reset", Key: key, Body: hexBytes{typeReset, byte(ReasonClosed)}},
		{Name: "data, hello at 0", Key: key, Body: append(hexBytes{dataBit, 0}, "hello"...)},
		{Name: "data, zeros", Key: key, Body: hexBytes{dataBit, 5, 0, 0, 0, 0}},
		{Name: "data, the last position", Key: key, Body: hexBytes{0xFF, 0xFF, 'x'}},
		{Name: "data, as much as there may be", Key: key, Body: full},
	} {
		f.Line = append(hexBytes(nil), encode(make([]byte, 300), append(make([]byte, 0, 300), f.Body...), f.Key)...)
		v.Frames = append(v.Frames, f)
	}
	hello := v.Frames[9].Line
	damaged := append(hexBytes(nil), hello[:len(hello)-1]...)
	damaged[4] ^= 1
	v.Bad = []badVector{
		{"one bit of the payload", key, damaged},
		{"a byte lost", key, append(append(hexBytes(nil), hello[:3]...), hello[4:len(hello)-1]...)},
		{"of another stream", key + 1, hello[:len(hello)-1]},
		{"a length byte beyond the end", key, hexBytes{9, 1, 2, 3}},
		{"too short", key, hexBytes{3, 7, 0x11}},
		{"a line of a console", key, hexBytes("I (1) wifi: up\r\n")},
		{"the marker", key, hexBytes("IEF DATA\n")},
	}
	for i := range byte(3) {
		k := keyVector{Device: hexBytes{1, 2, 3, 4, 5, 6, 7, i}, Tool: hexBytes{9, 10, 11, 12, 13, 14, 15, 16}}
		device, tool := [8]byte(k.Device), [8]byte(k.Tool)
		k.Key = streamKey(&device, &tool)
		v.Keys = append(v.Keys, k)
	}
	return v
}

type conversation struct {
	Name    string        `json:"name"`
	Receive int           `json:"receive"` // Options of both ends
	Send    int           `json:"send"`
	Frame   int           `json:"frame"`
	Steps   []vectorStep  `json:"steps"`
	seed    uint64        // of what the recording damages
	faults  [2]faults     // of the device's direction, and of the tool's
	script  []vectorStep  // what the applications do
	lasts   time.Duration // how long it is recorded
}

type vectorStep struct {
	At   time.Duration `json:"at"`
	End  string        `json:"end"`
	Do   string        `json:"do,omitempty"`
	Data hexBytes      `json:"data,omitempty"`
	In   hexBytes      `json:"in,omitempty"`
	Out  hexBytes      `json:"out,omitempty"`
}

// apply does a step to its end, and returns what the end puts onto the line.
func (s *vectorStep) apply(t *testing.T, ends map[string]*End) hexBytes {
	t.Helper()
	e, now := ends[s.End], s.At
	e.Input(now, s.In)
	switch s.Do {
	case "open":
		e.Open(now, [8]byte(s.Data))
	case "accept":
		require.True(t, e.Asked())
		e.Accept(now, [8]byte(s.Data))
	case "refuse":
		require.True(t, e.Asked())
		e.Refuse(now, Reason(s.Data[0]))
	case "write":
		require.Equal(t, len(s.Data), e.Write(now, s.Data))
	case "read":
		got := make([]byte, e.Readable())
		e.Read(now, got)
		require.Equal(t, s.Data, hexBytes(got))
	case "close":
		e.CloseWrite(now)
	case "restart":
		ends[s.End] = New(e.o)
		e = ends[s.End]
	case "eof":
		require.True(t, e.EOF())
	case "done":
		require.True(t, e.Done())
		require.NoError(t, e.Err())
	case "error":
		require.True(t, e.Done())
		require.EqualError(t, e.Err(), string(s.Data))
	}
	var out hexBytes
	for frame := e.Output(now); len(frame) > 0; frame = e.Output(now) {
		out = append(out, frame...)
	}
	return out
}

func TestConversationVectors(t *testing.T) {
	var all []conversation
	vectors(t, "conversations.json", &all, func() any { return recordAll(t) })
	require.NotEmpty(t, all)
	for _, c := range all {
		t.Run(c.Name, func(t *testing.T) {
			ends := c.ends()
			for i, step := range c.Steps {
				require.Equal(t, step.Out, step.apply(t, ends), "step %d", i)
			}
		})
	}
}

func (c *conversation) ends() map[string]*End {
	o := Options{Receive: c.Receive, Send: c.Send, Frame: c.Frame}
	return map[string]*End{"device": New(o), "tool": New(o)}
}

func recordAll(t *testing.T) []conversation {
	data := make(hexBytes, 1200)
	r := rand.New(rand.NewPCG(4, 4))
	for i := range data {
		data[i] = byte(r.Uint32())
	}
	at := func(ms int, end, do string, data ...byte) vectorStep {
		return vectorStep{At: time.Duration(ms) * time.Millisecond, End: end, Do: do, Data: data}
	}
	nonce := func(b byte) []byte { return []byte{b, 1, 2, 3, 4, 5, 6, 7} }
	opened := []vectorStep{at(0, "device", "open", nonce(0xD1)...), at(60, "tool", "accept", nonce(0xB1)...)}
	with := func(steps ...vectorStep) []vectorStep { return append(append([]vectorStep(nil), opened...), steps...) }
	answer := with(
		at(200, "device", "write", []byte("hello, instance")...),
		at(300, "tool", "read", []byte("hello, instance")...),
		at(301, "tool", "write", data...),
		at(4000, "device", "read", data...),
		at(4001, "device", "close"), at(4300, "tool", "eof"), at(4301, "tool", "close"),
		at(7000, "device", "eof"), at(7001, "device", "done"), at(7001, "tool", "done"))
	all := []conversation{
		{Name: "clean, from the opening to the end", script: answer, lasts: 20 * time.Second},
		{Name: "one byte in 60 damaged", script: answer, lasts: 20 * time.Second, seed: 5,
			faults: [2]faults{{Damage: 60}, {Damage: 60}}},
		{Name: "bytes lost, bytes repeated, console lines", script: answer, lasts: 20 * time.Second, seed: 3,
			faults: [2]faults{{Lose: 100, Console: 2}, {Lose: 150, Repeat: 400}}},
		{Name: "a window that shuts and opens", Receive: 256, Send: 600, script: with(
			at(200, "tool", "write", data[:600]...), at(1500, "device", "read", data[:256]...),
			at(3000, "device", "read", data[256:512]...), at(5000, "device", "read", data[512:600]...)), lasts: 6 * time.Second},
		{Name: "the device is restarted", script: with(
			at(200, "tool", "write", data[:400]...), at(240, "device", "restart"), at(300, "device", "open", nonce(0xD2)...),
			at(400, "tool", "error", []byte(ErrRestarted.Error())...), at(401, "tool", "accept", nonce(0xB2)...),
			at(800, "tool", "write", data[400:500]...), at(1500, "device", "read", data[400:500]...)), lasts: 2 * time.Second},
		{Name: "the tool is restarted", script: with(
			at(200, "tool", "restart"), at(250, "device", "write", data[:400]...),
			at(1500, "device", "error", []byte(ErrRestarted.Error())...)), lasts: 2 * time.Second},
		{Name: "the instance cannot be reached", script: []vectorStep{
			at(0, "device", "open", nonce(0xD1)...), at(60, "tool", "refuse", byte(ReasonUnreachable)),
			at(200, "device", "error", []byte(ErrUnreachable.Error())...)}, lasts: time.Second},
	}
	for i := range all {
		all[i].record(t)
	}
	return all
}

// ready reports whether it is time for the step, and what it waits for has come.
func (s *vectorStep) ready(e *End, now time.Duration) bool {
	switch {
	case now < s.At:
		return false
	case s.Do == "accept" || s.Do == "refuse":
		return e.Asked()
	case s.Do == "write":
		return e.Established()
	case s.Do == "read":
		return e.Readable() >= len(s.Data)
	case s.Do == "eof":
		return e.EOF()
	case s.Do == "done" || s.Do == "error":
		return e.Done()
	}
	return true
}

// record plays the script on a cable and notes what each end says and hears.
func (c *conversation) record(t *testing.T) {
	ends := c.ends()
	names := [2]string{"device", "tool"}
	ways := [2]*way{newWay(), newWay()}
	r := rand.New(rand.NewPCG(c.seed, 6))
	for i, f := range c.faults {
		f.apply(ways[i], r)
	}
	for now := time.Duration(0); now < c.lasts; {
		for i, name := range names {
			var buf [300]byte
			step := vectorStep{At: now, End: name, In: append(hexBytes(nil), ways[1-i].take(now, buf[:0])...)}
			due := ends[name].Deadline() <= now
			play := func(s vectorStep) {
				s.Out = s.apply(t, ends)
				if len(s.Out) > 0 {
					c.faults[i].noise(ways[i], now, r)
					ways[i].put(now, s.Out)
				}
				c.Steps = append(c.Steps, s)
			}
			if len(step.In) > 0 || due {
				play(step)
			}
			for len(c.script) > 0 && c.script[0].End == name && c.script[0].ready(ends[name], now) {
				s := c.script[0]
				s.At, c.script = now, c.script[1:]
				play(s)
			}
		}
		next := c.lasts
		for i, name := range names {
			next = min(next, max(now+1, ends[name].Deadline()))
			if len(ways[i].queue) > 0 {
				next = min(next, max(now+1, ways[i].queue[0].at))
			}
		}
		if len(c.script) > 0 && c.script[0].At > now {
			next = min(next, c.script[0].At)
		}
		if next-now < 2*time.Millisecond && next < c.lasts { // bytes come in pieces, not one by one
			next = now + 2*time.Millisecond
		}
		now = next
	}
	require.Empty(t, c.script, c.Name)
}
