package software_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io/fs"
	"testing"

	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/keystore/software"
	"github.com/quarklink-go/quarklink/store"
)

// quick are options for tests: a secret that cannot be guessed needs no stretching.
func quick(algorithm software.Algorithm) software.Options {
	secret := bytes.Repeat([]byte("0123456789abcdef"), 2)
	return software.Options{
		Secret:     func(context.Context) ([]byte, error) { return secret, nil },
		Algorithm:  algorithm,
		Iterations: 1,
	}
}

func open(t *testing.T, st store.Creator, opts software.Options) *software.Store {
	t.Helper()
	s, err := software.New(st, opts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestGenerateAndReopen(t *testing.T) {
	ctx := t.Context()
	var records store.Mem
	first := open(t, &records, quick(software.P256))
	if _, err := first.Signer(ctx, keystore.Enrolment); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("absent key: %v", err)
	}
	made, err := first.Generate(ctx, keystore.Enrolment)
	if err != nil {
		t.Fatal(err)
	}
	again, err := open(t, &records, quick(software.RSA3072)).Signer(ctx, keystore.Enrolment)
	if err != nil {
		t.Fatal(err)
	}
	pub := made.Public().(*ecdsa.PublicKey)
	if !pub.Equal(again.Public()) {
		t.Fatal("another key after reopening")
	}
	digest := sha256.Sum256([]byte("message"))
	signature, err := again.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil || !ecdsa.VerifyASN1(pub, digest[:], signature) {
		t.Fatalf("signature does not verify: %v", err)
	}
}
