// Package keystoretest checks that a key store keeps the contract of package
// keystore, as testing/fstest does for file systems. It imports no testing, so
// that a program can check the chip it runs on.
package keystoretest

import (
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"time"

	"github.com/quarklink-go/quarklink/keystore"
)

// Test checks a key store and returns nil, or all findings joined into one error
// (see [errors.Join]), each saying what broke and what the contract is.
//
// It calls open some seventy times, at times for two stores at once. All of them
// must give access to the same keys, as after a restart. A store that is an
// io.Closer is closed when Test is done with it; one that is not holds nothing.
//
// A store may be read-only, hold one key for both roles, restrict its signers
// ([keystore.Restricted]), and hold ECDSA, RSA or Ed25519 keys. At least one key
// must be there or be made: if the store is a [keystore.Generator] Test generates
// the keys that are absent, and those stay, on a chip for good. To see all of its
// checks run it on a fresh store and once more on the same. What a
// [keystore.Rotator] promises besides, [TestRotator] checks.
//
// Test makes some hundred signatures. It counts the process's goroutines and, where
// the system tells, its file descriptors; therefore nothing else should start or end
// meanwhile. A call that ignores the end of its context is given up after 10
// seconds, one that does not return at all (Sign and Close have no context) after a
// minute; then no more calls are made. When ctx ends Test returns early with what it
// found and the context's error.
func Test(ctx context.Context, open func(context.Context) (keystore.KeyStore, error)) error {
	return test(ctx, open, patience, callLimit)
}

func test(ctx context.Context, open func(context.Context) (keystore.KeyStore, error), patience, limit time.Duration) error {
	c := &checker{ctx: ctx, opener: open, patience: patience, limit: limit}
	return c.test(c.run)
}

// test runs the checks and returns what they found.
func (c *checker) test(checks func()) error {
	if err := guard(func() error { checks(); return nil }); err != nil {
		c.found("the store %w; contract: it never panics", err)
	}
	c.close()
	if err := c.ctx.Err(); err != nil {
		c.findings = append(c.findings, fmt.Errorf("keystoretest: not finished: %w", err))
	}
	return errors.Join(c.findings...)
}

const (
	patience       = 10 * time.Second
	callLimit      = time.Minute // for a call on the slowest chip
	handleCalls    = 256         // more than any store has handles
	handleSignings = 64
	signers        = 4 // goroutines that sign at once
	signaturesEach = 6
)

var roles = []keystore.Role{keystore.Enrolment, keystore.Device}

type checker struct {
	ctx    context.Context
	opener func(context.Context) (keystore.KeyStore, error)
	opened []keystore.KeyStore

	patience time.Duration // for a call to notice that its context has ended
	limit    time.Duration // for a call whose context does not end

	mu       sync.Mutex
	findings []error
	hung     bool // a call has not returned; no further ones are made
}

// errHung is the finding after which Test makes no further calls: they would hang
// as well, each for as long as Test has patience.
var errHung = errors.New("the call does not return; nothing more was tried")

// found records a finding: what was checked, what happened and, after "contract:",
// what should have.
func (c *checker) found(format string, args ...any) {
	if c.ctx.Err() != nil {
		return // what fails then, fails because of it
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hung {
		return // what fails then was not tried
	}
	finding := fmt.Errorf("keystoretest: "+format, args...)
	c.findings = append(c.findings, finding)
	c.hung = errors.Is(finding, errHung)
}

func (c *checker) hangs() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.hung
}

// run goes from the states that a device passes only once to those it stays in.
func (c *checker) run() {
	first, second := c.open(), c.open()
	if first == nil || second == nil {
		return
	}
	if generator, ok := first.(keystore.Generator); ok {
		c.checkGenerator(generator, second)
	}
	keys := make(map[keystore.Role][32]byte)
	for _, role := range roles {
		signer, err := c.signer(c.ctx, first, role)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			c.found("%s: Signer: %w; contract: an absent key is fs.ErrNotExist, and one that is there opens", role, err)
			continue
		}
		id, ok := c.public(role, signer)
		if !ok {
			continue
		}
		keys[role] = id
		c.checkKey(role, id, signer, first, second)
	}
	if len(keys) == 0 && len(c.findings) == 0 {
		c.found("there is no key to check; contract: a store that cannot make keys comes with one")
	}
	if len(keys) == len(roles) {
		c.checkBoth(first)
	}
	c.checkRestart(keys)
	c.checkOpens()
}

// checkKey checks a key that is there.
func (c *checker) checkKey(role keystore.Role, id [32]byte, signer crypto.Signer, first, second keystore.KeyStore) {
	_, generates := first.(keystore.Generator)
	if generates {
		c.checkHidden(role, signer)
	}
	c.checkSame(role, id, first, "the next Signer call")
	c.checkSame(role, id, second, "another instance of the store")
	c.checkSchemes(role, signer)
	c.checkDigests(role, signer, generates)
	c.checkSame(role, id, first, "wrong digests")
	c.checkCancelledSigner(role, id, first)
	c.checkSame(role, id, first, "a cancelled call")
	if generator, ok := first.(keystore.Generator); ok {
		c.checkNoOverwrite(role, id, generator)
	}
	c.checkConcurrentSigning(role, first, second)
	c.checkHandles(role, first)
	c.checkSame(role, id, first, "many calls")
}

// checkHidden makes sure that the key cannot be had by a type assertion, neither
// as a type of the standard library nor through a method of one.
func (c *checker) checkHidden(role keystore.Role, signer crypto.Signer) {
	switch signer.(type) {
	case *ecdsa.PrivateKey, *rsa.PrivateKey, ed25519.PrivateKey, *ed25519.PrivateKey,
		interface {
			ECDH() (*ecdh.PrivateKey, error)
		}, interface{ Precompute() }, interface{ Seed() []byte }:
		c.found("%s: Signer returns a %T, which exposes the private key; contract: a store that makes keys never shows them", role, signer)
	}
}

// checkSame makes sure that the role's key is the one of that fingerprint and
// still signs.
func (c *checker) checkSame(role keystore.Role, id [32]byte, ks keystore.KeyStore, after string) {
	signer, err := c.signer(c.ctx, ks, role)
	if err != nil {
		c.found("%s: after %s Signer fails: %w; contract: a key that was there stays there", role, after, err)
		return
	}
	now, ok := c.public(role, signer)
	if !ok {
		return
	}
	if now != id {
		c.found("%s: after %s the public key has changed, fingerprint %x, before %x; contract: the key is always the same", role, after, now[:4], id[:4])
	}
	if s, ok := defaultScheme(signer); ok {
		if err := c.signAndVerify(signer, s, freshDigest(s.hash)); err != nil {
			c.found("%s: after %s signing with %v: %w; contract: signatures verify under Public", role, after, s, err)
		}
	}
}

// checkRestart opens the store anew and compares the keys, and once more and asks
// for keys that it has but has not opened yet to be made.
func (c *checker) checkRestart(keys map[keystore.Role][32]byte) {
	c.close()
	ks, unused := c.open(), c.open()
	if ks == nil || unused == nil {
		return
	}
	generator, generates := unused.(keystore.Generator)
	for _, role := range roles {
		id, ok := keys[role]
		if !ok {
			continue
		}
		c.checkSame(role, id, ks, "reopening the store")
		if generates {
			c.checkNoOverwrite(role, id, generator)
		}
	}
}

// checkCancelledSigner asks for a key with a context that has ended.
func (c *checker) checkCancelledSigner(role keystore.Role, id [32]byte, ks keystore.KeyStore) {
	ctx, cancel := context.WithCancel(c.ctx)
	cancel()
	signer, err := c.signer(ctx, ks, role)
	switch {
	case err == nil:
		if now, ok := c.public(role, signer); ok && now != id {
			c.found("%s: Signer with a cancelled context returns another key; contract: the key or the context's error", role)
		}
	case !errors.Is(err, context.Canceled):
		c.found("%s: Signer with a cancelled context: %w; contract: the key or the context's error", role, err)
	}
}

// public returns the fingerprint of a signer's public key.
func (c *checker) public(role keystore.Role, signer crypto.Signer) (id [32]byte, ok bool) {
	for call := range 3 {
		var pub crypto.PublicKey
		if err := guard(func() error { pub = signer.Public(); return nil }); err != nil {
			c.found("%s: Public %w; contract: it is cached and cannot fail", role, err)
			return id, false
		}
		if pub == nil {
			c.found("%s: Public() is nil; contract: it is cached and cannot fail", role)
			return id, false
		}
		now, err := keystore.Fingerprint(pub)
		if err != nil {
			c.found("%s: Public() is no usable key: %w; contract: *ecdsa.PublicKey, *rsa.PublicKey or ed25519.PublicKey", role, err)
			return id, false
		}
		if call > 0 && now != id {
			c.found("%s: Public() returns another key on its next call; contract: it is always the same", role)
			return id, false
		}
		id = now
	}
	return id, true
}

// open opens the store once more; it returns nil, and has recorded why, if that
// fails.
func (c *checker) open() keystore.KeyStore {
	ks, err := within(c, c.ctx, c.opener)
	if err == nil && ks == nil {
		err = errors.New("no store and no error")
	}
	if err != nil {
		c.found("open: %w; contract: the store opens any number of times", err)
		return nil
	}
	c.opened = append(c.opened, ks)
	return ks
}

func (c *checker) close() {
	for _, ks := range c.opened {
		if closer, ok := ks.(io.Closer); ok {
			shut := func(context.Context) (struct{}, error) { return struct{}{}, closer.Close() }
			if _, err := within(c, context.WithoutCancel(c.ctx), shut); err != nil {
				c.found("Close: %w; contract: a store closes without an error", err)
			}
		}
	}
	c.opened = nil
}

func (c *checker) signer(ctx context.Context, ks keystore.KeyStore, role keystore.Role) (crypto.Signer, error) {
	return c.call(ctx, "Signer", func(ctx context.Context) (crypto.Signer, error) { return ks.Signer(ctx, role) })
}

func (c *checker) generate(ctx context.Context, ks keystore.Generator, role keystore.Role) (crypto.Signer, error) {
	return c.call(ctx, "Generate", func(ctx context.Context) (crypto.Signer, error) { return ks.Generate(ctx, role) })
}

func (c *checker) call(ctx context.Context, name string, f func(context.Context) (crypto.Signer, error)) (crypto.Signer, error) {
	signer, err := within(c, ctx, f)
	if err == nil && signer == nil {
		err = fmt.Errorf("%s returned no signer and no error", name)
	}
	return signer, err
}

// within calls f with a context that ends after the limit at the latest, and
// returns an error if f panics, errHung if it has not returned when patience is at
// its end after the end of its context.
func within[T any](c *checker, ctx context.Context, f func(context.Context) (T, error)) (T, error) {
	var zero T
	if c.hangs() {
		return zero, errHung
	}
	ended := ctx.Done()
	if counting, ok := ctx.(*countdown); ok {
		ended = counting.Context.Done() // only f's looks count
	} else {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.limit)
		defer cancel()
	}
	type outcome struct {
		value T
		err   error
	}
	done := make(chan outcome, 1)
	go func() {
		var o outcome
		o.err = guard(func() (err error) {
			o.value, err = f(ctx)
			return err
		})
		done <- o
	}()
	timer := time.NewTimer(c.limit + c.patience)
	defer timer.Stop()
	for {
		select {
		case o := <-done:
			return o.value, o.err
		case <-ended:
			ended = nil
			timer.Reset(c.patience)
		case <-timer.C:
			return zero, errHung
		}
	}
}

// guard turns a panic into an error.
func guard(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panicked: %v", p)
		}
	}()
	return f()
}
