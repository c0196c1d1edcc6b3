package quarklink

import (
	"errors"
	"fmt"
	"log/slog"
)

// Secret is text that logs and errors do not show. Formatted by package fmt,
// logged with slog, or marshalled to JSON or text it is "[redacted]". string(s) is the text itself.
//
// Some ways around that remain. Package fmt calls no methods, and so prints a
// Secret in clear, when it is in an unexported field (export the field, or give
// the struct a Format method), and below a nested pointer that is printed with a
// verb that does not fit it, such as %s, which go vet reports. An encoder that
// does not use encoding.TextMarshaler, such as encoding/gob, writes the text.
//
// A Secret cannot be read back from JSON or text, where it is lost: unmarshalling
// one is an error. Read into a string and convert that.
type Secret string

const redacted = "[redacted]"

// String returns "[redacted]".
func (Secret) String() string { return redacted }

// Format writes "[redacted]" whatever the verb.
func (Secret) Format(f fmt.State, _ rune) { fmt.Fprint(f, redacted) }

// LogValue returns "[redacted]".
func (Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText returns "[redacted]", so that JSON and other encodings have that.
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// UnmarshalText always returns an error, which is errors.ErrUnsupported, and
// leaves the Secret as it is: what MarshalText wrote is not the text.
func (*Secret) UnmarshalText([]byte) error {
	return fmt.Errorf("quarklink: a Secret is marshalled as %q and cannot be unmarshalled: "+
		"read into a string and convert that: %w", redacted, errors.ErrUnsupported)
}
