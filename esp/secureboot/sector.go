package secureboot

import (
	"crypto"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"io"

	"github.com/quarklink-go/quarklink/esp/image"
)

// signedImage is an image that was read, and what its signatures sign.
type signedImage struct {
	*image.Image
	src    io.ReaderAt
	size   int64
	sha384 []byte // once needed
}

// readImage reads the image; what is wrong with it becomes ErrImage.
func readImage(src io.ReaderAt, size int64) (*signedImage, error) {
	m, err := image.Read(src, size)
	if err != nil {
		return nil, imageError(err)
	}
	return &signedImage{Image: m, src: src, size: size}, nil
}

// imageError makes ErrImage of what is wrong with an image, but of nothing else.
func imageError(err error) error {
	var format *image.FormatError
	if errors.As(err, &format) {
		return fmt.Errorf("secureboot: %w: %w", ErrImage, err)
	}
	return fmt.Errorf("secureboot: %w", err)
}

// sector returns what there is of the signature sector: sectorSize bytes, or
// fewer where the file ends, or none.
func (m *signedImage) sector() ([]byte, error) {
	at := m.PaddedLength()
	b := make([]byte, min(sectorSize, max(0, m.size-at)))
	n, err := m.src.ReadAt(b, at)
	if n < len(b) {
		if err == nil || errors.Is(err, io.EOF) {
			return b[:n], nil
		}
		return nil, fmt.Errorf("secureboot: read signature sector at offset 0x%x: %w", at, err)
	}
	return b, nil
}

// digest returns the hash of everything before the signature sector. SHA-256
// was computed when the image was read. SHA-384 is so rare that it is worth
// a second pass, which has to see the bytes that the first one saw.
func (m *signedImage) digest(h crypto.Hash) ([]byte, error) {
	if h == crypto.SHA256 {
		return m.PaddedSHA256[:], nil
	}
	if m.sha384 != nil {
		return m.sha384, nil
	}
	again, sum := sha256.New(), sha512.New384()
	both := io.MultiWriter(again, sum)
	end := min(m.size, m.PaddedLength())
	if _, err := io.CopyBuffer(both, io.NewSectionReader(m.src, 0, end), make([]byte, sectorSize)); err != nil {
		return nil, fmt.Errorf("secureboot: read image: %w", err)
	}
	both.Write(erased(m.PaddedLength() - end))
	if [32]byte(again.Sum(nil)) != m.PaddedSHA256 {
		return nil, errors.New("secureboot: the image changed while it was read")
	}
	m.sha384 = sum.Sum(nil)
	return m.sha384, nil
}

// erased returns n bytes of erased flash.
func erased(n int64) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = 0xFF
	}
	return b
}
