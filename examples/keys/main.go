// Keys shows the keys that a device has, and checks whatever holds them.
//
//	keys -i2c /dev/i2c-1 -address 0x35
//	keys -software /var/lib/device/keys
//	keys -tpm /dev/tpmrm0 -records /var/lib/device/state -generate
//
// With -tpm it opens a TPM 2.0 and the keys that it has wrapped. With -i2c it opens an ATECC608 on an I2C bus of Linux, which must run at
// 100 kHz; with -software a folder of keys in software, which it makes if it is
// empty. It prints the DeviceID, the public key, and of a chip the serial
// number, the locks and the limits. Then it runs the conformance check that
// every key store passes, which makes some hundred signatures.
//
// It changes nothing in a chip unless told to: -provision gives a blank chip its
// configuration, for ever, after showing what it will write and asking;
// -generate makes a key where there is none; -lock then locks the enrolment
// key's slot, for ever, after asking. Until that is done anyone who can write to
// the bus can replace the device's identity. The slot of a device key of its own
// (-device-slot) stays open, so that the key can be renewed.
//
// Several processes may use one chip if each of them takes the same lock around
// every call: here an flock(2) of the bus device, which [atecc608.Options].Lock
// takes and gives back.
package main

import (
	"bufio"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"strconv"
	"strings"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/keystore/atecc608"
	"github.com/quarklink-go/quarklink/keystore/atecc608/goecdsa"
	"github.com/quarklink-go/quarklink/keystore/keystoretest"
	"github.com/quarklink-go/quarklink/keystore/software"
	"github.com/quarklink-go/quarklink/store"
	"periph.io/x/conn/v3/i2c/i2creg"
	"periph.io/x/host/v3"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	p := program{in: os.Stdin, out: os.Stdout, open: openBus, lock: lockFile}
	os.Exit(p.exit(p.run(ctx, os.Args[1:]), os.Stderr))
}

const synopsis = `Usage: keys -i2c BUS [flags]
       keys -software DIRECTORY [flags]
       keys -tpm DEVICE -records DIRECTORY [flags]

Shows the keys that a device has, and checks whatever holds them.

`

// usageError is a command line that cannot be obeyed.
type usageError struct{ error }

// exit says how the run ended and returns the exit code.
func (p *program) exit(err error, stderr io.Writer) int {
	switch usage := (usageError{}); {
	case err == nil:
		return 0
	case errors.As(err, &usage):
		fmt.Fprintf(stderr, "keys: %v\nRun with -h for the flags.\n", err)
		return 2
	}
	fmt.Fprintln(stderr, "keys:", err)
	return 1
}

// openBus opens a bus of periph.io.
func openBus(path string) (atecc608.Bus, io.Closer, error) {
	if _, err := host.Init(); err != nil {
		return nil, nil, err
	}
	bus, err := i2creg.Open(path)
	return bus, bus, err
}

type program struct {
	in    io.Reader
	out   io.Writer
	open  func(path string) (atecc608.Bus, io.Closer, error)
	lock  func(path string) func(context.Context) (func(), error) // nil: none
	clock atecc608.Clock                                          // nil: the system's
}

type settings struct {
	i2c, software, secret string
	tpm, records          string
	address               uint16
	slots                 atecc608.Slots

	generate, provision, lock bool
}

func (p *program) parse(args []string) (settings, error) {
	var s settings
	address := ""
	flags := flag.NewFlagSet("keys", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // exit prints an error, once
	flags.StringVar(&s.i2c, "i2c", "", "`bus` of an ATECC608, such as /dev/i2c-1")
	flags.StringVar(&address, "address", "0x60", "the chip's I2C address, 7 bits")
	flags.IntVar(&s.slots.Enrolment, "slot", 0, "the chip's slot for the enrolment key")
	flags.IntVar(&s.slots.Device, "device-slot", 0, "the chip's slot for the device key")
	flags.BoolVar(&s.generate, "generate", false, "make a key in the chip or TPM where there is none")
	flags.BoolVar(&s.provision, "provision", false, "give a blank chip its configuration, FOR EVER, after asking")
	flags.BoolVar(&s.lock, "lock", false, "lock the enrolment key's slot, FOR EVER, after asking")
	flags.StringVar(&s.software, "software", "", "`directory` of keys in software")
	flags.StringVar(&s.secret, "secret", "", "`file` with the secret of these keys (default: beside the directory, with .secret added to its name)")
	flags.StringVar(&s.tpm, "tpm", "", "`device` of a TPM 2.0, such as /dev/tpmrm0, or a TPM's Unix socket; needs -records")
	flags.StringVar(&s.records, "records", "", "`directory` of the keys that the TPM has wrapped")
	err := flags.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		var text strings.Builder
		text.WriteString(synopsis)
		flags.SetOutput(&text)
		flags.PrintDefaults()
		if _, failed := io.WriteString(p.out, text.String()); failed != nil {
			err = failed
		}
		return s, err
	}
	if err != nil {
		return s, usageError{err}
	}
	n, err := strconv.ParseUint(address, 0, 16)
	if err != nil {
		return s, usageError{fmt.Errorf("-address %q: %w", address, err)}
	}
	s.address = uint16(n)
	where := 0
	for _, path := range []string{s.i2c, s.software, s.tpm} {
		if path != "" {
			where++
		}
	}
	if where != 1 || flags.NArg() > 0 {
		return s, usageError{errors.New("need one of -i2c, -software and -tpm, and no other arguments")}
	}
	if (s.tpm == "") != (s.records == "") {
		return s, usageError{errors.New("-tpm and -records belong together: the TPM keeps no keys, it wraps them")}
	}
	return s, nil
}

func (p *program) run(ctx context.Context, args []string) error {
	s, err := p.parse(args)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	if s.tpm != "" {
		return p.inTPM(ctx, s)
	}
	if s.software != "" {
		keys, err := openSoftware(s)
		if err != nil {
			return err
		}
		if err := p.show(ctx, keys); err != nil {
			return err
		}
		return p.check(ctx, func(context.Context) (keystore.KeyStore, error) { return openSoftware(s) })
	}
	bus, closer, err := p.open(s.i2c)
	if err != nil {
		return fmt.Errorf("open bus %s: %w", s.i2c, err)
	}
	defer closer.Close()
	return p.chip(ctx, bus, s)
}

// openSoftware opens the folder. The secret must not lie in it; where it is
// safe is for the device to say.
func openSoftware(s settings) (keystore.KeyStore, error) {
	if s.secret == "" {
		s.secret = s.software + ".secret"
	}
	secret, err := os.ReadFile(s.secret)
	if errors.Is(err, fs.ErrNotExist) {
		secret = make([]byte, 32)
		if _, err = rand.Read(secret); err == nil {
			err = os.WriteFile(s.secret, secret, 0o600)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("secret: %w", err)
	}
	return software.New(store.Dir(s.software), software.Options{
		Secret: func(context.Context) ([]byte, error) { return secret, nil },
	})
}

func (p *program) chip(ctx context.Context, bus atecc608.Bus, s settings) error {
	opts := atecc608.Options{Address: s.address, ECDSA: goecdsa.P256{}, Clock: p.clock}
	if p.lock != nil {
		opts.Lock = p.lock(s.i2c)
	}
	chip, err := atecc608.Open(ctx, bus, opts)
	if err != nil {
		return err
	}
	if s.provision {
		if err := p.provision(ctx, chip, s.slots); err != nil {
			return err
		}
	}
	if err := p.describe(ctx, chip, s.slots); err != nil {
		return err
	}
	var keys keystore.KeyStore = chip.KeyStore(s.slots)
	if !s.generate {
		keys = readOnly{keys}
	}
	if err := p.show(ctx, keys); err != nil {
		return err
	}
	if s.lock {
		if err := p.lockSlot(ctx, chip, s.slots.Enrolment); err != nil {
			return err
		}
	}
	config, err := chip.Config(ctx)
	if err != nil {
		return err
	}
	if config.SlotConfig(s.slots.Enrolment).LimitedUse() || config.SlotConfig(s.slots.Device).LimitedUse() {
		fmt.Fprintln(p.out, "conformance:    not checked, because the key's uses are limited")
		return nil
	}
	return p.check(ctx, func(context.Context) (keystore.KeyStore, error) { return keys, nil })
}

// readOnly hides that a key store can make keys.
type readOnly struct{ keystore.KeyStore }

// provision shows the plan, and carries it out if the answer is the chip's
// serial number.
func (p *program) provision(ctx context.Context, chip *atecc608.Chip, slots atecc608.Slots) error {
	have, err := chip.Config(ctx)
	if err != nil {
		return err
	}
	want, err := have.WithSigningKeys(slots.Enrolment, slots.Device)
	if err != nil {
		return err
	}
	plan, err := chip.Plan(ctx, want)
	if err != nil {
		return err
	}
	fmt.Fprint(p.out, plan)
	if plan.Done() {
		return nil
	}
	if err := p.ask(plan.Have); err != nil {
		return err
	}
	return chip.Provision(ctx, plan)
}

// lockSlot locks the enrolment key's slot if the answer is the chip's serial
// number.
func (p *program) lockSlot(ctx context.Context, chip *atecc608.Chip, slot int) error {
	config, err := chip.Config(ctx)
	if err != nil {
		return err
	}
	if config.SlotLocked(slot) {
		fmt.Fprintf(p.out, "slot %-2d         is locked already\n", slot)
		return nil
	}
	fmt.Fprintf(p.out, "lock slot %d FOR EVER: its key can never be replaced. This cannot be undone.\n", slot)
	if err := p.ask(config); err != nil {
		return err
	}
	return chip.LockSlot(ctx, slot)
}

// ask wants the chip's serial number for an answer.
func (p *program) ask(config atecc608.Config) error {
	fmt.Fprintf(p.out, "Type the serial number to go on: ")
	answer := bufio.NewScanner(p.in)
	if !answer.Scan() || answer.Text() != fmt.Sprintf("%x", config.Serial()) {
		return errors.New("nothing was done: that was not the serial number")
	}
	return nil
}

// describe prints what the chip's configuration says.
func (p *program) describe(ctx context.Context, chip *atecc608.Chip, slots atecc608.Slots) error {
	config, err := chip.Config(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(p.out, "chip:           ATECC608, revision %x, address 0x%02x\n", config.Revision(), chip.Address())
	fmt.Fprintf(p.out, "serial number:  %x\n", config.Serial())
	fmt.Fprintf(p.out, "configuration:  %s\n", lock(config.Locked()))
	fmt.Fprintf(p.out, "data zone:      %s\n", lock(config.DataLocked()))
	for slot := range 16 {
		if slot != slots.Enrolment && slot != slots.Device {
			continue
		}
		sc, kc := config.SlotConfig(slot), config.KeyConfig(slot)
		fmt.Fprintf(p.out, "slot %-2d         %s; SlotConfig %04x, KeyConfig %04x; signs: %s, new keys: %s\n", slot,
			lock(config.SlotLocked(slot)), uint16(sc), uint16(kc), yes(sc.ExternalSign()), yes(sc.GenKey() && !config.SlotLocked(slot)))
		if !sc.LimitedUse() {
			fmt.Fprintf(p.out, "slot %-2d         uses are not limited\n", slot)
			continue
		}
		used, err := chip.Counter(ctx, 0)
		if err != nil {
			return err
		}
		limit := "2097151"
		if match, enabled := config.CountMatch(); enabled {
			limit = fmt.Sprintf("the number in slot %d", match)
		}
		fmt.Fprintf(p.out, "slot %-2d         uses are limited: %d of %s\n", slot, used, limit)
	}
	return nil
}

func lock(locked bool) string {
	if locked {
		return "locked"
	}
	return "not locked"
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// show prints the DeviceID and the public keys.
func (p *program) show(ctx context.Context, keys keystore.KeyStore) error {
	enrolment, err := signer(ctx, keys, keystore.Enrolment)
	if err != nil {
		return err
	}
	id, err := quarklink.DeviceIDOf(enrolment.Public())
	if err != nil {
		return err
	}
	fmt.Fprintf(p.out, "DeviceID:       %s\n", id)
	device, err := signer(ctx, keys, keystore.Device)
	if err != nil {
		return err
	}
	if err := p.printKey("enrolment key", enrolment); err != nil {
		return err
	}
	if same, ok := enrolment.Public().(interface{ Equal(crypto.PublicKey) bool }); ok && same.Equal(device.Public()) {
		fmt.Fprintln(p.out, "device key:     the same")
		return nil
	}
	return p.printKey("device key", device)
}

func (p *program) printKey(name string, s crypto.Signer) error {
	der, err := x509.MarshalPKIXPublicKey(s.Public())
	if err != nil {
		return err
	}
	fmt.Fprintf(p.out, "%s:\n%s", name, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	return nil
}

// signer opens a key, or makes it if it is absent and the store may.
func signer(ctx context.Context, keys keystore.KeyStore, role keystore.Role) (crypto.Signer, error) {
	s, err := keys.Signer(ctx, role)
	if !errors.Is(err, fs.ErrNotExist) {
		return s, err
	}
	if generator, ok := keys.(keystore.Generator); ok {
		return generator.Generate(ctx, role)
	}
	return nil, fmt.Errorf("%w; -generate makes one", err)
}

func (p *program) check(ctx context.Context, open func(context.Context) (keystore.KeyStore, error)) error {
	if err := keystoretest.Test(ctx, open); err != nil {
		return fmt.Errorf("conformance: %w", err)
	}
	fmt.Fprintln(p.out, "conformance:    passed")
	return nil
}
