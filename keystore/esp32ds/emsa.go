package esp32ds

import (
	"crypto"
	"crypto/rsa"
	_ "crypto/sha256" // the hashes that crypto.Hash.New makes here
	_ "crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// digestInfos are the DER prefixes of a DigestInfo (RFC 8017 section 9.2, note 1).
var digestInfos = []struct {
	hash   crypto.Hash
	prefix string
}{
	{crypto.SHA256, "\x30\x31\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00\x04\x20"},
	{crypto.SHA384, "\x30\x41\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00\x04\x30"},
	{crypto.SHA512, "\x30\x51\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x03\x05\x00\x04\x40"},
}

// encode pads a digest for an RSA key whose length in bits is a multiple of 8:
// PSS if opts are *rsa.PSSOptions, PKCS #1 v1.5 otherwise. The result is as long
// as the modulus and, read as a big-endian number, smaller.
func encode(bits int, random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	pss, isPSS := opts.(*rsa.PSSOptions)
	if opts == nil || isPSS && pss == nil {
		return nil, errors.New("no options, so the digest's hash is unknown")
	}
	hash := opts.HashFunc()
	prefix := ""
	for _, known := range digestInfos {
		if known.hash == hash {
			prefix = known.prefix
		}
	}
	if prefix == "" {
		return nil, fmt.Errorf("unsupported hash %v, need SHA-256, SHA-384 or SHA-512", hash)
	}
	if len(digest) != hash.Size() {
		return nil, fmt.Errorf("digest of %d bytes, %v has %d", len(digest), hash, hash.Size())
	}
	if isPSS {
		return encodePSS(bits, random, digest, hash, pss.SaltLength)
	}
	return encodePKCS1v15(bits, prefix, digest), nil
}

// encodePKCS1v15 is EMSA-PKCS1-v1_5 (RFC 8017 section 9.2) from its step 4 on:
// every key is long enough.
func encodePKCS1v15(bits int, prefix string, digest []byte) []byte {
	em := make([]byte, bits/8)
	t := len(em) - len(prefix) - len(digest)
	em[1] = 1
	for i := 2; i < t-1; i++ {
		em[i] = 0xff
	}
	copy(em[t:], prefix)
	copy(em[t+len(prefix):], digest)
	return em
}

// encodePSS is EMSA-PSS (RFC 8017 section 9.1.1) with MGF1 and one hash for
// everything.
func encodePSS(bits int, random io.Reader, digest []byte, hash crypto.Hash, saltLength int) ([]byte, error) {
	em := make([]byte, bits/8)
	longest := len(em) - len(digest) - 2
	switch saltLength {
	case rsa.PSSSaltLengthAuto:
		saltLength = longest
	case rsa.PSSSaltLengthEqualsHash:
		saltLength = len(digest)
	}
	if saltLength < 0 || saltLength > longest {
		return nil, fmt.Errorf("PSS salt of %d bytes: an RSA key of %d bits and a digest of %d bytes leave room for 0 to %d", saltLength, bits, len(digest), longest)
	}
	db := em[:len(em)-len(digest)-1]
	salt := db[len(db)-saltLength:]
	if _, err := io.ReadFull(random, salt); err != nil {
		return nil, fmt.Errorf("read the PSS salt: %w", err)
	}
	h := hash.New()
	h.Write(make([]byte, 8))
	h.Write(digest)
	h.Write(salt)
	seed := h.Sum(nil)

	db[len(db)-saltLength-1] = 1
	mask(db, seed, hash)
	db[0] &= 0x7f // emBits is one less than the modulus has
	copy(em[len(db):], seed)
	em[len(em)-1] = 0xbc
	return em, nil
}

// mask XORs MGF1 of the seed (RFC 8017 appendix B.2.1) into data.
func mask(data, seed []byte, hash crypto.Hash) {
	h := hash.New()
	for counter := uint32(0); len(data) > 0; counter++ {
		h.Reset()
		h.Write(seed)
		h.Write(binary.BigEndian.AppendUint32(nil, counter))
		block := h.Sum(nil)
		n := min(len(block), len(data))
		for i := range n {
			data[i] ^= block[i]
		}
		data = data[n:]
	}
}
