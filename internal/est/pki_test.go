package est

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"math/big"
	"testing"
	"time"

	"github.com/smallstep/pkcs7"
	"github.com/stretchr/testify/require"
)

// testNow is the clock of the recorded answers and of all that is made here.
var testNow = time.Date(2026, 11, 22, 18, 0, 0, 0, time.UTC)

// authority is a certificate and its key.
type authority struct {
	*x509.Certificate
	key crypto.Signer
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	return key
}

// issue makes a certificate over pub, valid from an hour before testNow to an
// hour after, unless change has it otherwise. A nil issuer signs with selfKey.
func issue(t testing.TB, name string, pub crypto.PublicKey, issuer *authority, selfKey crypto.Signer,
	change func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             testNow.Add(-time.Hour),
		NotAfter:              testNow.Add(time.Hour),
		BasicConstraintsValid: true,
	}
	if change != nil {
		change(template)
	}
	parent, key := template, selfKey
	if issuer != nil {
		parent, key = issuer.Certificate, issuer.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return cert
}

func isCA(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign }

func newCA(t testing.TB, name string, issuer *authority, change func(*x509.Certificate)) *authority {
	t.Helper()
	key := newKey(t)
	cert := issue(t, name, key.Public(), issuer, key, func(c *x509.Certificate) {
		isCA(c)
		if change != nil {
			change(c)
		}
	})
	return &authority{cert, key}
}

func newLeaf(t testing.TB, issuer *authority, change func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	return issue(t, "device", newKey(t).Public(), issuer, nil, change)
}

func newCSR(t testing.TB, key crypto.Signer) []byte {
	t.Helper()
	csr, err := x509.CreateCertificateRequest(rand.Reader,
		&x509.CertificateRequest{Subject: pkix.Name{CommonName: "device"}}, key)
	require.NoError(t, err)
	return csr
}

// certsOnly is the other library's message with certs.
func certsOnly(t testing.TB, certs ...*x509.Certificate) []byte {
	t.Helper()
	var raw []byte
	for _, cert := range certs {
		raw = append(raw, cert.Raw...)
	}
	der, err := pkcs7.DegenerateCertificate(raw)
	require.NoError(t, err)
	return der
}

func base64Text(der []byte) string { return base64.StdEncoding.EncodeToString(der) }
