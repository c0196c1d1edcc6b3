package quarklinktest

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/keystore/software"
	"github.com/quarklink-go/quarklink/store"
)

// Config returns a quarklink.Config with which a device that has these keys
// reaches the Server: with its instance, its clock and, if it listens on no TCP
// port, its [Server.Carrier]. The caller may change it; what it leaves out, the
// Store above all, is the caller's to add.
func (s *Server) Config(keys keystore.KeyStore) quarklink.Config {
	i := s.Instance()
	cfg := quarklink.Config{KeyStore: keys, Instance: &i, Now: s.now}
	if s.tls.Load().MaxVersion == tls.VersionTLS12 {
		cfg.MinTLS = tls.VersionTLS12
	}
	if s.listener == nil {
		cfg.Transport = s.Carrier()
	} else if _, tcp := s.listener.Addr().(*net.TCPAddr); !tcp {
		cfg.Transport = s.Carrier()
	}
	return cfg
}

// NewDevice returns a device with new software keys, kept in memory, that is in
// the batch and has not been enrolled. change, if any, changes the Config of its
// client first. Whoever makes a device closes it.
func (s *Server) NewDevice(ctx context.Context, batch string, change ...func(*quarklink.Config)) (*quarklink.Client, error) {
	device, err := s.newDevice(ctx, change)
	if err == nil {
		if err = s.AddDevices(batch, device.DeviceID()); err != nil {
			err = errors.Join(err, device.Close())
		}
	}
	if err != nil {
		return nil, fmt.Errorf("quarklinktest: new device: %w", err)
	}
	return device, nil
}

func (s *Server) newDevice(ctx context.Context, change []func(*quarklink.Config)) (*quarklink.Client, error) {
	var secret [32]byte
	rand.Read(secret[:])
	records := new(store.Mem)
	keys, err := software.New(records, software.Options{
		Secret:     func(context.Context) ([]byte, error) { return secret[:], nil },
		Iterations: 1, // a random secret of this length needs no more
	})
	if err != nil {
		return nil, err
	}
	cfg := s.Config(keys)
	cfg.Store = records
	for _, c := range change {
		c(&cfg)
	}
	return quarklink.New(ctx, cfg)
}
