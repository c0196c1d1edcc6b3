//go:build !darwin || cgo

package serialport

import (
	"io/fs"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.bug.st/serial/enumerator"
)

func TestFind(t *testing.T) {
	ports := []Info{
		info(&enumerator.PortDetails{Name: "/dev/ttyS0"}),
		info(&enumerator.PortDetails{Name: "/dev/ttyUSB0", IsUSB: true, VID: "10C4", PID: "EA60", SerialNumber: "0001", Product: "CP2102"}),
		info(&enumerator.PortDetails{Name: "/dev/ttyUSB1", IsUSB: true, VID: "10C4", PID: "EA60", SerialNumber: "0001"}),
		info(&enumerator.PortDetails{Name: "/dev/ttyUSB2", IsUSB: true, VID: "10C4", PID: "EA60", SerialNumber: "77"}),
		info(&enumerator.PortDetails{Name: "/dev/ttyACM0", IsUSB: true, VID: "303A", PID: "1001"}),
		info(&enumerator.PortDetails{Name: "/dev/ttyACM1", IsUSB: true, VID: "?", PID: "1001"}),
	}
	want := Info{Path: "/dev/ttyUSB0", USB: true, VID: 0x10C4, PID: 0xEA60, Serial: "0001",
		Product: "CP2102", Adapter: "Silicon Labs CP210x"}
	assert.Equal(t, want, ports[1])
	assert.Equal(t, Info{Path: "/dev/ttyS0"}, ports[0])
	assert.Equal(t, Info{Path: "/dev/ttyACM1"}, ports[5])

	path, err := USB{VID: 0x303A, PID: 0x1001}.among(ports)
	require.NoError(t, err)
	assert.Equal(t, "/dev/ttyACM0", path)
	path, err = USB{VID: 0x10C4, PID: 0xEA60, Serial: "77"}.among(ports)
	require.NoError(t, err)
	assert.Equal(t, "/dev/ttyUSB2", path)
	_, err = USB{VID: 0x10C4, PID: 0xEA60, Serial: "0001"}.among(ports)
	assert.ErrorContains(t, err, "/dev/ttyUSB0, /dev/ttyUSB1")
	_, err = USB{VID: 0x10C4, PID: 0xEA61}.among(ports)
	assert.ErrorIs(t, err, fs.ErrNotExist)
}
