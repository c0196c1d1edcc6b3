package quarklink

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/store"
)

// FuzzDecodeEnrolment: whatever a record says, it is refused or read, and what
// was read is written so that it reads the same.
func FuzzDecodeEnrolment(f *testing.F) {
	files, err := filepath.Glob("testdata/records/*/enrolment")
	require.NoError(f, err)
	require.NotEmpty(f, files)
	for _, file := range files {
		data, err := os.ReadFile(file)
		require.NoError(f, err)
		_, payload, err := store.DecodeRecord("enrolment", data)
		require.NoError(f, err)
		f.Add(payload)
		e, err := decodeEnrolment(payload)
		require.NoError(f, err)
		if e.Certificate == nil {
			continue
		}
		c := certified{certificate: e.Certificate, chain: e.Chain, cacerts: e.CACerts}
		e.accept(certified{certificate: e.CACerts[0], chain: e.Chain, cacerts: e.CACerts}, true)
		e.instance, e.waiting = &boundInstance{"a.example", [][]byte{make([]byte, 32)}}, []byte{1}
		f.Add(encodeEnrolment(e))
		e.next = &certified{certificate: c.certificate}
		f.Add(encodeEnrolment(e))
		e.noConnection, e.stale = true, true
		f.Add(encodeEnrolment(e))
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		e, err := decodeEnrolment(payload)
		if err != nil {
			return
		}
		if e.complete() {
			assert.NotNil(t, e.Certificate)
		}
		again, err := decodeEnrolment(encodeEnrolment(e))
		require.NoError(t, err)
		assert.Equal(t, encodeEnrolment(e), encodeEnrolment(again))
		assert.Equal(t, e.Enrolment, again.Enrolment)
		assert.Equal(t, e.next, again.next)
	})
}

// TestNextInRecord: a certificate that waits keeps what verified it, be that the
// same as of the one in force or not.
func TestNextInRecord(t *testing.T) {
	data, err := os.ReadFile("testdata/records/hub/enrolment")
	require.NoError(t, err)
	_, payload, err := store.DecodeRecord("enrolment", data)
	require.NoError(t, err)
	e, err := decodeEnrolment(payload)
	require.NoError(t, err)
	for name, next := range map[string]*certified{
		"the same":      {certificate: e.Certificate, chain: e.Chain, cacerts: e.CACerts},
		"another chain": {certificate: e.Certificate, chain: e.CACerts, cacerts: e.CACerts},
		"another root":  {certificate: e.Certificate, chain: e.Chain, cacerts: e.Chain},
	} {
		e.next = next
		again, err := decodeEnrolment(encodeEnrolment(e))
		require.NoError(t, err, name)
		assert.Equal(t, next, again.next, name)
	}
}
