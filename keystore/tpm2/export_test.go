package tpm2

import "syscall"

// ConnectionError and errors of the system for it, for tests.
var (
	ConnectionError = connectionError
	EBUSY           = error(syscall.EBUSY)
	EIO             = error(syscall.EIO)
)
