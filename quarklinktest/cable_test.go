//go:build linux

package quarklinktest_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	mrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/internal/counterpart"
	"github.com/quarklink-go/quarklink/keystore/software"
	"github.com/quarklink-go/quarklink/quarklinktest"
	"github.com/quarklink-go/quarklink/store"
	"github.com/quarklink-go/quarklink/transport/serialport"
	"github.com/quarklink-go/quarklink/transport/uart"
)

const (
	deviceEnv = "QUARKLINK_TEST_CABLE" // for the device's process: the port that it is to use
	byteSlots = 11520                  // a second, each way: 115200 baud
)

// TestCableDevice is the process of the device. It has a serial port and no other
// way to the world.
func TestCableDevice(t *testing.T) {
	path := os.Getenv(deviceEnv)
	if path == "" {
		t.Skip("this is the device's process of the tests of the cable")
	}
	ctx := t.Context()
	port, err := serialport.Open(path, serialport.Options{})
	require.NoError(t, err)
	defer port.Close()
	records := store.Dir(filepath.Join(t.TempDir(), "state"))
	keys, err := software.New(records, software.Options{
		Secret: func(context.Context) ([]byte, error) { return []byte("a secret of thirty-two characters"), nil }, Iterations: 1})
	require.NoError(t, err)
	c, err := quarklink.New(ctx, quarklink.Config{
		KeyStore: keys, Store: records, Transport: &uart.Tunnel{Port: port, Random: rand.Reader}})
	require.NoError(t, err)
	defer c.Close()

	network, err := c.Provision(ctx, port, quarklink.ProvisionOptions{})
	require.NoError(t, err)
	require.Equal(t, "Workshop", network.SSID)
	phase("provisioned")
	e, err := c.Enrol(ctx)
	require.NoError(t, err)
	require.NotNil(t, e.Hub)
	_, err = c.HubTLSConfig(ctx)
	require.NoError(t, err)
	status, err := c.Status(ctx)
	require.NoError(t, err)
	require.Equal(t, quarklink.StateEnrolled, status.State)
	phase("enrolled")
	slot := make(memorySlot, 1<<20)
	done, err := c.FirmwareUpdate(ctx, quarklink.FirmwareOptions{Slot: slot, Verifier: anyImage{}})
	require.NoError(t, err)
	require.True(t, done.Installed)
	require.Equal(t, done.Manifest.SHA256, sha256.Sum256(slot[:done.Manifest.Size]))
	phase("updated")
}

// phase tells the test how far the device is.
func phase(name string) { fmt.Println("phase:", name) }

type memorySlot []byte

func (s memorySlot) ReadAt(p []byte, off int64) (int, error)  { return copy(p, s[off:]), nil }
func (s memorySlot) WriteAt(p []byte, off int64) (int, error) { return copy(s[off:], p), nil }
func (s memorySlot) Size() int64                              { return int64(len(s)) }
func (s memorySlot) Activate(context.Context, int64) error    { return nil }

// anyImage leaves it at the digest, which the client checks: signatures are for
// other tests.
type anyImage struct{}

func (anyImage) Verify(context.Context, io.ReaderAt, int64) error { return nil }

// relay is the cable between two pseudo terminals: it gives every byte a slot of
// 115200 baud, and damages what it is told to.
type relay struct {
	damage atomic.Pointer[func(*mrand.Rand, []byte) []byte]
	slots  [2]atomic.Int64 // that bytes took: from the device, to the device
	wg     sync.WaitGroup
}

func (r *relay) run(device, tool *os.File) {
	r.wg.Go(func() { r.way(&r.slots[0], device, tool, 1) })
	r.wg.Go(func() { r.way(&r.slots[1], tool, device, 2) })
}

// way passes bytes in one direction until a terminal is closed.
func (r *relay) way(slots *atomic.Int64, from, to *os.File, seed uint64) {
	random := mrand.New(mrand.NewPCG(seed, 9))
	buf := make([]byte, 32)
	free := time.Now()
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		if now := time.Now(); free.Before(now) {
			free = now
		}
		free = free.Add(time.Duration(n) * time.Second / byteSlots)
		time.Sleep(time.Until(free))
		slots.Add(int64(n))
		out := buf[:n]
		if damage := r.damage.Load(); damage != nil {
			out = (*damage)(random, out)
		}
		if _, err := to.Write(out); err != nil {
			return
		}
	}
}

// each makes a damage of what happens to each byte.
func each(f func(random *mrand.Rand, b byte) []byte) func(*mrand.Rand, []byte) []byte {
	return func(random *mrand.Rand, p []byte) []byte {
		var out []byte
		for _, b := range p {
			out = append(out, f(random, b)...)
		}
		return out
	}
}

// bursts loses or repeats 200 bytes, once in 20000. It is for one direction at a
// time, which is why it makes a new one for each source of randomness.
func bursts(repeat bool) func(*mrand.Rand, []byte) []byte {
	type state struct {
		last []byte
		dead int
	}
	var mu sync.Mutex
	states := map[*mrand.Rand]*state{}
	return func(random *mrand.Rand, p []byte) []byte {
		mu.Lock()
		defer mu.Unlock()
		s := states[random]
		if s == nil {
			s = &state{}
			states[random] = s
		}
		var out []byte
		for _, b := range p {
			s.last = append(s.last, b)
			s.last = s.last[max(0, len(s.last)-200):]
			hit := random.IntN(20000) == 0
			switch {
			case hit && repeat:
				out = append(append(out, b), s.last...)
			case hit:
				s.dead = 200
			case s.dead > 0:
				s.dead--
			default:
				out = append(out, b)
			}
		}
		return out
	}
}

var cables = []struct {
	name    string
	goodput float64 // the least share of the used slots; 0: only right
	ceiling float64 // what retransmission could reach
	damage  func(*mrand.Rand, []byte) []byte
}{
	{"clean", 0.88, 240. / 248, nil},
	{"one byte in 100 damaged", 0.42, 24. / 32 * math.Pow(0.99, 33), each(func(r *mrand.Rand, b byte) []byte {
		if r.IntN(100) == 0 {
			b ^= byte(1 + r.IntN(255))
		}
		return []byte{b}
	})},
	{"one byte in 100 lost", 0, 24. / 32 * math.Pow(0.99, 33), each(func(r *mrand.Rand, b byte) []byte {
		if r.IntN(100) == 0 {
			return nil
		}
		return []byte{b}
	})},
	{"bursts of 200 bytes lost", 0, 1, bursts(false)},
	{"bursts of 200 bytes repeated", 0, 1, bursts(true)},
}

// TestCable joins the processes of a device and of a tool by two pseudo terminals
// and a relay of 115200 baud that damages what passes: provisioning on the line as
// it is, for that conversation has no checksum, and all the rest through the
// tunnel on the damaged one.
func TestCable(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes as long as 115200 baud do")
	}
	for _, c := range cables {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			device, devicePath := openPTY(t)
			tool, toolPath := openPTY(t)
			r := &relay{}
			r.run(device, tool)
			size := 256 << 10
			s := serveCable(t, toolPath, size)
			var before [2]int64
			runDevice(t, devicePath, func(name string) {
				if name == "provisioned" && c.damage != nil {
					r.damage.Store(&c.damage)
				}
				if name == "enrolled" {
					before = [2]int64{r.slots[0].Load(), r.slots[1].Load()}
				}
			})
			used := r.slots[1].Load() - before[1]
			goodput := float64(size) / float64(used)
			t.Logf("update of %d bytes in %d byte slots of the line: %.1f %% (ceiling %.1f %%); %d slots the other way",
				size, used, 100*goodput, 100*c.ceiling, r.slots[0].Load()-before[0])
			assert.GreaterOrEqual(t, goodput, c.goodput)
			assert.Len(t, s.Certificates(s.Devices("b")[0]), 1)
			device.Close()
			tool.Close()
			r.wg.Wait()
		})
	}
}

// TestCableSocat is the same over somebody else's cable, which does not throttle.
func TestCableSocat(t *testing.T) {
	socat := counterpart.Program(t, "socat")
	dir := t.TempDir()
	device, tool := filepath.Join(dir, "device"), filepath.Join(dir, "tool")
	cmd := exec.Command(socat, "pty,raw,echo=0,link="+device, "pty,raw,echo=0,link="+tool)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	for _, path := range []string{device, tool} {
		require.Eventually(t, func() bool { _, err := os.Stat(path); return err == nil }, 10*time.Second, 5*time.Millisecond)
	}
	s := serveCable(t, tool, 256<<10)
	runDevice(t, device, func(string) {})
	assert.Len(t, s.Certificates(s.Devices("b")[0]), 1)
}

// serveCable runs a tool at a port, in this process, and an instance with an
// update.
func serveCable(t *testing.T, path string, size int) *quarklinktest.Server {
	t.Helper()
	s := newServer(t, quarklinktest.Options{InMemory: true})
	require.NoError(t, s.AddBatch(quarklinktest.Batch{Name: "b"}))
	image := make([]byte, size)
	rand.Read(image)
	require.NoError(t, s.Publish("b", quarklinktest.Firmware{Image: bytes.NewReader(image), AsIs: true, Name: "app", Version: "2"}))
	port, err := serialport.Open(path, serialport.Options{})
	require.NoError(t, err)
	tool := quarklinktest.NewTool(s, "b", quarklink.Network{SSID: "Workshop", Password: "correct horse"})
	ctx, cancel := context.WithCancel(context.Background())
	var served sync.WaitGroup
	served.Go(func() {
		err := tool.Serve(ctx, port)
		if !errors.Is(err, context.Canceled) {
			assert.ErrorIs(t, err, serialport.ErrUnplugged)
		}
	})
	t.Cleanup(func() { cancel(); served.Wait(); port.Close() })
	return s
}

// runDevice runs the device's process and tells its phases.
func runDevice(t *testing.T, path string, tell func(phase string)) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestCableDevice$", "-test.v", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), deviceEnv+"="+path)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	cmd.Stderr = cmd.Stdout
	require.NoError(t, cmd.Start())
	var log bytes.Buffer
	seen := 0
	for lines := bufio.NewScanner(out); lines.Scan(); {
		fmt.Fprintln(&log, lines.Text())
		var name string
		if n, _ := fmt.Sscanf(lines.Text(), "phase: %s", &name); n == 1 {
			tell(name)
			seen++
		}
	}
	require.NoError(t, cmd.Wait(), "the device: %s", &log)
	require.Equal(t, 3, seen, "phases: %s", &log)
}

// openPTY returns the master of a pseudo terminal and the path of its slave.
func openPTY(t *testing.T) (master *os.File, path string) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	counterpart.Missing(t, err)
	t.Cleanup(func() { master.Close() })
	var number, unlock int32
	conn, err := master.SyscallConn()
	require.NoError(t, err)
	for request, arg := range map[uintptr]*int32{syscall.TIOCSPTLCK: &unlock, syscall.TIOCGPTN: &number} {
		require.NoError(t, conn.Control(func(fd uintptr) {
			_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, fd, request, uintptr(unsafe.Pointer(arg)))
			require.Zero(t, errno)
		}))
	}
	path = fmt.Sprintf("/dev/pts/%d", number)
	// The master fails while nobody has the slave open, which is how it is before
	// a process comes: this keeps it open.
	slave, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOCTTY, 0)
	require.NoError(t, err)
	t.Cleanup(func() { slave.Close() })
	return master, path
}
