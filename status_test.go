package quarklink_test

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/quarklinktest"
	"github.com/quarklink-go/quarklink/store"
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

// TestOperator follows what an operator does to a device.
func TestOperator(t *testing.T) {
	server, c := newMember(t, quarklinktest.Batch{})
	ctx := t.Context()
	expect := func(when string, code quarklink.Code, needs bool) {
		t.Helper()
		s, err := c.Status(ctx)
		require.NoError(t, err, when)
		assert.Equal(t, code, s.Code(), when)
		assert.Equal(t, needs, s.NeedsEnrolment(), when)
	}
	enrol := func() {
		t.Helper()
		_, err := c.Enrol(ctx)
		require.NoError(t, err)
	}
	expect("blank", quarklink.CodeNotEnrolled, true)
	enrol()
	expect("enrolled", quarklink.CodeEnrolled, false)
	enrol()
	assert.Len(t, server.Certificates(c.DeviceID()), 1)
	require.NoError(t, server.Expire(c.DeviceID()))
	expect("expired", quarklink.CodeCertificateExpired, true)
	enrol()
	expect("enrolled anew", quarklink.CodeEnrolled, false)
	assert.Len(t, server.Certificates(c.DeviceID()), 2)
	require.NoError(t, server.PendingRevoke(c.DeviceID()))
	expect("pending revoke", quarklink.CodeEnrolled, false)
	require.NoError(t, server.Revoke(c.DeviceID()))
	expect("revoked", quarklink.CodeRevoked, false)
	_, err := c.Enrol(ctx)
	assert.ErrorIs(t, err, quarklink.ErrDeviceRevoked, "Enrol of a revoked device")
	_, err = c.FirmwareUpdate(ctx, quarklink.FirmwareOptions{Slot: newSlot(t, 1<<20), Verifier: anything})
	assert.ErrorIs(t, err, quarklink.ErrDeviceRevoked, "FirmwareUpdate of a revoked device")
	require.NoError(t, server.AllowEnrolment(c.DeviceID()))
	expect("allowed", quarklink.CodeNotEnrolled, true)
	enrol()
	expect("enrolled once more", quarklink.CodeEnrolled, false)
}

// TestExpiredByTheClock: the device notices by itself.
func TestExpiredByTheClock(t *testing.T) {
	now := time.Now()
	clock := func() time.Time { return now }
	server := newServer(t, quarklinktest.Options{InMemory: true, Now: clock})
	c := newClient(t, new(store.Mem), at(server), func(cfg *quarklink.Config) { cfg.Now = clock })
	member(t, server, c, quarklinktest.Batch{Policy: quarklinktest.Policy{Lifetime: time.Hour}})
	_, err := c.Enrol(t.Context())
	require.NoError(t, err)
	now = now.Add(2 * time.Hour)
	s, err := c.Status(t.Context())
	require.NoError(t, err)
	assert.True(t, s.CertificateExpired)
	assert.True(t, s.NeedsEnrolment())
}

func TestStatusOfAnotherDevice(t *testing.T) {
	for name, body := range map[string]string{
		"another device": `{"deviceID":"` + strings.Repeat("0", 64) + `","state":"enrolled"}`,
		"no state":       `{}`,
		"no JSON":        `hello`,
		"bad digest":     `{"state":"enrolled","firmware":{"size":1,"sha256":"abc"}}`,
	} {
		t.Run(name, func(t *testing.T) {
			server, c := newMember(t, quarklinktest.Batch{})
			server.Fault(quarklinktest.CallStatus, quarklinktest.Answer(http.HandlerFunc(
				func(w http.ResponseWriter, _ *http.Request) {
					w.Header().Set("Content-Type", "application/json")
					fmt.Fprint(w, body)
				})))
			s, err := c.Status(t.Context())
			assert.ErrorIs(t, err, quarklink.ErrGeneral)
			assert.Equal(t, quarklink.Status{}, s)
		})
	}
}

func TestStatusCode(t *testing.T) {
	due := &quarklink.Manifest{}
	for _, test := range []struct {
		status quarklink.Status
		code   quarklink.Code
		needs  bool
	}{
		{quarklink.Status{State: quarklink.StateRevoked, Firmware: due, CertificateExpired: true},
			quarklink.CodeRevoked, false},
		{quarklink.Status{State: quarklink.StateNotEnrolled, Firmware: due}, quarklink.CodeUpdateRequired, true},
		{quarklink.Status{State: quarklink.StateNotEnrolled, CertificateExpired: true}, quarklink.CodeNotEnrolled,
			true},
		{quarklink.Status{State: quarklink.StateEnrolled, CertificateExpired: true, HasEnrolment: true},
			quarklink.CodeCertificateExpired, true},
		{quarklink.Status{State: quarklink.StateEnrolled, HasEnrolment: true}, quarklink.CodeEnrolled, false},
		{quarklink.Status{State: quarklink.StateEnrolled}, quarklink.CodeEnrolled, true},
		{quarklink.Status{State: quarklink.StatePendingRevoke}, quarklink.CodeEnrolled, false},
		{quarklink.Status{State: quarklink.StatePendingRevoke, CertificateExpired: true},
			quarklink.CodeCertificateExpired, false},
		{quarklink.Status{}, quarklink.CodeGeneral, true},
	} {
		assert.Equal(t, test.code, test.status.Code(), "%+v", test.status)
		assert.Equal(t, test.needs, test.status.NeedsEnrolment(), "%+v", test.status)
	}
}
