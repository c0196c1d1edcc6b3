package keystore_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"

	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/keystore/software"
	"github.com/quarklink-go/quarklink/store"
)

// A DeviceID is the fingerprint of the enrolment key, in hex.
func ExampleFingerprint() {
	block, _ := pem.Decode([]byte(`-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEaxfR8uEsQkf4vOblY6RA8ncDfYEt
6zOg9KE5RdiYwpZP40Li/hp/m47n60p8D54WK84zV2sxXs7LtkBoN79R9Q==
-----END PUBLIC KEY-----
`))
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		fmt.Println(err)
		return
	}
	fingerprint, err := keystore.Fingerprint(key)
	fmt.Printf("%x %v\n", fingerprint, err)
	// Output:
	// 5cd252fb0ce8932436faf8ccd1040981b89ee4ad6b9fe9e2a2b7e71aacb27cd3 <nil>
}

// A program that holds its key already gives it to quarklink with Static.
func ExampleStatic() {
	var existing crypto.Signer = new(ecdsa.PrivateKey) // a PKCS #11 token, a cloud HSM, ...

	keys := keystore.Static(existing)
	signer, err := keys.Signer(context.Background(), keystore.Enrolment)
	fmt.Println(signer == existing, err)

	_, generates := keys.(keystore.Generator)
	fmt.Println("makes keys:", generates)
	// Output:
	// true <nil>
	// makes keys: false
}

// Opening a key, or making it if there is none yet.
func ExampleGenerator() {
	ctx := context.Background()
	secret := []byte("a random secret of 32 bytes, say")
	keys, err := software.New(new(store.Mem), software.Options{
		Secret:     func(context.Context) ([]byte, error) { return secret, nil },
		Iterations: 1,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	var ks keystore.KeyStore = keys

	signer, err := ks.Signer(ctx, keystore.Enrolment)
	if generator, ok := ks.(keystore.Generator); ok && errors.Is(err, fs.ErrNotExist) {
		signer, err = generator.Generate(ctx, keystore.Enrolment)
	}
	fmt.Printf("%T %v\n", signer.Public(), err)

	_, err = keys.Generate(ctx, keystore.Enrolment)
	fmt.Println("never overwritten:", errors.Is(err, fs.ErrExist))
	// Output:
	// *ecdsa.PublicKey <nil>
	// never overwritten: true
}
