//go:build !tinygo

package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Dir is a [Creator] that keeps each record in a file of its own, named as the
// record, in the folder that the Dir names. The folder is made when the first
// record is written. Files have mode 0600, the folder 0700. The zero value is no
// folder: every call fails with fs.ErrInvalid.
//
// Who can write a folder can replace what is in it, or put something there.
// Therefore a folder that its group or everybody can write is fs.ErrPermission
// for every call, also behind a symbolic link and with the sticky bit. Where the
// system has no such modes (Windows, WASI) the program sees to that.
//
// It is safe for concurrent use, also by several processes. Records are written
// to a temporary file, flushed to the medium and then renamed, for Create
// linked, so that a record is never seen half written; then the folder is
// flushed too, except where the system cannot (Windows, WASI). A temporary file
// that a power cut left behind is removed by the next write, but never one that
// is still being written; where files cannot be locked it is removed after a day.
// Create needs a file system with hard links.
//
// What is not a regular file (a symbolic link, a folder, a pipe) is [ErrDamaged]
// and is neither read, followed nor replaced; a file of more than [MaxSize] bytes
// is ErrDamaged until it is replaced. Errors of the system, such as that for a
// full disk, are wrapped; the old record then stays.
type Dir string

var _ Creator = Dir("")

// Temporary files begin with a full stop, as no record does.
const tempPrefix = ".tmp-"

// Get implements [Store].
func (d Dir) Get(ctx context.Context, name string) ([]byte, error) {
	if err := d.check(ctx, "get", name, nil); err != nil {
		return nil, err
	}
	data, err := readRecord(d.path(name))
	if err != nil {
		return nil, fmt.Errorf("store: get %q: %w", name, err)
	}
	return data, nil
}

// Put implements [Store]. A record larger than [MaxSize] is fs.ErrInvalid.
func (d Dir) Put(ctx context.Context, name string, data []byte) error {
	if err := d.check(ctx, "put", name, data); err != nil {
		return err
	}
	if err := d.write(ctx, name, data, os.Rename); err != nil {
		return fmt.Errorf("store: put %q: %w", name, err)
	}
	return nil
}

// Create implements [Creator]. A record larger than [MaxSize] is fs.ErrInvalid.
func (d Dir) Create(ctx context.Context, name string, data []byte) error {
	if err := d.check(ctx, "create", name, data); err != nil {
		return err
	}
	// The link decides; asking first spares the medium.
	_, err := statRecord(d.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		err = d.write(ctx, name, data, moveNew)
	} else if err == nil {
		err = fs.ErrExist
	}
	if err != nil {
		return fmt.Errorf("store: create %q: %w", name, err)
	}
	return nil
}

// Delete implements [Store].
func (d Dir) Delete(ctx context.Context, name string) error {
	if err := d.check(ctx, "delete", name, nil); err != nil {
		return err
	}
	if err := d.remove(name); err != nil {
		return fmt.Errorf("store: delete %q: %w", name, err)
	}
	return nil
}

func (d Dir) check(ctx context.Context, op, name string, data []byte) error {
	if d == "" {
		return fmt.Errorf("store: %s %q: the Dir names no folder: %w", op, name, fs.ErrInvalid)
	}
	if err := check(ctx, op, name, data); err != nil {
		return err
	}
	if err := checkFolder(string(d)); err != nil {
		return fmt.Errorf("store: %s %q: %w", op, name, err)
	}
	return nil
}

func (d Dir) path(name string) string { return filepath.Join(string(d), name) }

// write stores a record by way of a temporary file that place, which is os.Rename
// or moveNew, moves to the record's path.
func (d Dir) write(ctx context.Context, name string, data []byte, place func(from, to string) error) error {
	if _, err := statRecord(d.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := makeFolder(string(d)); err != nil {
		return err
	}
	d.sweep()
	temp, release, err := d.createTemp()
	if err != nil {
		return err
	}
	defer release()
	err = fill(temp, data)
	if err == nil {
		err = ctx.Err() // flushing takes long; this is the last chance to leave all as it was
	}
	if err == nil {
		err = place(temp.Name(), d.path(name))
	}
	if err != nil {
		os.Remove(temp.Name()) // should this fail too, the next write sweeps it up
		return err
	}
	if err := syncFolder(string(d)); err != nil {
		return fmt.Errorf("the record is written but may not outlive a power cut: %w", err)
	}
	return nil
}

// moveNew is os.Rename for a path at which there is nothing yet; otherwise it is
// fs.ErrExist.
func moveNew(from, to string) error {
	if err := os.Link(from, to); errors.Is(err, fs.ErrExist) {
		return fs.ErrExist
	} else if err != nil {
		return fmt.Errorf("link the new record (it takes a file system with hard links): %w", err)
	}
	os.Remove(from) // should this fail, the next write sweeps it up
	return nil
}

func (d Dir) remove(name string) error {
	if _, err := os.Stat(string(d)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	d.sweep() // a leftover may hold what is to be deleted
	_, err := statRecord(d.path(name))
	if err == nil {
		err = os.Remove(d.path(name))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// Also if it was gone already: who removed it may not have got this far.
	return syncFolder(string(d))
}

func readRecord(path string) ([]byte, error) {
	if _, err := statRecord(path); err != nil {
		return nil, err
	}
	f, err := openRecord(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	if err != nil {
		return nil, err
	}
	if len(data) > MaxSize {
		return nil, fmt.Errorf("%s has more than the %d bytes of a record: %w", path, MaxSize, ErrDamaged)
	}
	return data, nil
}

// openRecord opens what may be another file by now than the one that was looked
// at. It does not follow a symbolic link.
func openRecord(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|openFlags, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil {
		err = checkRegular(path, info)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// statRecord returns fs.ErrNotExist if there is nothing at path and ErrDamaged if
// there is what no record can be.
func statRecord(path string) (fs.FileInfo, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	return info, checkRegular(path, info)
}

func checkRegular(path string, info fs.FileInfo) error {
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file but %v; move it away: %w", path, info.Mode(), ErrDamaged)
	}
	return nil
}

// makeFolder makes the folder and those above it, each flushed to the medium.
func makeFolder(dir string) error {
	info, err := os.Stat(dir)
	if err == nil && !info.IsDir() {
		return fmt.Errorf("%s is not a folder but %v; move it away", dir, info.Mode())
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	parent := filepath.Dir(dir)
	if parent != dir {
		if err := makeFolder(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncFolder(parent)
}

// createTemp makes a temporary file that no sweep removes until it is released.
func (d Dir) createTemp() (temp *os.File, release func(), err error) {
	const attempts = 10 // a sweep can snatch a new file before it is claimed, but hardly twice
	for range attempts {
		temp, err = os.CreateTemp(string(d), tempPrefix+"*")
		if err != nil {
			return nil, nil, err
		}
		release, err = claim(temp.Name())
		if err == nil {
			return temp, release, nil
		}
		if errors.Is(err, errNoLocks) { // nor can a sweep claim it
			return temp, func() {}, nil
		}
		temp.Close()
		os.Remove(temp.Name())
		if !errors.Is(err, errTaken) {
			break
		}
	}
	return nil, nil, fmt.Errorf("lock the temporary file: %w", err)
}

// fill writes data to the medium and closes the file.
func fill(f *os.File, data []byte) error {
	_, err := f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// sweep removes the temporary files that nobody writes any more. It does what it
// can: that a leftover stays does no harm to the records.
func (d Dir) sweep() {
	entries, err := os.ReadDir(string(d))
	if err != nil {
		return
	}
	for _, entry := range entries {
		if !entry.Type().IsRegular() || !strings.HasPrefix(entry.Name(), tempPrefix) {
			continue
		}
		path := d.path(entry.Name())
		switch release, err := claim(path); {
		case err == nil:
			os.Remove(path)
			release()
		case errors.Is(err, errNoLocks):
			const forgotten = 24 * time.Hour // writing takes no such time
			if info, err := entry.Info(); err == nil && time.Since(info.ModTime()) > forgotten {
				os.Remove(path)
			}
		}
	}
}

var (
	errTaken   = errors.New("claimed or removed by another")
	errNoLocks = errors.New("no file locks here")
)
