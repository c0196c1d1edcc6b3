package est

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/transport"
)

func TestChain(t *testing.T) {
	root := newCA(t, "root", nil, nil)
	issuing := newCA(t, "issuing", root, nil)
	lower := newCA(t, "lower", issuing, nil)
	foreign := newCA(t, "foreign", nil, nil)
	namesake := newCA(t, "root", nil, nil) // another key
	leaf := newLeaf(t, issuing, nil)
	certs := func(cas ...*authority) (certs []*x509.Certificate) {
		for _, ca := range cas {
			certs = append(certs, ca.Certificate)
		}
		return certs
	}
	notCA := func(c *x509.Certificate) { c.IsCA, c.KeyUsage = false, 0 }
	leafKey := newKey(t)
	otherLeaf := &authority{issue(t, "other device", leafKey.Public(), issuing, nil, nil), leafKey}

	// A root that cannot say that it is a CA.
	old := *newCA(t, "old", nil, nil)
	version1 := *old.Certificate
	version1.Version, version1.BasicConstraintsValid, version1.IsCA, version1.KeyUsage = 1, false, false, 0

	// A root that changes its key: the new one, and the two that link them.
	oldRoot := newCA(t, "rollover", nil, nil)
	newRoot := newCA(t, "rollover", nil, nil)
	newWithOld := &authority{issue(t, "rollover", newRoot.key.Public(), oldRoot, nil, isCA), newRoot.key}
	oldWithNew := &authority{issue(t, "rollover", oldRoot.key.Public(), newRoot, nil, isCA), oldRoot.key}

	expired := func(c *x509.Certificate) { c.NotAfter = testNow.Add(-time.Minute) }
	selfSignedLeaf := issue(t, "device", leafKey.Public(), nil, leafKey, nil)

	for _, tt := range []struct {
		name    string
		leaf    *x509.Certificate
		cacerts []*x509.Certificate
		want    string // the names, or the error if it begins with !
	}{
		{"under the root", newLeaf(t, root, nil), certs(root), ""},
		{"through an intermediate", leaf, certs(root, issuing), "issuing"},
		{"in the other order", leaf, certs(issuing, root), "issuing"},
		{"through two", newLeaf(t, lower, nil), certs(lower, root, issuing), "lower issuing"},
		{"foreign CA first", leaf, certs(foreign, issuing, root), "issuing"},
		{"namesake first", leaf, certs(namesake, issuing, root), "issuing"},
		{"each twice", leaf, certs(root, issuing, root, issuing), "issuing"},
		{"no root", leaf, certs(issuing), "issuing"},
		{"no root, two levels", newLeaf(t, lower, nil), certs(issuing, lower), "lower"},
		{"old and new root, old key", newLeaf(t, oldRoot, nil), certs(newRoot, newWithOld, oldWithNew, oldRoot), ""},
		{"old and new root, new key", newLeaf(t, newRoot, nil), certs(oldWithNew, oldRoot, newWithOld, newRoot), ""},
		{"only the new root, old key", newLeaf(t, oldRoot, nil), certs(oldWithNew, newRoot), "rollover"},
		{"for a server, for mail", newLeaf(t, issuing, func(c *x509.Certificate) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageEmailProtection}
		}), certs(root, issuing), "issuing"},
		{"server's clock is ahead", newLeaf(t, issuing,
			func(c *x509.Certificate) { c.NotBefore = testNow.Add(clockSkew) }), certs(root, issuing), "issuing"},

		{"no CAs", leaf, nil, "!unknown authority"},
		{"foreign CA", leaf, certs(foreign), "!unknown authority"},
		{"root without intermediate", leaf, certs(root), "!its issuer is \"CN=issuing\""},
		{"intermediate with a namesake of its root", leaf, certs(namesake, issuing), "!unknown authority"},
		{"intermediate expired", newLeaf(t, newCA(t, "issuing", root, expired), nil),
			certs(root, newCA(t, "issuing", root, expired)), "!unknown authority"},
		{"unknown critical extension", newLeaf(t, issuing, func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}}}
		}), certs(root, issuing), "!critical extension"},
		{"too deep for the root", newLeaf(t, newCA(t, "below", newCA(t, "top", nil, nil), nil), nil),
			certs(newCA(t, "top", nil, nil)), "!unknown authority"},
		{"signed by a device", newLeaf(t, otherLeaf, nil), certs(root, issuing, otherLeaf), "!"},
		{"signed by a device that is an anchor", newLeaf(t, otherLeaf, nil), certs(otherLeaf), "!"},
		{"root is not a CA", newLeaf(t, root, nil),
			[]*x509.Certificate{issue(t, "root", root.key.Public(), nil, root.key, notCA)}, "!"},
		{"root of version 1", newLeaf(t, &old, nil), []*x509.Certificate{&version1}, "!its issuer is not a CA"},
		{"self-signed", selfSignedLeaf, certs(root), "!unknown authority"},
		{"self-signed and listed", selfSignedLeaf, []*x509.Certificate{selfSignedLeaf}, "!its issuer is not a CA"},
		{"the CA itself", root.Certificate, certs(root), "!its issuer is not a CA"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := slices.Clone(tt.cacerts)
			path, err := Chain(tt.leaf, tt.cacerts, testNow)
			chain := path.Chain
			if text, bad := strings.CutPrefix(tt.want, "!"); bad {
				require.ErrorIs(t, err, ErrChain, names(chain))
				assert.Nil(t, chain, names(chain))
				assert.Contains(t, err.Error(), text, names(chain))
			} else {
				require.NoError(t, err)
				assert.Equal(t, tt.want, strings.Join(names(chain), " "))
			}
			if root := path.Root; root != nil {
				assert.True(t, selfSigned(root), "the root is %q", root.Subject)
				assert.Contains(t, tt.cacerts, root)
			}
			rootless := strings.HasPrefix(tt.name, "no root") || err != nil
			assert.Equal(t, rootless, path.Root == nil)
			assert.Equal(t, tt.cacerts, before, "the CA certificates were reordered")
		})
	}
}

func TestChainPathLength(t *testing.T) {
	root := newCA(t, "root", nil, func(c *x509.Certificate) { c.MaxPathLenZero = true })
	issuing := newCA(t, "issuing", root, nil)
	_, err := Chain(newLeaf(t, issuing, nil), []*x509.Certificate{root.Certificate, issuing.Certificate}, testNow)
	var invalid x509.CertificateInvalidError
	assert.ErrorIs(t, err, ErrChain)
	require.ErrorAs(t, err, &invalid)
	assert.Equal(t, x509.TooManyIntermediates, invalid.Reason)
}

// A changed signature is noticed wherever it is.
func TestChainForged(t *testing.T) {
	root := newCA(t, "root", nil, nil)
	issuing := newCA(t, "issuing", root, nil)
	leaf := newLeaf(t, issuing, nil)
	forge := func(cert *x509.Certificate) *x509.Certificate {
		raw := slices.Clone(cert.Raw)
		raw[len(raw)-1] ^= 1
		forged, err := x509.ParseCertificate(raw)
		require.NoError(t, err)
		return forged
	}
	for name, tt := range map[string]struct{ leaf, issuing *x509.Certificate }{
		"leaf":         {forge(leaf), issuing.Certificate},
		"intermediate": {leaf, forge(issuing.Certificate)},
	} {
		_, err := Chain(tt.leaf, []*x509.Certificate{root.Certificate, tt.issuing}, testNow)
		assert.ErrorIs(t, err, ErrChain, name)
	}
}

// The signature of a root on itself says nothing, so that it may be SHA-1; that
// of anything below may not.
func TestChainSHA1(t *testing.T) {
	sha1 := func(c *x509.Certificate) { c.SignatureAlgorithm = x509.ECDSAWithSHA1 }
	root := newCA(t, "root", nil, sha1)
	issuing := newCA(t, "issuing", root, nil)
	cacerts := []*x509.Certificate{root.Certificate, issuing.Certificate}
	path, err := Chain(newLeaf(t, issuing, nil), cacerts, testNow)
	require.NoError(t, err, "SHA-1 root")
	assert.Len(t, path.Chain, 1, "SHA-1 root")
	_, err = Chain(newLeaf(t, issuing, sha1), cacerts, testNow)
	assert.ErrorIs(t, err, ErrChain, "SHA-1 leaf")
}

// TestClock: a certificate that the server has just issued, and that only the
// time speaks against, says that the device's clock is wrong.
func TestClock(t *testing.T) {
	from := func(notBefore, notAfter time.Time) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.NotBefore, c.NotAfter = notBefore, notAfter }
	}
	day := func(n int) time.Time { return testNow.AddDate(0, 0, n) }
	root := newCA(t, "root", nil, from(day(-100), day(3650)))
	issuing := newCA(t, "issuing", root, from(day(-10), day(3650)))
	newest := newCA(t, "issuing", root, from(day(0), day(3650)))
	leaf := newLeaf(t, issuing, from(day(0), day(30)))
	foreign := newCA(t, "issuing", nil, nil)
	backdated := newLeaf(t, newest, from(day(-1), day(30)))
	for _, tt := range []struct {
		name    string
		leaf    *x509.Certificate
		issuing *authority
		now     time.Time
		want    error // of Chain
		fresh   error // of Fresh
	}{
		{"right", leaf, issuing, day(1), nil, nil},
		{"five minutes behind", leaf, issuing, day(0).Add(-clockSkew), nil, nil},
		{"more behind", leaf, issuing, day(0).Add(-clockSkew - time.Second), transport.ErrClock, transport.ErrClock},
		{"of 1970", leaf, issuing, time.Unix(0, 0), transport.ErrClock, transport.ErrClock},
		{"two years ahead", leaf, issuing, day(730), transport.ErrClock, transport.ErrClock},
		{"ahead by a second", leaf, issuing, day(30).Add(time.Second), transport.ErrClock, transport.ErrClock},
		{"on the last second", leaf, issuing, day(30), nil, nil},
		{"before the issuer, and the leaf dated back behind it", backdated, newest, day(-1).Add(time.Hour),
			transport.ErrClock, nil},
		{"behind, and another issuer", leaf, foreign, time.Unix(0, 0), ErrChain, transport.ErrClock},
		{"never valid", newLeaf(t, issuing, from(day(30), day(0))), issuing, day(1), ErrChain, ErrNeverValid},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Chain(tt.leaf, []*x509.Certificate{root.Certificate, tt.issuing.Certificate}, tt.now)
			require.ErrorIs(t, err, tt.want)
			require.ErrorIs(t, Fresh(tt.leaf, tt.now), tt.fresh)
			if tt.want != nil {
				assert.NotErrorIs(t, err, ErrCACerts)
			}
			if tt.want == transport.ErrClock {
				assert.NotErrorIs(t, err, ErrChain)
			}
		})
	}
}

// TestClockAndAnotherCA: the instance also hands out a CA of the future.
func TestClockAndAnotherCA(t *testing.T) {
	root := newCA(t, "root", nil, nil)
	leaf := newLeaf(t, root, nil)
	future := newCA(t, "root", nil, func(c *x509.Certificate) {
		c.NotBefore = leaf.NotAfter.AddDate(1, 0, 0)
		c.NotAfter = c.NotBefore.AddDate(10, 0, 0)
	})
	_, err := Chain(leaf, []*x509.Certificate{root.Certificate, future.Certificate}, time.Unix(0, 0))
	require.ErrorIs(t, err, transport.ErrClock)
}

// TestClockText: both times, in UTC, and nothing of a monotonic clock.
func TestClockText(t *testing.T) {
	leaf := newLeaf(t, newCA(t, "root", nil, nil), func(c *x509.Certificate) {
		c.NotBefore = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
		c.NotAfter = time.Date(2026, 1, 3, 3, 4, 5, 0, time.UTC)
	})
	now := time.Date(2028, 11, 24, 12, 0, 0, 5, time.FixedZone("UTC+2", 2*3600))
	assert.EqualError(t, Fresh(leaf, now), "the device's clock is wrong: it says 2028-11-24T10:00:00Z, "+
		"and a certificate that was issued just now is valid from 2026-01-02T03:04:05Z to 2026-01-03T03:04:05Z")
}
