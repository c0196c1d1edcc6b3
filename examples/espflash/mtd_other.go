//go:build !linux

package main

import (
	"errors"
	"fmt"
)

func openMTD(name string) (*device, error) {
	return nil, fmt.Errorf("%s is a device, which is for Linux only: %w", name, errors.ErrUnsupported)
}
