//go:build linux

package tpm2_test

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io/fs"
	"testing"

	gotpm "github.com/google/go-tpm/tpm2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/keystore/tpm2"
	"github.com/quarklink-go/quarklink/keystore/tpm2/tpm2test"
	"github.com/quarklink-go/quarklink/store"
)

// maxCommands is more than any call sends.
const maxCommands = 60

// everyCut runs call with the TPM cut off at its first command, its second, and so on
// until it gets through, in every way. Each time a new TPM and whatever prepare made
// on it; after the cut the TPM has power again and after is asked how things stand.
func everyCut(t *testing.T, o tpm2.Options, prepare func(*testing.T, *device), call func(*device) error,
	after func(*testing.T, *device, error)) {
	for _, how := range tpm2test.Cuts {
		t.Run(how.String(), func(t *testing.T) {
			s := start(t)
			points := 0
			for n := range maxCommands {
				d := &device{s: s, tpm: open(t, s, o), records: new(store.Mem)}
				prepare(t, d)
				which := s.CutAt(n, how)
				err := call(d)
				s.Intercept(nil)
				if which() == 0 {
					require.NoError(t, err, "no cut, at command %d", n)
					require.Positive(t, points)
					t.Logf("%d points", points)
					return
				}
				points++
				if how != tpm2test.LoseAnswer {
					require.NoError(t, s.Boot(t.Context()))
				}
				// It is the same process, then one that starts anew.
				for _, life := range []string{"goes on", "starts anew"} {
					t.Run(fmt.Sprintf("command %d, the process %s", n, life), func(t *testing.T) {
						if life == "starts anew" {
							require.NoError(t, d.tpm.Close())
							d.tpm = open(t, s, o)
						}
						after(t, d, err)
						now := holds(t, s)
						assert.Empty(t, now.Transient)
						if how == tpm2test.LoseAnswer && which() == gotpm.TPMCCStartAuthSession {
							return // the limit in the package's comment: nobody knows this session's handle
						}
						assert.Empty(t, now.Sessions)
					})
				}
				d.forget(t)
				if which() == gotpm.TPMCCStartAuthSession {
					require.NoError(t, s.PowerCycle(t.Context()))
				}
			}
			t.Errorf("more than %d commands", maxCommands)
		})
	}
}

// device is a TPM and what is stored beside it.
type device struct {
	s       *tpm2test.TPM
	tpm     *tpm2.TPM
	records *store.Mem
	options tpm2.KeyOptions
	signer  crypto.Signer
}

func (d *device) keys(tb testing.TB) *tpm2.Store { return keyStore(tb, d.tpm, d.records, d.options) }

// forget makes room for the next persistent key.
func (d *device) forget(tb testing.TB) {
	for _, h := range holds(tb, d.s).Persistent {
		require.NoError(tb, d.s.Evict(h))
	}
}

func TestCutWhileSigning(t *testing.T) {
	for name, o := range map[string]struct {
		tpm2.Options
		tpm2.KeyOptions
		reset bool // the TPM was reset after the key was made, so that no saved context is good
	}{
		"plain":       {},
		"after reset": {reset: true},
		"encrypted":   {Options: tpm2.Options{Encrypt: true}},
		"persistent":  {KeyOptions: tpm2.KeyOptions{Handles: map[keystore.Role]uint32{keystore.Enrolment: 0x81000100}}},
	} {
		t.Run(name, func(t *testing.T) {
			prepare := func(t *testing.T, d *device) {
				d.options = o.KeyOptions
				d.signer = generate(t, d.keys(t))
				if o.reset {
					require.NoError(t, d.s.PowerCycle(t.Context()))
				}
			}
			call := func(d *device) error { return sign(d.signer) }
			after := func(t *testing.T, d *device, err error) {
				if err != nil {
					assert.NotErrorIs(t, err, fs.ErrNotExist)
				}
				again, err := d.keys(t).Signer(t.Context(), keystore.Enrolment)
				require.NoError(t, err, "the key is there")
				require.Equal(t, d.signer.Public(), again.Public())
				assert.NoError(t, sign(again))
			}
			everyCut(t, o.Options, prepare, call, after)
		})
	}
}

// TestCutWhileGenerating shows that a key is there or never was, and in the latter case
// can still be made.
func TestCutWhileGenerating(t *testing.T) {
	for name, options := range map[string]tpm2.KeyOptions{
		"wrapped":    {},
		"persistent": {Handles: map[keystore.Role]uint32{keystore.Enrolment: 0x81000100}},
		"with authorization": {KeyAuth: func(context.Context, keystore.Role) ([]byte, error) {
			return []byte("secret"), nil
		}},
	} {
		t.Run(name, func(t *testing.T) {
			prepare := func(t *testing.T, d *device) { d.options = options }
			call := func(d *device) (err error) {
				d.signer, err = d.keys(t).Generate(t.Context(), keystore.Enrolment)
				return err
			}
			after := func(t *testing.T, d *device, err error) {
				if err != nil {
					assert.NotErrorIs(t, err, fs.ErrExist)
				}
				keys := d.keys(t)
				signer, openErr := keys.Signer(t.Context(), keystore.Enrolment)
				if errors.Is(openErr, fs.ErrNotExist) {
					require.Error(t, err, "it was made and is gone")
					require.Nil(t, d.signer)
					signer, openErr = keys.Generate(t.Context(), keystore.Enrolment)
				}
				require.NoError(t, openErr)
				if d.signer != nil {
					assert.Equal(t, d.signer.Public(), signer.Public())
				}
				d.signer = signer // in the next life it has to be this one
				assert.NoError(t, sign(signer))
				if handle, persistent := options.Handles[keystore.Enrolment]; persistent {
					assert.Equal(t, []uint32{handle}, holds(t, d.s).Persistent)
				}
			}
			everyCut(t, tpm2.Options{}, prepare, call, after)
		})
	}
}
