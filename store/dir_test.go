package store

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"
)

// names lists what is in a folder.
func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, entry := range entries {
		all = append(all, entry.Name())
	}
	return all
}

func TestDirZeroValue(t *testing.T) {
	ctx := t.Context()
	t.Chdir(t.TempDir())
	var d Dir
	_, err := d.Get(ctx, "one")
	for _, err := range []error{err, d.Put(ctx, "one", nil), d.Create(ctx, "one", nil), d.Delete(ctx, "one")} {
		if !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("got %v, want fs.ErrInvalid", err)
		}
	}
	if all := names(t, "."); len(all) != 0 {
		t.Errorf("left in the current folder: %v", all)
	}
}

func TestDirModes(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no such modes")
	}
	ctx := t.Context()
	top := filepath.Join(t.TempDir(), "top")
	d := Dir(filepath.Join(top, "state"))
	if err := errors.Join(d.Put(ctx, "put", []byte("x")), d.Create(ctx, "created", []byte("x"))); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]fs.FileMode{
		top:               fs.ModeDir | 0o700,
		string(d):         fs.ModeDir | 0o700,
		d.path("put"):     0o600,
		d.path("created"): 0o600,
	} {
		info, err := os.Stat(path)
		if err != nil || info.Mode() != want {
			t.Errorf("%s: mode %v, %v; want %v", path, info.Mode(), err, want)
		}
	}
}

// What is no record is neither read, followed nor replaced, and never absent.
func TestDirOddFiles(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte("outside"), 0o600); err != nil {
		t.Fatal(err)
	}
	for what, plant := range map[string]func(path string) error{
		"link to a file": func(path string) error { return os.Symlink(outside, path) },
		"dangling link":  func(path string) error { return os.Symlink(outside+"-not", path) },
		"folder":         func(path string) error { return os.Mkdir(path, 0o700) },
		"pipe":           mkfifo,
	} {
		t.Run(what, func(t *testing.T) {
			ctx := t.Context()
			d := newDir(t)
			if err := plant(d.path("odd")); errors.Is(err, errors.ErrUnsupported) {
				t.Skip(err)
			} else if err != nil {
				t.Fatal(err)
			}
			before, _ := os.Lstat(d.path("odd"))
			data, err := d.Get(ctx, "odd")
			if data != nil {
				t.Errorf("Get returned %q", data)
			}
			for call, err := range map[string]error{
				"Get":    err,
				"Put":    d.Put(ctx, "odd", []byte("x")),
				"Delete": d.Delete(ctx, "odd"),
			} {
				if !errors.Is(err, ErrDamaged) || errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s: got %v, want ErrDamaged", call, err)
				}
			}
			if err := d.Create(ctx, "odd", []byte("x")); err == nil || errors.Is(err, fs.ErrExist) {
				t.Errorf("Create: got %v; want an error that does not promise a record", err)
			}
			if after, err := os.Lstat(d.path("odd")); err != nil || !os.SameFile(before, after) {
				t.Errorf("it was replaced: %v", err)
			}
			if all := names(t, string(d)); len(all) != 1 {
				t.Errorf("left in the folder: %v", all)
			}
		})
	}
	if data, err := os.ReadFile(outside); string(data) != "outside" {
		t.Errorf("a link was followed: %q, %v", data, err)
	}
}

func TestDirFolderIsAFile(t *testing.T) {
	ctx := t.Context()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, d := range []Dir{Dir(path), Dir(filepath.Join(path, "below"))} {
		if err := d.Put(ctx, "one", nil); err == nil {
			t.Errorf("Put in %s: no error", d)
		}
	}
	if _, err := Dir(path).Get(ctx, "one"); err == nil {
		t.Error("Get: no error")
	}
}

func TestDirTooLargeFile(t *testing.T) {
	ctx := t.Context()
	d := newDir(t)
	if err := os.WriteFile(d.path("big"), make([]byte, MaxSize+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if data, err := d.Get(ctx, "big"); !errors.Is(err, ErrDamaged) || data != nil {
		t.Errorf("got %d bytes, %v; want ErrDamaged", len(data), err)
	}
	if err := d.Create(ctx, "big", nil); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Create: %v, want fs.ErrExist", err)
	}
	if err := d.Put(ctx, "big", []byte("good")); err != nil {
		t.Errorf("Put does not heal it: %v", err)
	}
	if data, err := d.Get(ctx, "big"); string(data) != "good" {
		t.Errorf("got %q, %v", data, err)
	}
}

// Leftovers of a cut go with the next write; one that is being written stays.
func TestDirSweep(t *testing.T) {
	for call, write := range map[string]func(Dir) error{
		"Put":    func(d Dir) error { return d.Put(t.Context(), "one", []byte("x")) },
		"Create": func(d Dir) error { return d.Create(t.Context(), "one", []byte("x")) },
		"Delete": func(d Dir) error { return d.Delete(t.Context(), "two") },
	} {
		t.Run(call, func(t *testing.T) {
			d := newDir(t)
			old := time.Now().Add(-48 * time.Hour) // where files cannot be locked their age decides
			for _, leftover := range []string{tempPrefix + "1", tempPrefix + "2"} {
				if err := os.WriteFile(d.path(leftover), []byte("half a rec"), 0o600); err != nil {
					t.Fatal(err)
				}
				if err := os.Chtimes(d.path(leftover), old, old); err != nil {
					t.Fatal(err)
				}
			}
			live, release, err := d.createTemp()
			if err != nil {
				t.Fatal(err)
			}
			defer live.Close()
			if err := write(d); err != nil {
				t.Fatal(err)
			}
			kept := []string{filepath.Base(live.Name())}
			if call != "Delete" {
				kept = append(kept, "one")
			}
			if all := names(t, string(d)); !slices.Equal(all, kept) {
				t.Errorf("while a file is written: %v, want %v", all, kept)
			}
			live.Close()
			release()
			if err := os.Chtimes(live.Name(), old, old); err != nil {
				t.Fatal(err)
			}
			if err := d.Put(t.Context(), "one", nil); err != nil {
				t.Fatal(err)
			}
			if all := names(t, string(d)); !slices.Equal(all, []string{"one"}) {
				t.Errorf("after it was abandoned: %v", all)
			}
		})
	}
}

// newDir makes an empty folder that nobody else can write, whatever the umask.
func newDir(t *testing.T) Dir {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "state")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return Dir(dir)
}
