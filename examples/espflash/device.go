package main

import (
	"fmt"
	"io"
	"os"

	"github.com/quarklink-go/quarklink/esp/flash"
)

// device is flash that was opened.
type device struct {
	flash.NOR
	io.Closer
}

// openDevice opens a file with a dump, or an MTD device.
func openDevice(name string, write bool) (*device, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if info.Mode()&os.ModeCharDevice != 0 {
		return openMTD(name)
	}
	mode := os.O_RDONLY
	if write {
		mode = os.O_RDWR
	}
	f, err := os.OpenFile(name, mode, 0)
	if err != nil {
		return nil, err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		f.Close()
		return nil, err
	}
	if size == 0 {
		f.Close()
		return nil, fmt.Errorf("%s is empty", name)
	}
	return &device{flash.File(f, size), f}, nil
}
