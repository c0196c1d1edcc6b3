package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/quarklinktest"
)

// testRoot returns the root certificate of some instance, in PEM.
func testRoot(t *testing.T) []byte {
	t.Helper()
	server, err := quarklinktest.NewServer(quarklinktest.Options{InMemory: true})
	require.NoError(t, err)
	defer server.Close()
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Instance().Root.Raw})
}

// startInstance runs examples/instance as a process, and returns the line with
// which it says how to try it, split into arguments.
func startInstance(t *testing.T) (url, root, control string) {
	t.Helper()
	dir := t.TempDir()
	program := filepath.Join(dir, "instance.exe")
	out, err := exec.Command("go", "build", "-o", program, "../instance").CombinedOutput()
	require.NoError(t, err, string(out))
	cmd := exec.Command(program, "-listen", "127.0.0.1:0", "-control", "127.0.0.1:0", "-state", filepath.Join(dir, "state"))
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	try := regexp.MustCompile(`^try +go run ./examples/quickstart -instance (\S+) -root (\S+) -control (\S+)$`)
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		if found := try.FindStringSubmatch(lines.Text()); found != nil {
			go io.Copy(io.Discard, stdout)
			return found[1], found[2], found[3]
		}
	}
	require.FailNow(t, "the instance does not say how to try it")
	return "", "", ""
}

// quickstart runs the command as a process to its end.
func quickstart(t *testing.T, args ...string) string {
	t.Helper()
	var stderr bytes.Buffer
	cmd := command(t.Context(), args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	require.NoError(t, err, "%s\n%s", out, &stderr)
	return string(out)
}

// Both commands as processes, by the line that the instance prints.
func TestRunningInstance(t *testing.T) {
	url, root, control := startInstance(t)
	state := t.TempDir()
	args := []string{"-instance", url, "-root", root, "-control", control, "-state", state, "-batch", "a/b"}
	requireInOrder(t, quickstart(t, args...), []string{
		"a running one", "blank, so asked", `added the device to batch "a/b"`, "not_enrolled (code 12): enrol",
		"certificate of", "hub", "publish", "code 11", "100 %", "activate   blinky 1.8.1\n", "code 10", "summary"})
	requireInOrder(t, quickstart(t, args...), []string{
		"nothing to ask", "code 10", "already enrolled", "none due", "summary"})

	img := signedByEspressif(t)
	requireInOrder(t, quickstart(t, append(args, "-image", img, "-trust", rsa1, "-chip", "esp32c3")...), []string{
		"code 11", "signed for esp32c3 by the trusted key cd83cc02", "code 10"})

	// Without control: the device takes what the batch has.
	args = []string{"-instance", url, "-root", root, "-state", state}
	requireInOrder(t, quickstart(t, args...), []string{"nothing to ask", "already enrolled", "none due"})

	var batch struct {
		States, Running map[string]int
	}
	getJSON(t, control+"/v1/batches/a%2Fb", &batch)
	assert.Equal(t, map[string]int{"enrolled": 1}, batch.States)
}

func getJSON(t *testing.T, url string, into any) {
	t.Helper()
	resp, err := http.Get(url)
	require.NoError(t, err)
	defer resp.Body.Close()
	require.Equal(t, http.StatusOK, resp.StatusCode)
	require.NoError(t, json.NewDecoder(resp.Body).Decode(into))
}

// Without -control the command prints the line that adds the device, and goes on
// when it is there; what the batch offers is installed for -trust alone.
func TestRunningInstanceOfOthers(t *testing.T) {
	url, root, control := startInstance(t)
	post := func(method, path string, body io.Reader) {
		req, err := http.NewRequestWithContext(t.Context(), method, control+path, body)
		require.NoError(t, err)
		resp, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		defer resp.Body.Close()
		answer, _ := io.ReadAll(resp.Body)
		require.Equal(t, http.StatusOK, resp.StatusCode, string(answer))
	}
	post("POST", "/v1/batches", strings.NewReader(`{"name": "lab"}`))
	img, err := os.Open(signedByEspressif(t))
	require.NoError(t, err)
	defer img.Close()
	post("PUT", "/v1/batches/lab/firmware", img)

	state := t.TempDir()
	args := []string{"-instance", url, "-root", root, "-batch", "lab", "-state", state}
	cmd := command(t.Context(), args...)
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	curl := regexp.MustCompile(`^curl -sS http://127.0.0.1:6080(\S+) -d '(.*)'$`)
	var out strings.Builder
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		out.WriteString(lines.Text() + "\n")
		if found := curl.FindStringSubmatch(lines.Text()); found != nil {
			post("POST", found[1], strings.NewReader(found[2]))
		}
	}
	require.NoError(t, cmd.Wait(), out.String())
	requireInOrder(t, out.String(), []string{"the instance does not know the device", "curl",
		"certificate of", "code 11", "left alone: -trust says", "summary"})

	requireInOrder(t, quickstart(t, append(args, "-trust", rsa1)...), []string{
		"already enrolled", "code 11", "signed for esp32c3 by the trusted key cd83cc02", "code 10"})
}

// Nobody adds the device: there is a limit, and what ends the wait is said.
func TestJoinHasALimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, err := quarklinktest.NewServer(quarklinktest.Options{InMemory: true})
		require.NoError(t, err)
		defer server.Close()
		require.NoError(t, server.AddBatch(quarklinktest.Batch{Name: "b"}))
		device, err := server.NewDevice(t.Context(), "b")
		require.NoError(t, err)
		defer device.Close()
		require.NoError(t, server.RemoveDevices(device.DeviceID()))

		started := time.Now()
		r := &running{screen: newScreen(io.Discard), batch: "b", wait: time.Minute}
		err = r.join(t.Context(), device)
		require.ErrorIs(t, err, quarklink.ErrDeviceDoesNotExist)
		assert.ErrorContains(t, err, "nobody has added the device within 1m0s")
		assert.Equal(t, time.Minute, time.Since(started))

		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		defer cancel()
		require.ErrorIs(t, r.join(ctx, device), context.DeadlineExceeded)
	})
}

// What is no control says so.
func TestControlErrors(t *testing.T) {
	for name, test := range map[string]struct {
		status       int
		answer, want string
	}{
		"of the control": {http.StatusBadRequest, `{"error": "no batch"}`, "control: no batch (HTTP status 400)"},
		"another server": {http.StatusForbidden, "<html>", "this is not the control of examples/instance (HTTP status 403)"},
	} {
		t.Run(name, func(t *testing.T) {
			web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(test.status)
				io.WriteString(w, test.answer)
			}))
			defer web.Close()
			r := &running{screen: newScreen(io.Discard), control: web.URL, batch: "b"}
			assert.ErrorContains(t, r.add(t.Context(), "id"), test.want)
			assert.ErrorContains(t, r.publish(t.Context(), []byte("image")), test.want)
		})
	}
}
