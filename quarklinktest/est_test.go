package quarklinktest_test

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quarklink-go/quarklink/quarklinktest"
)

func TestIssuedCertificates(t *testing.T) {
	s := newServer(t, quarklinktest.Options{InMemory: true})
	policy := quarklinktest.Policy{Lifetime: 90 * 24 * time.Hour}
	if err := s.AddBatch(quarklinktest.Batch{Name: "b", Policy: policy}); err != nil {
		t.Fatal(err)
	}
	d := newDevice(t, s, "b")
	cacerts := d.get(d.client(nil), pathCACerts).certs(t)
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	for _, cert := range cacerts {
		if cert.CheckSignatureFrom(cert) == nil {
			roots.AddCert(cert)
		} else {
			intermediates.AddCert(cert)
		}
		if cert.Equal(s.Instance().Root) {
			t.Error("cacerts holds the instance's own root")
		}
	}
	verify := func(cert *x509.Certificate) error {
		_, err := cert.Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates,
			KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
		return err
	}

	temporary, err := x509.ParseCertificate(d.temporary().Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	if verify(temporary) == nil {
		t.Error("cacerts vouches for the temporary certificate")
	}
	if life := temporary.NotAfter.Sub(temporary.NotBefore); life > 24*time.Hour {
		t.Errorf("the temporary certificate lives %v", life)
	}
	device, err := x509.ParseCertificate(d.enrol().Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := verify(device); err != nil {
		t.Error(err)
	}
	if !d.dsk.PublicKey.Equal(device.PublicKey) || device.IsCA {
		t.Error("not a certificate over the device key")
	}
	for name, cert := range map[string]*x509.Certificate{"temporary": temporary, "device": device} {
		if cert.Subject.CommonName != string(d.id) {
			t.Errorf("the %s certificate is for %q", name, cert.Subject.CommonName)
		}
		if ago := time.Since(cert.NotBefore); ago < 5*time.Minute || ago > 6*time.Minute {
			t.Errorf("the %s certificate began %v ago", name, ago)
		}
	}
	if ahead := time.Until(device.NotAfter); ahead < policy.Lifetime-time.Minute || ahead > policy.Lifetime {
		t.Errorf("the device certificate has %v left, the policy says %v", ahead, policy.Lifetime)
	}
}

// The same bytes give the same certificate, however often and however much at
// once they come; others give another.
func TestSameCSRSameCertificate(t *testing.T) {
	s := newServer(t, quarklinktest.Options{InMemory: true})
	if err := s.AddBatch(quarklinktest.Batch{Name: "b"}); err != nil {
		t.Fatal(err)
	}
	d := newDevice(t, s, "b")
	temporary, csr := d.temporary(), d.csr(d.dsk)
	var wg sync.WaitGroup
	got := make([]*x509.Certificate, 20)
	for i := range got {
		wg.Go(func() {
			c := d.client(temporary)
			got[i] = d.post(c, pathEnrol, csr).certs(t)[0]
			c.CloseIdleConnections()
		})
	}
	wg.Wait()
	for _, cert := range got {
		if !cert.Equal(got[0]) {
			t.Fatal("two certificates for one CSR")
		}
	}
	c := d.client(temporary)
	other := d.post(c, pathEnrol, d.csr(d.dsk)).certs(t)[0]
	if other.Equal(got[0]) {
		t.Error("one certificate for two CSRs")
	}
	same := func() bool { return d.post(c, pathEnrol, csr).certs(t)[0].Equal(got[0]) }
	if !same() {
		t.Error("the first CSR is forgotten")
	}
	neighbour := newDevice(t, s, "b")
	if neighbour.post(neighbour.client(neighbour.temporary()), pathEnrol, csr).certs(t)[0].Equal(got[0]) {
		t.Error("another device was given this one's certificate")
	}
	if err := s.Expire(d.id); err != nil {
		t.Fatal(err)
	}
	if same() {
		t.Error("the expired certificate was issued again")
	}
	if n := len(s.Certificates(d.id)); n != 3 {
		t.Errorf("%d certificates, want 3", n)
	}
	if all := s.Certificates(d.id); !all[0].Equal(got[0]) || !all[1].Equal(other) {
		t.Error("the certificates are not in the order of their issue")
	}
}

func TestBadCSR(t *testing.T) {
	s := newServer(t, quarklinktest.Options{InMemory: true})
	if err := s.AddBatch(quarklinktest.Batch{Name: "b"}); err != nil {
		t.Fatal(err)
	}
	d := newDevice(t, s, "b")
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	good := d.csr(d.dsk)
	flipped := bytes.Clone(good)
	flipped[len(flipped)-1] ^= 1
	encode := base64.StdEncoding.EncodeToString
	for _, test := range []struct {
		name, contentType, body string
		status                  int
		problem                 string
	}{
		{"not a CSR's type", "application/pkcs7-mime", encode(good), 415, ""},
		{"no type", "", encode(good), 415, ""},
		{"DER", "application/pkcs10", string(good), 400, "bad-csr"},
		{"padding in the middle", "application/pkcs10", "MII=" + encode(good), 400, "bad-csr"},
		{"wrong signature", "application/pkcs10", encode(flipped), 400, "bad-csr"},
		{"trailing byte", "application/pkcs10", encode(append(bytes.Clone(good), 0)), 400, "bad-csr"},
		{"half", "application/pkcs10", encode(good[:len(good)/2]), 400, "bad-csr"},
		{"certificate", "application/pkcs10", encode(d.identity.Certificate[0]), 400, "bad-csr"},
		{"empty", "application/pkcs10", "", 400, "bad-csr"},
		{"RSA-1024", "application/pkcs10", encode(d.csr(weak)), 400, "bad-csr"},
		{"64 KiB", "application/pkcs10", encode(good) + strings.Repeat("\n", 64<<10), 413, ""},
		{"every kind of white space", "application/pkcs10", " " + strings.ReplaceAll(encode(good), "A", "\r\n\tA "), 200, ""},
		{"a parameter", "application/pkcs10; charset=utf-8", encode(good), 200, ""},
	} {
		c := d.client(d.temporary())
		r := d.do(c, http.MethodPost, pathEnrol, []byte(test.body), "Content-Type", test.contentType)
		if r.status != test.status {
			t.Errorf("%s: HTTP %d, want %d: %s", test.name, r.status, test.status, r.body)
			continue
		}
		if test.status == 200 {
			r.certs(t)
		} else if got := r.problem(t); got != test.problem {
			t.Errorf("%s: problem %q, want %q", test.name, got, test.problem)
		}
	}
	if r := d.post(d.client(d.identity), pathTemporary, good); r.status != 400 || r.problem(t) != "bad-csr" {
		t.Errorf("temporary certificate over another key than the enrolment key: HTTP %d", r.status)
	}
}

func TestRevokeAndAllow(t *testing.T) {
	s := newServer(t, quarklinktest.Options{InMemory: true})
	if err := s.AddBatch(quarklinktest.Batch{Name: "b", PollAfter: 20 * time.Second}); err != nil {
		t.Fatal(err)
	}
	d := newDevice(t, s, "b")
	state := func(want string) {
		t.Helper()
		if st := d.status(); st.State != want || st.DeviceID != string(d.id) || st.Batch != "b" || st.PollAfter != 20 {
			t.Fatalf("status %+v, want state %s", st, want)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	mustNot := func(err error) {
		t.Helper()
		if err == nil {
			t.Fatal("no error")
		}
	}
	state("not_enrolled")
	mustNot(s.PendingRevoke(d.id))
	mustNot(s.AllowEnrolment(d.id))
	mustNot(s.Expire(d.id))
	mustNot(s.Revoke(newDevice(t, s, "").id))

	temporary, csr := d.temporary(), d.csr(d.dsk)
	first := d.post(d.client(temporary), pathEnrol, csr).certs(t)[0]
	state("enrolled")
	must(s.PendingRevoke(d.id))
	state("pending_revoke")
	if again := d.post(d.client(temporary), pathEnrol, csr).certs(t)[0]; !again.Equal(first) {
		t.Error("another certificate while the revocation is pending")
	}
	must(s.Revoke(d.id))
	state("revoked")
	mustNot(s.Expire(d.id))
	must(s.AllowEnrolment(d.id))
	state("not_enrolled")
	if r := d.post(d.client(temporary), pathEnrol, csr); r.status != 403 {
		t.Errorf("a revoked temporary certificate serves again: HTTP %d", r.status)
	}
	second := d.post(d.client(d.temporary()), pathEnrol, csr).certs(t)[0]
	if second.Equal(first) {
		t.Error("a revoked certificate was issued again")
	}
	state("enrolled")
}
