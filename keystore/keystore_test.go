package keystore_test

import (
	"io/fs"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/quarklink-go/quarklink/keystore"
)

func TestStaticWithoutSigner(t *testing.T) {
	signer, err := keystore.Static(nil).Signer(t.Context(), keystore.Device)
	assert.Nil(t, signer)
	assert.ErrorIs(t, err, fs.ErrNotExist)
}
