package quarklink

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/quarklink-go/quarklink/internal/exchange"
	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/transport"
)

// HubTLSConfig returns what a TLS client (an MQTT library's, say) needs to
// connect to the enrolled IoT hub: its roots and name, and the device
// certificate with the device key, wherever that is held. TLS 1.2 is allowed,
// because public hubs need it. The caller may change the Config, which is its
// own; a ClientSessionCache would resume sessions that an earlier certificate
// began.
//
// Roots and name are those of now. The certificate and its key are looked up at
// each handshake, so that the Config serves on after Enrol has run again, and
// after Close. If the hub's name or roots are others by then, the handshake fails, before the
// certificate is presented, and says that the Config is out of date; Client.DialHub
// always takes those of now.
//
// Not enrolled is ErrNoEnrolment; an enrolment that leads to a database, not to
// a hub, is ErrValueNotAvailable. A certificate that has expired or is not over
// the present device key is ErrGeneral: enrol again. A handshake returns the
// same errors. HubTLSConfig uses no network and needs no turn, so that a hub can
// be reconnected to during an update.
func (c *Client) HubTLSConfig(ctx context.Context) (*tls.Config, error) {
	hub, _, err := c.hubCredentials(ctx, nil)
	if err != nil {
		return nil, hubError(ctx, err)
	}
	return &tls.Config{
		RootCAs:    hub.pool(),
		ServerName: hub.Endpoint,
		MinVersion: tls.VersionTLS12,
		Time:       c.now,
		VerifyConnection: func(tls.ConnectionState) error {
			_, err := c.enrolledAt(c.life, hub)
			return hubError(context.Background(), err)
		},
		// See transport.TLS: Certificates would silently send none to a hub
		// whose list of issuers does not name ours.
		GetClientCertificate: func(r *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			_, cert, err := c.hubCredentials(r.Context(), hub)
			return cert, hubError(r.Context(), err)
		},
	}, nil
}

// DialHub opens a connection to the enrolled IoT hub: TCP to Hub.Addr, then TLS
// with the roots, the name and the certificate of the present enrolment. It
// serves libraries that accept a dial function, such as paho.mqtt.golang:
//
//	options.SetCustomOpenConnectionFn(func(*url.URL, mqtt.ClientOptions) (net.Conn, error) {
//		return client.DialHub(ctx)
//	})
//
// The hub is verified and the handshake complete when it returns. But with TLS
// 1.3 a hub that rejects the certificate says so only afterwards: the first Read
// then fails with its alert, a *net.OpError whose Op is "remote error". ctx bounds DialHub alone, which takes at most
// two minutes; the connection has no time limits, and its Close does not wait
// for a hub that has stopped reading. Config.Transport leads to the instance and
// is not used.
//
// A hub that cannot be reached or verified is ErrCommunication; the other errors
// are those of HubTLSConfig, and net.ErrClosed after Close, which does not close
// the connection. DialHub needs no turn.
func (c *Client) DialHub(ctx context.Context) (net.Conn, error) {
	bounded, cancel := context.WithTimeout(ctx, exchange.Silence)
	defer cancel()
	defer context.AfterFunc(c.life, cancel)()
	conn, err := c.dialHub(bounded)
	switch {
	case err == nil:
		return conn, nil
	case c.life.Err() != nil && ctx.Err() == nil:
		err = errClosed
	case bounded.Err() != nil && ctx.Err() == nil:
		err = withCode(CodeCommunication, fmt.Errorf("no connection within %v: %w", exchange.Silence, os.ErrDeadlineExceeded))
	}
	return nil, hubError(ctx, err)
}

func (c *Client) dialHub(ctx context.Context) (net.Conn, error) {
	hub, cert, err := c.hubCredentials(ctx, nil)
	if err != nil {
		return nil, err
	}
	var failed atomic.Pointer[error] // crypto/tls keeps only the text of it
	cert.PrivateKey = watchedSigner{cert.PrivateKey.(crypto.Signer), &failed}
	secure := transport.TLS{Addr: hub.Addr(), ServerName: hub.Endpoint, Roots: hub.pool(),
		MinVersion: tls.VersionTLS12, Time: c.now}
	conn, err := secure.As(cert).Dial(ctx)
	if signing := failed.Load(); err != nil && signing != nil {
		return nil, fmt.Errorf("sign with the device's key: %w", *signing)
	}
	return conn, withCode(CodeCommunication, err)
}

// hubCredentials returns the hub of the present enrolment and what to present to
// it. If made is not nil it is the hub that a Config was made for, and has to be
// the same still.
func (c *Client) hubCredentials(ctx context.Context, made *Hub) (*Hub, *tls.Certificate, error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	e, err := c.enrolledAt(ctx, made)
	if err != nil {
		return nil, nil, err
	}
	if c.expired(e.Certificate) {
		return nil, nil, fmt.Errorf("the device certificate expired on %s, and the device's clock says %s: enrol again",
			e.Certificate.NotAfter.UTC().Format(time.RFC3339), c.now().UTC().Format(time.RFC3339))
	}
	dsk, err := c.keys.Signer(ctx, keystore.Device)
	if err != nil {
		return nil, nil, fmt.Errorf("open key %s: %w", keystore.Device, err)
	}
	if !e.certifies(dsk) {
		return nil, nil, errors.New("the device certificate is not over the device key: enrol again")
	}
	return e.Hub, tlsCertificate(dsk, slices.Concat([][]byte{e.Certificate.Raw}, ders(e.Chain))...), nil
}

// enrolledAt returns the present enrolment if it leads to a hub, to made unless
// that is nil.
func (c *Client) enrolledAt(ctx context.Context, made *Hub) (*Enrolment, error) {
	e, err := c.current(ctx)
	if err != nil {
		return nil, err
	}
	if e.Hub == nil {
		return nil, withCode(CodeValueNotAvailable, errors.New("the enrolment leads to no IoT hub"))
	}
	if made != nil && !made.same(e.Hub) {
		return nil, fmt.Errorf("the name or the roots of the hub have changed, %s to %s: call HubTLSConfig again",
			made.Endpoint, e.Hub.Endpoint)
	}
	return &e.Enrolment, nil
}

// hubError makes the Error of what concerns the hub.
func hubError(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	return fail(ctx, "hub", CodeGeneral, err)
}

// same reports whether TLS verifies both alike.
func (h *Hub) same(other *Hub) bool {
	return h.Endpoint == other.Endpoint && h.pool().Equal(other.pool())
}

func (h *Hub) pool() *x509.CertPool {
	roots := x509.NewCertPool()
	for _, root := range h.Roots {
		roots.AddCert(root)
	}
	return roots
}

// Addr returns "host:port", for a dialler.
func (h *Hub) Addr() string { return net.JoinHostPort(h.Endpoint, strconv.Itoa(int(h.Port))) }
