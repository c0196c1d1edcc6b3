package est

import (
	"crypto/x509"
	"io"
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestReenrol: a renewal is an enrolment at another address (RFC 7030 section
// 4.2.2), whose answer is looked at as closely.
func TestReenrol(t *testing.T) {
	server := ca{t, newCA(t, "root", nil, nil)}
	var asked []string
	_, client := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Method+" "+r.RequestURI)
		assert.Equal(t, "application/pkcs10", r.Header.Get("Content-Type"))
		assert.Equal(t, "base64", r.Header.Get("Content-Transfer-Encoding"))
		server.ServeHTTP(w, r)
	})
	for _, label := range []string{"", "temporary"} {
		key := newKey(t)
		cert, err := client.Reenrol(t.Context(), label, newCSR(t, key))
		require.NoError(t, err)
		assert.True(t, key.PublicKey.Equal(cert.PublicKey))
		_, err = Chain(cert, []*x509.Certificate{server.root.Certificate}, testNow)
		require.NoError(t, err)
	}
	assert.Equal(t, []string{
		"POST /.well-known/est/simplereenroll", "POST /.well-known/est/temporary/simplereenroll"}, asked)
}

func TestReenrolIsRefused(t *testing.T) {
	root := newCA(t, "root", nil, nil)
	other := newLeaf(t, root, nil)
	for name, test := range map[string]struct {
		label  string
		csr    []byte
		answer http.HandlerFunc
		want   error
		says   string
	}{
		"no CSR":               {"", []byte("x"), nil, nil, "certificate request"},
		"a label that is none": {"a/b", newCSR(t, newKey(t)), nil, nil, "not one path segment"},
		"refused": {"", newCSR(t, newKey(t)), func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusForbidden)
		}, nil, "403"},
		"another key": {"", newCSR(t, newKey(t)), certificates(t, other), ErrKeyMismatch, ""},
		"two":         {"", newCSR(t, newKey(t)), certificates(t, other, root.Certificate), ErrAnswer, "2 certificates"},
		"no CMS message": {"", newCSR(t, newKey(t)), func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/pkcs7-mime")
			io.WriteString(w, "AAAA")
		}, ErrAnswer, ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, client := newServer(t, func(w http.ResponseWriter, r *http.Request) {
				require.NotNil(t, test.answer, "a request was sent")
				test.answer(w, r)
			})
			cert, err := client.Reenrol(t.Context(), test.label, test.csr)
			require.ErrorContains(t, err, "est: simplereenroll: ")
			require.ErrorContains(t, err, test.says)
			if test.want != nil {
				require.ErrorIs(t, err, test.want)
			}
			assert.Nil(t, cert)
		})
	}
}

// certificates answers with these.
func certificates(t *testing.T, certs ...*x509.Certificate) http.HandlerFunc {
	message := base64Text(certsOnly(t, certs...))
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/pkcs7-mime; smime-type=certs-only")
		io.WriteString(w, message)
	}
}
