package secureboot

import (
	"bytes"
	"errors"
	"io"

	"github.com/quarklink-go/quarklink/esp/secureboot/internal/sigblock"
)

// Signature is what one signature block of an image says. It says nothing about trust.
type Signature struct {
	Block     int    // 0 to 2
	Algorithm string // such as "RSA-3072" or "ECDSA P-256"; "" if the block is malformed
	Key       Digest // of the key in the block; zero if the block is malformed
	Err       error  // nil: a valid signature of the image by that key
}

// Signatures returns what is in the signature sector of the image at the start of img,
// which holds size bytes: for whoever wants to see who signed an image. Only a
// [Verifier] decides whether it may run. Erased blocks are left out, so that an image
// that is not signed has none. The error is [ErrImage], or one of img.
func Signatures(img io.ReaderAt, size int64, schemes ...Scheme) ([]Signature, error) {
	m, err := sigblock.ReadImage(img, size)
	if err != nil {
		return nil, err
	}
	sector, err := m.Sector()
	if err != nil {
		return nil, err
	}
	var list []Signature
	for i := range sigblock.MaxBlocks {
		from, to := i*sigblock.BlockSize, (i+1)*sigblock.BlockSize
		if len(sector) < to {
			break
		}
		raw := sector[from:to]
		if len(bytes.Trim(raw, "\xFF")) == 0 {
			continue
		}
		s := Signature{Block: i}
		b, err := sigblock.Parse(raw, schemes)
		if err != nil {
			s.Err = err
			list = append(list, s)
			continue
		}
		s.Algorithm, s.Key = b.Key.Algorithm().String(), b.KeyDigest()
		digest, err := m.Digest(b.Key.Hash())
		if err != nil {
			return nil, err
		}
		if !b.Key.Verify(raw, digest) {
			s.Err = errors.New("the signature is wrong")
		}
		list = append(list, s)
	}
	return list, nil
}
