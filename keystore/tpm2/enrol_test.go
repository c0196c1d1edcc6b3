//go:build linux

package tpm2_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/internal/counterpart"
	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/keystore/tpm2"
	"github.com/quarklink-go/quarklink/quarklinktest"
	"github.com/quarklink-go/quarklink/store"
)

// TestEnrol takes a device with its keys in a TPM through enrolment, a power cut,
// renewal with the same and with a new key, and re-enrolment, and each time connects it to hubs.
func TestEnrol(t *testing.T) {
	for name, o := range map[string]struct {
		tpm2.Options
		tpm2.KeyOptions
	}{
		"wrapped":    {},
		"persistent": {KeyOptions: tpm2.KeyOptions{Handles: map[keystore.Role]uint32{keystore.Device: deviceHandle}}},
		"encrypted with authorization": {tpm2.Options{Encrypt: true}, tpm2.KeyOptions{
			KeyAuth: func(context.Context, keystore.Role) ([]byte, error) { return []byte("secret"), nil },
		}},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			s := start(t)
			records := store.Dir(t.TempDir())
			var later atomic.Int64 // seconds: each certificate has to outlast the one before
			server, err := quarklinktest.NewServer(quarklinktest.Options{Now: func() time.Time {
				return time.Now().Add(time.Duration(later.Load()) * time.Second)
			}})
			require.NoError(t, err)
			t.Cleanup(server.Close)
			hub, err := server.HubCertificate("hub.test")
			require.NoError(t, err)
			require.NoError(t, server.AddBatch(quarklinktest.Batch{Name: "linux", Policy: quarklinktest.Policy{
				Hub: &quarklink.Hub{Endpoint: "hub.test", Port: 8883},
			}}))
			boot := func() *quarklink.Client {
				keys := keyStore(t, open(t, s, o.Options), records, o.KeyOptions)
				cfg := server.Config(keys)
				cfg.Store = records
				client, err := quarklink.New(ctx, cfg)
				require.NoError(t, err)
				t.Cleanup(func() { client.Close() })
				return client
			}

			client := boot()
			id := client.DeviceID()
			require.NoError(t, server.AddDevices("linux", id))
			first, err := client.Enrol(ctx)
			require.NoError(t, err)
			status, err := client.Status(ctx)
			require.NoError(t, err)
			assert.Equal(t, quarklink.CodeEnrolled, status.Code())
			connectToHubs(t, client, hub, server.IssuingCertificates())

			require.NoError(t, s.PowerCycle(ctx))
			client = boot()
			assert.Equal(t, id, client.DeviceID(), "the identity survives a power cut")
			later.Add(60)
			second, err := client.Renew(ctx, quarklink.RenewOptions{})
			require.NoError(t, err)
			assert.NotEqual(t, first.Certificate.Raw, second.Certificate.Raw)
			assert.Equal(t, first.Certificate.PublicKey, second.Certificate.PublicKey)
			connectToHubs(t, client, hub, server.IssuingCertificates())

			later.Add(60)
			third, err := client.Renew(ctx, quarklink.RenewOptions{NewKey: true})
			require.NoError(t, err)
			assert.NotEqual(t, second.Certificate.PublicKey, third.Certificate.PublicKey)
			connectToHubs(t, client, hub, server.IssuingCertificates())

			require.NoError(t, s.PowerCycle(ctx))
			client = boot()
			require.NoError(t, server.Expire(id))
			fourth, err := client.Enrol(ctx)
			require.NoError(t, err)
			assert.Equal(t, third.Certificate.PublicKey, fourth.Certificate.PublicKey, "the new key stays")
			connectToHubs(t, client, hub, server.IssuingCertificates())
			assert.Len(t, holds(t, s).Persistent, len(o.Handles))
			assert.Empty(t, holds(t, s).Transient)
			assert.Empty(t, holds(t, s).Sessions)
		})
	}
}

// connectToHubs connects with mutual TLS 1.2 and 1.3 to a hub of Go's and to openssl's.
func connectToHubs(t *testing.T, client *quarklink.Client, hub tls.Certificate, issuing []*x509.Certificate) {
	t.Helper()
	hubs := map[string]func(*testing.T, uint16) string{
		"Go": func(t *testing.T, _ uint16) string { return goHub(t, hub, issuing) },
		"openssl": func(t *testing.T, version uint16) string {
			option := map[uint16]string{tls.VersionTLS12: "-tls1_2", tls.VersionTLS13: "-tls1_3"}[version]
			return counterpart.SServer(t, hub, issuing, option)
		},
	}
	for name, listen := range hubs {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			t.Run(name+"/"+tls.VersionName(version), func(t *testing.T) {
				cfg, err := client.HubTLSConfig(t.Context())
				require.NoError(t, err)
				cfg.MinVersion, cfg.MaxVersion = version, version
				conn, err := (&tls.Dialer{Config: cfg}).DialContext(t.Context(), "tcp", listen(t, version))
				require.NoError(t, err)
				defer conn.Close()
				fmt.Fprint(conn, "quark\n")
				line, err := bufio.NewReader(conn).ReadString('\n')
				require.NoError(t, err)
				assert.Equal(t, "krauq\n", line)
				assert.Equal(t, version, conn.(*tls.Conn).ConnectionState().Version)
			})
		}
	}
}

// goHub runs a server of crypto/tls that reverses one line, as openssl s_server -rev
// does, and insists on a certificate of the issuing authority.
func goHub(t *testing.T, id tls.Certificate, issuing []*x509.Certificate) string {
	t.Helper()
	roots := x509.NewCertPool()
	for _, cert := range issuing {
		roots.AddCert(cert)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{id}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots,
	})
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		if line, err := bufio.NewReader(conn).ReadString('\n'); err == nil && line == "quark\n" {
			fmt.Fprint(conn, "krauq\n")
		}
	}()
	return l.Addr().String()
}
