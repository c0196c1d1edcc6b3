// Command quickstart plays the life of a device in one process: blank, it makes
// its identity, learns its Wi-Fi and its instance over a serial line, tells its
// DeviceID, asks for its status, enrols, and installs a signed firmware image.
// The instance, the provisioning tool and the serial line are in memory; keys,
// protocols, certificates and signatures are real.
//
//	go run ./examples/quickstart
//	go run ./examples/quickstart -image app.bin -trust 3fa9…c1 -chip esp32c3
//
// With -image it installs an image signed for Secure Boot V2 by Espressif's
// tools; -trust is the SHA-256 digest of the signing key as it stands in eFuse.
// With -state DIR the device keeps its state, and a second run finds it enrolled.
// With -keystore atecc608 or esp32ds its keys are in a model of that chip.
// With -tamper the image is changed after it was signed: the device refuses it,
// and the command fails.
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

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/esp/image"
	"github.com/quarklink-go/quarklink/esp/secureboot"
	"github.com/quarklink-go/quarklink/esp/secureboot/sbecdsa"
	"github.com/quarklink-go/quarklink/quarklinktest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		os.Exit(1)
	}
}

// options are what the command line says.
type options struct {
	image, state string
	keyStore     string
	trust        secureboot.Digest
	chip         image.Chip
	tamper       bool
}

func parseOptions(args []string, out io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet("quickstart", flag.ContinueOnError)
	flags.SetOutput(out)
	flags.StringVar(&o.image, "image", "", "install this signed image; needs -trust and -chip")
	trust := flags.String("trust", "", "`digest` of the signing key that the device trusts, 64 hexadecimal digits")
	chip := flags.String("chip", "", "the device's `chip`, such as esp32c3; never taken from the image")
	flags.StringVar(&o.state, "state", "", "keep the state of the device and of its instance in this `folder`")
	flags.StringVar(&o.keyStore, "keystore", "software", "where the keys are: software, or a model of atecc608 or esp32ds")
	flags.BoolVar(&o.tamper, "tamper", false, "change one bit of the image after it was signed")
	if err := flags.Parse(args); err != nil {
		return options{}, err
	}
	if flags.NArg() > 0 {
		return options{}, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if (o.image != "") != (*trust != "") {
		return options{}, errors.New("-image and -trust belong together: an image is installed for its signature alone")
	}
	if o.image != "" && *chip == "" {
		return options{}, errors.New("-image needs -chip: which chip a device has is not the image's to say")
	}
	o.chip = image.ESP32C3
	var err error
	if *chip != "" {
		if o.chip, err = image.ParseChip(*chip); err != nil {
			return options{}, fmt.Errorf("-chip: %w", err)
		}
	}
	if *trust != "" {
		if o.trust, err = secureboot.ParseDigest(*trust); err != nil {
			return options{}, fmt.Errorf("-trust: %w", err)
		}
	}
	return o, nil
}

const batch = "quickstart"

// play is one run: a device, its instance, and where it tells what happens.
type play struct {
	options
	out      io.Writer
	files    files
	openKeys opener
	instance *quarklinktest.Server
	device   *quarklink.Client
}

func run(ctx context.Context, args []string, out io.Writer) error {
	o, err := parseOptions(args, out)
	if err != nil {
		return err
	}
	p := &play{options: o, out: out}
	if p.files, err = openFiles(o.state); err != nil {
		return err
	}
	defer p.files.close()
	if err := p.files.keepChip(o.chip.String()); err != nil {
		return err
	}
	if p.openKeys, err = p.newOpener(o.keyStore); err != nil {
		return err
	}
	if err := p.startInstance(); err != nil {
		return err
	}
	defer p.instance.Close()
	if err := p.powerUp(ctx, false); err != nil {
		return err
	}
	defer func() { p.device.Close() }()
	for _, step := range []func(context.Context) error{p.provision, p.enrol, p.update} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return p.summary()
}

// say prints one line: the step, and what was decided.
func (p *play) say(step, format string, args ...any) {
	fmt.Fprintf(p.out, "%-10s %s\n", step, fmt.Sprintf(format, args...))
}

func (p *play) startInstance() error {
	snapshot, err := p.files.snapshot()
	if err != nil {
		return err
	}
	p.instance, err = quarklinktest.NewServer(quarklinktest.Options{InMemory: true, Snapshot: snapshot})
	if err != nil {
		return fmt.Errorf("start the instance that is kept in %s (delete the folder to start over): %w", p.files.dir, err)
	}
	if err := p.instance.AddBatch(quarklinktest.Batch{Name: batch}); err != nil {
		return err
	}
	how := "a new one"
	if snapshot != nil {
		how = "the one of the last run"
	}
	if err := p.files.saveSnapshot(p.instance); err != nil {
		return err
	}
	p.say("instance", "%s:%d in this process, %s", p.instance.Instance().Endpoint, p.instance.Instance().Port, how)
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
		Transport:       p.instance.Carrier(),
		Firmware:        quarklink.FirmwareInfo{Chip: p.chip.String(), SHA256: running},
	})
	if err != nil {
		return err
	}
	if installed {
		p.say("power up", "%s, runs the image %x…", p.chip, running[:4])
	} else {
		p.say("power up", "%s, runs its factory firmware", p.chip)
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
	device, host := quarklinktest.Pipe()
	tool := quarklinktest.NewTool(p.instance, batch, quarklink.Network{SSID: "workshop", Password: "correct horse"})
	ctx, cancel := context.WithCancel(ctx)
	served := make(chan struct{})
	go func() { tool.Serve(ctx, host); close(served) }()
	defer func() { cancel(); <-served; device.Close(); host.Close() }()

	network, err := p.device.Provision(ctx, device, quarklink.ProvisionOptions{})
	if err != nil {
		return err
	}
	i, err := p.device.Instance()
	if err != nil {
		return err
	}
	p.say("UART", "blank, so asked the tool: Wi-Fi %q, instance %s:%d, root %q",
		network.SSID, i.Endpoint, i.Port, i.Root.Subject.CommonName)
	p.say("UART", "sent the DeviceID; the tool put it into batch %q", batch)
	return nil
}

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
		todo = fmt.Sprintf("install %s %s, %d bytes", s.Firmware.Name, s.Firmware.Version, s.Firmware.Size)
	case s.NeedsEnrolment():
		todo = "enrol"
	case s.FirmwareRefused:
		todo = "the image on offer was refused before"
	}
	p.say("status", "%v (code %d): %s", s.State, int(s.Code()), todo)
	return s, nil
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
		p.say("enrol", "already enrolled until %s", e.Certificate.NotAfter.Format("2006-01-02"))
		return nil
	}
	before := p.instance.Stats().Handshakes
	e, err := p.device.Enrol(ctx)
	if err != nil {
		return err
	}
	p.say("enrol", "certificate of %q until %s; new TLS handshakes: %d", e.Certificate.Issuer.CommonName,
		e.Certificate.NotAfter.Format("2006-01-02"), p.instance.Stats().Handshakes-before)
	if _, err := p.device.HubTLSConfig(ctx); err != nil {
		return err
	}
	p.say("hub", "%s: ready for mutual TLS with the device key", e.Hub.Addr())
	return p.files.saveSnapshot(p.instance)
}

// update publishes an image, and has the device install it if that is due.
func (p *play) update(ctx context.Context) error {
	img, trust, err := p.firmware()
	if err != nil {
		return err
	}
	if err := p.instance.Publish(batch, quarklinktest.Firmware{Image: img, AsIs: true}); err != nil {
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
	bar := &progress{out: p.out}
	done, err := p.device.FirmwareUpdate(ctx, quarklink.FirmwareOptions{
		Slot: p.files.slot(),
		Verifier: secureboot.Verifier{
			Chip:    p.chip,
			Schemes: []secureboot.Scheme{secureboot.RSA(), sbecdsa.Scheme()},
			Trusted: []secureboot.Digest{trust},
		},
		Progress: bar.show,
		Again:    true, // whoever starts this command wants to see it
	})
	bar.end()
	if err != nil {
		p.say("update", "refused: the device keeps what it runs")
		return err
	}
	p.say("verify", "read back: signed for %s by the trusted key %s…", p.chip, trust.String()[:8])
	p.say("activate", "%s %s", done.Manifest.Name, done.Manifest.Version)

	p.device.Close()
	if err := p.powerUp(ctx, true); err != nil {
		return fmt.Errorf("restart: %w", err)
	}
	_, err = p.status(ctx)
	return err
}

func (p *play) summary() error {
	e, err := p.device.Enrolment()
	if err != nil {
		return err
	}
	running, _, err := p.files.running()
	if err != nil {
		return err
	}
	stats := p.instance.Stats()
	p.say("summary", "device %s…, certificate until %s, firmware %x…; TLS handshakes: %d, requests: %d",
		p.device.DeviceID()[:8], e.Certificate.NotAfter.Format("2006-01-02"), running[:4], stats.Handshakes, stats.Requests)
	return nil
}

// progress is a bar that grows on one line.
type progress struct {
	out  io.Writer
	last int // steps drawn; 0: nothing yet
}

const barSteps = 40

func (b *progress) show(done, total int64) {
	steps := int(done * barSteps / total)
	if b.last > 0 && steps < b.last {
		return
	}
	b.last = steps + 1
	fmt.Fprintf(b.out, "\r%-10s [%-*s] %3d %%", "download", barSteps, strings.Repeat("#", steps), done*100/total)
}

func (b *progress) end() {
	if b.last > 0 {
		fmt.Fprintln(b.out)
	}
}
