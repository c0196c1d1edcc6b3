package quarklink_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"io"
	"math/big"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/store"
	"github.com/quarklink-go/quarklink/transport/uart"
)

// newIntermediate is a certificate under a root that nobody has: to be pinned it
// needs no more, but its signature says nothing.
func newIntermediate(t *testing.T) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	above, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	parent := &x509.Certificate{Subject: pkix.Name{CommonName: "root above"}}
	template := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "intermediate"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<33, 0), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), above)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return cert
}

// disturbed is a tool that answers the questions for the root one after the
// other with these, then with the last of them.
func disturbed(t *testing.T, roots ...string) uart.Port {
	t.Helper()
	device, host := net.Pipe()
	t.Cleanup(func() { device.Close(); host.Close() })
	go func() {
		var line strings.Builder
		one := make([]byte, 1)
		for {
			if _, err := host.Read(one); err != nil {
				return
			}
			if one[0] != '\n' {
				line.WriteByte(one[0])
				continue
			}
			switch key, _, _ := strings.Cut(strings.TrimPrefix(line.String(), "\x00"), ":"); key {
			case "ql_endpoint":
				io.WriteString(host, "instance.example\n")
			case "ql_port":
				io.WriteString(host, "6001\n")
			case "ql_rootCA":
				io.WriteString(host, roots[0]+"\n")
				if len(roots) > 1 {
					roots = roots[1:]
				}
			case "deviceID":
				io.WriteString(host, "OK\n")
			}
			line.Reset()
		}
	}()
	return device
}

// One character of a root's base64 comes damaged, each in turn. Either that
// shows and the root is asked for again, or the root is the right one.
func TestProvisionRootWithOneCharacterChanged(t *testing.T) {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	for name, root := range map[string]*x509.Certificate{
		"self-signed": newRoot(t, "instance root"), "an intermediate": newIntermediate(t),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newClient(t, new(store.Mem))
				good := base64.StdEncoding.EncodeToString(root.Raw)
				for n := range strings.TrimRight(good, "=") {
					other := alphabet[strings.IndexByte(alphabet, good[n])^(1<<(n%6))]
					bad := good[:n] + string(other) + good[n+1:]
					_, err := c.Provision(t.Context(), disturbed(t, bad, good),
						quarklink.ProvisionOptions{NoNetwork: true, NewInstance: true})
					require.NoError(t, err, "character %d", n)
					i, err := c.Instance()
					require.NoError(t, err)
					require.True(t, i.Root.Equal(root), "character %d of %d is %c for %c", n, len(good), other, good[n])
				}
			})
		})
	}
}

// A line that changes the root each time ends the call, however often it is
// asked.
func TestProvisionRootNeverTheSame(t *testing.T) {
	var roots []string
	for range 9 {
		roots = append(roots, base64.StdEncoding.EncodeToString(newIntermediate(t).Raw))
	}
	synctest.Test(t, func(t *testing.T) {
		c := newClient(t, new(store.Mem))
		_, err := c.Provision(t.Context(), disturbed(t, roots...), quarklink.ProvisionOptions{NoNetwork: true})
		assert.ErrorIs(t, err, quarklink.ErrCommunication)
		_, err = c.Instance()
		assert.ErrorIs(t, err, quarklink.ErrNotInitialised)
	})
}

// The instance that is stored does not work, perhaps for a port that came
// damaged: NewInstance asks for another, and for nothing else.
func TestProvisionNewInstance(t *testing.T) {
	before, after := newRoot(t, "before"), newRoot(t, "after")
	synctest.Test(t, func(t *testing.T) {
		st := new(store.Mem)
		c := newClient(t, st)
		tool := &uart.Tool{Endpoint: "instance.example", Port: 1600, RootCA: before.Raw, SSID: "lab"}
		_, err := c.Provision(t.Context(), cable(t, tool), quarklink.ProvisionOptions{})
		require.NoError(t, err)
		again := quarklink.ProvisionOptions{NewInstance: true}
		assert.True(t, c.NeedsProvisioning(again))

		// It breaks off: the stored one stays.
		_, err = c.Provision(t.Context(), answer(t, map[string]string{"ql_endpoint": "other.example\n"}), again)
		require.ErrorIs(t, err, quarklink.ErrCommunication)
		i, err := newClient(t, st).Instance()
		require.NoError(t, err)
		assert.Equal(t, "instance.example", i.Endpoint)
		assert.Equal(t, uint16(1600), i.Port)

		tool = &uart.Tool{Endpoint: "other.example", Port: 6001, RootCA: after.Raw, SSID: "never asked for"}
		port := cable(t, tool)
		network, err := c.Provision(t.Context(), port, again)
		require.NoError(t, err)
		assert.Equal(t, "lab", network.SSID)
		assert.Equal(t, everything[2:], port.asked())
		for name, c := range map[string]*quarklink.Client{"at once": c, "after a restart": newClient(t, st)} {
			i, err := c.Instance()
			require.NoError(t, err)
			assert.Equal(t, "other.example", i.Endpoint, name)
			assert.Equal(t, uint16(6001), i.Port, name)
			assert.True(t, i.Root.Equal(after), name)
		}
	})
}

// A device that knows everything and has no tool at its cable starts in no time.
func TestNeedsProvisioning(t *testing.T) {
	root := newRoot(t, "instance root")
	synctest.Test(t, func(t *testing.T) {
		st := new(store.Mem)
		c := newClient(t, st)
		all, wired := quarklink.ProvisionOptions{}, quarklink.ProvisionOptions{NoNetwork: true}
		assert.True(t, c.NeedsProvisioning(all))
		assert.True(t, c.NeedsProvisioning(wired))
		_, err := c.Network()
		assert.ErrorIs(t, err, quarklink.ErrNothingStored)

		require.NoError(t, c.SetInstance(t.Context(), quarklink.Instance{Endpoint: "instance.example", Root: root}))
		assert.True(t, c.NeedsProvisioning(all), "it has no Wi-Fi")
		assert.False(t, c.NeedsProvisioning(wired))

		tool := &uart.Tool{SSID: "lab", Password: "correct horse"}
		_, err = c.Provision(t.Context(), cable(t, tool), all)
		require.NoError(t, err)
		start := time.Now()
		c = newClient(t, st)
		assert.False(t, c.NeedsProvisioning(all))
		assert.False(t, c.NeedsProvisioning(wired))
		assert.True(t, c.NeedsProvisioning(quarklink.ProvisionOptions{NewNetwork: true}))
		assert.True(t, c.NeedsProvisioning(quarklink.ProvisionOptions{NoNetwork: true, NewInstance: true}))
		network, err := c.Network()
		require.NoError(t, err)
		assert.Equal(t, quarklink.Network{SSID: "lab", Password: "correct horse"}, network)
		assert.Zero(t, time.Since(start))

		// What Provision would have taken.
		silent := answer(t, nil)
		_, err = c.Provision(t.Context(), silent, all)
		require.NoError(t, err)
		assert.GreaterOrEqual(t, time.Since(start), 15*time.Second)
		assert.Less(t, time.Since(start), 16*time.Second)

		require.NoError(t, c.ForgetInstance(t.Context()))
		assert.True(t, c.NeedsProvisioning(wired))
	})
}

// A damaged Wi-Fi and a damaged instance are there to be asked for.
func TestNeedsProvisioningWhenDamaged(t *testing.T) {
	for name, options := range map[string]quarklink.ProvisionOptions{"network": {}, "instance": {NoNetwork: true}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st := new(store.Mem)
				tool := &uart.Tool{Endpoint: "instance.example", RootCA: newRoot(t, "root").Raw, SSID: "lab"}
				_, err := newClient(t, st).Provision(t.Context(), cable(t, tool), quarklink.ProvisionOptions{})
				require.NoError(t, err)
				require.NoError(t, st.Put(t.Context(), name, []byte("half a rec")))

				c := newClient(t, st)
				assert.True(t, c.NeedsProvisioning(options))
				_, networkErr := c.Network()
				_, instanceErr := c.Instance()
				if name == "network" {
					require.ErrorIs(t, networkErr, quarklink.ErrStorage)
					require.ErrorIs(t, networkErr, store.ErrDamaged)
				} else {
					require.ErrorIs(t, instanceErr, quarklink.ErrStorage)
				}
				_, err = c.Provision(t.Context(), cable(t, tool), options)
				require.NoError(t, err)
				assert.False(t, c.NeedsProvisioning(quarklink.ProvisionOptions{}))
				network, err := c.Network()
				require.NoError(t, err)
				assert.Equal(t, "lab", network.SSID)
			})
		})
	}
}
