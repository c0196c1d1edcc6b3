//go:build linux

package store

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/internal/counterpart"
)

// cutCalls are the calls that a power cut may meet.
var cutCalls = []struct {
	name     string
	call     string
	old      string // "" if there is none
	leftover bool   // one of an earlier cut is there
	fresh    bool   // the folder itself is not there yet
}{
	{name: "first put", call: "put", fresh: true},
	{name: "put over a record", call: "put", old: "the old record"},
	{name: "put beside a leftover", call: "put", old: "the old record", leftover: true},
	{name: "create", call: "create"},
	{name: "delete", call: "delete", old: "the old record"},
}

const newRecord = "the new record"

// A process is killed at each of the system calls that a call makes on files, one
// after the other. Then the record is the old or the new one, and the next write
// works and leaves nothing else behind.
func TestDirPowerCut(t *testing.T) {
	strace := counterpart.Program(t, "strace")
	for _, c := range cutCalls {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			prepare := func() Dir {
				d := Dir(filepath.Join(t.TempDir(), "state"))
				if c.fresh {
					return d
				}
				require.NoError(t, os.Mkdir(string(d), 0o700))
				if c.old != "" {
					require.NoError(t, d.Put(t.Context(), "one", []byte(c.old)))
				}
				if c.leftover {
					require.NoError(t, os.WriteFile(d.path(tempPrefix+"1"), []byte("the ne"), 0o600))
				}
				return d
			}
			d := prepare()
			calls := trace(t, strace, d, c.call)
			checkFlushed(t, d, calls)
			require.GreaterOrEqual(t, len(calls), 5)
			seen := make(map[string]bool) // what the cuts left
			for _, cut := range calls {
				d := prepare()
				killAt(t, strace, d, c.call, cut)
				data, err := d.Get(t.Context(), "one")
				state := string(data)
				if err != nil {
					state = ""
					require.ErrorIs(t, err, fs.ErrNotExist, cut)
				}
				after := newRecord
				if c.call == "delete" {
					after = ""
				}
				assert.Contains(t, []string{c.old, after}, state, cut)
				seen[state] = true
				// What the device does next.
				err = d.Create(t.Context(), "one", []byte("created"))
				if state == "" {
					assert.NoError(t, err, cut)
				} else {
					assert.ErrorIs(t, err, fs.ErrExist, cut)
				}
				assert.NoError(t, d.Put(t.Context(), "one", []byte("next")), cut)
				data, _ = d.Get(t.Context(), "one")
				assert.Equal(t, "next", string(data), cut)
				assert.Len(t, names(t, string(d)), 1, cut)
			}
			assert.Len(t, seen, 2, "the cuts left")
			t.Logf("cut at %d system calls", len(calls))
		})
	}
}

// systemCall is the nth of its name on the child's thread.
type systemCall struct {
	name string
	n    int
	line string
}

func (c systemCall) String() string { return fmt.Sprintf("%s #%d (%s)", c.name, c.n, c.line) }

// straceArgs follow system calls on files and descriptors, paths shown.
var straceArgs = []string{"-f", "-y", "-s", "0", "-e", "signal=none", "-e", "trace=%file,%desc"}

// A line of a trace is a system call of a thread, or the rest of one whose line
// ended with unfinishedMark because another thread came between.
var (
	traceLine   = regexp.MustCompile(`^(\d+) +([a-z0-9_]+)\(`)
	resumedLine = regexp.MustCompile(`^(\d+) +<\.\.\. [a-z0-9_]+ resumed>(.*)`)
)

const unfinishedMark = " <unfinished ...>"

// trace runs a call in a child and returns its system calls on files.
func trace(t *testing.T, strace string, d Dir, call string) []systemCall {
	t.Helper()
	log := filepath.Join(t.TempDir(), "trace")
	out, err := runTraced(t, strace, d, call, "-o", log)
	require.NoError(t, err)
	require.Equal(t, childDone, strings.TrimSpace(out))
	data, err := os.ReadFile(log)
	require.NoError(t, err)
	var calls []systemCall
	counts := make(map[string]int)
	thread := ""
	within := false
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if rest := resumedLine.FindStringSubmatch(line); rest != nil && rest[1] == thread && within && len(calls) > 0 {
			last := &calls[len(calls)-1]
			last.line = strings.TrimSuffix(last.line, unfinishedMark) + rest[2]
			continue
		}
		match := traceLine.FindStringSubmatch(line)
		if match == nil {
			continue
		}
		if thread == "" {
			thread = match[1]
		}
		if match[1] != thread {
			continue
		}
		name := match[2]
		if strings.HasPrefix(name, "mmap") {
			continue // Go's runtime maps memory when it likes
		}
		counts[name]++
		switch {
		case strings.Contains(line, beginMark):
			within = true
		case strings.Contains(line, endMark):
			within = false
			calls = append(calls, systemCall{name, counts[name], "the end"})
		case within:
			calls = append(calls, systemCall{name, counts[name], line})
		}
	}
	return calls
}

// killAt runs a call in a child and kills it on the brink of a system call.
func killAt(t *testing.T, strace string, d Dir, call string, at systemCall) {
	t.Helper()
	out, err := runTraced(t, strace, d, call, "-o", os.DevNull,
		"-e", fmt.Sprintf("inject=%s:signal=SIGKILL:when=%d", at.name, at.n))
	require.Error(t, err, at)
	require.Empty(t, out, at)
}

func runTraced(t *testing.T, strace string, d Dir, call string, args ...string) (stdout string, err error) {
	t.Helper()
	args = append(append(append([]string{}, straceArgs...), args...), os.Args[0])
	cmd := exec.CommandContext(t.Context(), strace, args...)
	cmd.Env = childEnv(d, call, newRecord)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	require.LessOrEqual(t, errs.Len(), 0, errs.String())
	return string(out), err
}

// checkFlushed plays the system calls of a call on a model of a medium: what was
// written must be flushed before its file gets its name, and folders before the
// call ends, for a kill loses no more than the process, a power cut all that is
// not flushed.
func checkFlushed(t *testing.T, d Dir, calls []systemCall) {
	t.Helper()
	unflushed := make(map[string]bool)
	quoted := regexp.MustCompile(`"([^"]*)"`)
	descriptor := regexp.MustCompile(`\(\d+<([^>]*)>`)
	changes := 0
	for _, c := range calls {
		if !strings.HasSuffix(c.line, "= 0") && c.name != "write" {
			continue // failed, or changes nothing
		}
		var paths []string
		for _, match := range quoted.FindAllStringSubmatch(c.line, -1) {
			paths = append(paths, match[1])
		}
		open := ""
		if match := descriptor.FindStringSubmatch(c.line); match != nil {
			open = match[1]
		}
		switch c.name {
		case "write":
			unflushed[open] = true
		case "fsync":
			delete(unflushed, open)
		case "rename", "renameat", "renameat2", "link", "linkat":
			assert.False(t, unflushed[paths[0]], "gets its name before its content is flushed")
			unflushed[filepath.Dir(paths[1])] = true
			changes++
		case "mkdir", "mkdirat":
			unflushed[filepath.Dir(paths[0])] = true
			changes++
		case "unlink", "unlinkat":
			if !strings.Contains(paths[0], tempPrefix) {
				unflushed[filepath.Dir(paths[0])] = true
			}
			changes++
		}
	}
	assert.NotEqual(t, 0, changes, calls)
	for path := range unflushed {
		t.Errorf("%s is not flushed when the call ends", path)
	}
}
