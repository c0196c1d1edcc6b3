package main

import "github.com/quarklink-go/quarklink/esp/flash"

func openMTD(name string) (*device, error) {
	m, err := flash.OpenMTD(name)
	if err != nil {
		return nil, err
	}
	return &device{m, m}, nil
}
