package tunnel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"time"
)

// Options choose an end's memory and its patience. They are fixed when the end
// is made.
type Options struct {
	// Receive is how many bytes of the stream the end keeps that its user has not
	// read yet, which is the window that it gives the peer. 0 means 2048; 256 to
	// 8192 are possible. A window smaller than what the line carries in one round
	// trip (some 700 bytes at 115200 baud through a USB adapter) slows it down.
	Receive int
	// Send is how many bytes of the stream the end keeps that the peer has not
	// acknowledged yet. 0 means 2048; 256 to 8192 are possible.
	Send int
	// Frame is the largest payload of a data frame that the peer may send. 0 means
	// MaxFrame, which is the largest; MinFrame is the smallest.
	Frame int
	// Patience is how long the peer may say nothing, or acknowledge nothing of
	// what was sent, until the stream is given up. 0 means 20 s. A quarter of it
	// is how often an end that hears nothing asks whether the peer is there.
	Patience time.Duration
}

// Reason says in a frame why a stream ends or does not begin.
type Reason byte

// The reasons. An end takes one that it does not know for ReasonFailed.
const (
	ReasonClosed      Reason = 0 // the application closed the stream
	ReasonProtocol    Reason = 1 // the peer broke the rules of the protocol
	ReasonUnknown     Reason = 2 // no such stream: the sender was restarted
	ReasonUnreachable Reason = 3 // the tool cannot reach the instance
	ReasonVersion     Reason = 4 // a version of the protocol that the tool does not speak
	ReasonFailed      Reason = 5 // the tool's connection to the instance broke
	ReasonSilent      Reason = 6 // the sender has lost its patience
)

// How a stream ends, other than in order. See [End.Err].
var (
	// ErrReset means that the peer closed the stream before it had all that was
	// sent, or that the tool's connection to the instance broke.
	ErrReset = errors.New("tunnel: the peer has reset the stream")
	// ErrRestarted means that the peer does not know this stream any more, or asks
	// for a new one: it was restarted, or somebody else uses the line.
	ErrRestarted = errors.New("tunnel: the peer was restarted")
	// ErrSilent means that the peer said nothing, or acknowledged nothing, for the
	// time that Options.Patience allows.
	ErrSilent = errors.New("tunnel: the peer is silent")
	// ErrProtocol means that the peer broke the rules: a frame that arrived whole
	// and cannot be.
	ErrProtocol = errors.New("tunnel: the peer broke the protocol")
	// ErrUnreachable means that the tool cannot reach the instance.
	ErrUnreachable = errors.New("tunnel: the tool cannot reach the instance")
	// ErrVersion means that the tool does not speak this version.
	ErrVersion = errors.New("tunnel: the tool speaks another version")
	// ErrClosed means that this side has reset the stream.
	ErrClosed = errors.New("tunnel: closed")
)

func (r Reason) err() error {
	switch r {
	case ReasonProtocol:
		return ErrProtocol
	case ReasonUnknown:
		return ErrRestarted
	case ReasonUnreachable:
		return ErrUnreachable
	case ReasonVersion:
		return ErrVersion
	case ReasonSilent:
		return ErrSilent
	}
	return ErrReset
}

// Never is the Deadline of an end that waits for nothing.
const Never = time.Duration(math.MaxInt64)

const (
	openAgain  = 500 * time.Millisecond // a request for a stream is repeated
	textQuiet  = 50 * time.Millisecond  // ends a line that no delimiter follows
	idleLine   = 50 * time.Millisecond  // then something else may have been on the line
	resetAgain = 100 * time.Millisecond // a reset is not repeated sooner
)

type state byte

const (
	stateIdle    state = iota // no stream yet
	stateOpening              // device: has asked for one
	stateOpen                 // there is one
	stateEnded                // there was one
)

// End is one end of the tunnel, of one stream after the other. Make it with
// [New]. It is not safe for concurrent use.
//
// Its methods take the time that has passed since any instant that the caller
// has chosen, which must not go back.
type End struct {
	// Text, if not nil, is called by Input with what came between frames: console
	// lines, requests of the provisioning conversation, and what is left of
	// damaged frames. A line comes when a delimiter ends it or nothing follows it
	// for 50 ms, so call Input, if need be with no bytes, when Deadline says.
	Text func(p []byte)

	o     Options
	state state
	err   error // why the stream ended, or nil if it did in order
	key   uint32
	nonce [nonceSize]byte // the device's: of the stream, or of the request for it

	asked      bool // tool: a device asks for a stream
	askedNonce [nonceSize]byte
	askedPeer  peer
	answered   bool // tool: a frame of the stream has come, so the device has our nonce
	toolNonce  [nonceSize]byte

	owedOpen   bool
	openAt     time.Duration // when to repeat the request
	owedAccept bool
	owedRefuse bool
	refuse     Reason
	owedReset  bool // of the stream with resetKey
	resetKey   uint32
	reset      Reason
	resetAt    time.Duration // when the last one went

	heard    time.Duration // when the last frame of the stream came
	progress time.Duration // when the peer last acknowledged something new, or had nothing to
	aliveAt  time.Duration // when to ask whether the peer is there
	said     time.Duration // when the last frame went

	stray      stray
	send       sender
	receive    receiver
	in         []byte // what has come since the last delimiter
	inLong     bool   // more than fits, so it is no frame
	inAt       time.Duration
	body, out  []byte
	counters   Counters
	everOutput bool
}

// peer is what the other end can take.
type peer struct{ window, frame int }

// stray is the last frame that came with the key of another stream.
type stray struct{ key, sum uint32 }

// Counters are what has passed an end since it was made, for a log or a
// benchmark.
type Counters struct {
	Sent, Received uint64 // bytes of streams that the peer has acknowledged, and that were read
	Frames         uint64 // data frames sent
	Again          uint64 // of them those that were sent again
	Bad            uint64 // runs of bytes that came and were no frame of ours
}

// New returns an end with all the memory that it will ever use. Options out of
// their bounds are brought to the nearest bound.
func New(o Options) *End {
	bound := func(n, zero, low, high int) int {
		if n == 0 {
			n = zero
		}
		return max(low, min(n, high))
	}
	o.Receive = bound(o.Receive, 2048, 256, 8192)
	o.Send = bound(o.Send, 2048, 256, 8192)
	o.Frame = bound(o.Frame, MaxFrame, MinFrame, MaxFrame)
	if o.Patience <= 0 {
		o.Patience = 20 * time.Second
	}
	return &End{
		o:       o,
		send:    sender{ring: make([]byte, o.Send), segments: make([]segment, 0, maxSegments)},
		receive: receiver{ring: make([]byte, o.Receive)},
		in:      make([]byte, 0, maxBody+1),
		body:    make([]byte, 0, maxBody+1),
		out:     make([]byte, maxBody+3),
	}
}

// Open asks the peer for a stream, with a nonce that was never used before:
// eight random bytes. What there was of a stream before is over.
func (e *End) Open(now time.Duration, nonce [8]byte) {
	e.begin(now, 0)
	e.state, e.nonce = stateOpening, nonce
	e.owedOpen, e.openAt = true, now+openAgain
}

// begin forgets the stream before.
func (e *End) begin(now time.Duration, key uint32) {
	e.state, e.err, e.key = stateOpen, nil, key
	e.answered, e.owedOpen, e.owedAccept, e.owedRefuse, e.owedReset = false, false, false, false, false
	e.stray = stray{}
	e.heard, e.progress = now, now
	e.aliveAt = now + e.o.Patience/4
	e.send.begin()
	e.receive.begin()
}

// Asked reports whether a device asks for a stream that was not accepted or
// refused yet. If there still was a stream it has ended with ErrRestarted.
func (e *End) Asked() bool { return e.asked }

// Accept gives the device the stream that it asks for, with a nonce of the tool.
func (e *End) Accept(now time.Duration, nonce [8]byte) {
	if !e.asked {
		return
	}
	e.begin(now, streamKey(&e.askedNonce, &nonce))
	e.asked, e.nonce, e.toolNonce = false, e.askedNonce, nonce
	e.send.setPeer(e.askedPeer)
	e.owedAccept = true
}

// Refuse tells the device that it gets no stream.
func (e *End) Refuse(now time.Duration, reason Reason) {
	if e.asked {
		e.asked, e.owedRefuse, e.refuse = false, true, reason
	}
}

// Reset ends the stream at once and tells the peer. What the peer has not
// received by then is lost. Called again it tells the peer again.
func (e *End) Reset(now time.Duration, reason Reason) {
	if e.state == stateOpen || e.state == stateEnded && e.err == ErrClosed && e.key != 0 {
		e.owedReset, e.resetKey, e.reset = true, e.key, reason
	}
	e.end(ErrClosed)
}

// Drop ends the stream with that error and says nothing to the peer, which has
// been seen to have other things in mind.
func (e *End) Drop(err error) { e.end(err) }

// end ends the stream, for the first reason that there was.
func (e *End) end(err error) {
	if e.state != stateEnded && e.state != stateIdle {
		e.state, e.err = stateEnded, err
		e.owedOpen, e.owedAccept = false, false
		e.receive.owed, e.receive.ackAt = false, 0
	}
}

// fail ends the stream because of what the peer did, and tells it.
func (e *End) fail(reason Reason) {
	e.owedReset, e.resetKey, e.reset = true, e.key, reason
	e.end(reason.err())
}

// Established reports whether there is a stream into which can be written.
func (e *End) Established() bool { return e.state == stateOpen }

// Err returns why the stream has ended, and nil as long as it has not, or if it
// ended in order: closed on both sides, and everything acknowledged.
func (e *End) Err() error { return e.err }

// Done reports whether the stream is over, in order or not. There may be bytes
// left to read, and the last frames to go out.
func (e *End) Done() bool { return e.state == stateEnded || e.state == stateIdle }

// Read takes bytes of the stream, as many as there are and fit. 0 means that
// there are none now: see EOF and Err.
func (e *End) Read(now time.Duration, p []byte) int {
	n := e.receive.read(p)
	e.counters.Received += uint64(n)
	if e.state == stateOpen && e.receive.widened() {
		e.receive.owed = true
	}
	return n
}

// EOF reports whether the peer has closed its side and everything was read.
func (e *End) EOF() bool { return e.receive.atEnd() }

// Readable returns how many bytes Read would give.
func (e *End) Readable() int { return int(e.receive.next - e.receive.start) }

// Write gives bytes to the stream and returns how many of them it has taken,
// which may be none. After CloseWrite, and without a stream, it takes none.
func (e *End) Write(now time.Duration, p []byte) int {
	if e.state != stateOpen {
		return 0
	}
	return e.send.write(p)
}

// Writable returns how many bytes Write would take.
func (e *End) Writable() int {
	if e.state != stateOpen || e.send.fin {
		return 0
	}
	return e.send.room()
}

// CloseWrite says that no more will be written. The peer reads what is under way
// and then the end of the stream, and may go on to write.
func (e *End) CloseWrite(now time.Duration) {
	if e.state == stateOpen && !e.send.fin {
		e.send.fin = true
	}
}

// Flushed reports whether the peer has acknowledged all that was written, and
// the end of it if that was told.
func (e *End) Flushed() bool { return e.send.flushed() }

// Counters returns what has passed so far.
func (e *End) Counters() Counters { return e.counters }

// Deadline returns when Input or Output must be called again even if nothing
// comes from the line, or [Never].
func (e *End) Deadline() time.Duration {
	at := Never
	sooner := func(t time.Duration) { at = min(at, t) }
	if len(e.in) > 0 && e.inText() {
		sooner(e.inAt + textQuiet)
	}
	switch e.state {
	case stateOpening:
		sooner(e.openAt)
		sooner(e.heard + e.o.Patience)
	case stateOpen:
		if e.receive.ackAt > 0 {
			sooner(e.receive.ackAt)
		}
		if t, ok := e.send.timeout(); ok {
			sooner(t)
		}
		if e.send.outstanding() {
			sooner(e.progress + e.o.Patience)
		}
		sooner(e.heard + e.o.Patience)
		sooner(e.aliveAt)
	}
	return at
}

// tick does what is due.
func (e *End) tick(now time.Duration) {
	switch e.state {
	case stateOpening:
		if now >= e.heard+e.o.Patience {
			e.end(ErrSilent)
		} else if now >= e.openAt {
			e.owedOpen, e.openAt = true, now+openAgain
		}
	case stateOpen:
		if now >= e.heard+e.o.Patience || e.send.outstanding() && now >= e.progress+e.o.Patience {
			e.fail(ReasonSilent)
			return
		}
		if e.receive.ackAt > 0 && now >= e.receive.ackAt {
			e.receive.owed = true
		}
		if t, ok := e.send.timeout(); ok && now >= t {
			e.send.expire(now)
		}
		if now >= e.aliveAt {
			e.send.probe, e.aliveAt = true, now+e.o.Patience/4
		}
	}
}

// Input takes bytes from the line; they are not kept. It may be called with
// none, for the time.
func (e *End) Input(now time.Duration, p []byte) {
	for _, b := range p {
		switch {
		case b == 0:
			e.delimited(now)
		case len(e.in) == cap(e.in):
			e.overflow()
			fallthrough
		default:
			e.in = append(e.in, b)
		}
	}
	if len(p) > 0 {
		e.inAt = now
	} else if len(e.in) > 0 && e.inText() && now >= e.inAt+textQuiet {
		e.text(len(e.in))
	}
	e.tick(now)
}

// inText reports whether what has come may be a line of text.
func (e *End) inText() bool { return e.in[len(e.in)-1] == '\n' }

// delimited takes what stood before a delimiter: a frame, lines of text and then a
// frame, or nothing of use.
func (e *End) delimited(now time.Duration) {
	if !e.inLong && len(e.in) > 0 {
		for text := 0; text < len(e.in); {
			if e.frame(now, e.in[text:], text == 0) {
				e.text(text)
				e.in = e.in[:0]
				return
			}
			line := bytes.IndexByte(e.in[text:], '\n')
			if line < 0 {
				break
			}
			text += line + 1
		}
	}
	e.text(len(e.in))
	e.inLong = false
}

// overflow makes room: more has come than a frame has.
func (e *End) overflow() {
	line := bytes.IndexByte(e.in, '\n')
	if line < 0 {
		line = len(e.in) - 1
		e.inLong = true // what is to come is no frame, unless a line ends before
	} else {
		e.inLong = false
	}
	e.text(line + 1)
}

// text gives away so much of what has come, which was no frame.
func (e *End) text(n int) {
	if n == 0 {
		return
	}
	e.counters.Bad++
	if e.Text != nil {
		e.Text(e.in[:n])
	}
	e.in = e.in[:copy(e.in, e.in[n:])]
}

// frame takes a frame that has come in whole. False means that it was none. first
// says that it is all that has come since the last delimiter.
func (e *End) frame(now time.Duration, p []byte, first bool) bool {
	// In a copy: what is no frame must stay as it came.
	decoded, ok := decode(append(e.body[:0], p...))
	if !ok {
		return false
	}
	body, key, ok := keyOf(decoded)
	if !ok {
		return false
	}
	switch {
	case key == 0:
		e.opening(now, body)
		return true
	case key == e.key && (e.state == stateOpen || e.state == stateEnded):
		e.heard, e.answered = now, true
		e.aliveAt = now + e.o.Patience/4
		if e.state == stateEnded {
			e.late(now, body)
		} else if !e.take(now, body) {
			e.fail(ReasonProtocol)
		}
		return true
	}
	if first {
		e.strange(now, body, key)
	}
	return false
}

// strange answers a peer that is in a stream of which we know nothing. Damage
// makes such keys too, but not the same one for two different frames.
func (e *End) strange(now time.Duration, body []byte, key uint32) {
	sum := check(body, 0)
	again := e.stray.key == key && e.stray.sum != sum
	e.stray = stray{key, sum}
	if again && (e.resetAt == 0 || now >= e.resetAt+resetAgain) && body[0] != typeReset {
		e.owedReset, e.resetKey, e.reset = true, key, ReasonUnknown
	}
}

// opening takes a frame that opens a stream or refuses to.
func (e *End) opening(now time.Duration, body []byte) {
	rest := body[1:]
	switch {
	case body[0] == typeOpen && len(body) >= openSize && rest[0] != Version:
		copy(e.askedNonce[:], rest[1:])
		e.asked = true
		e.Refuse(now, ReasonVersion)
	case body[0] == typeOpen && len(body) == openSize:
		e.takeOpen(rest[1:])
	case body[0] == typeAccept && len(body) == acceptSize && e.state == stateOpening && [8]byte(rest) == e.nonce:
		rest = rest[nonceSize:]
		p, ok := parsePeer(rest[1+nonceSize:])
		if rest[0] != Version || !ok {
			return
		}
		device := e.nonce
		tool := [nonceSize]byte(rest[1:])
		e.begin(now, streamKey(&device, &tool))
		e.send.setPeer(p)
		e.receive.owed = true // so that the tool learns that it was heard
	case body[0] == typeRefuse && len(body) == refuseSize && e.state == stateOpening && [8]byte(rest) == e.nonce:
		e.end(Reason(rest[nonceSize]).err())
	}
}

// takeOpen takes a device's request for a stream.
func (e *End) takeOpen(rest []byte) {
	p, ok := parsePeer(rest[nonceSize:])
	if !ok {
		return
	}
	if e.state == stateOpen && [8]byte(rest) == e.nonce {
		e.owedAccept = !e.answered // else it is a late copy
		return
	}
	e.end(ErrRestarted)
	e.asked, e.askedNonce, e.askedPeer = true, [nonceSize]byte(rest), p
}

func parsePeer(b []byte) (p peer, ok bool) {
	p = peer{int(binary.BigEndian.Uint16(b)), int(binary.BigEndian.Uint16(b[2:]))}
	return p, p.window >= MinFrame && p.window <= maxWindow && p.frame >= MinFrame && p.frame <= MaxFrame
}

// take takes a frame of the stream. False means that it broke the rules.
func (e *End) take(now time.Duration, body []byte) bool {
	switch kind := body[0]; {
	case kind&dataBit != 0:
		return e.receive.data(now, binary.BigEndian.Uint16(body)&^(dataBit<<8), body[dataHeader:])
	case kind == typeAck || kind == typeProbe:
		if kind == typeProbe {
			e.receive.owed = true
		}
		acked, ok := e.send.ack(now, body)
		if acked > 0 {
			e.progress = now
		}
		e.counters.Sent += uint64(acked)
		e.over()
		return ok
	case kind == typeFin:
		if len(body) != finSize || !e.receive.fin(binary.BigEndian.Uint16(body[1:])) {
			return false
		}
		e.over()
	case kind == typeReset:
		if len(body) != resetSize {
			return false
		}
		e.takeReset(Reason(body[1]))
	}
	return true // of a type that a later version may have
}

// takeReset ends the stream: in order if the peer closes it after it had sent
// all and got all.
func (e *End) takeReset(reason Reason) {
	if reason == ReasonClosed && e.receive.ended() && e.send.una >= e.send.end {
		e.end(nil)
		return
	}
	e.end(reason.err())
}

// over ends the stream if both sides have closed it and know.
func (e *End) over() {
	if e.state == stateOpen && e.send.fin && e.send.flushed() && e.receive.ended() {
		owed := e.receive.owed
		e.end(nil)
		e.receive.owed = owed
	}
}

// late answers a frame of the stream that has ended: what ended in order is
// acknowledged again, and what did not is reset again.
func (e *End) late(now time.Duration, body []byte) {
	switch {
	case body[0] == typeReset || body[0] == typeAck:
	case e.err == nil:
		e.receive.owed = true
	case e.resetAt == 0 || now >= e.resetAt+resetAgain:
		e.owedReset, e.resetKey, e.reset = true, e.key, ReasonUnknown
	}
}

// Output returns the next bytes for the line, one frame, or nothing if there is
// nothing to say now. They are valid until the next call of a method. Call it
// after every other method that changes something, until it returns nothing.
func (e *End) Output(now time.Duration) []byte {
	e.tick(now)
	e.body = e.body[:0]
	key := e.key
	switch {
	case e.owedReset:
		e.owedReset, e.resetAt, key = false, max(now, 1), e.resetKey
		e.body = append(e.body, typeReset, byte(e.reset))
	case e.owedOpen:
		e.owedOpen, key = false, 0
		e.body = append(append(e.body, typeOpen, Version), e.nonce[:]...)
		e.appendLimits()
	case e.owedAccept:
		e.owedAccept, key = false, 0
		e.body = append(append(e.body, typeAccept), e.nonce[:]...)
		e.body = append(append(e.body, Version), e.toolNonce[:]...)
		e.appendLimits()
	case e.owedRefuse:
		e.owedRefuse, key = false, 0
		e.body = append(append(e.body, typeRefuse), e.askedNonce[:]...)
		e.body = append(e.body, byte(e.refuse))
	case e.receive.owed || e.state == stateOpen && e.send.probe:
		kind := byte(typeAck)
		if e.state == stateOpen && e.send.probe {
			kind, e.send.probe = typeProbe, false
		}
		e.body = e.receive.appendAck(append(e.body, kind))
	case e.state == stateOpen:
		if !e.send.outstanding() {
			e.progress = now
		}
		e.body = e.send.next(now, e.body, &e.counters)
	}
	if len(e.body) == 0 {
		return nil
	}
	// Something else may have been on the line: a delimiter before the frame too.
	first := 0
	if !e.everOutput || now >= e.said+idleLine || e.body[0]&dataBit == 0 && key == 0 {
		first = 1
	}
	e.everOutput, e.said = true, now
	e.out[0] = 0
	return e.out[:first+len(encode(e.out[first:], e.body, key))]
}

func (e *End) appendLimits() {
	e.body = binary.BigEndian.AppendUint16(e.body, uint16(e.o.Receive))
	e.body = binary.BigEndian.AppendUint16(e.body, uint16(e.o.Frame))
}
