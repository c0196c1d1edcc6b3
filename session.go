package quarklink

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"sync"
	"time"

	"github.com/quarklink-go/quarklink/internal/api"
	"github.com/quarklink-go/quarklink/internal/est"
	"github.com/quarklink-go/quarklink/internal/retry"
	"github.com/quarklink-go/quarklink/transport"
)

// session is one client certificate's conversation with the instance, over one
// connection at a time: a cable carries one stream.
type session struct {
	id     *tls.Certificate
	stream transport.Transport // verified, and shows id
	line   chan struct{}       // the Client's
	http   *http.Transport
	est    *est.Client
	api    *api.Client

	mu     sync.Mutex
	conn   net.Conn // the last that was dialled
	closed bool
}

const maxHeader = 64 << 10 // bytes of a response's header

// open returns the session that shows id, closing one that shows another
// certificate first.
func (c *Client) open(id *tls.Certificate) (*session, error) {
	if c.session != nil && c.session.id == id {
		return c.session, nil
	}
	c.closeSession()
	instance, err := c.useInstance()
	if err != nil {
		return nil, err
	}
	s := &session{id: id, stream: c.trusted(instance).As(id), line: c.line}
	s.http = &http.Transport{
		DialTLSContext:         s.dial,
		MaxConnsPerHost:        1,
		MaxIdleConnsPerHost:    1,
		IdleConnTimeout:        time.Minute,
		MaxResponseHeaderBytes: maxHeader,
		// The instance's bodies are signatures and firmware, which do not
		// compress, and a decompressed length could not be bounded before.
		DisableCompression: true,
	}
	hc := &http.Client{Transport: s.http, CheckRedirect: est.SameOrigin}
	origin := instance.origin()
	s.est = &est.Client{HTTP: hc, Base: origin + "/.well-known/est", Now: c.now}
	s.api = &api.Client{HTTP: hc, Base: origin + "/quarklink/v1", Firmware: c.firmware.header(), Now: c.now}
	c.session = s
	return s, nil
}

func (c *Client) closeSession() {
	if c.session != nil {
		c.session.close()
		c.session = nil
	}
}

// close closes the session's connection before it returns, which net/http alone
// would do later if it has not yet noticed it to be idle. A dial under way is
// told to end, and whatever comes of it is closed; the next one waits for that.
func (s *session) close() {
	s.mu.Lock()
	s.closed = true
	conn := s.conn
	s.mu.Unlock()
	s.http.CloseIdleConnections()
	if conn != nil {
		conn.Close()
	}
}

// dial opens the session's connection, after the one before is closed and no
// other dial is under way: net/http does not wait for one that it has given up.
func (s *session) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	select {
	case s.line <- struct{}{}:
		defer func() { <-s.line }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	s.mu.Lock()
	before := s.conn
	s.mu.Unlock()
	if before != nil {
		before.Close()
	}
	conn, err := dialBounded(ctx, s.stream)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		conn.Close()
		return nil, net.ErrClosed
	}
	s.conn = conn
	return conn, nil
}

// silence is how long the instance may say nothing, or take nothing, in the
// middle of an exchange: a connection that is longer silent is lost.
const silence = 2 * time.Minute

func dialBounded(ctx context.Context, stream transport.Transport) (net.Conn, error) {
	bounded, cancel := context.WithTimeout(ctx, silence)
	defer cancel()
	conn, err := stream.Dial(bounded)
	if err != nil && bounded.Err() != nil && ctx.Err() == nil {
		return nil, fmt.Errorf("no connection within %v: %w", silence, os.ErrDeadlineExceeded)
	}
	if err == nil && conn == nil {
		err = errors.New("the transport returned neither a stream nor an error")
	}
	if err != nil {
		return nil, err
	}
	return impatient{conn}, nil
}

// impatient is a connection whose every read and write has a time limit. One
// that knows no deadlines is bounded by the context of the call alone.
type impatient struct{ net.Conn }

func (c impatient) Read(p []byte) (int, error) {
	c.SetReadDeadline(time.Now().Add(silence))
	return c.Conn.Read(p)
}

func (c impatient) Write(p []byte) (int, error) {
	until := time.Now().Add(silence)
	c.SetWriteDeadline(until)
	c.SetReadDeadline(until) // of a read that has been waiting since before the request
	return c.Conn.Write(p)
}

// trusted returns a transport that verifies its peer: the caller's own, or TLS
// pinned to the instance's roots.
func (c *Client) trusted(i Instance) transport.Authenticator {
	if a, ok := c.transport.(transport.Authenticator); ok {
		return a
	}
	roots := x509.NewCertPool()
	for _, root := range i.roots() {
		roots.AddCert(root)
	}
	return transport.TLS{
		Addr:       i.addr(),
		ServerName: i.Endpoint,
		Roots:      roots,
		Under:      c.transport,
		MinVersion: c.minTLS,
		Time:       c.now,
	}
}

func (c *Client) bringsTrust() bool {
	_, ok := c.transport.(transport.Authenticator)
	return ok
}

// ask runs one step of a conversation with the instance, again where that can
// help.
func (c *Client) ask(ctx context.Context, step string, request func(context.Context) error) error {
	try := 0
	c.signing.Store(nil)
	err := retry.Do(ctx, func(ctx context.Context) error {
		try++
		c.log.LogAttrs(ctx, slog.LevelInfo, step, slog.Int("try", try))
		return request(ctx)
	})
	if err == nil {
		return nil
	}
	if failed := c.signing.Load(); failed != nil {
		// crypto/tls keeps only the text of it.
		return fmt.Errorf("%s: sign with the device's key: %w", step, *failed)
	}
	err = fmt.Errorf("%s: %w", step, err)
	if _, ok := causeCode(err); ok {
		return err
	}
	// net/http wraps whatever goes wrong below it in a url.Error, up to the
	// header of an answer; after that it is as the network says it.
	var unreached *url.Error
	if _, again := retry.Again(err); again || errors.As(err, &unreached) {
		return withCode(CodeCommunication, err)
	}
	return err
}
