//go:build !darwin || cgo

package serialport

import (
	"strconv"

	"go.bug.st/serial/enumerator"
)

func list() ([]Info, error) {
	details, err := enumerator.GetDetailedPortsList()
	if err != nil {
		return nil, err
	}
	var ports []Info
	for _, d := range details {
		if d.Name != "" { // which the library has for what it cannot look up
			ports = append(ports, info(d))
		}
	}
	return ports, nil
}

func info(d *enumerator.PortDetails) Info {
	p := Info{Path: d.Name}
	vid, err1 := strconv.ParseUint(d.VID, 16, 16)
	pid, err2 := strconv.ParseUint(d.PID, 16, 16)
	if d.IsUSB && err1 == nil && err2 == nil {
		p.USB, p.VID, p.PID = true, uint16(vid), uint16(pid)
		p.Serial, p.Product = d.SerialNumber, d.Product
		p.Adapter = adapters[[2]uint16{p.VID, p.PID}]
	}
	return p
}
