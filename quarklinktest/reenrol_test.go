package quarklinktest_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/quarklinktest"
)

// renewal is a request to renew the device's certificate, over a key.
func (d *rawDevice) renewal(key crypto.Signer, change ...func(*x509.CertificateRequest)) []byte {
	d.t.Helper()
	template := &x509.CertificateRequest{Subject: pkix.Name{CommonName: string(d.id)}}
	for _, c := range change {
		c(template)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	require.NoError(d.t, err)
	return der
}

// renew has a certificate renewed by the one that is presented.
func (d *rawDevice) renew(by *tls.Certificate, csr []byte, key *ecdsa.PrivateKey) *tls.Certificate {
	d.t.Helper()
	c := d.client(by)
	defer c.CloseIdleConnections()
	certs := d.post(c, pathReenrol, csr).certs(d.t)
	require.Len(d.t, certs, 1)
	require.True(d.t, key.PublicKey.Equal(certs[0].PublicKey), "it is over the request's key")
	return &tls.Certificate{Certificate: [][]byte{certs[0].Raw}, PrivateKey: key}
}

func (d *rawDevice) connects(by *tls.Certificate) int {
	d.t.Helper()
	c := d.client(by)
	defer c.CloseIdleConnections()
	return d.get(c, pathConnection).status
}

// TestRenewal: the same request by the same certificate gets the same answer, and
// the old certificate serves until the new one has been used.
func TestRenewal(t *testing.T) {
	for name, rekey := range map[string]bool{"same key": false, "new key": true} {
		t.Run(name, func(t *testing.T) {
			now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
			s := newServer(t, quarklinktest.Options{InMemory: true, Now: func() time.Time { return now }})
			require.NoError(t, s.AddBatch(quarklinktest.Batch{
				Name: "b", Policy: quarklinktest.Policy{Lifetime: 30 * 24 * time.Hour},
			}))
			d := newDevice(t, s, "b")
			first := d.enrol()
			now = now.Add(20 * 24 * time.Hour)
			key := d.dsk
			if rekey {
				key = newKey(t)
			}
			csr := d.renewal(key)
			second := d.renew(first, csr, key)
			again := d.renew(first, csr, key)
			assert.Equal(t, second.Certificate, again.Certificate, "the same request, the same certificate")
			other := d.renew(first, d.renewal(key), key)
			assert.NotEqual(t, second.Certificate, other.Certificate, "another request, another certificate")
			leaf, err := x509.ParseCertificate(second.Certificate[0])
			require.NoError(t, err)
			assert.Equal(t, now.Add(30*24*time.Hour), leaf.NotAfter)

			assert.Equal(t, 200, d.connects(first), "the old one, before the new one was used")
			assert.Equal(t, 200, d.connects(second))
			assert.Equal(t, 403, d.connects(first), "the old one, after the new one was used")
			assert.Equal(t, 200, d.connects(other), "one that is newer still")
			assert.Equal(t, 403, d.connects(second))
			third := d.renew(other, csr, key)
			assert.NotEqual(t, second.Certificate, third.Certificate, "the same request by another certificate")
		})
	}
}

func TestRenewalsThatAreRefused(t *testing.T) {
	s, d := newBatchServer(t)
	device := d.enrol()
	for name, change := range map[string]func(*x509.CertificateRequest){
		"another subject":  func(r *x509.CertificateRequest) { r.Subject.CommonName = "else" },
		"a longer subject": func(r *x509.CertificateRequest) { r.Subject.Organization = []string{"x"} },
		"a name more":      func(r *x509.CertificateRequest) { r.DNSNames = []string{"x"} },
	} {
		t.Run(name, func(t *testing.T) {
			r := d.post(d.client(device), pathReenrol, d.renewal(d.dsk, change))
			assert.Equal(t, 400, r.status)
			assert.Equal(t, "bad-csr", r.problem(t))
		})
	}
	require.NoError(t, s.Expire(d.id))
	assert.Equal(t, 403, d.post(d.client(device), pathReenrol, d.renewal(d.dsk)).status, "an expired certificate")
	require.NoError(t, s.Revoke(d.id))
	assert.Equal(t, "device-revoked", d.post(d.client(device), pathReenrol, d.renewal(d.dsk)).problem(t))
}

// TestRenewalOutlivesARestart: what is retired stays retired.
func TestRenewalOutlivesARestart(t *testing.T) {
	dir := t.TempDir()
	s := newServer(t, quarklinktest.Options{InMemory: true, State: dir})
	require.NoError(t, s.AddBatch(quarklinktest.Batch{Name: "b"}))
	d := newDevice(t, s, "b")
	first := d.enrol()
	csr := d.renewal(d.dsk)
	second := d.renew(first, csr, d.dsk)
	s.Close()
	d.s = newServer(t, quarklinktest.Options{InMemory: true, State: dir})
	assert.Equal(t, second.Certificate, d.renew(first, csr, d.dsk).Certificate)
	assert.Equal(t, 200, d.connects(second))
	d.s.Close()
	d.s = newServer(t, quarklinktest.Options{InMemory: true, State: dir})
	assert.Equal(t, 403, d.connects(first))
	assert.Equal(t, 200, d.connects(second))
}
