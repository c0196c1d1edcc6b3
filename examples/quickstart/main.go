// Command quickstart plays the life of a device in one process: blank, it makes
// its identity, learns its Wi-Fi and its instance over a serial line, tells its
// DeviceID, asks for its status, enrols, and installs a signed firmware image.
// The instance, the provisioning tool and the serial line are in memory; keys,
// protocols, certificates and signatures are real.
//
//	go run ./examples/quickstart
//	go run ./examples/quickstart -cable
//	go run ./examples/quickstart -image app.bin -trust 3fa9…c1 -chip esp32c3
//	go run ./examples/quickstart -instance https://127.0.0.1:6000 -root root.pem
//
// With -image it installs an image signed for Secure Boot V2 by Espressif's
// tools; -trust is the SHA-256 digest of the signing key as it stands in eFuse.
// With -state DIR the device keeps its state, and a second run finds it enrolled.
// With -keystore atecc608 or esp32ds its keys are in a model of that chip, with
// -keystore tpm2 in a TPM 2.0: swtpm, which has to be installed.
// With -cable the device has no network: all of it goes through the serial line,
// TLS end to end, by way of the provisioning tool.
// With -tamper the image is changed after it was signed: the device refuses it,
// and the command fails.
//
// With -instance the instance is a running one. If it is examples/instance,
// -control is where the device is added and the image is published; without it
// the command says how to add the device and waits.
//
// The exit code is 0, 1 for a failure, 2 for a command line that cannot be
// obeyed, and 130 after an interrupt.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/esp/secureboot"
	"github.com/quarklink-go/quarklink/esp/secureboot/sbecdsa"
	"github.com/quarklink-go/quarklink/transport/uart"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run is the command, without the process around it. It returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	s, err := parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		err = printHelp(stdout)
	case err != nil:
		fmt.Fprintf(stderr, "quickstart: %v\nRun with -h for the flags.\n", err)
		return 2
	default:
		err = live(ctx, s, stdout)
	}
	switch {
	case err == nil:
		return 0
	case ctx.Err() != nil:
		fmt.Fprintln(stderr, "quickstart: interrupted")
		return 130
	}
	fmt.Fprintln(stderr, "quickstart:", err)
	return 1
}

func printHelp(stdout io.Writer) error {
	var text strings.Builder
	text.WriteString(synopsis)
	flags := new(options).flagSet()
	flags.SetOutput(&text)
	flags.PrintDefaults()
	_, err := io.WriteString(stdout, text.String())
	return err
}

// play is one run: a device, its instance, and where it says what happens.
type play struct {
	settings
	*screen
	files    files
	openKeys opener
	tpm      chipTPM
	instance instance
	device   *quarklink.Client
	line     *cable       // of -cable
	tunnel   *uart.Tunnel // through it
}

// live runs the life of the device.
func live(ctx context.Context, s settings, stdout io.Writer) error {
	if err := s.open(); err != nil {
		return err
	}
	p := &play{settings: s, screen: newScreen(stdout)}
	var err error
	if p.files, err = openFiles(s.state); err != nil {
		return err
	}
	defer p.files.close()
	p.tpm.play = p
	defer p.tpm.close()
	return patiently(ctx, func() error { return p.run(ctx) })
}

// patience is how long an interrupted run may take to end tidily.
const patience = 200 * time.Millisecond

// patiently calls f, and returns a little after ctx has ended even if f has not:
// making an RSA key takes seconds and no context.
func patiently(ctx context.Context, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-done:
		return err
	case <-time.After(patience):
		return ctx.Err()
	}
}

func (p *play) run(ctx context.Context) error {
	err := errors.Join(
		p.files.keep("chip", p.kind.String()),
		p.files.keep("instance", p.place()))
	if err != nil {
		return err
	}
	p.openKeys = p.newOpener()
	start := p.startInProcess
	if p.url != "" {
		start = p.useRunning
	}
	if p.instance, err = start(); err != nil {
		return err
	}
	defer p.instance.close()
	if p.cable {
		p.useCable(ctx)
		defer p.line.unplug()
	}
	if err := p.powerUp(ctx, false); err != nil {
		return err
	}
	defer func() { p.device.Close() }()
	for _, step := range []func(context.Context) error{p.provision, p.join, p.enrol, p.update, p.summary} {
		if err := step(ctx); err != nil {
			return err
		}
		if p.screen.err != nil {
			return fmt.Errorf("print what happens: %w", p.screen.err)
		}
	}
	if p.line != nil {
		p.leaveCable()
	}
	return nil
}

// powerUp starts the device, which finds its keys and its state or, unless this is
// a restart, makes them.
func (p *play) powerUp(ctx context.Context, restart bool) error {
	running, installed, err := p.files.running()
	if err != nil {
		return err
	}
	keys, err := p.openKeys(ctx)
	if err != nil {
		return err
	}
	p.device, err = quarklink.New(ctx, quarklink.Config{
		KeyStore:        keys,
		RequireIdentity: restart,
		Store:           p.files.records,
		Transport:       p.carrier(),
		Firmware:        quarklink.FirmwareInfo{Chip: p.kind.String(), SHA256: running},
	})
	if err != nil {
		return err
	}
	if installed {
		p.say("power up", "%s, runs the image %x…", p.kind, running[:4])
	} else {
		p.say("power up", "%s, runs its factory firmware", p.kind)
	}
	p.say("identity", "DeviceID %s", p.device.DeviceID())
	return nil
}

// provision is the device's conversation with the provisioning tool, if there is
// anything to ask.
func (p *play) provision(ctx context.Context) error {
	if !p.device.NeedsProvisioning(quarklink.ProvisionOptions{}) {
		network, err := p.device.Network()
		if err != nil {
			return err
		}
		i, err := p.device.Instance()
		p.say("UART", "nothing to ask: Wi-Fi %q and instance %s:%d are stored", network.SSID, i.Endpoint, i.Port)
		return err
	}
	line := p.line
	if line == nil {
		line = p.plugIn(ctx)
		defer line.unplug()
	}
	network, err := p.device.Provision(ctx, line.device, quarklink.ProvisionOptions{})
	if err != nil {
		return err
	}
	i, err := p.device.Instance()
	if err != nil {
		return err
	}
	p.say("UART", "blank, so asked the tool: Wi-Fi %q, instance %s:%d, root %q",
		network.SSID, i.Endpoint, i.Port, i.Root.Subject.CommonName)
	p.say("UART", "sent the DeviceID; the tool has acknowledged it")
	return nil
}

func (p *play) join(ctx context.Context) error { return p.instance.join(ctx, p.device) }

// status asks how the device stands, and says what follows.
func (p *play) status(ctx context.Context) (quarklink.Status, error) {
	s, err := p.device.Status(ctx)
	if err != nil {
		return s, err
	}
	todo := "nothing to do"
	switch {
	case s.State == quarklink.StateRevoked:
		todo = "stop until an operator allows a new enrolment"
	case s.NeedsUpdate():
		todo = fmt.Sprintf("install %s, %d bytes", nameOf(*s.Firmware), s.Firmware.Size)
	case s.NeedsEnrolment():
		todo = "enrol"
	case s.FirmwareRefused:
		todo = "the image on offer was refused before"
	}
	p.say("status", "%v (code %d): %s", s.State, int(s.Code()), todo)
	return s, nil
}

// nameOf names an image by what is said of it, which may be nothing.
func nameOf(m quarklink.Manifest) string {
	if name := strings.TrimSpace(m.Name + " " + m.Version); name != "" {
		return name
	}
	return "an image without a name"
}

func (p *play) enrol(ctx context.Context) error {
	s, err := p.status(ctx)
	if err != nil {
		return err
	}
	if !s.NeedsEnrolment() {
		e, err := p.device.Enrolment()
		if err != nil {
			return err
		}
		p.say("enrol", "already enrolled until %s", e.Certificate.NotAfter.Format(time.DateOnly))
		return nil
	}
	before, counted := p.instance.stats()
	e, err := p.device.Enrol(ctx)
	if err != nil {
		return err
	}
	handshakes := ""
	if after, _ := p.instance.stats(); counted {
		handshakes = fmt.Sprintf("; new TLS handshakes: %d", after.Handshakes-before.Handshakes)
	}
	p.say("enrol", "certificate of %q until %s%s", e.Certificate.Issuer.CommonName,
		e.Certificate.NotAfter.Format(time.DateOnly), handshakes)
	switch {
	case e.Hub != nil:
		if _, err := p.device.HubTLSConfig(ctx); err != nil {
			return err
		}
		p.say("hub", "%s: ready for mutual TLS with the device key", e.Hub.Addr())
	case e.Database != nil:
		p.say("database", "%s:%d", e.Database.Endpoint, e.Database.Port)
	}
	return p.instance.save()
}

// update publishes an image, and has the device install it if that is due.
func (p *play) update(ctx context.Context) error {
	trusted, err := p.publish(ctx)
	if err != nil {
		return err
	}
	s, err := p.status(ctx)
	if err != nil {
		return err
	}
	if !s.NeedsUpdate() && !s.FirmwareRefused {
		p.say("update", "none due")
		return nil
	}
	if trusted == nil {
		p.say("update", "left alone: -trust says whose signature the device accepts")
		return nil
	}
	bar := &progress{screen: p.screen}
	done, err := p.device.FirmwareUpdate(ctx, quarklink.FirmwareOptions{
		Slot: p.files.slot(),
		Verifier: secureboot.Verifier{
			Chip:    p.kind,
			Schemes: []secureboot.Scheme{secureboot.RSA(), sbecdsa.Scheme()},
			Trusted: []secureboot.Digest{*trusted},
		},
		Progress: bar.show,
		Again:    true, // whoever starts this command wants to see it
	})
	bar.end()
	if err != nil {
		p.say("update", "refused: the device keeps what it runs")
		return err
	}
	p.say("verify", "read back: signed for %s by the trusted key %s…", p.kind, trusted.String()[:8])
	p.say("activate", "%s", nameOf(done.Manifest))

	p.device.Close()
	if err := p.powerUp(ctx, true); err != nil {
		return fmt.Errorf("restart: %w", err)
	}
	_, err = p.status(ctx)
	return err
}

func (p *play) summary(context.Context) error {
	e, err := p.device.Enrolment()
	if err != nil {
		return err
	}
	running, _, err := p.files.running()
	if err != nil {
		return err
	}
	counts := ""
	if stats, counted := p.instance.stats(); counted {
		counts = fmt.Sprintf("; TLS handshakes: %d, requests: %d", stats.Handshakes, stats.Requests)
	}
	p.say("summary", "device %s…, certificate until %s, firmware %x…%s",
		p.device.DeviceID()[:8], e.Certificate.NotAfter.Format(time.DateOnly), running[:4], counts)
	return nil
}
