package exchange

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/quarklink-go/quarklink/internal/problem"
)

// conn is a connection that serves exchanges, one after the other.
type conn struct {
	raw    net.Conn
	answer *bufio.Reader // reads from the conn itself
	once   sync.Once     // of close

	// Only the exchange, and the reader of its body, uses these.
	header int64      // how much may still be read before the header must have ended
	ended  error      // how reading from raw ended, for good
	broken error      // the same, once more was wanted than had come
	peek   chan heard // not nil: the first byte of the answer comes from there

	mu    sync.Mutex // guards what follows
	idle  bool
	limit *time.Timer // ends an idle connection
	cause error       // why the connection was cut
	unset error       // why the request could not be sent
}

// heard is what reading one byte came to.
type heard struct {
	b   [1]byte
	n   int
	err error
}

func newConn(raw net.Conn) *conn {
	c := &conn{raw: raw}
	c.answer = bufio.NewReader(c)
	return c
}

func (c *conn) close() { c.once.Do(func() { c.raw.Close() }) }

// cut closes the connection for a reason, which the first such call gives.
func (c *conn) cut(reason error) {
	c.mu.Lock()
	if c.cause == nil {
		c.cause = reason
	}
	c.mu.Unlock()
	c.close()
}

// why returns the reason for which the connection was cut, or else err.
func (c *conn) why(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cause != nil {
		return c.cause
	}
	return err
}

// exchange sends the request and reads the header of its answer.
func (c *conn) exchange(req *http.Request, request []byte) (*http.Response, error) {
	ctx := req.Context()
	stop := context.AfterFunc(ctx, func() { c.cut(context.Cause(ctx)) })
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		c.send(request)
	}()
	c.header = maxHeader
	resp, err := c.readHeader(req)
	if err != nil {
		stop()
		c.close()
		return nil, c.verdict(err)
	}
	c.header = math.MaxInt64
	b := &body{from: resp.Body, c: c, stop: stop, sent: sent,
		last: resp.Close || req.Close || resp.StatusCode == http.StatusSwitchingProtocols}
	resp.Body = b
	if b.from == http.NoBody {
		b.end(true)
	}
	return resp, nil
}

var errSilent = fmt.Errorf("the instance was silent for %v: %w", Silence, os.ErrDeadlineExceeded)

// send sends the request. If that fails, an answer must come soon.
func (c *conn) send(request []byte) {
	for len(request) > 0 {
		n := min(len(request), writeChunk)
		silent := time.AfterFunc(Silence, func() { c.cut(errSilent) })
		_, err := c.raw.Write(request[:n])
		silent.Stop()
		if err != nil {
			c.mu.Lock()
			c.unset = err
			c.mu.Unlock()
			time.AfterFunc(answerTime, c.close)
			return
		}
		request = request[n:]
	}
}

// verdict says why there is no answer: what the peer said, if it did say
// something, counts more than that the request could not be sent.
func (c *conn) verdict(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.cause != nil:
		return c.cause
	case c.unset != nil && !isAlert(err) && !errors.Is(err, ErrMalformed):
		return fmt.Errorf("send the request: %w", c.unset)
	}
	return err
}

// isAlert tells that TLS ended by an alert of the peer, which crypto/tls reports
// with this Op.
func isAlert(err error) bool {
	var op *net.OpError
	var alert tls.AlertError
	return errors.As(err, &op) && op.Op == "remote error" || errors.As(err, &alert)
}

// readHeader reads up to the body of the final answer. A 101, which would make
// the connection something else, is one too: nothing follows it that concerns us.
func (c *conn) readHeader(req *http.Request) (*http.Response, error) {
	for range maxInterim + 1 {
		resp, err := http.ReadResponse(c.answer, req)
		switch {
		case err != nil:
			return nil, c.failure(err)
		case resp.StatusCode < 100 || resp.ProtoMajor != 1:
			return nil, fmt.Errorf("%w: %s %d", ErrMalformed, resp.Proto, resp.StatusCode)
		case !isHeader(resp.Header):
			return nil, fmt.Errorf("%w: a header field that is not valid", ErrMalformed)
		case len(resp.Header.Get("Location")) > maxLocation:
			return nil, fmt.Errorf("%w: a Location of %d bytes", ErrMalformed, len(resp.Header.Get("Location")))
		case resp.StatusCode >= 200 || resp.StatusCode == http.StatusSwitchingProtocols:
			return resp, nil
		}
	}
	return nil, fmt.Errorf("%w: more than %d interim answers", ErrMalformed, maxInterim)
}

// isHeader checks what net/http lets pass: that names are tokens (RFC 9110
// section 5.6.2), and that values have no control characters.
func isHeader(h http.Header) bool {
	for name, values := range h {
		if strings.ContainsFunc(name, func(r rune) bool {
			return r <= ' ' || r > '~' || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, r)
		}) {
			return false
		}
		for _, value := range values {
			if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
				return false
			}
		}
	}
	return true
}

// failure tells a connection that broke, for whatever reason, from an answer
// that is wrong.
func (c *conn) failure(err error) error {
	if c.broken != nil {
		return c.broken
	}
	return fmt.Errorf("%w: %s", ErrMalformed, problem.Clean(err.Error(), maxReason))
}

// Read reads from the connection for c.answer. An error is told when more is
// wanted than came before it, so that c.broken says that something is missing.
func (c *conn) Read(p []byte) (int, error) {
	switch {
	case c.broken != nil:
		return 0, c.broken
	case c.header <= 0:
		c.broken = fmt.Errorf("%w: its header is larger than %d bytes", ErrMalformed, maxHeader)
		return 0, c.broken
	case c.ended == nil:
		silent := time.AfterFunc(Silence, func() { c.cut(errSilent) })
		n, err := c.read(p[:min(int64(len(p)), c.header)])
		silent.Stop()
		c.header -= int64(n)
		c.ended = err
		if n > 0 || err == nil {
			return n, nil
		}
	}
	if c.ended == io.EOF {
		// net/http makes of it the end of the body where that is one.
		c.broken = io.ErrUnexpectedEOF
		return 0, io.EOF
	}
	c.broken = c.why(c.ended)
	return 0, c.broken
}

func (c *conn) read(p []byte) (int, error) {
	if c.peek == nil {
		return c.raw.Read(p)
	}
	h := <-c.peek
	c.peek = nil
	return copy(p, h.b[:h.n]), h.err
}

// rest lets the connection wait for the next exchange. A connection on which
// something happens meanwhile is of no use: the peer closes it, or says
// something unasked.
func (c *conn) rest() {
	peek := make(chan heard, 1)
	c.mu.Lock()
	c.idle = true
	c.peek = peek
	c.limit = time.AfterFunc(idleTime, c.close)
	c.mu.Unlock()
	go func() {
		var h heard
		h.n, h.err = c.raw.Read(h.b[:])
		c.mu.Lock()
		unasked := c.idle
		c.idle = false
		c.mu.Unlock()
		peek <- h
		if unasked {
			c.limit.Stop()
			c.close()
		}
	}()
}

// reuse takes an idle connection for an exchange. It reports false if that is
// not possible.
func (c *conn) reuse() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.idle || !c.limit.Stop() {
		return false
	}
	c.idle = false
	return true
}

// body is the body of an answer.
type body struct {
	from io.ReadCloser
	c    *conn
	stop func() bool   // ends the watch on the context; false: it has ended
	sent chan struct{} // closed after the request was sent, or could not be
	last bool          // no further exchange on this connection

	once   sync.Once
	closed bool
}

func (b *body) Read(p []byte) (int, error) {
	if b.closed {
		return 0, http.ErrBodyReadAfterClose
	}
	n, err := b.from.Read(p)
	switch {
	case err == io.EOF:
		b.end(true)
	case err != nil:
		err = b.c.failure(err)
		b.end(false)
	}
	return n, err
}

// Close closes the connection if the body was not read to its end.
func (b *body) Close() error {
	b.end(false)
	b.closed = true
	return nil
}

// end ends the exchange.
func (b *body) end(whole bool) {
	b.once.Do(func() {
		if b.stop() && whole && !b.last && b.c.ended == nil && b.c.answer.Buffered() == 0 && b.wasSent() {
			b.c.rest()
		} else {
			b.c.close()
		}
	})
}

// sentWait is how long the end of sending is waited for after the answer is
// there: the peer may be faster than our own goroutine.
const sentWait = 50 * time.Millisecond

func (b *body) wasSent() bool {
	late := time.NewTimer(sentWait)
	defer late.Stop()
	select {
	case <-b.sent:
	case <-late.C:
		return false
	}
	b.c.mu.Lock()
	defer b.c.mu.Unlock()
	return b.c.unset == nil
}
