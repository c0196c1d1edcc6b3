package quarklinktest_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/esp/image"
	"github.com/quarklink-go/quarklink/esp/secureboot"
	"github.com/quarklink-go/quarklink/esp/secureboot/sbecdsa"
	"github.com/quarklink-go/quarklink/esp/secureboot/sbsign"
	"github.com/quarklink-go/quarklink/quarklinktest"
)

func minimal(t testing.TB, version string) []byte {
	t.Helper()
	img, err := image.Minimal(image.ESP32C6, image.App{Project: "blinky", Version: version, SecureVersion: 3})
	require.NoError(t, err)
	return img
}

// newFirmwareServer has one batch "b" that signs, and one device in it.
func newFirmwareServer(t testing.TB) (*quarklinktest.Server, *rawDevice, secureboot.Verifier) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	digest, err := sbsign.KeyDigest(key.Public())
	require.NoError(t, err)
	s := newServer(t, quarklinktest.Options{InMemory: true})
	require.NoError(t, s.AddBatch(quarklinktest.Batch{Name: "b", SigningKey: key}))
	return s, newDevice(t, s, "b"), secureboot.Verifier{Chip: image.ESP32C6,
		Schemes: []secureboot.Scheme{sbecdsa.Scheme()}, Trusted: []secureboot.Digest{digest}}
}

func TestPublishSigns(t *testing.T) {
	s, d, verifier := newFirmwareServer(t)
	c := d.client(d.identity)
	img := minimal(t, "1.8.1")
	require.NoError(t, s.Publish("b", quarklinktest.Firmware{Image: bytes.NewReader(img)}))
	due := d.status().Firmware
	require.NotNil(t, due)
	require.Equal(t, "blinky", due.Name)
	require.Equal(t, "1.8.1", due.Version)
	require.EqualValues(t, 3, due.SecureVersion)
	require.EqualValues(t, 8192, due.Size)
	require.Equal(t, map[string]string{"chip": "esp32c6"}, due.Attributes)
	got := d.get(c, pathFirmware)
	digest := sha256.Sum256(got.body)
	assert.Equal(t, hex.EncodeToString(digest[:]), due.SHA256,
		"what is served is not what was announced")
	assert.Equal(t, due.Size, int64(len(got.body)), "what is served is not what was announced")
	assert.Equal(t, `"`+due.SHA256+`"`, got.header.Get("ETag"))
	assert.Equal(t, "sha-256=:"+base64.StdEncoding.EncodeToString(digest[:])+":", got.header.Get("Repr-Digest"),
		"Repr-Digest")
	assert.NoError(t, verifier.Verify(t.Context(), bytes.NewReader(got.body), due.Size))
	assert.Equal(t, img, got.body[:len(img)], "the image was changed")

	// A signed image stays as it is, and so does anything if that is asked for.
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	signed, err := sbsign.Image(rand.Reader, img, other)
	require.NoError(t, err)
	tampered := bytes.Clone(got.body)
	tampered[100] ^= 1
	for name, f := range map[string]quarklinktest.Firmware{
		"signed":   {Image: bytes.NewReader(signed)},
		"unsigned": {Image: bytes.NewReader(img), AsIs: true},
		"tampered": {Image: bytes.NewReader(tampered), AsIs: true, Name: "n", Version: "v",
			Attributes: map[string]string{"chip": "z80"}},
		"no image": {Image: strings.NewReader("firmware"), AsIs: true},
		"sized":    {Image: readerAt{bytes.NewReader(img)}, Size: 99, AsIs: true},
	} {
		if err := s.Publish("b", f); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var want bytes.Buffer
		io.Copy(&want, io.NewSectionReader(f.Image, 0, 1<<20))
		if f.Size > 0 {
			want.Truncate(int(f.Size))
		}
		assert.Equal(t, want.Bytes(), d.get(c, pathFirmware).body, name)
	}
	for name, f := range map[string]quarklinktest.Firmware{
		"no image":     {Image: strings.NewReader("firmware")},
		"tampered":     {Image: bytes.NewReader(tampered)},
		"shorter":      {Image: bytes.NewReader(img), Size: int64(len(img)) + 1, AsIs: true},
		"without size": {Image: readerAt{bytes.NewReader(img)}},
	} {
		assert.Error(t, s.Publish("b", f), name)
	}
	require.Error(t, s.Publish("c", quarklinktest.Firmware{Image: bytes.NewReader(img)}),
		"there is no batch c")
	assert.Error(t, s.Withdraw("c"), "there is no batch c")
	require.NoError(t, s.Withdraw("b"))
	r := d.get(c, pathFirmware)
	assert.Equal(t, 404, r.status, "withdrawn firmware is due")
	assert.Equal(t, "no-firmware", r.problem(t), "withdrawn firmware is due")
	assert.Nil(t, d.status().Firmware, "withdrawn firmware is due")
}

// readerAt hides all but ReadAt.
type readerAt struct{ io.ReaderAt }

func TestDue(t *testing.T) {
	s, d, _ := newFirmwareServer(t)
	require.NoError(t, s.Publish("b", quarklinktest.Firmware{Image: bytes.NewReader(minimal(t, `1.8"1`))}))
	digest, other := d.status().Firmware.SHA256, strings.Repeat("0", 64)
	c := d.client(d.identity)
	for field, want := range map[string]int{ // HTTP status of the download
		``:                                     200,
		`version="1.8.0"`:                      200,
		`version="1.8\"1"`:                     404,
		`sha256="` + digest + `"`:              404,
		`sha256="` + other + `"`:               200,
		`sha256=""`:                            200,
		`version="1", sha256="` + digest + `"`: 404,
		`version="1.8\"1",sha256="` + other + `"`: 200,
		`chip="esp32c3", version="1.8\"1"`:        404,
		`version=1.8.0`:                           400,
		`version="1.8.0`:                          400,
		`version="1" sha256="1"`:                  400,
		`version="1", version="1"`:                400,
		`version="1",`:                            400,
		`="1"`:                                    400,
		`version="1\`:                             400,
	} {
		r := d.get(c, pathFirmware, "QuarkLink-Firmware", field)
		assert.Equal(t, want, r.status, field)
		st := d.get(c, pathStatus, "QuarkLink-Firmware", field)
		if wantStatus := map[bool]int{true: 400, false: 200}[want == 400]; st.status != wantStatus {
			t.Errorf("%s: status is HTTP %d", field, st.status)
		} else if due := bytes.Contains(st.body, []byte(`"firmware"`)); due != (want == 200) {
			t.Errorf("%s: due: %v", field, due)
		}
	}
	require.NoError(t, s.Revoke(d.id))
	assert.Nil(t, d.status().Firmware, "an update is due for a revoked device")
}

func TestRangesAndPreconditions(t *testing.T) {
	s, d, _ := newFirmwareServer(t)
	require.NoError(t, s.Publish("b", quarklinktest.Firmware{Image: bytes.NewReader(minimal(t, "1"))}))
	c := d.client(d.identity)
	whole := d.get(c, pathFirmware)
	etag, n := whole.header.Get("ETag"), len(whole.body)
	for _, test := range []struct {
		header       []string
		status       int
		from, to     int // of the image
		contentRange string
	}{
		{nil, 200, 0, n, ""},
		{[]string{"Range", "bytes=4096-"}, 206, 4096, n, fmt.Sprintf("bytes 4096-%d/%d", n-1, n)},
		{[]string{"Range", "bytes=0-0"}, 206, 0, 1, fmt.Sprintf("bytes 0-0/%d", n)},
		{[]string{"Range", "bytes=1-999999"}, 206, 1, n, fmt.Sprintf("bytes 1-%d/%d", n-1, n)},
		{[]string{"Range", "bytes=-10"}, 206, n - 10, n, fmt.Sprintf("bytes %d-%d/%d", n-10, n-1, n)},
		{[]string{"Range", "bytes=-999999"}, 206, 0, n, fmt.Sprintf("bytes 0-%d/%d", n-1, n)},
		{[]string{"Range", fmt.Sprintf("bytes=%d-", n)}, 416, 0, 0, fmt.Sprintf("bytes */%d", n)},
		{[]string{"Range", "bytes=-0"}, 416, 0, 0, fmt.Sprintf("bytes */%d", n)},
		{[]string{"Range", "bytes=5-4"}, 200, 0, n, ""},
		{[]string{"Range", "bytes=0-1,5-6"}, 200, 0, n, ""},
		{[]string{"Range", "bytes=-"}, 200, 0, n, ""},
		{[]string{"Range", "bytes=a-b"}, 200, 0, n, ""},
		{[]string{"Range", "lines=1-2"}, 200, 0, n, ""},
		{[]string{"If-Match", etag}, 200, 0, n, ""},
		{[]string{"If-Match", "*"}, 200, 0, n, ""},
		{[]string{"If-Match", `"x", ` + etag}, 200, 0, n, ""},
		{[]string{"If-Match", `"x"`}, 412, 0, 0, ""},
		{[]string{"If-Match", "W/" + etag}, 412, 0, 0, ""},
		{[]string{"If-Match", etag, "Range", "bytes=8-15"}, 206, 8, 16, fmt.Sprintf("bytes 8-15/%d", n)},
		{[]string{"If-Match", `"x"`, "Range", "bytes=8-15"}, 412, 0, 0, ""},
		{[]string{"If-Range", etag, "Range", "bytes=8-15"}, 206, 8, 16, fmt.Sprintf("bytes 8-15/%d", n)},
		{[]string{"If-Range", `"x"`, "Range", "bytes=8-15"}, 200, 0, n, ""},
	} {
		r := d.get(c, pathFirmware, test.header...)
		assert.Equal(t, test.status, r.status, test.header)
		assert.Equal(t, test.contentRange, r.header.Get("Content-Range"), test.header)
		if r.status >= 400 {
			r.problem(t)
		} else if !bytes.Equal(r.body, whole.body[test.from:test.to]) {
			t.Errorf("%q: the wrong bytes", test.header)
		}
	}
	r := d.do(c, http.MethodHead, pathFirmware, nil)
	assert.Equal(t, 200, r.status, "HEAD")
	require.Empty(t, r.body, "HEAD")
	assert.Equal(t, fmt.Sprint(n), r.header.Get("Content-Length"), "HEAD")
}

// Where byteRange says 206, net/http's file server says the same.
func FuzzByteRange(f *testing.F) {
	for _, seed := range []string{"bytes=0-", "bytes=1-2", "bytes=-5", "bytes=9-1", "bytes=0-0,2-3", "bytes= 1-2",
		"bytes=+1-2"} {
		f.Add(seed, int64(100))
	}
	f.Fuzz(func(t *testing.T, field string, size int64) {
		if size < 0 || size > 1<<16 {
			return
		}
		header := http.Header{"Range": {field}}
		start, end, status := quarklinktest.ByteRange(header, `"e"`, size)
		if status != 206 {
			return
		}
		require.GreaterOrEqual(t, start, int64(0), field)
		require.Less(t, start, end, field)
		require.LessOrEqual(t, end, size, field)
		w := httptest.NewRecorder()
		r := httptest.NewRequest("GET", "/", nil)
		r.Header = header
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(make([]byte, size)))
		require.Equal(t, 206, w.Code, field)
		require.Equal(t, fmt.Sprintf("bytes %d-%d/%d", start, end-1, size), w.Header().Get("Content-Range"),
			field)
	})
}

func FuzzParseFirmwareField(f *testing.F) {
	f.Add(`version="1.8.0", sha256="00"`)
	f.Add(`version="1\"\\",x=""`)
	f.Add(`version="1\`)
	f.Fuzz(func(t *testing.T, field string) {
		said, err := quarklinktest.ParseFirmwareField(field)
		if err != nil {
			return
		}
		var again []string
		for name, value := range said {
			again = append(again, name+`="`+strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(value)+`"`)
		}
		reread, err := quarklinktest.ParseFirmwareField(strings.Join(again, ", "))
		require.NoError(t, err, field)
		require.Equal(t, reread, said, field)
	})
}

func TestOutcomes(t *testing.T) {
	s, d, _ := newFirmwareServer(t)
	c := d.client(d.identity)
	digest := strings.Repeat("ab", 32)
	for _, test := range []struct {
		contentType, body string
		status            int
	}{
		{"application/json", `{"sha256":"` + digest + `","outcome":"failed","code":22,"detail":"flash worn out"}`, 204},
		{"application/json", `{"sha256":"` + digest + `","outcome":"rolled_back"}`, 204},
		{"application/json; charset=utf-8", `{"sha256":"` + digest + `","outcome":"confirmed"}`, 204},
		{"text/plain", `{"sha256":"` + digest + `","outcome":"installed"}`, 415},
		{"application/json", `{"sha256":"` + digest + `","outcome":"exploded"}`, 400},
		{"application/json", `{"sha256":"abab","outcome":"installed"}`, 400},
		{"application/json", `{"sha256":`, 400},
		{"application/json", `{"detail":"` + strings.Repeat("x", 64<<10) + `"}`, 413},
	} {
		r := d.do(c, "POST", pathOutcome, []byte(test.body), "Content-Type", test.contentType)
		assert.Equal(t, test.status, r.status, test.body)
		if r.status == 204 {
			assert.Empty(t, r.header.Get("Content-Length"), "RFC 9110 section 8.6")
		}
	}
	got := s.Outcomes(d.id)
	for i := range got {
		assert.False(t, got[i].Time.IsZero(), "outcome %d has no time", i)
		got[i].Time = time.Time{}
	}
	sum := [32]byte(bytes.Repeat([]byte{0xab}, 32))
	require.Len(t, got, 3)
	assert.Equal(t, quarklinktest.Outcome{SHA256: sum, Outcome: "failed", Code: quarklink.CodeUpdate,
		Detail: "flash worn out"}, got[0])
	assert.Equal(t, "rolled_back", got[1].Outcome)
	assert.Equal(t, "confirmed", got[2].Outcome)
}

// An image that exists nowhere as a whole is served in constant memory.
func TestStreamsInConstantMemory(t *testing.T) {
	const size, limit = 64 << 20, 2 << 20
	s, d, _ := newFirmwareServer(t)
	require.NoError(t, s.Publish("b", quarklinktest.Firmware{Image: counting{}, Size: size, AsIs: true}))
	req, err := http.NewRequestWithContext(t.Context(), "GET", "https://instance.test"+pathFirmware, nil)
	require.NoError(t, err)
	resp, err := d.client(d.identity).Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	live := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before, sum, total := live(), sha256.New(), int64(0)
	for {
		n, err := io.CopyN(sum, resp.Body, 4<<20)
		total += n
		require.LessOrEqual(t, live(), before+limit, total)
		if err == io.EOF {
			break
		}
		require.NoError(t, err)
	}
	assert.EqualValues(t, size, total)
	assert.Equal(t, fmt.Sprintf(`"%x"`, sum.Sum(nil)), resp.Header.Get("ETag"))
}

// counting is an endless file of 64-bit numbers.
type counting struct{}

func (counting) ReadAt(p []byte, off int64) (int, error) {
	var word [8]byte
	for i := range p {
		at := off + int64(i)
		if i == 0 || at%8 == 0 {
			binary.BigEndian.PutUint64(word[:], uint64(at/8))
		}
		p[i] = word[at%8]
	}
	return len(p), nil
}

// An image that can be read no longer breaks the download off.
func TestImageBreaks(t *testing.T) {
	s, d, _ := newFirmwareServer(t)
	img := minimal(t, "1")
	source := &breaking{Reader: bytes.NewReader(img)}
	require.NoError(t, s.Publish("b", quarklinktest.Firmware{Image: source}))
	source.at.Store(200)
	r, err := try(t.Context(), d.client(d.identity), "GET", pathFirmware, nil)
	assert.ErrorIs(t, err, io.ErrUnexpectedEOF, len(r.body))
	assert.Equal(t, 200, r.status, len(r.body))
	assert.Equal(t, img[:200], r.body, len(r.body))
	assert.ErrorIs(t, s.Publish("b", quarklinktest.Firmware{Image: source}), errBroken, "published")
}

var errBroken = errors.New("broken")

// breaking cannot be read from the offset at on, if that is not 0.
type breaking struct {
	*bytes.Reader
	at atomic.Int64
}

func (b *breaking) ReadAt(p []byte, off int64) (int, error) {
	at := b.at.Load()
	if at == 0 || off+int64(len(p)) <= at {
		return b.Reader.ReadAt(p, off)
	}
	n, _ := b.Reader.ReadAt(p[:max(0, at-off)], off)
	return n, errBroken
}

// Publish sees an image through any ReaderAt as it sees it whole.
func TestSignedImageReadAt(t *testing.T) {
	s, d, verifier := newFirmwareServer(t)
	require.NoError(t, s.Publish("b", quarklinktest.Firmware{Image: bytes.NewReader(minimal(t, "1"))}))
	c := d.client(d.identity)
	whole := d.get(c, pathFirmware).body
	// Pieces that begin and end before, in and after the place where the image
	// ends and its signature begins.
	for _, from := range []int{0, 300, 335, 336, 337, 4095, 4096, 4097, 8191} {
		for _, to := range []int{336, 337, 400, 4096, 4097, 5000, 8192} {
			if to <= from {
				continue
			}
			r := d.get(c, pathFirmware, "Range", fmt.Sprintf("bytes=%d-%d", from, to-1))
			require.Equal(t, 206, r.status, "or other bytes")
			require.Equal(t, whole[from:to], r.body, "or other bytes")
		}
	}
	assert.NoError(t, verifier.Verify(context.Background(), bytes.NewReader(whole), int64(len(whole))))
}
