package quarklinktest_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/internal/counterpart"
	"github.com/quarklink-go/quarklink/quarklinktest"
)

func blob(text string) quarklinktest.Firmware {
	return quarklinktest.Firmware{Image: strings.NewReader(text), AsIs: true, Name: "blob", Version: text}
}

// TestSummaries: what is known of devices and of their batches is what happened.
func TestSummaries(t *testing.T) {
	s, d := newBatchServer(t)
	other := newDevice(t, s, "b")
	require.NoError(t, s.AddBatch(quarklinktest.Batch{Name: "a", PollAfter: time.Minute}))
	require.NoError(t, s.Publish("b", blob("2")))
	d.enrol()
	d.status("QuarkLink-Firmware", `version="1", sha256="`+strings.Repeat("ab", 32)+`"`)
	digest := s.Batches()[1].Firmware.SHA256
	tell := func(outcome string) {
		body := fmt.Sprintf(`{"sha256":"%x","outcome":%q}`, digest[:], outcome)
		r := d.do(d.client(d.identity), "POST", pathOutcome, []byte(body), "Content-Type", "application/json",
			"QuarkLink-Firmware", `version="1"`)
		require.Equal(t, 204, r.status)
	}
	tell("installed")
	tell("installed") // told twice, it counts once
	tell("confirmed")

	known, ok := s.Device(d.id)
	require.True(t, ok)
	assert.Equal(t, "b", known.Batch)
	assert.Equal(t, quarklink.StateEnrolled, known.State)
	assert.Equal(t, "1", known.Version)
	assert.Empty(t, known.SHA256)
	assert.True(t, known.Due, "an update is due")
	assert.False(t, known.LastSeen.IsZero(), "it has been seen")
	assert.Len(t, known.Certificates, 1)
	assert.Len(t, known.Outcomes, 3)
	assert.Equal(t, map[quarklinktest.Call]int{
		quarklinktest.CallTemporary: 1, quarklinktest.CallEnrol: 1, quarklinktest.CallStatus: 1, quarklinktest.CallOutcome: 3,
	}, known.Calls)

	batches := s.Batches()
	require.Len(t, batches, 2)
	assert.Equal(t, "a", batches[0].Name)
	assert.Equal(t, time.Minute, batches[0].PollAfter)
	assert.Zero(t, batches[0].Devices)
	assert.Nil(t, batches[0].Firmware)
	b := batches[1]
	assert.Equal(t, 2, b.Devices)
	assert.Equal(t, map[quarklink.State]int{quarklink.StateEnrolled: 1, quarklink.StateNotEnrolled: 1}, b.States)
	assert.Equal(t, map[string]int{"1": 1, "": 1}, b.Running)
	assert.Equal(t, map[string]int{"installed": 1, "confirmed": 1}, b.Outcomes)
	assert.InDelta(t, 1, b.Share, 0)
	assert.Zero(t, b.Current)
	assert.Equal(t, 3, b.Calls[quarklinktest.CallOutcome])
	never, ok := s.Device(other.id)
	require.True(t, ok)
	assert.True(t, never.LastSeen.IsZero(), "it has never been seen")
	_, ok = s.Device("nobody")
	assert.False(t, ok)
}

func TestRemoveAndMove(t *testing.T) {
	s, d := newBatchServer(t)
	require.NoError(t, s.AddBatch(quarklinktest.Batch{Name: "c", PollAfter: 7 * time.Second}))
	device := d.enrol()
	require.NoError(t, s.MoveDevices("c", d.id))
	status := d.status()
	assert.Equal(t, "c", status.Batch)
	assert.Equal(t, "enrolled", status.State)
	assert.InDelta(t, 7, status.PollAfter, 0)
	assert.Equal(t, 200, d.get(d.client(device), pathConnection).status)

	require.NoError(t, s.RemoveDevices(d.id, d.id))
	assert.Equal(t, "device-unknown", d.get(d.client(d.identity), pathStatus).problem(t))
	// Its certificate is a stranger's from now on.
	assert.NotEqual(t, 200, d.get(d.client(device), pathConnection).status)
	require.NoError(t, s.AddDevices("b", d.id))
	assert.Equal(t, "not_enrolled", d.status().State)
	assert.NotEqual(t, 200, d.get(d.client(device), pathConnection).status)

	require.NoError(t, s.RemoveBatch("b"))
	assert.Equal(t, "device-unknown", d.get(d.client(d.identity), pathStatus).problem(t))
	for name, err := range map[string]error{
		"remove an unknown device": s.RemoveDevices(d.id),
		"remove an unknown batch":  s.RemoveBatch("b"),
		"move an unknown device":   s.MoveDevices("c", d.id),
		"move to an unknown batch": s.MoveDevices("b"),
		"policy of no batch":       s.SetPolicy("b", quarklinktest.Policy{}),
		"poll time of no batch":    s.SetPollAfter("b", 0),
		"a negative poll time":     s.SetPollAfter("c", -1),
		"a negative lifetime":      s.SetPolicy("c", quarklinktest.Policy{Lifetime: -1}),
	} {
		assert.Error(t, err, name)
	}
}

func TestSetPolicy(t *testing.T) {
	s, d := newBatchServer(t)
	require.NoError(t, s.SetPolicy("b", quarklinktest.Policy{
		Lifetime: time.Hour, Hub: &quarklink.Hub{Endpoint: "hub.example.com", Port: 1},
	}))
	device := d.enrol()
	cert := s.Certificates(d.id)[0]
	assert.Equal(t, time.Hour+5*time.Minute, cert.NotAfter.Sub(cert.NotBefore))
	assert.Contains(t, string(d.get(d.client(device), pathConnection).body), `"endpoint":"hub.example.com"`)
	require.NoError(t, s.SetPolicy("b", quarklinktest.Policy{Hub: &quarklink.Hub{Endpoint: "else.example.com", Port: 1}}))
	assert.Contains(t, string(d.get(d.client(device), pathConnection).body), `"endpoint":"else.example.com"`)
}

// TestShare: a larger share of the same image adds devices and drops none, and
// about as many are in it as it says.
func TestShare(t *testing.T) {
	s := newServer(t, quarklinktest.Options{InMemory: true})
	var ids []quarklink.DeviceID
	for n := range 2000 {
		ids = append(ids, quarklink.DeviceID(fmt.Sprintf("%064x", n)))
	}
	require.NoError(t, s.AddBatch(quarklinktest.Batch{Name: "b", Devices: ids}))
	due := func() (in []quarklink.DeviceID) {
		for _, id := range ids {
			if d, _ := s.Device(id); d.Due {
				in = append(in, id)
			}
		}
		return in
	}
	var before []quarklink.DeviceID
	for _, share := range []float64{0.001, 0.1, 0.5, 0.9, 1} {
		f := blob("2")
		f.Share = share
		require.NoError(t, s.Publish("b", f))
		now := due()
		assert.InDelta(t, share*2000, float64(len(now)), 90, "share %v", share)
		for _, id := range before {
			require.Contains(t, now, id)
		}
		before = now
	}
	assert.Len(t, before, 2000)
	for _, share := range []float64{-0.1, 1.1} {
		f := blob("3")
		f.Share = share
		assert.Error(t, s.Publish("b", f), "share %v", share)
	}
}

func TestFaultsThatAreRefused(t *testing.T) {
	s := newServer(t, quarklinktest.Options{InMemory: true})
	status, connect := quarklinktest.CallStatus, quarklinktest.CallConnect
	for name, test := range map[string]struct {
		call  quarklinktest.Call
		fault quarklinktest.Fault
	}{
		"the zero fault":         {status, quarklinktest.Fault{}},
		"no request":             {status, quarklinktest.Delay(1).Times(0)},
		"fewer than none":        {status, quarklinktest.Delay(1).Times(-1)},
		"no such call":           {"stats", quarklinktest.Delay(1)},
		"no call":                {"", quarklinktest.Delay(1)},
		"for nobody":             {status, quarklinktest.Delay(1).For()},
		"for no batch":           {status, quarklinktest.Delay(1).InBatch("")},
		"a handshake's fault":    {status, quarklinktest.WrongCertificate()},
		"a call's fault":         {connect, quarklinktest.LoseAnswer()},
		"a device's connection":  {connect, quarklinktest.Delay(1).For("x")},
		"a batch's connection":   {connect, quarklinktest.Delay(1).InBatch("b")},
		"a connection's refusal": {connect, quarklinktest.Refuse(500, "", 0)},
	} {
		assert.Error(t, s.Fault(test.call, test.fault), name)
	}
}

func TestFaultOfOneDeviceAndBatch(t *testing.T) {
	s, d := newBatchServer(t)
	same, other := newDevice(t, s, "b"), (*rawDevice)(nil)
	require.NoError(t, s.AddBatch(quarklinktest.Batch{Name: "c"}))
	other = newDevice(t, s, "c")
	ask := func() (all []int) {
		for _, d := range []*rawDevice{d, same, other} {
			all = append(all, d.get(d.client(d.identity), pathStatus).status)
		}
		return all
	}
	require.NoError(t, s.Fault(quarklinktest.CallStatus, quarklinktest.Refuse(500, "", 0).For(d.id)))
	assert.Equal(t, []int{500, 200, 200}, ask())
	s.ClearFaults()
	require.NoError(t, s.Fault(quarklinktest.CallStatus, quarklinktest.Refuse(500, "", 0).InBatch("b")))
	assert.Equal(t, []int{500, 500, 200}, ask())
	s.ClearFaults()
	require.NoError(t, s.Fault(quarklinktest.CallStatus, quarklinktest.Refuse(500, "", 0).For(other.id).Times(1)))
	assert.Equal(t, []int{200, 200, 500}, ask())
	assert.Equal(t, []int{200, 200, 200}, ask())
}

// TestIntercept: a handler looks at a request and lets it pass, and changes what
// was answered.
func TestIntercept(t *testing.T) {
	s, d := newBatchServer(t)
	seen := 0
	require.NoError(t, s.Fault(quarklinktest.CallStatus, quarklinktest.Intercept(
		func(w http.ResponseWriter, r *http.Request, real http.Handler) {
			if seen++; seen == 1 {
				real.ServeHTTP(w, r)
				return
			}
			answer := httptest.NewRecorder()
			real.ServeHTTP(answer, r)
			w.Header().Set("Content-Type", "application/json")
			w.Write(bytes.Replace(answer.Body.Bytes(), []byte("not_enrolled"), []byte("enrolled"), 1))
		})))
	assert.Equal(t, "not_enrolled", d.status().State)
	assert.Equal(t, "enrolled", d.status().State)
	assert.Equal(t, 2, seen)
}

func TestConnectionFaults(t *testing.T) {
	connect := quarklinktest.CallConnect
	for name, test := range map[string]struct {
		fault quarklinktest.Fault
		want  string
	}{
		"handshake failure": {quarklinktest.TLSAlert(40), "remote error: tls: handshake failure"},
		"internal error":    {quarklinktest.TLSAlert(80), "remote error: tls: internal error"},
		"wrong certificate": {quarklinktest.WrongCertificate(), "certificate signed by unknown authority"},
		"cut at once":       {quarklinktest.CutConnection(1), "EOF"},
		"cut half-way":      {quarklinktest.CutConnection(1500), "EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			s, d := newBatchServer(t)
			require.NoError(t, s.Fault(connect, test.fault.Times(1)))
			_, err := try(t.Context(), d.client(d.identity), "GET", pathStatus, nil)
			require.ErrorContains(t, err, test.want)
			assert.Equal(t, 200, d.get(d.client(d.identity), pathStatus).status)
			assert.Equal(t, 1, s.Stats().Handshakes)
		})
	}
}

// TestThrottle: a body of 100 kB at 10 kB a second takes ten seconds and more of
// the bubble's time; so does what a device sends.
func TestThrottle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, d := newBatchServer(t)
		require.NoError(t, s.Publish("b", blob(strings.Repeat("x", 100_000))))
		require.NoError(t, s.Fault(quarklinktest.CallConnect, quarklinktest.Throttle(10_000)))
		c := d.client(d.identity)
		begin := time.Now()
		require.Equal(t, 200, d.get(c, pathFirmware).status)
		assert.InDelta(t, 10.5, time.Since(begin).Seconds(), 0.7)
		begin = time.Now()
		d.post(c, pathTemporary, make([]byte, 37_500)) // 50 kB of base64
		assert.InDelta(t, 5, time.Since(begin).Seconds(), 0.5)
		c.CloseIdleConnections()
	})
}

// TestHubOfTheCallers: a device meets a hub that has a certificate of the
// instance's making, and is in its revocation list once it is revoked.
func TestHubOfTheCallers(t *testing.T) {
	s := newServer(t, quarklinktest.Options{InMemory: true})
	require.NoError(t, s.AddBatch(quarklinktest.Batch{Name: "b", Policy: quarklinktest.Policy{
		Hub: &quarklink.Hub{Endpoint: "localhost", Port: 8883},
	}}))
	device, err := s.NewDevice(t.Context(), "b")
	require.NoError(t, err)
	defer device.Close()
	enrolment, err := device.Enrol(t.Context())
	require.NoError(t, err)

	cert, err := s.HubCertificate("localhost", "127.0.0.1")
	require.NoError(t, err)
	devices := x509.NewCertPool()
	for _, issuer := range s.IssuingCertificates() {
		devices.AddCert(issuer)
	}
	there, here := quarklinktest.Pipe()
	hub := tls.Server(there, &tls.Config{
		Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: devices,
	})
	cfg, err := device.HubTLSConfig(t.Context())
	require.NoError(t, err)
	go tls.Client(here, cfg).Handshake()
	require.NoError(t, hub.Handshake())
	assert.True(t, enrolment.Certificate.Equal(hub.ConnectionState().PeerCertificates[0]))

	revoked := func() bool {
		der, err := s.RevocationList()
		require.NoError(t, err)
		list, err := x509.ParseRevocationList(der)
		require.NoError(t, err)
		require.NoError(t, list.CheckSignatureFrom(s.IssuingCertificates()[0]))
		return slices.ContainsFunc(list.RevokedCertificateEntries, func(e x509.RevocationListEntry) bool {
			return e.SerialNumber.Cmp(enrolment.Certificate.SerialNumber) == 0
		})
	}
	assert.False(t, revoked())
	require.NoError(t, s.Revoke(device.DeviceID()))
	assert.True(t, revoked())
	_, err = s.HubCertificate()
	assert.Error(t, err)
}

// TestRevocationListForOpenSSL: openssl refuses a revoked device, and no other.
func TestRevocationListForOpenSSL(t *testing.T) {
	openssl := counterpart.Program(t, "openssl")
	s, d := newBatchServer(t)
	good := newDevice(t, s, "b")
	d.enrol()
	good.enrol()
	require.NoError(t, s.Revoke(d.id))
	dir := t.TempDir()
	list, err := s.RevocationList()
	require.NoError(t, err)
	write := func(name, kind string, ders ...[]byte) string {
		var text []byte
		for _, der := range ders {
			text = append(text, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})...)
		}
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, text, 0o600))
		return path
	}
	issuers := s.IssuingCertificates()
	cas := write("cas.pem", "CERTIFICATE", issuers[0].Raw, issuers[1].Raw)
	crl := write("crl.pem", "X509 CRL", list)
	verify := func(id quarklink.DeviceID) (string, error) {
		cert := write("device.pem", "CERTIFICATE", s.Certificates(id)[0].Raw)
		out, err := exec.CommandContext(t.Context(), openssl,
			"verify", "-CAfile", cas, "-CRLfile", crl, "-crl_check", cert).CombinedOutput()
		return string(out), err
	}
	out, err := verify(good.id)
	require.NoError(t, err, out)
	out, err = verify(d.id)
	require.Error(t, err)
	assert.Contains(t, out, "certificate revoked")
}
