package est

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/smallstep/pkcs7"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/internal/counterpart"
)

// tlv encodes an element in DER.
func tlv(tag byte, parts ...[]byte) []byte {
	content := bytes.Join(parts, nil)
	switch n := len(content); {
	case n < 0x80:
		return append([]byte{tag, byte(n)}, content...)
	case n < 0x100:
		return append([]byte{tag, 0x81, byte(n)}, content...)
	default:
		return append([]byte{tag, 0x82, byte(n >> 8), byte(n)}, content...)
	}
}

// indefinite and longLength encode an element in BER that is not DER.
func indefinite(tag byte, parts ...[]byte) []byte {
	return slices.Concat([]byte{tag, 0x80}, bytes.Join(parts, nil), []byte{0, 0})
}

func longLength(tag byte, parts ...[]byte) []byte {
	content := bytes.Join(parts, nil)
	return append([]byte{tag, 0x84, 0, 0, byte(len(content) >> 8), byte(len(content))}, content...)
}

var (
	derData       = []byte{6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 1}
	derSignedData = []byte{6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 2}
	derEnveloped  = []byte{6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 3}
	derVersion    = []byte{2, 1, 1}
	derEmptySet   = []byte{0x31, 0}
	derNoContent  = tlv(0x30, derData)
)

// message encodes the parts of a SignedData as a CMS message.
func message(parts ...[]byte) []byte {
	return tlv(0x30, derSignedData, tlv(0xa0, tlv(0x30, parts...)))
}

func TestParseCertsOnly(t *testing.T) {
	cert := recordedLeaf(t, "gs-enroll-mtls.http").Raw
	certs := tlv(0xa0, cert)
	good := message(derVersion, derEmptySet, derNoContent, certs, derEmptySet)
	digests := tlv(0x31, tlv(0x30, []byte{6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1}))
	octets := func(content string) []byte { return tlv(0x30, derData, tlv(0xa0, tlv(4, []byte(content)))) }
	for _, tt := range []struct {
		name string
		der  []byte
		n    int    // certificates
		err  string // part of the text
	}{
		{"no content", good, 1, ""},
		{"empty content", message(derVersion, derEmptySet, octets(""), certs, derEmptySet), 1, ""},
		{"empty crls", message(derVersion, derEmptySet, derNoContent, certs, tlv(0xa1), derEmptySet), 1, ""},
		{"twice the same", message(derVersion, derEmptySet, derNoContent, tlv(0xa0, cert, cert), derEmptySet), 2, ""},
		{"of the other library", certsOnly(t, recordedCACerts(t, "gs-cacerts.http")...), 2, ""},

		{"nothing", nil, 0, "not a CMS message"},
		{"MII=", []byte{0x30, 0x82}, 0, "not a CMS message"},
		{"bare certificate", cert, 0, "not SignedData"},
		{"list of certificates", tlv(0x30, cert), 0, "not SignedData"},
		{"trailing byte", append(slices.Clone(good), 0), 0, "followed by other bytes"},
		{"two messages", append(slices.Clone(good), good...), 0, "followed by other bytes"},
		{"enveloped data", tlv(0x30, derEnveloped, tlv(0xa0, tlv(0x30, derVersion, derEmptySet, derNoContent, certs,
			derEmptySet))), 0, "not SignedData"},
		{"no content info", tlv(0x30, derVersion, derEmptySet, derNoContent, certs, derEmptySet), 0, "not SignedData"},
		{"content info without content", tlv(0x30, derSignedData), 0, "malformed CMS ContentInfo"},
		{"more in content info", tlv(0x30, derSignedData, tlv(0xa0, tlv(0x30, derVersion, derEmptySet, derNoContent,
			certs, derEmptySet)), derVersion), 0, "malformed CMS ContentInfo"},
		{"version 3", message([]byte{2, 1, 3}, derEmptySet, derNoContent, certs, derEmptySet), 0, "version"},
		{"long version", message([]byte{2, 2, 0, 1}, derEmptySet, derNoContent, certs, derEmptySet), 0, "version"},
		{"digest algorithm", message(derVersion, digests, derNoContent, certs, derEmptySet), 0, "digest algorithms"},
		{"content", message(derVersion, derEmptySet, octets("x"), certs, derEmptySet), 0, "content"},
		{"content is not octets", message(derVersion, derEmptySet, tlv(0x30, derData, tlv(0xa0, tlv(5))), certs,
			derEmptySet), 0, "content"},
		{"content tag without content", message(derVersion, derEmptySet, tlv(0x30, derData, tlv(0xa0)), certs,
			derEmptySet), 0, "content"},
		{"content type", message(derVersion, derEmptySet, tlv(0x30, derSignedData), certs, derEmptySet), 0, "content type"},
		{"certificates absent", message(derVersion, derEmptySet, derNoContent, derEmptySet), 0, "no certificates"},
		{"zero certificates", message(derVersion, derEmptySet, derNoContent, tlv(0xa0), derEmptySet), 0, "no certificates"},
		{"certificates as SET", message(derVersion, derEmptySet, derNoContent, tlv(0x31, cert), derEmptySet), 0,
			"no certificates"},
		{"attribute certificate", message(derVersion, derEmptySet, derNoContent, tlv(0xa0, cert, tlv(0xa2, cert)),
			derEmptySet), 0, "certificate 2"},
		{"not a certificate", message(derVersion, derEmptySet, derNoContent, tlv(0xa0, cert, tlv(0x30)),
			derEmptySet), 0, "certificate 2"},
		{"certificate cut", message(derVersion, derEmptySet, derNoContent, tlv(0xa0, cert[:len(cert)-1]),
			derEmptySet), 0, "not DER throughout"},
		{"CRL", message(derVersion, derEmptySet, derNoContent, certs, tlv(0xa1, tlv(0x30)), derEmptySet), 0, "CRLs"},
		{"crls before certificates", message(derVersion, derEmptySet, derNoContent, tlv(0xa1), certs, derEmptySet),
			0, "no certificates"},
		{"signers absent", message(derVersion, derEmptySet, derNoContent, certs), 0, "signers"},
		{"signer", message(derVersion, derEmptySet, derNoContent, certs, tlv(0x31, tlv(0x30, derVersion))), 0, "signers"},
		{"more in signed data", message(derVersion, derEmptySet, derNoContent, certs, derEmptySet, derEmptySet), 0,
			"malformed CMS SignedData"},

		{"indefinite length, outermost", indefinite(0x30, derSignedData,
			tlv(0xa0, tlv(0x30, derVersion, derEmptySet, derNoContent, certs, derEmptySet))), 0, "in DER"},
		{"indefinite length, certificates", message(derVersion, derEmptySet, derNoContent, indefinite(0xa0, cert),
			derEmptySet), 0, "not DER throughout"},
		{"indefinite length, content", message(derVersion, derEmptySet,
			tlv(0x30, derData, tlv(0xa0, indefinite(0x24))), certs, derEmptySet), 0, "not DER throughout"},
		{"length not minimal, outermost", longLength(0x30, derSignedData,
			tlv(0xa0, tlv(0x30, derVersion, derEmptySet, derNoContent, certs, derEmptySet))), 0, "in DER"},
		{"length not minimal, certificates", message(derVersion, derEmptySet, derNoContent, longLength(0xa0, cert),
			derEmptySet), 0, "not DER throughout"},
		{"length not minimal, signers", message(derVersion, derEmptySet, derNoContent, certs, []byte{0x31, 0x81, 0}),
			0, "not DER throughout"},
		{"string in pieces within the certificate", message(derVersion, derEmptySet, derNoContent,
			tlv(0xa0, bytes.Replace(cert, []byte("\x0c\x03Lab"), []byte("\x2c\x03\x0c\x01L"),
				1)), derEmptySet), 0, "not DER throughout"},
		{"wrong length within the certificate", message(derVersion, derEmptySet, derNoContent,
			tlv(0xa0, bytes.Replace(cert, []byte("\x0c\x03Lab"), []byte("\x0c\x02Lab"),
				1)), derEmptySet), 0, "not DER throughout"},
		{"length of 4 GiB", []byte{0x30, 0x84, 0xff, 0xff, 0xff, 0xff, 0}, 0, "in DER"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseCertsOnly(tt.der)
			require.Len(t, got, tt.n)
			require.Equal(t, tt.err == "", err == nil)
			if err != nil {
				assert.ErrorContains(t, err, tt.err)
			}
			for _, c := range got {
				if tt.name != "of the other library" {
					assert.Equal(t, cert, c.Raw)
				}
			}
		})
	}
}

// goodMessages are the CMS messages of recorded answers.
func goodMessages(t testing.TB) [][]byte {
	t.Helper()
	var messages [][]byte
	for _, file := range []string{"fio-cacerts.http", "gs-cacerts.http", "le-cacerts.http", "fio-ext.http",
		"gs-enroll-mtls.http", "le-enroll.http"} {
		_, body := bodyOf(t, file)
		der, err := decode(body)
		require.NoError(t, err)
		messages = append(messages, der)
	}
	return messages
}

func TestEveryTruncation(t *testing.T) {
	for i, der := range goodMessages(t) {
		_, err := ParseCertsOnly(der)
		require.NoError(t, err)
		for n := range der {
			_, err := ParseCertsOnly(der[:n])
			assert.Error(t, err, "message %d cut to %d bytes", i, n)
		}
	}
}

// What is still accepted after a change of one byte is accepted by the other
// library too, with the same certificates.
func TestEveryByteChanged(t *testing.T) {
	for _, der := range goodMessages(t) {
		for i, old := range der {
			for _, b := range []byte{0, 0x80, 0xff, old ^ 1, old ^ 0x80, old + 1, old - 1} {
				der[i] = b
				checkAgainstOracle(t, der)
			}
			der[i] = old
		}
	}
}

// checkAgainstOracle parses der twice.
func checkAgainstOracle(t *testing.T, der []byte) {
	t.Helper()
	certs, err := ParseCertsOnly(der)
	if err != nil {
		assert.Nil(t, certs, "certificates and an error")
		return
	}
	p7, err := pkcs7.Parse(der)
	require.NoError(t, err, "%x", der)
	require.NotEmpty(t, certs, "%x", der)
	require.Empty(t, p7.Signers, "%x", der)
	require.Empty(t, p7.CRLs, "%x", der)
	require.Empty(t, p7.Content, "%x", der)
	require.True(t, slices.EqualFunc(certs, p7.Certificates, (*x509.Certificate).Equal), "%x", der)
}

// Hostile nesting costs neither time nor stack.
func TestParseCertsOnlyDeep(t *testing.T) {
	var deep []byte
	for range 1000 {
		deep = tlv(0x30, deep)
	}
	_, err := ParseCertsOnly(deep)
	assert.Error(t, err)
}

func FuzzParseCertsOnly(f *testing.F) {
	for _, der := range goodMessages(f) {
		f.Add(der)
	}
	f.Add([]byte{0x30, 0x82})
	f.Add(message(derVersion, derEmptySet, derNoContent, tlv(0xa0), tlv(0xa1), derEmptySet))
	f.Fuzz(checkAgainstOracle)
}

// OpenSSL makes messages that are good, and some that are not certs-only.
func TestParseCertsOnlyOpenSSL(t *testing.T) {
	openssl := counterpart.Program(t, "openssl")
	dir := t.TempDir()
	run := func(args ...string) []byte {
		t.Helper()
		cmd := exec.Command(openssl, args...)
		cmd.Dir = dir
		out, err := cmd.Output()
		require.NoError(t, err, args)
		return out
	}
	chain, err := filepath.Abs("testdata/ca-chain.pem")
	require.NoError(t, err)
	run("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem", "-out", "cert.pem", "-subj", "/CN=signer")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "text"), []byte("text"), 0o600))

	der := run("crl2pkcs7", "-nocrl", "-certfile", chain, "-certfile", "cert.pem", "-outform", "DER")
	certs, err := ParseCertsOnly(der)
	require.NoError(t, err)
	var text []byte
	for _, cert := range certs {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
	}
	files := append(readTestdata(t, "ca-chain.pem"), run("x509", "-in", "cert.pem")...)
	assert.Equal(t, files, text)

	signed := run("cms", "-sign", "-in", "text", "-signer", "cert.pem", "-inkey", "key.pem", "-outform", "DER",
		"-nodetach", "-binary")
	_, err = ParseCertsOnly(signed)
	assert.Error(t, err, "accepted a signed message")
	detached := run("cms", "-sign", "-in", "text", "-signer", "cert.pem", "-inkey", "key.pem", "-outform", "DER")
	_, err = ParseCertsOnly(detached)
	assert.Error(t, err, "accepted a detached signature")
}

// BenchmarkParseCertsOnly parses the same answer as a general library does, and
// reports what share of its time that takes.
func BenchmarkParseCertsOnly(b *testing.B) {
	der := goodMessages(b)[4]
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		_, err := ParseCertsOnly(der)
		require.NoError(b, err)
		n++
	}
	ours := b.Elapsed()
	start := time.Now()
	for range n {
		_, err := pkcs7.Parse(der)
		require.NoError(b, err)
	}
	b.ReportMetric(float64(ours)/float64(time.Since(start)), "of-pkcs7-time")
}
