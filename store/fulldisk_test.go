//go:build linux

package store

import (
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// childFileSize, set in a child, is the largest file that it may write, in bytes.
const childFileSize = "QUARKLINK_STORE_FILE_SIZE"

// limitFileSize sets that limit until it is lifted, as it must be before the
// child ends: a test binary that measures coverage writes a file then.
func limitFileSize() (lift func() error, err error) {
	value := os.Getenv(childFileSize)
	if value == "" {
		return func() error { return nil }, nil
	}
	n, err := strconv.ParseUint(value, 10, 64)
	if err != nil {
		return nil, err
	}
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &before); err != nil {
		return nil, err
	}
	signal.Ignore(syscall.SIGXFSZ) // so that write fails instead
	lift = func() error { return syscall.Setrlimit(syscall.RLIMIT_FSIZE, &before) }
	return lift, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: n, Max: before.Max})
}

func isNoSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EFBIG)
}

// noSpace runs a call in a child and expects it to find no space.
func noSpace(t *testing.T, d Dir, call, data string, attr *syscall.SysProcAttr, env ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(childEnv(d, call, data), env...)
	cmd.SysProcAttr = attr
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, call)
	said, _, _ := strings.Cut(string(out), "\n") // under -cover the runtime complains after it
	assert.Equal(t, childNoSpace, said, call)
}

// The disk is full at any byte of the record: the old one stays and nothing else.
func TestDirFullDisk(t *testing.T) {
	const record = "a new record, longer than the space that there is"
	for _, size := range []string{"0", "1", strconv.Itoa(len(record) - 1)} {
		for _, call := range []string{"put", "create"} {
			d := newDir(t)
			var want []string
			if call == "put" {
				require.NoError(t, d.Put(t.Context(), "one", []byte("old")))
				want = []string{"one"}
			}
			noSpace(t, d, call, record, nil, childFileSize+"="+size)
			all := names(t, string(d))
			assert.Equal(t, strings.Join(want, " "), strings.Join(all, " "), "%v, %v", call, size)
			if call == "create" {
				continue
			}
			data, _ := d.Get(t.Context(), "one")
			assert.Equal(t, "old", string(data), size)
		}
	}
}

// The same on a file system that is full, which takes the right to mount one.
func TestDirFullFileSystem(t *testing.T) {
	dir := t.TempDir()
	const pages = 5 // of 4096 bytes; the folder itself takes one
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "mode=0700,size="+strconv.Itoa(pages*4096)); err != nil {
		t.Skipf("cannot mount a small tmpfs: %v (the full disk itself is tested by TestDirFullDisk)", err)
	}
	t.Cleanup(func() {
		assert.NoError(t, syscall.Unmount(dir, 0))
	})
	ctx := t.Context()
	d := Dir(dir)
	old := strings.Repeat("o", 2*4096)
	require.NoError(t, d.Put(ctx, "one", []byte(old)))
	err := d.Put(ctx, "one", make([]byte, 4*4096))
	assert.ErrorIs(t, err, syscall.ENOSPC)
	assert.ErrorIs(t, d.Create(ctx, "two", make([]byte, 4*4096)), syscall.ENOSPC)
	data, _ := d.Get(ctx, "one")
	assert.Equal(t, old, string(data))
	assert.Len(t, names(t, dir), 1, "left in the folder")
	// A leftover of a cut must not keep the disk full.
	require.NoError(t, os.WriteFile(d.path(tempPrefix+"1"), make([]byte, 2*4096), 0o600))
	assert.NoError(t, d.Put(ctx, "one", []byte(strings.Repeat("n", 2*4096))), "Put beside a leftover")
}
