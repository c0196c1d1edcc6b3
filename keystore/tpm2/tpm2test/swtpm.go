// Package tpm2test runs a TPM 2.0 for test harnesses: swtpm, the one in software
// that virtual machines use. The TPM keeps its state in a folder, so that it can
// lose its power and come back; it can be cut off in the middle of a command; and
// its few slots can be filled with objects of others.
//
// It needs the program swtpm, on Debian apt install swtpm, and a system with Unix
// sockets. It imports no testing.
package tpm2test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	gotpm "github.com/google/go-tpm/tpm2"
)

// Options say how to start a TPM. The zero value is a new TPM whose state goes
// when it is closed.
type Options struct {
	// Dir is a folder that keeps the TPM's state when it is closed, made if it
	// is absent. A TPM started there later is the same one. Only one may run
	// in a folder at a time.
	Dir string
}

// TPM is a running swtpm. It is safe for concurrent use, except that the calls that
// end or start it (Kill, Boot, PowerCycle, Suspend, Close) are made one at a time.
type TPM struct {
	program string
	state   string // swtpm's own files
	sockets string // a short-lived folder with a short name: a socket's path has at most 107 bytes
	passing bool   // state goes with Close
	tap     *tap

	mu  sync.Mutex
	cmd *exec.Cmd // nil while the power is off
	// log collects what swtpm writes to its standard error.
	log *bytes.Buffer
}

// startTime bounds the start of swtpm, which takes some 50 ms on an idle machine.
const startTime = 30 * time.Second

// Start starts a TPM and returns once it answers. If swtpm is not installed the
// error is exec.ErrNotFound.
func Start(ctx context.Context, o Options) (*TPM, error) {
	program, err := exec.LookPath("swtpm")
	if err != nil {
		return nil, fmt.Errorf("tpm2test: swtpm is not installed (on Debian: apt install swtpm): %w", err)
	}
	t := &TPM{program: program, state: o.Dir}
	if t.sockets, err = os.MkdirTemp("", "swtpm"); err != nil {
		return nil, fmt.Errorf("tpm2test: %w", err)
	}
	if t.state == "" {
		t.state, t.passing = filepath.Join(t.sockets, "state"), true
	}
	if err := os.MkdirAll(t.state, 0o700); err != nil {
		t.Close()
		return nil, fmt.Errorf("tpm2test: %w", err)
	}
	if t.tap, err = newTap(t); err != nil {
		t.Close()
		return nil, fmt.Errorf("tpm2test: %w", err)
	}
	if err := t.Boot(ctx); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

// Path returns the Unix socket of the TPM, which is for keystore/tpm2's
// Options.Path. It stays the same when the power is cut. What [TPM.Intercept] and
// [TPM.CutAt] do happens to the commands sent there.
func (t *TPM) Path() string { return filepath.Join(t.sockets, "tpm") }

// Direct returns swtpm's own Unix socket: nothing happens to commands sent there.
func (t *TPM) Direct() string { return filepath.Join(t.sockets, "direct") }

// Boot gives power to a TPM that was killed, with TPM2_Startup(CLEAR), and returns
// once it answers.
func (t *TPM) Boot(ctx context.Context) error { return t.boot(ctx, "startup-clear") }

func (t *TPM) boot(ctx context.Context, startup string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.cmd != nil {
		return errors.New("tpm2test: the TPM has power already")
	}
	control := filepath.Join(t.sockets, "control")
	for _, stale := range []string{t.Direct(), control} {
		if err := os.Remove(stale); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("tpm2test: %w", err)
		}
	}
	cmd := exec.Command(t.program, "socket", "--tpm2", "--tpmstate", "dir="+t.state,
		"--server", "type=unixio,path="+t.Direct(), "--ctrl", "type=unixio,path="+control,
		"--flags", "not-need-init,"+startup)
	t.log = new(bytes.Buffer)
	cmd.Stderr = t.log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("tpm2test: start swtpm: %w", err)
	}
	if err := t.await(ctx); err != nil {
		cmd.Process.Kill()
		cmd.Wait()
		return fmt.Errorf("tpm2test: swtpm does not answer: %w; it says %q", err, strings.TrimSpace(t.log.String()))
	}
	t.cmd = cmd
	return nil
}

// await returns once swtpm answers a command.
func (t *TPM) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	for {
		_, err := gotpm.GetCapability{
			Capability: gotpm.TPMCapTPMProperties, Property: uint32(gotpm.TPMPTManufacturer), PropertyCount: 1,
		}.Execute(t.direct())
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", err, ctx.Err())
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// Kill ends swtpm with SIGKILL: the power is cut, whatever it is doing. The state on
// disk stays; all that was in memory is lost.
func (t *TPM) Kill() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.cmd == nil {
		return nil
	}
	err := t.cmd.Process.Kill()
	t.cmd.Wait() // it says that the process was killed
	t.cmd = nil
	if err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("tpm2test: kill swtpm: %w", err)
	}
	return nil
}

// PowerCycle cuts the power and gives it back.
func (t *TPM) PowerCycle(ctx context.Context) error {
	if err := t.Kill(); err != nil {
		return err
	}
	return t.Boot(ctx)
}

// Suspend takes the TPM through suspend to memory and back: TPM2_Shutdown(STATE), no
// power, TPM2_Startup(STATE). Transient objects are lost, saved contexts stay good.
func (t *TPM) Suspend(ctx context.Context) error {
	if _, err := (gotpm.Shutdown{ShutdownType: gotpm.TPMSUState}).Execute(t.direct()); err != nil {
		return fmt.Errorf("tpm2test: suspend: %w", err)
	}
	if err := t.Kill(); err != nil {
		return err
	}
	return t.boot(ctx, "startup-state")
}

// Close ends the TPM. Its state goes too, unless Options.Dir named a place for it.
func (t *TPM) Close() error {
	err := t.Kill()
	if t.tap != nil {
		t.tap.close()
	}
	if removed := os.RemoveAll(t.sockets); err == nil && removed != nil {
		err = fmt.Errorf("tpm2test: %w", removed)
	}
	return err
}

// direct sends commands straight to swtpm, one connection for each.
func (t *TPM) direct() socket { return socket(t.Direct()) }

type socket string

// Send implements go-tpm's transport.TPM.
func (s socket) Send(command []byte) ([]byte, error) {
	conn, err := net.Dial("unix", string(s))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if _, err := conn.Write(command); err != nil {
		return nil, err
	}
	return readMessage(conn)
}
