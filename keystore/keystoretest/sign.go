package keystoretest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha256" // the hashes of the schemes
	_ "crypto/sha512"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/quarklink-go/quarklink/keystore"
)

// scheme is a way to sign (RFC 8446 section 4.2.3).
type scheme struct {
	name string
	code uint16
	kind string // of key: "RSA", "ECDSA", "Ed25519"
	hash crypto.Hash
	pss  bool
}

func (s scheme) String() string { return s.name }

var schemes = []scheme{
	{"ecdsa_secp256r1_sha256", 0x0403, "ECDSA", crypto.SHA256, false},
	{"ecdsa_secp384r1_sha384", 0x0503, "ECDSA", crypto.SHA384, false},
	{"ecdsa_secp521r1_sha512", 0x0603, "ECDSA", crypto.SHA512, false},
	{"rsa_pss_rsae_sha256", 0x0804, "RSA", crypto.SHA256, true},
	{"rsa_pss_rsae_sha384", 0x0805, "RSA", crypto.SHA384, true},
	{"rsa_pss_rsae_sha512", 0x0806, "RSA", crypto.SHA512, true},
	{"rsa_pkcs1_sha256", 0x0401, "RSA", crypto.SHA256, false},
	{"rsa_pkcs1_sha384", 0x0501, "RSA", crypto.SHA384, false},
	{"rsa_pkcs1_sha512", 0x0601, "RSA", crypto.SHA512, false},
	{"ed25519", 0x0807, "Ed25519", 0, false},
}

func (s scheme) opts() crypto.SignerOpts {
	if s.pss {
		return &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: s.hash}
	}
	return s.hash
}

func (s scheme) verify(pub crypto.PublicKey, digest, signature []byte) error {
	valid := false
	switch pub := pub.(type) {
	case *ecdsa.PublicKey:
		valid = ecdsa.VerifyASN1(pub, digest, signature)
	case *rsa.PublicKey:
		if s.pss {
			opts := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: s.hash}
			valid = rsa.VerifyPSS(pub, s.hash, digest, signature, opts) == nil
		} else {
			valid = rsa.VerifyPKCS1v15(pub, s.hash, digest, signature) == nil
		}
	case ed25519.PublicKey:
		valid = ed25519.Verify(pub, digest, signature)
	}
	if !valid {
		return fmt.Errorf("the signature of %d bytes does not verify", len(signature))
	}
	return nil
}

func kindOf(pub crypto.PublicKey) string {
	switch pub.(type) {
	case *ecdsa.PublicKey:
		return "ECDSA"
	case *rsa.PublicKey:
		return "RSA"
	case ed25519.PublicKey:
		return "Ed25519"
	}
	return ""
}

// claimed returns the schemes that a signer can make: what it says, or with
// SHA-256 what its key can do.
func claimed(signer crypto.Signer) []scheme {
	kind := kindOf(signer.Public())
	restricted, limits := signer.(keystore.Restricted)
	var codes []uint16
	if limits {
		codes = restricted.SignatureSchemes()
	}
	var all []scheme
	for _, s := range schemes {
		if s.kind == kind && (slices.Contains(codes, s.code) || !limits && (s.hash == crypto.SHA256 || s.hash == 0)) {
			all = append(all, s)
		}
	}
	return all
}

func defaultScheme(signer crypto.Signer) (scheme, bool) {
	if all := claimed(signer); len(all) > 0 {
		return all[0], true
	}
	return scheme{}, false
}

// checkSchemes makes a signature of every scheme. Those that the signer does not
// claim may fail, but what it returns must verify: a chip that cuts a digest to
// its size is worse than one that refuses it.
func (c *checker) checkSchemes(role keystore.Role, signer crypto.Signer) {
	kind := kindOf(signer.Public())
	if restricted, ok := signer.(keystore.Restricted); ok {
		codes := restricted.SignatureSchemes()
		if len(codes) == 0 {
			c.found("%s: SignatureSchemes is empty; contract: it lists what the signer can make", role)
		}
		for _, code := range codes {
			if !slices.ContainsFunc(schemes, func(s scheme) bool { return s.code == code && s.kind == kind }) {
				c.found("%s: SignatureSchemes lists 0x%04x, which is no scheme of an %s key; contract: RFC 8446 section 4.2.3", role, code, kind)
			}
		}
	}
	can := claimed(signer)
	for _, s := range schemes {
		if s.kind != kind {
			continue
		}
		err := c.signAndVerify(signer, s, freshDigest(s.hash))
		var refused refusal
		if err != nil && (slices.Contains(can, s) || !errors.As(err, &refused)) {
			c.found("%s: signing with %v: %w; contract: signatures verify under Public", role, s, err)
		}
	}
}

// checkDigests signs what is no digest of the hash.
func (c *checker) checkDigests(role keystore.Role, signer crypto.Signer, generates bool) {
	if _, std := signer.(*ecdsa.PrivateKey); std && !generates {
		return // a program's own key; the standard library's type takes any length
	}
	for _, s := range claimed(signer) {
		if s.hash == 0 {
			continue // it signs messages
		}
		size := s.hash.Size()
		for _, n := range []int{0, 1, size - 1, size + 1, 2 * size} {
			signature, err := c.sign(signer, make([]byte, n), s.opts())
			var refused refusal
			switch {
			case err == nil:
				c.found("%s: signing a digest of %d bytes with %v returns a signature of %d bytes; contract: a digest of the wrong length is an error", role, n, s, len(signature))
			case !errors.As(err, &refused):
				c.found("%s: signing a digest of %d bytes with %v %w; contract: a digest of the wrong length is an error", role, n, s, err)
			}
		}
	}
}

// checkConcurrentSigning makes signatures at once on two instances of the store.
func (c *checker) checkConcurrentSigning(role keystore.Role, stores ...keystore.KeyStore) {
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i := range signers {
		signer, err := c.signer(c.ctx, stores[i%len(stores)], role)
		if err != nil {
			return // found elsewhere
		}
		s, ok := defaultScheme(signer)
		if !ok {
			return
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			<-start
			for range signaturesEach {
				if err := c.signAndVerify(signer, s, freshDigest(s.hash)); err != nil {
					c.found("%s: concurrent signing with %v: %w; contract: signers work at once and never mix up digests", role, s, err)
					return
				}
			}
		}()
	}
	close(start)
	wg.Wait()
}

// checkBoth signs with the keys of both roles, opened one after the other, in turn
// and then at once: what a store selects in its chip for the one must not serve the
// other.
func (c *checker) checkBoth(ks keystore.KeyStore) {
	var both [2]func(how string)
	for i, role := range roles {
		signer, err := c.signer(c.ctx, ks, role)
		if err != nil {
			return // found elsewhere
		}
		s, ok := defaultScheme(signer)
		if !ok {
			return
		}
		both[i] = func(how string) {
			if err := c.signAndVerify(signer, s, freshDigest(s.hash)); err != nil {
				c.found("%s: signing %s with the other key: %v: %w; contract: a signer uses the key of its role, whatever else is open",
					role, how, s, err)
			}
		}
	}
	for _, sign := range both {
		sign("in turn")
	}
	var wg sync.WaitGroup
	for _, sign := range both {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for range signaturesEach {
				sign("at once")
			}
		}()
	}
	wg.Wait()
}

// refusal is an error that Sign returned, as opposed to a panic or a signature
// that does not verify.
type refusal struct{ error }

func (r refusal) Unwrap() error { return r.error }

func (c *checker) signAndVerify(signer crypto.Signer, s scheme, digest []byte) error {
	given, pub := bytes.Clone(digest), signer.Public()
	signature, err := c.sign(signer, given, s.opts())
	if err != nil {
		return err
	}
	if !bytes.Equal(given, digest) {
		return errors.New("signing changed the caller's digest")
	}
	return guard(func() error {
		if !equal(pub, signer.Public()) {
			return errors.New("signing changed the public key")
		}
		return s.verify(pub, digest, signature)
	})
}

// sign makes a signature, or returns a refusal, or says what else went wrong.
func (c *checker) sign(signer crypto.Signer, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return within(c, c.ctx, func(context.Context) ([]byte, error) {
		signature, err := signer.Sign(rand.Reader, digest, opts)
		if err != nil {
			return nil, refusal{err}
		}
		return signature, nil
	})
}

func equal(a, b crypto.PublicKey) bool {
	key, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && key.Equal(b)
}

// freshDigest returns random bytes in the place of a digest, or of a message.
func freshDigest(hash crypto.Hash) []byte {
	size := 32
	if hash != 0 {
		size = hash.Size()
	}
	digest := make([]byte, size)
	rand.Read(digest)
	return digest
}
