package quarklink

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/quarklink-go/quarklink/transport/uart"
)

// Network is what a device needs to join its Wi-Fi.
type Network struct {
	SSID     string // 1 to 32 bytes, not always text
	Password Secret // empty for an open network
}

// ProvisionOptions change how Provision asks.
type ProvisionOptions struct {
	// Timeout is how long it waits for an answer before it asks again. 0: 3 s.
	Timeout time.Duration
	// Tries is how often it asks one question. 0: 5.
	Tries int
	// NoNetwork: the device needs no Wi-Fi (it has a cable, or a modem), so
	// that is not asked for and the Network returned is empty.
	NoNetwork bool
	// NewNetwork: the stored Wi-Fi did not work, ask for another even so.
	NewNetwork bool
	// NewInstance: the stored instance does not work (a root certificate or a
	// port that was damaged on the line, an instance that has moved), ask for
	// another even so. The stored one stays until the other has come whole.
	NewInstance bool
}

// Provision holds the Initial Enrolment Firmware's conversation with the
// provisioning tool at the other end of a serial line: it asks for the Wi-Fi
// and for the instance, each only if it is not stored, stores what it learns,
// and sends the DeviceID, so that the tool can put it into a batch. It returns
// the Wi-Fi to join.
//
// What has been learnt is stored before the next thing is asked, so that a
// conversation which breaks off is carried on by the next Provision. A tool that
// does not answer is ErrCommunication; a port that is none and a root certificate
// that is none, or whose own signature shows damage, are skipped as noise on the
// line and asked for again. A root certificate that is not self-issued must come
// twice the same. A tool that refuses something, the DeviceID included, is
// ErrCommunication; that it does not react to the DeviceID is logged and is no
// error.
//
// Each call sends the DeviceID and waits for the tool to acknowledge it, even
// when everything is stored. If no tool is there that takes Tries times Timeout,
// which is 15 s unless o says otherwise. A device that starts without a tool at
// its cable asks NeedsProvisioning first, and if that is false takes the Wi-Fi
// from Network.
//
// The line settings (115200 baud 8N1 by default) are the port's business.
func (c *Client) Provision(ctx context.Context, port uart.Port, o ProvisionOptions) (Network, error) {
	var network Network
	err := c.run(ctx, "provision", func(ctx context.Context) error {
		if port == nil {
			return withCode(CodeInvalidParameter, errors.New("the port is nil"))
		}
		c.closeSession() // the port may be the one under a uart.Tunnel
		tool := &uart.Device{Port: port, Timeout: o.Timeout, Tries: o.Tries, CheckRoot: checkRootDER}
		if !o.NoNetwork {
			var err error
			if network, err = c.provisionNetwork(ctx, tool, o.NewNetwork); err != nil {
				return err
			}
		}
		if err := c.provisionInstance(ctx, tool, o.NewInstance); err != nil {
			return err
		}
		c.log.LogAttrs(ctx, slog.LevelInfo, "send DeviceID", slog.String("deviceID", string(c.id)))
		if err := tool.SendDeviceID(ctx, string(c.id)); err != nil {
			if !errors.Is(err, uart.ErrNotAcknowledged) {
				return withCode(CodeCommunication, fmt.Errorf("send the DeviceID: %w", err))
			}
			c.log.LogAttrs(ctx, slog.LevelWarn, "DeviceID not acknowledged", slog.Any("error", err))
		}
		return nil
	})
	if err != nil {
		return Network{}, err
	}
	return network, nil
}

// NeedsProvisioning reports whether Provision with these options has anything
// to ask the tool for. It uses neither the line nor the network.
func (c *Client) NeedsProvisioning(o ProvisionOptions) bool {
	_, err := c.Network()
	needsNetwork := !o.NoNetwork && (err != nil || o.NewNetwork)
	_, err = c.useInstance()
	return needsNetwork || err != nil || o.NewInstance
}

// Network returns the stored Wi-Fi, as Provision does. Without one the error is
// ErrNothingStored; ErrStorage if it is damaged, and then Provision asks for it
// anew.
func (c *Client) Network() (Network, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.state.networkErr != nil:
		return Network{}, newError("network", CodeGeneral, c.state.networkErr)
	case c.state.network == nil:
		return Network{}, newError("network", CodeNothingStored, errors.New("provision the device"))
	}
	return *c.state.network, nil
}

func (c *Client) provisionNetwork(ctx context.Context, tool *uart.Device, again bool) (Network, error) {
	if stored, err := c.Network(); err == nil && !again {
		return stored, nil
	}
	c.log.LogAttrs(ctx, slog.LevelInfo, "ask for the Wi-Fi")
	ssid, err := tool.SSID(ctx)
	if err != nil {
		return Network{}, withCode(CodeCommunication, fmt.Errorf("ask for the SSID: %w", err))
	}
	password, err := tool.Password(ctx)
	if err != nil {
		return Network{}, withCode(CodeCommunication, fmt.Errorf("ask for the Wi-Fi password: %w", err))
	}
	n := Network{SSID: ssid, Password: Secret(password)}
	if err := c.put(ctx, recordNetwork, encodeNetwork(n)); err != nil {
		return Network{}, err
	}
	c.mu.Lock()
	c.state.network, c.state.networkErr = &n, nil
	c.mu.Unlock()
	return n, nil
}

func (c *Client) provisionInstance(ctx context.Context, tool *uart.Device, again bool) error {
	if _, err := c.useInstance(); err == nil && !again {
		return nil
	}
	if c.bringsTrust() {
		return errBringsTrust
	}
	c.log.LogAttrs(ctx, slog.LevelInfo, "ask for the instance")
	endpoint, err := tool.Endpoint(ctx)
	if err != nil {
		return withCode(CodeCommunication, fmt.Errorf("ask for the endpoint: %w", err))
	}
	port, err := tool.InstancePort(ctx)
	if errors.Is(err, uart.ErrRefused) || errors.Is(err, uart.ErrUnsupported) || errors.Is(err, uart.ErrNoAnswer) {
		// The tool may leave the port out; one that ends no reply then says
		// nothing at all. One that has gone does not answer the next question.
		port, err = DefaultPort, nil
	}
	if err != nil {
		return withCode(CodeCommunication, fmt.Errorf("ask for the port: %w", err))
	}
	root, err := provisionRoot(ctx, tool)
	if err != nil {
		return withCode(CodeCommunication, fmt.Errorf("ask for the root certificate: %w", err))
	}
	return c.setInstance(ctx, Instance{Endpoint: endpoint, Port: port, Root: root})
}

// provisionRoot asks for the root certificate. One that is not self-issued does
// not show damage, so it must come twice.
func provisionRoot(ctx context.Context, tool *uart.Device) (*x509.Certificate, error) {
	const tries = 5
	var before []byte
	for range tries {
		der, err := tool.RootCA(ctx)
		if err != nil {
			return nil, err
		}
		root, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		if selfIssued(root) || bytes.Equal(der, before) {
			return root, nil
		}
		before = der
	}
	return nil, fmt.Errorf("%d answers, all different and none self-signed: is the line disturbed?", tries)
}

func checkRootDER(der []byte) error {
	root, err := x509.ParseCertificate(der)
	if err != nil {
		return err
	}
	return checkRoot(root)
}
