//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

// lockFile returns an atecc608.Options.Lock that takes an advisory lock on the
// bus device. Every process that uses the bus must take it; the kernel frees the
// lock of one that dies.
func lockFile(path string) func(context.Context) (func(), error) {
	return func(ctx context.Context) (func(), error) {
		file, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		const again = 2 * time.Millisecond
		for {
			err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
			if err == nil {
				return func() { file.Close() }, nil // closing unlocks
			}
			if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
				file.Close()
				return nil, fmt.Errorf("lock %s: %w", path, err)
			}
			select {
			case <-time.After(again):
			case <-ctx.Done():
				file.Close()
				return nil, fmt.Errorf("another process uses %s: %w", path, ctx.Err())
			}
		}
	}
}
