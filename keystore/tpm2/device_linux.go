//go:build linux

package tpm2

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// openPath opens a TPM's device file or a Unix socket.
func openPath(path string) (channel, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	switch {
	case info.Mode()&os.ModeSocket != 0:
		return newSocket(path), nil
	case info.Mode()&os.ModeCharDevice != 0:
		return openDevice(path)
	}
	return nil, fmt.Errorf("%s is neither a device nor a socket but %v: %w", path, info.Mode(), syscall.ENODEV)
}

// hasManager reports whether the kernel's resource manager is behind the path.
func hasManager(path string) bool {
	if resolved, err := filepath.EvalSymlinks(path); err == nil {
		path = resolved
	}
	return strings.HasPrefix(filepath.Base(path), "tpmrm")
}

// device is a TPM's device file. It is opened for blocking calls: write returns when
// the TPM has answered, and then one read returns the answer. Without blocking the
// kernel (since 4.20) makes a read that comes too soon look like the end of the file.
type device struct{ file *os.File }

func openDevice(path string) (channel, error) {
	fd, err := syscall.Open(path, syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return &device{file: os.NewFile(uintptr(fd), path)}, nil
}

// Send implements Transport.
func (d *device) Send(command []byte) ([]byte, error) {
	if _, err := d.file.Write(command); err != nil {
		return nil, err
	}
	answer := make([]byte, maxMessage)
	n, err := d.file.Read(answer)
	if err == io.EOF {
		return nil, fmt.Errorf("%w: it gives no answer", errNotTPM)
	}
	return answer[:n], err
}

// Close implements io.Closer.
func (d *device) Close() error { return d.file.Close() }
