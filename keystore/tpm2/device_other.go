//go:build !linux

package tpm2

import (
	"fmt"
	"runtime"
	"syscall"
)

// openPath fails: device files are Linux's. On other systems a TPM is reached with
// Options.Transport.
func openPath(path string) (channel, error) {
	return nil, fmt.Errorf("%s: no TPM is opened by its path on %s, use Options.Transport: %w", path, runtime.GOOS, syscall.ENODEV)
}

func hasManager(string) bool { return false }
