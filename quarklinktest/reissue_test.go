package quarklinktest_test

import (
	"crypto/x509"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/quarklinktest"
)

// A reissued certificate is changed as asked for, is over the right key and
// chains as the right one does.
func TestReissue(t *testing.T) {
	s, d := newBatchServer(t)
	s.Fault(quarklinktest.CallEnrol, quarklinktest.Reissue(func(c *x509.Certificate) { c.Subject.CommonName = "another" }))
	leaf, err := x509.ParseCertificate(d.enrol().Certificate[0])
	require.NoError(t, err)
	assert.Equal(t, "another", leaf.Subject.CommonName)
	assert.True(t, d.dsk.PublicKey.Equal(leaf.PublicKey))

	s.Fault(quarklinktest.CallCACerts,
		quarklinktest.Reissue(func(c *x509.Certificate) { c.OCSPServer = []string{"http://x"} }))
	issuers := d.get(d.client(nil), pathCACerts).certs(t)
	require.Len(t, issuers, 2)
	for i, right := range s.IssuingCertificates() {
		assert.Equal(t, []string{"http://x"}, issuers[i].OCSPServer)
		assert.Equal(t, right.RawSubjectPublicKeyInfo, issuers[i].RawSubjectPublicKeyInfo)
	}
	assert.NoError(t, leaf.CheckSignatureFrom(issuers[0]))
	assert.NoError(t, issuers[0].CheckSignatureFrom(issuers[1]))
	assert.NoError(t, issuers[1].CheckSignatureFrom(issuers[1]))
}

func TestMoreIssuers(t *testing.T) {
	s, d := newBatchServer(t)
	more := newServer(t, quarklinktest.Options{InMemory: true}).IssuingCertificates()
	s.Fault(quarklinktest.CallCACerts, quarklinktest.MoreIssuers(more...))
	got := d.get(d.client(nil), pathCACerts).certs(t)
	assert.Equal(t, append(more, s.IssuingCertificates()...), got)
}
