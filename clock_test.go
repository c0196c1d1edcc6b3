package quarklink_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/quarklinktest"
	"github.com/quarklink-go/quarklink/store"
	"github.com/quarklink-go/quarklink/transport"
)

// clockedMember is a device with a clock of its own, in a batch of an instance
// that has been there for a year.
func clockedMember(t *testing.T, device func(*quarklinktest.Server) time.Time, floor time.Time) (*quarklinktest.Server,
	*quarklink.Client) {
	t.Helper()
	instance := founded
	server := newServer(t, quarklinktest.Options{InMemory: true, Now: func() time.Time { return instance }})
	c := newClient(t, new(store.Mem), at(server), func(cfg *quarklink.Config) {
		cfg.Now, cfg.ClockFloor = func() time.Time { return device(server) }, floor
	})
	member(t, server, c, quarklinktest.Batch{})
	instance = today
	return server, c
}

var (
	founded = time.Date(2025, 6, 1, 12, 0, 0, 0, time.UTC)
	today   = founded.AddDate(1, 0, 0)
)

// TestWrongClock: whatever a wrong clock makes the device refuse, the error says that
// it is the clock.
func TestWrongClock(t *testing.T) {
	fixed := func(at time.Time) func(*quarklinktest.Server) time.Time {
		return func(*quarklinktest.Server) time.Time { return at }
	}
	// The clock is set back just before the device certificate comes.
	setBack := func(to time.Time) func(*quarklinktest.Server) time.Time {
		return func(s *quarklinktest.Server) time.Time {
			if s.Stats().Calls[quarklinktest.CallEnrol] > 0 {
				return to
			}
			return today
		}
	}
	for _, test := range []struct {
		name  string
		now   func(*quarklinktest.Server) time.Time
		floor time.Time
		clock bool // the error is ErrClock
		says  string
	}{
		{"of 1970, TLS", fixed(time.Unix(0, 0)), time.Time{}, true, "it says 1970-01-01T00:00:00Z"},
		{"the zero time, TLS", fixed(time.Time{}), time.Time{}, true, "it says 0001-01-01T00:00:00Z"},
		{"a day behind, temporary certificate", fixed(today.AddDate(0, 0, -1).In(time.FixedZone("UTC+2", 7200))),
			time.Time{}, true,
			"it says 2026-05-31T12:00:00Z, and a certificate that " +
				"was issued just now is valid from 2026-06-01T11:55:00Z"},
		{"two years ahead, temporary certificate", fixed(today.AddDate(2, 0, 0)), time.Time{}, true,
			"it says 2028-06-01T12:00:00Z, and a certificate that " +
				"was issued just now is valid from 2026-06-01T11:55:00Z"},
		{"a day behind, device certificate", setBack(today.AddDate(0, 0, -1)), time.Time{}, true,
			"it says 2026-05-31T12:00:00Z"},
		{"the zero time, device certificate", setBack(time.Time{}), time.Time{}, true, "it says 0001-01-01T00:00:00Z"},
		{"two years ahead, device certificate", setBack(today.AddDate(2, 0, 0)), time.Time{}, true,
			"it says 2028-06-01T12:00:00Z"},
		{"the instance's certificate has expired", fixed(today.AddDate(50, 0, 0)), time.Time{}, false, "expired"},
		{"the same, above the floor", fixed(today.AddDate(50, 0, 0)), today.AddDate(50, 0, 0), false, "expired"},
		{"the same, below the floor", fixed(today.AddDate(50, 0, 0)), today.AddDate(50, 0, 1), true,
			"it says 2076-06-01T12:00:00Z, and it cannot be earlier than 2076-06-02T12:00:00Z"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, c := clockedMember(t, test.now, test.floor)
			_, err := c.Enrol(t.Context())
			require.ErrorIs(t, err, quarklink.ErrCommunication)
			onlyCode(t, err)
			assert.ErrorContains(t, err, test.says)
			assert.NotContains(t, err.Error(), "m=")
			if test.clock {
				require.ErrorIs(t, err, quarklink.ErrClock)
			} else {
				require.NotErrorIs(t, err, quarklink.ErrClock)
				var invalid x509.CertificateInvalidError
				require.ErrorAs(t, err, &invalid)
			}
			_, err = c.Enrolment()
			require.ErrorIs(t, err, quarklink.ErrNoEnrolment)
		})
	}
}

// TestClockFloorOfAStranger: a clock below the floor excuses no certificate that
// is refused for another reason, and one below it that refuses nothing is none
// of our business.
func TestClockFloorOfAStranger(t *testing.T) {
	now := func(*quarklinktest.Server) time.Time { return today }
	server, c := clockedMember(t, now, today.AddDate(1, 0, 0))
	_, err := c.Status(t.Context())
	require.NoError(t, err)
	i := server.Instance()
	i.Root = newRoot(t, "stranger")
	require.NoError(t, c.SetInstance(t.Context(), i))
	_, err = c.Status(t.Context())
	require.ErrorIs(t, err, quarklink.ErrCommunication)
	require.NotErrorIs(t, err, quarklink.ErrClock)

	c = newClient(t, new(store.Mem), at(server), func(cfg *quarklink.Config) {
		cfg.Now, cfg.ClockFloor = func() time.Time { return today }, today.AddDate(1, 0, 0)
		cfg.Transport = distrust{x509.CertificateInvalidError{Reason: x509.IncompatibleUsage}}
	})
	_, err = c.Status(t.Context())
	require.ErrorIs(t, err, quarklink.ErrCommunication)
	require.NotErrorIs(t, err, quarklink.ErrClock)
}

// distrust is a transport that trusts nobody.
type distrust struct{ reason error }

func (r distrust) Dial(context.Context) (net.Conn, error)  { return nil, r.reason }
func (r distrust) As(*tls.Certificate) transport.Transport { return r }

func TestClock(t *testing.T) {
	server := newServer(t, quarklinktest.Options{})
	now := time.Unix(0, 0)
	c := newClient(t, new(store.Mem), at(server), func(cfg *quarklink.Config) {
		cfg.Now = func() time.Time { return now }
	})
	member(t, server, c, quarklinktest.Batch{})
	_, err := c.Status(t.Context())
	assert.ErrorIs(t, err, quarklink.ErrClock, "in 1970")
	assert.ErrorIs(t, err, quarklink.ErrCommunication, "in 1970")
	now = time.Now()
	_, err = c.Status(t.Context())
	assert.NoError(t, err, "once the clock is set")
}
