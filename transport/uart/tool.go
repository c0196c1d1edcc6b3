package uart

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Tool is the answering side: the provisioning tool. It answers any number of
// devices, each at its own port with a call of [Tool.Serve], and gives them all
// the same values. A value that is not set is refused ("ERROR refused"), a key
// that it does not know is "ERROR unsupported".
//
// Tool is plain data that Serve only reads: copy it to give one port other
// values or callbacks. It must not be changed while Serve runs.
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
	// an open network.
	Password string

	// OnDeviceID, if not nil, is called for every DeviceID that a device sends
	// (64 lower-case hex digits; others are refused without a call). nil makes
	// the tool answer "OK", an error "ERROR refused". A device that has missed
	// the answer sends its DeviceID again. ctx is Serve's. Calls come from each
	// Serve.
	OnDeviceID func(ctx context.Context, id string) error
	// OnLine, if not nil, gets each line of the device that is not part of a
	// request, without its end: the device's console. It is raw input of up to
	// 1024 bytes, longer lines come in pieces: quote it before it goes to a
	// terminal. It is valid only during the call. Calls come from each Serve.
	OnLine func(line []byte)

	// NoTerminator leaves out the "\n" after each reply, for a device that would
	// take it for a part of the value. An empty password is then no answer.
	NoTerminator bool
	// MaxReply is how many bytes, end of line included, a reply may have. 0 means
	// 1023, which is what the vendor's device can hold: a P-256 root fits, an
	// RSA-2048 root does not. For [Device] it may be [DeviceMaxReply].
	MaxReply int
}

// Check returns nil if every value that is set can be sent, and otherwise an
// error that is fs.ErrInvalid: a value that no device would accept, a
// certificate that does not fit MaxReply, or an SSID or password that the
// conversation cannot carry, such as one with a line break. Serve checks too.
func (t *Tool) Check() error {
	_, err := t.replies()
	return err
}

// Serve answers the device at this port until ctx is done or the port fails, and
// returns the error of that, never nil; io.EOF means that the port was closed at
// the other end. If Check fails it returns that error and sends nothing. It may
// be called for several ports at the same time.
func (t *Tool) Serve(ctx context.Context, port Port) error {
	replies, err := t.replies()
	if err != nil {
		return err
	}
	if err := setReadDeadline(port, time.Time{}); err != nil {
		return fmt.Errorf("uart: %w", err)
	}
	release := interrupt(ctx, port)
	defer release()
	find := finder{onLine: t.OnLine}
	chunk := make([]byte, 256)
	for {
		n, err := port.Read(chunk)
		if ctx.Err() != nil {
			return fmt.Errorf("uart: %w", ctx.Err())
		}
		for _, b := range chunk[:n] {
			key := find.add(b)
			if key == "" {
				continue
			}
			if err := t.send(ctx, port, t.reply(ctx, replies, key)); err != nil {
				return fmt.Errorf("uart: answer %s: %w", keyName(key), err)
			}
		}
		if err != nil {
			return fmt.Errorf("uart: read: %w", err)
		}
	}
}

// askedKeys are the keys that a device may ask for.
var askedKeys = [...]string{KeyEndpoint, KeyPort, KeyRootCA, KeySSID, KeyPassword}

// replies returns the value of each key that is set.
func (t *Tool) replies() (map[string]string, error) {
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
		replies[KeyPassword] = t.Password
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

// reply returns the answer to a key.
func (t *Tool) reply(ctx context.Context, replies map[string]string, key string) string {
	if id, ok := strings.CutPrefix(key, KeyDeviceID+":"); ok {
		if checkDeviceID(id) != nil || t.OnDeviceID != nil && t.OnDeviceID(ctx, id) != nil {
			return replyRefused
		}
		return replyOK
	}
	if value, ok := replies[key]; ok {
		return value
	}
	if slices.Contains(askedKeys[:], key) {
		return replyRefused
	}
	return replyUnsupported
}

func (t *Tool) send(ctx context.Context, port Port, value string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if t.ended(value) == "" {
		return nil
	}
	if _, err := port.Write([]byte(t.ended(value))); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("write: %w", err)
	}
	return nil
}

// keyName returns the key for an error message: of a DeviceID only its name.
func keyName(key string) string {
	name, _, _ := strings.Cut(key, ":")
	return strconv.Quote(name)
}

// finder finds requests in what a device sends: the line after one that ends in
// the marker. Everything else is the device's console.
type finder struct {
	onLine func(line []byte)
	line   []byte // not whole yet, at most maxLine bytes
	armed  bool   // the marker has come, its key has not
}

const (
	maxLine = 1024 // what finder keeps of a line
	maxKey  = 128  // what may be a key; the longest that we know has 73 bytes
)

// add takes one byte and returns the key of the request that it completes, or "".
func (f *finder) add(b byte) (key string) {
	if b != '\n' {
		if len(f.line) == maxLine {
			// Not a key, but its end may still be a marker.
			f.show(f.line[:maxLine-len(marker)])
			f.line = append(f.line[:0], f.line[maxLine-len(marker):]...)
			f.armed = false
		}
		f.line = append(f.line, b)
		return ""
	}
	line := bytes.TrimSuffix(f.line, []byte("\r"))
	f.line = f.line[:0]
	if rest, ok := bytes.CutSuffix(line, []byte(marker)); ok {
		f.show(rest)
		f.armed = true
		return ""
	}
	if word := bytes.TrimLeft(line, "\x00"); f.armed && isWord(word) {
		f.armed = false
		return string(word)
	}
	f.show(line) // a console line between marker and key leaves us armed
	return ""
}

func (f *finder) show(line []byte) {
	if f.onLine != nil && len(line) > 0 {
		f.onLine(line)
	}
}

// isWord tells what may be a key, even one that we do not know, from noise: a
// device whose key was damaged on the wire must ask again, not be turned away.
func isWord(line []byte) bool {
	for _, c := range line {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return 0 < len(line) && len(line) <= maxKey
}
