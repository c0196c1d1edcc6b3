package software

import (
	"crypto"
	"crypto/aes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
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
		return nil, fmt.Errorf("record %q: it holds no PEM block %q: %w", name, pemType, store.ErrDamaged)
	}
	if err := checkSealed(block.Bytes); err != nil {
		return nil, fmt.Errorf("record %q: %w", name, err)
	}
	return block.Bytes, nil
}

var (
	oidPBES2      = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 13}
	oidPBKDF2     = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 12}
	oidHMACSHA256 = asn1.ObjectIdentifier{1, 2, 840, 113549, 2, 9}
	oidAES128CBC  = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 2}
	oidAES256CBC  = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 42}
)

// encryptedPrivateKeyInfo is that of RFC 5958 section 3 with PBES2-params and
// PBKDF2-params (RFC 8018 appendices A.4 and A.2) in their places.
type encryptedPrivateKeyInfo struct {
	Algorithm struct {
		ID     asn1.ObjectIdentifier
		Params struct {
			KDF struct {
				ID     asn1.ObjectIdentifier
				Params asn1.RawValue
			}
			Cipher struct {
				ID asn1.ObjectIdentifier
				IV []byte
			}
		}
	}
	Data []byte
}

type pbkdf2Params struct {
	Salt       []byte
	Iterations int
	PRF        struct {
		ID     asn1.ObjectIdentifier
		Params asn1.RawValue `asn1:"optional"`
	} `asn1:"optional"`
}

// checkSealed makes sure that decrypting takes a bounded time and memory, and
// nothing that the PKCS #8 library would stumble over.
func checkSealed(der []byte) error {
	var info encryptedPrivateKeyInfo
	if rest, err := asn1.Unmarshal(der, &info); err != nil || len(rest) > 0 {
		return fmt.Errorf("not an encrypted PKCS #8 key with PBES2 (%v, %d bytes left over): %w", err, len(rest), store.ErrDamaged)
	}
	kdf, cipher := info.Algorithm.Params.KDF, info.Algorithm.Params.Cipher
	const howto = "make it with: openssl pkcs8 -topk8 -v2 aes-256-cbc -v2prf hmacWithSHA256"
	if !info.Algorithm.ID.Equal(oidPBES2) || !kdf.ID.Equal(oidPBKDF2) || !(cipher.ID.Equal(oidAES256CBC) || cipher.ID.Equal(oidAES128CBC)) {
		return fmt.Errorf("unsupported encryption (%v, %v, %v); %s", info.Algorithm.ID, kdf.ID, cipher.ID, howto)
	}
	var params pbkdf2Params
	if rest, err := asn1.Unmarshal(kdf.Params.FullBytes, &params); err != nil || len(rest) > 0 {
		return fmt.Errorf("unsupported PBKDF2 parameters (%v); %s", err, howto)
	}
	if !params.PRF.ID.Equal(oidHMACSHA256) {
		return fmt.Errorf("unsupported PBKDF2 function %v; %s", params.PRF.ID, howto)
	}
	if params.Iterations < 1 || params.Iterations > MaxIterations {
		return fmt.Errorf("%d PBKDF2 iterations, need 1 to %d; %s", params.Iterations, MaxIterations, howto)
	}
	if len(cipher.IV) != aes.BlockSize || len(info.Data) == 0 || len(info.Data)%aes.BlockSize != 0 {
		return fmt.Errorf("%d bytes of AES-CBC data with an IV of %d: %w", len(info.Data), len(cipher.IV), store.ErrDamaged)
	}
	return nil
}

// unseal decrypts what checkSealed has passed.
func unseal(sealed, secret []byte) (crypto.Signer, error) {
	key, err := pkcs8.ParsePKCS8PrivateKey(sealed, secret)
	if err != nil {
		return nil, ErrSecret // the library's error says no more
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
