//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/internal/counterpart"
	"github.com/quarklink-go/quarklink/quarklinktest"
)

// TestMain makes the test's own binary the program, on a board whose slot is a
// file and which trusts every image.
func TestMain(m *testing.M) {
	slot := os.Getenv("QUARKLINK_DEVICE_SLOT")
	if slot == "" {
		os.Exit(m.Run())
	}
	updates = quarklink.FirmwareOptions{Slot: fileSlot(slot), Verifier: trusting{}}
	if _, err := os.Stat(slot + ".active"); err == nil {
		version = "2.0.0"
	}
	main()
	os.Exit(0)
}

// fileSlot is a slot in the file of that path.
type fileSlot string

func (path fileSlot) at(do func(*os.File) (int, error)) (int, error) {
	file, err := os.OpenFile(string(path), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	return do(file)
}

func (path fileSlot) ReadAt(p []byte, off int64) (int, error) {
	return path.at(func(f *os.File) (int, error) { return f.ReadAt(p, off) })
}

func (path fileSlot) WriteAt(p []byte, off int64) (int, error) {
	return path.at(func(f *os.File) (int, error) { return f.WriteAt(p, off) })
}

func (fileSlot) Size() int64 { return 1 << 20 }

func (path fileSlot) Activate(context.Context, int64) error {
	return os.WriteFile(string(path)+".active", nil, 0o600)
}

type trusting struct{}

func (trusting) Verify(context.Context, io.ReaderAt, int64) error { return nil }

// bench is where a device is made: its instance, its hub, a serial line, and the
// directory that is its flash.
type bench struct {
	server    *quarklinktest.Server
	connected chan *x509.Certificate // at the hub
	dir, tty  string
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{connected: make(chan *x509.Certificate, 100), dir: t.TempDir()}
	var err error
	b.server, err = quarklinktest.NewServer(quarklinktest.Options{})
	require.NoError(t, err)
	t.Cleanup(b.server.Close)
	port := b.hub(t)
	require.NoError(t, b.server.AddBatch(quarklinktest.Batch{Name: "b", Policy: quarklinktest.Policy{
		Hub: &quarklink.Hub{Endpoint: "127.0.0.1", Port: port}}}))
	require.NoError(t, b.server.Publish("b", quarklinktest.Firmware{
		Image: strings.NewReader("image"), AsIs: true, Version: "2.0.0"}))
	require.NoError(t, os.WriteFile(filepath.Join(b.dir, "secret"), bytes.Repeat([]byte{7}, 32), 0o600))
	var host *os.File
	host, b.tty = openPTY(t)
	go quarklinktest.NewTool(b.server, "b", quarklink.Network{}).Serve(t.Context(), host)
	return b
}

// hub takes devices of the instance, and tells which.
func (b *bench) hub(t *testing.T) (port uint16) {
	t.Helper()
	certificate, err := b.server.HubCertificate("127.0.0.1")
	require.NoError(t, err)
	devices := x509.NewCertPool()
	for _, issuer := range b.server.IssuingCertificates() {
		devices.AddCert(issuer)
	}
	hub, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{certificate},
		ClientCAs: devices, ClientAuth: tls.RequireAndVerifyClientCert})
	require.NoError(t, err)
	t.Cleanup(func() { hub.Close() })
	go func() {
		for {
			conn, err := hub.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				secure := conn.(*tls.Conn)
				if secure.Handshake() == nil {
					b.connected <- secure.ConnectionState().PeerCertificates[0]
					io.Copy(io.Discard, conn)
				}
			}()
		}
	}()
	return uint16(hub.Addr().(*net.TCPAddr).Port)
}

// start starts the device.
func (b *bench) start(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], append([]string{
		"-state", filepath.Join(b.dir, "state"), "-secret", filepath.Join(b.dir, "secret"), "-tty", b.tty}, args...)...)
	cmd.Env = append(os.Environ(), "QUARKLINK_DEVICE_SLOT="+filepath.Join(b.dir, "slot"))
	cmd.Stderr = new(bytes.Buffer)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd
}

// TestDevice: from the bench to the field, over starts and kills, there is one
// update, one enrolment, and then nothing to do but to connect.
func TestDevice(t *testing.T) {
	b := newBench(t)
	first := b.start(t, "-factory")
	require.NoError(t, first.Wait(), "the update ends the program: %s", first.Stderr)
	assert.FileExists(t, filepath.Join(b.dir, "slot.active"))
	var certificate *x509.Certificate
	for start := 2; start <= 4; start++ {
		device := b.start(t)
		select {
		case shown := <-b.connected:
			if certificate == nil {
				certificate = shown
			}
			assert.True(t, certificate.Equal(shown), "the certificate at start %d", start)
		case <-time.After(time.Minute): // never, but when it is broken
			require.NoError(t, device.Process.Kill())
			device.Wait()
			require.Fail(t, "the device does not connect", "%s", device.Stderr)
		}
		calls := b.server.Stats().Calls
		assert.Equal(t, 1, calls[quarklinktest.CallFirmware], "downloads at start %d", start)
		assert.Equal(t, 1, calls[quarklinktest.CallEnrol], "enrolments at start %d", start)
		require.NoError(t, device.Process.Kill())
		require.Error(t, device.Wait())
	}
	assert.Len(t, b.server.Devices("b"), 1)
}

// TestInTheField: a device whose keys are gone makes no new identity.
func TestInTheField(t *testing.T) {
	b := newBench(t)
	device := b.start(t)
	var exit *exec.ExitError
	require.ErrorAs(t, device.Wait(), &exit)
	assert.Equal(t, 1, exit.ExitCode())
	assert.Contains(t, fmt.Sprint(device.Stderr), "RequireIdentity")
	assert.NoDirExists(t, filepath.Join(b.dir, "state"))
}

// TestLength: the program is short enough to be read at once.
func TestLength(t *testing.T) {
	file, err := os.Open("main.go")
	require.NoError(t, err)
	defer file.Close()
	lines, begun := 0, false
	for scanner := bufio.NewScanner(file); scanner.Scan(); {
		if begun = begun || scanner.Text() == "package main"; begun {
			lines++
		}
	}
	assert.Positive(t, lines)
	assert.LessOrEqual(t, lines, 60)
}

// openPTY returns the tool's end of a serial line, and the path of the device's,
// in raw mode.
func openPTY(t *testing.T) (master *os.File, path string) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	counterpart.Missing(t, err)
	t.Cleanup(func() { master.Close() })
	var number, unlock int32
	ioctl(t, master, syscall.TIOCSPTLCK, unsafe.Pointer(&unlock))
	ioctl(t, master, syscall.TIOCGPTN, unsafe.Pointer(&number))
	path = fmt.Sprintf("/dev/pts/%d", number)
	slave, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOCTTY, 0) // it stays open, or the mode is forgotten
	require.NoError(t, err)
	t.Cleanup(func() { slave.Close() })
	var mode syscall.Termios
	ioctl(t, slave, syscall.TCGETS, unsafe.Pointer(&mode))
	mode.Iflag &^= syscall.ICRNL | syscall.IXON
	mode.Oflag &^= syscall.OPOST
	mode.Lflag &^= syscall.ECHO | syscall.ICANON | syscall.ISIG | syscall.IEXTEN
	ioctl(t, slave, syscall.TCSETS, unsafe.Pointer(&mode))
	return master, path
}

func ioctl(t *testing.T, f *os.File, request uintptr, arg unsafe.Pointer) {
	t.Helper()
	conn, err := f.SyscallConn()
	require.NoError(t, err)
	var errno syscall.Errno
	require.NoError(t, conn.Control(func(fd uintptr) {
		_, _, errno = syscall.Syscall(syscall.SYS_IOCTL, fd, request, uintptr(arg))
	}))
	require.Zero(t, errno)
}
