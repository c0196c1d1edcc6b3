package nvs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
)

// The methods of store.Store and store.Creator: records are blobs of at most
// maxRecord bytes, and names are 1 to 15 characters of a-z, 0-9 and -. Nothing
// waits, so the context is only looked at before anything is done.

const maxRecord = 64 << 10 // store.MaxSize

// Get returns a copy of a record. An absent one is fs.ErrNotExist; if the
// partition is damaged, so that it may once have been there, [ErrDamaged].
func (n *Namespace) Get(ctx context.Context, name string) ([]byte, error) {
	if err := checkRecord(ctx, name); err != nil {
		return nil, err
	}
	return n.GetBlob(name)
}

// Put writes a record, whether or not one is there. A cut leaves the old one
// or the new one. More than 64 KiB are fs.ErrInvalid.
func (n *Namespace) Put(ctx context.Context, name string, data []byte) error {
	if err := checkData(ctx, name, data); err != nil {
		return err
	}
	return n.SetBlob(name, data)
}

// Delete erases and wipes a record. An absent one is not an error.
func (n *Namespace) Delete(ctx context.Context, name string) error {
	if err := checkRecord(ctx, name); err != nil {
		return err
	}
	n.p.mu.Lock()
	defer n.p.mu.Unlock()
	if err := n.p.writable(); err != nil {
		return err
	}
	ns, ok := n.p.nsIndex(n.name)
	if !ok {
		return nil
	}
	err := n.p.eraseKey(ns, name, ref{})
	n.p.failed(err)
	return n.wrap(name, err)
}

// Create writes a record only if there is none: an existing one, a value of
// any type, is fs.ErrExist. If the partition is damaged, so that there may be
// one, it is [ErrDamaged]. More than 64 KiB are fs.ErrInvalid.
func (n *Namespace) Create(ctx context.Context, name string, data []byte) error {
	if err := checkData(ctx, name, data); err != nil {
		return err
	}
	n.p.mu.Lock()
	defer n.p.mu.Unlock()
	if err := n.p.writable(); err != nil {
		return err
	}
	if ns, ok := n.p.nsIndex(n.name); ok {
		found, err := n.p.find(ns, name, noChunk)
		if err == nil && len(found) > 0 {
			err = fs.ErrExist
		}
		if err != nil {
			return n.wrap(name, err)
		}
	}
	if err := n.p.absent(); !errors.Is(err, fs.ErrNotExist) {
		return n.wrap(name, err)
	}
	return n.wrap(name, n.put(name, Blob, data))
}

func checkData(ctx context.Context, name string, data []byte) error {
	if err := checkRecord(ctx, name); err != nil {
		return err
	}
	if len(data) > maxRecord {
		return fmt.Errorf("nvs: record %q of %d bytes, the most is %d: %w", name, len(data), maxRecord, fs.ErrInvalid)
	}
	return nil
}

func checkRecord(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := checkName("record", name); err != nil {
		return err
	}
	for _, c := range []byte(name) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return fmt.Errorf("nvs: record %q: only a-z, 0-9 and - are allowed: %w", name, fs.ErrInvalid)
		}
	}
	return nil
}
