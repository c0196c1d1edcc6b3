//go:build darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd

package store

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A folder that others can write is not read, not written and not changed, by
// whatever way it is reached.
func TestDirOthersCanWrite(t *testing.T) {
	for _, mode := range []fs.FileMode{0o777, 0o775, 0o757, 0o770, 0o720, 0o702, 0o777 | fs.ModeSticky} {
		for _, way := range []string{"itself", "symbolic link", "link to a link"} {
			t.Run(fmt.Sprintf("%v, %s", mode, way), func(t *testing.T) {
				ctx := t.Context()
				top := t.TempDir()
				folder := filepath.Join(top, "state")
				d := Dir(folder)
				require.NoError(t, d.Put(ctx, "one", []byte("mine")))
				require.NoError(t, os.Chmod(folder, mode))
				switch way {
				case "symbolic link":
					d = Dir(filepath.Join(top, "link"))
					require.NoError(t, os.Symlink(folder, string(d)))
				case "link to a link":
					d = Dir(filepath.Join(top, "second"))
					require.NoError(t, os.Symlink(folder, filepath.Join(top, "first")))
					require.NoError(t, os.Symlink("first", string(d)))
				}
				data, err := d.Get(ctx, "one")
				assert.Nil(t, data)
				for call, err := range map[string]error{
					"Get":    err,
					"Put":    d.Put(ctx, "one", []byte("other")),
					"Create": d.Create(ctx, "two", nil),
					"Delete": d.Delete(ctx, "one"),
				} {
					require.ErrorIs(t, err, fs.ErrPermission, call)
					assert.ErrorContains(t, err, "chmod", call)
					assert.NotErrorIs(t, err, fs.ErrNotExist, call)
				}
				_, err = d.Get(ctx, "two")
				assert.NotErrorIs(t, err, fs.ErrNotExist, "nor does it say what is not there")

				require.NoError(t, os.Chmod(folder, 0o700))
				data, err = Dir(folder).Get(ctx, "one")
				require.NoError(t, err)
				assert.Equal(t, "mine", string(data))
				assert.Equal(t, []string{"one"}, names(t, folder))
			})
		}
	}
}

func TestDirOthersCanRead(t *testing.T) {
	for _, mode := range []fs.FileMode{0o700, 0o755, 0o750, 0o711} {
		folder := filepath.Join(t.TempDir(), "state")
		require.NoError(t, os.Mkdir(folder, 0o700))
		require.NoError(t, os.Chmod(folder, mode))
		assert.NoError(t, Dir(folder).Put(t.Context(), "one", nil), mode)
	}
}

// Between looking at a record and opening it somebody may have put another thing
// in its place: a link is not followed, and a pipe is not waited for.
func TestOpenRecordOfAnotherKind(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside")
	require.NoError(t, os.WriteFile(outside, []byte("outside"), 0o600))
	for name, plant := range map[string]func(path string) error{
		"link to a file": func(path string) error { return os.Symlink(outside, path) },
		"dangling link":  func(path string) error { return os.Symlink(outside+"-not", path) },
		"folder":         func(path string) error { return os.Mkdir(path, 0o700) },
		"pipe":           mkfifo,
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "record")
			require.NoError(t, plant(path))
			f, err := openRecord(path)
			require.Error(t, err)
			assert.Nil(t, f)
			assert.NotErrorIs(t, err, fs.ErrNotExist)
		})
	}
	f, err := openRecord(outside)
	require.NoError(t, err)
	assert.NoError(t, f.Close())
}

// Nor is a temporary file's lock taken on what a link leads to.
func TestClaimDoesNotFollow(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside")
	require.NoError(t, os.WriteFile(outside, nil, 0o600))
	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(outside, link))
	_, err := claim(link)
	require.Error(t, err)
	assert.NotErrorIs(t, err, errTaken, "it was opened")
}
