package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
)

// MaxSize is the largest record that a Store takes, in bytes. It is far more
// than any record of a device needs and keeps a hostile or broken medium from
// filling the memory.
const MaxSize = 64 << 10

// ErrDamaged is the error for a record that is there but is not what was
// stored: cut short, altered, of another name, or never a record at all. It is
// never fs.ErrNotExist: what is damaged must not be taken for absent.
var ErrDamaged = errors.New("damaged record")

const (
	recordMark   = "quarklink-record"
	checksumSize = 8                                         // bytes of the SHA-256 that are kept: it finds damage, it does not stop forgery
	maxHeader    = len(recordMark) + 1 + 15 + 1 + 3 + 1 + 16 // without the newline
)

// EncodeRecord puts a header line before payload, so that [DecodeRecord] can
// tell whether the record is whole:
//
//	quarklink-record <name> <version> <checksum>\n<payload>
//
// The name is that under which the record is stored (see [CheckName]), the
// version, in decimal, is that of the payload's format, and the checksum is the
// first 8 bytes, in lower-case hex, of the SHA-256 of name, version, payload
// length and payload. The payload follows unchanged, so that tools which skip
// leading text still read it: openssl opens a record that holds a PEM block.
//
// The overhead is at most 54 bytes. A name that CheckName refuses gives a record
// that DecodeRecord refuses.
func EncodeRecord(name string, version uint8, payload []byte) []byte {
	return append(header(name, version, payload), payload...)
}

// DecodeRecord takes apart what [EncodeRecord] made and returns the format
// version and the payload, which shares its memory with data. Any change of the
// data, and a record of another name, is [ErrDamaged].
func DecodeRecord(name string, data []byte) (version uint8, payload []byte, err error) {
	if err := CheckName(name); err != nil {
		return 0, nil, err
	}
	line, _, found := bytes.Cut(data[:min(len(data), maxHeader+1)], []byte("\n"))
	if !found {
		return 0, nil, fmt.Errorf("store: record %q: no header line: %w", name, ErrDamaged)
	}
	payload = data[len(line)+1:]
	fields := bytes.Split(line, []byte(" "))
	if len(fields) != 4 || string(fields[0]) != recordMark {
		return 0, nil, fmt.Errorf("store: record %q: no header line: %w", name, ErrDamaged)
	}
	if string(fields[1]) != name {
		return 0, nil, fmt.Errorf("store: record %q: it is named %q: %w", name, fields[1], ErrDamaged)
	}
	v, err := strconv.ParseUint(string(fields[2]), 10, 8)
	if err != nil {
		return 0, nil, fmt.Errorf("store: record %q: version %q is not a number from 0 to 255: %w", name, fields[2], ErrDamaged)
	}
	// Comparing whole lines leaves one spelling only: no capitals, no leading zeros.
	if want := header(name, uint8(v), payload); string(line) != string(want[:len(want)-1]) {
		return 0, nil, fmt.Errorf("store: record %q: wrong checksum: %w", name, ErrDamaged)
	}
	return uint8(v), payload, nil
}

// header returns the header line of a record, newline included, with room for
// the payload.
func header(name string, version uint8, payload []byte) []byte {
	h := sha256.New()
	fmt.Fprintf(h, "%s %d %d\n", name, version, len(payload))
	h.Write(payload)
	line := make([]byte, 0, maxHeader+1+len(payload))
	line = fmt.Appendf(line, "%s %s %d ", recordMark, name, version)
	line = hex.AppendEncode(line, h.Sum(nil)[:checksumSize])
	return append(line, '\n')
}
