// Package storetest checks that a store keeps the contract of package store, as
// testing/fstest does for file systems. It imports no testing, so that a program
// can check the medium it runs on.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"

	"github.com/quarklink-go/quarklink/store"
)

// Test checks a store and returns nil, or all findings joined into one error (see
// [errors.Join]), each saying what broke and what the contract is.
//
// It calls open twice. Both stores must have the same records, as after a
// restart; the first is not used after the second has been opened. Records whose
// names begin with "storetest" are Test's own and gone afterwards; others are
// left alone. The store needs room for two records of [store.MaxSize] and a few
// small ones.
//
// A [store.Creator] is checked as one. What no program can check from the inside
// is what a power cut leaves behind: test that with a model of the medium.
//
// When ctx ends Test returns early with what it found and the context's error.
func Test(ctx context.Context, open func(context.Context) (store.Store, error)) error {
	c := &checker{ctx: ctx}
	for _, check := range []func(){
		func() { c.open(open) },
		c.checkAbsent,
		c.checkRecords,
		c.checkCopies,
		c.checkNames,
		c.checkSizes,
		c.checkEndedContext,
		c.checkInterruptedPut,
		c.checkCreate,
		c.checkConcurrent,
		func() { c.checkRestart(open) },
	} {
		if ctx.Err() != nil || c.broken {
			break
		}
		c.guard(check)
		c.guard(c.clean)
	}
	if err := ctx.Err(); err != nil {
		c.findings = append(c.findings, fmt.Errorf("storetest: not finished: %w", err))
	}
	return errors.Join(c.findings...)
}

// Names of the records that Test makes. The longest name is 15 characters.
const (
	one     = "storetest-1"
	two     = "storetest-2"
	long    = "storetest-long1"
	longer  = "storetest-long2" // differs in the last character
	created = "storetest-new"
)

type checker struct {
	ctx   context.Context
	store store.Store

	mu       sync.Mutex
	findings []error
	broken   bool // there is no store to go on with
}

// found records a finding: what happened and, after "contract:", what should have.
func (c *checker) found(format string, args ...any) {
	if c.ctx.Err() != nil {
		return // what fails then, fails because of it
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.findings = append(c.findings, fmt.Errorf("storetest: "+format, args...))
}

func (c *checker) guard(check func()) {
	defer func() {
		if reason := recover(); reason != nil {
			c.found("the store panics: %v; contract: it never does", reason)
		}
	}()
	check()
}

func (c *checker) open(open func(context.Context) (store.Store, error)) {
	s, err := open(c.ctx)
	if err == nil && s == nil {
		err = errors.New("no store and no error")
	}
	if err != nil {
		c.broken = true
		c.found("open: %w; contract: the store opens any number of times", err)
		return
	}
	c.store = s
}

// clean deletes what Test has made.
func (c *checker) clean() {
	if c.store == nil {
		return
	}
	for _, name := range []string{one, two, long, longer, created} {
		c.delete(name)
	}
}

func (c *checker) put(name string, data []byte) bool {
	err := c.store.Put(c.ctx, name, data)
	if err != nil {
		c.found("Put of %d bytes: %w; contract: the record is written", len(data), err)
	}
	return err == nil
}

func (c *checker) delete(name string) {
	if err := c.store.Delete(c.ctx, name); err != nil {
		c.found("Delete: %w; contract: the record is gone, and an absent one is not an error", err)
	}
}

func (c *checker) absent(name, after string) {
	switch data, err := c.store.Get(c.ctx, name); {
	case !errors.Is(err, fs.ErrNotExist):
		c.found("Get %s: error %v; contract: an absent record is fs.ErrNotExist", after, err)
	case data != nil:
		c.found("Get %s: %d bytes beside its error; contract: an absent record has none", after, len(data))
	}
}

func (c *checker) holds(name string, want []byte, after string) {
	switch got, err := c.store.Get(c.ctx, name); {
	case err != nil:
		c.found("Get %s: %w; contract: the record is read", after, err)
	case !bytes.Equal(got, want):
		c.found("Get %s: %d bytes %.20q, want %d bytes %.20q; contract: a record is read as it was written",
			after, len(got), got, len(want), want)
	}
}

// refused checks that an error is the one that the contract names.
func (c *checker) refused(call string, err, want error) {
	if !errors.Is(err, want) {
		c.found("%s: error %v; contract: it is refused with %v", call, err, want)
	}
}

// largest is a record of the largest size in which no two parts are the same.
func largest() []byte {
	data := make([]byte, 0, store.MaxSize+4)
	for n := 0; len(data) < store.MaxSize; n++ {
		data = append(data, byte(n>>8), byte(n))
	}
	return data[:store.MaxSize]
}

func (c *checker) checkAbsent() {
	c.absent(one, "before anything was written")
	c.delete(one)
	c.absent(one, "after Delete of an absent record")
}

func (c *checker) checkRecords() {
	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}
	for _, record := range []struct {
		what string
		data []byte
	}{
		{"of a text", []byte("text")},
		{"of every byte", every},
		{"of a shorter record over a longer one", []byte{0}},
		{"of nothing", nil},
		{"of the largest record", largest()},
		{"of a small record over the largest", []byte("small")},
	} {
		if c.put(one, record.data) {
			c.holds(one, record.data, "after Put "+record.what)
		}
	}
	c.put(two, []byte("other"))
	c.delete(one)
	c.absent(one, "after Delete")
	c.holds(two, []byte("other"), "after Delete of another record")
	c.put(long, []byte("1"))
	c.put(longer, []byte("2"))
	c.holds(long, []byte("1"), "of a name of 15 characters")
	c.holds(longer, []byte("2"), "of another name of 15 characters")
}

func (c *checker) checkCopies() {
	data := []byte("data")
	if !c.put(one, data) {
		return
	}
	data[0] = 'X'
	c.holds(one, []byte("data"), "after the caller has changed what it put")
	got, err := c.store.Get(c.ctx, one)
	if err != nil || len(got) == 0 {
		return // found already
	}
	got[0] = 'X'
	c.holds(one, []byte("data"), "after the caller has changed what it got")
}

func (c *checker) checkNames() {
	for _, name := range []string{
		"", "storetest-longer", "Storetest", "store_test", "store.test", "..", "../storetest", "a/b", `a\b`, "a b",
		"a\n", "a\x00", "é", "a:b",
	} {
		c.refuses(c.ctx, name, nil, fs.ErrInvalid, fmt.Sprintf("with the name %q", name))
	}
	if err := c.store.Delete(c.ctx, "storetest-az09"); err != nil {
		c.found("Delete with the name %q: %w; contract: a-z, 0-9 and - are names", "storetest-az09", err)
	}
}

// refuses checks that every call is refused.
func (c *checker) refuses(ctx context.Context, name string, data []byte, want error, how string) {
	_, err := c.store.Get(ctx, name)
	c.refused("Get "+how, err, want)
	c.refused("Delete "+how, c.store.Delete(ctx, name), want)
	c.writesRefused(ctx, name, data, want, how)
}

func (c *checker) writesRefused(ctx context.Context, name string, data []byte, want error, how string) {
	c.refused("Put "+how, c.store.Put(ctx, name, data), want)
	if creator, ok := c.store.(store.Creator); ok {
		c.refused("Create "+how, creator.Create(ctx, name, data), want)
	}
}

func (c *checker) checkSizes() {
	c.put(one, []byte("old"))
	tooLarge := append(largest(), 0)
	c.writesRefused(c.ctx, one, tooLarge, fs.ErrInvalid, "of more than MaxSize bytes")
	c.writesRefused(c.ctx, two, tooLarge, fs.ErrInvalid, "of more than MaxSize bytes")
	c.holds(one, []byte("old"), "after a Put that was refused")
	c.absent(two, "after a Put that was refused")
}

func (c *checker) checkEndedContext() {
	c.put(one, []byte("old"))
	ended, end := context.WithCancel(c.ctx)
	end()
	c.refuses(ended, one, []byte("new"), context.Canceled, "with a context that has ended")
	c.writesRefused(ended, two, []byte("new"), context.Canceled, "with a context that has ended")
	c.holds(one, []byte("old"), "after calls whose context had ended")
	c.absent(two, "after calls whose context had ended")
}

// checkInterruptedPut ends the context in the middle of a Put, at each point at
// which the store looks at it.
func (c *checker) checkInterruptedPut() {
	old := bytes.Repeat([]byte("old"), 100)
	for looks := range 8 {
		if !c.put(one, old) {
			return
		}
		next := bytes.Repeat([]byte{byte('0' + looks)}, 400)
		ctx := newCountdown(c.ctx, looks)
		err := c.store.Put(ctx, one, next)
		ctx.cancel()
		if err == nil {
			c.holds(one, next, "after a Put that succeeded though its context ended meanwhile")
			continue
		}
		got, err := c.store.Get(c.ctx, one)
		if err != nil || !bytes.Equal(got, old) && !bytes.Equal(got, next) {
			c.found("Get after a Put whose context ended meanwhile: %d bytes %.20q, error %v; "+
				"contract: the old record or the new one", len(got), got, err)
		}
	}
}

// countdown is a context that ends when it has been looked at so often.
type countdown struct {
	context.Context
	cancel context.CancelFunc

	mu   sync.Mutex
	left int
}

func newCountdown(parent context.Context, looks int) *countdown {
	ctx, cancel := context.WithCancel(parent)
	return &countdown{Context: ctx, cancel: cancel, left: looks}
}

func (c *countdown) look() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.left--; c.left < 0 {
		c.cancel()
	}
}

func (c *countdown) Err() error            { c.look(); return c.Context.Err() }
func (c *countdown) Done() <-chan struct{} { c.look(); return c.Context.Done() }

func (c *checker) checkCreate() {
	creator, ok := c.store.(store.Creator)
	if !ok {
		return
	}
	create := func(data string) {
		if err := creator.Create(c.ctx, created, []byte(data)); err != nil {
			c.found("Create: %w; contract: it writes a record that is absent", err)
		}
	}
	for _, first := range []string{"first", ""} {
		create(first)
		c.holds(created, []byte(first), "after Create")
		err := creator.Create(c.ctx, created, []byte("second"))
		c.refused("Create over a record", err, fs.ErrExist)
		c.holds(created, []byte(first), "after Create over a record")
		c.delete(created)
	}
	create("again")
	c.holds(created, []byte("again"), "after Create of a record that was deleted")
	data := []byte("data")
	if err := creator.Create(c.ctx, two, data); err == nil {
		data[0] = 'X'
		c.holds(two, []byte("data"), "after the caller has changed what it created")
	}
}

// checkConcurrent has several goroutines write and read: every Get sees a whole
// record, and one Create wins.
func (c *checker) checkConcurrent() {
	const writers, rounds = 8, 10
	if !c.put(one, record(0)) {
		return
	}
	var winners []int
	var wait sync.WaitGroup
	for writer := range writers {
		wait.Add(1)
		go func() {
			defer wait.Done()
			c.guard(func() {
				if creator, ok := c.store.(store.Creator); ok {
					switch err := creator.Create(c.ctx, created, record(writer)); {
					case err == nil:
						c.mu.Lock()
						winners = append(winners, writer)
						c.mu.Unlock()
					default:
						c.refused("Create by several at once", err, fs.ErrExist)
					}
				}
				for range rounds {
					c.put(one, record(writer))
					if got, err := c.store.Get(c.ctx, one); err != nil || !isRecord(got) {
						c.found("Get while others write: %d bytes %.20q, error %v; contract: every record is whole",
							len(got), got, err)
					}
				}
			})
		}()
	}
	wait.Wait()
	if _, ok := c.store.(store.Creator); !ok || c.ctx.Err() != nil {
		return
	}
	if len(winners) != 1 {
		c.found("%d of %d Creates at once succeeded; contract: one does", len(winners), writers)
		return
	}
	c.holds(created, record(winners[0]), "after Create by several at once")
}

// record is a record that shows by whom it was written, and whether it is whole.
func record(writer int) []byte { return bytes.Repeat([]byte{byte('a' + writer)}, 100*(writer+1)) }

func isRecord(data []byte) bool { return len(data) > 0 && bytes.Equal(data, record(int(data[0]-'a'))) }

func (c *checker) checkRestart(open func(context.Context) (store.Store, error)) {
	c.put(one, largest())
	c.put(two, []byte("2"))
	c.delete(two)
	if c.open(open); c.broken {
		return
	}
	c.holds(one, largest(), "after the store was opened again")
	c.absent(two, "of a deleted record after the store was opened again")
}
