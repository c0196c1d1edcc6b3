package software

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/store"
)

var testSecret = bytes.Repeat([]byte{7}, longSecret)

// sealedKey is a good key that a test spoils before it is encoded.
type sealedKey struct {
	info  encryptedPrivateKeyInfo
	pbes2 pbes2Params
	kdf   pbkdf2Params
	iv    []byte
}

func takeApart(t testing.TB) *sealedKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	record, err := makeRecord("key-esk", key, testSecret, 1)
	require.NoError(t, err)
	der, err := parseRecord("key-esk", record)
	require.NoError(t, err)
	var k sealedKey
	require.True(t, parse(der, &k.info), "our own record does not parse")
	require.True(t, parse(k.info.Encryption.Parameters.FullBytes, &k.pbes2),
		"our own record does not parse")
	require.True(t, parse(k.pbes2.KDF.Parameters.FullBytes, &k.kdf), "our own record does not parse")
	require.True(t, parse(k.pbes2.Cipher.Parameters.FullBytes, &k.iv), "our own record does not parse")
	return &k
}

func (k *sealedKey) encode(t testing.TB) []byte {
	marshal := func(value any) []byte {
		der, err := asn1.Marshal(value)
		require.NoError(t, err)
		return der
	}
	k.pbes2.KDF.Parameters.FullBytes = marshal(k.kdf)
	k.pbes2.Cipher.Parameters.FullBytes = marshal(k.iv)
	k.info.Encryption.Parameters.FullBytes = marshal(k.pbes2)
	return marshal(k.info)
}

// A hostile record is refused before the secret is asked for, let alone spent
// hours on. Each would make the PKCS #8 library hang, panic or take all memory.
func TestHostileRecords(t *testing.T) {
	for what, c := range map[string]struct {
		spoil func(*sealedKey)
		want  string
	}{
		"not spoilt":            {func(*sealedKey) {}, ""},
		"2^31 iterations":       {func(k *sealedKey) { k.kdf.Iterations = 1 << 31 }, "2147483648 PBKDF2 iterations"},
		"2^62 iterations":       {func(k *sealedKey) { k.kdf.Iterations = 1 << 62 }, "PBKDF2 iterations"},
		"one iteration too far": {func(k *sealedKey) { k.kdf.Iterations = MaxIterations + 1 }, "10000001 PBKDF2 iterations"},
		"no iterations":         {func(k *sealedKey) { k.kdf.Iterations = 0 }, "0 PBKDF2 iterations"},
		"negative iterations":   {func(k *sealedKey) { k.kdf.Iterations = -1 }, "-1 PBKDF2 iterations"},
		"another PRF": {func(k *sealedKey) {
			k.kdf.PRF.Algorithm = asn1.ObjectIdentifier{1, 2, 840, 113549,
				2, 11}
		}, "unsupported PBKDF2 function"},
		"no PRF": {func(k *sealedKey) { k.kdf.PRF = pkix.AlgorithmIdentifier{} },
			"unsupported PBKDF2 function"},
		"scrypt": {func(k *sealedKey) {
			k.pbes2.KDF.Algorithm = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11591, 4, 11}
		}, "unsupported key derivation"},
		"IV too short":       {func(k *sealedKey) { k.iv = k.iv[1:] }, "bad AES-CBC parameters"},
		"IV too long":        {func(k *sealedKey) { k.iv = append(k.iv, 0) }, "bad AES-CBC parameters"},
		"no IV":              {func(k *sealedKey) { k.iv = nil }, "bad AES-CBC parameters"},
		"half a block":       {func(k *sealedKey) { k.info.Data = k.info.Data[:24] }, "AES-CBC data of 24 bytes"},
		"no data":            {func(k *sealedKey) { k.info.Data = nil }, "AES-CBC data of 0 bytes"},
		"another cipher":     {func(k *sealedKey) { k.pbes2.Cipher.Algorithm = oidPBKDF2 }, "unsupported cipher"},
		"another encryption": {func(k *sealedKey) { k.info.Encryption.Algorithm = oidPBKDF2 }, "unsupported encryption"},
	} {
		t.Run(what, func(t *testing.T) {
			k := takeApart(t)
			c.spoil(k)
			block := pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: k.encode(t)})
			var records store.Mem
			require.NoError(t, records.Put(t.Context(), "key-esk", store.EncodeRecord("key-esk", recordVersion, block)))
			asked := false
			s, err := New(&records, Options{Secret: func(context.Context) ([]byte, error) {
				asked = true
				return testSecret, nil
			}})
			require.NoError(t, err)
			signer, err := s.Signer(t.Context(), keystore.Enrolment)
			if c.want == "" {
				require.NoError(t, err)
				return
			}
			assert.Nil(t, signer)
			require.Error(t, err)
			assert.Contains(t, err.Error(), c.want)
			assert.False(t, asked, "the secret was asked for")
		})
	}
	k := takeApart(t)
	assert.Error(t, checkSealed(append(k.encode(t), 0)), "a byte left over is not noticed")
}

// Whatever checkSealed passes can be decrypted without a panic.
func FuzzSealed(f *testing.F) {
	k := takeApart(f)
	f.Add(k.encode(f))
	k.kdf.Salt = nil
	f.Add(k.encode(f))
	k.info.Data = make([]byte, 32)
	f.Add(k.encode(f))
	f.Fuzz(func(t *testing.T, der []byte) {
		if checkSealed(der) != nil {
			return
		}
		var info encryptedPrivateKeyInfo
		var pbes2 pbes2Params
		var kdf pbkdf2Params
		require.True(t, parse(der, &info), "passed, but does not parse")
		require.True(t, parse(info.Encryption.Parameters.FullBytes, &pbes2), "passed, but does not parse")
		require.True(t, parse(pbes2.KDF.Parameters.FullBytes, &kdf), "passed, but does not parse")
		if kdf.Iterations > 1000 {
			return // bounded, but not quick
		}
		if signer, err := unseal(der, testSecret); err == nil {
			require.NotNil(t, signer, "no key and no error")
		}
	})
}
