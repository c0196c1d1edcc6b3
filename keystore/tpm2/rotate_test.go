//go:build linux

package tpm2_test

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"testing"

	gotpm "github.com/google/go-tpm/tpm2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/keystore/tpm2"
	"github.com/quarklink-go/quarklink/keystore/tpm2/tpm2test"
	"github.com/quarklink-go/quarklink/store"
)

const deviceHandle = 0x81000101

var rotations = map[string]tpm2.KeyOptions{
	"wrapped":    {},
	"persistent": {Handles: map[keystore.Role]uint32{keystore.Device: deviceHandle}},
}

func TestRotate(t *testing.T) {
	for name, o := range rotations {
		t.Run(name, func(t *testing.T) {
			s := start(t)
			ctx := t.Context()
			tpm, records := open(t, s, tpm2.Options{}), new(store.Mem)
			keys := keyStore(t, tpm, records, o)
			require.NoError(t, keys.Commit(ctx, keystore.Device), "with no key staged it does nothing")
			require.NoError(t, keys.Discard(ctx, keystore.Device))
			old, err := keys.Generate(ctx, keystore.Device)
			require.NoError(t, err)

			next, err := keys.Stage(ctx, keystore.Device)
			require.NoError(t, err)
			assert.NotEqual(t, old.Public(), next.Public())
			require.NoError(t, sign(next))
			for range 2 { // also after a restart
				again, err := keys.Stage(ctx, keystore.Device)
				require.NoError(t, err)
				assert.Equal(t, next.Public(), again.Public(), "a staged key is returned as it is")
				current, err := keys.Signer(ctx, keystore.Device)
				require.NoError(t, err)
				assert.Equal(t, old.Public(), current.Public(), "Signer goes on to return the old one")
				require.NoError(t, sign(current))
				keys = keyStore(t, tpm, records, o)
			}

			require.NoError(t, keys.Commit(ctx, keystore.Device))
			require.NoError(t, keys.Commit(ctx, keystore.Device), "it may be repeated")
			for range 2 {
				current, err := keys.Signer(ctx, keystore.Device)
				require.NoError(t, err)
				assert.Equal(t, next.Public(), current.Public())
				require.NoError(t, sign(current))
				keys = keyStore(t, tpm, records, o)
			}

			third, err := keys.Stage(ctx, keystore.Device)
			require.NoError(t, err)
			assert.NotEqual(t, next.Public(), third.Public())
			require.NoError(t, keys.Discard(ctx, keystore.Device))
			_, err = records.Get(ctx, "tpm-dsk-next")
			require.ErrorIs(t, err, fs.ErrNotExist)
			current, err := keys.Signer(ctx, keystore.Device)
			require.NoError(t, err)
			assert.Equal(t, next.Public(), current.Public())
			assert.Empty(t, holds(t, s).Transient)
			assert.Len(t, holds(t, s).Persistent, len(o.Handles), "the old key is gone from its handle")
		})
	}
}

func TestRotateRefuses(t *testing.T) {
	s := start(t)
	ctx := t.Context()
	records := new(store.Mem)
	keys := keyStore(t, open(t, s, tpm2.Options{}), records, tpm2.KeyOptions{})
	generate(t, keys)
	for role, want := range map[keystore.Role]error{keystore.Enrolment: errors.ErrUnsupported, "other": fs.ErrInvalid} {
		_, err := keys.Stage(ctx, role)
		require.ErrorIs(t, err, want)
		require.ErrorIs(t, keys.Commit(ctx, role), want)
		require.ErrorIs(t, keys.Discard(ctx, role), want)
	}
	_, err := records.Get(ctx, "tpm-esk-next")
	require.ErrorIs(t, err, fs.ErrNotExist)
}

// TestRotateDamaged replaces keys that are damaged.
func TestRotateDamaged(t *testing.T) {
	s := start(t)
	ctx := t.Context()
	records := new(store.Mem)
	tpm := open(t, s, tpm2.Options{})
	require.NoError(t, records.Put(ctx, "tpm-dsk", []byte("damaged")))
	require.NoError(t, records.Put(ctx, "tpm-dsk-next", []byte("damaged")))
	keys := keyStore(t, tpm, records, tpm2.KeyOptions{})
	require.ErrorIs(t, keys.Commit(ctx, keystore.Device), store.ErrDamaged)
	next, err := keys.Stage(ctx, keystore.Device)
	require.NoError(t, err)
	require.NoError(t, keys.Commit(ctx, keystore.Device))
	current, err := keyStore(t, tpm, records, tpm2.KeyOptions{}).Signer(ctx, keystore.Device)
	require.NoError(t, err)
	assert.Equal(t, next.Public(), current.Public())
	require.NoError(t, sign(current))
}

// TestRotateOntoForeignObject commits a key whose handle somebody else has taken.
func TestRotateOntoForeignObject(t *testing.T) {
	s := start(t)
	ctx := t.Context()
	records := new(store.Mem)
	keys := keyStore(t, open(t, s, tpm2.Options{}), records, rotations["persistent"])
	old, err := keys.Generate(ctx, keystore.Device)
	require.NoError(t, err)
	_, err = keys.Stage(ctx, keystore.Device)
	require.NoError(t, err)
	require.NoError(t, s.Evict(deviceHandle))
	persistForeign(t, s, deviceHandle)
	require.ErrorIs(t, keys.Commit(ctx, keystore.Device), tpm2.ErrHandleUsed)
	require.NoError(t, s.Evict(deviceHandle))
	current, err := keys.Signer(ctx, keystore.Device)
	require.NoError(t, err)
	assert.Equal(t, old.Public(), current.Public(), "nothing was changed")
	require.NoError(t, keys.Commit(ctx, keystore.Device))
	assert.Equal(t, []uint32{deviceHandle}, holds(t, s).Persistent)
}

// TestRotateToAnotherHandle changes the options between two keys.
func TestRotateToAnotherHandle(t *testing.T) {
	s := start(t)
	ctx := t.Context()
	records := new(store.Mem)
	tpm := open(t, s, tpm2.Options{})
	for i, handle := range []uint32{0x81000100, 0x81000200, 0, 0x81000300, 0x81000300} {
		o := tpm2.KeyOptions{}
		var want []uint32
		if handle != 0 {
			o.Handles, want = map[keystore.Role]uint32{keystore.Device: handle}, []uint32{handle}
		}
		keys := keyStore(t, tpm, records, o)
		if i == 0 {
			_, err := keys.Generate(ctx, keystore.Device)
			require.NoError(t, err)
		} else {
			_, err := keys.Stage(ctx, keystore.Device)
			require.NoError(t, err)
			require.NoError(t, keys.Commit(ctx, keystore.Device))
		}
		assert.Equal(t, want, holds(t, s).Persistent)
		signer, err := keyStore(t, tpm, records, tpm2.KeyOptions{}).Signer(ctx, keystore.Device)
		require.NoError(t, err)
		require.NoError(t, sign(signer))
	}
}

// TestPersistTogether has another process put the key at its handle between our look
// at it and our own attempt.
func TestPersistTogether(t *testing.T) {
	s := start(t)
	ctx := t.Context()
	records := new(store.Mem)
	tpm := open(t, s, tpm2.Options{})
	keys := keyStore(t, tpm, records, rotations["persistent"])
	_, err := keys.Generate(ctx, keystore.Device)
	require.NoError(t, err)
	require.NoError(t, s.Evict(deviceHandle)) // as if power had been cut before it got there
	var once sync.Once
	s.Intercept(func(command []byte, next tpm2test.Send) ([]byte, error) {
		if tpm2test.Command(command) == gotpm.TPMCCEvictControl {
			once.Do(func() {
				_, err := next(command)
				assert.NoError(t, err)
			})
		}
		return next(command)
	})
	signer, err := keyStore(t, tpm, records, rotations["persistent"]).Signer(ctx, keystore.Device)
	require.NoError(t, err)
	require.NoError(t, sign(signer))
	assert.Equal(t, []uint32{deviceHandle}, holds(t, s).Persistent)
	assert.Empty(t, holds(t, s).Transient)
}

// TestCutWhileRotating cuts the TPM off, and then has the process go on or start anew.
// Either key is the role's, and the rest can be done.
func TestCutWhileRotating(t *testing.T) {
	for name, o := range rotations {
		t.Run(name, func(t *testing.T) {
			var old, next crypto.Signer
			prepare := func(t *testing.T, d *device) {
				d.options = o
				var err error
				old, err = d.keys(t).Generate(t.Context(), keystore.Device)
				require.NoError(t, err)
			}
			call := func(d *device) (err error) {
				keys, err := d.tpm.KeyStore(d.records, d.options)
				if err != nil {
					return err
				}
				if next, err = keys.Stage(context.Background(), keystore.Device); err != nil {
					return err
				}
				return keys.Commit(context.Background(), keystore.Device)
			}
			after := func(t *testing.T, d *device, _ error) { finishRotation(t, d, old, next) }
			everyCut(t, tpm2.Options{}, prepare, call, after)
		})
	}
}

// finishRotation makes sure that the key is the old one or the new one, and takes the
// rotation to its end.
func finishRotation(t *testing.T, d *device, old, next crypto.Signer) {
	t.Helper()
	ctx := t.Context()
	current, err := d.keys(t).Signer(ctx, keystore.Device)
	require.NoError(t, err)
	require.NoError(t, sign(current))
	replaced := !old.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(current.Public())
	keys := d.keys(t)
	if !replaced {
		staged, err := keys.Stage(ctx, keystore.Device)
		require.NoError(t, err)
		if next != nil {
			assert.Equal(t, next.Public(), staged.Public(), "a cut loses no staged key")
		}
		next = staged
	}
	require.NoError(t, keys.Commit(ctx, keystore.Device))
	current, err = d.keys(t).Signer(ctx, keystore.Device)
	require.NoError(t, err)
	if next != nil {
		assert.Equal(t, next.Public(), current.Public())
	}
	require.NoError(t, sign(current))
	_, err = d.records.Get(ctx, "tpm-dsk-next")
	require.ErrorIs(t, err, fs.ErrNotExist)
	assert.Len(t, holds(t, d.s).Persistent, len(d.options.Handles))
}

// TestCutBetweenRecords ends the process at each write of a record: what it wrote
// before is all there is.
func TestCutBetweenRecords(t *testing.T) {
	for name, o := range rotations {
		t.Run(name, func(t *testing.T) {
			s := start(t)
			for n := range 8 {
				d := &device{s: s, tpm: open(t, s, tpm2.Options{}), records: new(store.Mem), options: o}
				old, err := d.keys(t).Generate(t.Context(), keystore.Device)
				require.NoError(t, err)
				cut := &cutStore{Mem: d.records, left: n}
				keys := keyStore(t, d.tpm, cut, o)
				next, err := keys.Stage(t.Context(), keystore.Device)
				if err == nil {
					err = keys.Commit(t.Context(), keystore.Device)
				}
				if err != nil {
					require.ErrorIs(t, err, errPowerCut, fmt.Sprint(n))
				}
				finishRotation(t, d, old, next)
				d.forget(t)
				if err == nil {
					require.Greater(t, n, 1)
					return
				}
			}
			t.Error("more writes than there can be")
		})
	}
}

var errPowerCut = errors.New("the power was cut")

// cutStore writes a few records, and then nothing more.
type cutStore struct {
	*store.Mem
	left int
}

func (c *cutStore) cut() error {
	if c.left--; c.left < 0 {
		return errPowerCut
	}
	return nil
}

func (c *cutStore) Put(ctx context.Context, name string, data []byte) error {
	if err := c.cut(); err != nil {
		return err
	}
	return c.Mem.Put(ctx, name, data)
}

func (c *cutStore) Create(ctx context.Context, name string, data []byte) error {
	if err := c.cut(); err != nil {
		return err
	}
	return c.Mem.Create(ctx, name, data)
}

func (c *cutStore) Delete(ctx context.Context, name string) error {
	if err := c.cut(); err != nil {
		return err
	}
	return c.Mem.Delete(ctx, name)
}

// TestStageAfterCutCommit cuts a commit off after the new key has become the role's.
// That key is no longer staged: the next one is another.
func TestStageAfterCutCommit(t *testing.T) {
	s := start(t)
	ctx := t.Context()
	tpm, records := open(t, s, tpm2.Options{}), new(store.Mem)
	_, err := keyStore(t, tpm, records, tpm2.KeyOptions{}).Generate(ctx, keystore.Device)
	require.NoError(t, err)
	keys := keyStore(t, tpm, &cutStore{Mem: records, left: 2}, tpm2.KeyOptions{})
	next, err := keys.Stage(ctx, keystore.Device)
	require.NoError(t, err)
	require.ErrorIs(t, keys.Commit(ctx, keystore.Device), errPowerCut)

	keys = keyStore(t, tpm, records, tpm2.KeyOptions{})
	current, err := keys.Signer(ctx, keystore.Device)
	require.NoError(t, err)
	require.Equal(t, next.Public(), current.Public(), "the new key is the role's")
	third, err := keys.Stage(ctx, keystore.Device)
	require.NoError(t, err)
	assert.NotEqual(t, next.Public(), third.Public())
}
