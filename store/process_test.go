package store

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The test binary runs itself as a child for what takes a process of its own:
// one that is killed, one that meets a full disk, several at once.
const (
	childCall = "QUARKLINK_STORE_CHILD" // put, create or delete; set in a child only
	childDir  = "QUARKLINK_STORE_DIR"
	childData = "QUARKLINK_STORE_DATA"
)

func init() {
	if os.Getenv(childCall) != "" {
		// One thread makes all of the call's system calls, so that they can be
		// counted. In init that is the process's first thread.
		runtime.LockOSThread()
	}
}

func TestMain(m *testing.M) {
	if os.Getenv(childCall) != "" {
		os.Exit(child())
	}
	os.Exit(m.Run())
}

// What a child prints on its standard output.
const (
	childDone    = "done"
	childExists  = "exists"
	childNoSpace = "no space"
)

// beginMark and endMark are paths that do not exist: asking for them marks the
// call's system calls in a trace.
const (
	beginMark = "/quarklink-test-begin"
	endMark   = "/quarklink-test-end"
)

func child() int {
	lift, err := limitFileSize()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if os.Getenv(childCall) == "create-together" {
		fmt.Println("ready")
		bufio.NewReader(os.Stdin).ReadString('\n')
	}
	os.Lstat(beginMark)
	err = call(Dir(os.Getenv(childDir)), os.Getenv(childCall), os.Getenv(childData))
	os.Lstat(endMark)
	if err := lift(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	switch {
	case err == nil:
		fmt.Println(childDone)
	case errors.Is(err, fs.ErrExist):
		fmt.Println(childExists)
	case isNoSpace(err):
		fmt.Println(childNoSpace)
	default:
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func call(d Dir, name, data string) error {
	ctx := context.Background()
	switch name {
	case "put":
		return d.Put(ctx, "one", []byte(data))
	case "create", "create-together":
		return d.Create(ctx, "one", []byte(data))
	case "delete":
		return d.Delete(ctx, "one")
	}
	return fmt.Errorf("unknown call %q", name)
}

func childEnv(d Dir, call, data string) []string {
	return append(os.Environ(), childCall+"="+call, childDir+"="+string(d), childData+"="+data,
		"GORACE=atexit_sleep_ms=0") // or each child under the race detector takes a second to end
}

// Several processes create one record at once: exactly one wins, and what it
// wrote stays.
func TestDirProcessesCreate(t *testing.T) {
	const rounds, processes = 5, 4
	for range rounds {
		d := Dir(t.TempDir() + "/state")
		type process struct {
			*exec.Cmd
			out  *bufio.Reader
			data string
		}
		var all []process
		var starts []func()
		for i := range processes {
			data := strings.Repeat(fmt.Sprintf("process %d ", i), 1000)
			cmd := exec.CommandContext(t.Context(), os.Args[0])
			cmd.Env = childEnv(d, "create-together", data)
			cmd.Stderr = os.Stderr
			in, err := cmd.StdinPipe()
			require.NoError(t, err)
			out, err := cmd.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, cmd.Start())
			p := process{cmd, bufio.NewReader(out), data}
			line, _ := p.out.ReadString('\n')
			require.Equal(t, "ready\n", line)
			all = append(all, p)
			starts = append(starts, func() { in.Close() })
		}
		for _, start := range starts {
			start()
		}
		var winners []string
		for _, p := range all {
			line, _ := p.out.ReadString('\n')
			require.NoError(t, p.Wait())
			switch strings.TrimSpace(line) {
			case childDone:
				winners = append(winners, p.data)
			case childExists:
			default:
				t.Errorf("child said %q", line)
			}
		}
		require.Len(t, winners, 1, processes)
		data, err := d.Get(t.Context(), "one")
		require.NoError(t, err)
		assert.Equal(t, winners[0], string(data))
		assert.Len(t, names(t, string(d)), 1, "left in the folder")
	}
}
