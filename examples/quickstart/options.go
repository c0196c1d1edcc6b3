package main

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/url"
	"os"
	"strconv"
	"time"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/esp/image"
	"github.com/quarklink-go/quarklink/esp/secureboot"
	"github.com/quarklink-go/quarklink/keystore/esp32ds"
)

// options are what the command line says.
type options struct {
	image  string
	trust  string
	chip   string
	tamper bool
	cable  bool

	state    string
	keyStore string

	url     string
	root    string
	control string
	batch   string
	wait    time.Duration
}

const synopsis = `Usage: quickstart [flags]

Plays the life of a device: blank, it makes its keys, is provisioned, enrols with
its instance, and installs a signed firmware image. With no flags everything is
in this process; with -instance the instance is a running one (examples/instance).

`

// flagSet has one line for each flag.
func (o *options) flagSet() *flag.FlagSet {
	f := flag.NewFlagSet("quickstart", flag.ContinueOnError)
	f.SetOutput(io.Discard) // main prints an error, once
	f.Usage = func() {}

	f.StringVar(&o.image, "image", "", "install this signed image, a `file`; needs -trust and -chip")
	f.StringVar(&o.trust, "trust", "", "`digest` of the signing key that the device trusts, 64 hexadecimal digits")
	f.StringVar(&o.chip, "chip", "", "the device's `chip`, never taken from the image (default esp32c3)")
	f.BoolVar(&o.tamper, "tamper", false, "change one bit of the image after it was signed")

	f.BoolVar(&o.cable, "cable", false, "the device has no network: everything goes through its serial line")

	f.StringVar(&o.state, "state", "", "keep the state of the device and of its instance in this `directory`")
	f.StringVar(&o.keyStore, "keystore", "software", "where the keys are: software, tpm2 (runs swtpm), or a model of atecc608 or esp32ds")

	f.StringVar(&o.url, "instance", "", "`URL` of a running instance, https://HOST:PORT; needs -root")
	f.StringVar(&o.root, "root", "", "`file` with the root certificate of that instance, in PEM")
	f.StringVar(&o.control, "control", "", "`URL` at which examples/instance is controlled: add the device and publish the image there")
	f.StringVar(&o.batch, "batch", "quickstart", "`name` of the device's batch")
	f.DurationVar(&o.wait, "wait", 5*time.Minute, "without -control, how long to wait until somebody has added the device")
	return f
}

// settings are a command line that has been checked, and what it stands for.
type settings struct {
	options
	kind     image.Chip
	trusted  *secureboot.Digest // nil: the key with which this run signs its own image
	firmware []byte             // nil: an image that this run makes
	at       quarklink.Instance // of -instance
}

// parse returns an error for a command line that cannot be obeyed. It opens
// nothing.
func parse(args []string) (settings, error) {
	var s settings
	flags := s.flagSet()
	if err := flags.Parse(args); err != nil {
		return settings{}, err
	}
	if flags.NArg() > 0 {
		return settings{}, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if err := s.combination(); err != nil {
		return settings{}, err
	}
	if err := s.values(); err != nil {
		return settings{}, err
	}
	return s, nil
}

// combination refuses flags that contradict each other.
func (o *options) combination() error {
	remote := o.url != ""
	for _, refused := range []struct {
		when bool
		text string
	}{
		{o.image != "" && o.trust == "", "-image needs -trust: an image is installed only for its signature"},
		{o.image != "" && o.chip == "", "-image needs -chip: which chip a device has is not the image's to say"},
		{o.trust != "" && o.image == "" && !remote, "-trust needs -image, or an -instance that has one"},
		{remote && o.root == "", "-instance needs -root: the device trusts one root certificate and no other"},
		{o.root != "" && !remote, "-root needs -instance"},
		{o.control != "" && !remote, "-control needs -instance"},
		{o.image != "" && remote && o.control == "", "-image with -instance needs -control, where the image is published"},
		{o.tamper && remote && o.control == "", "-tamper with -instance needs -control, where the image is published"},
		{o.trust != "" && o.image == "" && o.control != "", "-trust with -control needs -image: without one this run signs its own"},
		{o.batch == "", "-batch must not be empty"},
		{o.wait <= 0, "-wait must be more than 0"},
		{o.state != "" && o.keyStore != "software" && o.keyStore != "tpm2",
			"-state needs -keystore software or tpm2: the model of a chip does not outlive the run"},
	} {
		if refused.when {
			return errors.New(refused.text)
		}
	}
	return nil
}

// values reads what the flags hold.
func (s *settings) values() (err error) {
	s.kind = image.ESP32C3
	if name := s.chip; name != "" {
		if s.kind, err = image.ParseChip(name); err != nil {
			return fmt.Errorf("-chip: %w", err)
		}
	}
	if text := s.trust; text != "" {
		trust, err := secureboot.ParseDigest(text)
		if err != nil {
			return fmt.Errorf("-trust: %w", err)
		}
		s.trusted = &trust
	}
	switch s.keyStore {
	case "software", "atecc608", "tpm2":
	case "esp32ds":
		if esp32ds.Chip(s.kind).MaxBits() == 0 {
			return fmt.Errorf("-keystore esp32ds: an %s has no Digital Signature peripheral", s.kind)
		}
	default:
		return fmt.Errorf("-keystore %s: need software, tpm2, atecc608 or esp32ds", s.keyStore)
	}
	if s.url != "" {
		u, err := checkURL(s.url, "https")
		if err != nil {
			return fmt.Errorf("-instance: %w", err)
		}
		port, err := strconv.ParseUint(u.Port(), 10, 16)
		if err != nil || port == 0 {
			return fmt.Errorf("-instance %s: the port must be a number from 1 to 65535", s.url)
		}
		s.at.Endpoint, s.at.Port = u.Hostname(), uint16(port)
	}
	if s.control != "" {
		if _, err := checkURL(s.control, "http"); err != nil {
			return fmt.Errorf("-control: %w", err)
		}
	}
	return nil
}

// checkURL reads a URL that has a scheme, a host and a port, and nothing else.
func checkURL(text, scheme string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, err
	}
	if u.Scheme != scheme || u.Hostname() == "" || u.Port() == "" || u.User != nil || u.RequestURI() != "/" || u.Fragment != "" {
		return nil, fmt.Errorf("%q: need %s://HOST:PORT", text, scheme)
	}
	return u, nil
}

// open reads the files that the command line names.
func (s *settings) open() error {
	if s.image != "" {
		img, err := readFile(s.image, slotSize)
		if err != nil {
			return fmt.Errorf("-image: %w", err)
		}
		s.firmware = img
	}
	if s.root != "" {
		data, err := readFile(s.root, 64<<10)
		if err != nil {
			return fmt.Errorf("-root: %w", err)
		}
		block, _ := pem.Decode(data)
		if block == nil || block.Type != "CERTIFICATE" {
			return fmt.Errorf("-root: %s holds no certificate in PEM", s.root)
		}
		if s.at.Root, err = x509.ParseCertificate(block.Bytes); err != nil {
			return fmt.Errorf("-root: %s: %w", s.root, err)
		}
	}
	return nil
}

// readFile reads a file that has at least one byte and at most so many.
func readFile(name string, most int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, most+1))
	switch {
	case err != nil:
		return nil, err
	case len(data) == 0:
		return nil, fmt.Errorf("%s is empty", name)
	case int64(len(data)) > most:
		return nil, fmt.Errorf("%s has more than %d bytes", name, most)
	}
	return data, nil
}
