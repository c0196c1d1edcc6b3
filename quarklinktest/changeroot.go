package quarklinktest

import (
	"crypto/x509"
	"errors"
	"fmt"
)

// NextRoot returns the root certificate that takes the place of the present one
// at [Server.ChangeRoot], and makes it at first. Until then the Server presents
// what it did before, so that devices can be told to trust both (see
// quarklink.Instance). A Snapshot and a State keep it.
func (s *Server) NextRoot() (*x509.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if next := s.pki().nextRoot; next != nil {
		return next.cert, nil
	}
	next, err := newAuthority(rootName, nil, s.now())
	if err != nil {
		return nil, fmt.Errorf("quarklinktest: next root: %w", err)
	}
	changed := *s.pki()
	changed.nextRoot = next
	if err := s.replacePKI(&changed); err != nil {
		return nil, fmt.Errorf("quarklinktest: next root: %w", err)
	}
	return next.cert, nil
}

// ChangeRoot puts [Server.NextRoot] in the place of the root certificate: from now
// on the Server presents a certificate under it, [Server.Instance] tells it, and it
// is what a Policy without Roots hands out. A device that does not trust it yet
// cannot reach the Server any more. Connections that are open go on; sessions of
// before are not resumed. Without a NextRoot it is an error, and nothing changes.
func (s *Server) ChangeRoot() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.changeRoot(); err != nil {
		return fmt.Errorf("quarklinktest: change root: %w", err)
	}
	return nil
}

func (s *Server) changeRoot() error {
	changed := *s.pki()
	if changed.nextRoot == nil {
		return errors.New("there is no next root: call NextRoot, and have the devices trust it")
	}
	var err error
	changed.root, changed.nextRoot = changed.nextRoot, nil
	if changed.server, err = changed.root.issueServer(s.now(), namesOf(changed.server.Leaf)); err != nil {
		return err
	}
	if err := s.replacePKI(&changed); err != nil {
		return err
	}
	before := s.tls.Load()
	s.tls.Store(s.tlsConfig(Options{MinTLS: before.MinVersion, TLS12: before.MaxVersion != 0}))
	return nil
}

// replacePKI stores other keys and certificates, and then uses them.
func (s *Server) replacePKI(p *pki) error {
	if s.journal != nil {
		if err := s.saveInstance(s.journal.dir, p); err != nil {
			return err
		}
	}
	s.keys.Store(p)
	return nil
}
