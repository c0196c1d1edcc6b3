package tpm2

import (
	"syscall"
	"time"
)

// ConnectionError and errors of the system for it, for tests.
var (
	ConnectionError = connectionError
	EBUSY           = error(syscall.EBUSY)
	EIO             = error(syscall.EIO)
)

// SetTimeout changes Options.Timeout of an opened TPM. No call may run meanwhile.
func (t *TPM) SetTimeout(d time.Duration) { t.opts.Timeout = d }
