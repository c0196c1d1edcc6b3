package nvs_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/esp/flash"
	"github.com/quarklink-go/quarklink/esp/nvs"
	"github.com/quarklink-go/quarklink/store"
	"github.com/quarklink-go/quarklink/store/storetest"
)

// A namespace keeps what store.Store and store.Creator promise, also when the
// partition is opened again.
func TestStore(t *testing.T) {
	memory := flash.NewMemory(64 * flash.SectorSize)
	require.NoError(t, storetest.Test(t.Context(), func(context.Context) (store.Store, error) {
		p, err := nvs.Open(memory, nvs.Options{})
		if err != nil {
			return nil, err
		}
		return p.Namespace("quarklink")
	}))
}
