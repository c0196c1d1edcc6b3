package nvs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
)

// Namespace is a set of keys with their values, within a [Partition]. It is
// safe for concurrent use.
//
// Values are got by the type with which they were set: any other is
// [ErrType]. A key that is not there is fs.ErrNotExist, or [ErrDamaged] if the
// partition is damaged. Setting replaces the value whatever its type, in one
// step: a cut leaves the old value or the new one. An equal value is not
// written again.
type Namespace struct {
	p    *Partition
	name string
}

// Namespace returns the namespace of that name: 1 to 15 bytes without NUL, or
// the error is fs.ErrInvalid. It need not exist: the first value set makes it.
// There can be 254 ([ErrNamespaces]); one is never removed.
func (p *Partition) Namespace(name string) (*Namespace, error) {
	if err := checkName("namespace", name); err != nil {
		return nil, err
	}
	return &Namespace{p, name}, nil
}

// Name returns the name of the namespace.
func (n *Namespace) Name() string { return n.name }

// Integer is a type of integer that NVS stores.
type Integer interface {
	uint8 | int8 | uint16 | int16 | uint32 | int32 | uint64 | int64
}

func typeOf[T Integer]() Type {
	var v T
	switch any(v).(type) {
	case uint8:
		return U8
	case int8:
		return I8
	case uint16:
		return U16
	case int16:
		return I16
	case uint32:
		return U32
	case int32:
		return I32
	case uint64:
		return U64
	default:
		return I64
	}
}

// GetInt returns the integer of a key.
func GetInt[T Integer](n *Namespace, key string) (T, error) {
	b, err := n.Raw(key, typeOf[T]())
	if err != nil {
		return 0, err
	}
	var v [8]byte
	copy(v[:], b)
	return T(binary.LittleEndian.Uint64(v[:])), nil
}

// SetInt stores an integer under a key.
func SetInt[T Integer](n *Namespace, key string, v T) error {
	t := typeOf[T]()
	b := binary.LittleEndian.AppendUint64(nil, uint64(v))
	return n.set(key, t, b[:t.size()])
}

// GetString returns the string of a key.
func (n *Namespace) GetString(key string) (string, error) {
	b, err := n.Raw(key, String)
	return string(b), err
}

// SetString stores a string of at most 3999 bytes ([ErrTooLong]) under a key.
// One that contains a NUL is fs.ErrInvalid.
func (n *Namespace) SetString(key, v string) error {
	b := append([]byte(v), 0)
	switch {
	case len(b) > maxData:
		return fmt.Errorf("nvs: %s/%s: string of %d bytes, the most is %d: %w", n.name, key, len(v), maxData-1, ErrTooLong)
	case bytes.IndexByte(b, 0) < len(v):
		return fmt.Errorf("nvs: %s/%s: string contains a NUL: %w", n.name, key, fs.ErrInvalid)
	}
	return n.set(key, String, b)
}

// GetBlob returns a copy of the blob of a key.
func (n *Namespace) GetBlob(key string) ([]byte, error) { return n.Raw(key, Blob) }

// SetBlob stores a blob under a key. The most is 4000 bytes for each page of
// the partition but one ([ErrTooLong]); while it replaces another there must
// be space for both ([ErrNoSpace]).
func (n *Namespace) SetBlob(key string, v []byte) error { return n.set(key, Blob, v) }

// Raw returns a copy of the bytes of the value of a key, which must be of type
// t: an integer in as many bytes as it has, little-endian, a string without
// its NUL, a blob.
func (n *Namespace) Raw(key string, t Type) ([]byte, error) {
	if err := checkName("key", key); err != nil {
		return nil, err
	}
	n.p.mu.Lock()
	defer n.p.mu.Unlock()
	if err := n.p.ready(); err != nil {
		return nil, err
	}
	b, err := n.raw(key, t)
	return b, n.wrap(key, err)
}

func (n *Namespace) raw(key string, t Type) ([]byte, error) {
	ns, ok := n.p.nsIndex(n.name)
	if !ok {
		return nil, n.p.absent()
	}
	b, err := n.p.value(ns, key, t)
	if i := bytes.IndexByte(b, 0); t == String && i >= 0 {
		b = b[:i]
	}
	return b, err
}

// Erase erases the value of a key, of whatever type. An absent one is
// fs.ErrNotExist.
func (n *Namespace) Erase(key string) error {
	if err := checkName("key", key); err != nil {
		return err
	}
	n.p.mu.Lock()
	defer n.p.mu.Unlock()
	if err := n.p.writable(); err != nil {
		return err
	}
	return n.wrap(key, n.erase(key))
}

func (n *Namespace) erase(key string) error {
	ns, ok := n.p.nsIndex(n.name)
	if !ok {
		return n.p.absent()
	}
	found, err := n.p.find(ns, key, noChunk)
	if err != nil {
		return err
	}
	if len(found) == 0 {
		return n.p.absent()
	}
	err = n.p.eraseKey(ns, key, ref{})
	n.p.failed(err)
	return err
}

// EraseAll erases all values of the namespace. A cut leaves each of them whole
// or gone.
func (n *Namespace) EraseAll() error {
	n.p.mu.Lock()
	defer n.p.mu.Unlock()
	if err := n.p.writable(); err != nil {
		return err
	}
	ns, ok := n.p.nsIndex(n.name)
	if !ok {
		return nil
	}
	err := n.p.eraseIf(func(it *item) bool { return it.ns == ns && !it.is(markDamaged) })
	n.p.failed(err)
	if err != nil {
		return fmt.Errorf("nvs: erase %s: %w", n.name, err)
	}
	return nil
}

func (n *Namespace) set(key string, t Type, data []byte) error {
	if err := checkName("key", key); err != nil {
		return err
	}
	n.p.mu.Lock()
	defer n.p.mu.Unlock()
	if err := n.p.writable(); err != nil {
		return err
	}
	return n.wrap(key, n.put(key, t, data))
}

// put makes the namespace if need be and sets the value.
func (n *Namespace) put(key string, t Type, data []byte) error {
	ns, err := n.index()
	if err == nil {
		err = n.p.set(ns, key, t, data)
	}
	n.p.failed(err)
	return err
}

// index returns the number of the namespace; the lowest that no name and no
// value uses if it must be made.
func (n *Namespace) index() (uint8, error) {
	p := n.p
	if ns, ok := p.nsIndex(n.name); ok {
		return ns, nil
	}
	if err := p.absent(); !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("namespace %s: %w", quote(n.name), err)
	}
	var used [256]bool
	for _, other := range p.names {
		used[other.index] = true
	}
	for ns := uint8(1); ns < 0xFF; ns++ {
		if used[ns] {
			continue
		}
		if err := p.set(0, n.name, U8, []byte{ns}); err != nil {
			return 0, err
		}
		p.addName(namespace{n.name, ns})
		return ns, nil
	}
	return 0, ErrNamespaces
}

func (n *Namespace) wrap(key string, err error) error {
	if err != nil {
		return fmt.Errorf("nvs: %s/%s: %w", n.name, key, err)
	}
	return nil
}
