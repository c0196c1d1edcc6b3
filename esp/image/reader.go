package image

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
)

// readSize is how much is read at once: a flash sector. As reads start at 0
// and the signature sector is aligned, no byte of it is ever read with the image.
const readSize = sectorSize

// reader hands out the bytes of an image in order and hashes each as it does.
type reader struct {
	src      io.ReaderAt
	size     int64 // of src
	off      int64 // of the next byte
	buf      []byte
	have     []byte    // the part of buf that was read but not handed out
	sum      hash.Hash // nil: do not hash
	checksum byte
}

func newReader(src io.ReaderAt, size int64) *reader {
	return &reader{src: src, size: size, buf: make([]byte, readSize), sum: sha256.New(), checksum: 0xEF}
}

// next hands out the next bytes, at least one and at most limit, which is not 0.
// They are valid until the next call.
func (r *reader) next(limit int64) ([]byte, error) {
	if len(r.have) == 0 {
		if err := r.fill(); err != nil {
			return nil, err
		}
	}
	b := r.have[:min(limit, int64(len(r.have)))]
	r.have = r.have[len(b):]
	r.off += int64(len(b))
	if r.sum != nil {
		r.sum.Write(b)
	}
	return b, nil
}

func (r *reader) fill() error {
	want := min(int64(len(r.buf)), r.size-r.off)
	if want <= 0 {
		return formatError(r.off, ErrTruncated, "the file ends here")
	}
	n, err := r.src.ReadAt(r.buf[:want], r.off)
	if int64(n) < want {
		if err == nil || errors.Is(err, io.EOF) {
			return formatError(r.off+int64(n), ErrTruncated, "the file ends here, not at 0x%x as announced", r.size)
		}
		return fmt.Errorf("image: read at offset 0x%x: %w", r.off+int64(n), err)
	}
	r.have = r.buf[:want]
	return nil
}

// read fills p.
func (r *reader) read(p []byte) error {
	for len(p) > 0 {
		b, err := r.next(int64(len(p)))
		if err != nil {
			return err
		}
		p = p[copy(p, b):]
	}
	return nil
}

// checksumTo adds what comes before offset end to the checksum.
func (r *reader) checksumTo(end int64) error {
	for r.off < end {
		b, err := r.next(end - r.off)
		if err != nil {
			return err
		}
		r.checksum ^= xorBytes(b)
	}
	return nil
}

// pad hashes what comes before offset end, and 0xFF where the file is shorter;
// end is less than readSize away.
func (r *reader) pad(end int64) error {
	for r.off < min(end, r.size) {
		if _, err := r.next(end - r.off); err != nil {
			return err
		}
	}
	if missing := end - r.off; missing > 0 {
		fill := r.buf[:missing] // everything in it was handed out
		for i := range fill {
			fill[i] = 0xFF
		}
		r.sum.Write(fill)
		r.off = end
	}
	return nil
}

// xorBytes returns the XOR of all bytes of b. It takes 64 at a time, in four
// independent chains, so that the checksum costs little beside the SHA-256.
func xorBytes(b []byte) byte {
	var w0, w1, w2, w3 uint64
	for ; len(b) >= 64; b = b[64:] {
		w0 ^= binary.LittleEndian.Uint64(b[0:8]) ^ binary.LittleEndian.Uint64(b[32:40])
		w1 ^= binary.LittleEndian.Uint64(b[8:16]) ^ binary.LittleEndian.Uint64(b[40:48])
		w2 ^= binary.LittleEndian.Uint64(b[16:24]) ^ binary.LittleEndian.Uint64(b[48:56])
		w3 ^= binary.LittleEndian.Uint64(b[24:32]) ^ binary.LittleEndian.Uint64(b[56:64])
	}
	w := w0 ^ w1 ^ w2 ^ w3
	w ^= w >> 32
	w ^= w >> 16
	x := byte(w) ^ byte(w>>8)
	for _, c := range b {
		x ^= c
	}
	return x
}
