// Command espflash explains what is in the flash of an ESP32, verifies it as the chip
// does, and updates it in place.
//
//	espflash [flags] DUMP
//
// DUMP is a file with the content of the flash from its start, as esptool read_flash
// makes it, or an MTD device node on Linux. It prints the partition table, the
// applications with their versions and signatures, which one starts and why, and the
// namespaces of NVS partitions: their keys, and their values only with -values.
//
//	esptool.py read_flash 0 ALL flash.bin
//	espflash flash.bin
//	espflash -format svg flash.bin >map.svg
//
// With -trust, the digests of the keys in eFuse, and -chip it walks the chain of trust
// from the bootloader to the application and exits with status 1 where it breaks:
//
//	espflash -chip esp32c3 -trust cd83…2375 flash.bin
//
// With -install it also puts an image into the inactive slot and has it start next, as
// a device would: only one that verifies, and so that a power cut leaves the old one or
// the new one. -key names the key of an encrypted flash.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/quarklink-go/quarklink/esp/flash"
	"github.com/quarklink-go/quarklink/esp/image"
	"github.com/quarklink-go/quarklink/esp/secureboot"
	"github.com/quarklink-go/quarklink/esp/secureboot/sbecdsa"
)

func main() {
	err := run(context.Background(), os.Args[1:], os.Stdout, os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "espflash:", err)
		os.Exit(1)
	}
}

// options are what the command line says.
type options struct {
	name        string
	format      string
	chip        image.Chip
	haveChip    bool
	tableOffset int64 // 0: look for it
	trust       []secureboot.Digest
	key         []byte
	nvsKeys     []byte
	rollback    bool
	values      bool
	install     string
}

// run does what the arguments say. The report goes to out, usage and progress to
// message.
func run(ctx context.Context, args []string, out, message io.Writer) error {
	o, err := parse(args, message)
	if err != nil {
		return err
	}
	dev, err := openDevice(o.name, o.install != "")
	if err != nil {
		return err
	}
	defer dev.Close()
	c, err := openChip(dev, o)
	if err != nil {
		return err
	}
	if o.install != "" {
		if err := c.install(ctx, message); err != nil {
			return fmt.Errorf("install %s: %w", o.install, err)
		}
	}
	r, err := c.report(ctx)
	if err != nil {
		return err
	}
	if err := formats[o.format](out, r); err != nil {
		return err
	}
	if r.Trust != nil && r.Trust.Broken != "" {
		return fmt.Errorf("the chain of trust breaks: %s", r.Trust.Broken)
	}
	return nil
}

// formats are the ways in which a report is written.
var formats = map[string]func(io.Writer, *report) error{"text": writeText, "json": writeJSON, "svg": writeSVG}

func parse(args []string, message io.Writer) (o options, err error) {
	flags := flag.NewFlagSet("espflash", flag.ContinueOnError)
	flags.SetOutput(message)
	flags.Usage = func() {
		fmt.Fprintln(message, "usage: espflash [flags] DUMP")
		flags.PrintDefaults()
	}
	flags.StringVar(&o.format, "format", "text", "text, json or svg")
	chip := flags.String("chip", "", "the `chip`, such as esp32c3; what the bootloader says if absent")
	trust := flags.String("trust", "", "comma-separated `digests` of the keys in eFuse: verify the chain of trust")
	key := flags.String("key", "", "`file` with the flash encryption key, as espsecure takes it")
	nvsKeys := flags.String("nvs-keys", "", "`file` with the NVS keys; what the nvs_keys partition holds if absent")
	flags.Int64Var(&o.tableOffset, "table", 0, "`offset` of the partition table; looked for if absent")
	flags.BoolVar(&o.rollback, "rollback", false, "the bootloader was built with CONFIG_BOOTLOADER_APP_ROLLBACK_ENABLE")
	flags.BoolVar(&o.values, "values", false, "show the values in NVS, which may be secret")
	flags.StringVar(&o.install, "install", "", "put this `image` into the inactive slot, to start next; needs -trust and -chip")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() != 1 {
		flags.Usage()
		return o, errors.New("name one dump or device")
	}
	o.name = flags.Arg(0)
	if formats[o.format] == nil {
		return o, fmt.Errorf("-format %q, want text, json or svg", o.format)
	}
	if *chip != "" {
		if o.chip, err = image.ParseChip(*chip); err != nil {
			return o, fmt.Errorf("-chip: %w", err)
		}
		o.haveChip = true
	}
	for _, s := range strings.FieldsFunc(*trust, func(r rune) bool { return r == ',' }) {
		d, err := secureboot.ParseDigest(s)
		if err != nil {
			return o, fmt.Errorf("-trust: %w", err)
		}
		o.trust = append(o.trust, d)
	}
	if (len(o.trust) > 0 || o.install != "") && !o.haveChip {
		return o, errors.New("-trust needs -chip: which chip it is is not the flash's to say")
	}
	if o.install != "" && len(o.trust) == 0 {
		return o, errors.New("-install needs -trust: a device installs nothing that it cannot verify")
	}
	if o.tableOffset < 0 || o.tableOffset%flash.SectorSize != 0 {
		return o, fmt.Errorf("-table 0x%x is not a multiple of 0x%x", o.tableOffset, flash.SectorSize)
	}
	if o.key, err = readKey(*key); err == nil {
		o.nvsKeys, err = readKey(*nvsKeys)
	}
	return o, err
}

// readKey reads a file; none is named by "".
func readKey(name string) ([]byte, error) {
	if name == "" {
		return nil, nil
	}
	return os.ReadFile(name)
}

func (o options) verifier() secureboot.Verifier {
	return secureboot.Verifier{Chip: o.chip, Schemes: schemes(), Trusted: o.trust}
}

func schemes() []secureboot.Scheme { return []secureboot.Scheme{secureboot.RSA(), sbecdsa.Scheme()} }
