package quarklinktest

import (
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"time"

	"github.com/quarklink-go/quarklink"
)

// snapshot is the JSON of Server.Snapshot.
type snapshot struct {
	Authorities []identity       `json:"authorities"` // in the order of pki.authorities
	Server      identity         `json:"server"`
	NextRoot    *identity        `json:"nextRoot,omitempty"` // see Server.NextRoot
	Port        uint16           `json:"port,omitempty"`     // 0: it listened nowhere
	Devices     []deviceSnapshot `json:"devices,omitempty"`
}

// identity is a certificate with its key.
type identity struct {
	Certificate []byte `json:"certificate"` // DER
	Key         []byte `json:"key"`         // PKCS #8
}

type deviceSnapshot struct {
	ID     quarklink.DeviceID `json:"id"`
	Batch  string             `json:"batch"`
	State  quarklink.State    `json:"state"`
	Issued []issuedSnapshot   `json:"issued"`

	LastSeen time.Time `json:"lastSeen,omitzero"`
	Version  string    `json:"version,omitempty"`
	SHA256   string    `json:"sha256,omitempty"`
	Outcomes []Outcome `json:"outcomes,omitempty"`
}

type issuedSnapshot struct {
	Certificate []byte   `json:"certificate"` // DER
	CSR         [32]byte `json:"csr"`
	Renews      [32]byte `json:"renews,omitzero"`
	Expired     bool     `json:"expired"`
	Revoked     bool     `json:"revoked"`
	Retired     bool     `json:"retired,omitempty"`
}

func (p *pki) authorities() []**authority {
	return []**authority{&p.root, &p.issuingRoot, &p.issuing, &p.temporary, &p.foreign}
}

// Snapshot returns what a later Server needs to go on as this instance: its
// certificates with their private keys, its port, and the devices with their
// states, certificates and outcomes, as JSON. See Options.Snapshot. Batches,
// firmware, faults, counters and temporary certificates are not in it:
// Options.State keeps the first two as well.
func (s *Server) Snapshot() ([]byte, error) {
	snap, err := s.instanceSnapshot(s.pki())
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.devices {
		snap.Devices = append(snap.Devices, d.snapshot())
	}
	return json.Marshal(snap)
}

// instanceSnapshot is a snapshot without devices.
func (s *Server) instanceSnapshot(p *pki) (*snapshot, error) {
	snap := new(snapshot)
	for _, a := range p.authorities() {
		id, err := identityOf((*a).cert, (*a).key)
		if err != nil {
			return nil, err
		}
		snap.Authorities = append(snap.Authorities, id)
	}
	var err error
	if snap.Server, err = identityOf(p.server.Leaf, p.server.PrivateKey); err != nil {
		return nil, err
	}
	if p.nextRoot != nil {
		next, err := identityOf(p.nextRoot.cert, p.nextRoot.key)
		if err != nil {
			return nil, err
		}
		snap.NextRoot = &next
	}
	if s.listener != nil {
		snap.Port = s.Instance().Port
	}
	return snap, nil
}

func (d *device) snapshot() deviceSnapshot {
	saved := deviceSnapshot{ID: d.id, Batch: d.batch.Name, State: d.state, LastSeen: d.lastSeen,
		Version: d.running.version, SHA256: d.running.sha256, Outcomes: d.outcomes}
	for _, i := range d.issued {
		saved.Issued = append(saved.Issued, issuedSnapshot{i.cert.Raw, i.csr, i.renews, i.expired, i.revoked, i.retired})
	}
	return saved
}

func identityOf(cert *x509.Certificate, key any) (identity, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return identity{}, fmt.Errorf("quarklinktest: snapshot: %w", err)
	}
	return identity{cert.Raw, der}, nil
}

func (i identity) authority() (*authority, error) {
	cert, err := x509.ParseCertificate(i.Certificate)
	if err != nil {
		return nil, err
	}
	key, err := x509.ParsePKCS8PrivateKey(i.Key)
	if err != nil {
		return nil, err
	}
	signer, ok := key.(interface {
		crypto.Signer
		Equal(crypto.PrivateKey) bool
	})
	if !ok {
		return nil, fmt.Errorf("a key of type %T", key)
	}
	return &authority{cert, signer}, nil
}

// restore makes the Server the instance that data was taken of, and returns the
// port that it had. Its devices wait for AddBatch to bring their batches.
func (s *Server) restore(data []byte) (port uint16, err error) {
	var snap snapshot
	if err := json.Unmarshal(data, &snap); err != nil {
		return 0, fmt.Errorf("snapshot: %w", err)
	}
	if err := s.restoreInstance(&snap); err != nil {
		return 0, fmt.Errorf("snapshot: %w", err)
	}
	for _, saved := range snap.Devices {
		if s.batches[saved.Batch] == nil {
			s.batches[saved.Batch] = &batch{Batch: Batch{Name: saved.Batch}, awaited: true}
		}
		if err := s.restoreDevice(saved); err != nil {
			return 0, fmt.Errorf("snapshot: device %q: %w", string(saved.ID), err)
		}
	}
	return snap.Port, nil
}

func (s *Server) restoreInstance(snap *snapshot) error {
	p := new(pki)
	all := p.authorities()
	if len(snap.Authorities) != len(all) {
		return fmt.Errorf("%d authorities instead of %d", len(snap.Authorities), len(all))
	}
	for n, a := range all {
		var err error
		if *a, err = snap.Authorities[n].authority(); err != nil {
			return err
		}
	}
	server, err := snap.Server.authority()
	if err != nil {
		return err
	}
	p.server = tls.Certificate{Certificate: [][]byte{server.cert.Raw}, PrivateKey: server.key, Leaf: server.cert}
	if snap.NextRoot != nil {
		if p.nextRoot, err = snap.NextRoot.authority(); err != nil {
			return err
		}
	}
	s.keys.Store(p)
	return nil
}

// restoreDevice makes a device as it was, in place of what is known of it.
func (s *Server) restoreDevice(saved deviceSnapshot) error {
	if _, err := quarklink.ParseDeviceID(string(saved.ID)); err != nil {
		return err
	}
	b := s.batches[saved.Batch]
	if b == nil {
		return fmt.Errorf("it is in batch %q, which there is not", saved.Batch)
	}
	d := newDevice(saved.ID, b)
	d.state, d.lastSeen, d.outcomes = saved.State, saved.LastSeen, saved.Outcomes
	d.running = running{saved.Version, saved.SHA256}
	s.devices[saved.ID] = d
	for _, i := range saved.Issued {
		cert, err := x509.ParseCertificate(i.Certificate)
		if err != nil {
			return err
		}
		known := &issued{device: d, cert: cert, proves: byDevice, csr: i.CSR, renews: i.Renews,
			expired: i.Expired, revoked: i.Revoked, retired: i.Retired}
		d.issued = append(d.issued, known)
		s.issued[sha256.Sum256(cert.Raw)] = known
	}
	return nil
}
