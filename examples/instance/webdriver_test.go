package main

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"image"
	"image/png"
	"io"
	"net/http"
	"os/exec"
	"regexp"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/internal/counterpart"
)

// browser is a headless Chromium, driven by the W3C WebDriver protocol through
// chromedriver.
type browser struct {
	t       *testing.T
	session string // URL
}

func newBrowser(t *testing.T) *browser {
	t.Helper()
	chromium, driver := counterpart.Program(t, "chromium"), counterpart.Program(t, "chromedriver")
	cmd := exec.Command(driver, "--port=0")
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	listening := regexp.MustCompile(`successfully on port (\d+)`)
	port := ""
	for lines := bufio.NewScanner(out); port == "" && lines.Scan(); {
		if m := listening.FindStringSubmatch(lines.Text()); m != nil {
			port = m[1]
		}
	}
	require.NotEmpty(t, port, "chromedriver does not say where it listens")
	go io.Copy(io.Discard, out)
	b := &browser{t, "http://127.0.0.1:" + port + "/session"}
	var made struct{ SessionID string }
	b.call("POST", "", map[string]any{"capabilities": map[string]any{"alwaysMatch": map[string]any{
		"browserName": "chrome",
		"goog:chromeOptions": map[string]any{"binary": chromium, "args": []string{
			"--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
			"--disable-background-networking", "--disable-component-update", "--disable-sync", "--user-data-dir=" + t.TempDir(),
		}},
	}}}, &made)
	b.session += "/" + made.SessionID
	t.Cleanup(func() { b.call("DELETE", "", nil, nil) })
	return b
}

// call makes a WebDriver command and reads its value.
func (b *browser) call(method, path string, body, value any) {
	b.t.Helper()
	text := []byte{}
	if method == "POST" {
		var err error
		text, err = json.Marshal(body)
		require.NoError(b.t, err)
	}
	req, err := http.NewRequest(method, b.session+path, bytes.NewReader(text))
	require.NoError(b.t, err)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(b.t, err)
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	require.NoError(b.t, err)
	require.Equal(b.t, 200, resp.StatusCode, "%s %s: %s", method, path, answer)
	if value != nil {
		require.NoError(b.t, json.Unmarshal(answer, &struct{ Value any }{value}))
	}
}

func (b *browser) open(url string) {
	b.t.Helper()
	b.call("POST", "/url", map[string]any{"url": url}, nil)
}

// eval runs a script that returns something.
func (b *browser) eval(script string, value any) {
	b.t.Helper()
	b.call("POST", "/execute/sync", map[string]any{"script": script, "args": []any{}}, value)
}

// text returns the visible text of what a CSS selector finds first.
func (b *browser) text(selector string) string {
	b.t.Helper()
	var text string
	b.eval(fmt.Sprintf("const e = document.querySelector(%q); return e ? (e.innerText ?? e.textContent) : ''", selector), &text)
	return text
}

// find returns the element that a CSS selector finds first, as a path.
func (b *browser) find(selector string) string {
	b.t.Helper()
	var found map[string]string
	b.call("POST", "/element", map[string]any{"using": "css selector", "value": selector}, &found)
	for _, id := range found {
		return "/element/" + id
	}
	b.t.Fatalf("%s: not found", selector)
	return ""
}

func (b *browser) click(selector string) {
	b.t.Helper()
	b.call("POST", b.find(selector)+"/click", map[string]any{}, nil)
}

func (b *browser) typeInto(selector, text string) {
	b.t.Helper()
	b.call("POST", b.find(selector)+"/value", map[string]any{"text": text}, nil)
}

// until waits for a condition, which the page's own script brings about.
func (b *browser) until(what string, ok func() bool) {
	b.t.Helper()
	for begin := time.Now(); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Since(begin) > time.Minute {
			require.FailNow(b.t, "waited in vain: "+what, "the page shows:\n%s", b.text("body"))
		}
	}
}

// screenshot returns what the window shows at a width.
func (b *browser) screenshot(width int) image.Image {
	b.t.Helper()
	b.call("POST", "/window/rect", map[string]any{"width": width, "height": 1000}, nil)
	var shot string
	b.call("GET", "/screenshot", nil, &shot)
	data, err := base64.StdEncoding.DecodeString(shot)
	require.NoError(b.t, err)
	picture, err := png.Decode(bytes.NewReader(data))
	require.NoError(b.t, err)
	return picture
}
