package tunnel

import (
	"encoding/binary"
	"time"
)

// maxWindow is the largest window: half of the positions that 15 bits tell
// apart, less one.
const maxWindow = 1<<14 - 1

// moreRanges in the window of an acknowledgement says that there are pieces of
// which it does not tell.
const moreRanges = 1 << 15

const (
	ackDelay  = 8 * time.Millisecond // what comes alone is acknowledged after this
	ackBytes  = 120                  // and what comes in a row after so many bytes on the line
	maxRanges = 32                   // pieces that may wait for what is missing before them
	ackRanges = 16                   // of them those of which an acknowledgement tells
)

// span is a piece of the stream, from its first byte to behind its last.
type span struct{ from, to int64 }

// receiver puts the stream together.
type receiver struct {
	ring   []byte
	start  int64 // position of the first byte that was not read
	next   int64 // of the first that has not come
	edge   int64 // of the first for which the peer was told that there is no room
	finAt  int64 // of the end, -1 as long as it is not known
	closed bool  // everything up to the end has come

	pieces [maxRanges]span // what has come beyond next, in order
	count  int

	owed     bool          // an acknowledgement is due
	ackAt    time.Duration // or will be then, if not 0
	unspoken int           // bytes on the line since the last one
}

func (r *receiver) begin() {
	*r = receiver{ring: r.ring, finAt: -1, edge: int64(len(r.ring))}
}

// data takes a frame's payload. False means that the peer broke the rules: it
// sent nothing, beyond the window, or beyond the end.
func (r *receiver) data(now time.Duration, at uint16, p []byte) bool {
	from := r.next + distance(at, uint16(r.next&0x7fff))
	to := from + int64(len(p))
	if len(p) == 0 || to > r.start+int64(len(r.ring)) || r.finAt >= 0 && to > r.finAt {
		return false
	}
	if from < 0 { // a copy of something from before the stream's first byte cannot be
		return false
	}
	r.unspoken += len(p) + overhead
	if r.unspoken >= ackBytes {
		r.owed = true
	} else if r.ackAt == 0 {
		r.ackAt = now + ackDelay
	}
	if to <= r.next {
		return true
	}
	if from < r.next {
		p, from = p[r.next-from:], r.next
	}
	if r.insert(span{from, to}) {
		r.store(from, p)
		r.advance()
	}
	return true
}

// store copies p into the ring.
func (r *receiver) store(at int64, p []byte) {
	n := copy(r.ring[at%int64(len(r.ring)):], p)
	copy(r.ring, p[n:])
}

// insert notes a piece. False means that there are too many: it is dropped, as
// if the line had lost it.
func (r *receiver) insert(s span) bool {
	i := 0
	for i < r.count && r.pieces[i].to < s.from {
		i++
	}
	j := i // the pieces from i to before j touch s
	for j < r.count && r.pieces[j].from <= s.to {
		s.from, s.to = min(s.from, r.pieces[j].from), max(s.to, r.pieces[j].to)
		j++
	}
	if i == j {
		if r.count == maxRanges && s.from != r.next {
			return false
		}
		if r.count == maxRanges {
			return r.advanceTo(s)
		}
		copy(r.pieces[i+1:r.count+1], r.pieces[i:r.count])
		r.count++
	} else {
		copy(r.pieces[i+1:], r.pieces[j:r.count])
		r.count -= j - i - 1
	}
	r.pieces[i] = s
	return true
}

// advanceTo takes the piece that is next, which needs no place of its own.
func (r *receiver) advanceTo(s span) bool {
	r.next = s.to
	return true
}

// advance moves next over what has come.
func (r *receiver) advance() {
	if r.count > 0 && r.pieces[0].from <= r.next {
		r.next = max(r.next, r.pieces[0].to)
		copy(r.pieces[:], r.pieces[1:r.count])
		r.count--
	}
	r.finish()
}

func (r *receiver) finish() { r.closed = r.finAt >= 0 && r.next == r.finAt }

// fin takes the position of the end. False means that there is another, or that
// more has come already.
func (r *receiver) fin(at uint16) bool {
	end := r.next + distance(at, uint16(r.next&0x7fff))
	if r.closed {
		end = r.finAt + distance(at, uint16(r.finAt&0x7fff))
	}
	last := r.next
	if r.count > 0 {
		last = r.pieces[r.count-1].to
	}
	if end < last || r.finAt >= 0 && end != r.finAt || end > r.start+int64(len(r.ring)) {
		return false
	}
	r.finAt, r.owed = end, true
	r.finish()
	return true
}

// ended reports whether everything up to the end has come.
func (r *receiver) ended() bool { return r.closed }

// atEnd reports whether it was read, too.
func (r *receiver) atEnd() bool { return r.closed && r.start == r.next }

func (r *receiver) read(p []byte) int {
	n := int(min(int64(len(p)), r.next-r.start))
	at := int(r.start % int64(len(r.ring)))
	m := copy(p[:n], r.ring[at:])
	copy(p[m:n], r.ring)
	r.start += int64(n)
	return n
}

// widened reports whether the peer should be told that there is more room: half
// of the window, or a frame for a peer that has none.
func (r *receiver) widened() bool {
	more := r.start + int64(len(r.ring)) - r.edge
	return !r.closed && (more >= int64(len(r.ring)/2) || r.edge-r.next < MaxFrame && more >= MaxFrame)
}

// appendAck appends what follows the type in an acknowledgement: the next
// position, the window from there, and then in turn how many bytes are missing
// and how many are there.
func (r *receiver) appendAck(b []byte) []byte {
	r.owed, r.ackAt, r.unspoken = false, 0, 0
	r.edge = r.start + int64(len(r.ring))
	next := r.next
	if r.closed {
		next++ // the end has a position too
	}
	b = binary.BigEndian.AppendUint16(b, uint16(next&0x7fff))
	window := uint16(max(0, r.edge-next))
	if r.count > ackRanges {
		window |= moreRanges
	}
	b = binary.BigEndian.AppendUint16(b, window)
	at := r.next
	for _, s := range r.pieces[:min(r.count, ackRanges)] {
		b = appendVarint(b, s.from-at)
		b = appendVarint(b, s.to-s.from)
		at = s.to
	}
	return b
}
