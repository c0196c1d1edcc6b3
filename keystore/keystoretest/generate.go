package keystoretest

import (
	"context"
	"crypto"
	"errors"
	"io/fs"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quarklink-go/quarklink/keystore"
)

// checkGenerator makes the keys that are absent: the first by several calls at
// once, the second by a call whose context ends ever later.
func (c *checker) checkGenerator(first keystore.Generator, other keystore.KeyStore) {
	second, ok := other.(keystore.Generator)
	if !ok {
		c.found("open returned a %T that makes keys, then a %T that does not; contract: the same store every time", first, other)
		return
	}
	makeKey := []func(keystore.Role, keystore.Generator, keystore.Generator) (crypto.Signer, bool){
		c.generateTogether, c.generateInterrupted,
	}
	made := make(map[[32]byte]keystore.Role)
	for _, role := range roles {
		if _, err := c.signer(c.ctx, first, role); !errors.Is(err, fs.ErrNotExist) {
			continue // there, perhaps as the one key for both roles, or not to be opened, which is found later
		}
		c.checkCancelledGenerate(role, first, second)
		signer, ok := makeKey[len(made)](role, first, second)
		if !ok {
			return
		}
		id, ok := c.public(role, signer)
		if !ok {
			return
		}
		if twin, ok := made[id]; ok {
			c.found("%s: Generate made the key that %s has; contract: each is a new one", role, twin)
		}
		made[id] = role
		c.checkSame(role, id, first, "Generate")
		c.checkSame(role, id, second, "Generate by another instance of the store")
	}
}

// checkNoOverwrite asks for a key that is there to be made.
func (c *checker) checkNoOverwrite(role keystore.Role, id [32]byte, ks keystore.Generator) {
	_, err := c.generate(c.ctx, ks, role)
	if !errors.Is(err, fs.ErrExist) {
		c.found("%s: Generate on an existing key: %w; contract: fs.ErrExist", role, orNoError(err))
	}
	c.checkSame(role, id, ks, "Generate on an existing key")

	ctx, cancel := context.WithCancel(c.ctx)
	cancel()
	_, err = c.generate(ctx, ks, role)
	if !errors.Is(err, fs.ErrExist) && !errors.Is(err, context.Canceled) {
		c.found("%s: Generate on an existing key with a cancelled context: %w; contract: fs.ErrExist or the context's error", role, orNoError(err))
	}
	c.checkSame(role, id, ks, "a cancelled Generate on an existing key")
}

// checkCancelledGenerate asks for an absent key with a context that has ended.
// To make the key all the same is allowed.
func (c *checker) checkCancelledGenerate(role keystore.Role, first, second keystore.Generator) {
	ctx, cancel := context.WithCancel(c.ctx)
	cancel()
	goroutines := runtime.NumGoroutine()
	if _, err := c.generate(ctx, first, role); err != nil {
		if !errors.Is(err, context.Canceled) {
			c.found("%s: Generate with a cancelled context: %w; contract: the context's error or a key", role, err)
		}
		c.settle(goroutines)
		c.checkAbsent(role, first, second)
	}
}

func (c *checker) checkAbsent(role keystore.Role, stores ...keystore.Generator) {
	for _, ks := range stores {
		if _, err := c.signer(c.ctx, ks, role); !errors.Is(err, fs.ErrNotExist) {
			c.found("%s: after Generate failed with its context's error Signer gives: %w; contract: there is no key, fs.ErrNotExist", role, orNoError(err))
			return
		}
	}
}

// generateTogether lets several calls on two instances make one key at once.
func (c *checker) generateTogether(role keystore.Role, first, second keystore.Generator) (crypto.Signer, bool) {
	const callsEach = 2
	var wg sync.WaitGroup
	var mu sync.Mutex
	var winners []crypto.Signer
	start := make(chan struct{})
	for range callsEach {
		for _, ks := range []keystore.Generator{first, second} {
			wg.Add(1)
			go func() {
				defer wg.Done()
				<-start
				signer, err := c.generate(c.ctx, ks, role)
				switch {
				case err == nil:
					mu.Lock()
					winners = append(winners, signer)
					mu.Unlock()
				case !errors.Is(err, fs.ErrExist):
					c.found("%s: concurrent Generate: %w; contract: one call makes the key, the others get fs.ErrExist", role, err)
				}
			}()
		}
	}
	close(start)
	wg.Wait()
	if len(winners) == 1 {
		return winners[0], true
	}
	c.found("%s: of %d concurrent Generate calls %d made a key; contract: exactly one", role, 2*callsEach, len(winners))
	return nil, false
}

// generateInterrupted lets the context end the first time the store looks at it,
// the second time, and so on until the key is made.
func (c *checker) generateInterrupted(role keystore.Role, first, second keystore.Generator) (crypto.Signer, bool) {
	const attempts = 6 // each may cost the store the making of an RSA key
	for looks := range attempts {
		ctx := newCountdown(c.ctx, looks)
		goroutines := runtime.NumGoroutine()
		signer, err := c.generate(ctx, first, role)
		ctx.cancel()
		if err == nil {
			return signer, true
		}
		if !errors.Is(err, context.Canceled) {
			c.found("%s: Generate whose context ends meanwhile: %w; contract: the context's error or a key", role, err)
			return nil, false
		}
		c.settle(goroutines)
		c.checkAbsent(role, first, second)
	}
	signer, err := c.generate(c.ctx, first, role)
	if err != nil {
		c.found("%s: Generate: %w; contract: it makes the key that is absent", role, err)
		return nil, false
	}
	return signer, true
}

// countdown is a context that ends when it has been looked at some times.
type countdown struct {
	context.Context
	cancel context.CancelFunc
	left   atomic.Int64
}

func newCountdown(parent context.Context, looks int) *countdown {
	ctx, cancel := context.WithCancel(parent)
	c := &countdown{Context: ctx, cancel: cancel}
	c.left.Store(int64(looks))
	return c
}

func (c *countdown) look() {
	if c.left.Add(-1) < 0 {
		c.cancel()
	}
}

func (c *countdown) Err() error            { c.look(); return c.Context.Err() }
func (c *countdown) Done() <-chan struct{} { c.look(); return c.Context.Done() }

// settle waits until no more goroutines run than before, for a while: what a call
// left running may still come to something.
func (c *checker) settle(before int) (now int) {
	deadline := time.Now().Add(c.patience)
	for {
		now = runtime.NumGoroutine()
		if now <= before || time.Now().After(deadline) || c.ctx.Err() != nil {
			return now
		}
		time.Sleep(time.Millisecond)
	}
}

var errNone = errors.New("no error")

func orNoError(err error) error {
	if err == nil {
		return errNone
	}
	return err
}
