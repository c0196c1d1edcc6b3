//go:build linux

package uart

import (
	"context"
	"errors"
	"fmt"
	"github.com/quarklink-go/quarklink/internal/counterpart"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

// openPTY returns a pseudo terminal: a serial line as the kernel knows it, with
// nothing of this package in between. The slave behaves as a terminal device
// does that was just opened; setRaw makes a plain line of it.
func openPTY(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	counterpart.Missing(t, err)
	t.Cleanup(func() { master.Close() })
	var number, unlock int32
	ioctl(t, master, syscall.TIOCSPTLCK, unsafe.Pointer(&unlock))
	ioctl(t, master, syscall.TIOCGPTN, unsafe.Pointer(&number))
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { slave.Close() })
	return master, slave
}

// setRaw does what cfmakeraw(3) does.
func setRaw(t *testing.T, tty *os.File) {
	t.Helper()
	var mode syscall.Termios
	ioctl(t, tty, syscall.TCGETS, unsafe.Pointer(&mode))
	mode.Iflag &^= syscall.IGNBRK | syscall.BRKINT | syscall.PARMRK | syscall.ISTRIP | syscall.INLCR | syscall.IGNCR | syscall.ICRNL | syscall.IXON
	mode.Oflag &^= syscall.OPOST
	mode.Lflag &^= syscall.ECHO | syscall.ECHONL | syscall.ICANON | syscall.ISIG | syscall.IEXTEN
	mode.Cflag = mode.Cflag&^(syscall.CSIZE|syscall.PARENB) | syscall.CS8
	mode.Cc[syscall.VMIN], mode.Cc[syscall.VTIME] = 1, 0
	ioctl(t, tty, syscall.TCSETS, unsafe.Pointer(&mode))
}

func ioctl(t *testing.T, f *os.File, request uintptr, arg unsafe.Pointer) {
	t.Helper()
	conn, err := f.SyscallConn() // unlike Fd it leaves the file able to have deadlines
	if err != nil {
		t.Fatal(err)
	}
	var errno syscall.Errno
	if err := conn.Control(func(fd uintptr) {
		_, _, errno = syscall.Syscall(syscall.SYS_IOCTL, fd, request, uintptr(arg))
	}); err != nil || errno != 0 {
		t.Fatalf("ioctl %#x: %v, %v", request, err, errno)
	}
}

func TestPTY(t *testing.T) {
	for _, noTerminator := range []bool{false, true} {
		for _, root := range []string{"p256.pem", "rsa2048.pem"} {
			t.Run(fmt.Sprintf("%s, no terminator %v", root, noTerminator), func(t *testing.T) {
				before := runtime.NumGoroutine()
				toolPort, devicePort := openPTY(t)
				setRaw(t, devicePort)
				tool := testTool(t)
				tool.RootCA, tool.MaxReply, tool.NoTerminator = testRoot(t, root), DeviceMaxReply, noTerminator
				ids := make(chan string, 100) // on a busy machine the device asks again
				tool.OnDeviceID = func(_ context.Context, id string) error { ids <- id; return nil }
				lines := make(chan string, 100)
				tool.OnEvent = onConsole(func(line []byte) { lines <- string(line) })
				stop := serve(t, tool, toolPort)

				if _, err := devicePort.WriteString("I (1) boot: hello\r\n"); err != nil {
					t.Fatal(err)
				}
				d := &Device{Port: devicePort, Timeout: 500 * time.Millisecond, Tries: 20}
				got, err := all(t.Context(), d)
				want := []string{"Workshop", "correct horse", "myql.quarklink.io", "6001", fmt.Sprint(tool.RootCA), "acknowledged"}
				if err != nil || !slices.Equal(got, want) {
					t.Errorf("%.200q, %v", got, err)
				}
				if id := <-ids; id != testID {
					t.Errorf("DeviceID %q", id)
				}
				if line := <-lines; line != "I (1) boot: hello" {
					t.Errorf("console line %q", line)
				}
				if err := stop(); !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
				// A goroutine that has nothing left to do may not be gone yet.
				for giveUp := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before; runtime.Gosched() {
					if time.Now().After(giveUp) {
						t.Fatal("goroutines left behind")
					}
				}
			})
		}
	}
}

// The host's terminal echoes what the device sends, until the tool comes and sets
// it up.
func TestPTYEcho(t *testing.T) {
	devicePort, toolPort := openPTY(t)
	d := &Device{Port: devicePort, Timeout: 300 * time.Millisecond, Tries: 100}
	var ssid string
	asked := make(chan error)
	go func() {
		var err error
		ssid, err = d.SSID(t.Context())
		asked <- err
	}()
	request := make([]byte, 64) // the kernel hands out a line once it has echoed it
	if n, err := toolPort.Read(request); string(request[:n]) != "IEF DATA\n" || err != nil {
		t.Fatalf("%q, %v", request[:n], err)
	}
	setRaw(t, toolPort)
	stop := serve(t, testTool(t), toolPort)
	if err := <-asked; ssid != "Workshop" || err != nil {
		t.Errorf("%q, %v", ssid, err)
	}
	stop()
}

// A device that waits at a real line returns when its context ends, and so does
// a tool; the line can be used afterwards.
func TestPTYCancel(t *testing.T) {
	toolPort, devicePort := openPTY(t)
	setRaw(t, devicePort)
	ctx, cancel := context.WithCancel(t.Context())
	stop := serve(t, &Tool{OnEvent: onConsole(func(line []byte) {
		if string(line) == "stop" {
			cancel()
		}
	}), SSID: "Workshop"}, toolPort)
	if _, err := devicePort.WriteString("stop\n"); err != nil {
		t.Fatal(err)
	}
	d := &Device{Port: devicePort, Timeout: time.Hour}
	// Answered or cancelled, whichever the tool does first; then surely cancelled.
	_, err := d.SSID(ctx)
	if err == nil {
		<-ctx.Done()
		_, err = d.SSID(ctx)
	}
	mustFail(t, err, context.Canceled)
	d = &Device{Port: devicePort}
	if ssid, err := d.SSID(t.Context()); ssid != "Workshop" || err != nil {
		t.Errorf("%q, %v", ssid, err)
	}
	if err := stop(); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := devicePort.WriteString(strings.Repeat("x", 10)); err != nil {
		t.Error(err)
	}
	got := make([]byte, 10)
	if n, err := toolPort.Read(got); n == 0 || err != nil {
		t.Errorf("the port after Serve: %d, %v", n, err)
	}
}
