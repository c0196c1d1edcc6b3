//go:build linux

package uart

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestCookedTerminal: a terminal that nobody has set to raw mode sends back what
// it is told. However the conversation ends, the error says what to do.
func TestCookedTerminal(t *testing.T) {
	const hint = "raw mode (cfmakeraw, stty raw -echo)"
	device, _ := openPTY(t) // the other end is as it was opened
	d := &Device{Port: device, Timeout: 100 * time.Millisecond, Tries: 3}
	_, err := d.Endpoint(t.Context())
	require.ErrorIs(t, err, ErrNoAnswer)
	assert.ErrorContains(t, err, hint)

	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err = (&Device{Port: device, Timeout: time.Minute}).Endpoint(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	assert.ErrorContains(t, err, hint)
}

// TestSilentLine: a line that sends nothing back gets another hint.
func TestSilentLine(t *testing.T) {
	device, other := openPTY(t)
	setRaw(t, other)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err := (&Device{Port: device}).Endpoint(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	assert.ErrorContains(t, err, "is the tool running")
	assert.NotContains(t, err.Error(), "sends back")
}
