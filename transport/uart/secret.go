package uart

import (
	"fmt"
	"io"
)

// Secret is text that no log shows: formatted with any verb, or marshalled, it is
// "[redacted]". string(s) is the text itself.
type Secret string

const redacted = "[redacted]"

// String returns "[redacted]".
func (Secret) String() string { return redacted }

// Format writes "[redacted]" whatever the verb.
func (Secret) Format(f fmt.State, _ rune) { io.WriteString(f, redacted) }

// MarshalText returns "[redacted]", so that JSON, slog and others have that.
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }
