package esp32ds_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"embed"
	"encoding/pem"
	"errors"
	"math/big"
	"testing"

	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/keystore/esp32ds"
	"github.com/quarklink-go/quarklink/keystore/esp32ds/dstest"
	"github.com/quarklink-go/quarklink/store"
)

// Throw-away keys, because making RSA keys is slow.
//
//go:embed testdata/*.pem
var testdata embed.FS

func loadKey(tb testing.TB, name string) *rsa.PrivateKey {
	tb.Helper()
	data, err := testdata.ReadFile("testdata/" + name + ".pem")
	if err != nil {
		tb.Fatal(err)
	}
	block, _ := pem.Decode(data)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		tb.Fatal(err)
	}
	return key.(*rsa.PrivateKey)
}

// keysFrom is a GenerateKey that returns copies of these keys in turn: what it
// gives is overwritten.
func keysFrom(keys ...*rsa.PrivateKey) func(context.Context, int) (*rsa.PrivateKey, error) {
	return func(context.Context, int) (*rsa.PrivateKey, error) {
		if len(keys) == 0 {
			return nil, errors.New("no more keys")
		}
		key := keys[0]
		keys = append(keys[1:], key)
		return copyKey(key), nil
	}
}

func copyKey(key *rsa.PrivateKey) *rsa.PrivateKey {
	if key == nil {
		return nil
	}
	again := &rsa.PrivateKey{PublicKey: key.PublicKey, D: new(big.Int).Set(key.D)}
	for _, p := range key.Primes {
		again.Primes = append(again.Primes, new(big.Int).Set(p))
	}
	return again
}

// small makes initialising quick.
func small(tb testing.TB) esp32ds.InitialiseOptions {
	return esp32ds.InitialiseOptions{
		Bits:        2048,
		GenerateKey: keysFrom(loadKey(tb, "rsa2048-dsk"), loadKey(tb, "rsa2048-esk")),
	}
}

func newStore(tb testing.TB, kind esp32ds.Chip, chip *dstest.Chip, records store.Store, change ...func(*esp32ds.Config)) *esp32ds.Store {
	tb.Helper()
	cfg := esp32ds.Config{Chip: kind, Peripheral: chip, EFuse: chip, Records: records, Random: rand.Reader}
	for _, f := range change {
		f(&cfg)
	}
	s, err := esp32ds.New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// hold gives a chip one RSA key for both roles, as a provisioning host would,
// and returns its signer.
func hold(tb testing.TB, kind esp32ds.Chip, chip *dstest.Chip, key *rsa.PrivateKey, change ...func(*esp32ds.Config)) keystore.Restricted {
	tb.Helper()
	var hmacKey [32]byte
	var iv [16]byte
	rand.Read(hmacKey[:])
	rand.Read(iv[:])
	params, err := esp32ds.Encrypt(kind, key, hmacKey, iv)
	if err != nil {
		tb.Fatal(err)
	}
	const block = 5
	if err := chip.BurnKey(tb.Context(), block, hmacKey); err != nil {
		tb.Fatal(err)
	}
	record, err := esp32ds.EncodeRecord(keystore.Enrolment, block, &key.PublicKey, params)
	if err != nil {
		tb.Fatal(err)
	}
	var records store.Mem
	if err := records.Put(tb.Context(), "ds-esk", record); err != nil {
		tb.Fatal(err)
	}
	signer, err := newStore(tb, kind, chip, &records, change...).Signer(tb.Context(), keystore.Enrolment)
	if err != nil {
		tb.Fatal(err)
	}
	return signer.(keystore.Restricted)
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}
