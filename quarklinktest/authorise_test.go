package quarklinktest_test

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"testing"
	"time"

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
		if err := s.AddBatch(quarklinktest.Batch{Name: "b"}); err != nil {
			t.Fatal(err)
		}
		d := newDevice(t, s, "b")
		stranger := newDevice(t, s, "")
		temporary := d.temporary()
		var device *tls.Certificate
		if state != "not enrolled" {
			device = d.enrol()
		}
		if state == "revoked" {
			if err := s.Revoke(d.id); err != nil {
				t.Fatal(err)
			}
		}
		// A certificate over the stranger's key with everything else copied.
		parsed, err := x509.ParseCertificate(temporary.Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		issuer := *parsed
		issuer.RawSubject, issuer.PublicKey = parsed.RawIssuer, stranger.esk.Public()
		copied, err := x509.CreateCertificate(rand.Reader, parsed, &issuer, stranger.esk.Public(), stranger.esk)
		if err != nil {
			t.Fatal(err)
		}
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
			{"GET", pathCACerts, map[string]want{"none": ok, "identity": ok, "temporary": ok, "device": ok, "stranger": ok, "copied": ok, "DPK": ok}, nil},
			{"POST", pathTemporary, map[string]want{"identity": badCSR, "temporary": plain, "device": plain}, nil},
			{"POST", pathEnrol, map[string]want{"identity": plain, "temporary": badCSR, "device": plain}, nil},
			{"POST", pathReenrol, map[string]want{"identity": plain, "temporary": plain, "device": badCSR}, nil},
			{"GET", pathConnection, map[string]want{"identity": plain, "temporary": ok, "device": ok}, map[string]want{"temporary": notYet}},
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
				if got != expected {
					t.Errorf("%s, %s %s with %s: %v, want %v: %s", state, call.method, call.path, name, got, expected, r.body)
				}
			}
		}
	}
}

// A certificate counts as long as it is valid by the Server's clock.
func TestCertificatesExpire(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	s := newServer(t, quarklinktest.Options{InMemory: true, Now: func() time.Time { return now }})
	if err := s.AddBatch(quarklinktest.Batch{Name: "b", Policy: quarklinktest.Policy{Lifetime: 48 * time.Hour}}); err != nil {
		t.Fatal(err)
	}
	d := newDevice(t, s, "b")
	temporary, device := d.temporary(), d.enrol()
	byTemporary, byDevice := d.client(temporary), d.client(device)
	connect := func(c *http.Client) int { return d.get(c, pathConnection).status }

	now = now.Add(23 * time.Hour)
	if a, b := connect(byTemporary), connect(byDevice); a != 200 || b != 200 {
		t.Errorf("after 23 hours: %d by the temporary certificate and %d by the device certificate", a, b)
	}
	now = now.Add(2 * time.Hour)
	if a, b := connect(byTemporary), connect(byDevice); a != 403 || b != 200 {
		t.Errorf("after 25 hours: %d by the temporary certificate and %d by the device certificate", a, b)
	}
	if d.status().CertificateExpired {
		t.Error("expired after 25 hours of 48")
	}
	now = now.Add(24 * time.Hour)
	if b := connect(byDevice); b != 403 {
		t.Errorf("after 49 hours: %d by the device certificate", b)
	}
	if st := d.status(); st.State != "enrolled" || !st.CertificateExpired {
		t.Errorf("after 49 hours: %+v", st)
	}
	again := d.enrol()
	if bytes.Equal(again.Certificate[0], device.Certificate[0]) {
		t.Error("the expired certificate was issued again")
	}
	if st := d.status(); st.State != "enrolled" || st.CertificateExpired || connect(d.client(again)) != 200 {
		t.Errorf("enrolled again: %+v", st)
	}
}
