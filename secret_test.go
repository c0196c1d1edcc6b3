package quarklink_test

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
)

// What was marshalled is not the password, and must not come back as one.
func TestSecretIsNotUnmarshalled(t *testing.T) {
	stored := quarklink.Network{SSID: "lab", Password: "correct horse"}
	text, err := json.Marshal(stored)
	require.NoError(t, err)
	require.NotContains(t, string(text), "correct horse")
	xmlText, err := xml.Marshal(stored)
	require.NoError(t, err)
	require.NotContains(t, string(xmlText), "correct horse")

	for name, unmarshal := range map[string]func(*quarklink.Network) error{
		"a JSON round trip": func(n *quarklink.Network) error { return json.Unmarshal(text, n) },
		"an XML round trip": func(n *quarklink.Network) error { return xml.Unmarshal(xmlText, n) },
		"any other text": func(n *quarklink.Network) error {
			return json.Unmarshal([]byte(`{"Password":"hunter22"}`), n)
		},
		"text": func(n *quarklink.Network) error { return n.Password.UnmarshalText([]byte("hunter22")) },
	} {
		t.Run(name, func(t *testing.T) {
			n := quarklink.Network{Password: "correct horse"}
			err := unmarshal(&n)
			require.ErrorIs(t, err, errors.ErrUnsupported)
			assert.NotContains(t, err.Error(), "hunter22")
			assert.Equal(t, "correct horse", string(n.Password))
		})
	}
}

// What the documentation says of structs: an exported field is redacted however
// deep it lies, and a Format method redacts a struct that hides its field.
func TestSecretInAStruct(t *testing.T) {
	network := quarklink.Network{Password: "correct horse"}
	deep := struct{ Networks []quarklink.Network }{[]quarklink.Network{network}}
	byPointer := struct{ Network *quarklink.Network }{&network}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		assert.NotContains(t, fmt.Sprintf(verb, deep), "correct horse", verb)
		assert.NotContains(t, fmt.Sprintf(verb, hiding{"correct horse"}), "correct horse", verb)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%x", "%d"} { // those that fit a pointer
		assert.NotContains(t, fmt.Sprintf(verb, byPointer), "correct horse", verb)
	}
}

// hiding has the Secret where package fmt does not ask it.
type hiding struct{ password quarklink.Secret }

func (h hiding) Format(f fmt.State, _ rune) { fmt.Fprint(f, h.password) }

func TestSecret(t *testing.T) {
	const hidden = "hunter2hunter2"
	secret := quarklink.Secret(hidden)
	network := quarklink.Network{SSID: "lab", Password: secret}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("secret", "s", secret, "n", network)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("secret", "s", secret, "n", network)
	asJSON, err := json.Marshal(network)
	require.NoError(t, err)
	for how, text := range map[string]string{
		"slog": log.String(),
		"json": string(asJSON),
		"fmt": fmt.Sprint(secret, network, &network, []quarklink.Secret{secret}) +
			fmt.Sprintf("%s %q %v %+v %#v %x %X %d %10s", secret, secret, secret, network, network, secret, secret,
				secret, secret),
		"error": fmt.Errorf("oops: %v", secret).Error(),
	} {
		assert.NotContains(t, text, hidden, how)
		assert.NotContains(t, strings.ToLower(text), fmt.Sprintf("%x", hidden), how)
		assert.Contains(t, text, "[redacted]", how)
	}
	assert.Equal(t, hidden, string(secret), "the secret itself is kept")
}
