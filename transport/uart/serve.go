package uart

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quarklink-go/quarklink/transport/uart/tunnel"
)

// Serve answers the device at this port until ctx is done or the port fails, and
// returns the error of that, never nil; io.EOF means that the port was closed at
// the other end, [ErrIdle] that the device said nothing for too long. If Check
// fails it returns that error and sends nothing. It may be called for several
// ports at the same time, but a port has one tool: two that answer at one port
// answer each other's questions.
func (t *Tool) Serve(ctx context.Context, port Port) error {
	replies, err := t.replies()
	if err != nil {
		return err
	}
	if err := setReadDeadline(port, time.Time{}); err != nil {
		return fmt.Errorf("uart: %w", err)
	}
	end := tunnel.New(t.Options)
	s := &server{link: newLink(port, end, time.Now()), given: t, tool: t, replies: replies}
	end.Text = func(p []byte) {
		s.heard = append(s.heard, p...)
		if p[len(p)-1] != '\n' {
			s.heard = append(s.heard, 0) // so that it is no part of the next line
		}
	}
	s.find.onLine = s.console
	s.find.hide(string(t.Password))
	defer s.release()
	var cancel context.CancelFunc
	s.ctx, cancel = context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.stop()
	})
	err = s.serve()
	cancel()
	stop()
	s.leave()
	return fmt.Errorf("uart: %w", err)
}

// server is one Serve.
type server struct {
	*link
	ctx     context.Context
	given   *Tool             // as Serve was called with
	tool    *Tool             // as Choose has made it for this device
	chosen  bool              // for the present conversation
	replies map[string]string // the tool's values

	find  finder
	heard []byte // what came between frames, to be looked through

	events   sync.Mutex
	carrying sync.WaitGroup
	busy     bool // a goroutine carries streams; guarded by the link's lock
}

func (s *server) tell(e Event) {
	if s.given.OnEvent == nil {
		return
	}
	s.events.Lock()
	defer s.events.Unlock()
	s.given.OnEvent(e)
}

// serve reads the port until that or the context ends.
func (s *server) serve() error {
	chunk := make([]byte, 256)
	last := s.now()
	for {
		if s.given.Idle > 0 {
			s.mu.Lock()
			s.wakeAt = last + s.given.Idle
			s.mu.Unlock()
		}
		n, err := s.read(chunk)
		if s.ctx.Err() != nil {
			return s.ctx.Err()
		}
		s.input(chunk[:n])
		for _, b := range s.heard {
			if key := s.find.add(b); key != "" {
				if err := s.answer(key); err != nil {
					return err
				}
			}
		}
		if n > 0 {
			last = s.now() // after the answer: a callback is not the device's silence
		}
		s.mu.Lock()
		if err == nil {
			err = s.broken
		}
		s.mu.Unlock()
		if err == nil && s.given.Idle > 0 && s.now()-last >= s.given.Idle {
			err = fmt.Errorf("%w for %v", ErrIdle, s.given.Idle)
		}
		if err != nil {
			return err
		}
	}
}

// input gives the tunnel what has come, and leaves in s.heard what is text: in a
// stream what is left between frames, and otherwise everything, at once.
func (s *server) input(chunk []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	streaming := s.end.Established() || s.end.Asked()
	s.find.binary = streaming
	s.heard = s.heard[:0]
	s.end.Input(s.now(), chunk)
	if !streaming {
		s.heard = append(s.heard[:0], chunk...)
	}
	if s.end.Asked() && !s.busy && s.tool.Instance != nil {
		s.busy = true
		s.carrying.Add(1)
		go s.carry()
	}
	s.flush()
	s.changed.Broadcast()
}

// leave ends what goes on at the port when Serve does.
func (s *server) leave() {
	s.mu.Lock()
	if w, ok := s.port.(writeDeadliner); ok && s.broken == nil {
		w.SetWriteDeadline(time.Time{})
	}
	s.end.Reset(s.now(), tunnel.ReasonClosed)
	s.flush()
	s.changed.Broadcast()
	s.mu.Unlock()
	s.carrying.Wait()
	s.mu.Lock()
	s.alone()
	s.mu.Unlock()
}

// console tells of a line that is no request.
func (s *server) console(line []byte) {
	s.tell(Event{Kind: EventConsole, Line: line})
	if isReset(line) {
		s.chosen = false
		s.tell(Event{Kind: EventResetSeen})
	}
}

// isReset reports whether the line is that in which the ROM of an ESP32 or
// ESP8266 prints why it starts.
func isReset(line []byte) bool {
	text := string(line)
	return strings.Contains(text, "rst:0x") || strings.Contains(text, "rst cause:")
}

// answer answers a request.
func (s *server) answer(key string) error {
	name, id, isID := strings.Cut(key, ":")
	isID = isID && name == KeyDeviceID
	if !isID {
		name = key
	}
	s.tell(Event{Kind: EventAsked, Key: name})
	if key != KeyTunnel {
		s.mu.Lock()
		if s.end.Established() { // a device that has a stream asks for nothing
			s.end.Drop(tunnel.ErrRestarted)
			s.changed.Broadcast()
		}
		s.mu.Unlock()
	}
	var value string
	var refused error
	switch {
	case isID:
		value, refused = s.takeID(id)
	case key == KeyTunnel && s.tool.Instance != nil:
		value = replyOK
	case slices.Contains(askedKeys[:], key):
		value, refused = s.value(key)
	default:
		value, refused = replyUnsupported, ErrUnsupported
	}
	if err := s.send(s.tool.ended(value)); err != nil {
		return fmt.Errorf("answer %s: %w", keyName(key), err)
	}
	s.tell(Event{Kind: EventAnswered, Key: name, Err: refused})
	return nil
}

// value returns the answer to a question, and why it is a refusal if it is.
func (s *server) value(key string) (string, error) {
	if !s.chosen && s.given.Choose != nil {
		if err := s.choose(); err != nil {
			return replyRefused, err
		}
	}
	if value, ok := s.replies[key]; ok {
		return value, nil
	}
	return replyRefused, ErrRefused
}

// choose has the application decide what this device is to get.
func (s *server) choose() error {
	ctx, cancel := context.WithTimeout(s.ctx, s.given.timeout())
	defer cancel()
	tool := *s.given
	if err := s.given.Choose(ctx, &tool); err != nil {
		return err
	}
	replies, err := tool.replies()
	if err != nil {
		return err
	}
	s.find.hide(string(tool.Password))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tool, s.replies, s.chosen = &tool, replies, true
	return nil
}

// takeID takes a DeviceID.
func (s *server) takeID(id string) (string, error) {
	err := checkDeviceID(id)
	if err == nil && s.tool.OnDeviceID != nil {
		ctx, cancel := context.WithTimeout(s.ctx, s.tool.timeout())
		defer cancel()
		err = s.tool.OnDeviceID(ctx, id)
	}
	if checkDeviceID(id) == nil {
		s.tell(Event{Kind: EventDeviceID, DeviceID: id, Err: err})
	}
	s.chosen = false
	if err != nil {
		return replyRefused, err
	}
	return replyOK, nil
}

// send sends a reply, in one Write.
func (s *server) send(reply string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.ctx.Err(); err != nil || reply == "" {
		return err
	}
	s.reply = append(s.reply, reply...)
	s.flush()
	return s.broken
}

// carry carries one stream after the other, as long as a device asks for one.
func (s *server) carry() {
	defer s.carrying.Done()
	for {
		s.mu.Lock()
		if !s.end.Asked() {
			s.busy = false
			s.mu.Unlock()
			return
		}
		tool := s.tool
		s.mu.Unlock()
		conn, nonce, err := s.reach(tool)
		if err != nil {
			s.mu.Lock()
			s.end.Refuse(s.now(), tunnel.ReasonUnreachable)
			s.flush()
			s.mu.Unlock()
			s.tell(Event{Kind: EventTunnelDown, Err: err})
			continue
		}
		s.mu.Lock()
		s.end.Accept(s.now(), nonce)
		s.flush()
		s.mu.Unlock()
		s.tell(Event{Kind: EventTunnelUp})
		r := &relay{server: s, stream: &stream{link: s.link}, instance: conn}
		err = r.run()
		s.tell(Event{Kind: EventTunnelDown, Err: err, FromDevice: r.from.Load(), ToDevice: r.to.Load()})
	}
}

// reach reaches the instance for a device.
func (s *server) reach(tool *Tool) (conn net.Conn, nonce [8]byte, err error) {
	if _, err := io.ReadFull(tool.Random, nonce[:]); err != nil {
		return nil, nonce, fmt.Errorf("uart: make a nonce: %w", err)
	}
	ctx, cancel := context.WithTimeout(s.ctx, tool.timeout())
	defer cancel()
	conn, err = tool.Instance.Dial(ctx)
	if err == nil && conn == nil {
		err = errors.New("neither a stream nor an error")
	}
	if err != nil {
		return nil, nonce, fmt.Errorf("uart: reach the instance: %w", err)
	}
	return conn, nonce, nil
}

// relay passes the bytes of one stream between the device and the instance.
type relay struct {
	*server
	stream   *stream
	instance net.Conn
	from, to atomic.Uint64

	toldAt atomic.Int64
}

// run returns when the stream is over, and why if that was not in order.
func (r *relay) run() error {
	unblock := context.AfterFunc(r.ctx, func() { r.instance.Close() })
	defer unblock()
	up := make(chan struct{})
	go func() {
		defer close(up)
		r.up()
	}()
	err := r.pass(r.stream, r.instance, &r.to)
	if err == nil {
		err = r.stream.CloseWrite()
	}
	if err != nil {
		r.stream.hangUp(tunnel.ReasonFailed)
	}
	<-up
	r.mu.Lock()
	defer r.mu.Unlock()
	if ended := r.end.Err(); ended != nil && ended != tunnel.ErrClosed {
		return ended
	} else if ended == nil {
		return nil
	}
	return err // why this side has reset the stream
}

// up passes what the device sends. It ends when the stream does.
func (r *relay) up() {
	defer r.instance.Close()
	err := r.pass(r.instance, r.stream, &r.from)
	if err != nil {
		r.stream.hangUp(tunnel.ReasonFailed)
		return
	}
	if half, ok := r.instance.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for !r.end.Done() {
		r.changed.Wait()
	}
}

// pass copies until the end of what src has, which is no error.
func (r *relay) pass(dst io.Writer, src io.Reader, count *atomic.Uint64) error {
	buf := make([]byte, 2048)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			if _, err := dst.Write(buf[:n]); err != nil {
				return err
			}
			count.Add(uint64(n))
			r.tellBytes()
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// tellBytes tells what has passed, at most once a second.
func (r *relay) tellBytes() {
	now, told := int64(r.now()), r.toldAt.Load()
	if now-told >= int64(time.Second) && r.toldAt.CompareAndSwap(told, now) {
		r.tell(Event{Kind: EventBytes, FromDevice: r.from.Load(), ToDevice: r.to.Load()})
	}
}
