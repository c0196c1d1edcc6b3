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
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/transport/uart"
)

// errClosed is the error of what waits when the Server is closed.
var errClosed = fmt.Errorf("quarklinktest: server: %w", net.ErrClosed)

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
	// Addr is the "host:port" to listen on. Empty: a free port of 127.0.0.1, or
	// the port that Snapshot or State remembers.
	Addr string
	// Listener takes connections instead of a socket of the Server's own. The
	// Server closes it.
	Listener net.Listener
	// Names are host names and IP addresses for which the server certificate is
	// valid beside the usual ones (HostName, "localhost", 127.0.0.1 and ::1).
	// The first is the endpoint that Instance tells. Set it where devices reach
	// the Server from elsewhere.
	Names []string
	// TLS12: speak TLS 1.2 and nothing newer, as an instance of old would.
	TLS12 bool
	// MinTLS is the oldest TLS version that is spoken. 0: TLS 1.3. With
	// tls.VersionTLS12 both are. It cannot be combined with TLS12.
	MinTLS uint16
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
	// State is a directory in which the Server keeps everything: its keys and
	// certificates, its port, its batches with their firmware, its devices. What
	// it tells a device is on the medium before, so that a Server which is killed
	// at any instant and made again with the same State goes on as the same
	// instance. Only one Server may use a State at a time. Faults, counters and
	// events are not kept. The private keys in it are not encrypted. Empty: in
	// memory only. It cannot be combined with Snapshot.
	State string
}

// Server is a QuarkLink instance. It is safe for concurrent use. Whoever makes
// one closes it.
type Server struct {
	now func() time.Time
	log *slog.Logger
	// The keys and certificates, and what presents them. ChangeRoot replaces them.
	keys atomic.Pointer[pki]
	tls  atomic.Pointer[tls.Config]

	http       *http.Server
	listener   net.Listener  // nil in memory
	handshaken chan net.Conn // to http
	done       chan struct{} // closed by Close
	running    sync.WaitGroup

	mu        sync.Mutex // guards what follows
	closed    bool
	conns     map[*conn]struct{}
	stats     Stats
	events    events
	batches   map[string]*batch
	devices   map[quarklink.DeviceID]*device
	issued    map[[32]byte]*issued // by SHA-256 of the certificate
	faults    []*fault
	journal   *journal // nil without Options.State
	crlNumber int64
}

// Stats counts what has reached a Server.
type Stats struct {
	Handshakes       int // completed TLS handshakes, those that resume a session included
	FailedHandshakes int // connections that ended before one was complete
	Open             int // connections open now, those in a handshake included
	Requests         int // all requests, also those that no Call is for
	Calls            map[Call]int
	Events           uint64 // all events; the Seq of the latest
}

// NewServer starts a Server. It fails if it cannot listen, if the Options
// contradict each other, or if the Snapshot or the State is damaged.
func NewServer(o Options) (*Server, error) {
	if err := o.check(); err != nil {
		return nil, fmt.Errorf("quarklinktest: %w", err)
	}
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
	if err := s.begin(o); err != nil {
		s.journal.close()
		return nil, fmt.Errorf("quarklinktest: %w", err)
	}
	s.tls.Store(s.tlsConfig(o))
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

func (o Options) check() error {
	switch {
	case o.InMemory && (o.Addr != "" || o.Listener != nil):
		return errors.New("a Server in memory that is to listen: leave out InMemory, or Addr and Listener")
	case o.Addr != "" && o.Listener != nil:
		return errors.New("both Addr and Listener are set")
	case o.Snapshot != nil && o.State != "":
		return errors.New("both Snapshot and State are set")
	case o.TLS12 && o.MinTLS != 0:
		return errors.New("both TLS12 and MinTLS are set")
	case o.MinTLS != 0 && o.MinTLS != tls.VersionTLS12 && o.MinTLS != tls.VersionTLS13:
		return fmt.Errorf("MinTLS is %#04x: need TLS 1.2 (0x0303) or TLS 1.3 (0x0304)", o.MinTLS)
	}
	for _, name := range o.Names {
		if net.ParseIP(name) == nil && uart.CheckEndpoint(name) != nil {
			return fmt.Errorf("%q in Names is neither a host name nor an IP address", name)
		}
	}
	return nil
}

// begin makes the Server the instance that Options tell, and listens.
func (s *Server) begin(o Options) error {
	var err error
	var port uint16
	switch {
	case o.State != "":
		port, err = s.openState(o.State)
	case o.Snapshot != nil:
		port, err = s.restore(o.Snapshot)
	}
	if err != nil {
		return err
	}
	if s.pki() == nil {
		var p *pki
		p, err = newPKI(s.now())
		s.keys.Store(p)
	}
	if err == nil {
		err = s.pki().makeServer(s.now(), o.Names)
	}
	if err == nil {
		err = s.listen(o, port)
	}
	if err == nil && o.State != "" {
		err = s.saveInstance(o.State, s.pki())
	}
	return err
}

// listen listens where Options say, or on the port that the instance had.
func (s *Server) listen(o Options, port uint16) (err error) {
	addr := o.Addr
	switch {
	case o.InMemory:
		return nil
	case o.Listener != nil:
		s.listener = o.Listener
		return nil
	case addr == "":
		addr = net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port)))
	}
	s.listener, err = net.Listen("tcp", addr)
	return err
}

func (s *Server) tlsConfig(o Options) *tls.Config {
	cfg := &tls.Config{
		Certificates: []tls.Certificate{s.pki().server},
		Time:         s.now,
		MinVersion:   tls.VersionTLS13,
		CurvePreferences: []tls.CurveID{
			tls.X25519MLKEM768, tls.X25519, tls.CurveP256, tls.CurveP384,
		},
		NextProtos: []string{"http/1.1"},
		// The device proves that it has the key of whatever certificate it
		// shows. What that certificate is good for is decided at each call.
		ClientAuth: tls.RequestClientCert,
	}
	if o.MinTLS != 0 {
		cfg.MinVersion = o.MinTLS
	}
	if o.TLS12 {
		cfg.MinVersion, cfg.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	}
	return cfg
}

// Instance returns what a device must know of the Server: quarklink.Config and
// a provisioning tool take it. The endpoint is the first of Options.Names, else
// the address that the Server listens on; [HostName] if it listens nowhere, and
// 127.0.0.1 if it listens on every address.
func (s *Server) Instance() quarklink.Instance {
	i := quarklink.Instance{Endpoint: HostName, Port: quarklink.DefaultPort, Root: s.pki().root.cert}
	if s.listener != nil {
		i.Endpoint = "127.0.0.1"
		if addr, ok := s.listener.Addr().(*net.TCPAddr); ok {
			i.Port = uint16(addr.Port)
			if !addr.IP.IsUnspecified() {
				i.Endpoint = addr.IP.String()
			}
		}
	}
	if len(s.pki().names) > 0 {
		i.Endpoint = s.pki().names[0]
	}
	return i
}

func (s *Server) pki() *pki { return s.keys.Load() }

// IssuingCertificates returns what the Server answers to cacerts: the
// intermediate that issues device certificates, and its root. An IoT hub that
// takes devices of this Server trusts them.
func (s *Server) IssuingCertificates() []*x509.Certificate {
	return []*x509.Certificate{s.pki().issuing.cert, s.pki().issuingRoot.cert}
}

// Stats returns the counters as they are now. Its map is the caller's. A
// request has been counted before its answer arrives.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	stats := s.stats
	stats.Open = len(s.conns)
	stats.Calls = maps.Clone(s.stats.Calls)
	stats.Events = s.events.last
	return stats
}

// count counts a request, of a device if it is known whose it is.
func (s *Server) count(call Call, d *device) {
	s.stats.Requests++
	if call == "" {
		return
	}
	s.stats.Calls[call]++
	if d != nil {
		d.calls[call]++
		d.lastSeen = s.now().Round(0)
	}
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
	s.mu.Lock()
	defer s.mu.Unlock()
	s.journal.close()
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
	c.SetDeadline(time.Now().Add(handshakeTimeout))
	secure, err := s.secure(c)
	s.mu.Lock()
	if err == nil {
		s.stats.Handshakes++
	} else {
		s.stats.FailedHandshakes++
		s.happened(Event{Kind: EventHandshakeFailed, Detail: err.Error()})
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

func (s *Server) secure(c *conn) (*tls.Conn, error) {
	cfg, ok := s.troubledTLS(c)
	if !ok {
		return nil, errors.New("ended on purpose before the handshake")
	}
	secure := tls.Server(c, cfg)
	return secure, secure.Handshake()
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
