package software_test

import (
	"context"
	"errors"
	"io/fs"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/keystore/software"
	"github.com/quarklink-go/quarklink/store"
)

var bothRoles = []keystore.Role{keystore.Enrolment, keystore.Device}

// fingerprints opens the keys that there are.
func fingerprints(t *testing.T, records store.Creator) map[keystore.Role]string {
	t.Helper()
	all := make(map[keystore.Role]string)
	for _, role := range bothRoles {
		signer, err := open(t, records, options(software.P256, strong)).Signer(t.Context(), role)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		require.NoError(t, err)
		all[role] = fingerprint(t, signer)
	}
	return all
}

// Initialisation makes both keys, which are two, and each is found again.
func TestGenerateMakesBothKeys(t *testing.T) {
	records := new(store.Mem)
	s := open(t, records, options(software.P256, strong))
	esk := fingerprint(t, generate(t, s, keystore.Enrolment))

	stored := fingerprints(t, records)
	require.Len(t, stored, 2)
	assert.Equal(t, esk, stored[keystore.Enrolment])
	assert.NotEqual(t, stored[keystore.Enrolment], stored[keystore.Device])
	dsk, err := s.Signer(t.Context(), keystore.Device)
	require.NoError(t, err)
	assert.Equal(t, stored[keystore.Device], fingerprint(t, dsk))
	for _, role := range bothRoles {
		_, err := s.Generate(t.Context(), role)
		assert.ErrorIs(t, err, fs.ErrExist, role)
	}
	assert.Equal(t, stored, fingerprints(t, records))
}

// A device of an older version has no device key, and one may be lost: it is
// made, and the identity stays.
func TestGenerateMakesAMissingDeviceKey(t *testing.T) {
	records := new(store.Mem)
	generate(t, open(t, records, options(software.P256, strong)), keystore.Enrolment)
	before := fingerprints(t, records)
	require.NoError(t, records.Delete(t.Context(), "key-dsk"))

	s := open(t, records, options(software.P256, strong))
	_, err := s.Signer(t.Context(), keystore.Device)
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, err = s.Generate(t.Context(), keystore.Enrolment)
	require.ErrorIs(t, err, fs.ErrExist)
	_, err = records.Get(t.Context(), "key-dsk")
	require.ErrorIs(t, err, fs.ErrNotExist, "a refused Generate makes nothing")
	dsk := fingerprint(t, generate(t, s, keystore.Device))
	assert.Equal(t, map[keystore.Role]string{
		keystore.Enrolment: before[keystore.Enrolment], keystore.Device: dsk}, fingerprints(t, records))
}

// The device key that there is stays, whatever has become of it: it may be
// replaced, but not by the making of an identity.
func TestGenerateKeepsADeviceKey(t *testing.T) {
	whole := new(store.Mem)
	generate(t, open(t, whole, options(software.P256, strong)), keystore.Device)
	record, err := whole.Get(t.Context(), "key-dsk")
	require.NoError(t, err)
	for name, there := range map[string][]byte{"whole": record, "damaged": record[:40], "empty": {}} {
		records := new(store.Mem)
		require.NoError(t, records.Put(t.Context(), "key-dsk", there))
		_, err := open(t, records, options(software.P256, strong)).Generate(t.Context(), keystore.Enrolment)
		require.NoError(t, err, name)
		now, err := records.Get(t.Context(), "key-dsk")
		require.NoError(t, err)
		assert.Equal(t, there, now, name)
	}
}

// failing is a store whose Get of one record fails.
type failing struct {
	store.Mem
	name string
	err  error
}

func (f *failing) Get(ctx context.Context, name string) ([]byte, error) {
	if name == f.name {
		return nil, f.err
	}
	return f.Mem.Get(ctx, name)
}

// A store that does not answer has no key made in it; a device key that it calls
// damaged is one.
func TestGenerateWhenTheStoreFails(t *testing.T) {
	broken := errors.New("input/output error")
	for _, test := range []struct {
		name   string
		record string
		err    error
		want   error
	}{
		{"no answer about the enrolment key", "key-esk", broken, broken},
		{"no answer about the device key", "key-dsk", broken, broken},
		{"a damaged enrolment key", "key-esk", store.ErrDamaged, store.ErrDamaged},
		{"a damaged device key", "key-dsk", store.ErrDamaged, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			records := &failing{name: test.record, err: test.err}
			signer, err := open(t, records, options(software.P256, strong)).Generate(t.Context(), keystore.Enrolment)
			if test.want == nil {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, test.want)
			assert.Nil(t, signer)
			_, err = records.Mem.Get(t.Context(), "key-esk")
			assert.ErrorIs(t, err, fs.ErrNotExist)
		})
	}
}

// Power fails at every write of an initialisation: no identity was stored without
// a device key, the next start carries on with what is stored, and what was
// stored stays.
func TestPowerCut(t *testing.T) {
	for writes := 1; ; writes++ {
		cuts := 0
		for _, after := range []bool{false, true} {
			c := &cutting{writes: writes, after: after}
			signer, err := open(t, c, options(software.P256, strong)).Generate(t.Context(), keystore.Enrolment)
			if err != nil {
				require.ErrorIs(t, err, errCut)
				require.Nil(t, signer)
				cuts++
			}
			before := fingerprints(t, &c.Mem)
			if _, initialised := before[keystore.Enrolment]; initialised {
				assert.Contains(t, before, keystore.Device, "write %d, after it %v", writes, after)
			} else {
				generate(t, open(t, &c.Mem, options(software.P256, strong)), keystore.Enrolment)
			}
			now := fingerprints(t, &c.Mem)
			require.Len(t, now, 2, "write %d, after it %v", writes, after)
			for role, id := range before {
				assert.Equal(t, id, now[role], "write %d, after it %v: %s", writes, after, role)
			}
		}
		if cuts == 0 {
			assert.Equal(t, 3, writes, "two keys are two writes")
			return
		}
	}
}

// looks is a context that ends when it has been looked at some times.
type looks struct {
	context.Context
	cancel context.CancelFunc
	left   atomic.Int64
}

func newLooks(parent context.Context, left int) *looks {
	ctx, cancel := context.WithCancel(parent)
	c := &looks{Context: ctx, cancel: cancel}
	c.left.Store(int64(left))
	return c
}

func (c *looks) look() {
	if c.left.Add(-1) < 0 {
		c.cancel()
	}
}

func (c *looks) Err() error            { c.look(); return c.Context.Err() }
func (c *looks) Done() <-chan struct{} { c.look(); return c.Context.Done() }

// The context ends at each instant at which it is looked at: there is no
// enrolment key then, and it is made in the end.
func TestGenerateInterrupted(t *testing.T) {
	for _, role := range bothRoles {
		interrupted := 0
		for left := 0; ; left++ {
			records := new(store.Mem)
			s := open(t, records, options(software.P256, strong))
			ctx := newLooks(t.Context(), left)
			_, err := s.Generate(ctx, role)
			ctx.cancel()
			if err == nil {
				break
			}
			interrupted++
			require.ErrorIs(t, err, context.Canceled)
			_, err = s.Signer(t.Context(), role)
			require.ErrorIs(t, err, fs.ErrNotExist, "%s, after %d looks", role, left)
			id := fingerprint(t, generate(t, s, role))
			require.Equal(t, id, fingerprints(t, records)[role])
		}
		assert.Greater(t, interrupted, 4, role)
	}
}

// However many calls were cancelled, one key at most is worked on.
func TestCancelledCallsDoNotPileUp(t *testing.T) {
	opts := options(software.P256, strong)
	opts.Iterations = 2_000_000 // so that it takes much longer than the calls
	var cancel context.CancelFunc
	opts.Secret = func(context.Context) ([]byte, error) {
		cancel()
		return []byte(strong), nil
	}
	s := open(t, new(store.Mem), opts)
	before := runtime.NumGoroutine()
	for range 20 {
		var ctx context.Context
		ctx, cancel = context.WithCancel(t.Context())
		waiting := &looks{Context: ctx, cancel: cancel}
		waiting.left.Store(3) // enough to begin, too few to wait
		_, err := s.Generate(waiting, keystore.Device)
		cancel()
		require.ErrorIs(t, err, context.Canceled)
	}
	assert.LessOrEqual(t, runtime.NumGoroutine(), before+1)
}
