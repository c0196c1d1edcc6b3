//go:build unix

package store

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func mkfifo(path string) error { return syscall.Mkfifo(path, 0o600) }

// Between opening a file and locking it another process may have removed it, or
// put another in its place: then the lock is worth nothing.
func TestSameFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	f, err := os.Create(path)
	require.NoError(t, err)
	defer f.Close()
	assert.NoError(t, sameFile(f, path), "the same file")
	require.NoError(t, os.Remove(path))
	assert.ErrorIs(t, sameFile(f, path), errTaken, "a removed file")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	assert.ErrorIs(t, sameFile(f, path), errTaken, "a replaced file")
}
