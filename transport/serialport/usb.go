package serialport

import (
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// Info is a serial port that is there.
type Info struct {
	Path string // as Open takes it
	// USB says that the port is on USB, and the fields below are set.
	USB      bool
	VID, PID uint16
	Serial   string // the serial number, often the same on all adapters of a kind
	Product  string // as the device calls itself, where the system tells
	Adapter  string // the name of the adapter or chip if it is a known one, or ""
}

// List returns the serial ports that are there. Where the system's list takes
// cgo, and the program is built without, it is errors.ErrUnsupported, as on
// macOS. On Linux it looks for built-in ports by opening them.
func List() ([]Info, error) {
	ports, err := list()
	if err != nil {
		return nil, fmt.Errorf("serialport: list the ports: %w", err)
	}
	return ports, nil
}

// USB is the identity of a port on USB.
type USB struct {
	VID, PID uint16
	Serial   string // "" is any
}

// String returns the identity as lsusb writes it.
func (u USB) String() string {
	if u.Serial == "" {
		return fmt.Sprintf("%04x:%04x", u.VID, u.PID)
	}
	return fmt.Sprintf("%04x:%04x with serial number %q", u.VID, u.PID, u.Serial)
}

// OpenUSB opens the port with that identity, and Reopen finds it again by that. If
// there is none it is fs.ErrNotExist. Several are an error that names their paths:
// adapters of a kind often have the same serial number, and only a path (on Linux
// below /dev/serial/by-path) tells them apart.
func OpenUSB(id USB, o Options) (*Port, error) {
	path, err := id.find()
	if err != nil {
		return nil, err
	}
	p, err := Open(path, o)
	if err != nil {
		return nil, err
	}
	p.usb = &id
	return p, nil
}

// find returns the path of the one port with the identity.
func (u USB) find() (string, error) {
	ports, err := List()
	if err != nil {
		return "", err
	}
	return u.among(ports)
}

func (u USB) among(ports []Info) (string, error) {
	var paths []string
	for _, port := range ports {
		if port.USB && port.VID == u.VID && port.PID == u.PID && (u.Serial == "" || port.Serial == u.Serial) {
			paths = append(paths, port.Path)
		}
	}
	switch len(paths) {
	case 0:
		return "", &os.PathError{Op: "find", Path: "USB " + u.String(), Err: fs.ErrNotExist}
	case 1:
		return paths[0], nil
	}
	return "", fmt.Errorf("serialport: several ports are %v, open one by its path: %s", u, strings.Join(paths, ", "))
}

// adapters are what is found between a host and a device.
var adapters = map[[2]uint16]string{
	{0x10C4, 0xEA60}: "Silicon Labs CP210x",
	{0x10C4, 0xEA70}: "Silicon Labs CP2105",
	{0x1A86, 0x7523}: "WCH CH340",
	{0x1A86, 0x55D3}: "WCH CH343",
	{0x1A86, 0x55D4}: "WCH CH9102",
	{0x0403, 0x6001}: "FTDI FT232R",
	{0x0403, 0x6010}: "FTDI FT2232",
	{0x0403, 0x6011}: "FTDI FT4232",
	{0x0403, 0x6014}: "FTDI FT232H",
	{0x0403, 0x6015}: "FTDI FT-X",
	{0x067B, 0x2303}: "Prolific PL2303",
	{0x303A, 0x1001}: "Espressif USB-Serial-JTAG",
	{0x303A, 0x0002}: "Espressif ESP32-S2",
}
