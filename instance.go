package quarklink

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"github.com/quarklink-go/quarklink/transport/uart"
)

// DefaultPort is the TCP port of an instance that names no other: that of the
// application note and of quarklink-client up to 1.4, and what an empty ql_port
// means. Since quarklink-client 1.5.1 the header's default is 443: an instance that
// listens there needs Port: 443.
const DefaultPort = 6000

// Instance says where a QuarkLink instance is and how to know it.
//
// To replace its root certificate without a visit to its devices, an instance
// goes in three steps: SetInstance gives each device the new root in Roots,
// beside the old one; once all have it, the instance presents a certificate
// under the new root; then SetInstance makes the new root the only one. How the
// new root reaches a device is the application's business, and it needs as much
// protection as the first: by a signed update, say.
type Instance struct {
	// Endpoint is the host name or IP address, without a port. Required.
	Endpoint string
	// Port is the TCP port. 0: DefaultPort.
	Port uint16
	// Root is the instance's root certificate. The client trusts it and those in
	// Roots for the instance, and no others. Required, unless Config.Transport
	// is a transport.Authenticator. If its issuer is its subject its signature
	// must be its own, so that damage shows.
	Root *x509.Certificate
	// Roots are further root certificates, for which the same holds, at most
	// seven. Nil: Root alone.
	Roots []*x509.Certificate
}

// addr returns "host:port".
func (i Instance) addr() string {
	return net.JoinHostPort(i.Endpoint, strconv.Itoa(int(i.Port)))
}

func (i Instance) origin() string { return "https://" + i.addr() }

// maxRoots is how many root certificates there may be for one server.
const maxRoots = 8

func (i Instance) check(rootNeeded bool) error {
	if err := checkHost(i.Endpoint); err != nil {
		return fmt.Errorf("instance endpoint %q: %w", i.Endpoint, err)
	}
	if rootNeeded && i.Root == nil {
		return errors.New("instance without a root certificate: there would be nothing to trust")
	}
	roots := i.roots()
	if len(roots) > maxRoots {
		return fmt.Errorf("instance with %d root certificates, at most %d are kept", len(roots), maxRoots)
	}
	for n, root := range roots {
		if err := checkRoot(root); err != nil {
			return fmt.Errorf("instance root certificate %d of %d: %w", n+1, len(roots), err)
		}
	}
	return nil
}

// checkRoot refuses a certificate that damage has made another one, as far as
// that shows: on its signature if that is its own.
func checkRoot(root *x509.Certificate) error {
	if root == nil || len(root.Raw) == 0 {
		return errors.New("not a parsed certificate")
	}
	if !selfIssued(root) {
		return nil
	}
	if err := root.CheckSignature(root.SignatureAlgorithm, root.RawTBSCertificate, root.Signature); err != nil {
		return fmt.Errorf("its signature is not its own: it may be damaged: %w", err)
	}
	return nil
}

func selfIssued(cert *x509.Certificate) bool {
	return bytes.Equal(cert.RawIssuer, cert.RawSubject)
}

// roots returns all that are trusted for the instance.
func (i Instance) roots() []*x509.Certificate {
	if i.Root == nil {
		return i.Roots
	}
	return append([]*x509.Certificate{i.Root}, i.Roots...)
}

// checkHost accepts a host name or an IP address.
func checkHost(host string) error {
	if addr, err := netip.ParseAddr(host); err == nil && addr.Is6() && addr.Zone() == "" {
		return nil
	}
	return uart.CheckEndpoint(host)
}

// normal returns a copy of i with its Port filled in, whose Roots are its own
// and all different.
func (i Instance) normal() Instance {
	if i.Port == 0 {
		i.Port = DefaultPort
	}
	var further []*x509.Certificate
	for _, root := range i.Roots {
		if !root.Equal(i.Root) && !slices.ContainsFunc(further, root.Equal) {
			further = append(further, root)
		}
	}
	i.Roots = further
	return i
}

// Instance returns the instance in use, with its Port filled in. Without one
// the error is ErrNotInitialised; ErrStorage if the stored one is damaged.
func (c *Client) Instance() (Instance, error) {
	i, err := c.useInstance()
	if err != nil {
		return Instance{}, newError("instance", CodeGeneral, err)
	}
	return i, nil
}

func (c *Client) useInstance() (Instance, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.state.instanceErr != nil:
		return Instance{}, c.state.instanceErr
	case c.state.instance == nil:
		return Instance{}, withCode(CodeNotInitialised, errors.New("provision the device or call SetInstance"))
	}
	i := *c.state.instance
	i.Roots = slices.Clone(i.Roots)
	return i, nil
}

// SetInstance stores another instance and uses it from now on. Keys, network
// and enrolment stay as they are; but an enrolment belongs to the instance that
// issued it (see Client.Enrolment), so that a device that moves has none until
// it has enrolled again, or has moved back. An instance without an endpoint or a
// root, or with a damaged root, is ErrInvalidParameter, and so is any when
// Config.Transport is an Authenticator, whose trust could not follow.
func (c *Client) SetInstance(ctx context.Context, i Instance) error {
	return c.run(ctx, "set instance", func(ctx context.Context) error { return c.setInstance(ctx, i) })
}

func (c *Client) setInstance(ctx context.Context, i Instance) error {
	if c.bringsTrust() {
		return errBringsTrust
	}
	i = i.normal()
	if err := i.check(true); err != nil {
		return withCode(CodeInvalidParameter, err)
	}
	if err := c.bind(ctx, false); err != nil {
		return err
	}
	if err := c.put(ctx, recordInstance, encodeInstance(i)); err != nil {
		return err
	}
	c.mu.Lock()
	c.state.instance, c.state.instanceErr = &i, nil
	c.mu.Unlock()
	c.closeSession()
	return nil
}

// ForgetInstance deletes the stored instance, and stops using it even if it
// came from Config. It keeps the keys, the network and the enrolment.
func (c *Client) ForgetInstance(ctx context.Context) error {
	return c.run(ctx, "forget instance", func(ctx context.Context) error {
		if err := c.bind(ctx, false); err != nil {
			return err
		}
		if err := c.delete(ctx, recordInstance); err != nil {
			return err
		}
		c.mu.Lock()
		c.state.instance, c.state.instanceErr = nil, nil
		c.mu.Unlock()
		c.closeSession()
		return nil
	})
}

var errBringsTrust = withCode(CodeInvalidParameter,
	errors.New("the transport brings its own trust, so the instance cannot be changed: make a new Client"))
