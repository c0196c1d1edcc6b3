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

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/quarklinktest"
)

func TestIssuedCertificates(t *testing.T) {
	s := newServer(t, quarklinktest.Options{InMemory: true})
	policy := quarklinktest.Policy{Lifetime: 90 * 24 * time.Hour}
	require.NoError(t, s.AddBatch(quarklinktest.Batch{Name: "b", Policy: policy}))
	d := newDevice(t, s, "b")
	cacerts := d.get(d.client(nil), pathCACerts).certs(t)
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	for _, cert := range cacerts {
		if cert.CheckSignatureFrom(cert) == nil {
			roots.AddCert(cert)
		} else {
			intermediates.AddCert(cert)
		}
		assert.False(t, cert.Equal(s.Instance().Root), "cacerts holds the instance's own root")
	}
	verify := func(cert *x509.Certificate) error {
		_, err := cert.Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates,
			KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
		return err
	}

	temporary, err := x509.ParseCertificate(d.temporary().Certificate[0])
	require.NoError(t, err)
	assert.Error(t, verify(temporary), "cacerts vouches for the temporary certificate")
	assert.LessOrEqual(t, temporary.NotAfter.Sub(temporary.NotBefore), time.Duration(24*time.Hour),
		"the temporary certificate lives")
	device, err := x509.ParseCertificate(d.enrol().Certificate[0])
	require.NoError(t, err)
	assert.NoError(t, verify(device))
	assert.True(t, d.dsk.PublicKey.Equal(device.PublicKey), "not a certificate over the device key")
	assert.False(t, device.IsCA, "not a certificate over the device key")
	for name, cert := range map[string]*x509.Certificate{"temporary": temporary, "device": device} {
		assert.Equal(t, string(d.id), cert.Subject.CommonName, name)
		ago := time.Since(cert.NotBefore)
		assert.GreaterOrEqual(t, ago, time.Duration(5*time.Minute), name)
		assert.LessOrEqual(t, ago, time.Duration(6*time.Minute), name)
	}
	ahead := time.Until(device.NotAfter)
	assert.GreaterOrEqual(t, ahead, policy.Lifetime-time.Minute, "lifetime of the device certificate")
	assert.LessOrEqual(t, ahead, policy.Lifetime, "lifetime of the device certificate")
}

// The same bytes give the same certificate, however often and however much at
// once they come; others give another.
func TestSameCSRSameCertificate(t *testing.T) {
	s := newServer(t, quarklinktest.Options{InMemory: true})
	require.NoError(t, s.AddBatch(quarklinktest.Batch{Name: "b"}))
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
		require.True(t, cert.Equal(got[0]), "two certificates for one CSR")
	}
	c := d.client(temporary)
	other := d.post(c, pathEnrol, d.csr(d.dsk)).certs(t)[0]
	assert.False(t, other.Equal(got[0]), "one certificate for two CSRs")
	same := func() bool { return d.post(c, pathEnrol, csr).certs(t)[0].Equal(got[0]) }
	assert.True(t, same(), "the first CSR is forgotten")
	neighbour := newDevice(t, s, "b")
	assert.False(t, neighbour.post(neighbour.client(neighbour.temporary()), pathEnrol, csr).certs(t)[0].Equal(got[0]),
		"another device was given this one's certificate")
	require.NoError(t, s.Expire(d.id))
	assert.False(t, same(), "the expired certificate was issued again")
	assert.Len(t, s.Certificates(d.id), 3, "certificates")
	all := s.Certificates(d.id)
	assert.True(t, all[0].Equal(got[0]), "the certificates are not in the order of their issue")
	assert.True(t, all[1].Equal(other), "the certificates are not in the order of their issue")
}

func TestBadCSR(t *testing.T) {
	s := newServer(t, quarklinktest.Options{InMemory: true})
	require.NoError(t, s.AddBatch(quarklinktest.Batch{Name: "b"}))
	d := newDevice(t, s, "b")
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	require.NoError(t, err)
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
	r := d.post(d.client(d.identity), pathTemporary, good)
	assert.Equal(t, 400, r.status,
		"temporary certificate over another key than the enrolment key")
	assert.Equal(t, "bad-csr", r.problem(t),
		"temporary certificate over another key than the enrolment key")
}

func TestRevokeAndAllow(t *testing.T) {
	s := newServer(t, quarklinktest.Options{InMemory: true})
	require.NoError(t, s.AddBatch(quarklinktest.Batch{Name: "b", PollAfter: 20 * time.Second}))
	d := newDevice(t, s, "b")
	state := func(want string) {
		t.Helper()
		st := d.status()
		require.Equal(t, want, st.State)
		require.Equal(t, string(d.id), st.DeviceID)
		require.Equal(t, "b", st.Batch)
		require.EqualValues(t, 20, st.PollAfter)
	}
	must := func(err error) {
		t.Helper()
		require.NoError(t, err)
	}
	mustNot := func(err error) {
		t.Helper()
		require.Error(t, err)
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
	assert.True(t, d.post(d.client(temporary), pathEnrol, csr).certs(t)[0].Equal(first),
		"another certificate while the revocation is pending")
	must(s.Revoke(d.id))
	state("revoked")
	mustNot(s.Expire(d.id))
	must(s.AllowEnrolment(d.id))
	state("not_enrolled")
	assert.Equal(t, 403, d.post(d.client(temporary), pathEnrol, csr).status,
		"a revoked temporary certificate serves again")
	second := d.post(d.client(d.temporary()), pathEnrol, csr).certs(t)[0]
	assert.False(t, second.Equal(first), "a revoked certificate was issued again")
	state("enrolled")
}
