//go:build !cgo

package serialport

import (
	"errors"
	"fmt"
)

func list() ([]Info, error) {
	return nil, fmt.Errorf("macOS tells its ports only to programs built with cgo; open one by its path: %w", errors.ErrUnsupported)
}
