package quarklink_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/quarklinktest"
	"github.com/quarklink-go/quarklink/store"
)

// enrolSteps are the calls of an enrolment, in order.
var enrolSteps = []quarklinktest.Call{quarklinktest.CallTemporary, quarklinktest.CallCACerts,
	quarklinktest.CallEnrol, quarklinktest.CallConnection}

// TestEnrolPowerCut cuts power at every write of an enrolment. The next start
// carries on, and the instance has issued exactly one device certificate.
func TestEnrolPowerCut(t *testing.T) {
	eachCut(t, func(t *testing.T, st store.Creator, cut *cutStore) error {
		server := newServer(t, quarklinktest.Options{InMemory: true})
		require.NoError(t, server.AddBatch(quarklinktest.Batch{Name: "batch"}))
		enrol := func(st store.Creator) (quarklink.DeviceID, error) {
			cfg := server.Config(newKeys(t, st))
			cfg.Store = st
			c, err := quarklink.New(t.Context(), cfg)
			if err != nil {
				return "", err
			}
			defer c.Close()
			require.NoError(t, server.AddDevices("batch", c.DeviceID()))
			_, err = c.Enrol(t.Context())
			return c.DeviceID(), err
		}
		_, err := enrol(cut)
		if !cut.dead {
			return err
		}
		if !errors.Is(err, errCut) {
			return fmt.Errorf("the cut shows as %w", err)
		}
		id, err := enrol(st)
		if err != nil {
			return err
		}
		if n := len(server.Certificates(id)); n != 1 {
			return fmt.Errorf("%d device certificates were issued", n)
		}
		if open, err := quarklink.New(t.Context(), quarklink.Config{KeyStore: newKeys(t, st), Store: st}); err != nil {
			return err
		} else if e, err := open.Enrolment(); err != nil || !e.Certificate.Equal(server.Certificates(id)[0]) {
			return fmt.Errorf("after a restart: %w", err)
		}
		return nil
	})
}

// TestEnrolLost loses one request or one answer of each step: the client asks
// again, and still there is exactly one device certificate.
func TestEnrolLost(t *testing.T) {
	faults := map[string]quarklinktest.Fault{
		"request lost": quarklinktest.LoseRequest(), "answer lost": quarklinktest.LoseAnswer(),
		"answer cut off": quarklinktest.CutOff(10),
		"unavailable":    quarklinktest.Refuse(503, quarklinktest.ProblemUnavailable, 7*time.Second),
		"hold":           quarklinktest.Hold(5 * time.Second),
	}
	wait := map[string]time.Duration{"unavailable": 7 * time.Second, "hold": 5 * time.Second}
	for name, fault := range faults {
		for _, step := range enrolSteps {
			t.Run(fmt.Sprintf("%s/%s", step, name), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					server, c := newMember(t, quarklinktest.Batch{})
					server.Fault(step, fault.Times(1))
					start := time.Now()
					_, err := c.Enrol(t.Context())
					require.NoError(t, err)
					assert.Len(t, server.Certificates(c.DeviceID()), 1)
					assert.Equal(t, 2, server.Stats().Calls[step], "requests")
					assert.GreaterOrEqual(t, time.Since(start), wait[name], "it asks again no sooner than told")
				})
			})
		}
	}
}

// TestEnrolRefuses meets a hostile or broken instance at each step. Whatever
// was enrolled before stays.
func TestEnrolRefuses(t *testing.T) {
	page := func(status int, kind, body string) quarklinktest.Fault {
		return quarklinktest.Answer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", kind)
			w.WriteHeader(status)
			fmt.Fprint(w, body)
		}))
	}
	redirect := quarklinktest.Answer(http.RedirectHandler("https://elsewhere.example/", http.StatusTemporaryRedirect))
	for _, test := range []struct {
		name   string
		step   quarklinktest.Call
		fault  quarklinktest.Fault
		want   error
		status int // HTTPStatus of the error
	}{
		{"revoked", quarklinktest.CallTemporary,
			quarklinktest.Refuse(403, quarklinktest.ProblemDeviceRevoked, 0), quarklink.ErrDeviceRevoked, 403},
		{"unknown", quarklinktest.CallTemporary,
			quarklinktest.Refuse(404, quarklinktest.ProblemDeviceUnknown, 0), quarklink.ErrDeviceDoesNotExist, 404},
		{"CSR refused", quarklinktest.CallEnrol,
			quarklinktest.Refuse(400, quarklinktest.ProblemBadCSR, 0), quarklink.ErrGeneral, 400},
		{"Azure", quarklinktest.CallConnection,
			quarklinktest.Refuse(500, quarklinktest.ProblemAzureProvisioning, 0), quarklink.ErrAzureProvisioning, 500},
		{"not enrolled", quarklinktest.CallConnection,
			quarklinktest.Refuse(404, quarklinktest.ProblemNotEnrolled, 0), quarklink.ErrValueNotAvailable, 404},
		{"always unavailable", quarklinktest.CallEnrol,
			quarklinktest.Refuse(503, quarklinktest.ProblemUnavailable, 0), quarklink.ErrCommunication, 503},
		{"never approved", quarklinktest.CallEnrol,
			quarklinktest.Hold(time.Second), quarklink.ErrValueNotAvailable, 202},
		{"no page", quarklinktest.CallEnrol, page(404, "text/html", "<h1>Not found</h1>"), quarklink.ErrGeneral, 404},
		{"login page", quarklinktest.CallEnrol, page(401, "text/html", "who are you?"), quarklink.ErrGeneral, 401},
		{"another key", quarklinktest.CallEnrol, quarklinktest.WrongKey(), quarklink.ErrGeneral, 0},
		{"another key, temporary", quarklinktest.CallTemporary, quarklinktest.WrongKey(), quarklink.ErrGeneral, 0},
		{"two certificates", quarklinktest.CallEnrol, quarklinktest.TwoCertificates(), quarklink.ErrGeneral, 0},
		{"foreign issuer", quarklinktest.CallEnrol, quarklinktest.ForeignIssuer(), quarklink.ErrCACerts, 0},
		{"foreign cacerts", quarklinktest.CallCACerts, quarklinktest.ForeignIssuer(), quarklink.ErrCACerts, 0},
		{"cacerts of another type", quarklinktest.CallCACerts,
			page(200, "text/plain", "hello"), quarklink.ErrCACerts, 0},
		{"no cacerts", quarklinktest.CallCACerts, page(204, "text/plain", ""), quarklink.ErrCACerts, 204},
		{"garbage for a certificate", quarklinktest.CallEnrol,
			page(200, "application/pkcs7-mime", "MII="), quarklink.ErrGeneral, 0},
		{"damaged certificate", quarklinktest.CallEnrol, quarklinktest.Damage(2), quarklink.ErrGeneral, 0},
		{"redirect to another host", quarklinktest.CallEnrol, redirect, quarklink.ErrCommunication, 0},
		{"connection of another type", quarklinktest.CallConnection,
			page(200, "application/json", `{"type":"carrier_pigeon","endpoint":"x","port":1,"rootCA":""}`),
			quarklink.ErrGeneral, 0},
		{"connection without a root", quarklinktest.CallConnection,
			page(200, "application/json", `{"type":"iot_hub","endpoint":"x","port":1,"rootCA":"none"}`),
			quarklink.ErrGeneral, 0},
		{"connection to a strange host", quarklinktest.CallConnection,
			page(200, "application/json", `{"type":"iot_hub","endpoint":"a b/c","port":1,"rootCA":""}`),
			quarklink.ErrGeneral, 0},
		{"connection to port 0", quarklinktest.CallConnection,
			page(200, "application/json", `{"type":"iot_hub","endpoint":"x","port":0,"rootCA":""}`),
			quarklink.ErrGeneral, 0},
		{"database without a token", quarklinktest.CallConnection,
			page(200, "application/json", `{"type":"database_direct","endpoint":"x","port":1,"rootCA":"`+
				pemOf(newRoot(t, "db"))+`","uri":"/x"}`),
			quarklink.ErrGeneral, 0},
		{"database elsewhere", quarklinktest.CallConnection,
			page(200, "application/json", `{"type":"database_direct","endpoint":"x","port":1,"rootCA":"`+
				pemOf(newRoot(t, "db"))+`","uri":"@elsewhere/","token":"eyJ"}`),
			quarklink.ErrGeneral, 0},
		{"revoked, and told so as if it might pass", quarklinktest.CallEnrol,
			quarklinktest.Refuse(503, quarklinktest.ProblemDeviceRevoked, 0), quarklink.ErrDeviceRevoked, 503},
		{"connection that is no JSON", quarklinktest.CallConnection,
			page(200, "application/json", `{"type":`), quarklink.ErrGeneral, 0},
		{"endless connection", quarklinktest.CallConnection,
			page(200, "application/json", strings.Repeat(" ", 70<<10)), quarklink.ErrGeneral, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server, c := newMember(t, quarklinktest.Batch{})
				server.Fault(test.step, test.fault)
				_, err := c.Enrol(t.Context())
				var e *quarklink.Error
				require.ErrorIs(t, err, test.want)
				require.ErrorAs(t, err, &e)
				onlyCode(t, err)
				assert.Equal(t, test.status, e.HTTPStatus)
				assert.LessOrEqual(t, len(err.Error()), 1000, "length of an error for people")
				assert.NotRegexp(t, "[\\n\\x00]", err.Error())
				_, err = c.Enrolment()
				assert.ErrorIs(t, err, quarklink.ErrNoEnrolment, "enrolled all the same")
				server.ClearFaults()
				good, err := c.Enrol(t.Context())
				if err != nil {
					t.Fatalf("with a good instance again: %v", err)
				}
				server.Fault(test.step, test.fault)
				if _, err := c.Enrol(t.Context()); err == nil {
					t.Fatal("no error the second time")
				}
				kept, err := c.Enrolment()
				require.NoError(t, err)
				assert.Equal(t, good.Certificate.Raw, kept.Certificate.Raw)
				require.Len(t, kept.CACerts, len(good.CACerts))
				for i, cert := range good.CACerts {
					assert.Equal(t, cert.Raw, kept.CACerts[i].Raw, "cacerts %d", i)
				}
				assert.Len(t, server.Certificates(c.DeviceID()), 1)
			})
		})
	}
}

// TestCancel ends an enrolment at each of its steps.
func TestCancel(t *testing.T) {
	for _, step := range enrolSteps {
		t.Run(string(step), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server, c := newMember(t, quarklinktest.Batch{})
				server.Fault(step, quarklinktest.Delay(time.Hour).Times(1))
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				start := time.Now()
				_, err := c.Enrol(ctx)
				assert.ErrorIs(t, err, context.DeadlineExceeded)
				assert.NotErrorIs(t, err, quarklink.ErrCommunication)
				assert.LessOrEqual(t, time.Since(start), time.Minute+time.Second)
				_, err = c.Enrol(t.Context())
				assert.NoError(t, err, "afterwards")
				assert.Len(t, server.Certificates(c.DeviceID()), 1)
			})
		})
	}
}
