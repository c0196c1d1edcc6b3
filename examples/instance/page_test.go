package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"image"
	"image/png"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/quarklinktest"
)

// hostile is text that would do something if it were not text.
const hostile = `<img src=x onerror="document.title='owned'"><script>document.title='owned'</script>'"&`

// newPage is a server with its control, in this process.
func newPage(t testing.TB) (*quarklinktest.Server, *httptest.Server) {
	t.Helper()
	server, err := quarklinktest.NewServer(quarklinktest.Options{InMemory: true})
	require.NoError(t, err)
	t.Cleanup(server.Close)
	web := httptest.NewUnstartedServer(nil)
	c := newControl(server, web.Listener.Addr().String())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); c.history.follow(ctx, server) }()
	web.Config.Handler = c
	web.Start()
	t.Cleanup(func() { web.CloseClientConnections(); web.Close(); cancel(); <-done })
	return server, web
}

// TestPage is an operator at work in a real browser: everything is live, all
// buttons work, and hostile text stays text.
func TestPage(t *testing.T) {
	server, web := newPage(t)
	b := newBrowser(t)
	b.open(web.URL)
	require.Contains(t, b.text("main"), "There is no batch yet")

	b.typeInto("#name", hostile)
	b.click("form[action='/batches'] button")
	b.until("the batch", func() bool { return b.text(".card h2 a") == hostile })
	b.click(".card h2 a")
	b.until("the batch's page", func() bool { return b.text("h1") == hostile })

	// A device comes, with a version that is no less hostile; the page shows it
	// without being loaded again.
	device, err := server.NewDevice(t.Context(), hostile, func(cfg *quarklink.Config) { cfg.Firmware.Version = hostile })
	require.NoError(t, err)
	defer device.Close()
	b.until("the device", func() bool { return strings.Contains(b.text("tbody"), "not enrolled") })
	_, err = device.Enrol(t.Context())
	require.NoError(t, err)
	b.until("the enrolment", func() bool { return b.text("tbody .state") == "enrolled" })
	assert.Contains(t, b.text("tbody"), hostile)

	image := filepath.Join(t.TempDir(), "image.bin")
	require.NoError(t, os.WriteFile(image, []byte("an image"), 0o600))
	b.typeInto("#image", image)
	b.typeInto("#fw-name", "blinky")
	b.typeInto("#version", "1.8.1")
	b.click("form[action$='/firmware'] button")
	b.until("the firmware", func() bool { return strings.Contains(b.text(".firmware"), "blinky 1.8.1") })
	b.until("the plot", func() bool { return b.text(".plot .tick") == "100 %" })
	assert.Contains(t, b.text("tbody"), "update due")

	// Refused, with the reason on the page.
	b.typeInto("#device", strings.Repeat("0", 64))
	b.click("form[action$='/devices'] button")
	b.until("the second device", func() bool { return strings.Count(b.text("tbody"), "Revoke") == 2 })
	b.click("form[action$='/revoke'] button")
	b.until("the revocation", func() bool { return strings.Contains(b.text("tbody"), "revoked") })
	b.click("form[action$='/allow'] button")
	b.until("the permission", func() bool { return !strings.Contains(b.text("tbody"), "revoked") })
	b.click("form[action$='/withdraw'] button")
	b.until("the withdrawal", func() bool { return strings.Contains(b.text("main"), "No firmware published") })

	teller := tellOutcome(t, server, hostile)
	b.until("the outcome", func() bool { return strings.Contains(b.text("tbody"), "failed: "+hostile) })
	b.open(web.URL + "/devices/" + string(teller))
	assert.Contains(t, b.text("main"), "failed")
	assert.Contains(t, b.text(".timeline"), hostile)
	for _, path := range []string{"/", "/batches/" + url.PathEscape(hostile)} {
		b.open(web.URL + path)
		var title string
		b.eval("return document.title", &title)
		assert.NotEqual(t, "owned", title)
		assert.Contains(t, title, "QuarkLink instance")
	}
}

// tellOutcome is a device that tells an outcome whose detail is hostile: the
// library's own client would clean it.
func tellOutcome(t *testing.T, server *quarklinktest.Server, batch string) quarklink.DeviceID {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	id, err := quarklink.DeviceIDOf(key.Public())
	require.NoError(t, err)
	require.NoError(t, server.AddDevices(batch, id))
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	roots := x509.NewCertPool()
	roots.AddCert(server.Instance().Root)
	raw, err := server.Carrier().Dial(t.Context())
	require.NoError(t, err)
	conn := tls.Client(raw, &tls.Config{RootCAs: roots, ServerName: server.Instance().Endpoint,
		Certificates: []tls.Certificate{{Certificate: [][]byte{cert}, PrivateKey: key}}})
	defer conn.Close()
	body, err := json.Marshal(map[string]any{"sha256": strings.Repeat("ab", 32), "outcome": "failed", "code": 22, "detail": hostile})
	require.NoError(t, err)
	req, err := http.NewRequest("POST", "https://instance.test/quarklink/v1/firmware/outcome", bytes.NewReader(body))
	require.NoError(t, err)
	req.Header.Set("Content-Type", "application/json")
	require.NoError(t, req.Write(conn))
	resp, err := http.ReadResponse(bufio.NewReader(conn), req)
	require.NoError(t, err)
	require.Equal(t, 204, resp.StatusCode)
	return id
}

// TestPageLooksRight takes pictures of a batch at two widths: neither is blank,
// and nothing sticks out at the side. QUARKLINK_SHOTS names a directory to keep
// them in.
func TestPageLooksRight(t *testing.T) {
	server, web := newPage(t)
	fill(t, server, 40)
	b := newBrowser(t)
	b.open(web.URL + "/batches/fleet")
	for _, width := range []int{1280, 390} {
		picture := b.screenshot(width)
		assert.Greater(t, colours(picture), 20, "%d wide: the picture is blank", width)
		var overflow int
		b.eval("return document.documentElement.scrollWidth - document.documentElement.clientWidth", &overflow)
		assert.LessOrEqual(t, overflow, 0, "%d wide: it sticks out at the side", width)
		if dir := os.Getenv("QUARKLINK_SHOTS"); dir != "" {
			keep(t, filepath.Join(dir, fmt.Sprintf("batch-%d.png", width)), picture)
		}
	}
	// By keyboard: the first stop is the way to the content.
	b.open(web.URL + "/batches/fleet")
	b.typeInto("body", "\ue004") // Tab
	var focused string
	b.eval("return document.activeElement.className", &focused)
	assert.Equal(t, "skip", focused)
}

// TestPageWithoutScript: the tables are in the page as the server sends it, which
// loads nothing from elsewhere.
func TestPageWithoutScript(t *testing.T) {
	server, web := newPage(t)
	fill(t, server, 3)
	resp, err := web.Client().Get(web.URL + "/batches/fleet")
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	assert.Equal(t, 4, bytes.Count(body, []byte("<tr>")))
	assert.NotContains(t, string(body), "http://")
	assert.NotContains(t, strings.ReplaceAll(string(body), "https://instance.test", ""), "https://")
	assert.Contains(t, resp.Header.Get("Content-Security-Policy"), "default-src 'none'")
}

// fill adds a batch "fleet" with so many devices, firmware, and a rollout under
// way.
func fill(t testing.TB, server *quarklinktest.Server, n int) {
	t.Helper()
	var ids []quarklink.DeviceID
	for i := range n {
		ids = append(ids, quarklink.DeviceID(fmt.Sprintf("%016x%048x", uint64(i)*0x9E3779B97F4A7C15, i)))
	}
	require.NoError(t, server.AddBatch(quarklinktest.Batch{
		Name: "fleet", Devices: ids,
		Firmware: &quarklinktest.Firmware{Image: strings.NewReader("image"), AsIs: true, Name: "blinky", Version: "1.8.1"},
	}))
	for i := 0; i < n; i += 7 {
		require.NoError(t, server.Revoke(ids[i]))
	}
}

// BenchmarkPage shows that a page takes time in proportion to its devices: it
// reports how many times longer 1,000 devices take than 10.
func BenchmarkPage(b *testing.B) {
	page := func(devices int) func() {
		server, web := newPage(b)
		fill(b, server, devices)
		return func() {
			r := httptest.NewRecorder()
			req := httptest.NewRequest("GET", web.URL+"/batches/fleet", nil)
			web.Config.Handler.ServeHTTP(r, req)
			require.Equal(b, 200, r.Code)
		}
	}
	few, many := page(10), page(1000)
	var fewTime, manyTime time.Duration
	for b.Loop() {
		begin := time.Now()
		for range 20 {
			few()
		}
		fewTime += time.Since(begin) / 20
		begin = time.Now()
		many()
		manyTime += time.Since(begin)
	}
	b.ReportMetric(float64(manyTime)/float64(fewTime), "×10-devices")
}

func colours(picture image.Image) int {
	seen := map[[3]uint32]bool{}
	bounds := picture.Bounds()
	for y := bounds.Min.Y; y < bounds.Max.Y; y += 2 {
		for x := bounds.Min.X; x < bounds.Max.X; x += 2 {
			r, g, b, _ := picture.At(x, y).RGBA()
			seen[[3]uint32{r, g, b}] = true
		}
	}
	return len(seen)
}

func keep(t *testing.T, path string, picture image.Image) {
	t.Helper()
	file, err := os.Create(path)
	require.NoError(t, err)
	require.NoError(t, png.Encode(file, picture))
	require.NoError(t, file.Close())
}
