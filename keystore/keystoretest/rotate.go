package keystoretest

import (
	"context"
	"crypto"
	"errors"
	"io/fs"

	"github.com/quarklink-go/quarklink/keystore"
)

// TestRotator checks a [keystore.Rotator] as [Test] checks every store, and
// returns its findings likewise. It gives the device a new Device key, so that
// whatever was certified for the old one is void, and gives up a staged key that
// it finds. The other conditions are those of Test, which does not call it.
func TestRotator(ctx context.Context, open func(context.Context) (keystore.KeyStore, error)) error {
	c := &checker{ctx: ctx, opener: open, patience: patience, limit: callLimit}
	return c.test(c.rotate)
}

// rotator is a store under test.
type rotator struct {
	c *checker
	keystore.Rotator
}

func (c *checker) rotator() (rotator, bool) {
	ks := c.open()
	r, ok := ks.(keystore.Rotator)
	if ks != nil && !ok {
		c.found("open returned a %T; contract: a keystore.Rotator", ks)
	}
	return rotator{c, r}, ok
}

func (c *checker) rotate() {
	first, ok := c.rotator()
	second, ok2 := c.rotator()
	if !ok || !ok2 {
		return
	}
	device, shared, ok := c.devicesKey(first)
	if !ok {
		return
	}
	identity := first.unchangeable(keystore.Enrolment)
	if shared {
		first.unchangeable(keystore.Device)
		return
	}
	first.do("Discard of what may be staged", first.Discard)
	first.do("Commit with nothing staged", first.Commit)
	first.do("Discard with nothing staged", first.Discard)
	c.checkSame(keystore.Device, device, first, "Commit and Discard with nothing staged")

	given, ok := first.stage("Stage", device)
	if !ok {
		return
	}
	c.checkSame(keystore.Device, device, first, "Stage")
	c.checkSame(keystore.Device, device, second, "Stage by another instance")
	second.stagedAlready("Stage by another instance", given)
	first.do("Discard", first.Discard)
	c.checkSame(keystore.Device, device, first, "Discard")
	next, ok := first.stage("Stage after Discard", device)
	if !ok {
		return
	}
	if next == given {
		c.found("dsk: Stage after Discard returns the key that was given up; contract: a new one")
	}
	c.restarted(identity, device, next)
}

// restarted goes on after a restart, and commits the staged key.
func (c *checker) restarted(identity *[32]byte, device, next [32]byte) {
	c.close()
	first, ok := c.rotator()
	second, ok2 := c.rotator()
	if !ok || !ok2 {
		return
	}
	for _, r := range []rotator{first, second} {
		c.checkSame(keystore.Device, device, r, "Stage and reopening the store")
	}
	first.stagedAlready("reopening the store", next)
	first.interruptedCommit(device, next)
	first.do("Commit", first.Commit)
	c.checkSame(keystore.Device, next, first, "Commit")
	if third, ok := c.rotator(); ok {
		c.checkSame(keystore.Device, next, third, "Commit by another instance")
		third.do("another Commit", third.Commit)
		c.checkSame(keystore.Device, next, third, "another Commit")
		third.stage("Stage after Commit", next)
		third.do("Discard after Commit", third.Discard)
		c.checkSame(keystore.Device, next, third, "Discard after Commit")
		if identity != nil {
			c.checkSame(keystore.Enrolment, *identity, third, "the device key was replaced")
		}
	}
}

// devicesKey returns the device key, which it makes if it is absent, and
// whether it is the identity's too.
func (c *checker) devicesKey(r rotator) (id [32]byte, shared, ok bool) {
	signer, err := c.signer(c.ctx, r, keystore.Device)
	if errors.Is(err, fs.ErrNotExist) {
		signer, err = c.generate(c.ctx, r, keystore.Device)
	}
	if err != nil {
		c.found("dsk: no key to replace: %w; contract: one that is absent can be made", err)
		return id, false, false
	}
	if id, ok = c.public(keystore.Device, signer); !ok {
		return id, false, false
	}
	if esk, err := c.signer(c.ctx, r, keystore.Enrolment); err == nil {
		other, known := c.public(keystore.Enrolment, esk)
		shared = known && other == id
	}
	return id, shared, true
}

// unchangeable checks that a role's key, if it is there, is never replaced, and
// returns it.
func (r rotator) unchangeable(role keystore.Role) *[32]byte {
	var id *[32]byte
	if signer, err := r.c.signer(r.c.ctx, r, role); err == nil {
		if now, ok := r.c.public(role, signer); ok {
			id = &now
		}
	}
	calls := map[string]func(context.Context) error{
		"Stage": func(ctx context.Context) error {
			_, err := r.Stage(ctx, role)
			return err
		},
		"Commit":  func(ctx context.Context) error { return r.Commit(ctx, role) },
		"Discard": func(ctx context.Context) error { return r.Discard(ctx, role) },
	}
	for name, call := range calls {
		if err := r.run(call); !errors.Is(err, errors.ErrUnsupported) {
			r.c.found("%s: %s: %w; contract: errors.ErrUnsupported, this key never changes", role, name, orNoError(err))
		}
	}
	if id != nil {
		r.c.checkSame(role, *id, r, "Stage, Commit and Discard")
	}
	return id
}

func (r rotator) run(call func(context.Context) error) error {
	_, err := within(r.c, r.c.ctx, func(ctx context.Context) (struct{}, error) { return struct{}{}, call(ctx) })
	return err
}

// do makes a call that has to succeed.
func (r rotator) do(what string, call func(context.Context, keystore.Role) error) {
	if err := r.run(func(ctx context.Context) error { return call(ctx, keystore.Device) }); err != nil {
		r.c.found("dsk: %s: %w; contract: it succeeds, any number of times", what, err)
	}
}

func (r rotator) stageOnce(ctx context.Context) (crypto.Signer, error) {
	return r.c.call(ctx, "Stage", func(ctx context.Context) (crypto.Signer, error) {
		return r.Stage(ctx, keystore.Device)
	})
}

// stage stages a key that has to be another than the device's, and is the same
// when it is asked for again.
func (r rotator) stage(what string, device [32]byte) (id [32]byte, ok bool) {
	ctx, cancel := context.WithCancel(r.c.ctx)
	cancel()
	if _, err := r.stageOnce(ctx); err != nil && !errors.Is(err, context.Canceled) {
		r.c.found("dsk: Stage with a cancelled context: %w; contract: the context's error or a key", err)
	}
	signer, err := r.stageOnce(r.c.ctx)
	if err != nil {
		r.c.found("dsk: %s: %w; contract: it makes a key, or returns the one that is staged", what, err)
		return id, false
	}
	if id, ok = r.c.public(keystore.Device, signer); !ok {
		return id, false
	}
	if id == device {
		r.c.found("dsk: %s returns the key that the role has; contract: a new one", what)
		return id, false
	}
	r.c.checkHidden(keystore.Device, signer)
	if s, ok := defaultScheme(signer); ok {
		if err := r.c.signAndVerify(signer, s, freshDigest(s.hash)); err != nil {
			r.c.found("dsk: signing with a staged key: %w; contract: it is as good as any", err)
		}
	}
	r.stagedAlready(what, id)
	return id, true
}

func (r rotator) stagedAlready(after string, id [32]byte) {
	signer, err := r.stageOnce(r.c.ctx)
	if err != nil {
		r.c.found("dsk: after %s Stage fails: %w; contract: it returns the key that is staged", after, err)
		return
	}
	if now, ok := r.c.public(keystore.Device, signer); ok && now != id {
		r.c.found("dsk: after %s Stage returns another key; contract: the key that is staged", after)
	}
}

// interruptedCommit lets the context of Commit end the first time the store looks
// at it, the second time, and so on: the key is the old one or the new one.
func (r rotator) interruptedCommit(device, next [32]byte) {
	const attempts = 6
	for looks := range attempts {
		ctx := newCountdown(r.c.ctx, looks)
		_, err := within(r.c, ctx, func(ctx context.Context) (struct{}, error) {
			return struct{}{}, r.Commit(ctx, keystore.Device)
		})
		ctx.cancel()
		if err == nil {
			return
		}
		if !errors.Is(err, context.Canceled) {
			r.c.found("dsk: Commit whose context ends meanwhile: %w; contract: the context's error or success", err)
			return
		}
		fresh, ok := r.c.rotator()
		if !ok {
			return
		}
		signer, err := r.c.signer(r.c.ctx, fresh, keystore.Device)
		if err != nil {
			r.c.found("dsk: after an interrupted Commit Signer fails: %w; contract: the old key or the new one", err)
			return
		}
		if now, ok := r.c.public(keystore.Device, signer); ok && now != device && now != next {
			r.c.found("dsk: after an interrupted Commit there is a third key; contract: the old key or the new one")
		}
	}
}
