package quarklinktest_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/esp/image"
	"github.com/quarklink-go/quarklink/quarklinktest"
)

// remembered is what a Server with a State must know after a restart.
func remembered(t *testing.T, s *quarklinktest.Server) string {
	t.Helper()
	var all strings.Builder
	fmt.Fprintln(&all, s.Instance().Endpoint, s.Instance().Port, s.Instance().Root.SerialNumber)
	for _, b := range s.Batches() {
		fmt.Fprintf(&all, "%s %v %v %+v %+v\n", b.Name, b.PollAfter, b.Share, b.Firmware, b.States)
		fmt.Fprintln(&all, "  ", b.Policy.Lifetime)
		if h := b.Policy.Hub; h != nil {
			fmt.Fprintln(&all, "  ", h.Endpoint, h.Port, len(h.Roots), h.Roots[0].SerialNumber)
		}
		if d := b.Policy.Database; d != nil {
			fmt.Fprintln(&all, "  ", d.Endpoint, d.Port, d.URI, string(d.Token))
		}
		for _, id := range s.Devices(b.Name) {
			d, _ := s.Device(id)
			fmt.Fprintf(&all, "  %s %v %s %s %v %+v\n", id, d.State, d.Version, d.SHA256, d.Due, d.Outcomes)
			for _, cert := range d.Certificates {
				fmt.Fprintln(&all, "    ", cert.SerialNumber)
			}
		}
	}
	return all.String()
}

func restart(t *testing.T, s *quarklinktest.Server, dir string) *quarklinktest.Server {
	t.Helper()
	before := remembered(t, s)
	s.Close()
	again := newServer(t, quarklinktest.Options{State: dir, Names: []string{"127.0.0.1"}})
	require.Equal(t, before, remembered(t, again))
	return again
}

// TestState lives through everything that is to be kept, with a restart after
// each step.
func TestState(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "deep", "state")
	s := newServer(t, quarklinktest.Options{State: dir, Names: []string{"127.0.0.1"}})
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	require.NoError(t, s.AddBatch(quarklinktest.Batch{
		Name: "hub", PollAfter: 20 * time.Second, SigningKey: key,
		Policy: quarklinktest.Policy{Lifetime: time.Hour, Hub: &quarklink.Hub{Endpoint: "h", Port: 1,
			Roots: s.IssuingCertificates()}},
	}))
	require.NoError(t, s.AddBatch(quarklinktest.Batch{
		Name: "db", Policy: quarklinktest.Policy{Database: &quarklink.Database{Endpoint: "d", Port: 2, URI: "/x",
			Token: "jwt"}},
	}))
	s = restart(t, s, dir)

	device, err := s.NewDevice(t.Context(), "hub", func(cfg *quarklink.Config) { cfg.Firmware.Version = "1.0.0" })
	require.NoError(t, err)
	defer device.Close()
	s = restart(t, s, dir)
	first, err := device.Enrol(t.Context())
	require.NoError(t, err)
	s = restart(t, s, dir)
	again, err := device.Enrol(t.Context()) // known: the same certificate
	require.NoError(t, err)
	assert.True(t, first.Certificate.Equal(again.Certificate))

	firmware, err := image.Minimal(image.ESP32C6, image.App{Project: "blinky", Version: "1.8.1"})
	require.NoError(t, err)
	require.NoError(t, s.Publish("hub", quarklinktest.Firmware{Image: bytes.NewReader(firmware), Share: 1}))
	s = restart(t, s, dir)
	status, err := device.Status(t.Context())
	require.NoError(t, err)
	require.NotNil(t, status.Firmware)
	assert.Equal(t, "1.8.1", status.Firmware.Version)

	require.NoError(t, s.MoveDevices("db", device.DeviceID()))
	s = restart(t, s, dir)
	require.NoError(t, s.Revoke(device.DeviceID()))
	s = restart(t, s, dir)
	require.NoError(t, s.Withdraw("hub"))
	require.NoError(t, s.SetPollAfter("hub", time.Hour))
	require.NoError(t, s.SetPolicy("db", quarklinktest.Policy{Lifetime: time.Minute}))
	s = restart(t, s, dir)
	images, err := os.ReadDir(filepath.Join(dir, "firmware"))
	require.NoError(t, err)
	assert.Empty(t, images, "an image that no batch publishes is not kept")
	require.NoError(t, s.RemoveDevices(device.DeviceID()))
	s = restart(t, s, dir)
	require.NoError(t, s.RemoveBatch("db"))
	s = restart(t, s, dir)
	assert.Len(t, s.Batches(), 1)
}

// TestStateCutShort: whatever the journal ends with, the Server is what it was
// before the last change or after it; any other damage is an error.
func TestStateCutShort(t *testing.T) {
	dir := t.TempDir()
	s := newServer(t, quarklinktest.Options{InMemory: true, State: dir})
	require.NoError(t, s.AddBatch(quarklinktest.Batch{Name: "b"}))
	require.NoError(t, s.AddDevices("b", quarklink.DeviceID(strings.Repeat("ab", 32))))
	before := remembered(t, s)
	journal := filepath.Join(dir, "journal")
	old, err := os.ReadFile(journal)
	require.NoError(t, err)
	require.NoError(t, s.SetPollAfter("b", time.Hour))
	after := remembered(t, s)
	s.Close()
	whole, err := os.ReadFile(journal)
	require.NoError(t, err)
	require.Greater(t, len(whole), len(old))

	open := func(content []byte) (string, error) {
		require.NoError(t, os.WriteFile(journal, content, 0o600))
		s, err := quarklinktest.NewServer(quarklinktest.Options{InMemory: true, State: dir})
		if err != nil {
			return "", err
		}
		defer s.Close()
		return remembered(t, s), nil
	}
	for end := len(old); end <= len(whole); end++ {
		got, err := open(whole[:end])
		require.NoError(t, err, "cut at %d", end)
		want := before
		if end == len(whole) {
			want = after
		}
		require.Equal(t, want, got, "cut at %d", end)
	}
	for at := 0; at < len(old); at += 7 {
		damaged := bytes.Clone(whole)
		damaged[at] ^= 1
		got, err := open(damaged)
		if err == nil { // a newline that is none any more makes a line longer
			t.Fatalf("byte %d damaged, and all is well: %s", at, got)
		}
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "instance.json"), []byte("{}"), 0o600))
	_, err = open(whole)
	require.Error(t, err, "an instance without keys")
}

func TestStateWithADamagedImage(t *testing.T) {
	dir := t.TempDir()
	s := newServer(t, quarklinktest.Options{InMemory: true, State: dir})
	require.NoError(t, s.AddBatch(quarklinktest.Batch{Name: "b"}))
	require.NoError(t, s.Publish("b", blob("2")))
	s.Close()
	images, err := filepath.Glob(filepath.Join(dir, "firmware", "*"))
	require.NoError(t, err)
	require.Len(t, images, 1)
	require.NoError(t, os.WriteFile(images[0], []byte("3"), 0o600))
	_, err = quarklinktest.NewServer(quarklinktest.Options{InMemory: true, State: dir})
	require.ErrorContains(t, err, "the image that was kept is damaged")
}

// TestStateThatCannotBeWritten: what could not be kept is not told to a device.
func TestStateThatCannotBeWritten(t *testing.T) {
	if _, err := os.Stat("/dev/full"); err != nil {
		t.Skip("needs /dev/full")
	}
	dir := t.TempDir()
	s := newServer(t, quarklinktest.Options{InMemory: true, State: dir})
	require.NoError(t, s.AddBatch(quarklinktest.Batch{Name: "b"}))
	d := newDevice(t, s, "b")
	c := d.client(d.temporary())
	quarklinktest.BreakState(s, "/dev/full")
	assert.Equal(t, 500, d.post(c, pathEnrol, d.csr(d.dsk)).status)
	require.Error(t, s.SetPollAfter("b", time.Hour))
}

// TestStateKilled kills a Server that enrols devices, at random moments: what it
// had answered before is known after.
func TestStateKilled(t *testing.T) {
	if dir := os.Getenv("QUARKLINKTEST_STATE"); dir != "" {
		enrolForEver(dir)
	}
	if runtime.GOOS == "wasip1" {
		t.Skip("needs processes")
	}
	dir := t.TempDir()
	told := 0
	for range 5 {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestStateKilled$")
		cmd.Env = append(os.Environ(), "QUARKLINKTEST_STATE="+dir)
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		var serials []string
		line := make([]byte, 128)
		for len(serials) < 5 { // it is killed in the middle of the sixth
			n, err := out.Read(line)
			require.NoError(t, err)
			serials = append(serials, strings.Fields(string(line[:n]))...)
		}
		cmd.Process.Kill()
		cmd.Wait()
		s := newServer(t, quarklinktest.Options{InMemory: true, State: dir})
		known := remembered(t, s)
		s.Close()
		for _, serial := range serials[:5] {
			require.Contains(t, known, serial)
			told++
		}
	}
	t.Logf("%d certificates outlived 5 kills", told)
}

// enrolForEver is the child of TestStateKilled: it prints the serial number of
// each certificate that a device has got.
func enrolForEver(dir string) {
	s, err := quarklinktest.NewServer(quarklinktest.Options{InMemory: true, State: dir})
	if err != nil {
		panic(err)
	}
	if err := s.AddBatch(quarklinktest.Batch{Name: "b"}); err != nil && len(s.Batches()) == 0 {
		panic(err)
	}
	for {
		device, err := s.NewDevice(context.Background(), "b")
		if err != nil {
			panic(err)
		}
		e, err := device.Enrol(context.Background())
		if err != nil {
			panic(err)
		}
		fmt.Println(e.Certificate.SerialNumber)
		device.Close()
	}
}
