package quarklink

import (
	"crypto/x509"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestSameInstance(t *testing.T) {
	a, b, c := root("a"), root("b"), root("c")
	here := Instance{Endpoint: "a.example", Port: 6000, Root: a, Roots: []*x509.Certificate{b}}
	for name, test := range map[string]struct {
		other Instance
		same  bool
	}{
		"itself":                  {here, true},
		"on another port":         {Instance{Endpoint: "a.example", Port: 443, Root: a}, true},
		"in other letters":        {Instance{Endpoint: "A.Example", Root: a}, true},
		"with its second root":    {Instance{Endpoint: "a.example", Root: b}, true},
		"with it further down":    {Instance{Endpoint: "a.example", Root: c, Roots: []*x509.Certificate{a}}, true},
		"with another root":       {Instance{Endpoint: "a.example", Root: c}, false},
		"without a root":          {Instance{Endpoint: "a.example"}, false},
		"another with its root":   {Instance{Endpoint: "b.example", Root: a}, false},
		"nothing":                 {Instance{}, false},
		"another, with its roots": {Instance{Endpoint: "b.example", Root: a, Roots: []*x509.Certificate{b}}, false},
	} {
		assert.Equal(t, test.same, boundTo(here).same(boundTo(test.other)), name)
		assert.Equal(t, test.same, boundTo(test.other).same(boundTo(here)), "%s, seen from there", name)
	}
	again := &x509.Certificate{Raw: []byte("a, issued anew"), RawSubjectPublicKeyInfo: a.RawSubjectPublicKeyInfo}
	assert.True(t, boundTo(here).same(boundTo(Instance{Endpoint: "a.example", Root: again})))
	trusted := Instance{Endpoint: "a.example"} // by a transport that brings its trust
	assert.True(t, boundTo(trusted).same(boundTo(trusted)))
}

// root is a certificate over a key of its own, which is all that counts here.
func root(name string) *x509.Certificate {
	return &x509.Certificate{Raw: []byte(name), RawSubjectPublicKeyInfo: []byte(name)}
}
