//go:build linux

package tpm2_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/internal/counterpart"
	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/keystore/tpm2"
	"github.com/quarklink-go/quarklink/keystore/tpm2/tpm2test"
	"github.com/quarklink-go/quarklink/store"
)

// start runs a swtpm for the test.
func start(tb testing.TB) *tpm2test.TPM {
	tb.Helper()
	s, err := tpm2test.Start(tb.Context(), tpm2test.Options{})
	if errors.Is(err, exec.ErrNotFound) {
		counterpart.Missing(tb, err)
	}
	require.NoError(tb, err)
	tb.Cleanup(func() { s.Close() })
	return s
}

// patience is a time-out for calls that are meant to succeed on a busy machine.
const patience = 2 * time.Minute

// open opens the TPM of a swtpm.
func open(tb testing.TB, s *tpm2test.TPM, o tpm2.Options) *tpm2.TPM {
	tb.Helper()
	o.Path = s.Path()
	if o.Timeout == 0 {
		o.Timeout = patience
	}
	tpm, err := tpm2.Open(tb.Context(), o)
	require.NoError(tb, err)
	tb.Cleanup(func() { tpm.Close() })
	return tpm
}

func keyStore(tb testing.TB, tpm *tpm2.TPM, st store.Creator, o tpm2.KeyOptions) *tpm2.Store {
	tb.Helper()
	keys, err := tpm.KeyStore(st, o)
	require.NoError(tb, err)
	return keys
}

func generate(tb testing.TB, keys keystore.Generator) crypto.Signer {
	tb.Helper()
	signer, err := keys.Generate(tb.Context(), keystore.Enrolment)
	require.NoError(tb, err)
	return signer
}

// sign makes a signature and verifies it.
func sign(signer crypto.Signer) error {
	digest := make([]byte, sha256.Size)
	rand.Read(digest)
	signature, err := signer.Sign(nil, digest, crypto.SHA256)
	if err != nil {
		return err
	}
	if !ecdsa.VerifyASN1(signer.Public().(*ecdsa.PublicKey), digest, signature) {
		return errors.New("the signature is wrong")
	}
	return nil
}

// held is what a TPM holds that may leak.
type held struct{ Transient, Persistent, Sessions []uint32 }

func holds(tb testing.TB, s *tpm2test.TPM) held {
	tb.Helper()
	var h held
	for kind, list := range map[uint32]*[]uint32{
		tpm2test.Transient: &h.Transient, tpm2test.Persistent: &h.Persistent, tpm2test.Sessions: &h.Sessions,
	} {
		var err error
		*list, err = s.Held(kind)
		require.NoError(tb, err)
	}
	return h
}

// fill takes slots, and makes sure in the end that nobody took them back.
func fill(tb testing.TB, s *tpm2test.TPM, n int) *tpm2test.Objects {
	tb.Helper()
	others, err := s.Fill(n)
	require.NoError(tb, err)
	tb.Cleanup(func() { assert.NoError(tb, others.Release(), "somebody flushed a foreign object") })
	return others
}

// code returns the code of an answer.
func code(answer []byte) uint32 { return binary.BigEndian.Uint32(answer[6:]) }
