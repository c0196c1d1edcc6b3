package nvs

import (
	"errors"
	"fmt"
	"io/fs"
)

// What a partition or a value may be refused for. Besides: fs.ErrNotExist for
// an absent key, fs.ErrExist for one that [Namespace.Create] finds,
// fs.ErrInvalid for a name that no key or namespace can have.
var (
	// ErrNotNVS: no page is an NVS page, and the flash is not blank.
	ErrNotNVS = errors.New("not an NVS partition")

	// ErrSize: not a whole number of sectors, or too few of them.
	ErrSize = errors.New("impossible size for an NVS partition")

	// ErrNewerVersion: a page was written in a later version of the format.
	ErrNewerVersion = errors.New("NVS pages of a newer version")

	// ErrKeys: entries are there and none of them reads with these keys (or
	// with none), or what should be keys is not.
	ErrKeys = errors.New("wrong NVS keys")

	// ErrDamaged: a value, an entry or a page fails its checksum. The error is
	// or wraps a [*Damage] that says which.
	ErrDamaged = errors.New("damaged NVS partition")

	// ErrType: the key holds a value of another type.
	ErrType = errors.New("NVS value has another type")

	// ErrTooLong: a string of 4000 bytes or more, or a blob that no partition
	// of this size can hold.
	ErrTooLong = errors.New("NVS value too long")

	// ErrNoSpace: the value does not fit next to what is stored. What is
	// stored, also under the same key, is as before.
	ErrNoSpace = errors.New("not enough space in the NVS partition")

	// ErrNamespaces: all 254 namespaces are used.
	ErrNamespaces = errors.New("all 254 NVS namespaces are used")

	// ErrReadOnly: the partition was opened with OpenReader.
	ErrReadOnly = errors.New("NVS partition opened for reading only")
)

// Damage is something that cannot be read although no power cut explains it.
// It is an error that is [ErrDamaged].
type Damage struct {
	Page    int    // number of the page in the partition, from 0
	Entry   int    // number of the first damaged entry in the page, 0 to 125; -1: the whole page
	Entries int    // how many entries from there on; 0 for a page
	Reason  string // what is wrong with it
}

// Error names page, entry and reason.
func (d *Damage) Error() string {
	switch {
	case d.Entry < 0:
		return fmt.Sprintf("page %d: %s", d.Page, d.Reason)
	case d.Entries > 1:
		return fmt.Sprintf("page %d entries %d to %d: %s", d.Page, d.Entry, d.Entry+d.Entries-1, d.Reason)
	}
	return fmt.Sprintf("page %d entry %d: %s", d.Page, d.Entry, d.Reason)
}

// Is reports whether target is ErrDamaged.
func (d *Damage) Is(target error) bool { return target == ErrDamaged }

// checkName returns an error that is fs.ErrInvalid for what cannot name a
// namespace or a key.
func checkName(kind, name string) error {
	if len(name) < 1 || len(name) >= keySize {
		return fmt.Errorf("nvs: %s %q: %d bytes, need 1 to %d: %w", kind, name, len(name), keySize-1, fs.ErrInvalid)
	}
	for i := range len(name) {
		if name[i] == 0 {
			return fmt.Errorf("nvs: %s %q: contains a NUL: %w", kind, name, fs.ErrInvalid)
		}
	}
	return nil
}
