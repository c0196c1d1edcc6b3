package software_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"

	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/keystore/software"
	"github.com/quarklink-go/quarklink/store"
)

func Example() {
	ctx := context.Background()
	secret := make([]byte, 32) // on a device: from a fuse, a sealed blob, ...
	rand.Read(secret)

	keys, err := software.New(new(store.Mem), software.Options{ // on a device: store.Dir("/var/lib/quarklink")
		Secret:     func(context.Context) ([]byte, error) { return secret, nil },
		Iterations: 1, // as the secret is random and long
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	_, err = keys.Signer(ctx, keystore.Enrolment)
	fmt.Println("absent:", errors.Is(err, fs.ErrNotExist))

	signer, err := keys.Generate(ctx, keystore.Enrolment)
	fmt.Println(signer, err)
	// Output:
	// absent: true
	// software.Signer(private key not shown) <nil>
}

// A key that was made elsewhere is imported by creating its record.
func Example_import() {
	const key = `-----BEGIN ENCRYPTED PRIVATE KEY-----
MIHtMFgGCSqGSIb3DQEFDTBLMCoGCSqGSIb3DQEFDDAdBAiKhwB0Lz+PSAIDAYag
MAwGCCqGSIb3DQIJBQAwHQYJYIZIAWUDBAEqBBCw6KqtPNT1RxBeKpG7+eD0BIGQ
O/7BNbjJAWNf0aQme9jzloLf5OghLjvPtHYagK+obX+5IlDNFZ+yDozvdRiCf3zu
pqHihAa/5l7upelCpg6mHLRbZPgdXlT6GCzFBsWvMIPz1LMX2uN8o0EfLyxKURxt
o9wgOpriQslC2e5OX78Wz+s7rfS6kIaTjeEK3FV8VxPGDqSgr9ds/W0HaYwTnuQ6
-----END ENCRYPTED PRIVATE KEY-----
` // openssl pkcs8 -topk8 -v2 aes-256-cbc -v2prf hmacWithSHA256 -in key.pem
	ctx := context.Background()
	records := new(store.Mem)
	if err := records.Create(ctx, "key-esk", store.EncodeRecord("key-esk", 1, []byte(key))); err != nil {
		fmt.Println(err)
		return
	}
	keys, err := software.New(records, software.Options{
		Secret: func(context.Context) ([]byte, error) { return []byte("pass phrase"), nil },
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	signer, err := keys.Signer(ctx, keystore.Enrolment)
	if err != nil {
		fmt.Println(err)
		return
	}
	id, err := keystore.Fingerprint(signer.Public())
	fmt.Printf("%x %v\n", id, err)
	// Output:
	// 43a67ce3c42f628c37b1be9070ed296caea7a47ca49e8408d5794dd4617eb03e <nil>
}
