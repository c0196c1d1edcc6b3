package tpm2

import (
	"bytes"
	"context"
	"crypto"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"testing"
	"time"

	gotpm "github.com/google/go-tpm/tpm2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/store"
)

// madeByOpenSSL is a key of openssl's tpm2 provider 1.1.1, of a swtpm that is no more.
const madeByOpenSSL = `-----BEGIN TSS2 PRIVATE KEY-----
MIHwBgZngQUKAQOgAwEBAQIEQAAAAQRYAFYAIwALAAYAcgAAABAAEAADABAAIIxr
emO6bvPWg3SG7qmU8sJQTkSI6wsGl0YD91d/dksOACAjBketlc+POofPQjaS57XK
BJqcrtjkM/CfsKWeCQYoyQSBgAB+ACDetbiAMQYymGKS4uVmxiFiahp+r4EaY3Qr
pcYq1OVtLgAQXZUF0SruWaaAOBBpWjp2zxImHfBEAWiq0U+NYtDqQzGbTpRAoUiX
x+6HdLXuUtrAms8rXoFPfDBoNiMiBNC3mNLXt+zCfOWCAJv9TgKr+iwYp2pUFYRb
7Yu4
-----END TSS2 PRIVATE KEY-----
`

func openSSLKey(tb testing.TB) *key {
	tb.Helper()
	k, err := parsePEM([]byte(madeByOpenSSL))
	require.NoError(tb, err)
	k.parent = make([]byte, 34)
	return k
}

// FuzzDER reads key files. One that is taken can be written again.
func FuzzDER(f *testing.F) {
	block, _ := pem.Decode([]byte(madeByOpenSSL))
	f.Add(block.Bytes)
	f.Fuzz(func(t *testing.T, der []byte) {
		k, err := parseDER(der)
		if err != nil {
			return
		}
		again, err := k.der()
		require.NoError(t, err)
		k2, err := parseDER(again)
		require.NoError(t, err)
		assert.Equal(t, k, k2)
	})
}

// FuzzRecord reads the payloads of records.
func FuzzRecord(f *testing.F) {
	k := openSSLKey(f)
	k.handle, k.replaces = 0x81000100, &placed{0x81000200, k.parent}
	data, err := k.encode("tpm-dsk")
	require.NoError(f, err)
	_, payload, err := store.DecodeRecord("tpm-dsk", data)
	require.NoError(f, err)
	f.Add(payload)
	f.Fuzz(func(t *testing.T, payload []byte) {
		k, err := decodeKey("tpm-dsk", store.EncodeRecord("tpm-dsk", recordVersion, payload))
		if err != nil {
			if !errors.Is(err, store.ErrDamaged) {
				assert.ErrorIs(t, err, ErrTemplate)
			}
			return
		}
		data, err := k.encode("tpm-dsk")
		require.NoError(t, err)
		again, err := decodeKey("tpm-dsk", data)
		require.NoError(t, err)
		assert.Equal(t, k.name, again.name)
		assert.Equal(t, k.handle, again.handle)
		assert.Equal(t, k.replaces, again.replaces)
	})
}

// babble is a TPM that answers every command with the next piece of what it is given.
type babble struct{ left []byte }

func (b *babble) Send(command []byte) ([]byte, error) {
	if len(b.left) < 2 {
		return nil, errors.New("nothing left to say")
	}
	n := min(int(b.left[0]), len(b.left)-2)
	tag := gotpm.TPMSTNoSessions
	if b.left[1]&1 == 1 {
		tag = gotpm.TPMSTSessions
	}
	answer := binary.BigEndian.AppendUint16(nil, uint16(tag))
	answer = binary.BigEndian.AppendUint32(answer, uint32(headerSize+n))
	answer = binary.BigEndian.AppendUint32(answer, uint32(b.left[1]>>1))
	answer = append(answer, b.left[2:2+n]...)
	b.left = b.left[2+n:]
	return answer, nil
}

// FuzzAnswers has a TPM, or whoever sits on its bus, answer anything. No call panics,
// and none makes a signature of it.
func FuzzAnswers(f *testing.F) {
	nothing := []byte{9, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0} // no handles
	f.Add(bytes.Repeat(nothing, 8))
	f.Add(append(nothing, 4, 1, 0x80, 0, 0, 0))
	record, err := openSSLKey(f).encode("tpm-esk")
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, data []byte) {
		tpm, err := newTPM(Options{Transport: &babble{data}, SlotWait: -1, OpenWait: -1, Timeout: time.Minute})
		require.NoError(t, err)
		records := new(store.Mem)
		require.NoError(t, records.Put(t.Context(), "tpm-esk", record))
		keys, err := tpm.KeyStore(records, KeyOptions{})
		require.NoError(t, err)
		k, err := keys.read(t.Context(), "tpm-esk")
		require.NoError(t, err)
		_, err = keys.keep(context.Background(), keystore.Device, "tpm-dsk", k).Sign(nil, make([]byte, 32), crypto.SHA256)
		assert.Error(t, err)
		tpm.run(t.Context(), func(w *work) error { return w.probe() })
		keys.Signer(t.Context(), keystore.Enrolment)
	})
}
