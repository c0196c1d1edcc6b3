package secureboot_test

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/esp/secureboot"
)

func TestSignatures(t *testing.T) {
	signatures := func(file []byte) []secureboot.Signature {
		list, err := secureboot.Signatures(bytes.NewReader(file), int64(len(file)), schemes...)
		require.NoError(t, err)
		return list
	}
	both := signatures(espSigned(t, good2))
	require.Len(t, both, 2)
	assert.Equal(t, secureboot.Signature{Block: 0, Algorithm: "RSA-3072", Key: fuses(t, "rsa1")[0]}, both[0])
	assert.Equal(t, secureboot.Signature{Block: 1, Algorithm: "RSA-3072", Key: fuses(t, "rsa2")[0]}, both[1])

	ec := signatures(espSigned(t, "esp32c6_small_v1.0.0_padv2.ec256.bin"))
	assert.Equal(t, []secureboot.Signature{{Algorithm: "ECDSA P-256", Key: fuses(t, "ec256")[0]}}, ec)

	assert.Empty(t, signatures(bad(t, "bad/unsigned_ff_sector.bin")))
	assert.Empty(t, signatures(bad(t, "bad/trunc_no_sector.bin")))
	assert.Empty(t, signatures(bad(t, "bad/trunc_mid_block.bin")))

	third := signatures(bad(t, "bad/three_block0_erased.bin"))
	require.NotEmpty(t, third)
	assert.Equal(t, 1, third[0].Block)

	wrong := signatures(bad(t, "bad/sig_flip_crcfixed.bin"))
	require.Len(t, wrong, 1)
	assert.Equal(t, fuses(t, "rsa1")[0], wrong[0].Key)
	assert.ErrorContains(t, wrong[0].Err, "signature is wrong")

	torn := signatures(bad(t, "bad/sig_flip_nocrcfix.bin"))
	require.Len(t, torn, 1)
	assert.ErrorContains(t, torn[0].Err, "CRC")
	assert.Zero(t, torn[0].Key)

	_, err := secureboot.Signatures(bytes.NewReader(nil), 0)
	require.ErrorIs(t, err, secureboot.ErrImage)
	list, err := secureboot.Signatures(bytes.NewReader(espSigned(t, good)), 1<<20)
	require.NoError(t, err)
	require.Len(t, list, 1)
	assert.ErrorContains(t, list[0].Err, "not among those", "without a scheme nothing is read")
}
