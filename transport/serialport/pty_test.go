//go:build linux

package serialport_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/internal/counterpart"
	"github.com/quarklink-go/quarklink/transport/serialport"
	"github.com/quarklink-go/quarklink/transport/uart"
)

// openPTY returns the master of a pseudo terminal and the path of its slave, which
// is as it comes: cooked and with an echo.
func openPTY(t *testing.T) (master *os.File, path string) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	counterpart.Missing(t, err)
	t.Cleanup(func() { master.Close() })
	var number, unlock int32
	for request, arg := range map[uintptr]*int32{syscall.TIOCSPTLCK: &unlock, syscall.TIOCGPTN: &number} {
		conn, err := master.SyscallConn()
		require.NoError(t, err)
		require.NoError(t, conn.Control(func(fd uintptr) {
			_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, fd, request, uintptr(unsafe.Pointer(arg)))
			require.Zero(t, errno)
		}))
	}
	return master, fmt.Sprintf("/dev/pts/%d", number)
}

func openPort(t *testing.T, o serialport.Options) (port *serialport.Port, master *os.File) {
	t.Helper()
	master, path := openPTY(t)
	port, err := serialport.Open(path, o)
	require.NoError(t, err)
	t.Cleanup(func() { port.Close() })
	return port, master
}

// The port is raw from the start: every byte goes through as it is, both ways.
func TestEveryByte(t *testing.T) {
	port, master := openPort(t, serialport.Options{})
	var all [256]byte
	for i := range all {
		all[i] = byte(i)
	}
	var got [256]byte
	_, err := port.Write(all[:])
	require.NoError(t, err)
	_, err = io.ReadFull(master, got[:])
	require.NoError(t, err)
	assert.Equal(t, all, got, "written")
	got = [256]byte{}
	_, err = master.Write(all[:])
	require.NoError(t, err)
	_, err = io.ReadFull(port, got[:])
	require.NoError(t, err)
	assert.Equal(t, all, got, "read")
}

// A device's conversation through the port, as somebody uses it.
func TestConversation(t *testing.T) {
	port, master := openPort(t, serialport.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error)
	tool := &uart.Tool{SSID: "Workshop", Password: "correct horse"}
	go func() { served <- tool.Serve(ctx, port) }()
	d := &uart.Device{Port: master, Timeout: 500 * time.Millisecond, Tries: 20}
	password, err := d.Password(t.Context())
	require.NoError(t, err)
	assert.Equal(t, "correct horse", password)
	cancel()
	assert.ErrorIs(t, <-served, context.Canceled)
}

func TestReadDeadline(t *testing.T) {
	port, master := openPort(t, serialport.Options{})
	var b [8]byte
	port.SetReadDeadline(time.Now().Add(30 * time.Millisecond))
	n, err := port.Read(b[:])
	assert.Zero(t, n)
	assert.ErrorIs(t, err, os.ErrDeadlineExceeded)
	assert.True(t, os.IsTimeout(err))

	// One that is set while Read waits, and then none.
	port.SetReadDeadline(time.Time{})
	failed := make(chan error)
	go func() { _, err := port.Read(b[:]); failed <- err }()
	port.SetReadDeadline(time.Now())
	assert.ErrorIs(t, <-failed, os.ErrDeadlineExceeded)
	port.SetDeadline(time.Time{})
	_, err = master.Write([]byte("x"))
	require.NoError(t, err)
	n, err = port.Read(b[:])
	assert.NoError(t, err)
	assert.Equal(t, 1, n)
	n, err = port.Read(nil)
	assert.NoError(t, err, "an empty buffer")
	assert.Zero(t, n)
}

// Closed here, in each state, is net.ErrClosed; closed there is ErrUnplugged.
func TestCloseAndUnplug(t *testing.T) {
	port, _ := openPort(t, serialport.Options{})
	failed := make(chan error)
	go func() { _, err := port.Read(make([]byte, 1)); failed <- err }()
	require.NoError(t, port.Close())
	err := <-failed
	assert.ErrorIs(t, err, net.ErrClosed)
	assert.NotErrorIs(t, err, serialport.ErrUnplugged)
	_, err = port.Write([]byte("x"))
	assert.ErrorIs(t, err, net.ErrClosed)
	_, err = port.Read(make([]byte, 1))
	assert.ErrorIs(t, err, net.ErrClosed)
	assert.ErrorIs(t, port.Close(), net.ErrClosed)
	assert.ErrorIs(t, port.Reopen(t.Context()), net.ErrClosed)

	port, master := openPort(t, serialport.Options{})
	go func() { _, err := port.Read(make([]byte, 1)); failed <- err }()
	require.NoError(t, master.Close())
	err = <-failed
	assert.ErrorIs(t, err, serialport.ErrUnplugged)
	assert.NotErrorIs(t, err, net.ErrClosed)
	_, err = port.Read(make([]byte, 1))
	assert.ErrorIs(t, err, serialport.ErrUnplugged)
	_, err = port.Write([]byte("x"))
	assert.ErrorIs(t, err, serialport.ErrUnplugged)

	port, master = openPort(t, serialport.Options{})
	require.NoError(t, master.Close())
	_, err = port.Write([]byte("x"))
	assert.ErrorIs(t, err, serialport.ErrUnplugged, "noticed by a Write")
}

// A port whose other end nobody reads takes a few KB and then blocks: Write gives
// up, and Close does not wait for it.
func TestWriteLimit(t *testing.T) {
	before := runtime.NumGoroutine()
	port, master := openPort(t, serialport.Options{WriteLimit: 100 * time.Millisecond})
	var err error
	for range 100 {
		if _, err = port.Write(make([]byte, 1000)); err != nil {
			break
		}
	}
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	_, err = port.Write([]byte("x"))
	assert.ErrorIs(t, err, os.ErrDeadlineExceeded, "the one before is still at it")
	port.SetWriteDeadline(time.Now().Add(-time.Second))
	_, err = port.Write([]byte("x"))
	assert.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.NoError(t, port.Close())
	require.NoError(t, master.Close()) // a pseudo terminal does not wake a writer before
	assert.Eventually(t, func() bool {
		return runtime.NumGoroutine() <= before+1 // with the one that looks
	}, 10*time.Second, time.Millisecond)
}

// A port that comes back elsewhere is found by its name.
func TestReopen(t *testing.T) {
	name := filepath.Join(t.TempDir(), "board")
	master, path := openPTY(t)
	require.NoError(t, os.Symlink(path, name))
	port, err := serialport.Open(name, serialport.Options{})
	require.NoError(t, err)
	defer port.Close()
	require.NoError(t, master.Close())
	_, err = port.Read(make([]byte, 1))
	require.ErrorIs(t, err, serialport.ErrUnplugged)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err = port.Reopen(ctx)
	assert.ErrorIs(t, err, context.Canceled)

	reopened := make(chan error)
	go func() { reopened <- port.Reopen(t.Context()) }()
	master, path = openPTY(t)
	require.NoError(t, os.Remove(name))
	require.NoError(t, os.Symlink(path, name))
	require.NoError(t, <-reopened)
	_, err = master.Write([]byte("x"))
	require.NoError(t, err)
	n, err := port.Read(make([]byte, 9))
	assert.NoError(t, err)
	assert.Equal(t, 1, n)
}

// A pseudo terminal has no lines to set, and says so.
func TestNoLines(t *testing.T) {
	_, path := openPTY(t)
	for _, lines := range []serialport.Lines{serialport.LinesLow, serialport.LinesHigh} {
		_, err := serialport.Open(path, serialport.Options{Lines: lines})
		assert.Error(t, err)
	}
	port, err := serialport.Open(path, serialport.Options{})
	require.NoError(t, err)
	defer port.Close()
	assert.ErrorIs(t, port.Reset(t.Context()), errors.ErrUnsupported)
}

func TestOpenErrors(t *testing.T) {
	_, err := serialport.Open(filepath.Join(t.TempDir(), "none"), serialport.Options{})
	assert.ErrorIs(t, err, fs.ErrNotExist)
	_, err = serialport.Open("/dev/null", serialport.Options{})
	assert.ErrorContains(t, err, "/dev/null")
	_, path := openPTY(t)
	_, err = serialport.Open(path, serialport.Options{Baud: -1})
	assert.ErrorIs(t, err, fs.ErrInvalid)
	_, err = serialport.OpenUSB(serialport.USB{VID: 0xFFFF, PID: 0xFFFE}, serialport.Options{})
	assert.ErrorIs(t, err, fs.ErrNotExist)
	assert.ErrorContains(t, err, "ffff:fffe")
}
