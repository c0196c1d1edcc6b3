package quarklinktest_test

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/quarklinktest"
)

// Every call, with every certificate that a peer may show: what protocol.md's
// table says and nothing more.
func TestWhoMayCall(t *testing.T) {
	type want struct {
		status  int
		problem string
	}
	var (
		ok      = want{200, ""}
		created = want{204, ""}
		plain   = want{403, ""}
		unknown = want{404, "device-unknown"}
		revoked = want{403, "device-revoked"}
		none404 = want{404, "no-firmware"}
		notYet  = want{409, "not-enrolled"}
		badCSR  = want{400, "bad-csr"}
	)
	for _, state := range []string{"not enrolled", "enrolled", "revoked"} {
		s := newServer(t, quarklinktest.Options{InMemory: true})
		require.NoError(t, s.AddBatch(quarklinktest.Batch{Name: "b"}))
		d := newDevice(t, s, "b")
		stranger := newDevice(t, s, "")
		temporary := d.temporary()
		var device *tls.Certificate
		if state != "not enrolled" {
			device = d.enrol()
		}
		if state == "revoked" {
			require.NoError(t, s.Revoke(d.id))
		}
		// A certificate over the stranger's key with everything else copied.
		parsed, err := x509.ParseCertificate(temporary.Certificate[0])
		require.NoError(t, err)
		issuer := *parsed
		issuer.RawSubject, issuer.PublicKey = parsed.RawIssuer, stranger.esk.Public()
		copied, err := x509.CreateCertificate(rand.Reader, parsed, &issuer, stranger.esk.Public(), stranger.esk)
		require.NoError(t, err)
		shown := map[string]*tls.Certificate{
			"none":      nil,
			"identity":  d.identity,
			"temporary": temporary,
			"device":    device,
			"stranger":  stranger.identity,
			"copied":    {Certificate: [][]byte{copied}, PrivateKey: stranger.esk},
			"DPK":       selfSigned(t, d.dsk, string(d.id)),
		}
		calls := []struct {
			method, path string
			by           map[string]want // enrolled
			notEnrolled  map[string]want // where it differs
		}{
			{"GET", pathCACerts, map[string]want{"none": ok, "identity": ok, "temporary": ok, "device": ok,
				"stranger": ok, "copied": ok, "DPK": ok}, nil},
			{"POST", pathTemporary, map[string]want{"identity": badCSR, "temporary": plain, "device": plain}, nil},
			{"POST", pathEnrol, map[string]want{"identity": plain, "temporary": badCSR, "device": plain}, nil},
			{"POST", pathReenrol, map[string]want{"identity": plain, "temporary": plain, "device": badCSR}, nil},
			{"GET", pathConnection, map[string]want{"identity": plain, "temporary": ok, "device": ok},
				map[string]want{"temporary": notYet}},
			{"GET", pathStatus, map[string]want{"identity": ok, "temporary": plain, "device": plain}, nil},
			{"GET", pathFirmware, map[string]want{"identity": none404, "temporary": plain, "device": plain}, nil},
			{"POST", pathOutcome, map[string]want{"identity": created, "temporary": plain, "device": plain}, nil},
			{"GET", "/.well-known/est/csrattrs", nil, nil},
			{"DELETE", pathStatus, nil, nil},
		}
		for name, cert := range shown {
			if name == "device" && cert == nil {
				continue
			}
			c := d.client(cert)
			for _, call := range calls {
				var body []byte
				contentType := "application/pkcs10"
				if call.path == pathOutcome {
					body = fmt.Appendf(nil, `{"sha256":"%064x","outcome":"installed"}`, 1)
					contentType = "application/json"
				}
				expected, listed := call.by[name]
				if w, differs := call.notEnrolled[name]; differs && state == "not enrolled" {
					expected = w
				}
				switch {
				case call.by == nil:
					expected = want{404, ""}
				case name == "none" && !listed:
					expected = plain
				case !listed:
					expected = unknown
				}
				if state == "revoked" && call.by != nil && (name == "identity" || name == "temporary" || name == "device") {
					expected = revoked
					if call.path == pathStatus {
						expected = map[bool]want{true: ok, false: plain}[name == "identity"]
					}
				}
				r := d.do(c, call.method, call.path, body, "Content-Type", contentType)
				got := want{r.status, ""}
				if r.status >= 300 {
					got.problem = r.problem(t)
				}
				assert.Equal(t, expected, got, "%v, %v, %v, %v, %v", state, call.method, call.path, name, r.body)
			}
		}
	}
}

// A certificate counts as long as it is valid by the Server's clock.
func TestCertificatesExpire(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	s := newServer(t, quarklinktest.Options{InMemory: true, Now: func() time.Time { return now }})
	require.NoError(t, s.AddBatch(quarklinktest.Batch{Name: "b", Policy: quarklinktest.Policy{Lifetime: 48 * time.Hour}}))
	d := newDevice(t, s, "b")
	temporary, device := d.temporary(), d.enrol()
	byTemporary, byDevice := d.client(temporary), d.client(device)
	connect := func(c *http.Client) int { return d.get(c, pathConnection).status }

	now = now.Add(23 * time.Hour)
	a, b := connect(byTemporary), connect(byDevice)
	assert.Equal(t, 200, a, "after 23 hours")
	assert.Equal(t, 200, b, "after 23 hours")
	now = now.Add(2 * time.Hour)
	a, b = connect(byTemporary), connect(byDevice)
	assert.Equal(t, 403, a, "after 25 hours")
	assert.Equal(t, 200, b, "after 25 hours")
	assert.False(t, d.status().CertificateExpired, "expired after 25 hours of 48")
	now = now.Add(24 * time.Hour)
	assert.Equal(t, 403, connect(byDevice), "after 49 hours")
	st := d.status()
	assert.Equal(t, "enrolled", st.State, "after 49 hours")
	assert.True(t, st.CertificateExpired, "after 49 hours")
	again := d.enrol()
	assert.NotEqual(t, device.Certificate[0], again.Certificate[0],
		"the expired certificate was issued again")
	st = d.status()
	assert.Equal(t, "enrolled", st.State, "enrolled again")
	assert.False(t, st.CertificateExpired, "enrolled again")
	assert.Equal(t, 200, connect(d.client(again)), "enrolled again")
}
