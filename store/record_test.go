package store

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestRecordRoundTrip(t *testing.T) {
	for _, payload := range [][]byte{nil, {}, {0}, []byte("\n"), []byte("-----BEGIN X-----\n"),
		bytes.Repeat([]byte{0xff}, MaxSize/2)} {
		for _, name := range []string{"a", "key-esk", "123456789012345"} {
			for version := 0; version < 256; version += 51 {
				record := EncodeRecord(name, uint8(version), payload)
				v, p, err := DecodeRecord(name, record)
				require.NoError(t, err, "%v, %v bytes", name, len(payload))
				require.Equal(t, uint8(version), v, "%v, %v bytes", name, len(payload))
				require.Equal(t, string(payload), string(p), "%v, %v bytes", name, len(payload))
				assert.LessOrEqual(t, len(record)-len(payload), 54, "%v, %v", name, version)
			}
		}
	}
}

// Every way to damage a record a little is noticed.
func TestDecodeRecordDamaged(t *testing.T) {
	record := EncodeRecord("instance", 7, []byte("endpoint\n\x00port 6000"))
	damaged := map[string][]byte{
		"longer":          append(bytes.Clone(record), 0),
		"newline":         append(bytes.Clone(record), '\n'),
		"in front":        append([]byte{'\n'}, record...),
		"CRLF":            bytes.ReplaceAll(record, []byte("\n"), []byte("\r\n")),
		"two records":     append(bytes.Clone(record), record...),
		"leading zero":    []byte(strings.Replace(string(record), " 7 ", " 07 ", 1)),
		"plus":            []byte(strings.Replace(string(record), " 7 ", " +7 ", 1)),
		"version 256":     []byte(strings.Replace(string(record), " 7 ", " 256 ", 1)),
		"two spaces":      []byte(strings.Replace(string(record), " 7 ", "  7 ", 1)),
		"another version": []byte(strings.Replace(string(record), " 7 ", " 8 ", 1)),
		"another name":    EncodeRecord("network", 7, []byte("endpoint\n\x00port 6000")),
		"no header":       []byte("endpoint\n\x00port 6000"),
		"erased":          bytes.Repeat([]byte{0xff}, len(record)),
		"zeros":           make([]byte, len(record)),
		"no end of line":  bytes.Repeat([]byte("quarklink-record "), 4000),
	}
	for i := range record {
		damaged[fmt.Sprintf("cut to %d bytes", i)] = record[:i]
		damaged[fmt.Sprintf("byte %d gone", i)] = append(bytes.Clone(record[:i]), record[i+1:]...)
		for bit := range 8 {
			flipped := bytes.Clone(record)
			flipped[i] ^= 1 << bit
			damaged[fmt.Sprintf("bit %d of byte %d flipped", bit, i)] = flipped
		}
	}
	for what, data := range damaged {
		version, payload, err := DecodeRecord("instance", data)
		assert.ErrorIs(t, err, ErrDamaged, what)
		assert.EqualValues(t, 0, version, what)
		assert.Nil(t, payload, what)
	}
}

func TestDecodeRecordBadName(t *testing.T) {
	for _, name := range []string{"", "Name", "a b", "a\nb", "1234567890123456"} {
		_, _, err := DecodeRecord(name, EncodeRecord(name, 1, nil))
		assert.Error(t, err)
	}
}

func FuzzDecodeRecord(f *testing.F) {
	f.Add(EncodeRecord("instance", 1, []byte("payload")))
	f.Add([]byte("quarklink-record instance 1 \n"))
	f.Add([]byte("quarklink-record instance 1 0123456789abcdef"))
	f.Fuzz(func(t *testing.T, data []byte) {
		version, payload, err := DecodeRecord("instance", data)
		if err != nil {
			require.ErrorIs(t, err, ErrDamaged, "payload")
			require.Nil(t, payload, "payload")
			return
		}
		require.Equal(t, data, EncodeRecord("instance", version, payload),
			"a second spelling of one record:\n")
	})
}
