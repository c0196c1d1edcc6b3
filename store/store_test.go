package store_test

import (
	"context"
	"io/fs"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/store"
	"github.com/quarklink-go/quarklink/store/storetest"
)

// creators are the stores that the contract is tested with, each on fresh state.
func creators(t *testing.T) map[string]store.Creator {
	return map[string]store.Creator{
		"Mem": new(store.Mem),
		"Dir": store.Dir(filepath.Join(t.TempDir(), "a", "b")),
	}
}

func TestCheckName(t *testing.T) {
	for _, name := range []string{"a", "0", "-", "key-esk", "123456789012345"} {
		assert.NoError(t, store.CheckName(name), name)
	}
	for _, name := range []string{
		"", "1234567890123456", "A", "a_b", "a.b", "..", "a/b", `a\b`, "a b", "a\n", "a\x00", "é", "a:b",
	} {
		assert.ErrorIs(t, store.CheckName(name), fs.ErrInvalid, name)
	}
}

func TestContract(t *testing.T) {
	for kind, s := range creators(t) {
		t.Run(kind, func(t *testing.T) {
			open := func(context.Context) (store.Store, error) { return s, nil }
			require.NoError(t, storetest.Test(t.Context(), open))
		})
	}
}
