package nvs_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"testing"

	"github.com/quarklink-go/quarklink/esp/flash"
	"github.com/quarklink-go/quarklink/esp/nvs"
	"github.com/quarklink-go/quarklink/store"
)

// TestStore: a namespace keeps what store.Store and store.Creator promise.
func TestStore(t *testing.T) {
	p, err := nvs.Open(flash.NewMemory(40*flash.SectorSize), nvs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ns, err := p.Namespace("quarklink")
	if err != nil {
		t.Fatal(err)
	}
	var s store.Creator = ns
	ctx := t.Context()
	holds := func(name, want string) {
		t.Helper()
		if b, err := s.Get(ctx, name); err != nil || string(b) != want {
			t.Errorf("%s: %.20q, %v, want %.20q", name, b, err, want)
		}
	}
	absent := func(name string) {
		t.Helper()
		if b, err := s.Get(ctx, name); b != nil || !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %.20q, %v", name, b, err)
		}
	}
	absent("one")
	most := bytes.Repeat([]byte{'x'}, store.MaxSize)
	if err := errors.Join(s.Delete(ctx, "one"), s.Put(ctx, "most", most), s.Create(ctx, "one", nil), s.Put(ctx, "two", []byte("2"))); err != nil {
		t.Fatal(err)
	}
	holds("most", string(most))
	holds("one", "")
	for _, name := range []string{"one", "two"} {
		if err := s.Create(ctx, name, []byte("x")); !errors.Is(err, fs.ErrExist) {
			t.Errorf("create %s again: %v", name, err)
		}
	}
	if err := errors.Join(s.Delete(ctx, "one"), s.Delete(ctx, "one")); err != nil {
		t.Error(err)
	}
	absent("one")
	holds("two", "2")

	ended, end := context.WithCancel(ctx)
	end()
	for what, c := range map[string]struct {
		ctx  context.Context
		name string
		data []byte
		want error
	}{
		"large record":  {ctx, "most", append(most, 'x'), fs.ErrInvalid},
		"name":          {ctx, "../most", nil, fs.ErrInvalid},
		"context ended": {ended, "most", nil, context.Canceled},
	} {
		if err := s.Put(c.ctx, c.name, c.data); !errors.Is(err, c.want) {
			t.Errorf("put, %s: %v", what, err)
		}
		if err := s.Create(c.ctx, c.name, c.data); !errors.Is(err, c.want) {
			t.Errorf("create, %s: %v", what, err)
		}
	}
	holds("most", string(most))
}
