package store

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"sync"
)

// Mem is a [Creator] that keeps its records in memory: for tests and for devices
// that keep nothing. The zero value is an empty store, ready for use. It is safe
// for concurrent use and must not be copied.
type Mem struct {
	mu      sync.Mutex
	records map[string][]byte
}

var _ Creator = (*Mem)(nil)

// Get implements [Store].
func (m *Mem) Get(ctx context.Context, name string) ([]byte, error) {
	if err := check(ctx, "get", name, nil); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	data, ok := m.records[name]
	if !ok {
		return nil, fmt.Errorf("store: get %q: %w", name, fs.ErrNotExist)
	}
	return bytes.Clone(data), nil
}

// Put implements [Store]. A record larger than [MaxSize] is fs.ErrInvalid.
func (m *Mem) Put(ctx context.Context, name string, data []byte) error {
	if err := check(ctx, "put", name, data); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.set(name, data)
	return nil
}

// Create implements [Creator]. A record larger than [MaxSize] is fs.ErrInvalid.
func (m *Mem) Create(ctx context.Context, name string, data []byte) error {
	if err := check(ctx, "create", name, data); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.records[name]; ok {
		return fmt.Errorf("store: create %q: %w", name, fs.ErrExist)
	}
	m.set(name, data)
	return nil
}

// Delete implements [Store].
func (m *Mem) Delete(ctx context.Context, name string) error {
	if err := check(ctx, "delete", name, nil); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.records, name)
	return nil
}

func (m *Mem) set(name string, data []byte) {
	if m.records == nil {
		m.records = make(map[string][]byte)
	}
	m.records[name] = append([]byte{}, data...)
}

// check is what every operation begins with: a live context, a good name, and a
// record that is not too large.
func check(ctx context.Context, op, name string, data []byte) error {
	if err := CheckName(name); err != nil {
		return err
	}
	if len(data) > MaxSize {
		return fmt.Errorf("store: %s %q: %d bytes, at most %d are kept: %w", op, name, len(data), MaxSize, fs.ErrInvalid)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("store: %s %q: %w", op, name, err)
	}
	return nil
}
