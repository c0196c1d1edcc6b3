package store

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// names lists what is in a folder.
func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
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
		assert.ErrorIs(t, err, fs.ErrInvalid)
	}
	assert.Empty(t, names(t, "."), "left in the current folder")
}

func TestDirModes(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no such modes")
	}
	ctx := t.Context()
	top := filepath.Join(t.TempDir(), "top")
	d := Dir(filepath.Join(top, "state"))
	require.NoError(t, errors.Join(d.Put(ctx, "put", []byte("x")), d.Create(ctx, "created", []byte("x"))))
	for path, want := range map[string]fs.FileMode{
		top:               fs.ModeDir | 0o700,
		string(d):         fs.ModeDir | 0o700,
		d.path("put"):     0o600,
		d.path("created"): 0o600,
	} {
		info, err := os.Stat(path)
		require.NoError(t, err, path)
		assert.Equal(t, want, info.Mode(), path)
	}
}

// What is no record is neither read, followed nor replaced, and never absent.
func TestDirOddFiles(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside")
	require.NoError(t, os.WriteFile(outside, []byte("outside"), 0o600))
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
			assert.Nil(t, data, "Get returned")
			for call, err := range map[string]error{
				"Get":    err,
				"Put":    d.Put(ctx, "odd", []byte("x")),
				"Delete": d.Delete(ctx, "odd"),
			} {
				assert.ErrorIs(t, err, ErrDamaged, call)
				assert.NotErrorIs(t, err, fs.ErrNotExist, call)
			}
			err = d.Create(ctx, "odd", []byte("x"))
			require.Error(t, err, "Create:")
			assert.NotErrorIs(t, err, fs.ErrExist, "Create:")
			after, err := os.Lstat(d.path("odd"))
			require.NoError(t, err, "it was replaced")
			assert.True(t, os.SameFile(before, after), "it was replaced")
			assert.Len(t, names(t, string(d)), 1, "left in the folder")
		})
	}
	data, _ := os.ReadFile(outside)
	assert.Equal(t, "outside", string(data), "a link was followed")
}

func TestDirFolderIsAFile(t *testing.T) {
	ctx := t.Context()
	path := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	for _, d := range []Dir{Dir(path), Dir(filepath.Join(path, "below"))} {
		assert.Error(t, d.Put(ctx, "one", nil), "Put in")
	}
	_, err := Dir(path).Get(ctx, "one")
	assert.Error(t, err, "Get: no error")
}

func TestDirTooLargeFile(t *testing.T) {
	ctx := t.Context()
	d := newDir(t)
	require.NoError(t, os.WriteFile(d.path("big"), make([]byte, MaxSize+1), 0o600))
	data, err := d.Get(ctx, "big")
	assert.ErrorIs(t, err, ErrDamaged)
	assert.Nil(t, data)
	assert.ErrorIs(t, d.Create(ctx, "big", nil), fs.ErrExist)
	assert.NoError(t, d.Put(ctx, "big", []byte("good")), "Put does not heal it")
	data, _ = d.Get(ctx, "big")
	assert.Equal(t, "good", string(data))
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
				require.NoError(t, os.WriteFile(d.path(leftover), []byte("half a rec"), 0o600))
				require.NoError(t, os.Chtimes(d.path(leftover), old, old))
			}
			live, release, err := d.createTemp()
			require.NoError(t, err)
			defer live.Close()
			require.NoError(t, write(d))
			kept := []string{filepath.Base(live.Name())}
			if call != "Delete" {
				kept = append(kept, "one")
			}
			assert.Equal(t, kept, names(t, string(d)), "while a file is written")
			live.Close()
			release()
			require.NoError(t, os.Chtimes(live.Name(), old, old))
			require.NoError(t, d.Put(t.Context(), "one", nil))
			assert.Equal(t, []string{"one"}, names(t, string(d)), "after it was abandoned")
		})
	}
}

// newDir makes an empty folder that nobody else can write, whatever the umask.
func newDir(t *testing.T) Dir {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "state")
	require.NoError(t, os.Mkdir(dir, 0o700))
	return Dir(dir)
}
