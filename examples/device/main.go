//go:build unix

// Command device is what a device with Linux runs: it is provisioned over a
// serial line, enrols and renews, connects to its hub, and takes updates.
package main

import (
	"context"
	"flag"
	"io"
	"log/slog"
	"os"
	"syscall"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/keystore/software"
	"github.com/quarklink-go/quarklink/store"
)

var version = "1.0.0"                 // set by -ldflags "-X main.version=1.0.1"
var updates quarklink.FirmwareOptions // your board's Slot and Verifier; without them there are no updates

func main() {
	dir := flag.String("state", "/var/lib/device", "`directory` of keys and records")
	secret := flag.String("secret", os.Getenv("CREDENTIALS_DIRECTORY")+"/device", "`file` of 32 random bytes")
	tty := flag.String("tty", "/dev/ttyS1", "serial `line` to the provisioning tool, in raw mode")
	factory := flag.Bool("factory", false, "make an identity; without it a missing one is an error")
	flag.Parse()
	ctx := context.Background() // the program may be killed at any moment: what it stores survives that
	records := store.Dir(*dir)
	read := func(context.Context) ([]byte, error) { return os.ReadFile(*secret) }
	keys, err := software.New(records, software.Options{Secret: read})
	check(err)
	device, err := quarklink.New(ctx, quarklink.Config{KeyStore: keys, Store: records, RequireIdentity: !*factory,
		Firmware: quarklink.FirmwareInfo{Version: version}, Logger: slog.Default()})
	check(err)
	check(device.Run(ctx, quarklink.Loop{
		Firmware: updates,
		Restart:  func(context.Context, quarklink.Firmware) error { return nil }, // systemd starts it again; or reboot here
		Provision: func(ctx context.Context, o quarklink.ProvisionOptions) error {
			line, err := os.OpenFile(*tty, os.O_RDWR|syscall.O_NOCTTY, 0)
			if err == nil {
				defer line.Close()
				_, err = device.Provision(ctx, line, o)
			}
			return err
		},
		Hub: func(ctx context.Context, _ *quarklink.Enrolment) error {
			conn, err := device.DialHub(ctx) // mutual TLS: give it to your MQTT library
			if err == nil {
				context.AfterFunc(ctx, func() { conn.Close() })
				_, err = io.Copy(io.Discard, conn) // your application, until the connection ends
			}
			return err
		},
	}))
}

func check(err error) {
	if err != nil {
		slog.Error("device", "error", err)
		os.Exit(1)
	}
}
