package quarklink_test

import (
	"context"
	"crypto/tls"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/esp/image"
	"github.com/quarklink-go/quarklink/esp/secureboot"
	"github.com/quarklink-go/quarklink/keystore/software"
	"github.com/quarklink-go/quarklink/quarklinktest"
	"github.com/quarklink-go/quarklink/store"
	"github.com/quarklink-go/quarklink/transport/uart"
)

// embed is README's example, compiled and run.
func embed(ctx context.Context, uartPort uart.Port, folder string, sealedSecret func(context.Context) ([]byte, error),
	slot quarklink.Slot, digests []secureboot.Digest, use func(*tls.Config)) error {
	records := store.Dir(folder)
	keys, err := software.New(records, software.Options{Secret: sealedSecret})
	if err != nil {
		return err
	}
	device, err := quarklink.New(ctx, quarklink.Config{KeyStore: keys, Store: records, Logger: slog.Default()})
	if err != nil {
		return err
	}
	defer device.Close()
	if _, err := device.Provision(ctx, uartPort, quarklink.ProvisionOptions{}); err != nil { // asks only what it does not know
		return err
	}
	status, err := device.Status(ctx)
	if err != nil {
		return err // errors.Is(err, quarklink.ErrDeviceDoesNotExist): not in a batch yet, ask again later
	}
	if status.Firmware != nil {
		verifier := secureboot.Verifier{Chip: image.ESP32C3, Schemes: []secureboot.Scheme{secureboot.RSA()}, Trusted: digests}
		_, err := device.FirmwareUpdate(ctx, quarklink.FirmwareOptions{Slot: slot, Verifier: verifier})
		return err // then restart
	}
	if status.NeedsEnrolment() {
		if _, err := device.Enrol(ctx); err != nil {
			return err
		}
	}
	tlsConfig, err := device.HubTLSConfig(ctx) // mutual TLS for your MQTT library
	if err != nil {
		return err
	}
	use(tlsConfig)
	return nil
}

func TestREADME(t *testing.T) {
	slog.SetLogLoggerLevel(slog.LevelError)
	defer slog.SetLogLoggerLevel(slog.LevelInfo)
	server := newServer(t, quarklinktest.Options{})
	must(t, server.AddBatch(quarklinktest.Batch{Name: "batch"}))
	device, host := quarklinktest.Pipe()
	defer device.Close()
	go quarklinktest.NewTool(server, "batch", quarklink.Network{SSID: "lab"}).Serve(t.Context(), host)
	var hub *tls.Config
	if err := embed(t.Context(), device, t.TempDir(), secret, newSlot(t, 1<<20), nil, func(cfg *tls.Config) { hub = cfg }); err != nil || hub == nil {
		t.Errorf("hub %v, %v", hub, err)
	}

	// Each line of README's example is a line of embed.
	readme, err := os.ReadFile("README.md")
	must(t, err)
	source, err := os.ReadFile("readme_test.go")
	must(t, err)
	_, example, _ := strings.Cut(string(readme), "```go\n")
	example, _, _ = strings.Cut(example, "```")
	lines := strings.Split(string(source), "\n")
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	if len(example) < 500 {
		t.Fatalf("README's example is %q", example)
	}
	for line := range strings.Lines(example) {
		line = strings.TrimSpace(line)
		if !slices.Contains(lines, strings.ReplaceAll(line, `store.Dir("/var/lib/device")`, "store.Dir(folder)")) {
			t.Errorf("README has a line that is not compiled: %s", line)
		}
	}
}
