package tunnel

import (
	"bytes"
	"testing"
	"time"
)

// FuzzFrame decodes anything; what decodes and holds under a key encodes to what
// it was decoded from, if that is as short as it could be.
func FuzzFrame(f *testing.F) {
	out := make([]byte, 300)
	for _, body := range [][]byte{{typeAck, 0, 0, 8, 0}, {0x80, 0, 1, 2, 0, 3}, bytes.Repeat([]byte{0}, 200)} {
		f.Add(bytes.Clone(encode(out, append(make([]byte, 0, 300), body...), 7)))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		frame, _, _ := bytes.Cut(line, []byte{0})
		if len(frame) > maxBody+1 {
			return
		}
		decoded, ok := decode(bytes.Clone(frame))
		if !ok {
			return
		}
		body, key, ok := keyOf(decoded)
		if !ok {
			return
		}
		again := encode(make([]byte, 300), append(make([]byte, 0, 300), body...), key)
		if !bytes.Equal(again[:len(again)-1], frame) {
			t.Fatalf("%x became %x", frame, again)
		}
	})
}

// play reads a script of what happens to an end: bytes of the line, frames with a
// right check, time, and what the application does. Whatever comes, the end stays
// within its memory and its rules.
func play(t *testing.T, e *End, script []byte) {
	now := time.Duration(0)
	buf := make([]byte, 300)
	frame := make([]byte, 300)
	data := make([]byte, 255)
	next := func() byte {
		if len(script) == 0 {
			return 0
		}
		b := script[0]
		script = script[1:]
		return b
	}
	take := func(n int) []byte {
		p := script[:min(n, len(script))]
		script = script[len(p):]
		return p
	}
	for len(script) > 0 {
		switch op := next(); op % 10 {
		case 0:
			e.Input(now, take(int(next())))
		case 1, 2, 3:
			key := e.key
			if op%10 == 2 {
				key = 0
			}
			body := append(append(buf[:0], take(min(int(next()), maxBody-checkSize))...), 0)
			e.Input(now, encode(frame, body[:max(1, len(body)-1)], key))
		case 4:
			now += time.Duration(next()) * time.Millisecond
		case 5:
			now = max(now, min(e.Deadline(), now+time.Minute))
		case 6:
			e.Write(now, data[:next()])
		case 7:
			e.Read(now, buf[:next()])
		case 8:
			e.CloseWrite(now)
		case 9:
			if e.Asked() {
				e.Accept(now, [8]byte{op})
			} else if op > 240 {
				e.Reset(now, ReasonClosed)
			}
		}
		for n := 0; ; n++ {
			out := e.Output(now)
			if len(out) == 0 {
				break
			}
			if out[len(out)-1] != 0 || len(out) > maxBody+3 {
				t.Fatalf("not a frame: %x", out)
			}
			if n > 1000 {
				t.Fatal("it never stops to talk")
			}
		}
		if e.Deadline() <= now-time.Hour || e.Readable() < 0 || e.Readable() > e.o.Receive || e.Writable() > e.o.Send {
			t.Fatalf("deadline %v at %v, readable %d, writable %d", e.Deadline(), now, e.Readable(), e.Writable())
		}
		if e.Established() && e.Deadline() <= now {
			e.Input(now, nil)
			if e.Output(now); e.Established() && e.Deadline() <= now && len(e.Output(now)) == 0 {
				t.Fatalf("a deadline that is over stays: %v at %v", e.Deadline(), now)
			}
		}
	}
}

var scripts = [][]byte{
	{6, 100, 4, 200, 5, 5, 5, 8, 5, 5},
	{1, 5, typeAck, 0, 0, 4, 0, 1, 4, 0x80, 0, 'h', 'i', 1, 3, typeFin, 0, 2, 7, 200, 8, 1, 5, typeAck, 0, 1, 4, 0},
	{1, 4, 0x80, 9, 'h', 'i', 1, 9, typeProbe, 0, 0, 4, 0, 1, 1, 2, 2, 5, 5},
	{2, 14, typeOpen, Version, 1, 2, 3, 4, 5, 6, 7, 8, 2, 0, 0, 64, 9, 5, 5, 1, 2, typeReset, 0},
	{0, 12, 'I', 'E', 'F', ' ', 'D', 'A', 'T', 'A', '\n', 0, 'q', '\n', 5, 5},
}

var small = Options{Receive: 256, Send: 256, Frame: 64}

func FuzzDevice(f *testing.F) {
	for _, s := range scripts {
		f.Add(s)
	}
	frame := make([]byte, 300)
	f.Fuzz(func(t *testing.T, script []byte) {
		e := New(small)
		e.Open(0, [8]byte{1})
		body := append(append(frame[200:200], typeAccept, 1, 0, 0, 0, 0, 0, 0, 0, Version), 1, 2, 3, 4, 5, 6, 7, 8, 1, 0, 0, 64)
		e.Input(0, encode(frame, body, 0))
		if !e.Established() {
			t.Fatal("no stream")
		}
		play(t, e, script)
	})
}

func FuzzTool(f *testing.F) {
	for _, s := range scripts {
		f.Add(s)
	}
	frame := make([]byte, 300)
	f.Fuzz(func(t *testing.T, script []byte) {
		e := New(small)
		body := append(frame[200:200], typeOpen, Version, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 64)
		e.Input(0, encode(frame, body, 0))
		if !e.Asked() {
			t.Fatal("not asked")
		}
		e.Accept(0, [8]byte{2})
		play(t, e, script)
	})
}
