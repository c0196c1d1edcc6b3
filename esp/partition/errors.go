package partition

import (
	"errors"
	"fmt"
)

// What can be wrong with a table. Errors of this package wrap one of them in
// a *[FormatError] that says where; errors of an io.ReaderAt are wrapped as
// they are.
var (
	// ErrMagic: an entry does not start as one does. Erased and encrypted
	// flash do this, and a table at another offset.
	ErrMagic = errors.New("wrong magic number")
	// ErrChecksum: the MD5 does not fit the entries, or does not cover all.
	ErrChecksum = errors.New("wrong MD5 checksum")
	// ErrTruncated: there is no end marker.
	ErrTruncated = errors.New("no end marker")
	// ErrCount: there is no partition, or there are more than fit.
	ErrCount = errors.New("impossible number of partitions")
	// ErrFlashSize: a partition ends beyond the flash.
	ErrFlashSize = errors.New("beyond the end of flash")
	// ErrOverlap: a partition lies where another one or the table is, or
	// below the table, where the bootloader is.
	ErrOverlap = errors.New("overlap")
	// ErrAlignment: an offset is not a multiple of 4 KiB (64 KiB for an
	// application), or an application's size not of 4 KiB.
	ErrAlignment = errors.New("wrong alignment")
	// ErrSize: the size does not fit the type: an otadata partition has
	// 8 KiB, an NVS that is not read-only 12 KiB or more.
	ErrSize = errors.New("wrong size")
	// ErrDuplicate: two partitions have one label, or both are otadata.
	ErrDuplicate = errors.New("duplicate")
	// ErrLabel: a label is too long, or holds what it must not.
	ErrLabel = errors.New("malformed label")
	// ErrFlags: flags that this type must not have, or that have no name.
	ErrFlags = errors.New("wrong flags")
	// ErrSyntax: a line of a CSV file cannot be understood.
	ErrSyntax = errors.New("malformed line")
)

// FormatError says what is wrong with a table, and where.
type FormatError struct {
	// Line is the line of the CSV file, from 1, or 0 if the table does not
	// come from one.
	Line int
	// Offset is that of the offending field in bytes, if Line is 0: from
	// the start of what was read, or of the table in its binary form.
	Offset int64
	Err    error  // one of the sentinels of this package
	Detail string // what was found, what was expected
}

// Error names the line or the offset, the kind of error and the detail.
func (e *FormatError) Error() string {
	if e.Line > 0 {
		return fmt.Sprintf("partition: line %d: %v: %s", e.Line, e.Err, e.Detail)
	}
	return fmt.Sprintf("partition: offset 0x%x: %v: %s", e.Offset, e.Err, e.Detail)
}

// Unwrap returns Err.
func (e *FormatError) Unwrap() error { return e.Err }

func formatError(offset int64, err error, format string, args ...any) error {
	return &FormatError{Offset: offset, Err: err, Detail: fmt.Sprintf(format, args...)}
}

func lineError(line int, err error, format string, args ...any) error {
	return &FormatError{Line: line, Err: err, Detail: fmt.Sprintf(format, args...)}
}
