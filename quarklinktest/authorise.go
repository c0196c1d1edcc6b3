package quarklinktest

import (
	"crypto/sha256"
	"net/http"

	"github.com/quarklink-go/quarklink"
)

// proof is what a request's client certificate proves, as a set.
type proof uint8

const (
	byNothing   proof = 1 << iota // no client certificate
	byIdentity                    // any certificate that is not of this Server
	byTemporary                   // a temporary certificate
	byDevice                      // a device certificate
)

// caller is who sends a request, as far as its client certificate proves it.
type caller struct {
	device *device // nil if the certificate is of no device in a batch
	proves proof
	cert   *issued // nil if the Server did not issue the certificate
}

// identify finds out who asks: by the key that it has, or by the certificate
// that the Server remembers having issued, and never by a name in a certificate.
func (s *Server) identify(r *http.Request) caller {
	presented := r.TLS.PeerCertificates
	if len(presented) == 0 {
		return caller{proves: byNothing}
	}
	if mine := s.issued[sha256.Sum256(presented[0].Raw)]; mine != nil {
		return caller{mine.device, mine.proves, mine}
	}
	id, _ := quarklink.DeviceIDOf(presented[0].PublicKey) // a key of another kind is nobody's
	return caller{device: s.devices[id], proves: byIdentity}
}

// authorise decides whether the caller may make a call.
func (s *Server) authorise(c caller, accepts proof, whileRevoked bool) error {
	d := c.device
	switch {
	case d != nil && d.state == quarklink.StateRevoked && !whileRevoked:
		return refuse(http.StatusForbidden, ProblemDeviceRevoked, "the device is revoked")
	case accepts&byNothing != 0:
		return nil
	case c.proves == byNothing:
		return refuse(http.StatusForbidden, "", "this call needs a client certificate")
	case d == nil:
		return refuse(http.StatusNotFound, ProblemDeviceUnknown, "the device is in no batch")
	case accepts&c.proves == 0:
		return refuse(http.StatusForbidden, "", "this call does not take "+c.proves.String())
	case c.cert != nil && !c.cert.valid(s.now()):
		return refuse(http.StatusForbidden, "", c.proves.String()+" has expired, was revoked or is retired by a newer one")
	}
	return nil
}

func (p proof) String() string {
	switch p {
	case byIdentity:
		return "the identity certificate"
	case byTemporary:
		return "a temporary certificate"
	case byDevice:
		return "a device certificate"
	}
	return "no certificate"
}
