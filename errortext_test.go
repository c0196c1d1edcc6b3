package quarklink_test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/quarklinktest"
	"github.com/quarklink-go/quarklink/store"
)

// TestProblems: what an instance names as the reason is found from outside.
func TestProblems(t *testing.T) {
	for problem, code := range map[quarklink.Problem]error{
		quarklink.ProblemDeviceUnknown:     quarklink.ErrDeviceDoesNotExist,
		quarklink.ProblemDeviceRevoked:     quarklink.ErrDeviceRevoked,
		quarklink.ProblemNotEnrolled:       quarklink.ErrValueNotAvailable,
		quarklink.ProblemBadCSR:            quarklink.ErrGeneral,
		quarklink.ProblemBadToken:          quarklink.ErrGeneral,
		quarklink.ProblemAzureProvisioning: quarklink.ErrAzureProvisioning,
		quarklink.ProblemNoFirmware:        quarklink.ErrNoUpdate,
		quarklink.ProblemUnavailable:       quarklink.ErrCommunication,
	} {
		t.Run(string(problem), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server, c := newMember(t, quarklinktest.Batch{})
				server.Fault(quarklinktest.CallTemporary, quarklinktest.Refuse(400, string(problem), 0))
				_, err := c.Enrol(t.Context())
				require.ErrorIs(t, err, problem)
				require.ErrorIs(t, err, code)
				onlyCode(t, err)
				var named quarklink.Problem
				require.ErrorAs(t, err, &named)
				assert.Equal(t, problem, named)
				var e *quarklink.Error
				require.ErrorAs(t, err, &e)
				assert.Equal(t, problem, e.Problem)
				for _, other := range []quarklink.Problem{quarklink.ProblemBadCSR, quarklink.ProblemDeviceRevoked} {
					assert.Equal(t, other == problem, errors.Is(err, other))
				}
			})
		})
	}
}

// TestForeignProblems: a type of somebody else is told as it is, and none of
// ours hides in it.
func TestForeignProblems(t *testing.T) {
	for uri, want := range map[string]quarklink.Problem{
		"https://example.com/probs/device-revoked": "https://example.com/probs/device-revoked",
		"/probs/x":                            "/probs/x",
		"device-revoked":                      "",
		"about:blank":                         "",
		"a b":                                 "",
		"urn:quarklink:new":                   "urn:quarklink:new",
		"https://" + strings.Repeat("x", 300): "",
	} {
		server, c := newMember(t, quarklinktest.Batch{})
		server.Fault(quarklinktest.CallStatus, quarklinktest.Answer(http.HandlerFunc(
			func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/problem+json")
				w.WriteHeader(http.StatusForbidden)
				fmt.Fprintf(w, `{"type":%q}`, uri)
			})))
		_, err := c.Status(t.Context())
		var e *quarklink.Error
		require.ErrorAs(t, err, &e)
		assert.Equal(t, want, e.Problem)
		assert.Equal(t, 403, e.HTTPStatus)
		require.ErrorIs(t, err, quarklink.ErrGeneral)
	}
}

// TestDecidedIsNotRetried: what only an operator changes is asked once, whatever
// the status says.
func TestDecidedIsNotRetried(t *testing.T) {
	for _, problem := range []quarklink.Problem{quarklink.ProblemDeviceUnknown, quarklink.ProblemDeviceRevoked} {
		for _, status := range []int{202, 408, 425, 429, 500, 502, 503, 504} {
			synctest.Test(t, func(t *testing.T) {
				server, c := newMember(t, quarklinktest.Batch{})
				server.Fault(quarklinktest.CallStatus, quarklinktest.Refuse(status, string(problem), 0))
				_, err := c.Status(t.Context())
				require.ErrorIs(t, err, problem)
				assert.Equal(t, 1, server.Stats().Calls[quarklinktest.CallStatus], "requests after %s with %d",
					problem, status)
			})
		}
	}
}

// TestTexts reads errors as their reader does: each says what failed and why,
// once.
func TestTexts(t *testing.T) {
	server, c := newMember(t, quarklinktest.Batch{})
	says := func(want string, call func() error) {
		t.Helper()
		require.EqualError(t, call(), want)
		server.ClearFaults()
	}
	status := func() error { _, err := c.Status(t.Context()); return err }
	enrol := func() error { _, err := c.Enrol(t.Context()); return err }

	server.Fault(quarklinktest.CallStatus, quarklinktest.Refuse(400, "", 0))
	says(`quarklink: status: ask for the status: HTTP 400 Bad Request: "Bad Request": "refused on purpose"`, status)
	server.Fault(quarklinktest.CallStatus, quarklinktest.Refuse(404, quarklinktest.ProblemDeviceUnknown, 0))
	says(`quarklink: status: the instance does not know the device (30): ask for the status: HTTP 404 Not Found `+
		`(urn:quarklink:error:device-unknown): "Not Found": "refused on purpose"`, status)
	server.Fault(quarklinktest.CallCACerts, quarklinktest.ForeignIssuer())
	says(`quarklink: enrol: certificate chain not acceptable (-3): device certificate: `+
		`certificate was not issued under `+
		`the CA certificates: its issuer is "CN=quarklinktest issuing", and there are 1: `+
		`x509: certificate signed by unknown authority`, enrol)
	server.Fault(quarklinktest.CallTemporary, quarklinktest.WrongKey())
	says("quarklink: enrol: temporary certificate: est: simpleenroll: certificate is for another key than the request",
		enrol)
	server.Fault(quarklinktest.CallStatus, quarklinktest.Answer(http.HandlerFunc(
		func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusSwitchingProtocols)
		})))
	says("quarklink: status: ask for the status: HTTP 101 Switching Protocols", status)

	_, err := newClient(t, new(store.Mem)).Status(t.Context())
	require.EqualError(t, err, "quarklink: status: "+quarklink.CodeNotInitialised.String()+
		" (-7): provision the device or call SetInstance")
}

// TestProvisionWithoutPort: a port that is not there is the caller's mistake.
func TestProvisionWithoutPort(t *testing.T) {
	_, err := newClient(t, new(store.Mem)).Provision(t.Context(), nil, quarklink.ProvisionOptions{})
	require.ErrorIs(t, err, quarklink.ErrInvalidParameter)
}
