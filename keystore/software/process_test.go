package software_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/keystore/software"
	"github.com/quarklink-go/quarklink/store"
)

// childDir, set in a child that a test starts, is the folder of its records.
const childDir = "QUARKLINK_SOFTWARE_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		if err := startDevice(store.Dir(dir)); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// startDevice does as a device does that starts: it opens its key, or makes it.
// It waits for a line on its standard input before, and prints the fingerprint.
func startDevice(records store.Dir) error {
	ctx := context.Background()
	s, err := software.New(records, options(software.P256, strong))
	if err != nil {
		return err
	}
	fmt.Println("ready")
	bufio.NewReader(os.Stdin).ReadString('\n')
	signer, err := s.Signer(ctx, keystore.Enrolment)
	if errors.Is(err, fs.ErrNotExist) {
		signer, err = s.Generate(ctx, keystore.Enrolment)
		if errors.Is(err, fs.ErrExist) {
			signer, err = s.Signer(ctx, keystore.Enrolment)
		}
	}
	if err != nil {
		return err
	}
	id, err := keystore.Fingerprint(signer.Public())
	fmt.Printf("%x\n", id)
	return err
}

// Processes that start at once on one folder end with one identity.
func TestProcessesEndWithOneIdentity(t *testing.T) {
	const rounds, processes = 5, 3
	for range rounds {
		dir := t.TempDir() + "/state"
		var all []*exec.Cmd
		var outs []*bufio.Reader
		var starts []func() error
		for range processes {
			cmd := exec.CommandContext(t.Context(), os.Args[0])
			cmd.Env = append(os.Environ(), childDir+"="+dir, "GORACE=atexit_sleep_ms=0")
			cmd.Stderr = os.Stderr
			in, err := cmd.StdinPipe()
			require.NoError(t, err)
			out, err := cmd.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, cmd.Start())
			reader := bufio.NewReader(out)
			line, _ := reader.ReadString('\n')
			require.Equal(t, "ready\n", line)
			all, outs, starts = append(all, cmd), append(outs, reader), append(starts, in.Close)
		}
		for _, start := range starts {
			require.NoError(t, start())
		}
		identities := make(map[string]bool)
		for i, cmd := range all {
			line, _ := outs[i].ReadString('\n')
			require.NoError(t, cmd.Wait(), line)
			identities[strings.TrimSpace(line)] = true
		}
		signer, err := open(t, store.Dir(dir), options(software.P256, strong)).Signer(t.Context(), keystore.Enrolment)
		require.NoError(t, err)
		require.Len(t, identities, 1, processes)
		assert.True(t, identities[fingerprint(t, signer)], processes)
	}
}
