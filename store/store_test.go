package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"
	"testing"

	"github.com/quarklink-go/quarklink/store"
)

// creators are the stores that the contract is tested with, each on fresh state.
func creators(t *testing.T) map[string]store.Creator {
	return map[string]store.Creator{
		"Mem": new(store.Mem),
		"Dir": store.Dir(filepath.Join(t.TempDir(), "a", "b")),
	}
}

func TestCheckName(t *testing.T) {
	for _, name := range []string{"a", "0", "-", "key-esk", "123456789012345"} {
		if err := store.CheckName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"", "1234567890123456", "A", "a_b", "a.b", "..", "a/b", `a\b`, "a b", "a\n", "a\x00", "é", "a:b"} {
		if err := store.CheckName(name); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("%q: got %v, want fs.ErrInvalid", name, err)
		}
	}
}

func TestContract(t *testing.T) {
	for kind, s := range creators(t) {
		t.Run(kind, func(t *testing.T) {
			ctx := t.Context()
			absent := func(name string) {
				t.Helper()
				if data, err := s.Get(ctx, name); !errors.Is(err, fs.ErrNotExist) || data != nil {
					t.Errorf("Get(%q): got %q, %v; want fs.ErrNotExist", name, data, err)
				}
			}
			holds := func(name, want string) {
				t.Helper()
				if data, err := s.Get(ctx, name); err != nil || string(data) != want {
					t.Errorf("Get(%q): got %q, %v; want %q", name, data, err, want)
				}
			}
			must := func(err error) {
				t.Helper()
				if err != nil {
					t.Error(err)
				}
			}
			absent("one")
			must(s.Delete(ctx, "one"))
			must(s.Put(ctx, "one", []byte("1")))
			must(s.Put(ctx, "two", nil))
			holds("one", "1")
			holds("two", "")
			if err := s.Create(ctx, "one", []byte("x")); !errors.Is(err, fs.ErrExist) {
				t.Errorf("Create over a record: %v, want fs.ErrExist", err)
			}
			if err := s.Create(ctx, "two", []byte("x")); !errors.Is(err, fs.ErrExist) {
				t.Errorf("Create over an empty record: %v, want fs.ErrExist", err)
			}
			must(s.Put(ctx, "one", []byte("new")))
			holds("one", "new")
			must(s.Delete(ctx, "one"))
			absent("one")
			holds("two", "")
			must(s.Create(ctx, "one", []byte("created")))
			holds("one", "created")
			must(s.Delete(ctx, "one"))
			must(s.Delete(ctx, "one"))
		})
	}
}

func TestRecordsAreCopies(t *testing.T) {
	for kind, s := range creators(t) {
		t.Run(kind, func(t *testing.T) {
			ctx := t.Context()
			data := []byte("data")
			if err := s.Put(ctx, "one", data); err != nil {
				t.Fatal(err)
			}
			data[0] = 'X'
			got, _ := s.Get(ctx, "one")
			got[1] = 'X'
			if got, err := s.Get(ctx, "one"); string(got) != "data" {
				t.Errorf("got %q, %v: the store shares memory with its caller", got, err)
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	for kind, s := range creators(t) {
		t.Run(kind, func(t *testing.T) {
			ctx := t.Context()
			most := bytes.Repeat([]byte{'x'}, store.MaxSize)
			if err := s.Put(ctx, "most", most); err != nil {
				t.Errorf("Put of the largest record: %v", err)
			}
			if got, err := s.Get(ctx, "most"); !bytes.Equal(got, most) {
				t.Errorf("Get of the largest record: %d bytes, %v", len(got), err)
			}
			cancelled, cancel := context.WithCancel(ctx)
			cancel()
			for _, refusal := range []struct {
				what string
				want error
				ctx  context.Context
				name string
				data []byte
			}{
				{"a bad name", fs.ErrInvalid, ctx, "../most", nil},
				{"a large record", fs.ErrInvalid, ctx, "most", append(most, 'x')},
				{"a cancelled context", context.Canceled, cancelled, "most", nil},
			} {
				if err := s.Put(refusal.ctx, refusal.name, refusal.data); !errors.Is(err, refusal.want) {
					t.Errorf("Put with %s: %v, want %v", refusal.what, err, refusal.want)
				}
				if err := s.Create(refusal.ctx, refusal.name, refusal.data); !errors.Is(err, refusal.want) {
					t.Errorf("Create with %s: %v, want %v", refusal.what, err, refusal.want)
				}
				if refusal.data != nil {
					continue
				}
				if _, err := s.Get(refusal.ctx, refusal.name); !errors.Is(err, refusal.want) {
					t.Errorf("Get with %s: %v, want %v", refusal.what, err, refusal.want)
				}
				if err := s.Delete(refusal.ctx, refusal.name); !errors.Is(err, refusal.want) {
					t.Errorf("Delete with %s: %v, want %v", refusal.what, err, refusal.want)
				}
			}
			if got, err := s.Get(ctx, "most"); !bytes.Equal(got, most) {
				t.Errorf("a refused call changed the record: %d bytes, %v", len(got), err)
			}
		})
	}
}

// Many at once: one Create wins, and every Get sees some whole record.
func TestConcurrent(t *testing.T) {
	for kind, s := range creators(t) {
		t.Run(kind, func(t *testing.T) {
			ctx := t.Context()
			var wg sync.WaitGroup
			var mu sync.Mutex
			var winners []string
			const n = 8
			for i := range n {
				wg.Add(1)
				go func() {
					defer wg.Done()
					mine := fmt.Sprintf("writer-%d", i)
					record := store.EncodeRecord("shared", 1, bytes.Repeat([]byte(mine), 100*(i+1)))
					switch err := s.Create(ctx, "created", []byte(mine)); {
					case err == nil:
						mu.Lock()
						winners = append(winners, mine)
						mu.Unlock()
					case !errors.Is(err, fs.ErrExist):
						t.Errorf("Create: %v", err)
					}
					for range 20 {
						if err := s.Put(ctx, "shared", record); err != nil {
							t.Errorf("Put: %v", err)
						}
						data, err := s.Get(ctx, "shared")
						if err == nil {
							_, _, err = store.DecodeRecord("shared", data)
						}
						if err != nil {
							t.Errorf("Get: %v", err)
						}
					}
				}()
			}
			wg.Wait()
			if len(winners) != 1 {
				t.Fatalf("%d of %d Creates succeeded: %v", len(winners), n, winners)
			}
			if got, err := s.Get(ctx, "created"); err != nil || string(got) != winners[0] {
				t.Errorf("got %q, %v; want the winner's %q", got, err, winners[0])
			}
		})
	}
}
