// Package store keeps a device's small records: its instance, its network, its
// enrolment and, where no secure hardware holds them, its encrypted keys.
//
// [Dir] keeps them in files, so that at every instant, whatever the power does, a
// record is either the old one or the new one. [Mem] keeps them in memory. A store
// does not look inside what it keeps; [EncodeRecord] and [DecodeRecord] give
// records a version and a checksum, so that damage is noticed by whoever reads
// them.
package store

import (
	"context"
	"fmt"
	"io/fs"
)

// Store keeps named records.
//
// A name is 1 to 15 characters of [a-z0-9-], so that it fits an NVS key
// (see [CheckName]); other names are refused with fs.ErrInvalid. A record has at
// most [MaxSize] bytes. A call whose context has ended returns the context's error
// and changes nothing.
// Implementations are safe for concurrent use. Package storetest checks one.
type Store interface {
	// Get returns a copy of the record. An absent record is fs.ErrNotExist.
	Get(ctx context.Context, name string) ([]byte, error)
	// Put writes the record, whether or not one is there. It is atomic: after
	// a power cut at any instant, and after an error, Get returns the old
	// record or the new one; a full medium leaves the old one.
	// When Put has returned nil the new record is on the medium.
	Put(ctx context.Context, name string, data []byte) error
	// Delete removes the record. An absent record is not an error.
	Delete(ctx context.Context, name string) error
}

// Creator is a Store that can create a record exclusively, which is what keeps
// two processes that start at once from making two identities.
type Creator interface {
	Store
	// Create writes the record only if there is none: an existing one is
	// fs.ErrExist and stays as it is. It is as atomic and durable as Put.
	Create(ctx context.Context, name string, data []byte) error
}

// CheckName returns nil for a name that every Store takes and an error that is
// fs.ErrInvalid for any other.
func CheckName(name string) error {
	if len(name) < 1 || len(name) > 15 {
		return fmt.Errorf("store: record name %q: %d characters, need 1 to 15: %w", name, len(name), fs.ErrInvalid)
	}
	for _, c := range []byte(name) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return fmt.Errorf("store: record name %q: only a-z, 0-9 and - are allowed: %w", name, fs.ErrInvalid)
		}
	}
	return nil
}
