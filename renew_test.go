package quarklink_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
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

const month = 30 * 24 * time.Hour

// calendar is a clock that a test sets.
type calendar struct{ now time.Time }

func newCalendar() *calendar { return &calendar{time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)} }

func (c *calendar) time() time.Time          { return c.now }
func (c *calendar) pass(d time.Duration)     { c.now = c.now.Add(d) }
func (c *calendar) on(cfg *quarklink.Config) { cfg.Now = c.time }

// newRenewal is an enrolled device whose certificates are valid for a month.
func newRenewal(t *testing.T, st store.Creator) (*quarklinktest.Server, *calendar, *quarklink.Client) {
	t.Helper()
	today := newCalendar()
	server := newServer(t, quarklinktest.Options{InMemory: true, Now: today.time})
	c := newClient(t, st, at(server), today.on)
	member(t, server, c, quarklinktest.Batch{Policy: quarklinktest.Policy{Lifetime: month}})
	_, err := c.Enrol(t.Context())
	require.NoError(t, err)
	return server, today, c
}

func sameKey(a, b *quarklink.Enrolment) bool {
	return string(a.Certificate.RawSubjectPublicKeyInfo) == string(b.Certificate.RawSubjectPublicKeyInfo)
}

// TestRenew: a renewal replaces certificate and details, over the same key or
// another, and what was before is gone.
func TestRenew(t *testing.T) {
	for name, o := range map[string]quarklink.RenewOptions{"same key": {}, "new key": {NewKey: true}} {
		t.Run(name, func(t *testing.T) {
			st := new(store.Mem)
			server, today, c := newRenewal(t, st)
			before, err := c.Enrolment()
			require.NoError(t, err)
			status, err := c.Status(t.Context())
			require.NoError(t, err)
			assert.False(t, status.NeedsRenewal(), "renewal on the first day")
			today.now = before.RenewAt.Truncate(time.Second).Add(time.Second)
			status, err = c.Status(t.Context())
			require.NoError(t, err)
			assert.True(t, status.NeedsRenewal())
			assert.False(t, status.NeedsEnrolment())
			assert.Equal(t, quarklink.CodeEnrolled, status.Code())
			newHub(server, newRoot(t, "new hub"))

			after, err := c.Renew(t.Context(), o)
			require.NoError(t, err)
			assert.Equal(t, today.now.Add(month), after.Certificate.NotAfter)
			assert.Equal(t, "new.example", after.Hub.Endpoint)
			assert.Equal(t, before.Certificate.RawSubject, after.Certificate.RawSubject)
			assert.Equal(t, !o.NewKey, sameKey(before, after))
			assert.True(t, after.Certificate.Equal(shown(t, c)), "the hub is presented the new certificate")
			restarted := newClient(t, st, at(server), today.on)
			stored, err := restarted.Enrolment()
			require.NoError(t, err)
			assert.True(t, after.Certificate.Equal(stored.Certificate))
			status, err = restarted.Status(t.Context())
			require.NoError(t, err)
			assert.False(t, status.NeedsRenewal(), "renewal right after renewal")
			assert.False(t, status.NeedsEnrolment())
			_, err = st.Get(t.Context(), "key-dsk-next")
			assert.ErrorContains(t, err, "not exist", "a staged key that was committed is gone")

			_, err = st.Get(t.Context(), "csr")
			assert.ErrorContains(t, err, "not exist", "the request for the certificate of before is gone")

			// An Enrol that was not called for loses nothing.
			again, err := restarted.Enrol(t.Context())
			require.NoError(t, err)
			assert.False(t, again.Certificate.NotAfter.Before(after.Certificate.NotAfter))
		})
	}
}

func TestRenewIsRefused(t *testing.T) {
	ctx := t.Context()
	t.Run("not enrolled", func(t *testing.T) {
		_, c := newMember(t, quarklinktest.Batch{})
		_, err := c.Renew(ctx, quarklink.RenewOptions{})
		require.ErrorIs(t, err, quarklink.ErrNoEnrolment)
	})
	t.Run("expired while offline", func(t *testing.T) {
		_, today, c := newRenewal(t, new(store.Mem))
		today.pass(month + time.Second)
		_, err := c.Renew(ctx, quarklink.RenewOptions{})
		require.ErrorIs(t, err, quarklink.ErrCertificateExpired)
		status, err := c.Status(ctx)
		require.NoError(t, err)
		assert.True(t, status.NeedsEnrolment())
		assert.False(t, status.NeedsRenewal())
		_, err = c.Enrol(ctx)
		require.NoError(t, err)
	})
	t.Run("revoked", func(t *testing.T) {
		server, _, c := newRenewal(t, new(store.Mem))
		require.NoError(t, server.Revoke(c.DeviceID()))
		_, err := c.Renew(ctx, quarklink.RenewOptions{})
		require.ErrorIs(t, err, quarklink.ErrDeviceRevoked)
	})
	t.Run("a key store that cannot", func(t *testing.T) {
		today := newCalendar()
		server := newServer(t, quarklinktest.Options{InMemory: true, Now: today.time})
		keys := newKeys(t, new(store.Mem))
		c := newClient(t, new(store.Mem), at(server), today.on, func(cfg *quarklink.Config) {
			cfg.KeyStore = struct{ keystore.Generator }{keys}
		})
		member(t, server, c, quarklinktest.Batch{})
		_, err := c.Enrol(ctx)
		require.NoError(t, err)
		_, err = c.Renew(ctx, quarklink.RenewOptions{NewKey: true})
		require.ErrorIs(t, err, errors.ErrUnsupported)
		today.pass(month)
		_, err = c.Renew(ctx, quarklink.RenewOptions{})
		require.NoError(t, err)
	})
}

// TestRenewAnswers: whatever is wrong with an answer, the old certificate and its
// details serve on, and the next Renew does what is right.
func TestRenewAnswers(t *testing.T) {
	stale := func(s *quarklinktest.Server, c *quarklink.Client, today *calendar) {
		s.SetPolicy("batch", quarklinktest.Policy{Lifetime: time.Hour})
	}
	fault := func(call quarklinktest.Call, f quarklinktest.Fault) func(*quarklinktest.Server, *quarklink.Client,
		*calendar) {
		return func(s *quarklinktest.Server, _ *quarklink.Client, _ *calendar) { s.Fault(call, f) }
	}
	reenrol, connection := quarklinktest.CallReenrol, quarklinktest.CallConnection
	for name, test := range map[string]struct {
		trouble func(*quarklinktest.Server, *quarklink.Client, *calendar)
		want    error
	}{
		"expires no later":    {stale, quarklink.ErrNotNewer},
		"over another key":    {fault(reenrol, quarklinktest.WrongKey()), quarklink.ErrGeneral},
		"two certificates":    {fault(reenrol, quarklinktest.TwoCertificates()), quarklink.ErrGeneral},
		"of a foreign issuer": {fault(reenrol, quarklinktest.ForeignIssuer()), quarklink.ErrCACerts},
		"a bad CSR":           {fault(reenrol, badCSR(nil)), quarklink.ErrGeneral},
		"not yet":             {fault(reenrol, answer202(nil)), quarklink.ErrValueNotAvailable},
		"forbidden":           {fault(reenrol, quarklinktest.Refuse(403, "", 0)), quarklink.ErrGeneral},
		"no cacerts": {fault(quarklinktest.CallCACerts, quarklinktest.Refuse(404, "", 0)),
			quarklink.ErrCACerts},
		"the new one rejected": {fault(connection, quarklinktest.Refuse(403, "", 0)), quarklink.ErrGeneral},
		"details of a type that is not known": {fault(connection, quarklinktest.Answer(http.HandlerFunc(
			func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				io.WriteString(w, `{"type":"else","endpoint":"e","port":1}`)
			}))), quarklink.ErrGeneral},
		"nonsense for details": {fault(connection, quarklinktest.Answer(http.NotFoundHandler())), quarklink.ErrGeneral},
	} {
		t.Run(name, func(t *testing.T) {
			for _, o := range []quarklink.RenewOptions{{}, {NewKey: true}} {
				st := new(store.Mem)
				server, today, c := newRenewal(t, st)
				before, err := c.Enrolment()
				require.NoError(t, err)
				today.now = before.RenewAt.Truncate(time.Second).Add(time.Second)
				test.trouble(server, c, today)
				_, err = c.Renew(t.Context(), o)
				require.ErrorIs(t, err, test.want)
				present, err := c.Enrolment()
				require.NoError(t, err)
				assert.True(t, before.Certificate.Equal(present.Certificate))
				assert.True(t, before.Certificate.Equal(shown(t, c)))

				server.ClearFaults()
				require.NoError(t, server.SetPolicy("batch", quarklinktest.Policy{Lifetime: month}))
				status, err := c.Status(t.Context())
				require.NoError(t, err)
				assert.True(t, status.NeedsRenewal())
				assert.False(t, status.NeedsEnrolment())
				c = newClient(t, st, at(server), today.on)
				after, err := c.Renew(t.Context(), o)
				require.NoError(t, err)
				assert.Equal(t, today.now.Add(month), after.Certificate.NotAfter)
				assert.True(t, after.Certificate.Equal(shown(t, c)))
			}
		})
	}
}

// TestRenewPowerCut cuts power at every write of a renewal, those of the key
// store among them: at each moment one valid enrolment serves with its key, and
// the next Renew ends with one certificate more, or two if the cut came before
// the request was stored.
func TestRenewPowerCut(t *testing.T) {
	for name, o := range map[string]quarklink.RenewOptions{"same key": {}, "new key": {NewKey: true}} {
		t.Run(name, func(t *testing.T) {
			eachCut(t, func(t *testing.T, st store.Creator, cut *cutStore) error {
				server, today, c := newRenewal(t, st)
				before, err := c.Enrolment()
				require.NoError(t, err)
				today.now = before.RenewAt.Truncate(time.Second).Add(time.Second)
				newHub(server, newRoot(t, "new hub"))
				_, err = newClient(t, cut, at(server), today.on).Renew(t.Context(), o)
				if !cut.dead {
					return err
				}
				c = newClient(t, st, at(server), today.on)
				e, err := c.Enrolment()
				require.NoError(t, err)
				assert.True(t, e.Certificate.Equal(shown(t, c)), "the certificate in force is over the device's key")
				assert.Equal(t, e.Certificate.Equal(before.Certificate), e.Hub.Endpoint == before.Hub.Endpoint)
				status, err := c.Status(t.Context())
				require.NoError(t, err)
				assert.True(t, status.HasEnrolment)
				assert.Equal(t, e.Certificate.Equal(before.Certificate), status.NeedsRenewal())
				if status.NeedsRenewal() {
					_, err = c.Renew(t.Context(), o)
					require.NoError(t, err)
				}
				assert.Len(t, server.Certificates(c.DeviceID()), 2, "one certificate more")
				e, err = c.Enrolment()
				require.NoError(t, err)
				assert.Equal(t, "new.example", e.Hub.Endpoint)
				assert.True(t, e.Certificate.Equal(shown(t, c)))
				return nil
			})
		})
	}
}

// TestRenewOptionsChange: a certificate that was issued over one key is put in
// force with it, whatever the next Renew is told; before that the next Renew
// decides.
func TestRenewOptionsChange(t *testing.T) {
	for _, call := range []quarklinktest.Call{quarklinktest.CallReenrol, quarklinktest.CallConnection} {
		for _, o := range []quarklink.RenewOptions{{}, {NewKey: true}} {
			t.Run(fmt.Sprintf("cut at %s, new key %v", call, o.NewKey), func(t *testing.T) {
				st := new(store.Mem)
				server, today, c := newRenewal(t, st)
				before, err := c.Enrolment()
				require.NoError(t, err)
				today.pass(24 * time.Hour) // well before it is due
				require.NoError(t, server.Fault(call, quarklinktest.Refuse(403, "", 0).Times(1)))
				_, err = c.Renew(t.Context(), o)
				require.Error(t, err)
				begun := call == quarklinktest.CallConnection
				assert.Equal(t, begun, payload(t, st, "enrolment")["renewal"] == nil,
					"the request is kept until it is answered")
				status, err := c.Status(t.Context())
				require.NoError(t, err)
				assert.Equal(t, begun, status.NeedsRenewal(), "a renewal that has begun is to be ended")
				after, err := c.Renew(t.Context(), quarklink.RenewOptions{NewKey: !o.NewKey})
				require.NoError(t, err)
				assert.Equal(t, o.NewKey == begun, !sameKey(before, after))
				assert.Len(t, server.Certificates(c.DeviceID()), 2)
				assert.True(t, after.Certificate.Equal(shown(t, c)))
			})
		}
	}
}

// TestRenewalOfAnother: a stored request that renews another certificate than the
// present one is not sent.
func TestRenewalOfAnother(t *testing.T) {
	st := new(store.Mem)
	server, today, c := newRenewal(t, st)
	today.pass(24 * time.Hour)
	var asked bodies
	require.NoError(t, server.Fault(quarklinktest.CallReenrol, answerWith(http.StatusForbidden, "", asked.add)))
	for range 2 {
		_, err := c.Renew(t.Context(), quarklink.RenewOptions{})
		require.Error(t, err)
	}
	require.Len(t, asked.all, 2)
	assert.Equal(t, asked.all[0], asked.all[1], "the same request")
	record := payload(t, st, "enrolment")
	record["renewal"].(map[string]any)["of"] = strings.Repeat("ab", 32)
	text, err := json.Marshal(record)
	require.NoError(t, err)
	require.NoError(t, st.Put(t.Context(), "enrolment", store.EncodeRecord("enrolment", 1, text)))
	_, err = c.Renew(t.Context(), quarklink.RenewOptions{})
	require.Error(t, err)
	assert.NotEqual(t, asked.all[0], asked.all[2])
}

// TestRenewalIsForgotten: ForgetEnrolment leaves nothing of a renewal under way.
func TestRenewalIsForgotten(t *testing.T) {
	st := new(store.Mem)
	server, _, c := newRenewal(t, st)
	require.NoError(t, server.Fault(quarklinktest.CallReenrol, quarklinktest.Refuse(403, "", 0)))
	_, err := c.Renew(t.Context(), quarklink.RenewOptions{NewKey: true})
	require.Error(t, err)
	_, err = st.Get(t.Context(), "key-dsk-next")
	require.NoError(t, err)
	require.NoError(t, c.ForgetEnrolment(t.Context()))
	_, err = st.Get(t.Context(), "key-dsk-next")
	require.ErrorContains(t, err, "not exist")
	_, err = c.Enrol(t.Context())
	require.NoError(t, err)
}

// TestAllowedAgain: after a revocation the device enrols over another key, if its
// key store can replace one, and over the same one if it cannot; once.
func TestAllowedAgain(t *testing.T) {
	for _, rotates := range []bool{true, false} {
		t.Run(fmt.Sprintf("rotates %v", rotates), func(t *testing.T) {
			server := newServer(t, quarklinktest.Options{InMemory: true})
			keys := newKeys(t, new(store.Mem))
			c := newClient(t, new(store.Mem), at(server), func(cfg *quarklink.Config) {
				cfg.KeyStore = keys
				if !rotates {
					cfg.KeyStore = struct{ keystore.Generator }{keys}
				}
			})
			member(t, server, c, quarklinktest.Batch{})
			first, err := c.Enrol(t.Context())
			require.NoError(t, err)
			require.NoError(t, server.Revoke(c.DeviceID()))
			status, err := c.Status(t.Context())
			require.NoError(t, err)
			require.Equal(t, quarklink.StateRevoked, status.State)
			assert.False(t, status.NeedsRenewal())
			require.NoError(t, server.AllowEnrolment(c.DeviceID()))
			// The revoked certificate does not serve on while the details are awaited.
			require.NoError(t, server.Fault(quarklinktest.CallConnection, quarklinktest.Refuse(403, "", 0).Times(1)))
			_, err = c.Enrol(t.Context())
			require.Error(t, err)
			present, err := c.Enrolment()
			require.NoError(t, err)
			assert.False(t, first.Certificate.Equal(present.Certificate))
			second, err := c.Enrol(t.Context())
			require.NoError(t, err)
			assert.Equal(t, !rotates, sameKey(first, second))
			assert.True(t, second.Certificate.Equal(shown(t, c)))
			third, err := c.Enrol(t.Context())
			require.NoError(t, err)
			assert.True(t, second.Certificate.Equal(third.Certificate), "the key is replaced once")
		})
	}
}

// TestAllowedAgainPowerCut cuts power at every write of the enrolment that
// follows a revocation: it ends with one certificate.
func TestAllowedAgainPowerCut(t *testing.T) {
	eachCut(t, func(t *testing.T, st store.Creator, cut *cutStore) error {
		server, c := newServer(t, quarklinktest.Options{InMemory: true}), (*quarklink.Client)(nil)
		c = newClient(t, st, at(server))
		member(t, server, c, quarklinktest.Batch{})
		_, err := c.Enrol(t.Context())
		require.NoError(t, err)
		require.NoError(t, server.Revoke(c.DeviceID()))
		_, err = c.Status(t.Context())
		require.NoError(t, err)
		require.NoError(t, server.AllowEnrolment(c.DeviceID()))
		_, err = newClient(t, cut, at(server)).Enrol(t.Context())
		if !cut.dead {
			return err
		}
		c = newClient(t, st, at(server))
		_, err = c.Enrol(t.Context())
		require.NoError(t, err)
		assert.Len(t, server.Certificates(c.DeviceID()), 2)
		return nil
	})
}

// TestRenewAtSpreads: devices whose certificates were issued together spread over
// a third of the lifetime, around two thirds of it. Their DeviceIDs are fixed, so
// that the outcome is the same each time. See also TestFleetOfAYear.
func TestRenewAtSpreads(t *testing.T) {
	issued := newCalendar().now
	const devices = 10_000
	days := map[int]int{}
	sum := 0.0
	for i := range devices {
		digest := sha256.Sum256(fmt.Append(nil, "device ", i))
		at := quarklink.RenewAt(quarklink.DeviceID(hex.EncodeToString(digest[:])), issued, issued.Add(month))
		share := float64(at.Sub(issued)) / float64(month)
		require.InDelta(t, 2.0/3, share, 1.0/6)
		days[int(share*30)]++
		sum += share
	}
	assert.InDelta(t, 2.0/3, sum/devices, 0.002)
	require.Len(t, days, 10, "days with renewals: a third of thirty")
	for day, n := range days {
		assert.InDelta(t, devices/10, n, devices/100, "renewals on day %d", day)
	}
}

// TestRenewAtOfAnEnrolment: RenewAt of an Enrolment is the function that
// TestRenewAtSpreads measures, of this device and this certificate.
func TestRenewAtOfAnEnrolment(t *testing.T) {
	_, _, c := newRenewal(t, new(store.Mem))
	e, err := c.Enrolment()
	require.NoError(t, err)
	want := quarklink.RenewAt(c.DeviceID(), e.Certificate.NotBefore, e.Certificate.NotAfter)
	assert.Equal(t, want, e.RenewAt)
	again, err := c.Enrolment()
	require.NoError(t, err)
	assert.Equal(t, want, again.RenewAt, "it is the same each time")
}

func TestRenewShareIsChecked(t *testing.T) {
	for share, ok := range map[float64]bool{0: true, 0.1: true, 0.99: true, 1: false, -0.1: false, math.NaN(): false} {
		_, err := quarklink.New(t.Context(), quarklink.Config{KeyStore: newKeys(t, new(store.Mem)), RenewShare: share})
		if ok {
			assert.NoError(t, err, "%v", share)
		} else {
			assert.ErrorIs(t, err, quarklink.ErrInvalidParameter, "%v", share)
		}
	}
}
