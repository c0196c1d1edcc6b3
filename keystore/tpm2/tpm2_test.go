//go:build linux

package tpm2_test

import (
	"context"
	"io/fs"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/keystore/keystoretest"
	"github.com/quarklink-go/quarklink/keystore/tpm2"
	"github.com/quarklink-go/quarklink/keystore/tpm2/tpm2test"
	"github.com/quarklink-go/quarklink/store"
)

// TestConformance runs the check that every key store passes, on a fresh store and
// once more on the same.
func TestConformance(t *testing.T) {
	for name, o := range map[string]struct {
		options  tpm2.Options
		keys     tpm2.KeyOptions
		openings bool // each store opens the TPM for itself: they compete for its slots
	}{
		"wrapped": {},
		"persistent": {keys: tpm2.KeyOptions{Handles: map[keystore.Role]uint32{
			keystore.Enrolment: 0x81000100, keystore.Device: deviceHandle,
		}}},
		"encrypted with authorization": {
			options: tpm2.Options{Encrypt: true},
			keys: tpm2.KeyOptions{KeyAuth: func(_ context.Context, role keystore.Role) ([]byte, error) {
				return []byte("secret of " + role), nil
			}},
		},
		"two openings": {openings: true, options: tpm2.Options{SlotWait: patience}},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t)
			shared := open(t, s, o.options)
			records := new(store.Mem)
			before := holds(t, s)
			for range 2 {
				err := keystoretest.Test(t.Context(), func(context.Context) (keystore.KeyStore, error) {
					tpm := shared
					if o.openings {
						tpm = open(t, s, o.options)
					}
					return tpm.KeyStore(records, o.keys)
				})
				assert.NoError(t, err)
			}
			after := holds(t, s)
			assert.Equal(t, before.Transient, after.Transient)
			assert.Equal(t, before.Sessions, after.Sessions)
			assert.Len(t, after.Persistent, len(o.keys.Handles))
		})
	}
}

// TestThousandSignatures has a hundred goroutines sign at once while a foreign object
// takes one of the TPM's three slots.
func TestThousandSignatures(t *testing.T) {
	s := start(t)
	fill(t, s, 1)
	signer := generate(t, keyStore(t, open(t, s, tpm2.Options{}), new(store.Mem), tpm2.KeyOptions{}))
	before := holds(t, s)
	const goroutines, each = 100, 10
	failures := make(chan error, goroutines*each)
	var all sync.WaitGroup
	for range goroutines {
		all.Go(func() {
			for range each {
				failures <- sign(signer)
			}
		})
	}
	all.Wait()
	close(failures)
	signed := 0
	for err := range failures {
		require.NoError(t, err)
		signed++
	}
	assert.Equal(t, goroutines*each, signed)
	assert.Equal(t, before, holds(t, s))
}

// TestOutOfSlots takes so many of the TPM's three slots that the two it takes to sign
// are not left.
func TestOutOfSlots(t *testing.T) {
	for name, foreign := range map[string]int{"two foreign objects": 2, "three foreign objects": 3} {
		t.Run(name, func(t *testing.T) {
			s := start(t)
			tpm := open(t, s, tpm2.Options{SlotWait: 50 * time.Millisecond})
			keys := keyStore(t, tpm, new(store.Mem), tpm2.KeyOptions{})
			signer := generate(t, keys)
			require.NoError(t, sign(signer))
			others := fill(t, s, foreign)
			before := holds(t, s)

			err := sign(signer)
			require.ErrorIs(t, err, tpm2.ErrOutOfSlots)
			var slots *tpm2.SlotsError
			require.ErrorAs(t, err, &slots)
			var holders []uint32
			for _, h := range slots.Holders {
				holders = append(holders, h.Handle)
				assert.Contains(t, h.Description, "ECC storage key")
			}
			assert.Equal(t, others.Handles(), holders, "the error names the holders and nobody else")
			assert.ErrorContains(t, err, "0x80000000")

			if foreign == 3 {
				_, err = keys.Generate(t.Context(), keystore.Device)
				require.ErrorIs(t, err, tpm2.ErrOutOfSlots)
				_, err = keys.Signer(t.Context(), keystore.Device)
				require.ErrorIs(t, err, fs.ErrNotExist)
			}
			assert.Equal(t, before, holds(t, s), "a foreign object was flushed, or one of ours left behind")
			require.NoError(t, others.Release())
			assert.NoError(t, sign(signer), "it recovers when the objects go")
			assert.Empty(t, holds(t, s).Transient)
		})
	}
}

// TestWaitsForSlots frees the slots while a call waits for them.
func TestWaitsForSlots(t *testing.T) {
	s := start(t)
	signer := generate(t, keyStore(t, open(t, s, tpm2.Options{SlotWait: patience}), new(store.Mem), tpm2.KeyOptions{}))
	others, err := s.Fill(3)
	require.NoError(t, err)
	refused := make(chan struct{})
	var once sync.Once
	s.Intercept(func(command []byte, next tpm2test.Send) ([]byte, error) {
		answer, err := next(command)
		if err == nil && code(answer) == 0x902 { // TPM_RC_OBJECT_MEMORY
			once.Do(func() { close(refused) })
		}
		return answer, err
	})
	done := make(chan error, 1)
	go func() { done <- sign(signer) }()
	<-refused
	require.NoError(t, others.Release())
	assert.NoError(t, <-done)
}
