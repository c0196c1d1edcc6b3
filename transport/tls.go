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

// ErrClock says that the device's clock is plainly wrong: it is earlier than
// the first day of a certificate of the peer, which otherwise verifies. Set the
// clock (RTC, NTP, the network's time) and try again.
var ErrClock = errors.New("the device's clock is wrong")

// closeWait is how long Close waits for the peer to take the close_notify
// alert. A peer that has stopped reading must not hold up the device:
// crypto/tls alone would wait five seconds.
const closeWait = 100 * time.Millisecond

// TLS is an [Authenticator] that runs TLS over another Transport. It trusts
// Roots and nothing else, never the system's pool. Session resumption is off.
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
	Time func() time.Time
}

// As returns a Transport that shows id to the peer, whether or not the peer's
// list of acceptable issuers names the issuer of id.
func (t TLS) As(id *tls.Certificate) Transport {
	return Func(func(ctx context.Context) (net.Conn, error) { return t.dial(ctx, id) })
}

// Dial opens a stream without a client certificate. The handshake is complete
// and the peer verified when it returns. A certificate that the device's clock
// places in the future is [ErrClock].
func (t TLS) Dial(ctx context.Context) (net.Conn, error) { return t.dial(ctx, nil) }

func (t TLS) dial(ctx context.Context, id *tls.Certificate) (net.Conn, error) {
	cfg, err := t.config(id)
	if err != nil {
		return nil, err
	}
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
		if clockExplains(err, cfg) {
			err = fmt.Errorf("%w, it says %s: %w", ErrClock, cfg.Time().UTC().Format(time.RFC3339), err)
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
		Time:       now,
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
	return cfg, nil
}

// clockExplains reports whether the peer was refused only because the device's
// clock is behind: at the first instant at which all of its certificates are
// valid, they verify. A stranger's certificate from the future says nothing of
// the clock.
func clockExplains(err error, cfg *tls.Config) bool {
	var invalid x509.CertificateInvalidError
	var unverified *tls.CertificateVerificationError
	if !errors.As(err, &invalid) || invalid.Reason != x509.Expired || !cfg.Time().Before(invalid.Cert.NotBefore) || !errors.As(err, &unverified) {
		return false
	}
	chain := unverified.UnverifiedCertificates
	options := x509.VerifyOptions{
		Roots: cfg.RootCAs, DNSName: cfg.ServerName, Intermediates: x509.NewCertPool(), CurrentTime: invalid.Cert.NotBefore}
	for _, cert := range chain {
		options.Intermediates.AddCert(cert)
		if cert.NotBefore.After(options.CurrentTime) {
			options.CurrentTime = cert.NotBefore
		}
	}
	_, err = chain[0].Verify(options)
	return err == nil
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
