package keystoretest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/keystore"
)

// chip is what persists of a key store: a part that others open. It keeps the
// contract, but for the fault that it is given.
type chip struct {
	fault string

	mu      sync.Mutex
	keys    map[keystore.Role]*signer
	scratch []byte     // where the fault "mixes digests" puts them
	used    int        // handles
	files   []*os.File // descriptors that the fault "leaks descriptors" holds
	opens   int
	end     chan struct{} // ends the goroutines of the fault "leaks a goroutine at each open"
	slot    *signer       // the key opened last, which the fault "signs with the key opened last" uses
}

func (c *chip) open(context.Context) (keystore.KeyStore, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.opens++
	switch {
	case c.fault == "opens once" && c.opens > 1:
		return nil, errors.New("device busy")
	case c.fault == "leaks a descriptor at each open":
		if f, err := os.Open(os.DevNull); err == nil {
			c.files = append(c.files, f)
		}
	case c.fault == "leaks a goroutine at each open":
		go func() { <-c.end }()
	case c.fault == "opens nothing":
		return nil, nil
	case c.fault == "forgets":
		return &generator{chip: &chip{keys: make(map[keystore.Role]*signer)}}, nil
	case c.fault == "generates at times" && c.opens%2 == 0:
		return reader{&generator{chip: c}}, nil
	}
	return &generator{chip: c}, nil
}

// generator is an open chip.
type generator struct {
	*chip
	seen map[keystore.Role]bool // the roles whose keys it has opened
}

// reader hides that a store can make keys.
type reader struct{ keystore.KeyStore }

func (g *generator) Close() error {
	if g.fault == "fails to close" {
		return errors.New("bus error")
	}
	return nil
}

func (g *generator) Signer(ctx context.Context, role keystore.Role) (crypto.Signer, error) {
	switch g.fault {
	case "panics":
		panic("index out of range")
	case "hangs":
		if ctx.Err() != nil {
			select {}
		}
	case "says not found when cancelled":
		if ctx.Err() != nil {
			return nil, fs.ErrNotExist
		}
	case "leaks goroutines":
		go func() { select {} }()
	case "leaks descriptors":
		f, err := os.Open(os.DevNull)
		if err != nil {
			return nil, err
		}
		g.mu.Lock()
		g.files = append(g.files, f)
		g.mu.Unlock()
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.fault == "leaks handles" {
		const handles = 200
		if g.used++; g.used > handles {
			return nil, errors.New("out of handles")
		}
	}
	key, ok := g.keys[role]
	if !ok && g.fault == "one key" {
		key, ok = g.keys[keystore.Enrolment]
	}
	switch {
	case !ok && g.fault == "wrong sentinel when absent":
		return nil, errors.New("slot is empty")
	case !ok && g.fault == "nil when absent":
		return nil, nil
	case !ok:
		return nil, fmt.Errorf("slot %s: %w", role, fs.ErrNotExist)
	}
	g.slot = key
	switch g.fault {
	case "overwrites what it has not opened":
		if g.seen == nil {
			g.seen = make(map[keystore.Role]bool)
		}
		g.seen[role] = true
	case "exposes":
		return key.private, nil
	case "exposes by a method":
		return embedded{key.private.(*ecdsa.PrivateKey)}, nil
	case "changes its key when it signs":
		return &signer{chip: g.chip, private: key.private}, nil
	}
	return key, nil
}

func (g *generator) Generate(ctx context.Context, role keystore.Role) (crypto.Signer, error) {
	fresh, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	key := &signer{chip: g.chip, private: fresh}
	switch g.fault {
	case "keeps a cancelled key":
		g.put(role, key)
	case "makes a cancelled key later":
		if ctx.Err() != nil {
			go func() {
				time.Sleep(20 * time.Millisecond)
				g.put(role, key)
			}()
		}
	case "overwrites":
		g.mu.Lock()
		defer g.mu.Unlock()
		g.keys[role] = key
		return key, nil
	case "overwrites what it has not opened":
		g.mu.Lock()
		cold := !g.seen[role]
		if cold {
			g.keys[role] = key
		}
		g.mu.Unlock()
		if cold {
			return key, nil
		}
	case "races":
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if _, err := g.Signer(ctx, role); err == nil {
			return nil, fs.ErrExist
		}
		time.Sleep(20 * time.Millisecond)
		g.mu.Lock()
		defer g.mu.Unlock()
		g.keys[role] = key
		return key, nil
	case "one key twice":
		g.mu.Lock()
		if first := g.keys[keystore.Enrolment]; first != nil {
			key = first
		}
		g.mu.Unlock()
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if !g.put(role, key) {
		if g.fault == "wrong sentinel when there" {
			return nil, errors.New("slot is locked")
		}
		return nil, fmt.Errorf("slot %s: %w", role, fs.ErrExist)
	}
	if g.fault == "returns another key" {
		other, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		return &signer{chip: g.chip, private: other}, nil
	}
	return key, nil
}

func (g *generator) put(role keystore.Role, key *signer) (done bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.keys[role] != nil || g.fault == "one key" && len(g.keys) > 0 {
		return false
	}
	g.keys[role] = key
	return true
}

// embedded hides the type of a key, but none of its methods.
type embedded struct{ *ecdsa.PrivateKey }

// signer is a key in a chip, or, without one, of the kind that its type says.
type signer struct {
	chip    *chip
	private crypto.Signer
	fault   string
}

func (s *signer) is(fault string) bool {
	return s.fault == fault || s.chip != nil && s.chip.fault == fault
}

func (s *signer) Public() crypto.PublicKey {
	switch {
	case s.is("nil public key"):
		return nil
	case s.is("panics on Public"):
		panic("not cached")
	case s.is("another public key"):
		other, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		return other.Public()
	case s.is("unusable public key"):
		return "public key"
	}
	return s.private.Public()
}

func (s *signer) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	private := s.private
	switch {
	case s.is("hangs in Sign"):
		select {}
	case s.is("changes its key when it signs"):
		s.private, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		private = s.private
	case s.is("signs with the key opened last"):
		s.chip.mu.Lock()
		private = s.chip.slot.private
		s.chip.mu.Unlock()
	case s.is("wrong key"):
		private, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case s.is("changes the digest"):
		defer clear(digest)
	case s.is("panics on a short digest"):
		_ = digest[31]
	case s.is("accepts any digest"):
		return private.Sign(random, digest, opts)
	case s.is("cuts the digest"):
		if hash := opts.HashFunc(); hash != crypto.SHA256 && len(digest) == hash.Size() {
			return private.Sign(random, digest[:20], opts)
		}
	case s.is("mixes digests"):
		s.chip.mu.Lock()
		s.chip.scratch = append([]byte{}, digest...)
		s.chip.mu.Unlock()
		time.Sleep(time.Millisecond)
		s.chip.mu.Lock()
		digest = s.chip.scratch
		s.chip.mu.Unlock()
	case s.is("largest salt"):
		if pss, ok := opts.(*rsa.PSSOptions); ok {
			opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthAuto, Hash: pss.Hash}
		}
	}
	if hash := opts.HashFunc(); hash != 0 && len(digest) != hash.Size() {
		return nil, errors.New("digest of the wrong length")
	}
	return private.Sign(random, digest, opts)
}

// restricted is a signer that claims some schemes and refuses the others.
type restricted struct {
	*signer
	codes []uint16
	only  func(crypto.SignerOpts) bool
}

func (r restricted) SignatureSchemes() []uint16 { return r.codes }

func (r restricted) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if r.only != nil && !r.only(opts) {
		return nil, errors.New("unsupported scheme")
	}
	return r.signer.Sign(random, digest, opts)
}

// always opens one store whatever happens.
func always(ks keystore.KeyStore) func(context.Context) (keystore.KeyStore, error) {
	return func(context.Context) (keystore.KeyStore, error) { return ks, nil }
}

func newChip(fault string) *chip {
	return &chip{fault: fault, keys: make(map[keystore.Role]*signer), end: make(chan struct{})}
}

func newECDSA(t *testing.T, curve elliptic.Curve) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	require.NoError(t, err)
	return key
}

func TestGoodStores(t *testing.T) {
	p256 := newECDSA(t, elliptic.P256())
	rsaKey, err := rsa.GenerateKey(rand.Reader, 3072)
	require.NoError(t, err)
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	existing := newChip("")
	half := newChip("")
	half.keys[keystore.Enrolment] = &signer{chip: half, private: p256}
	readOnly := newChip("")
	readOnly.keys[keystore.Device] = &signer{chip: readOnly, private: p256}
	for _, c := range []struct {
		name string
		open func(context.Context) (keystore.KeyStore, error)
	}{
		{"fresh generator", existing.open},
		{"generator with both keys", existing.open},
		{"generator with one of two keys", half.open},
		{"generator of one key for both roles", newChip("one key").open},
		{"read-only with one of two keys", always(reader{&generator{chip: readOnly}})},
		{"Static P-256", always(keystore.Static(p256))},
		{"Static P-384", always(keystore.Static(newECDSA(t, elliptic.P384())))},
		{"Static RSA-3072", always(keystore.Static(rsaKey))},
		{"Static Ed25519", always(keystore.Static(edKey))},
		{"restricted to SHA-256", always(keystore.Static(restricted{
			signer: &signer{private: p256},
			codes:  []uint16{0x0403},
			only:   func(opts crypto.SignerOpts) bool { return opts.HashFunc() == crypto.SHA256 },
		}))},
		{"restricted to PSS", always(keystore.Static(restricted{
			signer: &signer{private: rsaKey},
			codes:  []uint16{0x0804},
			only:   func(opts crypto.SignerOpts) bool { _, pss := opts.(*rsa.PSSOptions); return pss },
		}))},
	} {
		assert.NoError(t, Test(t.Context(), c.open), c.name)
	}
}

// Every broken store is caught, and a finding names what is broken.
func TestBrokenStores(t *testing.T) {
	for fault, want := range map[string]string{
		"accepts any digest":              "signing a digest of 31 bytes with ecdsa_secp256r1_sha256 returns a signature",
		"another public key":              "Public() returns another key",
		"changes its key when it signs":   "signing changed the public key",
		"changes the digest":              "signing changed the caller's digest",
		"cuts the digest":                 "ecdsa_secp384r1_sha384: the signature of",
		"exposes":                         "exposes the private key",
		"exposes by a method":             "exposes the private key",
		"fails to close":                  "Close: bus error",
		"forgets":                         "after reopening the store Signer fails",
		"generates at times":              "that makes keys, then a",
		"hangs":                           "Signer with a cancelled context: the call does not return",
		"keeps a cancelled key":           "after Generate failed with its context's error Signer gives: no error",
		"leaks a descriptor at each open": "file descriptors open; contract: Close lets go",
		"leaks a goroutine at each open":  "goroutines running; contract: Close lets go",
		"leaks descriptors":               "file descriptors open; contract: a signer needs no closing",
		"leaks goroutines":                "goroutines running; contract: a signer needs no closing",
		"leaks handles":                   "of 256: out of handles; contract: a signer needs no closing",
		"makes a cancelled key later":     "after Generate failed with its context's error Signer gives: no error",
		"mixes digests":                   "concurrent signing with ecdsa_secp256r1_sha256: the signature of",
		"nil public key":                  "Public() is nil",
		"nil when absent":                 "Signer returned no signer and no error",
		"one key twice":                   "Generate made the key that esk has",
		"opens nothing":                   "open: no store and no error",
		"opens once":                      "open: device busy",
		"overwrites":                      "Generate on an existing key: no error",
		"panics":                          "panicked: index out of range",
		"panics on Public":                "Public panicked: not cached",
		"panics on a short digest":        "signing a digest of 0 bytes with ecdsa_secp256r1_sha256 panicked",
		"races":                           "made a key; contract: exactly one",
		"returns another key":             "after Generate the public key has changed",
		"says not found when cancelled":   "Signer with a cancelled context: file does not exist",
		"signs with the key opened last":  "esk: signing in turn with the other key",
		"unusable public key":             "Public() is no usable key",
		"wrong key":                       "the signature of",
		"wrong sentinel when absent":      "Signer: slot is empty; contract: an absent key is fs.ErrNotExist",
		"wrong sentinel when there":       "Generate on an existing key: slot is locked",
	} {
		t.Run(fault, func(t *testing.T) {
			c := newChip(fault)
			defer close(c.end)
			defer func() {
				for _, f := range c.files {
					f.Close()
				}
			}()
			wantFinding(t, test(t.Context(), c.open, time.Second, callLimit), want)
		})
	}
}

func TestBrokenSigners(t *testing.T) {
	p256 := newECDSA(t, elliptic.P256())
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	for _, c := range []struct {
		name   string
		signer crypto.Signer
		want   string
	}{
		{"no key", nil, "there is no key to check"},
		{"RSA with another salt", &signer{private: rsaKey, fault: "largest salt"},
			"rsa_pss_rsae_sha256: the signature of 256 bytes does not verify"},
		{"RSA that signs anything", &signer{private: rsaKey, fault: "wrong key"}, "rsa_pkcs1_sha256"},
		{"no schemes", restricted{signer: &signer{private: p256}}, "SignatureSchemes is empty"},
		{"schemes of another key", restricted{signer: &signer{private: p256}, codes: []uint16{0x0804}},
			"SignatureSchemes lists 0x0804"},
		{"claims what it refuses", restricted{
			signer: &signer{private: rsaKey},
			codes:  []uint16{0x0401, 0x0804},
			only:   func(opts crypto.SignerOpts) bool { _, pss := opts.(*rsa.PSSOptions); return !pss },
		}, "rsa_pss_rsae_sha256: unsupported scheme"},
	} {
		t.Run(c.name, func(t *testing.T) {
			wantFinding(t, Test(t.Context(), always(keystore.Static(c.signer))), c.want)
		})
	}
}

func wantFinding(t *testing.T, err error, want string) {
	t.Helper()
	require.Error(t, err, "no finding")
	var findings interface{ Unwrap() []error }
	require.ErrorAs(t, err, &findings, "a single error")
	for _, finding := range findings.Unwrap() {
		text := finding.Error()
		assert.True(t, strings.HasPrefix(text, "keystoretest: "), "a finding does not name the contract")
		assert.Contains(t, text, "; contract: ", "a finding does not name the contract")
	}
	assert.Contains(t, err.Error(), want)
}

// Which keys there are a store learns from its medium, not from what it has opened.
func TestOverwritesAfterRestart(t *testing.T) {
	c := newChip("overwrites what it has not opened")
	for _, role := range roles {
		c.keys[role] = &signer{chip: c, private: newECDSA(t, elliptic.P256())}
	}
	wantFinding(t, test(t.Context(), c.open, time.Second, callLimit), "esk: Generate on an existing key: no error")
}

// A Sign that does not return is one finding, and the end.
func TestSignHangs(t *testing.T) {
	ks := keystore.Static(&signer{private: newECDSA(t, elliptic.P256()), fault: "hangs in Sign"})
	err := test(t.Context(), always(ks), 10*time.Millisecond, time.Second)
	wantFinding(t, err, "signing with ecdsa_secp256r1_sha256: the call does not return")
	assert.NotContains(t, err.Error(), "\n", "several findings")
}

// A check that is cut short says so, whatever it found.
func TestEndOfContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	c := newChip("")
	err := Test(ctx, func(ctx context.Context) (keystore.KeyStore, error) {
		if c.opens == 1 {
			cancel()
		}
		return c.open(ctx)
	})
	assert.ErrorIs(t, err, context.Canceled)
}
