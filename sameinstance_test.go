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
		assert.Equal(t, test.same, here.sameAs(test.other), name)
		assert.Equal(t, test.same, test.other.sameAs(here), "%s, seen from there", name)
	}
	trusted := Instance{Endpoint: "a.example"} // by a transport that brings its trust
	assert.True(t, trusted.sameAs(trusted))
}

// root is a certificate that equals no other, which is all that counts here.
func root(name string) *x509.Certificate { return &x509.Certificate{Raw: []byte(name)} }
