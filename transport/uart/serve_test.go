package uart

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// told serves input to a tool and returns its answers and its events in words.
func told(t *testing.T, tool *Tool, input string) (output string, events []string) {
	t.Helper()
	tool.OnEvent = func(e Event) {
		text := e.Kind.String()
		for _, more := range []string{e.Key, e.DeviceID, string(e.Line)} {
			if more != "" {
				text += " " + more
			}
		}
		if e.Err != nil {
			text += ": " + e.Err.Error()
		}
		events = append(events, text)
	}
	output, _ = answer(t, tool, input, 0)
	return output, events
}

func TestToolEvents(t *testing.T) {
	tool := &Tool{SSID: "Workshop", Password: "correct horse", OnDeviceID: func(_ context.Context, id string) error {
		if id != testID {
			return errors.New("not in this batch")
		}
		return nil
	}}
	other := strings.Repeat("0", 64)
	_, events := told(t, tool, "rst:0x1 (POWERON_RESET),boot:0x13\r\n"+
		"IEF DATA\n\x00wifi_password\nI (9) wifi: password:correct horse\n"+
		"IEF DATA\n\x00ql_endpoint\nIEF DATA\n\x00ql_tunnel\n"+
		"IEF DATA\n\x00deviceID:"+testID+"\nIEF DATA\n\x00deviceID:"+other+"\nIEF DATA\n\x00deviceID:xyz\n")
	assert.Equal(t, []string{
		"console rst:0x1 (POWERON_RESET),boot:0x13",
		"reset seen",
		"asked wifi_password", "answered wifi_password",
		"console I (9) wifi: password:[redacted]",
		"asked ql_endpoint", "answered ql_endpoint: refused by the provisioning tool",
		"asked ql_tunnel", "answered ql_tunnel: not supported by the provisioning tool",
		"asked deviceID", "DeviceID " + testID, "answered deviceID",
		"asked deviceID", "DeviceID " + other + ": not in this batch", "answered deviceID: not in this batch",
		"asked deviceID", "answered deviceID: DeviceID of 3 characters, need 64",
	}, events)
	assert.Equal(t, "unknown", EventKind(99).String())
}

// The password does not show wherever it stands in a line, however long that is.
func TestFinderHides(t *testing.T) {
	const password = "correct horse"
	for before := range 2 * maxLine {
		var shown strings.Builder
		find := finder{onLine: func(line []byte) { shown.Write(line) }}
		find.hide(password)
		find.hide(password)
		require.Len(t, find.secrets, 1)
		for _, b := range []byte(strings.Repeat("x", before) + password + strings.Repeat("y", maxLine) + "\n") {
			find.add(b)
		}
		require.NotContains(t, shown.String(), "orrect hors", "after %d bytes", before)
		require.Equal(t, strings.Repeat("x", before)+redacted+strings.Repeat("y", maxLine), shown.String())
	}
	find := finder{}
	find.hide("")
	assert.Empty(t, find.secrets, "an open network")
}

// What Choose sets is for one conversation, and is checked before it is sent.
func TestToolChoose(t *testing.T) {
	calls := 0
	tool := &Tool{SSID: "for all", Choose: func(ctx context.Context, t *Tool) error {
		calls++
		switch calls {
		case 1:
			t.SSID, t.Password = "first", "of the first"
		case 2:
			return errors.New("no more parameters")
		case 3:
			t.SSID = "two\nlines"
		}
		return ctx.Err()
	}}
	ask := func(key string) string { return "IEF DATA\n\x00" + key + "\n" }
	output, events := told(t, tool, ask("wifi_ssid")+ask("wifi_password")+"of the first\n"+ask(KeyDeviceID+":"+testID)+
		ask("wifi_ssid")+ask("wifi_ssid")+ask("wifi_ssid")+"rst cause:2, boot mode:(3,6)\n"+ask("wifi_ssid"))
	assert.Equal(t, "first\nof the first\nOK\nERROR refused\nERROR refused\nfor all\nfor all\n", output)
	assert.Equal(t, 5, calls, "after the DeviceID, after each failure, after a reset")
	assert.Contains(t, events, "answered wifi_ssid: no more parameters")
	assert.Contains(t, events, "console [redacted]", "what was sent to one device is hidden from then on")
	found := false
	for _, e := range events {
		found = found || strings.Contains(e, "what ends a reply") && strings.Contains(e, fs.ErrInvalid.Error())
	}
	assert.True(t, found, "%q", events)
	assert.Equal(t, "for all", tool.SSID, "the caller's Tool is left alone")
}

// Callbacks have a time limit, and so has a device that says nothing.
func TestToolLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		device, port := newWire()
		tool := &Tool{Timeout: 2 * time.Second, Idle: time.Minute, OnDeviceID: func(ctx context.Context, _ string) error {
			<-ctx.Done()
			return ctx.Err()
		}}
		start := time.Now()
		served := make(chan error)
		go func() { served <- tool.Serve(t.Context(), port) }()
		assert.ErrorIs(t, (&Device{Port: device}).SendDeviceID(t.Context(), testID), ErrRefused)
		assert.Equal(t, 2*time.Second+20*time.Millisecond, time.Since(start))
		assert.ErrorIs(t, <-served, ErrIdle)
		assert.InDelta(t, 62, time.Since(start).Seconds(), 0.1)
		assert.True(t, port.deadline().IsZero())
	})
}

func TestToolNeedsRandom(t *testing.T) {
	err := (&Tool{Instance: make(peers)}).Check()
	assert.ErrorIs(t, err, fs.ErrInvalid)
	assert.ErrorContains(t, err, "Random")
}

// vendorDevice asks as the vendor's code does: what comes until a gap of 100 ms or
// until the buffer of 1024 bytes is full is the reply, and a NUL is put behind it.
func vendorDevice(device *end, key string) (reply string, overflow bool) {
	device.Write([]byte("IEF DATA\n\x00"))
	device.Write([]byte(key + "\n"))
	var buffer [1024]byte
	n := 0
	for n < len(buffer) {
		device.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		m, err := device.Read(buffer[n:])
		n += m
		if err != nil && n > 0 {
			break
		}
	}
	device.SetReadDeadline(time.Time{})
	return string(buffer[:n]), n == len(buffer)
}

// lineDevice waits for a line feed, for ever.
func lineDevice(device *end, key string) string {
	device.Write([]byte("IEF DATA\n\x00" + key + "\n"))
	var line []byte
	for b := make([]byte, 1); ; line = append(line, b[0]) {
		if device.Read(b); b[0] == '\n' {
			return string(line)
		}
	}
}

// Both kinds of device code get what they ask for, the root certificate that just
// fits the smaller buffer included.
func TestToolServesOtherCode(t *testing.T) {
	keys := []string{KeySSID, KeyPassword, KeyEndpoint, KeyPort, KeyRootCA, KeyDeviceID + ":" + testID}
	for _, noTerminator := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			tool := testTool(t)
			tool.RootCA = certOf(t, 766) // 1024 characters of base64: as PEM or DER, one too many
			assert.ErrorIs(t, tool.Check(), fs.ErrInvalid)
			tool.RootCA, tool.NoTerminator = certOf(t, 762), noTerminator // 1016
			device, port := newWire()
			stop := serve(t, tool, port)
			for _, key := range keys {
				reply, overflow := vendorDevice(device, key)
				assert.NotEmpty(t, reply, key)
				assert.False(t, overflow, "%s: a NUL behind the buffer", key)
				assert.Equal(t, !noTerminator, strings.HasSuffix(reply, "\n"), key)
			}
			stop()
		})
	}
	synctest.Test(t, func(t *testing.T) {
		device, port := newWire()
		stop := serve(t, testTool(t), port)
		var got []string
		for _, key := range keys {
			got = append(got, lineDevice(device, key))
		}
		assert.Equal(t, []string{"Workshop", "correct horse", "myql.quarklink.io", "6001",
			string(testFile(t, "p256.pem.b64")), "OK"}, got)
		stop()
	})
}

// Many devices stream at the same time through one Tool.
func TestToolCarriesMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		instance := make(peers)
		tool := &Tool{Instance: instance, Random: &lockedReader{seed: seeded(1)}}
		var devices sync.WaitGroup
		for n := range 10 {
			device, port := newWire()
			stop := serve(t, tool, port)
			devices.Go(func() {
				defer stop()
				c, err := (&Tunnel{Port: device, Random: seeded(byte(n))}).Dial(t.Context())
				if !assert.NoError(t, err) {
					return
				}
				fmt.Fprintf(c, "device %d", n)
				got := make([]byte, 8)
				_, err = c.Read(got)
				assert.NoError(t, err)
				assert.Equal(t, fmt.Sprintf("device %d", n), string(got))
				assert.NoError(t, c.Close())
			})
		}
		for range 10 {
			c := <-instance
			devices.Go(func() {
				buf := make([]byte, 8)
				n, _ := c.Read(buf)
				c.Write(buf[:n])
				c.Read(buf)
			})
		}
		devices.Wait()
	})
}

type lockedReader struct {
	mu   sync.Mutex
	seed interface{ Read([]byte) (int, error) }
}

func (r *lockedReader) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.seed.Read(p)
}

func TestSecret(t *testing.T) {
	tool := Tool{SSID: "Workshop", Password: "correct horse"}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
		text := fmt.Sprintf(verb, tool.Password) + fmt.Sprintf(verb, &tool.Password)
		assert.NotContains(t, text, "correct", verb)
	}
	assert.NotContains(t, fmt.Sprintf("%+v %#v", tool, tool), "correct horse")
	data, err := json.Marshal(map[string]Secret{"password": tool.Password})
	require.NoError(t, err)
	assert.JSONEq(t, `{"password": "[redacted]"}`, string(data))
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "password", tool.Password)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "password", tool.Password)
	assert.NotContains(t, log.String(), "correct")
}
