//go:build linux

package batchfile_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/internal/counterpart"
	"github.com/quarklink-go/quarklink/transport/uart/batchfile"
)

const childEnv = "QUARKLINK_TEST_BATCHFILE"

// TestAddProcess is the process that is killed.
func TestAddProcess(t *testing.T) {
	path := os.Getenv(childEnv)
	if path == "" {
		t.Skip("this is the process of TestPowerCut")
	}
	f, err := batchfile.Open(path)
	require.NoError(t, err)
	require.NoError(t, f.Add(id(2)))
	fmt.Println("added")
}

// A process is killed at each system call on files, one after the other: the file
// is the old or the new one, and can be added to.
func TestPowerCut(t *testing.T) {
	strace := counterpart.Program(t, "strace")
	old, fresh := 0, 0
	for _, call := range []string{"openat", "write", "fsync", "renameat", "close"} {
		for n := 1; ; n++ {
			path := filepath.Join(t.TempDir(), "batch.json")
			f, err := batchfile.Open(path)
			require.NoError(t, err)
			require.NoError(t, f.Add(id(1)))
			cmd := exec.Command(strace, "-f", "-qq", "-o", "/dev/null", "-P", path, "-P", path+".new", "-P", filepath.Dir(path),
				"-e", fmt.Sprintf("inject=%s:signal=KILL:when=%d", call, n), os.Args[0], "-test.run=^TestAddProcess$", "-test.v")
			cmd.Env = append(os.Environ(), childEnv+"="+path)
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if err == nil {
				require.Contains(t, string(out), "added")
				require.Greater(t, n, 1, "%s is never called", call)
				if call == "fsync" {
					require.Equal(t, 3, n, "the file is flushed, and the folder")
				}
				break
			}
			require.True(t, errors.As(err, &exit), "%v: %s", err, out)
			f, err = batchfile.Open(path)
			require.NoError(t, err, "killed at %s %d", call, n)
			switch got := f.DeviceIDs(); len(got) {
			case 1:
				old++
				assert.Equal(t, []string{id(1)}, got)
			default:
				fresh++
				assert.Equal(t, []string{id(1), id(2)}, got)
			}
			require.NoError(t, f.Add(id(3)), "killed at %s %d", call, n)
		}
	}
	t.Logf("%d times the old file, %d times the new one", old, fresh)
	assert.Positive(t, old)
	assert.Positive(t, fresh)
}
