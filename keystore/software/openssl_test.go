package software_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/youmark/pkcs8"

	"github.com/quarklink-go/quarklink/internal/counterpart"
	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/keystore/software"
	"github.com/quarklink-go/quarklink/store"
)

// openssl runs the program, which must be there if real parts are required.
func openssl(t *testing.T, in []byte, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), counterpart.Program(t, "openssl"), args...)
	cmd.Stdin = bytes.NewReader(in)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	require.NoError(t, err, "%v, %v", strings.Join(args, " "), errs.String())
	return out
}

// openssl opens what the store keeps and finds the key that the store signs with.
func TestOpenSSLOpensOurs(t *testing.T) {
	for _, algorithm := range []software.Algorithm{software.P256, software.RSA3072} {
		dir := t.TempDir()
		signer, _ := stored(t, store.Dir(dir), algorithm)
		file := filepath.Join(dir, "key-esk")

		public := openssl(t, nil, "pkey", "-in", file, "-passin", "pass:"+strong, "-pubout", "-outform", "DER")
		want, err := x509.MarshalPKIXPublicKey(signer.Public())
		require.NoError(t, err)
		assert.Equal(t, want, public, algorithm)
		// The two sign alike.
		message := []byte("message")
		digest := sha256.Sum256(message)
		signature := openssl(t, message, "dgst", "-sha256", "-sign", file, "-passin", "pass:"+strong)
		assert.True(t, verify(signer.Public(), digest[:], signature), algorithm)
		ours, err := signer.Sign(rand.Reader, digest[:], crypto.SHA256)
		require.NoError(t, err)
		publicFile, signatureFile := filepath.Join(dir, "pub"), filepath.Join(dir, "sig")
		block := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})
		require.NoError(t, errors.Join(os.WriteFile(publicFile, block, 0o600), os.WriteFile(signatureFile, ours, 0o600)))
		openssl(t, message, "dgst", "-sha256", "-verify", publicFile, "-signature", signatureFile)
		// It is encrypted as documented.
		described := string(openssl(t, nil, "asn1parse", "-i", "-in", file))
		for _, part := range []string{"PBES2", "PBKDF2", "hmacWithSHA256", "aes-256-cbc"} {
			assert.Contains(t, described, part, algorithm)
		}
	}
}

func verify(pub crypto.PublicKey, digest, signature []byte) bool {
	switch pub := pub.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(pub, digest, signature)
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(pub, crypto.SHA256, digest, signature) == nil
	}
	return false
}

// The store opens what openssl made, if it is of a kind that it would make itself,
// and says of the rest how to make it.
func TestImport(t *testing.T) {
	const howto = "openssl pkcs8 -topk8"
	p256 := []string{"-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"}
	rsa3072 := []string{"-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072"}
	for what, c := range map[string]struct {
		key     []string
		encrypt []string // nil: leave it in clear
		secret  string
		refused string // part of the error
	}{
		"P-256":            {p256, []string{"-v2", "aes-256-cbc"}, strong, ""},
		"P-256, stretched": {p256, []string{"-v2", "aes-256-cbc", "-iter", "600000"}, "pass phrase", ""},
		"RSA-3072":         {rsa3072, []string{"-v2", "aes-256-cbc", "-v2prf", "hmacWithSHA256"}, strong, ""},
		"AES-128":          {p256, []string{"-v2", "aes-128-cbc"}, strong, ""},
		"in clear":         {p256, nil, strong, "ENCRYPTED PRIVATE KEY"},
		"scrypt":           {p256, []string{"-scrypt"}, strong, howto},
		"3DES":             {p256, []string{"-v2", "des3"}, strong, howto},
		"HMAC-SHA-1":       {p256, []string{"-v2", "aes-256-cbc", "-v2prf", "hmacWithSHA1"}, strong, howto},
		"PKCS #5 v1.5":     {p256, []string{"-v1", "PBE-SHA1-3DES"}, strong, howto},
		"many rounds":      {p256, []string{"-v2", "aes-256-cbc", "-iter", "10000001"}, strong, "10000001 PBKDF2 iterations"},
		"P-384": {[]string{"-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"},
			[]string{"-v2", "aes-256-cbc"}, strong, "P-384, need P-256"},
		"RSA-1024": {[]string{"-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"},
			[]string{"-v2", "aes-256-cbc"}, strong, "RSA key of 1024 bits"},
		"Ed25519": {[]string{"-algorithm", "ED25519"}, []string{"-v2", "aes-256-cbc"}, strong,
			"neither an ECDSA nor an RSA key"},
	} {
		t.Run(what, func(t *testing.T) {
			ctx := t.Context()
			key := openssl(t, nil, append([]string{"genpkey"}, c.key...)...)
			file := key
			if c.encrypt != nil {
				file = openssl(t, key, append([]string{"pkcs8", "-topk8", "-passout", "pass:" + c.secret}, c.encrypt...)...)
			}
			var records store.Mem
			require.NoError(t, records.Create(ctx, "key-dsk", store.EncodeRecord("key-dsk", 1, file)))
			signer, err := open(t, &records, options(software.P256, c.secret)).Signer(ctx, keystore.Device)
			if c.refused != "" {
				assert.Nil(t, signer)
				require.Error(t, err)
				assert.Contains(t, err.Error(), c.refused)
				assert.NotErrorIs(t, err, fs.ErrNotExist)
				return
			}
			require.NoError(t, err)
			want := openssl(t, key, "pkey", "-pubout", "-outform", "DER")
			got, _ := x509.MarshalPKIXPublicKey(signer.Public())
			assert.Equal(t, want, got, "the imported key is another one")
		})
	}
}

// privateNumbers returns the private part of a stored key as it could be printed.
func privateNumbers(t *testing.T, records store.Store, role keystore.Role) []string {
	t.Helper()
	name := "key-" + string(role)
	record, err := records.Get(t.Context(), name)
	require.NoError(t, err)
	_, payload, err := store.DecodeRecord(name, record)
	require.NoError(t, err)
	block, _ := pem.Decode(payload)
	key, err := pkcs8.ParsePKCS8PrivateKey(block.Bytes, []byte(strong))
	require.NoError(t, err)
	var numbers []*big.Int
	switch key := key.(type) {
	case *ecdsa.PrivateKey:
		numbers = []*big.Int{key.D}
	case *rsa.PrivateKey:
		numbers = append(key.Primes, key.D)
	}
	var printed []string
	for _, n := range numbers {
		printed = append(printed, n.String(), n.Text(16), strings.ToUpper(n.Text(16)))
	}
	return printed
}
