//go:build unix

package main

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/quarklink-go/quarklink/keystore/atecc608"
	"github.com/quarklink-go/quarklink/keystore/atecc608/atecctest"
)

// A process of its own that holds the lock of the bus until its input ends.
func TestMain(m *testing.M) {
	if bus := os.Getenv("KEYS_TEST_HOLD"); bus != "" {
		if _, err := lockFile(bus)(context.Background()); err != nil {
			panic(err)
		}
		os.Stdout.WriteString("locked\n")
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// While another process has the bus the program waits, and touches nothing; when
// that one dies, it goes on.
func TestTwoProcesses(t *testing.T) {
	bus := filepath.Join(t.TempDir(), "i2c-1")
	if err := os.WriteFile(bus, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	other := exec.Command(os.Args[0])
	other.Env = append(os.Environ(), "KEYS_TEST_HOLD="+bus)
	hold, err := other.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Close()
	said, err := other.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(said, make([]byte, len("locked\n"))); err != nil {
		t.Fatal(err)
	}

	config := atecctest.BlankConfig()
	chip := atecctest.New(atecctest.Options{Config: &config})
	clock := new(atecctest.Clock)
	chip.SetClock(clock.Now)
	asks := make(chan bool, 100)
	lock := func(path string) func(context.Context) (func(), error) {
		return func(ctx context.Context) (func(), error) {
			asks <- true
			return lockFile(path)(ctx)
		}
	}
	run := func(ctx context.Context) error {
		p := program{
			in: strings.NewReader(""), out: io.Discard, clock: clock, lock: lock,
			open: func(string) (atecc608.Bus, io.Closer, error) { return chip, io.NopCloser(nil), nil },
		}
		return p.run(ctx, []string{"-i2c", bus})
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	<-asks
	cancel()
	if err := <-done; err == nil || !strings.Contains(err.Error(), "context canceled") {
		t.Errorf("while another process has the bus: %v", err)
	}
	if n := chip.Stats().Transactions; n != 0 {
		t.Errorf("%d transactions on a bus that is locked", n)
	}
	if err := other.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	other.Wait()
	if err := run(t.Context()); err == nil || !strings.Contains(err.Error(), "configuration zone is not locked") {
		t.Errorf("when it has died: %v", err) // the chip is blank
	}
	if n := chip.Stats().Transactions; n == 0 {
		t.Error("the chip was not asked")
	}
}
