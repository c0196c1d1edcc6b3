package quarklinktest

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"strconv"
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

// NewServer starts a Server. It fails only if it cannot listen.
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
	if s.pki, err = newPKI(s.now()); err != nil {
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
		// Before http.Server would: its way is to say goodbye in TLS, and a
		// peer that has stopped reading holds that up for seconds.
		for c := range open {
			c.Close()
		}
		s.http.Close()
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

// Call names a call of an instance.
type Call string

// The calls.
const (
	CallCACerts    Call = "cacerts"    // GET  /.well-known/est/cacerts
	CallTemporary  Call = "temporary"  // POST /.well-known/est/temporary/simpleenroll
	CallEnrol      Call = "enrol"      // POST /.well-known/est/simpleenroll
	CallConnection Call = "connection" // GET  /quarklink/v1/connection
	CallStatus     Call = "status"     // GET  /quarklink/v1/status
	CallFirmware   Call = "firmware"   // GET  /quarklink/v1/firmware
	CallOutcome    Call = "outcome"    // POST /quarklink/v1/firmware/outcome
)

// proof is what a request's client certificate proves, as a set.
type proof uint8

const (
	byNothing   proof = 1 << iota // no client certificate
	byIdentity                    // any certificate that is not of this Server
	byTemporary                   // a temporary certificate
	byDevice                      // a device certificate
)

// calls says who may make which call, and what answers it.
var calls = []struct {
	call         Call
	pattern      string
	accepts      proof
	whileRevoked bool
	answer       func(*Server, *request) (*answer, error)
}{
	{CallCACerts, "GET /.well-known/est/cacerts", byNothing | byIdentity | byTemporary | byDevice, false, (*Server).answerCACerts},
	{CallTemporary, "POST /.well-known/est/temporary/simpleenroll", byIdentity, false, (*Server).answerTemporary},
	{CallEnrol, "POST /.well-known/est/simpleenroll", byTemporary, false, (*Server).answerEnrol},
	{CallConnection, "GET /quarklink/v1/connection", byTemporary | byDevice, false, (*Server).answerConnection},
	{CallStatus, "GET /quarklink/v1/status", byIdentity, true, (*Server).answerStatus},
	{CallFirmware, "GET /quarklink/v1/firmware", byIdentity, false, (*Server).answerFirmware},
	{CallOutcome, "POST /quarklink/v1/firmware/outcome", byIdentity, false, (*Server).answerOutcome},
}

// request is a call that is being answered.
type request struct {
	*http.Request
	body   []byte
	device *device // who asks; nil if nobody has to
	forge  forgery // what to answer instead of the right certificates; may be nil
}

// answer is what will be sent.
type answer struct {
	status      int
	contentType string
	header      map[string]string
	body        io.Reader
	size        int64
}

func content(contentType string, body []byte) *answer {
	return &answer{status: http.StatusOK, contentType: contentType, body: bytes.NewReader(body), size: int64(len(body))}
}

// handler routes requests to the calls.
func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	for _, c := range calls {
		mux.HandleFunc(c.pattern, func(w http.ResponseWriter, r *http.Request) {
			s.handle(w, r, c.call, func(q *request) (*answer, error) {
				s.mu.Lock()
				defer s.mu.Unlock()
				if err := s.authorise(q, c.accepts, c.whileRevoked); err != nil {
					return nil, err
				}
				return c.answer(s, q)
			})
		})
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.handle(w, r, "", func(*request) (*answer, error) {
			return nil, refuse(http.StatusNotFound, "", "there is no such call")
		})
	})
	return mux
}

// handle answers one request, as well or as badly as the faults allow.
func (s *Server) handle(w http.ResponseWriter, r *http.Request, call Call, process func(*request) (*answer, error)) {
	s.mu.Lock()
	s.stats.Requests++
	if call != "" {
		s.stats.Calls[call]++
	}
	e := s.takeFaults(call)
	s.mu.Unlock()

	// Until the body has been read net/http does not notice that a client
	// goes away.
	q := &request{Request: r, forge: e.forge}
	var err error
	q.body, err = io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequestBody))
	if err != nil {
		process = func(*request) (*answer, error) {
			return nil, refuse(http.StatusRequestEntityTooLarge, "", fmt.Sprintf("read the request: %v", err))
		}
	}
	if !e.wait(r, s.done) || e.loseRequest {
		cut(r)
	}
	if e.handler != nil {
		r.Body = io.NopCloser(bytes.NewReader(q.body))
		e.handler.ServeHTTP(w, r)
		return
	}
	var a *answer
	if e.instead != nil {
		a = e.instead
	} else if a, err = process(q); err != nil {
		a = problemOf(err)
	}
	s.logRequest(q, call, a, err)
	if e.loseAnswer {
		cut(r)
	}
	s.send(w, r, e.spoil(a))
}

func (s *Server) logRequest(q *request, call Call, a *answer, err error) {
	attrs := []slog.Attr{
		slog.String("call", string(call)), slog.String("path", q.URL.Path), slog.Int("status", a.status),
	}
	if q.device != nil {
		attrs = append(attrs, slog.String("deviceID", string(q.device.id)))
	}
	if err != nil {
		attrs = append(attrs, slog.Any("error", err))
	}
	s.log.LogAttrs(q.Context(), slog.LevelInfo, "request", attrs...)
}

// send sends an answer. One whose body ends early cuts the connection.
func (s *Server) send(w http.ResponseWriter, r *http.Request, a *answer) {
	h := w.Header()
	h.Set("Date", s.now().UTC().Format(http.TimeFormat))
	h.Set("Content-Length", strconv.FormatInt(a.size, 10))
	if a.contentType != "" {
		h.Set("Content-Type", a.contentType)
	}
	for name, value := range a.header {
		h.Set(name, value)
	}
	w.WriteHeader(a.status)
	if r.Method == http.MethodHead || a.size == 0 {
		return
	}
	n, err := io.Copy(w, a.body)
	if err != nil || n < a.size {
		http.NewResponseController(w).Flush()
		s.log.LogAttrs(r.Context(), slog.LevelWarn, "answer cut off", slog.Int64("after", n), slog.Any("error", err))
		cut(r)
	}
}
