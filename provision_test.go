package quarklink_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/keystore/software"
	"github.com/quarklink-go/quarklink/store"
	"github.com/quarklink-go/quarklink/transport/uart"
)

// spy notes what the device sends.
type spy struct {
	uart.Port
	mu   sync.Mutex
	sent bytes.Buffer
}

func (s *spy) Write(p []byte) (int, error) {
	s.mu.Lock()
	s.sent.Write(p)
	s.mu.Unlock()
	return s.Port.Write(p)
}

// asked returns the keys that were asked for, in order.
func (s *spy) asked() []string {
	var keys []string
	for _, request := range strings.Split(s.sent.String(), "IEF DATA\n\x00")[1:] {
		key, _, _ := strings.Cut(strings.TrimSuffix(request, "\n"), ":")
		keys = append(keys, key)
	}
	return keys
}

// cable connects a device to a tool that serves until the test ends.
func cable(t *testing.T, tool *uart.Tool) *spy {
	t.Helper()
	device, host := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		tool.Serve(t.Context(), host)
	}()
	t.Cleanup(func() { device.Close(); host.Close(); <-done })
	return &spy{Port: device}
}

// everything is what a blank device asks for, in this order.
var everything = []string{"wifi_ssid", "wifi_password", "ql_endpoint", "ql_port", "ql_rootCA", "deviceID"}

func TestProvisionBlankDevice(t *testing.T) {
	root := newRoot(t, "instance root")
	synctest.Test(t, func(t *testing.T) {
		var told string
		tool := &uart.Tool{Endpoint: "instance.example", Port: 6001, RootCA: root.Raw, SSID: "lab",
			Password:   "correct horse",
			OnDeviceID: func(_ context.Context, id string) error { told = id; return nil }}
		port := cable(t, tool)
		st := new(store.Mem)
		c := newClient(t, st)
		_, err := c.Instance()
		assert.ErrorIs(t, err, quarklink.ErrNotInitialised, "Instance of a blank device")
		_, err = c.Enrolment()
		assert.ErrorIs(t, err, quarklink.ErrNothingStored, "Enrolment of a blank device")
		network, err := c.Provision(t.Context(), port, quarklink.ProvisionOptions{})
		require.NoError(t, err)
		assert.Equal(t, quarklink.Network{SSID: "lab", Password: "correct horse"}, network)
		assert.Equal(t, everything, port.asked())
		assert.Equal(t, string(c.DeviceID()), told, "what the tool was told")

		// After a restart everything is known, and only the DeviceID is sent.
		again := newClient(t, st)
		assert.Equal(t, c.DeviceID(), again.DeviceID(), "after a restart")
		i, err := again.Instance()
		require.NoError(t, err)
		assert.Equal(t, "instance.example", i.Endpoint)
		assert.EqualValues(t, 6001, i.Port)
		assert.Equal(t, root.Raw, i.Root.Raw)
		_, err = again.Enrolment()
		assert.ErrorIs(t, err, quarklink.ErrNoEnrolment, "Enrolment of a provisioned device")
		port.sent.Reset()
		network, err = again.Provision(t.Context(), port, quarklink.ProvisionOptions{})
		require.NoError(t, err)
		assert.Equal(t, "lab", network.SSID)
		assert.Equal(t, []string{"deviceID"}, port.asked())

		// The Wi-Fi did not work: ask for another one.
		tool.SSID = "field"
		port = cable(t, tool)
		network, err = again.Provision(t.Context(), port, quarklink.ProvisionOptions{NewNetwork: true})
		require.NoError(t, err)
		assert.Equal(t, "field", network.SSID)
	})
}

func TestProvisionWithoutWiFi(t *testing.T) {
	root := newRoot(t, "instance root")
	synctest.Test(t, func(t *testing.T) {
		port := cable(t, &uart.Tool{Endpoint: "instance.example", RootCA: root.Raw})
		c := newClient(t, new(store.Mem))
		_, err := c.Provision(t.Context(), port, quarklink.ProvisionOptions{NoNetwork: true})
		require.NoError(t, err)
		assert.Equal(t, everything[2:], port.asked())
		i, err := c.Instance()
		require.NoError(t, err)
		assert.EqualValues(t, quarklink.DefaultPort, i.Port)
	})
}

// answer serves a tool that gives each key its line, whatever it is, and
// nothing where there is none.
func answer(t *testing.T, lines map[string]string) uart.Port {
	t.Helper()
	device, host := net.Pipe()
	t.Cleanup(func() { device.Close(); host.Close() })
	go func() {
		var all []byte
		buf := make([]byte, 256)
		for {
			n, err := host.Read(buf)
			if err != nil {
				return
			}
			all = append(all, buf[:n]...)
			for {
				_, rest, ok := bytes.Cut(all, []byte("IEF DATA\n\x00"))
				key, rest, ended := bytes.Cut(rest, []byte("\n"))
				if !ok || !ended {
					break
				}
				all = rest
				name, _, _ := strings.Cut(string(key), ":")
				io.WriteString(host, lines[name])
			}
		}
	}()
	return device
}

func TestProvisionRefuses(t *testing.T) {
	root := newRoot(t, "instance root")
	good := map[string]string{
		"wifi_ssid": "lab\n", "wifi_password": "correct horse\n", "ql_endpoint": "instance.example\n",
		"ql_port":   "6000\n",
		"ql_rootCA": base64.StdEncoding.EncodeToString(root.Raw) + "\n", "deviceID": "OK\n",
	}
	for _, test := range []struct {
		name, key, line string
		ok              bool
	}{
		{"all is well", "deviceID", "OK\n", true},
		{"the tool refuses the device", "deviceID", "ERROR refused\n", false},
		{"nobody acknowledges the DeviceID", "deviceID", "", true},
		{"the tool leaves the port out", "ql_port", "ERROR refused\n", true},
		{"the tool does not know the port", "ql_port", "ERROR unsupported\n", true},
		{"the tool says nothing of the port", "ql_port", "", true},
		{"a port of 70000", "ql_port", "70000\n", false},
		{"half a reply", "ql_endpoint", "", false},
		{"a root that is no certificate", "ql_rootCA", base64.StdEncoding.EncodeToString([]byte("root")) + "\n", false},
		{"a root with the outer shape of a certificate alone", "ql_rootCA",
			base64.StdEncoding.EncodeToString([]byte{0x30, 7, 0x30, 0, 0x30, 0, 3, 1, 0}) + "\n", false},
		{"a root cut in half", "ql_rootCA", good["ql_rootCA"][:200] + "\n", false},
		{"an SSID of 33 bytes", "wifi_ssid", strings.Repeat("x", 33) + "\n", false},
		{"a password of 5 characters", "wifi_password", "short\n", false},
		{"a refusal", "wifi_ssid", "ERROR refused\n", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				lines := map[string]string{}
				for key, line := range good {
					lines[key] = line
				}
				lines[test.key] = test.line
				st := new(store.Mem)
				c := newClient(t, st)
				_, err := c.Provision(t.Context(), answer(t, lines), quarklink.ProvisionOptions{})
				if test.ok {
					require.NoError(t, err)
					return
				}
				require.ErrorIs(t, err, quarklink.ErrCommunication)
				assert.NotContains(t, err.Error(), "correct horse")
				assert.NotContains(t, err.Error(), "short")
				// Nothing is lost: a good tool is asked only for the rest.
				_, err = c.Provision(t.Context(), answer(t, good), quarklink.ProvisionOptions{})
				assert.NoError(t, err, "afterwards, with a good tool")
			})
		})
	}
}

func TestProvisionObeysContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClient(t, new(store.Mem))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := c.Provision(ctx, answer(t, nil), quarklink.ProvisionOptions{})
		var e *quarklink.Error
		assert.ErrorIs(t, err, context.DeadlineExceeded)
		assert.NotErrorIs(t, err, quarklink.ErrCommunication)
		require.ErrorAs(t, err, &e)
		assert.Zero(t, e.Code)
	})
}

// TestProvisionPowerCut cuts power at every write of a provisioning; the next
// start carries on with the same identity.
func TestProvisionPowerCut(t *testing.T) {
	root := newRoot(t, "instance root")
	tool := &uart.Tool{Endpoint: "instance.example", RootCA: root.Raw, SSID: "lab", Password: "correct horse"}
	synctest.Test(t, func(t *testing.T) {
		eachCut(t, func(t *testing.T, st store.Creator, cut *cutStore) error {
			provision := func(st store.Creator) (quarklink.DeviceID, error) {
				keys, err := software.New(st, software.Options{Secret: secret, Iterations: 1})
				if err != nil {
					return "", err
				}
				c, err := quarklink.New(t.Context(), quarklink.Config{KeyStore: keys, Store: st})
				if err != nil {
					return "", err
				}
				defer c.Close()
				_, err = c.Provision(t.Context(), cable(t, tool), quarklink.ProvisionOptions{})
				return c.DeviceID(), err
			}
			before, err := provision(cut)
			if !cut.dead {
				return err
			}
			if !errors.Is(err, errCut) {
				return fmt.Errorf("the cut shows as %w", err)
			}
			after, err := provision(st)
			if err == nil && before != "" && before != after {
				return fmt.Errorf("identity %s became %s", before, after)
			}
			return err
		})
	})
}
