package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/esp/image"
	"github.com/quarklink-go/quarklink/internal/counterpart"
)

// TestMain makes the test's own binary the command, for tests that need it as a
// process.
func TestMain(m *testing.M) {
	if args, ok := os.LookupEnv("QUARKLINK_QUICKSTART_ARGS"); ok {
		os.Args = append(os.Args[:1], strings.Fields(args)...)
		main()
	}
	os.Exit(m.Run())
}

// command is the quickstart as a process. Its arguments must have no spaces.
func command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), "QUARKLINK_QUICKSTART_ARGS="+strings.Join(args, " "))
	return cmd
}

const (
	rsa1 = "cd83cc02a291b2bcdfd40cde657aaacfb48e246f450ca3567ea5a8cfc9c72375"
	rsa2 = "18c38fc2b24d7c12ee432ddb4a03d5d7b4c71c2d2244e7f597c37ea24a843326"
)

// signedByEspressif unpacks an image that Espressif's tools made and signed
// with the key rsa1.
func signedByEspressif(t *testing.T) string {
	t.Helper()
	f, err := os.Open(filepath.Join("..", "..", "esp", "image", "testdata", "esp32c3_small_v1.0.0_padv2.rsa1.bin.gz"))
	require.NoError(t, err)
	defer f.Close()
	z, err := gzip.NewReader(f)
	require.NoError(t, err)
	img, err := io.ReadAll(z)
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "app.bin")
	require.NoError(t, os.WriteFile(path, img, 0o600))
	return path
}

// requireInOrder requires that each of the texts follows the one before.
func requireInOrder(t *testing.T, out string, wants []string) {
	t.Helper()
	rest := out
	for _, want := range wants {
		_, after, ok := strings.Cut(rest, want)
		require.Truef(t, ok, "no %q at its place in\n%s", want, out)
		rest = after
	}
}

func TestQuickstart(t *testing.T) {
	img := signedByEspressif(t)
	state, tpmState := t.TempDir(), t.TempDir()
	for _, test := range []struct {
		name  string
		args  []string
		wants []string // in this order
		fails error
	}{
		{"from blank to updated", []string{"-state", state}, []string{
			"blank, so asked", "not_enrolled (code 12): enrol", "certificate of", "code 11", "100 %",
			"signed for esp32c3 by the trusted key", "activate   blinky 1.8.1\n", "code 10", "summary"}, nil},
		{"again", []string{"-state", state}, []string{
			"the one of the last run", "nothing to ask", "code 10", "already enrolled", "none due", "summary"}, nil},
		{"an image of Espressif's", []string{"-state", state, "-image", img, "-trust", rsa1, "-chip", "esp32c3"}, []string{
			"already enrolled", "code 11", "100 %", "cd83cc02", "code 10", "firmware fc80686f"}, nil},
		{"keys in an ATECC608", []string{"-keystore", "atecc608"}, []string{
			"locked for good", "certificate of", "code 10", "summary"}, nil},
		{"keys in the Digital Signature peripheral", []string{"-keystore", "esp32ds"}, []string{
			"5 eFuse key blocks left", "certificate of", "code 10", "summary"}, nil},
		{"keys in a TPM", []string{"-keystore", "tpm2", "-state", tpmState}, []string{
			"started swtpm", "blank, so asked", "certificate of", "code 11", "code 10", "summary"}, nil},
		{"keys in the same TPM again", []string{"-keystore", "tpm2", "-state", tpmState}, []string{
			"started swtpm", "nothing to ask", "already enrolled", "summary"}, nil},
		{"through the cable alone", []string{"-cable"}, []string{
			"blank, so asked", "certificate of", "code 11", "100 %", "code 10", "TLS handshakes: 4",
			"all of it went through the cable: 4 streams"}, nil},
		{"a key that is not trusted", []string{"-image", img, "-trust", rsa2, "-chip", "esp32c3"}, []string{
			"code 11", "refused"}, quarklink.ErrWrongSignature},
		{"another chip", []string{"-image", img, "-trust", rsa1, "-chip", "esp32s3"}, []string{
			"refused"}, quarklink.ErrUpdate},
		{"tampered", []string{"-image", img, "-trust", rsa1, "-chip", "esp32c3", "-tamper"}, []string{
			"tamper", "refused"}, image.ErrChecksum},
	} {
		t.Run(test.name, func(t *testing.T) {
			if slices.Contains(test.args, "tpm2") {
				counterpart.Program(t, "swtpm")
			}
			s, err := parse(test.args)
			require.NoError(t, err)
			var out strings.Builder
			err = live(t.Context(), s, &out)
			if test.fails == nil {
				require.NoError(t, err)
			} else {
				require.ErrorIs(t, err, test.fails)
			}
			assert.NotContains(t, out.String(), "\r", "what is not a terminal gets lines")
			requireInOrder(t, out.String(), test.wants)
		})
	}
}

// A device that has changed is another device: its state says so.
func TestState(t *testing.T) {
	dir := t.TempDir()
	again := func(args ...string) string {
		var stderr strings.Builder
		if run(t.Context(), append([]string{"-state", dir}, args...), io.Discard, &stderr) == 0 {
			return ""
		}
		return stderr.String()
	}
	require.Empty(t, again())
	assert.Contains(t, again("-chip", "esp32s3"), "is esp32c3, not esp32s3")

	root := filepath.Join(t.TempDir(), "root.pem")
	require.NoError(t, os.WriteFile(root, testRoot(t), 0o600))
	assert.Contains(t, again("-instance", "https://127.0.0.1:6000", "-root", root),
		"is the one in this process, not the one at 127.0.0.1:6000")

	require.NoError(t, os.WriteFile(filepath.Join(dir, "instance.json"), []byte("{"), 0o600))
	assert.Contains(t, again(), dir, "half an instance")
}

// A command line that cannot be obeyed is said once, on stderr, and leaves
// nothing behind.
func TestUsageErrors(t *testing.T) {
	file := signedByEspressif(t)
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"-image", file}, "-image needs -trust"},
		{[]string{"-trust", rsa1}, "-trust needs -image"},
		{[]string{"-image", file, "-trust", rsa1}, "-image needs -chip"},
		{[]string{"-image", file, "-trust", "12", "-chip", "esp32c3"}, "-trust"},
		{[]string{"-image", file, "-trust", rsa1, "-chip", "z80"}, "-chip"},
		{[]string{"-chip", "ESP32-C3"}, "-chip"},
		{[]string{"extra"}, `unexpected argument "extra"`},
		{[]string{"-unknown"}, "not defined: -unknown"},
		{[]string{"-keystore", "none", "-state="}, "-keystore none"},
		{[]string{"-keystore", "atecc608"}, "-state needs -keystore software or tpm2"},
		{[]string{"-keystore", "esp32ds", "-chip", "esp32", "-state="}, "no Digital Signature peripheral"},
		{[]string{"-batch="}, "-batch must not be empty"},
		{[]string{"-wait=0s"}, "-wait"},
		{[]string{"-instance", "https://127.0.0.1:6000"}, "-instance needs -root"},
		{[]string{"-root", file}, "-root needs -instance"},
		{[]string{"-control", "http://127.0.0.1:6080"}, "-control needs -instance"},
		{[]string{"-instance", "http://127.0.0.1:6000", "-root", file}, "need https://HOST:PORT"},
		{[]string{"-instance", "https://127.0.0.1", "-root", file}, "need https://HOST:PORT"},
		{[]string{"-instance", "https://127.0.0.1:6000/x", "-root", file}, "need https://HOST:PORT"},
		{[]string{"-instance", "https://127.0.0.1:66000", "-root", file}, "the port"},
		{[]string{"-instance", "https://a:1", "-root", file, "-control", "https://a:2"}, "need http://HOST:PORT"},
		{[]string{"-instance", "https://a:1", "-root", file, "-tamper"}, "-tamper with -instance needs -control"},
		{[]string{"-instance", "https://a:1", "-root", file, "-trust", rsa1, "-control", "http://a:2"},
			"-trust with -control needs -image"},
		{[]string{"-instance", "https://a:1", "-root", file, "-image", file, "-trust", rsa1, "-chip", "esp32c3"},
			"-image with -instance needs -control"},
	} {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "state")
			t.Setenv("TMPDIR", t.TempDir())
			var stdout, stderr strings.Builder
			assert.Equal(t, 2, run(t.Context(), append([]string{"-state", dir}, test.args...), &stdout, &stderr))
			assert.Empty(t, stdout.String())
			assert.Equal(t, 1, strings.Count(stderr.String(), test.want), stderr.String())
			assert.Equal(t, 2, strings.Count(stderr.String(), "\n"), stderr.String())
			assert.NoDirExists(t, dir)
			left, err := os.ReadDir(os.TempDir())
			require.NoError(t, err)
			assert.Empty(t, left)
		})
	}
}

// A file that cannot be used is an error before there is a device.
func TestFilesFirst(t *testing.T) {
	here := t.TempDir()
	empty, large := filepath.Join(here, "empty"), filepath.Join(here, "large")
	require.NoError(t, os.WriteFile(empty, nil, 0o600))
	require.NoError(t, os.WriteFile(large, nil, 0o600))
	require.NoError(t, os.Truncate(large, slotSize+1))
	for name, want := range map[string]string{
		filepath.Join(here, "absent"): "no such file",
		here:                          "is a directory",
		empty:                         "is empty",
		large:                         "has more than 16777216 bytes",
	} {
		dir := filepath.Join(here, "state")
		var stdout, stderr strings.Builder
		args := []string{"-state", dir, "-image", name, "-trust", rsa1, "-chip", "esp32c3"}
		assert.Equal(t, 1, run(t.Context(), args, &stdout, &stderr))
		assert.Empty(t, stdout.String())
		assert.Contains(t, stderr.String(), "-image")
		assert.Contains(t, stderr.String(), want)
		assert.NoDirExists(t, dir)
	}
	for name, want := range map[string]string{
		filepath.Join(here, "absent"): "no such file",
		"main.go":                     "holds no certificate",
	} {
		var stderr strings.Builder
		args := []string{"-instance", "https://127.0.0.1:6000", "-root", name}
		assert.Equal(t, 1, run(t.Context(), args, io.Discard, &stderr))
		assert.Contains(t, stderr.String(), "-root")
		assert.Contains(t, stderr.String(), want)
	}
}

func TestHelp(t *testing.T) {
	for _, flag := range []string{"-h", "-help", "--help"} {
		var stdout, stderr strings.Builder
		assert.Equal(t, 0, run(t.Context(), []string{flag}, &stdout, &stderr))
		assert.Empty(t, stderr.String())
		requireInOrder(t, stdout.String(), []string{"Usage: quickstart [flags]", "-control URL", "-image file", "-wait"})
	}
}

func TestNameless(t *testing.T) {
	for want, m := range map[string]quarklink.Manifest{
		"an image without a name": {},
		"blinky":                  {Name: "blinky"},
		"1.8.1":                   {Version: "1.8.1"},
		"blinky 1.8.1":            {Name: "blinky", Version: "1.8.1"},
	} {
		assert.Equal(t, want, nameOf(m))
	}
}

// A name that an instance sends does not reach the terminal's controls.
func TestSayIsPlainText(t *testing.T) {
	var out strings.Builder
	newScreen(&out).say("status", "install %s", "a\x1b[2Jb\rc\u202ed\n\u009be")
	assert.Equal(t, "status     install a�[2Jb�c�d��e\n", out.String())
}

// What cannot be printed is an error, wherever it ends.
func TestFullDisk(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err) // no Linux
	}
	defer full.Close()
	for _, args := range [][]string{{}, {"-h"}} {
		cmd := command(t.Context(), args...)
		var stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = full, &stderr
		var exit *exec.ExitError
		require.ErrorAs(t, cmd.Run(), &exit)
		assert.Equal(t, 1, exit.ExitCode())
		assert.Contains(t, stderr.String(), "no space left on device")
	}
}

// The first interrupt ends the command, whatever it is doing: here it makes two
// RSA keys, which hears no context. It leaves no file behind.
func TestInterrupt(t *testing.T) {
	temp := t.TempDir()
	cmd := command(t.Context(), "-keystore", "esp32ds")
	cmd.Env = append(cmd.Env, "TMPDIR="+temp)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	_, err = out.Read(make([]byte, 1)) // the instance is there, the keys are next
	require.NoError(t, err)
	require.NoError(t, cmd.Process.Signal(os.Interrupt))
	_, _ = io.Copy(io.Discard, out)
	var exit *exec.ExitError
	require.ErrorAs(t, cmd.Wait(), &exit)
	assert.Equal(t, 130, exit.ExitCode())
	assert.Equal(t, "quickstart: interrupted\n", stderr.String())
	left, err := os.ReadDir(temp)
	require.NoError(t, err)
	assert.Empty(t, left)
}

// What hears no context is waited for as long as patience says, and no longer.
func TestInterruptIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		never := make(chan struct{})
		started := time.Now()
		err := patiently(ctx, func() error { <-never; return nil })
		require.ErrorIs(t, err, context.Canceled)
		assert.Equal(t, patience, time.Since(started))
		close(never)
	})
	assert.NoError(t, patiently(t.Context(), func() error { return nil }))
}

// TestWithoutSwtpm says what to install.
func TestWithoutSwtpm(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	var stderr strings.Builder
	assert.NotZero(t, run(t.Context(), []string{"-keystore", "tpm2", "-state="}, io.Discard, &stderr))
	assert.Contains(t, stderr.String(), "apt install swtpm")
}
