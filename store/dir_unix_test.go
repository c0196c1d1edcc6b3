//go:build unix

package store

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func mkfifo(path string) error { return syscall.Mkfifo(path, 0o600) }

// Between opening a file and locking it another process may have removed it, or
// put another in its place: then the lock is worth nothing.
func TestSameFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := sameFile(f, path); err != nil {
		t.Errorf("the same file: %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := sameFile(f, path); !errors.Is(err, errTaken) {
		t.Errorf("a removed file: got %v, want errTaken", err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := sameFile(f, path); !errors.Is(err, errTaken) {
		t.Errorf("a replaced file: got %v, want errTaken", err)
	}
}
