package quarklink_test

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/esp/image"
	"github.com/quarklink-go/quarklink/esp/secureboot"
	"github.com/quarklink-go/quarklink/keystore/software"
	"github.com/quarklink-go/quarklink/quarklinktest"
	"github.com/quarklink-go/quarklink/store"
	"github.com/quarklink-go/quarklink/transport/uart"
)

// What follows, up to the next comment that begins with "end", is a device's
// program without Run, of which doc.go shows the lines that call the library.

type board struct {
	factory bool                                  // set by the build: only at the factory is a device blank
	running quarklink.FirmwareInfo                // what runs: Version or SHA256, and Chip
	records store.Dir                             // such as "/var/lib/device"
	secret  func(context.Context) ([]byte, error) // encrypts the keys: from a fuse or a sealed blob
	uart    uart.Port
	slot    quarklink.Slot // the inactive partition
	trusted []secureboot.Digest
	restart func() error
	connect func(*tls.Config) error // your MQTT library
}

// start is what the device's program does at each start.
func (b *board) start(ctx context.Context) error {
	keys, err := software.New(b.records, software.Options{Secret: b.secret})
	if err != nil {
		return err
	}
	device, err := quarklink.New(ctx, quarklink.Config{
		KeyStore:        keys,
		Store:           b.records,
		RequireIdentity: !b.factory, // in the field an empty store is a missing mount, not a blank device
		Firmware:        b.running,  // without it nobody knows that an update has come to run
		Logger:          slog.Default(),
	})
	if err != nil {
		return err
	}
	defer device.Close()
	var ask quarklink.ProvisionOptions
	if b.factory || device.NeedsProvisioning(ask) {
		if _, err := device.Provision(ctx, b.uart, ask); err != nil {
			return err
		}
	}
	status, err := device.Status(ctx)
	if err != nil {
		return err // errors.Is(err, quarklink.ErrDeviceDoesNotExist): not in a batch yet, ask again later
	}
	if status.NeedsUpdate() {
		verifier := secureboot.Verifier{
			Chip:    image.ESP32C3,
			Schemes: []secureboot.Scheme{secureboot.RSA()},
			Trusted: b.trusted,
		}
		_, err := device.FirmwareUpdate(ctx, quarklink.FirmwareOptions{Slot: b.slot, Verifier: verifier})
		if err == nil {
			return b.restart()
		}
		slog.Error("the device keeps what it runs", "error", err)
	}
	if status.NeedsEnrolment() {
		if _, err := device.Enrol(ctx); err != nil {
			return err
		}
	}
	if status.NeedsRenewal() {
		if _, err := device.Renew(ctx, quarklink.RenewOptions{}); err != nil {
			slog.Error("the device keeps its certificate", "error", err)
		}
	}
	hub, err := device.HubTLSConfig(ctx) // mutual TLS; or give your library Client.DialHub
	if err != nil {
		return err
	}
	return b.connect(hub)
}

// end of the program by hand.

// TestREADME compares README's program with examples/device, and doc.go's lines
// with those of both programs.
func TestREADME(t *testing.T) {
	read := func(path string) string {
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		return string(text)
	}
	part := func(text, from, to string) string {
		_, after, begins := strings.Cut(text, from)
		within, _, ends := strings.Cut(after, to)
		require.True(t, begins && ends, "no text from %q to %q", from, to)
		return within
	}
	program, manual := read("examples/device/main.go"), read("doc.go")
	_, rest, _ := strings.Cut(program, "\npackage main\n")
	assert.Equal(t, "package main\n"+rest, part(read("README.md"), "```go\n", "```"))
	inOrder(t, program, part(manual, "# Quick start", "\n// # "))
	inOrder(t, part(read("readme_test.go"), "call the library.\n\n", "\n// end of"), part(manual, "# By hand", "\n// # "))
}

// inOrder reports each line of code in a manual that the program does not have
// at that place.
func inOrder(t *testing.T, program, manual string) {
	t.Helper()
	lines := 0
	for line := range strings.Lines(manual) {
		if code, ok := strings.CutPrefix(strings.TrimRight(line, "\n"), "//\t"); ok {
			_, after, ok := strings.Cut(program, "\n\t"+code+"\n")
			require.True(t, ok, "doc.go has a line that the program does not have, or not here: %s", code)
			program, lines = "\n"+after, lines+1
		}
	}
	assert.Greater(t, lines, 20)
}

// factoryTool is a provisioning tool at the other end of the board's UART, and
// counts what it is asked.
func factoryTool(t *testing.T, server *quarklinktest.Server) (uart.Port, *spy) {
	t.Helper()
	device, host := quarklinktest.Pipe()
	t.Cleanup(func() { device.Close() })
	go quarklinktest.NewTool(server, "batch", quarklink.Network{SSID: "lab"}).Serve(t.Context(), host)
	line := &spy{Port: device}
	return line, line
}

// TestProgram runs the program by hand for four starts of a device: one update, one
// enrolment, then nothing to do.
func TestProgram(t *testing.T) {
	before := slog.Default()
	defer slog.SetDefault(before)
	slog.SetDefault(slog.New(slog.DiscardHandler))
	for _, reports := range []string{"the version", "the digest"} {
		t.Run("reports "+reports, func(t *testing.T) {
			key := signingKeys()[0]
			update := signed(t, image.ESP32C3, key)
			server := newServer(t, quarklinktest.Options{})
			require.NoError(t, server.AddBatch(quarklinktest.Batch{Name: "batch", Firmware: asIs(update).Firmware}))
			flash := newTwoSlots(t, []byte("factory firmware"))
			line, asked := factoryTool(t, server)
			b := &board{records: store.Dir(filepath.Join(t.TempDir(), "device")), secret: secret, uart: line, slot: flash,
				trusted: trusted(t, key)}
			restarts, connections := 0, 0
			b.restart = func() error { restarts++; return nil }
			b.connect = func(cfg *tls.Config) error { connections++; return nil }

			for start := 1; start <= 4; start++ {
				flash.restart()
				b.factory = start == 1
				b.running = quarklink.FirmwareInfo{Version: "1.8.0", Chip: "esp32c3"}
				if running := flash.runs(t); start > 1 {
					require.Equal(t, update, running)
					b.running.Version = "1.8.1"
					if reports == "the digest" {
						b.running.SHA256 = sha256.Sum256(running)
					}
				}
				require.NoError(t, b.start(t.Context()), "start %d", start)
				calls := server.Stats().Calls
				assert.EqualValues(t, 1, calls[quarklinktest.CallFirmware], "downloads after start %d", start)
				assert.Equal(t, 1, restarts, "restarts after start %d", start)
				assert.EqualValues(t, min(start-1, 1), calls[quarklinktest.CallEnrol], "enrolments after start %d", start)
				assert.Equal(t, start-1, connections, "connections after start %d", start)
			}
			assert.Len(t, asked.asked(), 6, "questions in all: two of the Wi-Fi, three of the instance, and the DeviceID")
		})
	}
}

// TestProgramInTheField: a device whose store is gone makes no new identity, and
// an update that is refused does not keep it from enrolling.
func TestProgramInTheField(t *testing.T) {
	before := slog.Default()
	defer slog.SetDefault(before)
	slog.SetDefault(slog.New(slog.DiscardHandler))
	server := newServer(t, quarklinktest.Options{})
	require.NoError(t, server.AddBatch(quarklinktest.Batch{Name: "batch", Firmware: asIs([]byte("no image")).Firmware}))
	line, _ := factoryTool(t, server)
	connections := 0
	b := &board{records: store.Dir(filepath.Join(t.TempDir(), "device")), secret: secret, uart: line,
		slot: newSlot(t, 1<<20), trusted: trusted(t, signingKeys()[0]),
		running: quarklink.FirmwareInfo{Version: "1.8.0", Chip: "esp32c3"},
		connect: func(*tls.Config) error { connections++; return nil }}
	require.ErrorIs(t, b.start(t.Context()), fs.ErrNotExist)
	require.NoDirExists(t, string(b.records))

	b.factory = true
	for range 3 {
		require.NoError(t, b.start(t.Context()))
		b.factory = false
	}
	assert.Equal(t, 3, connections)
	calls := server.Stats().Calls
	assert.EqualValues(t, 1, calls[quarklinktest.CallFirmware], "downloads of an image that was refused")
	assert.EqualValues(t, 1, calls[quarklinktest.CallEnrol])
}
