package quarklink_test

import (
	"bytes"
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

// What follows, up to the next comment that begins with "end", is README's
// program to the letter.

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
	hub, err := device.HubTLSConfig(ctx) // mutual TLS; or give your library Client.DialHub
	if err != nil {
		return err
	}
	return b.connect(hub)
}

// end of README's program.

// TestREADME compares README's program with the one above, and doc.go's with
// its lines.
func TestREADME(t *testing.T) {
	source, err := os.ReadFile("readme_test.go")
	require.NoError(t, err)
	_, program, _ := strings.Cut(string(source), "to the letter.\n\n")
	program, _, ok := strings.Cut(program, "\n// end of README's program.")
	require.True(t, ok)

	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	_, example, _ := strings.Cut(string(readme), "```go\n")
	example, _, ok = strings.Cut(example, "```")
	require.True(t, ok)
	require.Equal(t, program, example)

	manual, err := os.ReadFile("doc.go")
	require.NoError(t, err)
	_, manual, _ = bytes.Cut(manual, []byte("# Quick start"))
	manual, _, _ = bytes.Cut(manual, []byte("\n// # "))
	lines := 0
	for line := range strings.Lines(string(manual)) {
		if code, ok := strings.CutPrefix(strings.TrimRight(line, "\n"), "//\t"); ok {
			before, after, ok := strings.Cut(program, "\n\t"+code+"\n")
			require.True(t, ok, "doc.go has a line that the program does not have, or not here: %s", code)
			require.NotEqual(t, before, after)
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

// TestProgram runs README's program for four starts of a device: one update, one
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
