package problem

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
)

var now = time.Date(2026, 11, 22, 18, 0, 0, 0, time.UTC)

// body counts what is read from it and remembers that it was closed.
type body struct {
	io.Reader
	read   int
	closed bool
}

func (b *body) Read(p []byte) (int, error) { n, err := b.Reader.Read(p); b.read += n; return n, err }
func (b *body) Close() error               { b.closed = true; return nil }

func answer(status int, r io.Reader, fields ...string) (*http.Response, *body) {
	b := &body{Reader: r}
	header := http.Header{}
	for i := 0; i < len(fields); i += 2 {
		header.Add(fields[i], fields[i+1])
	}
	return &http.Response{StatusCode: status, Header: header, Body: b, ContentLength: -1}, b
}

func Example() {
	resp := &http.Response{
		StatusCode: http.StatusForbidden,
		Header:     http.Header{"Content-Type": {"application/problem+json"}},
		Body: io.NopCloser(strings.NewReader(
			`{"type":"urn:quarklink:error:device-revoked","title":"The device is revoked"}`)),
	}
	err := FromResponse(resp, time.Now())
	fmt.Println(err.Type)
	fmt.Println(err)
	// Output:
	// urn:quarklink:error:device-revoked
	// HTTP 403 Forbidden (urn:quarklink:error:device-revoked): "The device is revoked"
}

func TestFromResponse(t *testing.T) {
	const problemJSON = "application/problem+json"
	long := strings.Repeat("é", 1000)
	for _, tt := range []struct {
		name   string
		status int
		fields []string
		body   string
		want   Error
		text   string // of the error
	}{
		{"problem document", 404, []string{"Content-Type", problemJSON},
			`{"type":"urn:quarklink:error:device-unknown","title":"Unknown","status":200,"detail":"no such device","more":[1]}`,
			Error{Status: 404, Type: "urn:quarklink:error:device-unknown", Title: "Unknown", Detail: "no such device"},
			`HTTP 404 Not Found (urn:quarklink:error:device-unknown): "Unknown": "no such device"`},
		{"media type in another spelling", 403, []string{"Content-Type", "Application/Problem+JSON; charset=utf-8"},
			`{"type":"urn:x"}`, Error{Status: 403, Type: "urn:x"}, `HTTP 403 Forbidden (urn:x)`},
		{"about:blank is no type", 503, []string{"Content-Type", problemJSON}, `{"type":"about:blank","title":"Busy"}`,
			Error{Status: 503, Title: "Busy"}, `HTTP 503 Service Unavailable: "Busy"`},
		{"members of the wrong type", 400, []string{"Content-Type", problemJSON}, `{"type":7,"title":["x"],"detail":"kept"}`,
			Error{Status: 400, Detail: "kept"}, `HTTP 400 Bad Request: "kept"`},
		{"not an object", 400, []string{"Content-Type", problemJSON}, `["type"]`, Error{Status: 400}, `HTTP 400 Bad Request`},
		{"broken JSON", 400, []string{"Content-Type", problemJSON}, `{"type":"urn:x"`, Error{Status: 400},
			`HTTP 400 Bad Request`},
		{"JSON with more behind it", 400, []string{"Content-Type", problemJSON}, `{"type":"urn:x"} x`,
			Error{Status: 400}, `HTTP 400 Bad Request`},
		{"type with a line break", 400, []string{"Content-Type", problemJSON}, `{"type":"urn:x\nlevel=info"}`,
			Error{Status: 400}, `HTTP 400 Bad Request`},
		{"type too long", 400, []string{"Content-Type", problemJSON}, `{"type":"urn:` + strings.Repeat("x", 300) +
			`"}`, Error{Status: 400}, `HTTP 400 Bad Request`},
		{"plain text", 400, []string{"Content-Type", "text/plain; charset=UTF-8"}, "Error 400:\r\n\tBad \"request\".\n",
			Error{Status: 400, Detail: `Error 400: Bad "request".`}, `HTTP 400 Bad Request: "Error 400: Bad \"request\"."`},
		{"text that does not say so", 401, nil, "denied\n", Error{Status: 401, Detail: "denied"},
			`HTTP 401 Unauthorized: "denied"`},
		{"HTML says nothing", 502, []string{"Content-Type", "text/html"}, "<h1>Bad Gateway</h1>", Error{Status: 502},
			`HTTP 502 Bad Gateway`},
		{"other JSON says nothing", 404, []string{"Content-Type", "application/json"}, `{"type":"urn:x"}`,
			Error{Status: 404}, `HTTP 404 Not Found`},
		{"hostile text", 500, []string{"Content-Type", "text/plain"}, "a\x1b[2Jb\x00c\u202ed\u2028e\xfff",
			Error{Status: 500, Detail: "a�[2Jb�c�d e�f"}, `HTTP 500 Internal Server Error: "a�[2Jb�c�d e�f"`},
		{"long text", 500, []string{"Content-Type", "text/plain"}, long,
			Error{Status: 500, Detail: long[:2*maxDetail] + "…"},
			`HTTP 500 Internal Server Error: "` + long[:2*maxDetail] + `…"`},
		{"long title", 500, []string{"Content-Type", problemJSON}, `{"title":"` + long + `"}`,
			Error{Status: 500, Title: long[:2*maxTitle] + "…"},
			`HTTP 500 Internal Server Error: "` + long[:2*maxTitle] + `…"`},
		{"challenge", 401, []string{"WWW-Authenticate", `Basic realm="x"`}, "", Error{Status: 401, Challenge: true},
			`HTTP 401 Unauthorized`},
		{"a challenge belongs to 401", 403, []string{"WWW-Authenticate", `Basic realm="x"`}, "", Error{Status: 403},
			`HTTP 403 Forbidden`},
		{"delay", 202, []string{"Retry-After", "600"}, "", Error{Status: 202, After: 10 * time.Minute, HasAfter: true},
			`HTTP 202 Accepted; the server asks to wait 10m0s`},
		{"delay on any status", 418, []string{"Retry-After", "1"}, "", Error{Status: 418, After: time.Second, HasAfter: true},
			`HTTP 418 I'm a teapot; the server asks to wait 1s`},
		{"a status without a name", 799, nil, "", Error{Status: 799}, `HTTP 799`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			resp, b := answer(tt.status, strings.NewReader(tt.body), tt.fields...)
			got := FromResponse(resp, now)
			assert.Equal(t, tt.want, *got)
			assert.Equal(t, tt.text, got.Error())
			assert.True(t, b.closed, "body is still open")
		})
	}
}

// The text is safe although the fields were not made by FromResponse.
func TestErrorIsOneBoundedLine(t *testing.T) {
	nasty := strings.Repeat("\n\x1b]0;x\a\u202e\xff", 10000)
	e := &Error{Status: -1, Type: nasty, Title: nasty, Detail: nasty, HasAfter: true}
	checkLine(t, e.Error())
}

func checkLine(t *testing.T, s string) {
	t.Helper()
	assert.LessOrEqual(t, len(s), 8<<10, "bytes of text")
	assert.True(t, utf8.ValidString(s), "not UTF-8")
	assert.Less(t, strings.IndexFunc(s, func(r rune) bool { return !unicode.IsGraphic(r) }), 0,
		"more than one plain line")
}

func TestFromResponseReadsLittle(t *testing.T) {
	resp, b := answer(500, endless{}, "Content-Type", "text/plain")
	e := FromResponse(resp, now)
	assert.LessOrEqual(t, b.read, maxErrorBody)
	assert.Equal(t, strings.Repeat("x", maxDetail)+"…", e.Detail)
	assert.True(t, b.closed, "body is still open")
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return copy(p, bytes.Repeat([]byte("x"), len(p))), nil }

func TestFromResponseBodyBreaksOff(t *testing.T) {
	r := io.MultiReader(strings.NewReader("first words"), iotest.ErrReader(io.ErrUnexpectedEOF))
	resp, b := answer(500, r, "Content-Type", "text/plain")
	e := FromResponse(resp, now)
	assert.Equal(t, 500, e.Status)
	assert.Equal(t, "first words", e.Detail)
	assert.True(t, b.closed, "body is still open")
}

func TestRetryAfter(t *testing.T) {
	for _, tt := range []struct {
		field string
		want  time.Duration
		ok    bool
	}{
		{"0", 0, true},
		{"120", 2 * time.Minute, true},
		{" 120 ", 2 * time.Minute, true},
		{"-5", 0, true},
		{"604800", maxAfter, true},
		{"604801", maxAfter, true},
		{"9223372036854775807", maxAfter, true},
		{"99999999999999999999999", maxAfter, true},
		{"-99999999999999999999999", 0, true},
		{"Sun, 22 Nov 2026 18:00:30 GMT", 30 * time.Second, true},
		{"Sunday, 22-Nov-26 18:00:30 GMT", 30 * time.Second, true}, // RFC 850
		{"Sun Nov 22 18:00:30 2026", 30 * time.Second, true},       // asctime
		{"Sun, 22 Nov 2026 17:59:59 GMT", 0, true},
		{"Thu, 01 Jan 1970 00:00:00 GMT", 0, true},
		{"Fri, 31 Dec 9999 23:59:59 GMT", maxAfter, true},
		{"", 0, false},
		{"soon", 0, false},
		{"1.5", 0, false},
		{"1e3", 0, false},
		{"0x10", 0, false},
		{"1_000", 0, false},
		{"120, 240", 0, false},
		{"2026-11-22T18:00:30Z", 0, false},
	} {
		got, ok := retryAfter(tt.field, now)
		assert.Equal(t, tt.want, got, tt.field)
		assert.Equal(t, tt.ok, ok, tt.field)
	}
}

func TestReadBody(t *testing.T) {
	const limit = 10
	for _, tt := range []struct {
		name   string
		body   io.Reader
		length int64
		want   string
		err    error
	}{
		{"empty", strings.NewReader(""), 0, "", nil},
		{"at the limit", strings.NewReader("0123456789"), limit, "0123456789", nil},
		{"at the limit, no length", strings.NewReader("0123456789"), -1, "0123456789", nil},
		{"one more", strings.NewReader("0123456789a"), -1, "", ErrTooLarge},
		{"one more announced", iotest.ErrReader(errors.New("must not be read")), limit + 1, "", ErrTooLarge},
		{"endless", endless{}, -1, "", ErrTooLarge},
		{"breaks off", io.MultiReader(strings.NewReader("012"), iotest.ErrReader(io.ErrUnexpectedEOF)), limit, "",
			io.ErrUnexpectedEOF},
	} {
		t.Run(tt.name, func(t *testing.T) {
			resp, b := answer(200, tt.body)
			resp.ContentLength = tt.length
			got, err := ReadBody(resp, limit)
			assert.Equal(t, tt.want, string(got))
			assert.ErrorIs(t, err, tt.err)
			assert.Equal(t, err == nil, tt.err == nil)
			if errors.Is(err, ErrTooLarge) {
				assert.ErrorContains(t, err, "10 bytes")
			}
			assert.LessOrEqual(t, b.read, limit+1)
			assert.True(t, b.closed, "body is still open")
		})
	}
}

func FuzzFromResponse(f *testing.F) {
	f.Add(404, "application/problem+json", "", []byte(`{"type":"urn:quarklink:error:no-firmware","detail":"x"}`))
	f.Add(202, "text/plain", "600", []byte("later\n"))
	f.Add(503, "text/plain; charset=\"", "Sun, 22 Nov 2026 18:00:30 GMT", []byte("\x1b[31m\u202e"))
	f.Fuzz(func(t *testing.T, status int, contentType, after string, text []byte) {
		resp, b := answer(status, bytes.NewReader(text), "Content-Type", contentType, "Retry-After", after)
		e := FromResponse(resp, now)
		checkLine(t, e.Error())
		for _, s := range []string{e.Type, e.Title, e.Detail} {
			checkLine(t, s)
		}
		assert.GreaterOrEqual(t, e.After, time.Duration(0))
		assert.LessOrEqual(t, e.After, time.Duration(maxAfter))
		if !e.HasAfter {
			assert.Zero(t, e.After)
		}
		assert.True(t, b.closed)
		assert.LessOrEqual(t, b.read, maxErrorBody)
	})
}
