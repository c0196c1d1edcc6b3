package uart

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"
)

// Device is the asking side: the firmware that wants to be provisioned. One
// value serves one conversation, with one tool; Port is required, the other
// fields may stay zero. Its methods ask for one value each, in any order.
//
// A request that gets no answer within Timeout is sent again, Tries times in
// all. A line that comes meanwhile is skipped if it belongs to a console that
// shares the wire ("I (1234) wifi: …", perhaps coloured), if it is the request
// itself, sent back by a terminal that echoes, or if it cannot be a value of the
// key. After a request that was repeated or given up, the next one is preceded
// by a wait until the line (console lines apart) has been silent for one
// Timeout, so that a late answer to the one is not taken for an answer to the
// other.
//
// A reply ends at "\n", "\r\n" or NUL. Of a tool that sends none of them, the
// first reply ends at the Timeout and each later one at a gap of 100 ms.
//
// Besides the errors that each method names, a method returns the error of the
// context, or of the port. A Device is not safe for concurrent use.
type Device struct {
	// Port is the line.
	Port Port
	// Timeout is how long to wait for an answer before the request is sent
	// again. 0 means 3 s; much less than a second is too short for a tool that
	// sends no terminator.
	Timeout time.Duration
	// Tries is how often a request is sent at most. 0 means 5.
	Tries int
	// CheckRoot, if not nil, is a further check of the root certificate, such as
	// x509.ParseCertificate: a certificate that it refuses is skipped like any
	// other invalid line, and the error is wrapped in the one that RootCA
	// returns in the end. Without it only the outer DER structure is checked.
	CheckRoot func(der []byte) error

	ending ending  // how this tool ends its replies, as far as it is known
	late   bool    // an answer to an earlier request may still come
	asked  string  // the line of the request
	echo   bool    // the marker has come back; so may the rest of the request
	echoed bool    // the marker has ever come back
	chunk  []byte  // what Read has brought
	line   lineBuf // what of it is not a whole line yet
	bad    error   // what was wrong with the last line that was not a value
}

// ending is how a tool ends its replies.
type ending int

const (
	endingUnknown ending = iota
	endingTerminator
	endingGap
)

// Endpoint asks for the host name of the instance: at most 127 characters, a
// name by RFC 1123 or an IPv4 address. Errors: [ErrRefused], [ErrUnsupported],
// [ErrNoAnswer], [ErrReply].
func (d *Device) Endpoint(ctx context.Context) (string, error) {
	return ask(ctx, d, KeyEndpoint, parseHost)
}

// InstancePort asks for the TCP port of the instance; an empty reply means
// [DefaultPort]. Errors are those of Endpoint.
func (d *Device) InstancePort(ctx context.Context) (uint16, error) {
	return ask(ctx, d, KeyPort, parsePort)
}

// RootCA asks for the root certificate of the instance and returns its DER. The
// reply is base64, of the DER or of PEM text with exactly one certificate.
// Errors are those of Endpoint; see also CheckRoot.
func (d *Device) RootCA(ctx context.Context) (der []byte, err error) {
	return ask(ctx, d, KeyRootCA, func(line []byte) ([]byte, error) {
		der, err := parseRoot(line)
		if err == nil && d.CheckRoot != nil {
			err = d.CheckRoot(der)
		}
		return der, err
	})
}

// SSID asks for the name of the Wi-Fi network: 1 to 32 bytes, which need not be
// text. What is not text may be noise, so it is asked for again, at most as often
// as Tries says but twice at least, until it has come twice in a row. Errors are
// those of Endpoint.
func (d *Device) SSID(ctx context.Context) (string, error) {
	var before string
	tries := max(2, d.tries())
	for range tries {
		ssid, err := ask(ctx, d, KeySSID, parseSSID)
		if err != nil || isText(ssid) || ssid == before {
			return ssid, err
		}
		before = ssid
	}
	return "", fmt.Errorf("uart: %s: %w: %d answers that are not text, and no two in a row the same: is the line disturbed?",
		KeySSID, ErrReply, tries)
}

// Password asks for the password of the Wi-Fi network: 8 to 63 characters, 64
// hex digits, or "" for an open network. It is a secret; no error contains it.
// Errors are those of Endpoint.
func (d *Device) Password(ctx context.Context) (string, error) {
	return ask(ctx, d, KeyPassword, parsePassword)
}

// SendDeviceID tells the tool the DeviceID, 64 lower-case hex digits (anything
// else is fs.ErrInvalid), and waits until the tool acknowledges it by a reply of
// any text. [ErrRefused] means that the tool does not want this device;
// [ErrNotAcknowledged] that no reply came, which a device may log and ignore.
func (d *Device) SendDeviceID(ctx context.Context, id string) error {
	if err := checkDeviceID(id); err != nil {
		return fmt.Errorf("uart: %w: %w", err, fs.ErrInvalid)
	}
	err := d.exchange(ctx, KeyDeviceID, KeyDeviceID+":"+id, func([]byte) error { return nil })
	if errors.Is(err, ErrNoAnswer) || errors.Is(err, ErrReply) {
		return fmt.Errorf("%w: %w", ErrNotAcknowledged, err)
	}
	return err
}

// ask asks for one key and returns the first line that parse accepts.
func ask[T any](ctx context.Context, d *Device, key string, parse func(line []byte) (T, error)) (T, error) {
	var value T
	err := d.exchange(ctx, key, key, func(line []byte) error {
		v, err := parse(line)
		if err == nil {
			value = v
		}
		return err
	})
	return value, err
}

func (d *Device) timeout() time.Duration {
	if d.Timeout > 0 {
		return d.Timeout
	}
	return 3 * time.Second
}

func (d *Device) tries() int {
	if d.Tries > 0 {
		return d.Tries
	}
	return 5
}

// exchange sends the request with that line, again and again if it must, until
// accept has returned nil for a reply, which is accept's only during the call.
func (d *Device) exchange(ctx context.Context, key, line string, accept func(reply []byte) error) error {
	if d.chunk == nil {
		d.chunk = make([]byte, 256)
		d.line.buf = make([]byte, 0, 128) // a password leaves no copies behind by growth
	}
	defer func() { // either may hold the password
		clear(d.chunk)
		d.line.wipe()
	}()
	release := interrupt(ctx, d.Port)
	defer release()

	if err := d.settle(ctx); err != nil {
		return fmt.Errorf("uart: before asking for %s: %w", key, err)
	}
	d.asked, d.bad = line, nil
	for try := range d.tries() {
		if err := d.write(ctx); err != nil {
			return fmt.Errorf("uart: %s: %w", key, err)
		}
		answered, err := d.await(ctx, accept)
		if answered {
			d.late = try > 0
		}
		if err != nil && !answered && ctx.Err() != nil {
			return fmt.Errorf("uart: %s: %w, after %d requests: %s", key, err, try+1, d.hint())
		}
		if err != nil {
			return fmt.Errorf("uart: %s: %w", key, err)
		}
		if answered {
			return nil
		}
	}
	if d.bad != nil {
		return fmt.Errorf("uart: %s: %w to %d requests: the last line: %w", key, ErrReply, d.tries(), d.bad)
	}
	return fmt.Errorf("uart: %s: %w to %d requests, %v apart: %s", key, ErrNoAnswer, d.tries(), d.timeout(), d.hint())
}

// hint says what to look at when no answer comes.
func (d *Device) hint() string {
	if d.echoed {
		return "the line sends back what is written to it: set the terminal at its other end to raw mode (cfmakeraw, stty raw -echo)"
	}
	return "is the tool running, at the same baud rate, and the terminal at each end in raw mode?"
}

// settle discards what is left on the line from before: what is there already,
// or, if an answer may still come, all that comes until the line is silent for
// one time-out. Console lines do not count as noise.
func (d *Device) settle(ctx context.Context) error {
	silence := 20 * time.Millisecond // more than the latency of a USB adapter
	limit := d.timeout()
	if d.late {
		silence, limit = d.timeout(), time.Duration(d.tries())*d.timeout()
	}
	start := time.Now()
	heard := start  // when something other than console lines came last
	before := start // the same when the current line began
	d.line.reset()
	again := false // has looked once more; once will do, for a console may never rest
	for until := heard.Add(silence); ; {
		now := time.Now()
		if late := now.Sub(until); late >= 0 {
			if again || late < time.Millisecond {
				d.late = false
				return nil
			}
			// As in await: what came while we were away is still in the port.
			again, until = true, now.Add(doze)
		}
		if now.Sub(start) >= silence+limit {
			if !d.late {
				return nil // a console that never rests; await copes with it
			}
			return fmt.Errorf("%w: the line does not fall silent", ErrReply)
		}
		n, err := d.read(ctx, until)
		if err != nil {
			return err
		}
		was := heard
		now = time.Now()
		for _, b := range d.chunk[:n] {
			heard = now
			if !d.line.add(b) {
				continue
			}
			if isConsole(d.line.bytes()) {
				heard = before
			}
			before = heard
			d.line.reset()
		}
		if heard != was {
			until = heard.Add(silence)
		}
	}
}

// write sends the request. From then on an answer may come.
func (d *Device) write(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	d.late = true
	if _, err := d.Port.Write(request(d.asked)); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("write: %w", err)
	}
	return nil
}

// await reads lines for one time-out, or for up to two while a reply is still
// coming in. It returns true when a line was an answer: accepted (nil), or a
// refusal (its error). False with an error means that the port or the context
// ends the conversation.
func (d *Device) await(ctx context.Context, accept func(line []byte) error) (answered bool, err error) {
	last := time.Now() // when the last byte came
	end := last.Add(d.timeout())
	d.echo = false
	if !isConsole(d.line.bytes()) { // of a console line the rest may be to come
		d.line.reset()
	}
	until := end
	for {
		if time.Now().Before(until) {
			n, err := d.read(ctx, until)
			if err != nil {
				return false, err
			}
			now := time.Now()
			if n > 0 {
				last = now
			}
			if answered, err := d.take(d.chunk[:n], accept); answered {
				return true, err
			}
			// Who comes back so late has been away, on a busy machine, and finds
			// in the port what came meanwhile: that is no gap.
			away := n == 0 && now.Sub(until) > doze && now.Before(end.Add(d.timeout()))
			if until = d.waitUntil(end, last); away {
				until = now.Add(doze)
			}
			continue
		}
		silent := time.Since(last) >= gap
		if answered, err := d.judge(false, silent, accept); answered {
			return true, err
		}
		if !time.Now().Before(end) {
			if silent {
				d.line.reset() // a console line whose end was lost
			}
			return false, nil
		}
		until = d.waitUntil(end, last)
	}
}

// waitUntil returns how long await waits for the next byte: until the end of the
// time-out, but while a reply is coming in until the gap that ends it.
func (d *Device) waitUntil(end, last time.Time) time.Time {
	if d.line.empty() || isConsole(d.line.bytes()) {
		return end
	}
	until := last.Add(gap)
	if d.ending != endingGap && until.Before(end) {
		return end
	}
	if hard := end.Add(d.timeout()); until.After(hard) {
		return hard
	}
	return until
}

// take adds what has come in to the line, and judges each that is whole.
func (d *Device) take(chunk []byte, accept func(line []byte) error) (answered bool, err error) {
	for _, b := range chunk {
		if d.line.add(b) {
			if answered, err := d.judge(true, false, accept); answered {
				return true, err
			}
		}
	}
	return false, nil
}

// judge tells whether the line is an answer: accepted (nil), or a refusal (its
// error). If not it makes room for the next and notes in d.bad what was wrong. A
// line is whole when its end has come; one that is not is judged when it is time
// for it to end, and is silent if nothing came for a gap.
func (d *Device) judge(whole, silent bool, accept func(line []byte) error) (answered bool, err error) {
	line := d.line.bytes()
	switch {
	case !whole && (len(line) == 0 || isConsole(line)):
		return false, nil // nothing yet, or a console line whose end is still to come
	case isConsole(line), whole && d.isEcho(line):
	case !whole && (d.ending == endingTerminator || !silent):
		d.bad = fmt.Errorf("%d bytes, but no end", len(line))
	case d.line.long:
		d.bad = fmt.Errorf("longer than %d bytes", DeviceMaxReply)
	case string(line) == replyRefused:
		answered, err = true, ErrRefused
	case string(line) == replyUnsupported:
		answered, err = true, ErrUnsupported
	default:
		if bad := accept(line); bad != nil {
			d.bad = bad
		} else {
			answered = true
		}
	}
	switch {
	case answered && whole:
		d.ending = endingTerminator
	case answered:
		d.ending = endingGap
	case whole: // a console line may have broken into a reply: keep what came before it
		d.line.cut(max(0, consoleIndex(line)))
	default:
		d.line.reset()
	}
	return answered, err
}

// isEcho reports whether the line is one of our own request: the marker, its NUL
// (which ends an empty line, or is shown as ^@), the key. A host's terminal
// echoes until the tool has set it up, and "IEF DATA" would make a fine SSID.
func (d *Device) isEcho(line []byte) bool {
	switch string(line) {
	case marker:
		d.echo, d.echoed = true, true
		return true
	case "":
		return d.echo
	case d.asked, "^@" + d.asked:
		echo := d.echo
		d.echo = false
		return echo
	}
	return false
}

// read reads into d.chunk. It returns 0 and no error when nothing came: at the
// deadline, or earlier because ctx has ended, which the next call tells.
func (d *Device) read(ctx context.Context, until time.Time) (int, error) {
	if err := setReadDeadline(d.Port, until); err != nil {
		return 0, err
	}
	// After the deadline is set: if ctx ends later, interrupt moves it.
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	n, err := d.Port.Read(d.chunk)
	switch {
	case n > 0, errors.Is(err, os.ErrDeadlineExceeded):
		return n, nil
	case err != nil:
		return 0, fmt.Errorf("read: %w", err)
	}
	return 0, nil
}

// lineBuf collects a line of at most DeviceMaxReply bytes.
type lineBuf struct {
	buf  []byte // with room for a '\r' before the end
	long bool   // more came than fits
}

// add takes one byte and reports whether it ends the line.
func (l *lineBuf) add(b byte) (whole bool) {
	switch {
	case b == '\n' || b == 0:
		if n := len(l.buf); b == '\n' && n > 0 && l.buf[n-1] == '\r' {
			l.buf = l.buf[:n-1]
		}
		l.long = l.long || len(l.buf) > DeviceMaxReply
		return true
	case len(l.buf) > DeviceMaxReply:
		l.long = true
	default:
		l.buf = append(l.buf, b)
	}
	return false
}

func (l *lineBuf) bytes() []byte { return l.buf }
func (l *lineBuf) empty() bool   { return len(l.buf) == 0 }
func (l *lineBuf) reset()        { l.cut(0) }
func (l *lineBuf) cut(n int)     { l.buf, l.long = l.buf[:n], false }
func (l *lineBuf) wipe()         { clear(l.buf[:cap(l.buf)]); l.reset() }
