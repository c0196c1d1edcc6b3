//go:build !tinygo && (darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd)

package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// openFlags make opening refuse a symbolic link and not wait for a pipe's writer.
const openFlags = syscall.O_NOFOLLOW | syscall.O_NONBLOCK

// checkFolder refuses a folder that others can write. One that is not there is
// none.
func checkFolder(dir string) error {
	info, err := os.Stat(dir)
	if err != nil || !info.IsDir() {
		return nil // what comes next says it better
	}
	const othersWrite = 0o022
	if info.Mode().Perm()&othersWrite != 0 {
		return fmt.Errorf("%s can be written by others, who could replace its records (mode %v): chmod go-w it: %w",
			dir, info.Mode(), fs.ErrPermission)
	}
	return nil
}

// syncFolder flushes a folder's entries to the medium.
func syncFolder(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	err = f.Sync()
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, errors.ErrUnsupported) {
		return nil // a file system that has no such thing (some network ones)
	}
	return err
}

// claim takes the file at path for the caller alone until it is released or the
// process ends, however it ends. The error is errTaken if another has it or has
// removed it, errNoLocks if the file system cannot tell.
func claim(path string) (release func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|openFlags, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errTaken
	}
	if err != nil {
		return nil, err
	}
	err = flock(f)
	if err == nil {
		// The lock is on the file, the claim on the path: they may have parted.
		err = sameFile(f, path)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

func flock(f *os.File) error {
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case err == syscall.EINTR:
		case err == syscall.EWOULDBLOCK:
			return errTaken
		case err == syscall.ENOLCK || errors.Is(err, errors.ErrUnsupported):
			return errNoLocks
		default:
			return fmt.Errorf("flock %s: %w", f.Name(), err)
		}
	}
}

func sameFile(f *os.File, path string) error {
	opened, err := f.Stat()
	if err != nil {
		return err
	}
	there, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(opened, there) {
		return errTaken
	}
	return err
}
