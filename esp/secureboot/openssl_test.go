package secureboot_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"io"
	"math/big"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

// opensslArgs writes the key and the signature from block 0 of the sector to
// files, and returns the arguments with which openssl verifies a file named
// after them.
func opensslArgs(t *testing.T, key crypto.Signer, sector []byte) []string {
	t.Helper()
	dir := t.TempDir()
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	public, signature := filepath.Join(dir, "key.pem"), filepath.Join(dir, "signature")
	write(t, public, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	args := []string{"dgst", "-sha256", "-verify", public, "-signature", signature}
	bigEndian := func(from, to int) []byte {
		b := slices.Clone(sector[from:to])
		slices.Reverse(b)
		return b
	}
	number := func(from, to int) *big.Int { return new(big.Int).SetBytes(bigEndian(from, to)) }
	pair := func(at, size int) []byte {
		der, err := asn1.Marshal(struct{ R, S *big.Int }{number(at, at+size), number(at+size, at+2*size)})
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	switch public := key.Public().(type) {
	case *rsa.PublicKey:
		write(t, signature, bigEndian(812, 1196))
		args = append(args, "-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:32", "-sigopt", "rsa_mgf1_md:sha256")
	case *ecdsa.PublicKey:
		if public.Params().BitSize == 384 {
			args[1] = "-sha384"
			write(t, signature, pair(149, 48))
		} else {
			write(t, signature, pair(101, 32))
		}
	}
	return args
}

// opensslSigner signs by running openssl.
type opensslSigner struct {
	public crypto.PublicKey
	key    string // file
}

func (s opensslSigner) Public() crypto.PublicKey { return s.public }
func (s opensslSigner) Sign(_ io.Reader, digest []byte, _ crypto.SignerOpts) ([]byte, error) {
	cmd := exec.Command("openssl", "pkeyutl", "-sign", "-inkey", s.key)
	cmd.Stdin = bytes.NewReader(digest)
	return cmd.Output()
}
