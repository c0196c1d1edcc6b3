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
	if err != nil || strings.TrimSpace(string(out)) != childNoSpace {
		t.Errorf("%s: child said %q, %v; want %q", call, out, err, childNoSpace)
	}
}

// The disk is full at any byte of the record: the old one stays and nothing else.
func TestDirFullDisk(t *testing.T) {
	const record = "a new record, longer than the space that there is"
	for _, size := range []string{"0", "1", strconv.Itoa(len(record) - 1)} {
		for _, call := range []string{"put", "create"} {
			d := newDir(t)
			var want []string
			if call == "put" {
				if err := d.Put(t.Context(), "one", []byte("old")); err != nil {
					t.Fatal(err)
				}
				want = []string{"one"}
			}
			noSpace(t, d, call, record, nil, childFileSize+"="+size)
			if all := names(t, string(d)); strings.Join(all, " ") != strings.Join(want, " ") {
				t.Errorf("%s, %s bytes free: left in the folder: %v, want %v", call, size, all, want)
			}
			if call == "create" {
				continue
			}
			if data, err := d.Get(t.Context(), "one"); string(data) != "old" {
				t.Errorf("%s bytes free: got %q, %v; want the old record", size, data, err)
			}
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
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	ctx := t.Context()
	d := Dir(dir)
	old := strings.Repeat("o", 2*4096)
	if err := d.Put(ctx, "one", []byte(old)); err != nil {
		t.Fatal(err)
	}
	err := d.Put(ctx, "one", make([]byte, 4*4096))
	if !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("Put: %v, want ENOSPC", err)
	}
	if err := d.Create(ctx, "two", make([]byte, 4*4096)); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("Create: %v, want ENOSPC", err)
	}
	if data, err := d.Get(ctx, "one"); string(data) != old {
		t.Errorf("got %d bytes, %v; want the old record", len(data), err)
	}
	if all := names(t, dir); len(all) != 1 {
		t.Errorf("left in the folder: %v", all)
	}
	// A leftover of a cut must not keep the disk full.
	if err := os.WriteFile(d.path(tempPrefix+"1"), make([]byte, 2*4096), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.Put(ctx, "one", []byte(strings.Repeat("n", 2*4096))); err != nil {
		t.Errorf("Put beside a leftover: %v", err)
	}
}
