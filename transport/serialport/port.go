// Package serialport opens a serial port of a host: for a provisioning tool, a
// test harness or an embedded Linux device. What it opens is a uart.Port with
// deadlines, so uart.Tool, uart.Tunnel and Client.Provision take it as it is.
//
//	port, err := serialport.OpenUSB(ctx, serialport.USB{VID: 0x10C4, PID: 0xEA60}, serialport.Options{})
//
// Ports are opened 8N1 and raw, without flow control. On Linux a program such as
// ModemManager may talk to a port that has just appeared; a udev rule with
// ENV{ID_MM_DEVICE_IGNORE}="1" keeps it away.
//
// This is the only package of the library that links go.bug.st/serial.
package serialport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"go.bug.st/serial"

	"github.com/quarklink-go/quarklink/transport/uart"
)

var _ uart.Port = (*Port)(nil)

// ErrUnplugged means that the port has gone: the cable was pulled, or a device
// with USB of its own was reset. [Port.Reopen] waits for it to come back.
var ErrUnplugged = errors.New("the serial port is unplugged")

// Lines is what becomes of DTR and RTS when a port is opened. On boards whose
// reset and boot pins hang on them, they decide whether the device runs.
type Lines int

const (
	// LinesLeave leaves them as the operating system sets them, which is both on:
	// a board with two transistors between lines and pins runs.
	LinesLeave Lines = iota
	// LinesLow turns both off, which a board needs whose pins are wired directly.
	// Unix turns them on for a moment all the same, which may reset the device.
	LinesLow
	// LinesHigh turns both on, also where the system would not.
	LinesHigh
)

// Options say how to open a port. The zero value is what most boards want.
type Options struct {
	// Baud is the bit rate. 0 means 115200.
	Baud int
	// Lines is what becomes of DTR and RTS. Anything but LinesLeave fails on a
	// port that has none, such as a pseudo terminal.
	Lines Lines
	// WriteLimit is how long a Write may wait for the port to take its bytes
	// when no deadline is set. 0 means 10 s.
	WriteLimit time.Duration
}

// slice is how long one read of the system may wait. A deadline that is set
// while it does, and Close, are noticed after it.
const slice = 10 * time.Millisecond

// Port is an open serial port. One goroutine may read while another writes;
// further ones wait for their turn.
type Port struct {
	options Options
	usb     *USB // how to find it again, nil: by its path

	reading chan struct{} // held by who reads, and by Close and Reopen
	writing chan struct{} // held by who writes

	mu         sync.Mutex
	path       string
	port       serial.Port
	closed     bool
	gone       chan struct{} // closed by Close
	readUntil  time.Time
	writeUntil time.Time
}

// Open opens the port at a path, such as /dev/ttyUSB0, COM3, or the slave of a
// pseudo terminal. A path below /dev/serial/by-id or by-path names the same board
// whatever else is plugged in. A port that another program has open is an error
// that names it busy; the file's own errors, such as fs.ErrNotExist and
// fs.ErrPermission, are to be found by errors.Is.
func Open(path string, o Options) (*Port, error) {
	if o.Baud == 0 {
		o.Baud = 115200
	}
	if o.Baud < 0 {
		return nil, &os.PathError{Op: "open", Path: path, Err: fmt.Errorf("baud rate %d: %w", o.Baud, os.ErrInvalid)}
	}
	if o.WriteLimit <= 0 {
		o.WriteLimit = 10 * time.Second
	}
	port, err := open(path, o)
	if err != nil {
		return nil, err
	}
	return &Port{
		options: o, path: path, port: port,
		reading: make(chan struct{}, 1), writing: make(chan struct{}, 1), gone: make(chan struct{}),
	}, nil
}

func open(path string, o Options) (serial.Port, error) {
	mode := &serial.Mode{BaudRate: o.Baud}
	switch o.Lines {
	case LinesLow:
		mode.InitialStatusBits = &serial.ModemOutputBits{}
	case LinesHigh:
		mode.InitialStatusBits = &serial.ModemOutputBits{DTR: true, RTS: true}
	}
	mode.DataBits = 8
	port, err := serial.Open(path, mode)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: openError(path, err)}
	}
	if err := port.SetReadTimeout(slice); err != nil {
		port.Close()
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return port, nil
}

// openError adds to the serial library's error the one that a file has for it.
func openError(path string, err error) error {
	var known *serial.PortError
	if !errors.As(err, &known) {
		return err
	}
	switch known.Code() {
	case serial.PermissionDenied:
		return fmt.Errorf("%w (on Linux, is the user in the group dialout?): %w", err, os.ErrPermission)
	case serial.PortNotFound:
		return fmt.Errorf("%w: %w", err, os.ErrNotExist)
	}
	return err
}

// Path returns the path at which the port is open.
func (p *Port) Path() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.path
}

// state returns the port of the system, or why it may not be used.
func (p *Port) state() (serial.Port, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
		return nil, net.ErrClosed
	case p.port == nil:
		return nil, ErrUnplugged
	}
	return p.port, nil
}

// error says which port an error is of.
func (p *Port) error(op string, err error) error {
	if err == nil {
		return nil
	}
	return &os.PathError{Op: op, Path: p.Path(), Err: err}
}

// Read waits until there is a byte, and returns what there is. A deadline that
// has passed is os.ErrDeadlineExceeded, a port that was closed here
// net.ErrClosed, and one that has gone [ErrUnplugged].
func (p *Port) Read(b []byte) (int, error) {
	p.reading <- struct{}{}
	defer func() { <-p.reading }()
	n, err := p.read(b)
	return n, p.error("read", err)
}

func (p *Port) read(b []byte) (int, error) {
	for {
		port, err := p.state()
		if err != nil || len(b) == 0 { // for which the library would say that the port is closed
			return 0, err
		}
		wait := p.wait()
		if wait <= 0 {
			return 0, os.ErrDeadlineExceeded
		}
		// Here and not when the deadline is set: the library reads it unguarded.
		if err := port.SetReadTimeout(wait); err != nil {
			return 0, err
		}
		n, err := port.Read(b)
		if n > 0 {
			return n, nil
		}
		if err != nil {
			return 0, p.lost(port, err, true)
		}
	}
}

// wait returns how long a read of the system may take.
func (p *Port) wait() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.readUntil.IsZero() {
		return slice
	}
	return min(slice, time.Until(p.readUntil))
}

// Write returns when the system has taken all of b. After the write deadline, or
// without one after Options.WriteLimit, it returns os.ErrDeadlineExceeded, and
// the system may still take what it has not. Otherwise errors are those of Read.
func (p *Port) Write(b []byte) (int, error) {
	p.mu.Lock()
	until := p.writeUntil
	p.mu.Unlock()
	if until.IsZero() {
		until = time.Now().Add(p.options.WriteLimit)
	}
	n, err := p.write(b, until)
	return n, p.error("write", err)
}

type written struct {
	n   int
	err error
}

// write leaves to a goroutine what the system may never return from.
func (p *Port) write(b []byte, until time.Time) (int, error) {
	limit := time.NewTimer(time.Until(until))
	defer limit.Stop()
	select {
	case p.writing <- struct{}{}:
	case <-limit.C:
		return 0, os.ErrDeadlineExceeded
	case <-p.gone:
		return 0, net.ErrClosed
	}
	port, err := p.state()
	if err != nil || len(b) == 0 {
		<-p.writing
		return 0, err
	}
	done := make(chan written, 1)
	data := append([]byte(nil), b...)
	go func() {
		var w written
		for w.n < len(data) && w.err == nil {
			var n int
			n, w.err = port.Write(data[w.n:])
			w.n += n
			if errors.Is(w.err, syscall.EINTR) {
				w.err = nil
			}
		}
		clear(data) // it may be a password
		<-p.writing
		done <- w
	}()
	select {
	case w := <-done:
		if w.err != nil {
			w.err = p.lost(port, w.err, false)
		}
		return w.n, w.err
	case <-limit.C:
		return 0, os.ErrDeadlineExceeded
	case <-p.gone:
		return 0, net.ErrClosed
	}
}

// lost tells a port that has gone from one that was closed here, and from other
// errors: the library has one for both. reading: the caller may read.
func (p *Port) lost(port serial.Port, err error, reading bool) error {
	err = p.classify(port, err)
	if errors.Is(err, ErrUnplugged) {
		if !reading {
			p.reading <- struct{}{}
			defer func() { <-p.reading }()
		}
		port.Close()
	}
	return err
}

func (p *Port) classify(port serial.Port, err error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return net.ErrClosed
	}
	if p.port != port {
		return ErrUnplugged
	}
	var known *serial.PortError
	closed := errors.As(err, &known) && known.Code() == serial.PortClosed
	for _, errno := range []syscall.Errno{syscall.EIO, syscall.ENXIO, syscall.ENODEV, syscall.EBADF} {
		closed = closed || errors.Is(err, errno)
	}
	if !closed {
		return err
	}
	p.port = nil
	return fmt.Errorf("%w: %w", ErrUnplugged, err)
}

// SetDeadline sets the deadlines of Read and Write; the zero time is none.
func (p *Port) SetDeadline(t time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.readUntil, p.writeUntil = t, t
	return nil
}

// SetReadDeadline sets the deadline of Read. A Read that waits notices it within
// 10 ms.
func (p *Port) SetReadDeadline(t time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.readUntil = t
	return nil
}

// SetWriteDeadline sets the deadline of Writes that begin after it.
func (p *Port) SetWriteDeadline(t time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.writeUntil = t
	return nil
}

// Close closes the port, after a Read that waits has returned. What the system
// has not sent yet is thrown away. Closing turns DTR and RTS off, unless
// stty -hupcl was applied to the port: to leave a board as it is, keep the port
// open.
func (p *Port) Close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return p.error("close", net.ErrClosed)
	}
	p.closed = true
	close(p.gone)
	p.mu.Unlock()
	p.reading <- struct{}{} // else the library's Read might wait on a reused descriptor
	defer func() { <-p.reading }()
	return p.error("close", p.closeSystem())
}

func (p *Port) closeSystem() error {
	p.mu.Lock()
	port := p.port
	p.port = nil
	p.mu.Unlock()
	if port == nil {
		return nil
	}
	port.ResetOutputBuffer() // which a Write may wait for
	return port.Close()
}

// Reset resets the board by a pulse of 100 ms on RTS with DTR off, after which
// both lines are off and the board runs. That holds for boards with the two
// transistors of Espressif's and for boards whose pins are wired directly, where
// RTS is the reset pin and DTR the boot pin. A port without such lines is
// errors.ErrUnsupported. A board with USB of its own takes the port away while it
// starts: then call Reopen.
func (p *Port) Reset(ctx context.Context) error {
	port, err := p.state()
	if err != nil {
		return p.error("reset", err)
	}
	if err := errors.Join(port.SetDTR(false), port.SetRTS(true)); err != nil {
		return p.error("reset", fmt.Errorf("the port has no DTR and RTS: %w: %w", errors.ErrUnsupported, err))
	}
	var cut error
	select {
	case <-time.After(100 * time.Millisecond):
	case <-ctx.Done():
		cut = ctx.Err()
	}
	if err := port.SetRTS(false); err != nil { // also when cut: not to leave the board in reset
		return p.error("reset", p.lost(port, err, false))
	}
	return p.error("reset", cut)
}

// Reopen closes what is left of the port and opens it again as soon as it is
// there: by its USB identity if it was opened by that, at whatever path, else at
// its path. Ports that vanish with a reset are back within 10 s. It returns the
// context's error, with what was wrong last, if it ends before. A Write that was
// under way has failed.
func (p *Port) Reopen(ctx context.Context) error {
	p.reading <- struct{}{}
	defer func() { <-p.reading }()
	if _, err := p.state(); errors.Is(err, net.ErrClosed) {
		return p.error("reopen", err)
	}
	p.closeSystem()
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		err := p.openAgain()
		if err == nil || errors.Is(err, net.ErrClosed) {
			return err
		}
		select {
		case <-again.C:
		case <-p.gone:
			return p.error("reopen", net.ErrClosed)
		case <-ctx.Done():
			return p.error("reopen", fmt.Errorf("%w: %w", ctx.Err(), err))
		}
	}
}

func (p *Port) openAgain() error {
	path := p.Path()
	if p.usb != nil {
		found, err := p.usb.find()
		if err != nil {
			return err
		}
		path = found
	}
	port, err := open(path, p.options)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		port.Close()
		return net.ErrClosed
	}
	p.path, p.port = path, port
	return nil
}
