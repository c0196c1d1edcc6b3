package quarklink_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

const sector = 4096

// flashSlot is a partition of NOR flash in a file: a write that reaches the start
// of a sector erases it first. It fails the test if writes neither ascend nor
// begin again at a sector that was reached before.
type flashSlot struct {
	t      testing.TB
	file   *os.File
	size   int64
	next   int64 // where the next write must begin
	failAt int64 // writes that reach this offset fail; 0: none
	flipAt int64 // this byte is stored wrongly; 0: none
	active int64 // size of the activated image; 0: not activated
	writes int
	// Hooks; nil: none.
	onRead     func(off int64) error
	onActivate func() error
}

func newSlot(t testing.TB, size int64) *flashSlot {
	t.Helper()
	file, err := os.CreateTemp(t.TempDir(), "slot")
	require.NoError(t, err)
	t.Cleanup(func() { file.Close() })
	return &flashSlot{t: t, file: file, size: size}
}

func (s *flashSlot) Size() int64 { return s.size }

func (s *flashSlot) ReadAt(p []byte, off int64) (int, error) {
	if s.onRead != nil {
		if err := s.onRead(off); err != nil {
			return 0, err
		}
	}
	return s.file.ReadAt(p, off)
}

var errFlash = errors.New("flash controller: program failed")

func (s *flashSlot) WriteAt(p []byte, off int64) (int, error) {
	s.writes++
	if off < s.next && off%sector == 0 {
		s.next = off // a download begins again
	}
	if off == 0 {
		if err := s.file.Truncate(0); err != nil {
			return 0, err
		}
	}
	end := off + int64(len(p))
	if off != s.next || off%sector != 0 || end > s.size {
		s.t.Errorf("write of %d bytes at %d, expected at %d, in a slot of %d", len(p), off, s.next, s.size)
		return 0, io.ErrShortWrite
	}
	if s.failAt > 0 && end > s.failAt {
		return 0, errFlash
	}
	if s.flipAt > 0 && off <= s.flipAt && s.flipAt < end {
		p = append([]byte(nil), p...)
		p[s.flipAt-off] ^= 1
	}
	s.next = end
	return s.file.WriteAt(p, off)
}

func (s *flashSlot) Activate(_ context.Context, size int64) error {
	if s.onActivate != nil {
		if err := s.onActivate(); err != nil {
			return err
		}
	}
	if size != s.next {
		return fmt.Errorf("activate %d bytes of %d written", size, s.next)
	}
	s.active = size
	return nil
}

// verifierFunc is a Verifier made of a function.
type verifierFunc func(ctx context.Context, image io.ReaderAt, size int64) error

func (f verifierFunc) Verify(ctx context.Context, image io.ReaderAt, size int64) error {
	return f(ctx, image, size)
}

// anything is a Verifier that accepts every image.
var anything = verifierFunc(func(context.Context, io.ReaderAt, int64) error { return nil })
