package uart

import (
	"context"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/quarklink-go/quarklink/transport/uart/tunnel"
)

// Tool is the answering side: the provisioning tool. It answers any number of
// devices, each at its own port with a call of [Tool.Serve]. What it tells them is
// the same for all, unless Choose decides for each. A value that is not set is
// refused ("ERROR refused"), a key that it does not know is "ERROR unsupported".
//
// Tool is plain data that Serve only reads. It must not be changed while Serve
// runs. Its callbacks are called from each Serve, one at a time for each.
type Tool struct {
	// Endpoint is the host name of the instance: at most 127 characters, a name
	// by RFC 1123 or an IPv4 address. "" refuses endpoint and port.
	Endpoint string
	// Port is the instance's TCP port. 0 means [DefaultPort].
	Port uint16
	// RootCA is the DER of the instance's root certificate, as
	// x509.Certificate.Raw. It is sent as base64 of its PEM text if that fits
	// MaxReply, otherwise as base64 of the DER. nil refuses it.
	RootCA []byte
	// SSID is the name of the Wi-Fi network, 1 to 32 bytes. "" refuses SSID and
	// password.
	SSID string
	// Password is that network's: 8 to 63 characters, 64 hex digits, or "" for
	// an open network. In the lines of EventConsole it reads [redacted].
	Password Secret

	// Choose, if not nil, is called when a device asks its first question, and
	// again for the first question after a DeviceID or a reset, with a copy of
	// the Tool, in which it can set what this device is to get. An error, or a
	// value that cannot be sent (see Check), refuses the question.
	Choose func(ctx context.Context, t *Tool) error
	// OnDeviceID, if not nil, is called for every DeviceID that a device sends
	// (64 lower-case hex digits; others are refused without a call). nil makes
	// the tool answer "OK", an error "ERROR refused". A device that has missed
	// the answer sends its DeviceID again.
	OnDeviceID func(ctx context.Context, id string) error
	// OnEvent, if not nil, is told what happens. It must return soon: the device
	// waits meanwhile.
	OnEvent func(Event)

	// Instance, if not nil, carries the streams of devices that ask for a tunnel
	// ([Tunnel]), such as transport.TCP to Endpoint and Port: it dials the one
	// peer that it was made for, wherever a device would like to go. nil answers
	// "ERROR unsupported".
	Instance Dialer
	// Random makes the numbers that tell one stream from another, as in [Tunnel].
	// It is required with Instance, and must be safe for concurrent use if Serve
	// is, as crypto/rand's Reader is.
	Random io.Reader
	// Options choose memory and patience of a tunnel. Zero: 8 KiB, 20 s.
	Options tunnel.Options

	// Timeout is how long a callback's context lasts, and how long the instance
	// may take to be reached. 0 means 10 s.
	Timeout time.Duration
	// Idle is how long a device may say nothing until Serve returns ErrIdle. 0
	// means for ever.
	Idle time.Duration

	// NoTerminator leaves out the "\n" after each reply, for a device that would
	// take it for a part of the value. An empty password is then no answer.
	NoTerminator bool
	// MaxReply is how many bytes, end of line included, a reply may have. 0 means
	// 1023, which is what the vendor's device can hold: a P-256 root fits, an
	// RSA-2048 root does not. For [Device] it may be [DeviceMaxReply].
	MaxReply int
}

// Dialer opens a stream to the one peer that it was made for. A
// transport.Transport is one.
type Dialer interface {
	Dial(ctx context.Context) (net.Conn, error)
}

// ErrIdle means that a device said nothing for as long as [Tool.Idle] allows.
var ErrIdle = errors.New("the device says nothing")

// Check returns nil if every value that is set can be sent, and otherwise an
// error that is fs.ErrInvalid: a value that no device would accept, a
// certificate that does not fit MaxReply, or an SSID or password that the
// conversation cannot carry, such as one with a line break. Serve checks too.
func (t *Tool) Check() error {
	_, err := t.replies()
	return err
}

// askedKeys are the keys that a device may ask for.
var askedKeys = [...]string{KeyEndpoint, KeyPort, KeyRootCA, KeySSID, KeyPassword}

// replies returns the value of each key that is set.
func (t *Tool) replies() (map[string]string, error) {
	if t.Instance != nil && t.Random == nil {
		return nil, fmt.Errorf("uart: a Tool with an Instance needs a Random, such as crypto/rand's Reader: %w", fs.ErrInvalid)
	}
	if t.MaxReply < 0 {
		return nil, fmt.Errorf("uart: MaxReply %d: need 0 or more: %w", t.MaxReply, fs.ErrInvalid)
	}
	replies := map[string]string{}
	if t.Endpoint != "" {
		replies[KeyEndpoint] = t.Endpoint
		replies[KeyPort] = strconv.Itoa(int(t.Port))
		if t.Port == 0 {
			replies[KeyPort] = strconv.Itoa(DefaultPort)
		}
	}
	if t.SSID != "" {
		replies[KeySSID] = t.SSID
		replies[KeyPassword] = string(t.Password)
	} else if t.Password != "" {
		return nil, fmt.Errorf("uart: Wi-Fi password without an SSID: %w", fs.ErrInvalid)
	}
	if t.RootCA != nil {
		if err := checkCertificate(t.RootCA); err != nil {
			return nil, fmt.Errorf("uart: %w: %w", err, fs.ErrInvalid)
		}
		replies[KeyRootCA] = t.encodeRoot()
	}
	for _, key := range askedKeys { // in this order, so that the error is always the same
		if value, ok := replies[key]; ok {
			if err := t.checkReply(key, value); err != nil {
				return nil, fmt.Errorf("uart: %s: %w: %w", key, err, fs.ErrInvalid)
			}
		}
	}
	return replies, nil
}

// encodeRoot returns the form of the root that fits, or else the shorter one.
func (t *Tool) encodeRoot() string {
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: t.RootCA})
	if value := base64.StdEncoding.EncodeToString(text); t.fits(value) {
		return value
	}
	return base64.StdEncoding.EncodeToString(t.RootCA)
}

// checkReply checks that a device would take the value as what it is.
func (t *Tool) checkReply(key, value string) error {
	line, err := []byte(value), error(nil)
	switch key {
	case KeyEndpoint:
		_, err = parseHost(line)
	case KeySSID:
		_, err = parseSSID(line)
	case KeyPassword:
		_, err = parsePassword(line)
	}
	switch {
	case err != nil:
		return err
	case strings.ContainsAny(value, "\n\x00") || strings.HasSuffix(value, "\r"):
		return errors.New("contains what ends a reply")
	case value == replyRefused || value == replyUnsupported || value == marker || isConsole(line):
		return errors.New("reads like a refusal, a request or a console line")
	case !t.fits(value):
		return fmt.Errorf("%d bytes do not fit a reply of %d (see MaxReply)", len(t.ended(value)), t.maxReply())
	}
	return nil
}

func (t *Tool) maxReply() int {
	if t.MaxReply > 0 {
		return t.MaxReply
	}
	return 1023
}

func (t *Tool) fits(value string) bool { return len(t.ended(value)) <= t.maxReply() }

func (t *Tool) ended(value string) string {
	if t.NoTerminator {
		return value
	}
	return value + "\n"
}

// keyName returns the key for an error message: of a DeviceID only its name.
func keyName(key string) string {
	name, _, _ := strings.Cut(key, ":")
	return strconv.Quote(name)
}

func (t *Tool) timeout() time.Duration {
	if t.Timeout > 0 {
		return t.Timeout
	}
	return 10 * time.Second
}
