package software

import (
	"crypto"
	"crypto/aes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/quarklink-go/quarklink/store"
	"github.com/youmark/pkcs8"
)

const (
	recordVersion = 1
	pemType       = "ENCRYPTED PRIVATE KEY"
	saltSize      = 16
)

// makeRecord returns the record of a key, encrypted with the secret.
func makeRecord(name string, key crypto.Signer, secret []byte, iterations int) ([]byte, error) {
	sealed, err := pkcs8.MarshalPrivateKey(key, secret, &pkcs8.Opts{
		Cipher: pkcs8.AES256CBC,
		KDFOpts: pkcs8.PBKDF2Opts{
			SaltSize:       saltSize,
			IterationCount: iterations,
			HMACHash:       crypto.SHA256,
		},
	})
	if err != nil {
		return nil, fmt.Errorf("encrypt the key: %w", err)
	}
	block := pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: sealed})
	return store.EncodeRecord(name, recordVersion, block), nil
}

// parseRecord returns the EncryptedPrivateKeyInfo in a record, in DER, having
// checked that opening it is bounded.
func parseRecord(name string, record []byte) (sealed []byte, err error) {
	version, payload, err := store.DecodeRecord(name, record)
	if err != nil {
		return nil, err
	}
	if version != recordVersion {
		return nil, fmt.Errorf("record %q: version %d is not known here, need %d: it was written by a newer release", name, version, recordVersion)
	}
	block, _ := pem.Decode(payload)
	if block == nil || block.Type != pemType {
		return nil, fmt.Errorf("record %q: it holds no PEM block %q; %s", name, pemType, howto)
	}
	if err := checkSealed(block.Bytes); err != nil {
		return nil, fmt.Errorf("record %q: %w; %s", name, err, howto)
	}
	return block.Bytes, nil
}

const howto = "make it with: openssl pkcs8 -topk8 -v2 aes-256-cbc -v2prf hmacWithSHA256"

var (
	oidPBES2      = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 13}
	oidPBKDF2     = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 12}
	oidHMACSHA256 = asn1.ObjectIdentifier{1, 2, 840, 113549, 2, 9}
	oidAES128CBC  = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 2}
	oidAES256CBC  = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 42}
)

// encryptedPrivateKeyInfo is that of RFC 5958 section 3.
type encryptedPrivateKeyInfo struct {
	Encryption pkix.AlgorithmIdentifier
	Data       []byte
}

// pbes2Params and pbkdf2Params are those of RFC 8018 appendices A.4 and A.2.
type pbes2Params struct {
	KDF    pkix.AlgorithmIdentifier
	Cipher pkix.AlgorithmIdentifier
}

type pbkdf2Params struct {
	Salt       []byte
	Iterations int64
	PRF        pkix.AlgorithmIdentifier `asn1:"optional"`
}

// checkSealed makes sure that decrypting takes a bounded time and memory and does
// not make the PKCS #8 library stumble.
func checkSealed(der []byte) error {
	var info encryptedPrivateKeyInfo
	if !parse(der, &info) {
		return errors.New("no EncryptedPrivateKeyInfo")
	}
	if !info.Encryption.Algorithm.Equal(oidPBES2) {
		return fmt.Errorf("unsupported encryption %v", info.Encryption.Algorithm)
	}
	var params pbes2Params
	if !parse(info.Encryption.Parameters.FullBytes, &params) {
		return errors.New("bad PBES2 parameters")
	}
	if err := checkKDF(params.KDF); err != nil {
		return err
	}
	cipher := params.Cipher
	if !cipher.Algorithm.Equal(oidAES256CBC) && !cipher.Algorithm.Equal(oidAES128CBC) {
		return fmt.Errorf("unsupported cipher %v", cipher.Algorithm)
	}
	var iv []byte
	if !parse(cipher.Parameters.FullBytes, &iv) || len(iv) != aes.BlockSize {
		return errors.New("bad AES-CBC parameters")
	}
	if len(info.Data) == 0 || len(info.Data)%aes.BlockSize != 0 {
		return fmt.Errorf("AES-CBC data of %d bytes", len(info.Data))
	}
	return nil
}

func checkKDF(kdf pkix.AlgorithmIdentifier) error {
	if !kdf.Algorithm.Equal(oidPBKDF2) {
		return fmt.Errorf("unsupported key derivation %v", kdf.Algorithm)
	}
	var params pbkdf2Params
	if !parse(kdf.Parameters.FullBytes, &params) {
		return errors.New("bad or unsupported PBKDF2 parameters")
	}
	if params.Iterations < 1 || params.Iterations > MaxIterations {
		return fmt.Errorf("%d PBKDF2 iterations, need 1 to %d", params.Iterations, MaxIterations)
	}
	if !params.PRF.Algorithm.Equal(oidHMACSHA256) {
		return fmt.Errorf("unsupported PBKDF2 function %v", params.PRF.Algorithm)
	}
	return nil
}

// parse reports whether der is that value and nothing else.
func parse(der []byte, value any) bool {
	rest, err := asn1.Unmarshal(der, value)
	return err == nil && len(rest) == 0
}

// unseal decrypts what checkSealed has passed.
func unseal(sealed, secret []byte) (crypto.Signer, error) {
	key, err := pkcs8.ParsePKCS8PrivateKey(sealed, secret)
	if err != nil {
		// The library's error says no more, and the record's checksum was right.
		return nil, fmt.Errorf("%w (or it is of a kind that crypto/x509 cannot read)", ErrSecret)
	}
	switch key := key.(type) {
	case *ecdsa.PrivateKey:
		if key.Curve != elliptic.P256() {
			return nil, fmt.Errorf("ECDSA key on %s, need P-256", key.Curve.Params().Name)
		}
		return key, nil
	case *rsa.PrivateKey:
		const minBits, maxBits = 2048, 4096
		if bits := key.N.BitLen(); bits < minBits || bits > maxBits {
			return nil, fmt.Errorf("RSA key of %d bits, need %d to %d", bits, minBits, maxBits)
		}
		return key, nil
	}
	return nil, errors.New("neither an ECDSA nor an RSA key")
}
