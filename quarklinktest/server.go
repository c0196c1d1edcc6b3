package quarklinktest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/quarklink-go/quarklink"
)

// Names under which the server certificate is valid, beside 127.0.0.1 and ::1.
const (
	// HostName is the endpoint of a Server that listens nowhere.
	HostName  = "instance.test"
	localhost = "localhost"
)

// Bounds on what a device may send or take its time for.
const (
	maxRequestBody   = 64 << 10
	maxRequestHeader = 64 << 10
	handshakeTimeout = 10 * time.Second
	headerTimeout    = 30 * time.Second
	idleTimeout      = 3 * time.Minute
)

// Options change how a Server runs. The zero value is a Server on 127.0.0.1
// that tells the time by time.Now.
type Options struct {
	// InMemory: listen on no socket; [Server.Carrier] is the only way in.
	InMemory bool
	// TLS12: speak TLS 1.2 and nothing newer, as an instance of old would.
	TLS12 bool
	// Now tells the time for certificates: from when they are valid, and
	// whether they have expired. Nil: time.Now. It is called concurrently.
	Now func() time.Time
	// Logger gets a record of each request and each failed handshake. Nil:
	// silent.
	Logger *slog.Logger
	// Snapshot, of Server.Snapshot, makes the Server go on as an earlier one,
	// so that its devices know it again. Nil: a new instance. Each batch that
	// had devices is to be added again by AddBatch.
	Snapshot []byte
}

// Server is a QuarkLink instance. It is safe for concurrent use. Whoever makes
// one closes it.
type Server struct {
	now func() time.Time
	log *slog.Logger
	pki *pki

	tls        *tls.Config
	http       *http.Server
	listener   net.Listener  // nil in memory
	handshaken chan net.Conn // to http
	done       chan struct{} // closed by Close
	running    sync.WaitGroup

	mu      sync.Mutex // guards what follows
	closed  bool
	conns   map[*conn]struct{}
	stats   Stats
	batches map[string]*batch
	devices map[quarklink.DeviceID]*device
	issued  map[[32]byte]*issued // by SHA-256 of the certificate
	faults  []*fault
}

// Stats counts what has reached a Server.
type Stats struct {
	Handshakes       int // completed TLS handshakes
	FailedHandshakes int // connections that ended before one was complete
	Open             int // connections open now, those in a handshake included
	Requests         int // all requests, also those that no Call is for
	Calls            map[Call]int
}

// NewServer starts a Server. It fails only if it cannot listen, or if the
// Snapshot is none.
func NewServer(o Options) (*Server, error) {
	s := &Server{
		now: o.Now, log: o.Logger,
		handshaken: make(chan net.Conn),
		done:       make(chan struct{}),
		conns:      map[*conn]struct{}{},
		stats:      Stats{Calls: map[Call]int{}},
		batches:    map[string]*batch{},
		devices:    map[quarklink.DeviceID]*device{},
		issued:     map[[32]byte]*issued{},
	}
	if s.now == nil {
		s.now = time.Now
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if o.Snapshot != nil {
		err = s.restore(o.Snapshot)
	} else {
		s.pki, err = newPKI(s.now())
	}
	if err != nil {
		return nil, fmt.Errorf("quarklinktest: %w", err)
	}
	if !o.InMemory {
		if s.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return nil, fmt.Errorf("quarklinktest: %w", err)
		}
	}
	s.tls = s.tlsConfig(o.TLS12)
	s.http = &http.Server{
		Handler:           s.handler(),
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxRequestHeader,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
		TLSNextProto:      map[string]func(*http.Server, *tls.Conn, http.Handler){}, // no HTTP/2
		ConnContext:       withConn,
		ConnState:         s.connState,
	}
	s.running.Go(func() { s.http.Serve(acceptor{s}) })
	if s.listener != nil {
		s.running.Go(s.accept)
	}
	return s, nil
}

func (s *Server) tlsConfig(tls12 bool) *tls.Config {
	cfg := &tls.Config{
		Certificates: []tls.Certificate{s.pki.server},
		Time:         s.now,
		MinVersion:   tls.VersionTLS13,
		CurvePreferences: []tls.CurveID{
			tls.X25519MLKEM768, tls.X25519, tls.CurveP256, tls.CurveP384,
		},
		NextProtos: []string{"http/1.1"},
		// The device proves that it has the key of whatever certificate it
		// shows. What that certificate is good for is decided at each call.
		ClientAuth:             tls.RequestClientCert,
		SessionTicketsDisabled: true,
	}
	if tls12 {
		cfg.MinVersion, cfg.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	}
	return cfg
}

// Instance returns what a device must know of the Server: quarklink.Config and
// a provisioning tool take it. The endpoint of one that listens nowhere is
// [HostName].
func (s *Server) Instance() quarklink.Instance {
	i := quarklink.Instance{Endpoint: HostName, Port: quarklink.DefaultPort, Root: s.pki.root.cert}
	if s.listener != nil {
		addr := s.listener.Addr().(*net.TCPAddr)
		i.Endpoint, i.Port = addr.IP.String(), uint16(addr.Port)
	}
	return i
}

// IssuingCertificates returns what the Server answers to cacerts: the
// intermediate that issues device certificates, and its root. An IoT hub that
// takes devices of this Server trusts them.
func (s *Server) IssuingCertificates() []*x509.Certificate {
	return []*x509.Certificate{s.pki.issuing.cert, s.pki.issuingRoot.cert}
}

// Stats returns the counters as they are now. Its map is the caller's. A
// request has been counted before its answer arrives.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	stats := s.stats
	stats.Open = len(s.conns)
	stats.Calls = maps.Clone(s.stats.Calls)
	return stats
}

// Close closes the listener and cuts every connection, and returns when all
// that the Server started has ended. Closing again does nothing.
func (s *Server) Close() {
	s.mu.Lock()
	first := !s.closed
	s.closed = true
	open := maps.Clone(s.conns)
	s.mu.Unlock()
	if first {
		close(s.done)
		if s.listener != nil {
			s.listener.Close()
		}
		// Not http.Server.Close: its way is to say goodbye in TLS, and a peer
		// that has stopped reading holds that up for seconds.
		for c := range open {
			c.Close()
		}
	}
	s.running.Wait()
}

// accept takes connections off the socket.
func (s *Server) accept() {
	for {
		raw, err := s.listener.Accept()
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				s.log.Error("accept", slog.Any("error", err))
			}
			return
		}
		s.serve(raw)
	}
}

// serve takes over a connection. It reports false, and has closed it, if the
// Server is closed.
func (s *Server) serve(raw net.Conn) bool {
	c := &conn{Conn: raw, s: s}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		raw.Close()
		return false
	}
	s.conns[c] = struct{}{}
	s.running.Go(func() { s.handshake(c) })
	return true
}

// handshake counts, and hands the connection on to HTTP.
func (s *Server) handshake(c *conn) {
	secure := tls.Server(c, s.tls)
	c.SetDeadline(time.Now().Add(handshakeTimeout))
	err := secure.Handshake()
	s.mu.Lock()
	if err == nil {
		s.stats.Handshakes++
	} else {
		s.stats.FailedHandshakes++
	}
	s.mu.Unlock()
	if err != nil {
		s.log.Warn("TLS handshake failed", slog.Any("error", err))
		c.Close()
		return
	}
	c.SetDeadline(time.Time{})
	select {
	case s.handshaken <- secure:
	case <-s.done:
		c.Close()
	}
}

// conn is a connection below TLS.
type conn struct {
	net.Conn
	s *Server
}

// Close closes the connection without a goodbye in TLS.
func (c *conn) Close() error {
	c.s.mu.Lock()
	delete(c.s.conns, c)
	c.s.mu.Unlock()
	return c.Conn.Close()
}

// acceptor is the net.Listener from which http.Server takes connections.
type acceptor struct{ s *Server }

func (a acceptor) Accept() (net.Conn, error) {
	select {
	case c := <-a.s.handshaken:
		return c, nil
	case <-a.s.done:
		return nil, net.ErrClosed
	}
}

func (a acceptor) Close() error   { return nil }
func (a acceptor) Addr() net.Addr { return pipeAddr{} }

// connState lets Close wait for the goroutines of http.Server.
func (s *Server) connState(_ net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		s.running.Add(1)
	case http.StateClosed, http.StateHijacked: // a handler of Answer may hijack
		s.running.Done()
	}
}

type connKey struct{}

func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c.(*tls.Conn).NetConn())
}

// cut closes the connection of a request as a broken line does.
func cut(r *http.Request) {
	r.Context().Value(connKey{}).(*conn).Close()
	panic(http.ErrAbortHandler) // how net/http wants to be told
}
