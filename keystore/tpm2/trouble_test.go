//go:build linux

package tpm2_test

import (
	"context"
	"crypto"
	"io/fs"
	"sync"
	"testing"
	"time"

	gotpm "github.com/google/go-tpm/tpm2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/keystore/tpm2"
	"github.com/quarklink-go/quarklink/keystore/tpm2/tpm2test"
	"github.com/quarklink-go/quarklink/store"
)

// TestReload has the TPM lose its memory, between signatures and in the middle of
// one. The signature is made all the same, and nothing is left behind.
func TestReload(t *testing.T) {
	between := func(lose func(*testing.T, *tpm2test.TPM)) func(*testing.T, *tpm2test.TPM) {
		return lose
	}
	inMiddle := func(at gotpm.TPMCC, lose func(*testing.T, *tpm2test.TPM)) func(*testing.T, *tpm2test.TPM) {
		return func(t *testing.T, s *tpm2test.TPM) {
			var once sync.Once
			s.Intercept(func(command []byte, next tpm2test.Send) ([]byte, error) {
				if tpm2test.Command(command) == at {
					once.Do(func() { lose(t, s) })
				}
				return next(command)
			})
		}
	}
	reset := func(t *testing.T, s *tpm2test.TPM) { assert.NoError(t, s.PowerCycle(t.Context())) }
	suspend := func(t *testing.T, s *tpm2test.TPM) { assert.NoError(t, s.Suspend(t.Context())) }
	flushAll := func(t *testing.T, s *tpm2test.TPM) {
		for _, h := range holds(t, s).Transient {
			_, err := gotpm.FlushContext{FlushHandle: gotpm.TPMHandle(h)}.Execute(direct(t, s))
			assert.NoError(t, err)
		}
	}
	for name, lose := range map[string]func(*testing.T, *tpm2test.TPM){
		"reset between":                  between(reset),
		"suspended between":              between(suspend),
		"reset before the key is loaded": inMiddle(gotpm.TPMCCLoad, reset),
		"reset before it signs":          inMiddle(gotpm.TPMCCSign, reset),
		"reset before it is flushed":     inMiddle(gotpm.TPMCCFlushContext, reset),
		"suspended before it signs":      inMiddle(gotpm.TPMCCSign, suspend),
		"somebody flushes everything":    inMiddle(gotpm.TPMCCSign, flushAll),
	} {
		for mode, o := range map[string]tpm2.Options{"plain": {}, "encrypted": {Encrypt: true}} {
			t.Run(name+", "+mode, func(t *testing.T) {
				s := start(t)
				signer := generate(t, keyStore(t, open(t, s, o), new(store.Mem), tpm2.KeyOptions{}))
				lose(t, s)
				require.NoError(t, sign(signer))
				s.Intercept(nil)
				require.NoError(t, sign(signer))
				now := holds(t, s)
				assert.Empty(t, now.Transient)
				if name != "somebody flushes everything" { // they left our session
					assert.Empty(t, now.Sessions)
				}
			})
		}
	}
}

// TestReloadsOnce has a TPM that loses every key. It is asked twice, not for ever.
func TestReloadsOnce(t *testing.T) {
	s := start(t)
	signer := generate(t, keyStore(t, open(t, s, tpm2.Options{}), new(store.Mem), tpm2.KeyOptions{}))
	signs := 0
	s.Intercept(func(command []byte, next tpm2test.Send) ([]byte, error) {
		if tpm2test.Command(command) != gotpm.TPMCCSign {
			return next(command)
		}
		signs++
		return tpm2test.Answer(uint32(gotpm.TPMRCReferenceH0)), nil
	})
	require.ErrorIs(t, sign(signer), gotpm.TPMRCReferenceH0)
	assert.Equal(t, 2, signs)
	s.Intercept(nil)
	require.NoError(t, sign(signer))
	assert.Empty(t, holds(t, s).Transient)
}

// TestForeignObjectAtOurHandle resets the TPM in the middle of a signature, and has
// somebody else's objects get the handles of ours. The key is not taken for damaged,
// and none of theirs is flushed.
func TestForeignObjectAtOurHandle(t *testing.T) {
	for name, test := range map[string]struct {
		at      gotpm.TPMCC
		foreign int
	}{
		"nothing, before the key is loaded":            {gotpm.TPMCCLoad, 0},
		"at the parent's, before the key is loaded":    {gotpm.TPMCCLoad, 1},
		"at the parent's, before the key signs":        {gotpm.TPMCCSign, 1},
		"at the key's as well, before the key signs":   {gotpm.TPMCCSign, 2},
		"at every handle, before the key signs":        {gotpm.TPMCCSign, 3},
		"at every handle, before the key is loaded":    {gotpm.TPMCCLoad, 3},
		"at the parent's and the key's, before a load": {gotpm.TPMCCLoad, 2},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t)
			tpm := open(t, s, tpm2.Options{SlotWait: -1})
			signer := generate(t, keyStore(t, tpm, new(store.Mem), tpm2.KeyOptions{}))
			var once sync.Once
			var others *tpm2test.Objects
			s.Intercept(func(command []byte, next tpm2test.Send) ([]byte, error) {
				if tpm2test.Command(command) == test.at {
					once.Do(func() {
						assert.NoError(t, s.PowerCycle(t.Context()))
						others = fill(t, s, test.foreign)
					})
				}
				return next(command)
			})
			err := sign(signer)
			if test.foreign < 2 {
				require.NoError(t, err)
			} else {
				require.ErrorIs(t, err, tpm2.ErrOutOfSlots)
			}
			s.Intercept(nil)
			assert.Len(t, holds(t, s).Transient, test.foreign)
			require.NoError(t, others.Release())
			require.NoError(t, sign(signer))
			assert.Empty(t, holds(t, s).Transient)
		})
	}
}

// TestForeignParent has somebody else load the very parent key that ours are under,
// as openssl's provider does, and answers get lost. Theirs stays.
func TestForeignParent(t *testing.T) {
	s := start(t)
	template := gotpm.ECCSRKTemplate
	template.Unique = gotpm.NewTPMUPublicID(gotpm.TPMAlgECC, &gotpm.TPMSECCPoint{})
	theirs, err := gotpm.CreatePrimary{
		PrimaryHandle: gotpm.TPMRHOwner, InPublic: gotpm.New2B(template),
	}.Execute(direct(t, s))
	require.NoError(t, err)
	for n := range maxCommands {
		signer := generate(t, keyStore(t, open(t, s, tpm2.Options{}), new(store.Mem), tpm2.KeyOptions{}))
		which := s.CutAt(n, tpm2test.LoseAnswer)
		_ = sign(signer)
		s.Intercept(nil)
		require.NoError(t, sign(signer))
		require.Equal(t, []uint32{uint32(theirs.ObjectHandle)}, holds(t, s).Transient)
		if which() == 0 {
			require.Positive(t, n)
			return
		}
	}
	t.Error("more commands than there can be")
}

// TestNotReady has the TPM answer for a while that it did not begin, also through the
// kernel's resource manager, which marks the codes that are its own.
func TestNotReady(t *testing.T) {
	for name, code := range map[string]uint32{
		"retry": 0x922, "yielded": 0x908, "testing": 0x90a, "NV rate": 0x920, "retry, said by the resource manager": 0xb0922,
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t)
			counts := make(map[gotpm.TPMCC]int)
			s.Intercept(func(command []byte, next tpm2test.Send) ([]byte, error) {
				cc := tpm2test.Command(command)
				if counts[cc]++; counts[cc] < 3 {
					return tpm2test.Answer(code), nil
				}
				return next(command)
			})
			signer := generate(t, keyStore(t, open(t, s, tpm2.Options{}), new(store.Mem), tpm2.KeyOptions{}))
			require.NoError(t, sign(signer))
			assert.Empty(t, holds(t, s).Transient)
		})
	}
}

// TestNeverReady has the TPM answer so for ever.
func TestNeverReady(t *testing.T) {
	s := start(t)
	tpm := open(t, s, tpm2.Options{})
	signer := generate(t, keyStore(t, tpm, new(store.Mem), tpm2.KeyOptions{}))
	tpm.SetTimeout(50 * time.Millisecond)
	s.Intercept(func([]byte, tpm2test.Send) ([]byte, error) { return tpm2test.Answer(0x922), nil })
	require.ErrorIs(t, sign(signer), context.DeadlineExceeded)
	s.Intercept(nil)
}

// TestLayerOfResourceManager has the kernel say that the TPM is full.
func TestLayerOfResourceManager(t *testing.T) {
	s := start(t)
	tpm := open(t, s, tpm2.Options{SlotWait: -1})
	signer := generate(t, keyStore(t, tpm, new(store.Mem), tpm2.KeyOptions{}))
	s.Intercept(func(command []byte, next tpm2test.Send) ([]byte, error) {
		if tpm2test.Command(command) == gotpm.TPMCCLoad {
			return tpm2test.Answer(0xb0902), nil
		}
		return next(command)
	})
	require.ErrorIs(t, sign(signer), tpm2.ErrOutOfSlots)
}

// hang holds commands back until release is called.
func hang(s *tpm2test.TPM, at gotpm.TPMCC) (reached <-chan struct{}, release func()) {
	arrived, gate := make(chan struct{}), make(chan struct{})
	var once sync.Once
	s.Intercept(func(command []byte, next tpm2test.Send) ([]byte, error) {
		if tpm2test.Command(command) == at {
			once.Do(func() { close(arrived) })
			<-gate
		}
		return next(command)
	})
	return arrived, sync.OnceFunc(func() { close(gate) })
}

// TestHang has the TPM not answer. Calls end in time and say so; nothing is sent
// meanwhile; and once it answers all is well, and nothing is left in it.
func TestHang(t *testing.T) {
	s := start(t)
	tpm := open(t, s, tpm2.Options{})
	keys := keyStore(t, tpm, new(store.Mem), tpm2.KeyOptions{})
	signer := generate(t, keys)
	tpm.SetTimeout(50 * time.Millisecond)
	_, release := hang(s, gotpm.TPMCCSign)
	t.Cleanup(release)

	err := sign(signer)
	require.ErrorIs(t, err, tpm2.ErrUnanswered)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	assert.ErrorContains(t, err, "unusable until it does")

	err = sign(signer)
	require.ErrorIs(t, err, tpm2.ErrUnanswered, "the next one does not wait for ever")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = keys.Generate(ctx, keystore.Device)
	require.ErrorIs(t, err, context.Canceled)
	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = keys.Generate(ctx, keystore.Device)
	require.ErrorIs(t, err, tpm2.ErrUnanswered)
	require.ErrorIs(t, err, context.DeadlineExceeded)

	release()
	s.Intercept(nil)
	tpm.SetTimeout(patience)
	require.NoError(t, sign(signer), "it waits for the command that is under way")
	assert.Empty(t, holds(t, s).Transient)
	_, err = keys.Signer(t.Context(), keystore.Device)
	require.ErrorIs(t, err, fs.ErrNotExist, "a Generate that was given up made no key")
}

// TestGenerateGivenUp ends the context while the TPM makes the key.
func TestGenerateGivenUp(t *testing.T) {
	s := start(t)
	tpm := open(t, s, tpm2.Options{})
	keys := keyStore(t, tpm, new(store.Mem), tpm2.KeyOptions{})
	reached, release := hang(s, gotpm.TPMCCCreate)
	t.Cleanup(release)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := keys.Generate(ctx, keystore.Enrolment)
		done <- err
	}()
	<-reached
	cancel()
	err := <-done
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorIs(t, err, tpm2.ErrUnanswered)
	release()
	_, err = keys.Signer(t.Context(), keystore.Enrolment)
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.NoError(t, sign(generate(t, keys)))
	assert.Empty(t, holds(t, s).Transient)
}

// TestClose closes a TPM, also one that does not answer.
func TestClose(t *testing.T) {
	s := start(t)
	tpm := open(t, s, tpm2.Options{})
	keys := keyStore(t, tpm, new(store.Mem), tpm2.KeyOptions{})
	signer := generate(t, keys)
	reached, release := hang(s, gotpm.TPMCCSign)
	t.Cleanup(release)
	done := make(chan error, 1)
	go func() { done <- sign(signer) }()
	<-reached
	require.NoError(t, tpm.Close())
	require.Error(t, <-done, "what waits for an answer returns")
	require.ErrorIs(t, sign(signer), fs.ErrClosed)
	_, err := keys.Generate(t.Context(), keystore.Device)
	require.ErrorIs(t, err, fs.ErrClosed)
	require.NoError(t, tpm.Close())
}

// TestWrongSignature has the TPM, or who sits on its bus, return something else.
func TestWrongSignature(t *testing.T) {
	for name, spoil := range map[string]func([]byte){
		"one bit":                func(answer []byte) { answer[len(answer)-10] ^= 1 },
		"another scheme":         func(answer []byte) { answer[15] = byte(gotpm.TPMAlgECSchnorr) },
		"r is zero":              func(answer []byte) { clear(answer[20:52]) },
		"a size beyond the end":  func(answer []byte) { answer[18] = 0xff },
		"parameter size too big": func(answer []byte) { answer[10] = 0xff },
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t)
			signer := generate(t, keyStore(t, open(t, s, tpm2.Options{}), new(store.Mem), tpm2.KeyOptions{}))
			s.Intercept(func(command []byte, next tpm2test.Send) ([]byte, error) {
				answer, err := next(command)
				if err == nil && tpm2test.Command(command) == gotpm.TPMCCSign {
					spoil(answer)
				}
				return answer, err
			})
			require.Error(t, sign(signer))
			s.Intercept(nil)
			require.NoError(t, sign(signer))
			assert.Empty(t, holds(t, s).Transient)
		})
	}
}

// TestOpenWaits opens a TPM that is busy at first.
func TestOpenWaits(t *testing.T) {
	s := start(t)
	require.NoError(t, s.Kill())
	opened := make(chan error, 1)
	tried := make(chan struct{})
	var once sync.Once
	s.Intercept(func(command []byte, next tpm2test.Send) ([]byte, error) {
		once.Do(func() { close(tried) })
		return next(command)
	})
	go func() {
		_, err := tpm2.Open(t.Context(), tpm2.Options{Path: s.Path(), OpenWait: patience})
		opened <- err
	}()
	<-tried
	require.NoError(t, s.Boot(t.Context()))
	require.NoError(t, <-opened)

	require.NoError(t, s.Kill())
	_, err := tpm2.Open(t.Context(), tpm2.Options{Path: s.Path(), OpenWait: -1})
	require.ErrorIs(t, err, tpm2.ErrConnection)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = tpm2.Open(ctx, tpm2.Options{Path: s.Path(), OpenWait: patience})
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

// TestGivenTransport uses a TPM that the caller has opened.
func TestGivenTransport(t *testing.T) {
	s := start(t)
	tpm, err := tpm2.Open(t.Context(), tpm2.Options{Transport: direct(t, s)})
	require.NoError(t, err)
	signer := generate(t, keyStore(t, tpm, new(store.Mem), tpm2.KeyOptions{}))
	require.NoError(t, sign(signer))
	assert.Empty(t, holds(t, s).Transient)
	require.NoError(t, tpm.Close())
}

// TestAtMostTwoObjects counts what is loaded after every command.
func TestAtMostTwoObjects(t *testing.T) {
	for name, o := range map[string]tpm2.Options{"plain": {}, "encrypted": {Encrypt: true}} {
		t.Run(name, func(t *testing.T) {
			s := start(t)
			most := 0
			s.Intercept(func(command []byte, next tpm2test.Send) ([]byte, error) {
				answer, err := next(command)
				most = max(most, len(holds(t, s).Transient))
				return answer, err
			})
			keys := keyStore(t, open(t, s, o), new(store.Mem), tpm2.KeyOptions{
				Handles: map[keystore.Role]uint32{keystore.Device: 0x81000100},
			})
			for _, role := range []keystore.Role{keystore.Enrolment, keystore.Device} {
				signer, err := keys.Generate(t.Context(), role)
				require.NoError(t, err)
				require.NoError(t, sign(signer))
			}
			assert.Equal(t, 2, most)
		})
	}
}

// TestWrongDigest has nothing sent to the TPM for what is no digest.
func TestWrongDigest(t *testing.T) {
	s := start(t)
	signer := generate(t, keyStore(t, open(t, s, tpm2.Options{}), new(store.Mem), tpm2.KeyOptions{}))
	s.Intercept(func([]byte, tpm2test.Send) ([]byte, error) {
		t.Error("the TPM was asked")
		return nil, fs.ErrInvalid
	})
	for _, n := range []int{0, 20, 31, 33, 64} {
		_, err := signer.Sign(nil, make([]byte, n), crypto.SHA256)
		assert.ErrorContains(t, err, "SHA-256 has 32")
	}
	_, err := signer.Sign(nil, make([]byte, 48), crypto.SHA384)
	assert.ErrorContains(t, err, "need SHA-256")
	_, err = signer.Sign(nil, make([]byte, 32), nil)
	assert.ErrorContains(t, err, "no options")
}

// TestGenerateTimesOutAfterwards has the TPM hang when the key is stored already. The
// error is no context's, which would promise that there is no key.
func TestGenerateTimesOutAfterwards(t *testing.T) {
	s := start(t)
	tpm := open(t, s, tpm2.Options{})
	records := new(store.Mem)
	keys := keyStore(t, tpm, records, tpm2.KeyOptions{Handles: map[keystore.Role]uint32{keystore.Enrolment: 0x81000100}})
	reached, release := hang(s, gotpm.TPMCCEvictControl)
	t.Cleanup(release)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-reached
		cancel() // it does not count any more
		tpm.Close()
	}()
	_, err := keys.Generate(ctx, keystore.Enrolment)
	require.ErrorIs(t, err, tpm2.ErrConnection)
	assert.NotErrorIs(t, err, context.Canceled)
	assert.NotErrorIs(t, err, context.DeadlineExceeded)
	release()
	s.Intercept(nil)
	keys = keyStore(t, open(t, s, tpm2.Options{}), records, tpm2.KeyOptions{})
	signer, err := keys.Signer(t.Context(), keystore.Enrolment)
	require.NoError(t, err)
	require.NoError(t, sign(signer))
}
