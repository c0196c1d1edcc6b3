package transport

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"time"
)

// ErrClock says that the device's clock alone is why a certificate was refused:
// it places in the future a certificate of the peer that otherwise verifies.
// The error text has both times, in UTC. Set the clock (RTC, NTP, the network's
// time) and try again. A certificate that looks expired is not ErrClock, for
// nothing tells whether it is.
var ErrClock = errors.New("the device's clock is wrong")

// closeWait is how long Close waits for the peer to take the close_notify
// alert. A peer that has stopped reading must not hold up the device:
// crypto/tls alone would wait five seconds.
const closeWait = 100 * time.Millisecond

// TLS is an [Authenticator] that runs TLS over another Transport. It trusts
// Roots and nothing else, never the system's pool.
//
// What [TLS.As] returns resumes TLS sessions (RFC 8446 section 2.2): a later
// connection costs no signature by the key of id, which may be in a slow chip,
// as long as the server takes the ticket of an earlier one. Tickets are in
// memory only, and each Transport that As returns has its own, so that no
// session of one identity or set of roots is resumed for another: keep the
// Transport to have the benefit, drop it to forget the sessions. A resumed
// session's certificates are verified again, against Roots and the time.
//
// It is safe for concurrent use as long as its fields are not changed.
type TLS struct {
	// Addr is "host:port", dialled over TCP. It is not used to dial when Under
	// is set.
	Addr string
	// ServerName is the name that the peer's certificate must carry, a host
	// name or an IP address. Empty: the host in Addr.
	ServerName string
	// Roots are the only roots trusted. Required: nil is an error, not the
	// system's pool.
	Roots *x509.CertPool
	// Under carries the TLS stream. Nil: TCP to Addr.
	Under Transport
	// MinVersion is the lowest version accepted. 0: TLS 1.3. TLS 1.2 is the
	// lowest that can be asked for.
	MinVersion uint16
	// Time tells the time against which certificates are checked. Nil: time.Now.
	// The zero time is a time like any other, long before every certificate.
	Time func() time.Time
}

// As returns a Transport that presents id to the peer, whether or not the peer's
// list of acceptable issuers names the issuer of id.
func (t TLS) As(id *tls.Certificate) Transport {
	sessions := tls.NewLRUClientSessionCache(1) // there is one server
	return Func(func(ctx context.Context) (net.Conn, error) { return t.dial(ctx, id, sessions) })
}

// Dial opens a stream without a client certificate, and resumes nothing. The
// handshake is complete and the peer verified when it returns. A certificate
// that the device's clock places in the future is [ErrClock].
func (t TLS) Dial(ctx context.Context) (net.Conn, error) { return t.dial(ctx, nil, nil) }

func (t TLS) dial(ctx context.Context, id *tls.Certificate, sessions tls.ClientSessionCache) (net.Conn, error) {
	cfg, err := t.config(id)
	if err != nil {
		return nil, err
	}
	cfg.ClientSessionCache = sessions
	under := t.Under
	if under == nil {
		under = TCP(t.Addr)
	}
	raw, err := under.Dial(ctx)
	if err == nil && raw == nil {
		err = errors.New("the carrier returned neither a stream nor an error")
	}
	if err != nil {
		return nil, fmt.Errorf("transport: dial: %w", err)
	}
	secure := tls.Client(raw, cfg)
	if err := secure.HandshakeContext(ctx); err != nil {
		raw.Close()
		if from, ok := clockExplains(err, cfg); ok {
			err = fmt.Errorf("%w: it says %s, and the peer's certificates are valid from %s: %w", ErrClock,
				cfg.Time().UTC().Format(time.RFC3339), from.UTC().Format(time.RFC3339), err)
		}
		return nil, fmt.Errorf("transport: TLS handshake with %s: %w", cfg.ServerName, err)
	}
	return conn{secure, raw}, nil
}

func (t TLS) config(id *tls.Certificate) (*tls.Config, error) {
	if t.Roots == nil {
		return nil, errors.New("transport: TLS without roots: set Roots to the instance's root certificate")
	}
	name := t.ServerName
	if name == "" {
		host, _, err := net.SplitHostPort(t.Addr)
		if err != nil {
			return nil, fmt.Errorf("transport: TLS needs ServerName or an Addr of host:port: %w", err)
		}
		name = host
	}
	if name == "" {
		return nil, errors.New("transport: TLS without a server name to verify: set ServerName")
	}
	version := t.MinVersion
	switch version {
	case 0:
		version = tls.VersionTLS13
	case tls.VersionTLS12, tls.VersionTLS13:
	default:
		return nil, fmt.Errorf("transport: minimum TLS version %#04x: need TLS 1.2 (0x0303) or TLS 1.3 (0x0304)", version)
	}
	now := t.Time
	if now == nil {
		now = time.Now
	}
	cfg := &tls.Config{
		RootCAs:    t.Roots,
		ServerName: name,
		MinVersion: version,
		// For the zero time crypto/x509 would take the system's.
		Time: func() time.Time {
			if t := now(); !t.IsZero() {
				return t
			}
			return time.Time{}.Add(1)
		},
		CurvePreferences: []tls.CurveID{
			tls.X25519MLKEM768, tls.X25519, tls.CurveP256, tls.CurveP384,
		},
		// Certificates would be filtered by the server's list of issuers, and
		// one that the list does not name would silently not be sent.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if id == nil {
				return new(tls.Certificate), nil
			}
			return id, nil
		},
	}
	cfg.VerifyConnection = func(state tls.ConnectionState) error {
		if !state.DidResume {
			return nil // crypto/tls has verified
		}
		chain := state.PeerCertificates
		if err := verify(chain, cfg, cfg.Time()); err != nil {
			return &tls.CertificateVerificationError{UnverifiedCertificates: chain, Err: err}
		}
		return nil
	}
	return cfg, nil
}

// verify verifies the peer's chain, leaf first, at a time.
func verify(chain []*x509.Certificate, cfg *tls.Config, at time.Time) error {
	options := x509.VerifyOptions{
		Roots: cfg.RootCAs, DNSName: cfg.ServerName, Intermediates: x509.NewCertPool(), CurrentTime: at}
	for _, cert := range chain[1:] {
		options.Intermediates.AddCert(cert)
	}
	_, err := chain[0].Verify(options)
	return err
}

// clockExplains reports whether the peer was refused only because the device's
// clock is behind: at the first instant at which all of its certificates are
// valid, which it returns, they verify. A stranger's certificate from the future
// says nothing of the clock.
func clockExplains(err error, cfg *tls.Config) (from time.Time, ok bool) {
	var invalid x509.CertificateInvalidError
	var unverified *tls.CertificateVerificationError
	if !errors.As(err, &invalid) || invalid.Reason != x509.Expired || !cfg.Time().Before(invalid.Cert.NotBefore) ||
		!errors.As(err, &unverified) {
		return time.Time{}, false
	}
	from = invalid.Cert.NotBefore
	for _, cert := range unverified.UnverifiedCertificates {
		if cert.NotBefore.After(from) {
			from = cert.NotBefore
		}
	}
	return from, verify(unverified.UnverifiedCertificates, cfg, from) == nil
}

// conn is a tls.Conn that closes promptly even when the peer reads nothing.
type conn struct {
	*tls.Conn
	raw net.Conn
}

func (c conn) Close() error {
	cut := time.AfterFunc(closeWait, func() { c.raw.Close() })
	defer cut.Stop()
	return c.Conn.Close()
}
