// Package exchange is an HTTP/1.1 client (RFC 9112) for one server, over one
// connection at a time: a cable carries one stream.
//
// [Transport] is the http.RoundTripper below an http.Client; requests are
// written and answers read by net/http. What it has of its own is control over
// the connection: it closes when the context of its exchange ends, and nothing
// of it outlives Close. http.Transport hands out the raw stream after a 101,
// lets dials outlive their requests, takes a connection that a server reset for
// lost without reading why, and prints what a server says unasked.
package exchange

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync"
	"time"
)

const (
	// Silence is how long the server may say nothing, or take nothing, while it
	// is waited for, and how long opening a connection may take.
	Silence = 2 * time.Minute
	// idleTime is how long a connection is kept for the next exchange.
	idleTime = time.Minute
	// answerTime is how long an answer is waited for after the request could
	// not be sent: the server may have said why before it hung up.
	answerTime = 5 * time.Second
	// maxHeader bounds the header of an answer, those of interim answers
	// included, in bytes.
	maxHeader = 64 << 10
	// maxInterim is how many interim answers (1xx) may come before the final
	// one.
	maxInterim = 5
	// maxLocation bounds where a redirect leads, in bytes: errors of net/http
	// quote it whole.
	maxLocation = 512
	// maxReason bounds what is told of an answer that is wrong, in runes.
	maxReason = 200
	// writeChunk is how much of a request is written within one Silence.
	writeChunk = 16 << 10
)

// ErrMalformed is an answer that is not HTTP/1.1, or not within bounds. Asking
// again does not help.
var ErrMalformed = errors.New("the answer is not well-formed HTTP")

// Transport is an http.RoundTripper. Make one with [New].
//
// Exchanges are made one after the other. A second one before the body of the
// first answer was read to its end closes the first one's connection. Requests
// are held in memory while they are sent; they are not repeated, and nothing is
// compressed.
//
// An error is the context's cause, [ErrMalformed], or how the connection failed.
type Transport struct {
	dial func(context.Context) (net.Conn, error)
	line chan struct{}

	mu     sync.Mutex // guards what follows
	conn   *conn      // the last that was opened
	closed bool
}

// New returns a Transport that opens connections with dial. A connection is
// opened after the one before is closed, and not while line holds a token:
// line has room for one, and Transports that share the one stream there can be
// share line. A dial that does not end with its context keeps the token until
// it does end.
func New(dial func(context.Context) (net.Conn, error), line chan struct{}) *Transport {
	return &Transport{dial: dial, line: line}
}

// RoundTrip makes one exchange. The connection is closed when the context of
// the request ends, also while the body is being read, and when the body is
// closed before its end.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		defer req.Body.Close()
	}
	var request bytes.Buffer
	if err := req.Write(&request); err != nil {
		return nil, fmt.Errorf("write the request: %w", err)
	}
	c, err := t.connect(req.Context())
	if err != nil {
		return nil, err
	}
	return c.exchange(req, request.Bytes())
}

// Close closes the connection before it returns. Later exchanges fail with
// net.ErrClosed.
func (t *Transport) Close() {
	t.mu.Lock()
	t.closed = true
	c := t.conn
	t.mu.Unlock()
	if c != nil {
		c.close()
	}
}

// connect returns the connection of before, if it still is of use, or a new one.
func (t *Transport) connect(ctx context.Context) (*conn, error) {
	t.mu.Lock()
	before, closed := t.conn, t.closed
	t.mu.Unlock()
	if closed {
		return nil, net.ErrClosed
	}
	if before != nil {
		if before.reuse() {
			return before, nil
		}
		before.close()
	}
	raw, err := t.open(ctx)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed { // meanwhile
		raw.Close()
		return nil, net.ErrClosed
	}
	t.conn = newConn(raw)
	return t.conn, nil
}

// errNoConnection ends a dial that takes too long.
var errNoConnection = fmt.Errorf("no connection within %v: %w", Silence, os.ErrDeadlineExceeded)

// open dials, and returns when ctx ends even if the dial does not.
func (t *Transport) open(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, Silence, errNoConnection)
	defer cancel()
	select {
	case t.line <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result)
	go func() {
		conn, err := t.dial(ctx)
		select {
		case done <- result{conn, err}:
		case <-ctx.Done(): // nobody waits any more
			if conn != nil {
				conn.Close()
			}
		}
		<-t.line
	}()
	select {
	case r := <-done:
		switch {
		case r.err != nil && ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case r.err != nil:
			return nil, r.err
		case r.conn == nil:
			return nil, errors.New("the transport returned neither a stream nor an error")
		}
		return r.conn, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
