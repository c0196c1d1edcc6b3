package keystore_test

import (
	"errors"
	"io/fs"
	"testing"

	"github.com/quarklink-go/quarklink/keystore"
)

func TestStaticWithoutSigner(t *testing.T) {
	if signer, err := keystore.Static(nil).Signer(t.Context(), keystore.Device); signer != nil || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, %v; want fs.ErrNotExist", signer, err)
	}
}
