package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/internal/counterpart"
)

// TestMain makes the test's own binary the command, for tests that need it as a
// process.
func TestMain(m *testing.M) {
	if args := os.Getenv("QUARKLINK_INSTANCE_ARGS"); args != "" {
		os.Exit(run(context.Background(), strings.Split(args, "\n"), os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// process is a running instance.
type process struct {
	*exec.Cmd
	instance, control, root string // URL, URL, path or PEM
}

// start runs the command as a process, with free ports unless args say others.
func start(t testing.TB, args ...string) *process {
	t.Helper()
	args = append([]string{"-listen", "127.0.0.1:0", "-control", "127.0.0.1:0"}, args...)
	p := &process{Cmd: exec.Command(os.Args[0])}
	p.Env = append(os.Environ(), "QUARKLINK_INSTANCE_ARGS="+strings.Join(args, "\n"))
	p.Stderr = os.Stderr
	out, err := p.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, p.Start())
	t.Cleanup(func() { p.Process.Kill(); p.Wait() })
	lines := bufio.NewScanner(out)
	for p.root == "" && lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		switch value = strings.TrimSpace(value); name {
		case "instance":
			p.instance = value
		case "control":
			p.control = strings.TrimSuffix(value, "/")
		case "root":
			if p.root = value; value == "" {
				p.root = "printed"
			}
		}
	}
	require.NotEmpty(t, p.control, "the instance does not say where it is controlled")
	go io.Copy(io.Discard, out)
	return p
}

// do sends a request to the control address and returns status and body.
func do(t testing.TB, method, url, body string, header ...string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	require.NoError(t, err)
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
		}
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, string(got)
}

func must(t testing.TB, method, url, body string) string {
	t.Helper()
	status, got := do(t, method, url, body)
	require.Equal(t, 200, status, got)
	return got
}

func needPrograms(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		counterpart.Program(t, name)
	}
}

// TestDocumentation runs every command of README.md, as it stands there.
func TestDocumentation(t *testing.T) {
	needPrograms(t, "sh", "curl", "openssl", "base64", "python3")
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	_, rest, ok := strings.Cut(string(readme), "```sh\n")
	require.True(t, ok, "README.md has no commands")
	commands, _, ok := strings.Cut(rest, "```")
	require.True(t, ok)
	p := start(t)
	commands = strings.Replace(commands, "http://127.0.0.1:6080", p.control, 1)
	cmd := exec.CommandContext(t.Context(), "sh", "-euxc", commands)
	cmd.Dir = t.TempDir()
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	assert.Contains(t, string(out), `"endpoint":"hub.example.com"`)
}

func TestHarnessesInOtherLanguages(t *testing.T) {
	p := start(t)
	t.Run("shell", func(t *testing.T) {
		needPrograms(t, "sh", "curl", "openssl", "base64")
		out, err := exec.CommandContext(t.Context(), "sh", "harness.sh", p.control).CombinedOutput()
		require.NoError(t, err, "%s", out)
		assert.Contains(t, string(out), "enrolled and revoked")
	})
	t.Run("Python", func(t *testing.T) {
		needPrograms(t, "python3")
		out, err := exec.CommandContext(t.Context(), "python3", "harness.py", p.control).CombinedOutput()
		require.NoError(t, err, "%s", out)
		assert.Contains(t, string(out), "refused once")
	})
}

// TestKilled: an instance that is killed and started again is the same, to the
// port and to the byte.
func TestKilled(t *testing.T) {
	needPrograms(t, "sh", "curl", "openssl", "base64")
	state := filepath.Join(t.TempDir(), "state")
	p := start(t, "-state", state, "-batch", "lab")
	out, err := exec.CommandContext(t.Context(), "sh", "harness.sh", p.control).CombinedOutput()
	require.NoError(t, err, "%s", out)
	ids := make([]string, 100)
	for n := range ids {
		ids[n] = fmt.Sprintf("%064x", n)
	}
	list, err := json.Marshal(map[string]any{"devices": ids})
	require.NoError(t, err)
	must(t, "POST", p.control+"/v1/batches/lab/devices", string(list))
	must(t, "PUT", p.control+"/v1/batches/lab/firmware?name=a&version=2", strings.Repeat("image", 1000))
	known := func(p *process) (all string) {
		for _, path := range []string{"/instance", "/batches/lab/devices", "/batches/shell/devices"} {
			all += must(t, "GET", p.control+"/v1"+path, "")
		}
		var batches []map[string]any
		require.NoError(t, json.Unmarshal([]byte(must(t, "GET", p.control+"/v1/batches", "")), &batches))
		for _, b := range batches {
			all += fmt.Sprintln(b["name"], b["policy"], b["firmware"], b["states"])
		}
		return all
	}
	// Counters are not kept: nothing is counted twice after the restart.
	before := strings.NewReplacer("\"calls\": {", "").Replace(withoutCounters(known(p)))
	root, err := os.ReadFile(filepath.Join(state, "root.pem"))
	require.NoError(t, err)
	require.NoError(t, p.Process.Kill())
	p.Wait()

	again := start(t, "-state", state, "-batch", "lab")
	assert.Equal(t, p.instance, again.instance)
	assert.Equal(t, before, strings.NewReplacer("\"calls\": {", "").Replace(withoutCounters(known(again))))
	rootAgain, err := os.ReadFile(filepath.Join(state, "root.pem"))
	require.NoError(t, err)
	assert.Equal(t, string(root), string(rootAgain))
}

// withoutCounters drops the lines that count calls and tell when a device was seen.
func withoutCounters(document string) string {
	var kept []string
	for line := range strings.Lines(document) {
		name := strings.TrimSpace(strings.SplitN(line, ":", 2)[0])
		switch strings.Trim(name, `"`) {
		case "calls", "lastSeen", "cacerts", "temporary", "enrol", "connection", "status", "}", "},":
		default:
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "")
}

// TestForeign: what another site's page could make a browser send is refused,
// for each call that changes something and for those that only tell.
func TestForeign(t *testing.T) {
	p := start(t, "-batch", "lab")
	host := strings.TrimPrefix(p.control, "http://")
	_, port, _ := strings.Cut(host, ":")
	for name, test := range map[string]struct {
		header []string
		want   int
	}{
		"no origin":               {nil, 200},
		"own origin":              {[]string{"Origin", p.control}, 200},
		"localhost":               {[]string{"Host", "localhost:" + port, "Origin", "http://localhost:" + port}, 200},
		"IPv6":                    {[]string{"Host", "[::1]:" + port}, 200},
		"foreign origin":          {[]string{"Origin", "https://evil.example"}, 403},
		"sandboxed origin":        {[]string{"Origin", "null"}, 403},
		"another port's origin":   {[]string{"Origin", "http://127.0.0.1:1"}, 403},
		"another scheme's origin": {[]string{"Origin", "https://" + host}, 403},
		"foreign host":            {[]string{"Host", "evil.example:" + port}, 421},
		"foreign host, no port":   {[]string{"Host", "evil.example"}, 421},
		"host without the port":   {[]string{"Host", "127.0.0.1"}, 421},
		"another port":            {[]string{"Host", "127.0.0.1:1"}, 421},
	} {
		t.Run(name, func(t *testing.T) {
			for _, call := range [][2]string{{"GET", "/v1/stats"}, {"DELETE", "/v1/faults"}, {"GET", "/"}} {
				status, body := do(t, call[0], p.control+call[1], "", test.header...)
				assert.Equal(t, test.want, status, "%s %s: %s", call[0], call[1], body)
			}
		})
	}
	// A form needs the page's token beside.
	for _, token := range []string{"", "token=", "token=guess"} {
		status, _ := do(t, "POST", p.control+"/batches", "name=x&"+token, "Content-Type", "application/x-www-form-urlencoded")
		assert.Equal(t, 403, status, "form with %q", token)
	}
	assert.NotContains(t, must(t, "GET", p.control+"/v1/batches", ""), `"x"`)
}

func TestControlErrors(t *testing.T) {
	p := start(t, "-batch", "lab")
	for _, test := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"GET", "/v1/nothing", "", 404, ""},
		{"GET", "/v1/devices/" + strings.Repeat("0", 64), "", 404, "in no batch"},
		{"GET", "/v1/batches/none", "", 404, "no batch"},
		{"GET", "/v1/batches/none/devices", "", 404, "no batch"},
		{"POST", "/v1/batches", `{"name": "lab"}`, 400, "already"},
		{"POST", "/v1/batches", `{"name": "x", "polcy": {}}`, 400, "unknown field"},
		{"POST", "/v1/batches", `{"name": "x"} {}`, 400, "after its JSON"},
		{"POST", "/v1/batches", `{"name": `, 400, "not the JSON"},
		{"POST", "/v1/batches", `{"name": "x", "policy": {"hub": {"roots": "x"}}}`, 400, "PEM"},
		{"POST", "/v1/batches/lab/devices", `{"devices": ["x"]}`, 400, "64"},
		{"POST", "/v1/devices/x/revoke", "", 400, "in no batch"},
		{"PUT", "/v1/batches/lab/firmware?share=2", "image", 400, "share"},
		{"PUT", "/v1/batches/lab/firmware?share=all", "image", 400, "share"},
		{"POST", "/v1/faults", `{"call": "status", "kind": "bang"}`, 400, "no fault"},
		{"POST", "/v1/faults", `{"call": "status", "kind": "delay", "times": 0}`, 400, "at least 1"},
		{"POST", "/v1/faults", `{"call": "bang", "kind": "delay"}`, 400, "no such call"},
		{"POST", "/v1/faults", `{"call": "status", "kind": "refuse"}`, 400, "status 0"},
		{"GET", "/v1/wait", "", 400, "say which"},
		{"GET", "/v1/wait?device=x", "", 400, "what to wait for"},
		{"GET", "/v1/wait?call=status&count=0", "", 400, "at least 1"},
		{"GET", "/v1/wait?call=status&timeout=never", "", 400, "seconds"},
		{"GET", "/v1/wait?device=x&state=enrolled&timeout=0.01", "", 504, "within"},
		{"GET", "/v1/events?after=x", "", 400, "number"},
	} {
		status, body := do(t, test.method, p.control+test.path, test.body)
		assert.Equal(t, test.status, status, "%s %s: %s", test.method, test.path, body)
		assert.Contains(t, body, test.want, "%s %s", test.method, test.path)
	}
}

func TestFlags(t *testing.T) {
	call := func(args ...string) (code int, stdout, stderr string) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		var out, errs bytes.Buffer
		code = run(ctx, args, &out, &errs)
		return code, out.String(), errs.String()
	}
	code, stdout, stderr := call("-h")
	assert.Equal(t, 0, code)
	assert.Contains(t, stdout, "Usage: instance")
	assert.Empty(t, stderr)
	for _, args := range [][]string{
		{"-bang"}, {"argument"}, {"-control", "0.0.0.0:1"}, {"-control", "192.0.2.1:1"}, {"-control", "1"}, {"-control", ":1"},
	} {
		code, stdout, stderr := call(args...)
		assert.Equal(t, 2, code, "%q", args)
		assert.Empty(t, stdout, "%q", args)
		assert.Equal(t, 2, strings.Count(stderr, "\n"), "%q: the error once, and a hint: %s", args, stderr)
	}
	code, stdout, stderr = call("-listen", "nowhere", "-control", "127.0.0.1:0")
	assert.Equal(t, 1, code)
	assert.Empty(t, stdout)
	assert.Contains(t, stderr, "nowhere")
}

// TestNamedAndBothVersions: a device elsewhere finds the instance by its name.
func TestNamed(t *testing.T) {
	root := filepath.Join(t.TempDir(), "root.pem")
	p := start(t, "-name", "ql.example.com", "-name", "127.0.0.1", "-tls12", "-root", root)
	assert.True(t, strings.HasPrefix(p.instance, "https://ql.example.com:"), p.instance)
	text, err := os.ReadFile(root)
	require.NoError(t, err)
	block, _ := pem.Decode(text)
	require.NotNil(t, block)
	cert, err := x509.ParseCertificate(block.Bytes)
	require.NoError(t, err)
	assert.True(t, cert.IsCA)
	var i struct{ Endpoint string }
	require.NoError(t, json.Unmarshal([]byte(must(t, "GET", p.control+"/v1/instance", "")), &i))
	assert.Equal(t, "ql.example.com", i.Endpoint)
}
