// Package batchfile keeps the DeviceIDs that a provisioning station has seen in
// the JSON file from which a batch of QuarkLink is loaded:
//
//	{"devices": ["<64 hexadecimal digits>", …]}
//
// A DeviceID is in the file, on the medium, before the device is told so:
//
//	devices, err := batchfile.Open("batch-7.json")
//	…
//	tool.OnDeviceID = func(_ context.Context, id string) error { return devices.Add(id) }
package batchfile

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
)

// maxSize is how large a file may be: some 120000 devices.
const maxSize = 8 << 20

// ErrDamaged means that the file is not one that this package has written.
var ErrDamaged = errors.New("not a batch file")

// File is the file of one batch. It is safe for concurrent use; one process at a
// time may write it.
type File struct {
	path string

	mu     sync.Mutex
	ids    []string
	listed map[string]bool
}

// Open reads the file, so that a station carries on after a power cut. A file that
// is not there is an empty one, and made by the first Add; one that cannot be
// read is an error, [ErrDamaged] if its content is why.
func Open(path string) (*File, error) {
	f := &File{path: path, listed: map[string]bool{}}
	r, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return f, nil
	}
	if err != nil {
		return nil, fmt.Errorf("batchfile: %w", err)
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, maxSize+1))
	if err == nil {
		err = f.parse(data)
	}
	if err != nil {
		return nil, fmt.Errorf("batchfile: %s: %w", path, err)
	}
	return f, nil
}

// content is what the file holds.
type content struct {
	Devices []string `json:"devices"`
}

func (f *File) parse(data []byte) error {
	if len(data) > maxSize {
		return fmt.Errorf("%w: more than %d bytes", ErrDamaged, maxSize)
	}
	var c content
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&c); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) || c.Devices == nil {
		return fmt.Errorf("%w: need one object with a list of devices", ErrDamaged)
	}
	for i, id := range c.Devices {
		if err := check(id); err != nil {
			return fmt.Errorf("%w: device %d: %w", ErrDamaged, i+1, err)
		}
		if f.listed[id] {
			return fmt.Errorf("%w: device %d is listed twice", ErrDamaged, i+1)
		}
		f.listed[id] = true
	}
	f.ids = c.Devices
	return nil
}

// check checks a DeviceID.
func check(id string) error {
	if raw, err := hex.DecodeString(id); err != nil || len(raw) != 32 || id != strings.ToLower(id) {
		return fmt.Errorf("a DeviceID is 64 lower-case hexadecimal digits: %w", fs.ErrInvalid)
	}
	return nil
}

// Add adds a DeviceID, and returns when it is on the medium. One that is in the
// file already is no error; anything else than 64 lower-case hexadecimal digits
// is fs.ErrInvalid. After another error the file is what it was.
func (f *File) Add(id string) error {
	if err := check(id); err != nil {
		return fmt.Errorf("batchfile: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.listed[id] {
		return nil
	}
	ids := append(slices.Clone(f.ids), id)
	if err := write(f.path, ids); err != nil {
		return fmt.Errorf("batchfile: %w", err)
	}
	f.ids, f.listed[id] = ids, true
	return nil
}

// DeviceIDs returns what is in the file, in the order in which it was added.
func (f *File) DeviceIDs() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.ids)
}

// write puts a new file in the place of the old one: after a power cut there is
// the one or the other.
func write(path string, ids []string) error {
	data, err := json.MarshalIndent(content{ids}, "", "  ")
	if err != nil {
		return err
	}
	if len(data) >= maxSize {
		return fmt.Errorf("%s would have more than %d bytes: begin another batch", path, maxSize)
	}
	next := path + ".new" // always the same, so that a cut leaves one at most
	out, err := os.OpenFile(next, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = out.Write(append(data, '\n'))
	if err == nil {
		err = out.Sync()
	}
	if err = errors.Join(err, out.Close()); err != nil {
		return err
	}
	if err := os.Rename(next, path); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(path))
}

// syncFolder flushes the names in a folder, where the system has that.
func syncFolder(dir string) error {
	if runtime.GOOS == "windows" || runtime.GOOS == "wasip1" {
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
