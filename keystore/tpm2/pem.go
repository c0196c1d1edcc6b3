package tpm2

import (
	"bytes"
	"context"
	"crypto"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"

	gotpm "github.com/google/go-tpm/tpm2"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"github.com/quarklink-go/quarklink/keystore"
)

// The TSS2 PRIVATE KEY file (draft-bottomley-tpm2-keys, "ASN.1 Specification of TPM
// 2.0 Key Files"):
//
//	TPMKey ::= SEQUENCE {
//	    type       OBJECT IDENTIFIER,
//	    emptyAuth  [0] EXPLICIT BOOLEAN OPTIONAL,
//	    policy     [1] …, secret [2] …, authPolicy [3] …, description [4] …
//	    parent     INTEGER,
//	    pubkey     OCTET STRING, -- TPM2B_PUBLIC
//	    privkey    OCTET STRING  -- TPM2B_PRIVATE
//	}
const pemType = "TSS2 PRIVATE KEY"

// loadableKey is id-loadablekey, 2.23.133.10.1.3.
var loadableKey = []byte{0x06, 0x06, 0x67, 0x81, 0x05, 0x0a, 0x01, 0x03}

const (
	tagEmptyAuth = 0
	tagPolicy    = 1 // and whatever comes after it
	lastTag      = 5
	ownerParent  = int64(gotpm.TPMRHOwner) // 0x40000001
	maxPEM       = 16 << 10                // bytes; a key has under 500
)

// Export returns a role's key, still wrapped, as a TSS2 PRIVATE KEY file in PEM, which
// openssl's tpm2 provider and others open on the same TPM:
//
//	openssl pkey -provider tpm2 -provider default -in key.pem -pubout
//
// It can be used by whoever has the file and may use the TPM, and is of no use
// elsewhere. A key under another parent than [EmptyUnique] is [ErrTemplate]: the format
// has no way to name it. An absent key is fs.ErrNotExist.
func (s *Store) Export(ctx context.Context, role keystore.Role) ([]byte, error) {
	name, err := RecordName(role)
	var k *key
	if err == nil {
		k, err = s.read(ctx, name)
	}
	if err == nil && k.template != EmptyUnique {
		err = fmt.Errorf("%w: %v, and a TSS2 PRIVATE KEY is always under %v", ErrTemplate, k.template, EmptyUnique)
	}
	var der []byte
	if err == nil {
		der, err = k.der()
	}
	if err != nil {
		return nil, fmt.Errorf("tpm2: export %s: %w", role, err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der}), nil
}

func (k *key) der() ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(loadableKey)
		b.AddASN1(asn1.Tag(tagEmptyAuth).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
			b.AddASN1Boolean(!k.hasAuth)
		})
		b.AddASN1Int64(ownerParent)
		for _, part := range [][]byte{k.public, k.private} {
			b.AddASN1(asn1.OCTET_STRING, func(b *cryptobyte.Builder) {
				b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(part) })
			})
		}
	})
	return b.Bytes()
}

// Import stores a key that was made in this TPM by another program, and returns it: the
// first TSS2 PRIVATE KEY in pemData, whose parent is derived from the template. By the
// format's rules that is [EmptyUnique]; name another one only for a key that was made so.
// The key has to be for ECDSA on P-256 and to have been made in the TPM to stay there
// (fixedTPM, fixedParent, sensitiveDataOrigin, neither restricted nor under a policy); any
// other file is fs.ErrInvalid.
//
// An existing key is fs.ErrExist. Under another parent than the template's it is
// [ErrTemplate]. If the TPM does not load it under any, which is so for a damaged key, one of
// another TPM, and one made before this TPM was cleared, it is [ErrOtherTPM]. Handles of
// KeyOptions hold for imported keys as for made ones.
func (s *Store) Import(ctx context.Context, role keystore.Role, pemData []byte, t Template) (crypto.Signer, error) {
	signer, err := s.locked(ctx, func() (*signer, error) { return s.importKey(ctx, role, pemData, t) })
	if err != nil {
		return nil, fmt.Errorf("tpm2: import %s: %w", role, err)
	}
	return signer, nil
}

func (s *Store) importKey(ctx context.Context, role keystore.Role, pemData []byte, t Template) (*signer, error) {
	name, err := s.absent(ctx, role)
	if err != nil {
		return nil, err
	}
	if int(t) >= len(templates) {
		return nil, fmt.Errorf("%v: %w", t, fs.ErrInvalid)
	}
	k, err := parsePEM(pemData)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", fs.ErrInvalid, err)
	}
	k.template, k.handle = t, s.opts.Handles[role]
	err = s.tpm.run(ctx, func(w *work) error {
		if k.handle != 0 {
			if err := w.checkFree(k.handle); err != nil {
				return err
			}
		}
		return w.adopt(k)
	})
	if err != nil {
		return nil, err
	}
	return s.add(ctx, role, name, k)
}

// adopt fills in where a key of unknown origin belongs, if that is here.
func (w *work) adopt(k *key) error {
	err := w.try(func() error {
		p, err := w.loadParent(k.template)
		if err != nil {
			return err
		}
		o, err := w.loadUnder(p, k)
		w.flush(p.object)
		if err == nil {
			k.parent = p.name
			w.flush(o)
			return nil
		}
		if _, isFull := full(err); isFull || !answered(err) || forgotten(err) {
			return err
		}
		found, is, findErr := w.findTemplate(k)
		switch {
		case findErr != nil:
			return findErr
		case is:
			return fmt.Errorf("%w: it was made under %v, not under %v", ErrTemplate, found, k.template)
		}
		return fmt.Errorf("%w: or it is damaged, or was made before this TPM was cleared: %w", ErrOtherTPM, err)
	})
	if err != nil {
		return err
	}
	k.endorsement, err = w.endorsementName()
	return err
}

func parsePEM(data []byte) (*key, error) {
	if len(data) > maxPEM {
		return nil, fmt.Errorf("a file of %d bytes, at most %d are read", len(data), maxPEM)
	}
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return nil, fmt.Errorf("no %s in the file", pemType)
		}
		if block.Type == pemType {
			return parseDER(block.Bytes)
		}
	}
}

var errMalformed = errors.New("not a TSS2 PRIVATE KEY: malformed DER")

func parseDER(der []byte) (*key, error) {
	input, k := cryptobyte.String(der), &key{hasAuth: true}
	var body, kind, empty, public, private cryptobyte.String
	var present bool
	if !input.ReadASN1(&body, asn1.SEQUENCE) || !input.Empty() || !body.ReadASN1Element(&kind, asn1.OBJECT_IDENTIFIER) {
		return nil, errMalformed
	}
	if !bytes.Equal(kind, loadableKey) {
		return nil, errors.New("the key is not a loadable one (2.23.133.10.1.3): importable and sealed ones are not supported")
	}
	if !body.ReadOptionalASN1(&empty, &present, asn1.Tag(tagEmptyAuth).ContextSpecific().Constructed()) {
		return nil, errMalformed
	}
	if present {
		// openssl's provider writes TRUE as 1, as BER allows and DER does not.
		var yes cryptobyte.String
		if !empty.ReadASN1(&yes, asn1.BOOLEAN) || !empty.Empty() || len(yes) != 1 {
			return nil, errMalformed
		}
		k.hasAuth = yes[0] == 0
	}
	for tag := asn1.Tag(tagPolicy); tag <= lastTag; tag++ {
		if body.PeekASN1Tag(tag.ContextSpecific().Constructed()) {
			return nil, fmt.Errorf("the key has a policy or other optional part [%d], which is not supported", tag)
		}
	}
	var handle int64
	if !body.ReadASN1Integer(&handle) {
		return nil, errMalformed
	}
	if handle != ownerParent {
		return nil, fmt.Errorf("the key's parent is 0x%08x: only 0x%08x, the owner hierarchy, is supported", handle, ownerParent)
	}
	if !body.ReadASN1(&public, asn1.OCTET_STRING) || !body.ReadASN1(&private, asn1.OCTET_STRING) || !body.Empty() {
		return nil, errMalformed
	}
	if !readSized(public, &k.public) || !readSized(private, &k.private) || len(k.private) == 0 || len(k.private) > maxPrivate {
		return nil, errors.New("not a TSS2 PRIVATE KEY: what it holds is no TPM2B_PUBLIC and TPM2B_PRIVATE")
	}
	return k, k.derivePublic()
}

// readSized takes a TPM2B apart.
func readSized(s cryptobyte.String, out *[]byte) bool {
	var contents cryptobyte.String
	ok := s.ReadUint16LengthPrefixed(&contents) && s.Empty()
	*out = bytes.Clone(contents)
	return ok
}
