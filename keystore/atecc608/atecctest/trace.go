package atecctest

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
)

// Bus is what a [Recorder] listens to: any I2C bus with this method.
type Bus interface {
	Tx(addr uint16, w, r []byte) error
}

// Operation is one transaction of a trace.
type Operation struct {
	Addr  uint16
	Write []byte
	Read  []byte // what was read; with NACK: as long as what was asked for
	NACK  bool   // the transaction failed
}

// Trace is the traffic on a bus, in order.
type Trace []Operation

// Recorder is a bus that passes everything on to another and keeps it. It is
// safe for concurrent use if that bus is.
type Recorder struct {
	bus Bus

	mu    sync.Mutex
	trace Trace
}

// NewRecorder returns a recorder on bus.
func NewRecorder(bus Bus) *Recorder { return &Recorder{bus: bus} }

// Tx passes the transaction on and keeps it.
func (r *Recorder) Tx(addr uint16, w, read []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	err := r.bus.Tx(addr, w, read)
	r.trace = append(r.trace, Operation{Addr: addr, Write: bytes.Clone(w), Read: bytes.Clone(read), NACK: err != nil})
	return err
}

// Trace returns what was recorded so far.
func (r *Recorder) Trace() Trace {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append(Trace(nil), r.trace...)
}

// ErrTrace is what a [Player] returns for a transaction that is not the next of
// its trace, and for transactions left over.
var ErrTrace = errors.New("atecctest: not as in the trace")

// Player is a bus that answers as in a trace, and wants exactly its
// transactions. It is safe for concurrent use.
type Player struct {
	mu    sync.Mutex
	trace Trace
	next  int
	err   error
}

// NewPlayer returns a player of the trace.
func NewPlayer(trace Trace) *Player { return &Player{trace: trace} }

// Tx answers as the next operation of the trace does, with [ErrNACK] if that
// was not acknowledged. Another address, other bytes written or another number
// of bytes to read is [ErrTrace], from then on for every transaction.
func (p *Player) Tx(addr uint16, w, r []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return p.err
	}
	if p.next == len(p.trace) {
		p.err = fmt.Errorf("%w: after its end: 0x%02x written % x, %d to read", ErrTrace, addr, w, len(r))
		return p.err
	}
	op := p.trace[p.next]
	if addr != op.Addr || !bytes.Equal(w, op.Write) || len(r) != len(op.Read) {
		p.err = fmt.Errorf("%w: operation %d: 0x%02x written % x, %d to read; in the trace: 0x%02x written % x, %d to read",
			ErrTrace, p.next+1, addr, w, len(r), op.Addr, op.Write, len(op.Read))
		return p.err
	}
	p.next++
	if op.NACK {
		return ErrNACK
	}
	copy(r, op.Read)
	return nil
}

// Close returns an [ErrTrace] if a transaction was not as in the trace, or if
// some of the trace is left over.
func (p *Player) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil && p.next < len(p.trace) {
		p.err = fmt.Errorf("%w: %d of %d operations left over", ErrTrace, len(p.trace)-p.next, len(p.trace))
	}
	return p.err
}

// WriteTo writes the trace as text, one operation a line: the address, what was
// written, and what was read, in hexadecimal, "-" for nothing, and "NACK" if it
// failed. [ParseTrace] reads it.
func (t Trace) WriteTo(w io.Writer) (int64, error) {
	var all bytes.Buffer
	for _, op := range t {
		fmt.Fprintf(&all, "%02x %s %s", op.Addr, hexOrDash(op.Write), hexOrDash(op.Read))
		if op.NACK {
			all.WriteString(" NACK")
		}
		all.WriteByte('\n')
	}
	return all.WriteTo(w)
}

func hexOrDash(b []byte) string {
	if len(b) == 0 {
		return "-"
	}
	return hex.EncodeToString(b)
}

// ParseTrace reads a trace as text. Empty lines, and lines that begin with #,
// are left out.
func ParseTrace(r io.Reader) (Trace, error) {
	var trace Trace
	lines := bufio.NewScanner(r)
	for number := 1; lines.Scan(); number++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		op, err := parseOperation(strings.Fields(line))
		if err != nil {
			return nil, fmt.Errorf("atecctest: trace, line %d: %w", number, err)
		}
		trace = append(trace, op)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("atecctest: trace: %w", err)
	}
	return trace, nil
}

func parseOperation(fields []string) (Operation, error) {
	var op Operation
	if len(fields) == 4 && fields[3] == "NACK" {
		op.NACK = true
		fields = fields[:3]
	}
	if len(fields) != 3 {
		return op, errors.New("need an address, bytes written, bytes read, and perhaps NACK")
	}
	addr, err := hex.DecodeString(fields[0])
	if err != nil || len(addr) != 1 || addr[0] > 0x7f {
		return op, fmt.Errorf("%q is not an address of 7 bits", fields[0])
	}
	op.Addr = uint16(addr[0])
	for i, to := range []*[]byte{&op.Write, &op.Read} {
		field := fields[i+1]
		if field == "-" {
			continue
		}
		if *to, err = hex.DecodeString(field); err != nil {
			return op, fmt.Errorf("%q: %w", field, err)
		}
	}
	return op, nil
}
