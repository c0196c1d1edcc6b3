package software

import (
	"bytes"
	"context"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/store"
)

// A key that an older version made with a secret that is refused today opens: it
// is somebody's identity.
func TestKeysWithARefusedSecretOpen(t *testing.T) {
	for name, secret := range map[string][]byte{
		"short":     []byte("pass phrase"),
		"one byte":  {1},
		"all zeros": make([]byte, 32),
		"all ones":  bytes.Repeat([]byte{0xff}, 32),
	} {
		t.Run(name, func(t *testing.T) {
			key, err := generateKey(P256)
			require.NoError(t, err)
			record, err := makeRecord("key-esk", key, secret, 1)
			require.NoError(t, err)
			records := new(store.Mem)
			require.NoError(t, records.Create(t.Context(), "key-esk", record))
			s, err := New(records, Options{Secret: func(context.Context) ([]byte, error) { return secret, nil }})
			require.NoError(t, err)

			signer, err := s.Signer(t.Context(), keystore.Enrolment)
			require.NoError(t, err)
			assert.Equal(t, key.Public(), signer.Public())
			_, err = s.Generate(t.Context(), keystore.Device)
			assert.ErrorContains(t, err, "the secret")
		})
	}
}

// The limits, exactly.
func TestCheckSecret(t *testing.T) {
	mixed := append(make([]byte, 31), 0xff)
	for _, test := range []struct {
		name       string
		secret     []byte
		iterations int
		good       bool
	}{
		{"15 bytes", bytes.Repeat([]byte("x"), 15), MaxIterations, false},
		{"16 bytes", bytes.Repeat([]byte("x"), 16), shortIterations, true},
		{"16 bytes, hardly stretched", bytes.Repeat([]byte("x"), 16), shortIterations - 1, false},
		{"31 bytes, not stretched", bytes.Repeat([]byte("x"), 31), 1, false},
		{"32 bytes", bytes.Repeat([]byte("x"), 32), 1, true},
		{"16 zeros", make([]byte, 16), DefaultIterations, false},
		{"64 ones", bytes.Repeat([]byte{0xff}, 64), DefaultIterations, false},
		{"zeros and a last one", mixed, 1, true},
	} {
		err := checkSecret(test.secret, test.iterations)
		assert.Equal(t, test.good, err == nil, "%s: %v", test.name, err)
	}
}
