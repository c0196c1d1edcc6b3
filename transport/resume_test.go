package transport_test

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"io"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/internal/counterpart"
	"github.com/quarklink-go/quarklink/transport"
)

// counting counts how often a key signs.
type counting struct {
	crypto.Signer
	n atomic.Int32
}

func (c *counting) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	c.n.Add(1)
	return c.Signer.Sign(random, digest, opts)
}

// TestTLSResumes: a later connection of the same As costs no signature, one of
// another As does.
func TestTLSResumes(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			root := newAuthority(t, "root")
			server, a, b := root.issue(t, "instance", "instance.test"), root.issue(t, "a"), root.issue(t, "b")
			addr := serve(t, &tls.Config{Certificates: []tls.Certificate{server}, MaxVersion: version,
				ClientAuth: tls.RequestClientCert})
			keyA, keyB := &counting{Signer: a.PrivateKey.(crypto.Signer)}, &counting{Signer: b.PrivateKey.(crypto.Signer)}
			a.PrivateKey, b.PrivateKey = keyA, keyB
			tr := transport.TLS{Addr: addr, ServerName: "instance.test", Roots: root.pool(), MinVersion: version}
			asA, asB := tr.As(&a), tr.As(&b)
			for range 3 {
				got, err := hear(t, asA)
				require.NoError(t, err)
				assert.Contains(t, got, " a")
				got, err = hear(t, asB)
				require.NoError(t, err)
				assert.Contains(t, got, " b")
			}
			assert.EqualValues(t, 1, keyA.n.Load(), "signatures by a")
			assert.EqualValues(t, 1, keyB.n.Load(), "signatures by b")
			_, err := hear(t, tr.As(&a))
			require.NoError(t, err)
			assert.EqualValues(t, 2, keyA.n.Load(), "signatures by a, for another As")
			got, err := hear(t, tr)
			require.NoError(t, err)
			assert.Contains(t, got, " nobody")
		})
	}
}

// TestTLSResumesWithOpenSSL takes s_server's tickets.
func TestTLSResumesWithOpenSSL(t *testing.T) {
	root := newAuthority(t, "root")
	server, id := root.issue(t, "instance", "instance.test"), root.issue(t, "device")
	key := &counting{Signer: id.PrivateKey.(crypto.Signer)}
	id.PrivateKey = key
	addr := counterpart.SServer(t, server, []*x509.Certificate{root.cert}, "-tls1_3", "-naccept", "3")
	as := transport.TLS{Addr: addr, ServerName: "instance.test", Roots: root.pool()}.As(&id)
	for range 3 {
		conn, err := as.Dial(t.Context())
		require.NoError(t, err)
		_, err = io.WriteString(conn, "quark\n")
		require.NoError(t, err)
		answer := make([]byte, 6)
		_, err = io.ReadFull(conn, answer)
		require.NoError(t, err)
		assert.Equal(t, "krauq\n", string(answer))
		conn.Close()
	}
	assert.EqualValues(t, 1, key.n.Load(), "signatures")
}

// TestTLSResumedIsVerified: a ticket does not outlive the validity of the
// server's certificate, nor excuse a clock that went wrong meanwhile.
func TestTLSResumedIsVerified(t *testing.T) {
	root := newAuthority(t, "root")
	server, id := root.issue(t, "instance", "instance.test"), root.issue(t, "device")
	leaf, err := x509.ParseCertificate(server.Certificate[0])
	require.NoError(t, err)
	addr := serve(t, &tls.Config{Certificates: []tls.Certificate{server}, ClientAuth: tls.RequestClientCert})
	now := time.Now()
	as := transport.TLS{Addr: addr, ServerName: "instance.test", Roots: root.pool(),
		Time: func() time.Time { return now }}.As(&id)
	_, err = hear(t, as)
	require.NoError(t, err)

	now = leaf.NotAfter.Add(time.Second)
	_, err = hear(t, as)
	var invalid x509.CertificateInvalidError
	require.ErrorAs(t, err, &invalid)
	require.NotErrorIs(t, err, transport.ErrClock)

	now = time.Now()
	_, err = hear(t, as)
	require.NoError(t, err)
	now = leaf.NotBefore.Add(-time.Second)
	_, err = hear(t, as)
	require.ErrorIs(t, err, transport.ErrClock)
}

// TestTLSClockSaysZero: a clock that knows no time is not replaced by the
// system's.
func TestTLSClockSaysZero(t *testing.T) {
	root := newAuthority(t, "root")
	server := root.issue(t, "instance", "instance.test")
	addr := serve(t, &tls.Config{Certificates: []tls.Certificate{server}})
	_, err := hear(t, transport.TLS{Addr: addr, ServerName: "instance.test", Roots: root.pool(),
		Time: func() time.Time { return time.Time{} }})
	require.ErrorIs(t, err, transport.ErrClock)
	assert.ErrorContains(t, err, "it says 0001-01-01T00:00:00Z, and the peer's certificates are valid from 20")
}
