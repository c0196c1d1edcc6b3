package storetest_test

import (
	"context"
	"fmt"

	"github.com/quarklink-go/quarklink/store"
	"github.com/quarklink-go/quarklink/store/storetest"
)

// A store of your own passes the check that the library's stores pass.
func ExampleTest() {
	var mine store.Mem // in a program, what holds your medium
	err := storetest.Test(context.Background(), func(context.Context) (store.Store, error) { return &mine, nil })
	fmt.Println(err)
	// Output: <nil>
}
