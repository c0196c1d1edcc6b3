package software_test

import (
	"context"
	"errors"
	"io/fs"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/keystore/keystoretest"
	"github.com/quarklink-go/quarklink/keystore/software"
	"github.com/quarklink-go/quarklink/store"
)

func TestRotator(t *testing.T) {
	records := new(store.Mem)
	opener := func(context.Context) (keystore.KeyStore, error) {
		return software.New(records, options(software.P256, strong))
	}
	for range 2 { // the second time on what the first has left
		require.NoError(t, keystoretest.TestRotator(t.Context(), opener))
	}
	_, err := records.Get(t.Context(), "key-dsk-next")
	assert.ErrorIs(t, err, fs.ErrNotExist)
	require.NoError(t, keystoretest.Test(t.Context(), opener))
}

// damage flips a bit of a record, or writes one that is none.
func damage(t *testing.T, records store.Store, name string) {
	t.Helper()
	data, err := records.Get(t.Context(), name)
	require.NoError(t, err)
	data[len(data)/2] ^= 1
	require.NoError(t, records.Put(t.Context(), name, data))
}

// TestRotationPowerCut cuts power at every write of a rotation, of a device key
// that is whole and of one that is damaged: the next start finds the old key or
// the new one, and the rotation comes to its end with the key that was staged.
func TestRotationPowerCut(t *testing.T) {
	ctx := t.Context()
	for _, damaged := range []bool{false, true} {
		for writes := 1; ; writes++ {
			cuts := 0
			for _, after := range []bool{false, true} {
				c := &cutting{after: after}
				first := open(t, &c.Mem, options(software.P256, strong))
				identity := fingerprint(t, generate(t, first, keystore.Enrolment))
				dsk, err := first.Signer(ctx, keystore.Device)
				require.NoError(t, err)
				old := fingerprint(t, dsk)
				if damaged {
					damage(t, &c.Mem, "key-dsk")
				}

				c.writes = writes
				s := open(t, c, options(software.P256, strong))
				staged := ""
				next, err := s.Stage(ctx, keystore.Device)
				if err == nil {
					staged = fingerprint(t, next)
					err = s.Commit(ctx, keystore.Device)
				}
				if err != nil {
					require.ErrorIs(t, err, errCut)
					cuts++
				}

				s = open(t, &c.Mem, options(software.P256, strong))
				dsk, err = s.Signer(ctx, keystore.Device)
				if damaged && err != nil {
					require.ErrorIs(t, err, store.ErrDamaged)
				} else {
					require.NoError(t, err)
					assert.Contains(t, []string{old, staged}, fingerprint(t, dsk))
				}
				if err != nil || fingerprint(t, dsk) == old { // not committed: carry on
					again, err := s.Stage(ctx, keystore.Device)
					require.NoError(t, err)
					if staged != "" {
						assert.Equal(t, staged, fingerprint(t, again))
					}
					staged = fingerprint(t, again)
				}
				require.NoError(t, s.Commit(ctx, keystore.Device))
				dsk, err = open(t, &c.Mem, options(software.P256, strong)).Signer(ctx, keystore.Device)
				require.NoError(t, err)
				assert.Equal(t, staged, fingerprint(t, dsk))
				esk, err := s.Signer(ctx, keystore.Enrolment)
				require.NoError(t, err)
				assert.Equal(t, identity, fingerprint(t, esk))
				_, err = c.Mem.Get(ctx, "key-dsk-next")
				assert.ErrorIs(t, err, fs.ErrNotExist)
			}
			if cuts == 0 {
				require.Greater(t, writes, 3)
				break
			}
		}
	}
}

// TestDamagedStagedKey: it takes nobody's place, and Stage makes another.
func TestDamagedStagedKey(t *testing.T) {
	ctx, records := t.Context(), new(store.Mem)
	s := open(t, records, options(software.P256, strong))
	old := fingerprint(t, generate(t, s, keystore.Device))
	first, err := s.Stage(ctx, keystore.Device)
	require.NoError(t, err)
	damage(t, records, "key-dsk-next")

	require.ErrorIs(t, s.Commit(ctx, keystore.Device), store.ErrDamaged)
	for _, s := range []*software.Store{s, open(t, records, options(software.P256, strong))} {
		dsk, err := s.Signer(ctx, keystore.Device)
		require.NoError(t, err)
		assert.Equal(t, old, fingerprint(t, dsk))
	}
	second, err := s.Stage(ctx, keystore.Device)
	require.NoError(t, err)
	assert.NotEqual(t, fingerprint(t, first), fingerprint(t, second))
	require.NoError(t, s.Commit(ctx, keystore.Device))
	dsk, err := open(t, records, options(software.P256, strong)).Signer(ctx, keystore.Device)
	require.NoError(t, err)
	assert.Equal(t, fingerprint(t, second), fingerprint(t, dsk))
}

// TestCommitWithAnotherSecret: a key that the secret does not open is not
// damaged; it is neither put in the place of the old one nor thrown away.
func TestCommitWithAnotherSecret(t *testing.T) {
	ctx, records := t.Context(), new(store.Mem)
	s := open(t, records, options(software.P256, strong))
	old := fingerprint(t, generate(t, s, keystore.Device))
	next, err := s.Stage(ctx, keystore.Device)
	require.NoError(t, err)

	other := open(t, records, options(software.P256, "another secret, also of 32 bytes"))
	require.ErrorIs(t, other.Commit(ctx, keystore.Device), software.ErrSecret)
	_, err = other.Stage(ctx, keystore.Device)
	require.ErrorIs(t, err, software.ErrSecret)

	s = open(t, records, options(software.P256, strong))
	dsk, err := s.Signer(ctx, keystore.Device)
	require.NoError(t, err)
	assert.Equal(t, old, fingerprint(t, dsk))
	again, err := s.Stage(ctx, keystore.Device)
	require.NoError(t, err)
	assert.Equal(t, fingerprint(t, next), fingerprint(t, again))
}

// TestCommittedElsewhere: a Store has the key that another process has committed,
// and keeps its own if the record is merely gone or damaged.
func TestCommittedElsewhere(t *testing.T) {
	ctx, records := t.Context(), new(store.Mem)
	here := open(t, records, options(software.P256, strong))
	generate(t, here, keystore.Device)
	there := open(t, records, options(software.P256, strong))
	next, err := there.Stage(ctx, keystore.Device)
	require.NoError(t, err)
	require.NoError(t, there.Commit(ctx, keystore.Device))
	for _, spoil := range []func(){
		func() {},
		func() { damage(t, records, "key-dsk") },
		func() { require.NoError(t, records.Delete(ctx, "key-dsk")) },
	} {
		spoil()
		dsk, err := here.Signer(ctx, keystore.Device)
		require.NoError(t, err)
		assert.Equal(t, fingerprint(t, next), fingerprint(t, dsk))
	}
}

// overtaken lets another process in before it creates a record.
type overtaken struct {
	*store.Mem
	first func()
}

func (s *overtaken) Create(ctx context.Context, name string, data []byte) error {
	if s.first != nil {
		s.first()
	}
	return s.Mem.Create(ctx, name, data)
}

// TestStagedElsewhere: of two processes that stage a key at once both get the one
// that was stored.
func TestStagedElsewhere(t *testing.T) {
	ctx, records := t.Context(), new(store.Mem)
	var theirs string
	here := open(t, &overtaken{records, func() {
		key, err := open(t, records, options(software.P256, strong)).Stage(ctx, keystore.Device)
		require.NoError(t, err)
		theirs = fingerprint(t, key)
	}}, options(software.P256, strong))
	key, err := here.Stage(ctx, keystore.Device)
	require.NoError(t, err)
	assert.Equal(t, theirs, fingerprint(t, key))
}

// TestIdentityIsNotReplaced: the enrolment key that was opened stays, also if its
// record is another's.
func TestIdentityIsNotReplaced(t *testing.T) {
	ctx, records, other := t.Context(), new(store.Mem), new(store.Mem)
	s := open(t, records, options(software.P256, strong))
	identity := fingerprint(t, generate(t, s, keystore.Enrolment))
	generate(t, open(t, other, options(software.P256, strong)), keystore.Enrolment)
	data, err := other.Get(ctx, "key-esk")
	require.NoError(t, err)
	require.NoError(t, records.Put(ctx, "key-esk", data))
	esk, err := s.Signer(ctx, keystore.Enrolment)
	require.NoError(t, err)
	assert.Equal(t, identity, fingerprint(t, esk))
}

// unsure writes, and says that it failed.
type unsure struct {
	store.Mem
	fail bool
}

func (s *unsure) Put(ctx context.Context, name string, data []byte) error {
	err := s.Mem.Put(ctx, name, data)
	if s.fail {
		return errors.New("the record is written but may not outlive a power cut")
	}
	return err
}

// TestCommitInDoubt: after a write that failed the record decides which key it
// is, not memory.
func TestCommitInDoubt(t *testing.T) {
	ctx, records := t.Context(), new(unsure)
	s := open(t, records, options(software.P256, strong))
	generate(t, s, keystore.Device)
	next, err := s.Stage(ctx, keystore.Device)
	require.NoError(t, err)
	records.fail = true
	require.Error(t, s.Commit(ctx, keystore.Device))
	dsk, err := s.Signer(ctx, keystore.Device)
	require.NoError(t, err)
	assert.Equal(t, fingerprint(t, next), fingerprint(t, dsk))
	records.fail = false
	require.NoError(t, s.Commit(ctx, keystore.Device))
}

// TestNoSuchRole: the place of a staged key is no role.
func TestNoSuchRole(t *testing.T) {
	ctx := t.Context()
	s := open(t, new(store.Mem), options(software.P256, strong))
	_, err := s.Stage(ctx, keystore.Device)
	require.NoError(t, err)
	for _, role := range []keystore.Role{"dsk-next", "", "other"} {
		_, err := s.Signer(ctx, role)
		assert.ErrorIs(t, err, fs.ErrInvalid, "Signer %q", role)
		_, err = s.Generate(ctx, role)
		assert.ErrorIs(t, err, fs.ErrInvalid, "Generate %q", role)
		_, err = s.Stage(ctx, role)
		assert.ErrorIs(t, err, fs.ErrInvalid, "Stage %q", role)
		assert.ErrorIs(t, s.Commit(ctx, role), fs.ErrInvalid, "Commit %q", role)
		assert.ErrorIs(t, s.Discard(ctx, role), fs.ErrInvalid, "Discard %q", role)
	}
}
