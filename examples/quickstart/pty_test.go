//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/internal/counterpart"
)

// openPTY returns a pseudo terminal and the device file of it.
func openPTY(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	counterpart.Missing(t, err)
	t.Cleanup(func() { master.Close() })
	var number, unlock int32
	for request, arg := range map[uintptr]*int32{syscall.TIOCSPTLCK: &unlock, syscall.TIOCGPTN: &number} {
		_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, master.Fd(), request, uintptr(unsafe.Pointer(arg)))
		require.Zero(t, errno)
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	require.NoError(t, err)
	t.Cleanup(func() { slave.Close() })
	return master, slave
}

// On a terminal the download is a bar that grows on one line.
func TestBarOnATerminal(t *testing.T) {
	master, slave := openPTY(t)
	cmd := command(t.Context())
	cmd.Stdout, cmd.Stderr = slave, os.Stderr
	require.NoError(t, cmd.Start())
	require.NoError(t, slave.Close())
	out, err := io.ReadAll(master)
	if !errors.Is(err, syscall.EIO) { // how Linux says that nobody has the terminal open
		require.NoError(t, err)
	}
	require.NoError(t, cmd.Wait(), string(out))

	lines := strings.Split(string(out), "\r\n") // the terminal makes that of each \n
	var bars []string
	for _, line := range lines {
		if strings.HasPrefix(line, "\r") {
			bars = append(bars, line)
		}
	}
	require.Len(t, bars, 1, "%q", lines)
	assert.Greater(t, strings.Count(bars[0], "\r"), 10, "times drawn")
	assert.True(t, strings.HasSuffix(bars[0], "\rdownload   ["+strings.Repeat("#", barSteps)+"] 100 %"), bars[0])
}
