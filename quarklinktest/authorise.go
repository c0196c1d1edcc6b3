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

// authorise finds out who asks and whether it may: by the key that it has, or
// by the certificate that the Server remembers having issued, and never by a
// name in a certificate.
func (s *Server) authorise(q *request, accepts proof, whileRevoked bool) error {
	proves, id, mine := byNothing, quarklink.DeviceID(""), (*issued)(nil)
	if shown := q.TLS.PeerCertificates; len(shown) > 0 {
		if mine = s.issued[sha256.Sum256(shown[0].Raw)]; mine != nil {
			proves, id = mine.proves, mine.device.id
		} else {
			proves = byIdentity
			id, _ = quarklink.DeviceIDOf(shown[0].PublicKey) // a key of another kind is nobody's
		}
	}
	d := s.devices[id]
	q.device = d
	switch {
	case d != nil && d.state == quarklink.StateRevoked && !whileRevoked:
		return refuse(http.StatusForbidden, ProblemDeviceRevoked, "the device is revoked")
	case accepts&byNothing != 0:
		return nil
	case proves == byNothing:
		return refuse(http.StatusForbidden, "", "this call needs a client certificate")
	case d == nil:
		return refuse(http.StatusNotFound, ProblemDeviceUnknown, "the device is in no batch")
	case accepts&proves == 0:
		return refuse(http.StatusForbidden, "", "this call does not take "+proves.String())
	case mine != nil && !mine.valid(s.now()):
		return refuse(http.StatusForbidden, "", proves.String()+" has expired or was revoked")
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
