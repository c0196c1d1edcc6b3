package storetest_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/store"
	"github.com/quarklink-go/quarklink/store/storetest"
)

// plain is a store that cannot create.
type plain struct{ store.Store }

func TestGoodStores(t *testing.T) {
	dir := store.Dir(filepath.Join(t.TempDir(), "records"))
	for name, s := range map[string]store.Store{
		"Mem":       new(store.Mem),
		"Dir":       dir,
		"no Create": plain{new(store.Mem)},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			require.NoError(t, s.Put(ctx, "other", []byte("stays")))
			open := func(context.Context) (store.Store, error) { return s, nil }
			require.NoError(t, storetest.Test(ctx, open))
			require.NoError(t, storetest.Test(ctx, open), "again: it has left nothing behind")
			other, err := s.Get(ctx, "other")
			require.NoError(t, err)
			assert.Equal(t, "stays", string(other))
		})
	}
	left, err := filepath.Glob(filepath.Join(string(dir), "storetest*"))
	require.NoError(t, err)
	assert.Empty(t, left)
}

// broken is a store with one fault.
type broken struct {
	store.Mem
	fault string
	last  []byte // memory that it shares with its caller
	opens int
	race  atomic.Int32
}

func (b *broken) is(fault string) bool { return b.fault == fault }

func (b *broken) Get(ctx context.Context, name string) ([]byte, error) {
	data, err := b.Mem.Get(ctx, name)
	switch {
	case b.is("absent is empty") && errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case b.is("absent has bytes") && errors.Is(err, fs.ErrNotExist):
		return []byte{}, err
	case b.is("absent is another error") && errors.Is(err, fs.ErrNotExist):
		return nil, errors.New("no such record")
	case b.is("loses zeros at the end"):
		return bytes.TrimRight(data, "\x00"), err
	case b.is("empty is absent") && err == nil && len(data) == 0:
		return nil, fs.ErrNotExist
	case b.is("keeps the caller's memory") && err == nil && bytes.Equal(data, []byte("data")):
		return b.last, nil
	case b.is("hands out its own memory") && err == nil && bytes.Equal(data, []byte("data")):
		if b.last == nil {
			b.last = data
		}
		return b.last, nil
	case b.is("Get ignores the context") && ctx.Err() != nil:
		return b.Mem.Get(context.WithoutCancel(ctx), name)
	case b.is("Get panics"):
		panic("index out of range")
	case b.is("torn under load") && err == nil && b.race.Add(1)%7 == 0 && len(data) >= 100:
		return data[:len(data)-1], nil
	}
	return data, err
}

func (b *broken) Put(ctx context.Context, name string, data []byte) error {
	switch {
	case b.is("keeps the caller's memory") && bytes.Equal(data, []byte("data")):
		b.last = data
	case b.is("Put takes any name") && store.CheckName(name) != nil:
		return nil
	case b.is("upper case is lower case"):
		name = strings.ToLower(name)
	case b.is("names of 14 characters") && len(name) == 15:
		name = name[:14]
	case b.is("Put takes any size") && len(data) > store.MaxSize:
		return nil
	case b.is("a large record truncates") && len(data) > store.MaxSize:
		return errors.Join(b.Mem.Put(ctx, name, data[:store.MaxSize]), fs.ErrInvalid)
	case b.is("small") && len(data) > 4000:
		return errors.New("no room")
	case b.is("Put ignores the context"):
		return b.Mem.Put(context.WithoutCancel(ctx), name, data)
	case b.is("an interrupted Put loses the record"):
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := b.Mem.Delete(context.WithoutCancel(ctx), name); err != nil {
			return err
		}
	case b.is("an interrupted Put is none") && ctx.Err() == nil && ctx.Err() != nil:
		return nil
	}
	return b.Mem.Put(ctx, name, data)
}

func (b *broken) Delete(ctx context.Context, name string) error {
	switch {
	case b.is("Delete does nothing"):
		_, err := b.Mem.Get(ctx, name)
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return err
	case b.is("Delete of an absent record fails"):
		if _, err := b.Mem.Get(ctx, name); err != nil {
			return err
		}
	case b.is("Delete ignores the context"):
		ctx = context.WithoutCancel(ctx)
	case b.is("Delete takes any name") && store.CheckName(name) != nil:
		return nil
	}
	return b.Mem.Delete(ctx, name)
}

func (b *broken) Create(ctx context.Context, name string, data []byte) error {
	switch {
	case b.is("Create overwrites"):
		return b.Mem.Put(ctx, name, data)
	case b.is("Create overwrites what is empty"):
		if old, err := b.Mem.Get(ctx, name); err == nil && len(old) == 0 {
			return b.Mem.Put(ctx, name, data)
		}
	case b.is("Create says ErrInvalid"):
		if err := b.Mem.Create(ctx, name, data); errors.Is(err, fs.ErrExist) {
			return fs.ErrInvalid
		}
		return nil
	case b.is("Create ignores the context"):
		ctx = context.WithoutCancel(ctx)
	}
	return b.Mem.Create(ctx, name, data)
}

func (b *broken) open(context.Context) (store.Store, error) {
	b.opens++
	switch {
	case b.is("does not open"):
		return nil, errors.New("no flash")
	case b.is("opens to nothing"):
		return nil, nil
	case b.is("forgets") && b.opens > 1:
		return new(store.Mem), nil
	case b.is("does not open again") && b.opens > 1:
		return nil, errors.New("locked")
	}
	return b, nil
}

// Each fault is found, and the finding says what was wrong.
func TestBrokenStores(t *testing.T) {
	for fault, want := range map[string]string{
		"absent is empty":                     "Get before anything was written: error <nil>",
		"absent has bytes":                    "0 bytes beside its error",
		"absent is another error":             "no such record; contract: an absent record is fs.ErrNotExist",
		"loses zeros at the end":              "Get after Put of a shorter record over a longer one: 0 bytes",
		"empty is absent":                     "Get after Put of nothing",
		"keeps the caller's memory":           "after the caller has changed what it put",
		"hands out its own memory":            "after the caller has changed what it got",
		"Get ignores the context":             "Get with a context that has ended: error <nil>",
		"Get panics":                          "the store panics: index out of range",
		"torn under load":                     "while others write: ",
		"Put takes any name":                  `Put with the name "../storetest": error <nil>`,
		"upper case is lower case":            `Put with the name "Storetest": error <nil>`,
		"names of 14 characters":              "of a name of 15 characters",
		"Put takes any size":                  "Put of more than MaxSize bytes: error <nil>",
		"a large record truncates":            "after a Put that was refused",
		"small":                               "Put of 65536 bytes: no room",
		"Put ignores the context":             "Put with a context that has ended: error <nil>",
		"an interrupted Put loses the record": "after a Put whose context ended meanwhile: 0 bytes",
		"an interrupted Put is none":          "after a Put that succeeded though its context ended meanwhile",
		"Delete does nothing":                 "Get after Delete: error <nil>",
		"Delete of an absent record fails":    "Delete: store: get",
		"Delete ignores the context":          "Delete with a context that has ended: error <nil>",
		"Delete takes any name":               `Delete with the name "": error <nil>`,
		"Create overwrites":                   "Create over a record: error <nil>",
		"Create overwrites what is empty":     "Create over a record: error <nil>",
		"Create says ErrInvalid":              "Create over a record: error invalid argument",
		"Create ignores the context":          "Create with a context that has ended: error ",
		"does not open":                       "open: no flash",
		"opens to nothing":                    "open: no store and no error",
		"forgets":                             "after the store was opened again",
		"does not open again":                 "open: locked",
	} {
		t.Run(fault, func(t *testing.T) {
			b := &broken{fault: fault}
			err := storetest.Test(t.Context(), b.open)
			require.Error(t, err)
			assert.Contains(t, err.Error(), want)
			for line := range strings.Lines(err.Error()) {
				assert.True(t, strings.HasPrefix(line, "storetest: "), line)
				assert.Contains(t, line, "; contract: ")
			}
		})
	}
}

// A check that is cut short says so.
func TestEndOfContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	err := storetest.Test(ctx, func(context.Context) (store.Store, error) {
		cancel()
		return new(store.Mem), nil
	})
	require.ErrorIs(t, err, context.Canceled)
	assert.EqualError(t, err, "storetest: not finished: context canceled")
}
