package keystoretest_test

import (
	"context"
	"fmt"

	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/keystore/keystoretest"
	"github.com/quarklink-go/quarklink/keystore/software"
	"github.com/quarklink-go/quarklink/store"
)

// In a test this ends with t.Fatal(err); on a device it is a self-test.
func ExampleTest() {
	ctx := context.Background()
	records := new(store.Mem) // what outlives a restart
	secret := []byte("a random secret of 32 bytes, say")
	open := func(context.Context) (keystore.KeyStore, error) {
		return software.New(records, software.Options{
			Secret:     func(context.Context) ([]byte, error) { return secret, nil },
			Iterations: 1,
		})
	}
	fmt.Println("fresh:", keystoretest.Test(ctx, open))
	fmt.Println("restarted:", keystoretest.Test(ctx, open))

	empty := keystore.Static(nil)
	fmt.Println(keystoretest.Test(ctx, func(context.Context) (keystore.KeyStore, error) { return empty, nil }))
	// Output:
	// fresh: <nil>
	// restarted: <nil>
	// keystoretest: there is no key to check; contract: a store that cannot make keys comes with one
}
