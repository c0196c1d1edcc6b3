package uart

import (
	"bytes"
	"errors"
	"strings"
	"time"
)

// The keys of the conversation, as they stand on the wire.
const (
	KeyEndpoint = "ql_endpoint"   // host name of the instance
	KeyPort     = "ql_port"       // its TCP port in decimal; an empty value means [DefaultPort]
	KeyRootCA   = "ql_rootCA"     // its root certificate: base64 of PEM text or of DER
	KeySSID     = "wifi_ssid"     // 1 to 32 bytes
	KeyPassword = "wifi_password" // empty for an open network, 8 to 63 characters, or 64 hex digits
	KeyTunnel   = "ql_tunnel"     // asks for a tunnel to the instance, see [Tunnel]; the answer is "OK"
	KeyDeviceID = "deviceID"      // sent, not asked for: "deviceID:" and 64 lower-case hex digits
)

const (
	// DefaultPort is the TCP port of an instance that names no other.
	DefaultPort = 6000
	// DeviceMaxReply is how long a reply, without its end of line, [Device]
	// takes, in bytes. See [Tool.MaxReply].
	DeviceMaxReply = 4096
)

var (
	// ErrRefused means that the tool will not answer this request
	// ("ERROR refused"): it has no such value, or does not know the DeviceID.
	ErrRefused = errors.New("refused by the provisioning tool")
	// ErrUnsupported means that the tool does not know the key
	// ("ERROR unsupported").
	ErrUnsupported = errors.New("not supported by the provisioning tool")
	// ErrNoAnswer means that nothing but console lines came, however often the
	// request was sent.
	ErrNoAnswer = errors.New("no answer from the provisioning tool")
	// ErrReply means that something came, but never a value of the key that was
	// asked for. The error's text says what was wrong with the last line; it
	// does not show the line, which could be a password in the wrong place.
	ErrReply = errors.New("no valid reply from the provisioning tool")
	// ErrNotAcknowledged is the error of [Device.SendDeviceID] when the tool did
	// not react. It need not stop a device: log it and go on.
	ErrNotAcknowledged = errors.New("DeviceID not acknowledged")
)

const (
	marker           = "IEF DATA"
	replyOK          = "OK"
	replyRefused     = "ERROR refused"
	replyUnsupported = "ERROR unsupported"

	// gap ends a reply that has no terminator.
	gap = 100 * time.Millisecond
	// doze is by how much a Read may overshoot its deadline on a machine that has
	// time for it. Poll lets a Read of 20 ms end.
	doze = 30 * time.Millisecond
)

// request returns what the device sends for one line.
func request(line string) []byte {
	return []byte(marker + "\n\x00" + line + "\n")
}

// isConsole reports whether the line begins as ESP-IDF's console lines do:
// perhaps a colour, then "I (1234) " or the like.
func isConsole(line []byte) bool {
	if rest, ok := bytes.CutPrefix(line, []byte("\x1b[")); ok {
		rest = bytes.TrimLeft(rest, "0123456789;")
		if len(rest) == 0 || rest[0] != 'm' {
			return false
		}
		line = rest[1:]
	}
	if len(line) < len("I (1) ") || strings.IndexByte("EWIDV", line[0]) < 0 || line[1] != ' ' || line[2] != '(' {
		return false
	}
	digits := line[3:]
	rest := bytes.TrimLeft(digits, "0123456789")
	return len(rest) < len(digits) && bytes.HasPrefix(rest, []byte(") "))
}

// consoleIndex returns where in the line a console line begins, or -1.
func consoleIndex(line []byte) int {
	for i := range line {
		if isConsole(line[i:]) {
			return i
		}
	}
	return -1
}
