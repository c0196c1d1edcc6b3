package uart

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// What is not text may be noise on the line: it counts if it comes twice in a
// row.
func TestSSIDThatIsNotText(t *testing.T) {
	const ssid = "\xff\x01lab"
	for _, test := range []struct {
		name    string
		answers []string
		want    string
		asked   int
	}{
		{"text", []string{"lab"}, "lab", 1},
		{"twice the same", []string{ssid, ssid}, ssid, 2},
		{"a control character", []string{"l\x07b", "l\x07b"}, "l\x07b", 2},
		{"nearly a coloured console line", []string{"\x1b[0;32I (1) ", "\x1b[0;32I (1) "}, "\x1b[0;32I (1) ", 2},
		{"a DEL", []string{"lab\x7f", "lab\x7f"}, "lab\x7f", 2},
		{"not UTF-8", []string{"lab\xe9", "lab\xe9"}, "lab\xe9", 2},
		{"noise, then text", []string{"\xff\xfe", "lab"}, "lab", 2},
		{"noise, then twice the same", []string{"\xfe", ssid, ssid}, ssid, 3},
		{"noise in between", []string{ssid, "\xfe", ssid, ssid}, ssid, 4},
	} {
		t.Run(test.name, func(t *testing.T) {
			in(t, func(t *testing.T, d *Device, tool *end) {
				var answers []func(func(string))
				for _, answer := range test.answers {
					answers = append(answers, says(answer+"\n"))
				}
				requests := play(t, tool, answers...)
				got, err := d.SSID(t.Context())
				require.NoError(t, err)
				assert.Equal(t, test.want, got)
				assert.Len(t, requests(), test.asked)
			})
		})
	}
}

func TestSSIDThatIsNoiseAlone(t *testing.T) {
	for tries, asked := range map[int]int{1: 2, 2: 2, 4: 4} {
		in(t, func(t *testing.T, d *Device, tool *end) {
			d.Tries = tries
			requests := play(t, tool, says("\xf1\n"), says("\xf2\n"), says("\xf1\n"), says("\xf2\n"), says("\xf2\n"))
			got, err := d.SSID(t.Context())
			require.ErrorIs(t, err, ErrReply)
			assert.Empty(t, got)
			assert.Len(t, requests(), asked)
		})
	}
}

// Noise before a tool that is not there is no network.
func TestSSIDThatComesOnce(t *testing.T) {
	in(t, func(t *testing.T, d *Device, tool *end) {
		play(t, tool, says("\xff\x01lab\n"))
		_, err := d.SSID(t.Context())
		assert.ErrorIs(t, err, ErrNoAnswer)
	})
}
