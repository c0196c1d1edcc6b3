package main

import (
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/quarklink-go/quarklink/keystore/atecc608"
	"github.com/quarklink-go/quarklink/keystore/atecc608/atecctest"
)

// on runs the program with a chip on the bus, and returns what it prints.
func on(t *testing.T, chip *atecctest.Chip, answer string, args ...string) (string, error) {
	t.Helper()
	clock := new(atecctest.Clock)
	if chip != nil {
		chip.SetClock(clock.Now)
	}
	var out strings.Builder
	p := program{
		in:    strings.NewReader(answer),
		out:   &out,
		open:  func(string) (atecc608.Bus, io.Closer, error) { return chip, io.NopCloser(nil), nil },
		clock: clock,
	}
	err := p.run(t.Context(), args)
	return out.String(), err
}

func deviceID(t *testing.T, out string) string {
	t.Helper()
	found := regexp.MustCompile(`DeviceID: +([0-9a-f]{64})\n`).FindStringSubmatch(out)
	if found == nil {
		t.Fatalf("no DeviceID in:\n%s", out)
	}
	return found[1]
}

func TestChip(t *testing.T) {
	chip := atecctest.New(atecctest.Options{})
	locked := func() bool {
		out, _ := on(t, chip, "", "-i2c", "bus")
		return strings.Contains(out, "configuration:  locked")
	}
	if out, err := on(t, chip, "", "-i2c", "bus", "-generate"); err == nil || locked() {
		t.Fatalf("a blank chip: %v\n%s", err, out)
	}
	for _, answer := range []string{"", "yes\n", "0123\n"} {
		out, err := on(t, chip, answer, "-i2c", "bus", "-provision")
		if err == nil || !strings.Contains(out, "cannot be undone") || locked() {
			t.Fatalf("answer %q: %v\n%s", answer, err, out)
		}
	}
	out, err := on(t, chip, "0123514c6b2e9017ee\n", "-i2c", "bus", "-provision")
	if err == nil || !strings.Contains(err.Error(), "-generate") || !locked() {
		t.Fatalf("provisioned, without a key: %v\n%s", err, out)
	}
	out, err = on(t, chip, "", "-i2c", "bus", "-generate")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, part := range []string{"0123514c6b2e9017ee", "data zone:      locked", "uses are not limited", "PUBLIC KEY", "device key:     the same", "conformance:    passed"} {
		if !strings.Contains(out, part) {
			t.Errorf("no %q in:\n%s", part, out)
		}
	}
	if out, err := on(t, chip, "no\n", "-i2c", "bus", "-lock"); err == nil || !strings.Contains(out, "cannot be undone") {
		t.Errorf("a slot is locked without asking: %v\n%s", err, out)
	}
	if out, err := on(t, chip, "0123514c6b2e9017ee\n", "-i2c", "bus", "-lock"); err != nil {
		t.Errorf("-lock: %v\n%s", err, out)
	}
	if out, err := on(t, chip, "", "-i2c", "bus", "-lock"); err != nil || !strings.Contains(out, "locked already") {
		t.Errorf("-lock twice: %v\n%s", err, out)
	}
	again, err := on(t, chip, "", "-i2c", "bus")
	if err != nil || deviceID(t, again) != deviceID(t, out) {
		t.Errorf("%v\n%s", err, again)
	}
	if out, err := on(t, chip, "", "-i2c", "bus", "-address", "0x35"); err == nil || !strings.Contains(err.Error(), "0x60") {
		t.Errorf("another address: %v\n%s", err, out)
	}
}

func TestSoftware(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "keys")
	first, err := on(t, nil, "", "-software", folder)
	if err != nil {
		t.Fatalf("%v\n%s", err, first)
	}
	second, err := on(t, nil, "", "-software", folder)
	if err != nil || deviceID(t, first) != deviceID(t, second) || !strings.Contains(second, "conformance:    passed") {
		t.Errorf("%v\n%s", err, second)
	}
}

// A command line that cannot be obeyed is said once, on stderr.
func TestUsage(t *testing.T) {
	for _, args := range [][]string{
		{}, {"-i2c", "a", "-software", "b"}, {"-i2c", "a", "more"}, {"-i2c", "a", "-address", "x"}, {"-unknown"},
	} {
		out, err := on(t, nil, "", args...)
		var stderr strings.Builder
		if code := new(program).exit(err, &stderr); code != 2 {
			t.Errorf("%q: exit code %d, want 2", args, code)
		}
		if out != "" {
			t.Errorf("%q: %q on stdout, want nothing", args, out)
		}
		if lines := strings.Count(stderr.String(), "\n"); lines != 2 {
			t.Errorf("%q: %d lines on stderr, want 2:\n%s", args, lines, &stderr)
		}
	}
}

func TestHelp(t *testing.T) {
	out, err := on(t, nil, "", "-h")
	var stderr strings.Builder
	if code := new(program).exit(err, &stderr); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	if stderr.Len() > 0 {
		t.Errorf("%q on stderr, want nothing", &stderr)
	}
	for _, part := range []string{"Usage: keys -i2c BUS", "-software directory", "-provision"} {
		if !strings.Contains(out, part) {
			t.Errorf("no %q in:\n%s", part, out)
		}
	}
}

func TestHelpOnAFullDisk(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err) // no Linux
	}
	defer full.Close()
	p := program{out: full}
	if code := p.exit(p.run(t.Context(), []string{"-h"}), io.Discard); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
}
