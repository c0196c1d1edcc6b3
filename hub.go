package quarklink

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"

	"github.com/quarklink-go/quarklink/keystore"
)

// HubTLSConfig returns what a TLS client (an MQTT library's, say) needs to
// connect to the enrolled IoT hub: its roots and name, and the device
// certificate with the device key, wherever that is held. TLS 1.2 is allowed,
// because public hubs need it. The caller may change the Config, which is its
// own.
//
// Not enrolled is ErrNoEnrolment; an enrolment that leads to a database, not to
// a hub, is ErrValueNotAvailable. A certificate that is not over the present
// device key is ErrGeneral: enrol again. It uses no network and needs no turn,
// so that a hub can be reconnected to during an update.
func (c *Client) HubTLSConfig(ctx context.Context) (*tls.Config, error) {
	cfg, err := c.hubTLSConfig(ctx)
	if err != nil {
		return nil, fail(ctx, "hub", CodeGeneral, err)
	}
	return cfg, nil
}

func (c *Client) hubTLSConfig(ctx context.Context) (*tls.Config, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	e, err := c.enrolled()
	if err != nil {
		return nil, err
	}
	if e.Hub == nil {
		return nil, withCode(CodeValueNotAvailable, errors.New("the policy leads to a database, not to an IoT hub"))
	}
	dsk, err := c.keys.Signer(ctx, keystore.Device)
	if err != nil {
		return nil, fmt.Errorf("open key %s: %w", keystore.Device, err)
	}
	if !e.certifies(dsk) {
		return nil, errors.New("the device certificate is not over the device key: enrol again")
	}
	return c.hubConfig(e, dsk), nil
}

func (c *Client) hubConfig(e *Enrolment, dsk crypto.Signer) *tls.Config {
	roots := x509.NewCertPool()
	for _, root := range e.Hub.Roots {
		roots.AddCert(root)
	}
	cert := tlsCertificate(dsk, slices.Concat([][]byte{e.Certificate.Raw}, ders(e.Chain))...)
	return &tls.Config{
		RootCAs:    roots,
		ServerName: e.Hub.Endpoint,
		MinVersion: tls.VersionTLS12,
		Time:       c.now,
		// See transport.TLS: Certificates would silently send none to a hub
		// whose list of issuers does not name ours.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil },
	}
}

// Addr returns "host:port", for a dialler.
func (h *Hub) Addr() string { return net.JoinHostPort(h.Endpoint, strconv.Itoa(int(h.Port))) }
