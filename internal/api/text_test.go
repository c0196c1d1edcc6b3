package api

import (
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestTexts: what an instance says for people is one bounded line that no
// terminal acts on.
func TestTexts(t *testing.T) {
	const hostile = `a\u001b[2Jb\r\nc\u202ed`
	long := strings.Repeat("é", 3000)
	for _, test := range []struct{ said, want string }{
		{hostile, "a\uFFFD[2Jb c\uFFFDd"},
		{long, strings.Repeat("é", maxText) + "…"},
		{"Zürich №5", "Zürich №5"},
	} {
		i := &instance{body: fmt.Sprintf(`{"state":"enrolled","batch":"%[1]s","firmware":{"name":"%[1]s","version":"%[1]s",
			"size":1,"sha256":"%[2]s","attributes":{"%[1]s":"%[1]s","chip":"esp32c3"}}}`, test.said, digest)}
		s, err := client(i).Status(t.Context())
		require.NoError(t, err)
		assert.Equal(t, test.want, s.Batch)
		assert.Equal(t, test.want, s.Firmware.Name)
		assert.Equal(t, test.want, s.Firmware.Version)
		assert.Equal(t, map[string]string{test.want: test.want, "chip": "esp32c3"}, s.Firmware.Attributes)
		assert.LessOrEqual(t, utf8.RuneCountInString(s.Batch), maxText+1)
	}
}

// TestConnectionValues: a value that a machine will use is refused, not altered.
func TestConnectionValues(t *testing.T) {
	answer := `{"type":"iot_hub","endpoint":"hub.test","port":8883,"rootCA":"PEM",%q:"%s"}`
	for _, name := range []string{"scopeID", "firmwareUpdateTopic", "uri", "database", "dataSource"} {
		for value, good := range map[string]bool{
			"/a/b?c=d": true, strings.Repeat("x", maxValue): true,
			strings.Repeat("x", maxValue+1): false, `a\nb`: false, `a\u0000`: false, `\u001b[2J`: false, `a\u202e`: false,
		} {
			_, err := client(&instance{body: fmt.Sprintf(answer, name, value)}).Connection(t.Context())
			assert.Equal(t, good, err == nil, "%s of %.20q: %v", name, value, err)
		}
	}
	_, err := client(&instance{body: fmt.Sprintf(answer, "token", `secret\r\nX-Evil: 1`)}).Connection(t.Context())
	require.Error(t, err)
	assert.NotContains(t, err.Error(), "secret")
}
