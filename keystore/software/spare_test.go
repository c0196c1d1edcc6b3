package software

import (
	"context"
	"crypto"
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/store"
)

func newStore(t *testing.T) *Store {
	t.Helper()
	secret := func(context.Context) ([]byte, error) { return []byte("0123456789abcdef0123456789abcdef"), nil }
	s, err := New(new(store.Mem), Options{Secret: secret, Iterations: 1})
	require.NoError(t, err)
	return s
}

// A key that took long to make is not lost with the call that was cancelled, or
// a device whose calls have short time limits would never have one.
func TestNextCallUsesTheKeyOfACancelledOne(t *testing.T) {
	s := newStore(t)
	key, err := generateKey(P256)
	require.NoError(t, err)
	release := make(chan struct{})
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = await(cancelled, s, func() (crypto.Signer, error) {
		<-release
		s.spare = key
		return key, nil
	})
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorIs(t, s.idle(cancelled), context.Canceled, "the work goes on")
	close(release)

	esk, err := s.Generate(t.Context(), keystore.Enrolment)
	require.NoError(t, err)
	dsk, err := s.Signer(t.Context(), keystore.Device)
	require.NoError(t, err)
	assert.Equal(t, key.Public(), dsk.Public(), "the device key, which is made first, is the spare one")
	assert.NotEqual(t, key.Public(), esk.Public(), "one key is not used twice")
	assert.Nil(t, s.spare)
}

// A store that could not say whether it has stored a key may have: the key is
// not used for another role.
func TestKeyOfAFailedCreateIsNotUsedAgain(t *testing.T) {
	s := newStore(t)
	s.records = &vague{Creator: s.records}
	_, err := s.Generate(t.Context(), keystore.Device)
	require.ErrorIs(t, err, errVague)
	s.records = s.records.(*vague).Creator
	dsk, err := s.Signer(t.Context(), keystore.Device)
	require.NoError(t, err)
	esk, err := s.Generate(t.Context(), keystore.Enrolment)
	require.NoError(t, err)
	assert.NotEqual(t, dsk.Public(), esk.Public())
}

// vague stores a record and says that it failed.
type vague struct{ store.Creator }

var errVague = errors.New("the medium did not answer")

func (v *vague) Create(ctx context.Context, name string, data []byte) error {
	if err := v.Creator.Create(ctx, name, data); err != nil {
		return err
	}
	return errVague
}

// Opening a key waits for the work that a cancelled call left behind, too.
func TestOpeningWaitsForTheWorkOfACancelledCall(t *testing.T) {
	s := newStore(t)
	_, err := s.Generate(t.Context(), keystore.Enrolment)
	require.NoError(t, err)
	clear(s.signers) // as after a restart
	release := make(chan struct{})
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = await(cancelled, s, func() (int, error) { <-release; return 0, nil })
	require.ErrorIs(t, err, context.Canceled)

	_, err = s.open(cancelled, keystore.Enrolment)
	require.ErrorIs(t, err, context.Canceled)
	require.NotNil(t, s.busy)
	close(release)
	_, err = s.open(t.Context(), keystore.Enrolment)
	require.NoError(t, err)
	assert.Nil(t, s.busy)
}
