package sigblock

import (
	"crypto"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"github.com/quarklink-go/quarklink/esp/image"
)

// Verdict is an error that has a result code of quarklink-client.
type Verdict struct {
	Code int
	Text string
}

func (v *Verdict) Error() string { return v.Text }

// FirmwareCode returns the result code of quarklink-client.
func (v *Verdict) FirmwareCode() int { return v.Code }

// ErrImage is secureboot.ErrImage.
var ErrImage error = &Verdict{22, "not a valid firmware image"}

// SignedImage is an image that was read, and what its signatures sign.
type SignedImage struct {
	*image.Image
	Src    io.ReaderAt
	Size   int64
	second []byte // the digest by another hash than SHA-256, once needed
}

// ReadImage reads the image; what is wrong with it becomes ErrImage.
func ReadImage(src io.ReaderAt, size int64) (*SignedImage, error) {
	m, err := image.Read(src, size)
	if err != nil {
		return nil, ImageError(err)
	}
	return &SignedImage{Image: m, Src: src, Size: size}, nil
}

// ImageError makes ErrImage of what is wrong with an image, but of nothing else.
func ImageError(err error) error {
	var format *image.FormatError
	if errors.As(err, &format) {
		return fmt.Errorf("secureboot: %w: %w", ErrImage, err)
	}
	return fmt.Errorf("secureboot: %w", err)
}

// Sector returns what there is of the signature sector: SectorSize bytes, or
// fewer where the file ends, or none.
func (m *SignedImage) Sector() ([]byte, error) {
	at := m.PaddedLength()
	b := make([]byte, min(SectorSize, max(0, m.Size-at)))
	n, err := m.Src.ReadAt(b, at)
	if n < len(b) {
		if err == nil || errors.Is(err, io.EOF) {
			return b[:n], nil
		}
		return nil, fmt.Errorf("secureboot: read signature sector at offset 0x%x: %w", at, err)
	}
	return b, nil
}

// Digest returns the hash of everything before the signature sector. SHA-256
// was computed when the image was read. SHA-384 is so rare that it is worth
// a second pass, which has to see the bytes that the first one saw.
func (m *SignedImage) Digest(h crypto.Hash) ([]byte, error) {
	if h == crypto.SHA256 {
		return m.PaddedSHA256[:], nil
	}
	if m.second != nil {
		return m.second, nil
	}
	again, sum := sha256.New(), h.New()
	both := io.MultiWriter(again, sum)
	end := min(m.Size, m.PaddedLength())
	if _, err := io.CopyBuffer(both, io.NewSectionReader(m.Src, 0, end), make([]byte, SectorSize)); err != nil {
		return nil, fmt.Errorf("secureboot: read image: %w", err)
	}
	both.Write(Erased(m.PaddedLength() - end))
	if [32]byte(again.Sum(nil)) != m.PaddedSHA256 {
		return nil, errors.New("secureboot: the image changed while it was read")
	}
	m.second = sum.Sum(nil)
	return m.second, nil
}

// Erased returns n bytes of erased flash.
func Erased(n int64) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = 0xFF
	}
	return b
}
