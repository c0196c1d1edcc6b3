package quarklink_test

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/quarklinktest"
)

// TestPollAfter: no answer silences a device for good, or makes it ask without a
// pause that it did not choose.
func TestPollAfter(t *testing.T) {
	for said, want := range map[string]time.Duration{
		"20": 20 * time.Second, "0.5": 500 * time.Millisecond, "86400": 24 * time.Hour,
		"86401": 24 * time.Hour, "1e18": 24 * time.Hour, "1e300": 24 * time.Hour,
		"0": 0, "-1": 0, "-1e300": 0, "null": 0,
	} {
		t.Run(said, func(t *testing.T) {
			server, c := newMember(t, quarklinktest.Batch{})
			answerStatus(server, c.DeviceID(), quarklink.StateEnrolled, `"pollAfter": `+said)
			status, err := c.Status(t.Context())
			require.NoError(t, err)
			assert.Equal(t, want, status.PollAfter)
		})
	}
}

// silentKeys is a key store that, once it is silent, does not answer for the
// device key.
type silentKeys struct {
	keystore.Generator
	silent bool
}

var errSilent = errors.New("the chip does not answer")

func (k *silentKeys) Signer(ctx context.Context, role keystore.Role) (crypto.Signer, error) {
	if k.silent && role == keystore.Device {
		return nil, errSilent
	}
	return k.Generator.Signer(ctx, role)
}

// TestSilentKeyStore: a key store that does not answer now is no reason to enrol
// again.
func TestSilentKeyStore(t *testing.T) {
	var log bytes.Buffer
	keys := new(silentKeys)
	_, c := newMember(t, quarklinktest.Batch{}, func(cfg *quarklink.Config) {
		keys.Generator = cfg.KeyStore.(keystore.Generator)
		cfg.KeyStore = keys
		cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
	})
	_, err := c.Enrol(t.Context())
	require.NoError(t, err)
	log.Reset()
	keys.silent = true
	status, err := c.Status(t.Context())
	require.NoError(t, err)
	assert.True(t, status.HasEnrolment)
	assert.False(t, status.NeedsEnrolment())
	assert.Contains(t, log.String(), errSilent.Error())
}

func TestNeedsUpdate(t *testing.T) {
	due := &quarklink.Manifest{}
	for _, test := range []struct {
		name   string
		status quarklink.Status
		needs  bool
		code   quarklink.Code
	}{
		{"due", quarklink.Status{State: quarklink.StateEnrolled, Firmware: due}, true, quarklink.CodeUpdateRequired},
		{"none", quarklink.Status{State: quarklink.StateEnrolled}, false, quarklink.CodeEnrolled},
		{"of a device about to be revoked", quarklink.Status{State: quarklink.StatePendingRevoke, Firmware: due},
			true, quarklink.CodeUpdateRequired},
		{"of a revoked device", quarklink.Status{State: quarklink.StateRevoked, Firmware: due},
			false, quarklink.CodeRevoked},
		{"refused before", quarklink.Status{State: quarklink.StateNotEnrolled, Firmware: due, FirmwareRefused: true},
			false, quarklink.CodeNotEnrolled},
		{"awaits a restart", quarklink.Status{State: quarklink.StateNotEnrolled, Firmware: due, AwaitsRestart: true},
			false, quarklink.CodeNotEnrolled},
		{"refused, certificate expired", quarklink.Status{State: quarklink.StateEnrolled, Firmware: due,
			FirmwareRefused: true, CertificateExpired: true}, false, quarklink.CodeCertificateExpired},
	} {
		t.Run(test.name, func(t *testing.T) {
			assert.Equal(t, test.needs, test.status.NeedsUpdate())
			assert.Equal(t, test.code, test.status.Code())
		})
	}
}
