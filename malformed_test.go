package quarklink_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/quarklinktest"
	"github.com/quarklink-go/quarklink/store"
)

// The calls of an instance, and what a device does that makes each.
var (
	onStatus  = []quarklinktest.Call{quarklinktest.CallStatus}
	onEnrol   = []quarklinktest.Call{quarklinktest.CallTemporary, quarklinktest.CallEnrol, quarklinktest.CallReenrol}
	onCACerts = []quarklinktest.Call{quarklinktest.CallCACerts}
	onEST     = slices.Concat(onEnrol, onCACerts)
	onConnect = []quarklinktest.Call{quarklinktest.CallConnection}
	onJSON    = slices.Concat(onStatus, onConnect)
	onImage   = []quarklinktest.Call{quarklinktest.CallFirmware}
	onOutcome = []quarklinktest.Call{quarklinktest.CallOutcome}
	onAll     = slices.Concat(onJSON, onEST, onImage, onOutcome)
)

// verdict is what becomes of a call whose answer is wrong.
type verdict int

const (
	final    verdict = iota // ErrGeneral, or ErrCACerts of cacerts; not asked again
	noHTTP                  // ErrCommunication; not asked again
	broken                  // ErrCommunication; asked five times
	cut                     // the same, but an image has begun: ErrConnectionLost, not asked again
	spoilt                  // as noHTTP, but an image has begun: ErrConnectionLost
	later                   // ErrCommunication: the instance says that it may pass; asked five times
	pending                 // ErrValueNotAvailable: not yet; asked five times
	tooLate                 // ErrCommunication: the instance wants to be left alone for longer than a call takes
	badImage                // ErrUpdate, and remembered
	untold                  // the update succeeds, that the instance did not take the outcome is logged
)

// expect returns the error and how often the call is asked for.
func (v verdict) expect(call quarklinktest.Call) (asked int, want error) {
	if call == quarklinktest.CallOutcome {
		return 1, nil
	}
	image := call == quarklinktest.CallFirmware
	switch {
	case image && (v == cut || v == spoilt):
		return 1, quarklink.ErrConnectionLost
	case v == broken, v == cut, v == later:
		return 5, quarklink.ErrCommunication
	case v == noHTTP, v == spoilt, v == tooLate:
		return 1, quarklink.ErrCommunication
	case v == pending:
		return 5, quarklink.ErrValueNotAvailable
	case v == badImage:
		return 1, quarklink.ErrUpdate
	case call == quarklinktest.CallCACerts:
		return 1, quarklink.ErrCACerts
	}
	return 1, quarklink.ErrGeneral
}

// malformed is one way in which an answer can be wrong.
type malformed struct {
	name    string
	calls   []quarklinktest.Call
	answer  string // all that is sent, after a real handshake and a whole request
	hangUp  bool   // and then the instance hangs up; otherwise it stays silent
	verdict verdict
	status  int // of the error; 0: the answer has none that counts
	says    string
}

const (
	crlf = "\r\n"
	ok   = "HTTP/1.1 200 OK" + crlf
)

// reply makes an answer of a status line's end, header lines and a body.
func reply(status string, body string, header ...string) string {
	header = append(header, "Content-Length: "+fmt.Sprint(len(body)), "Connection: close")
	return "HTTP/1.1 " + status + crlf + strings.Join(header, crlf) + crlf + crlf + body
}

// statusLines: what an answer begins with.
var statusLines = []malformed{
	{"nothing", onAll, "", true, broken, 0, ""},
	{"cut in the status line", onAll, "HTTP/1.1 20", true, broken, 0, ""},
	{"cut before the end of the line", onAll, "HTTP/1.1 200 OK\r", true, broken, 0, ""},
	{"another protocol", onAll, "SSH-2.0-OpenSSH_9.9\r\n\r\n", false, noHTTP, 0, ""},
	{"HTTP/2", onAll, "HTTP/2.0 200 OK\r\n\r\n", false, noHTTP, 0, ""},
	{"HTTP/0.9", onAll, "HTTP/0.9 200 OK\r\n\r\n", false, noHTTP, 0, ""},
	{"no such version", onAll, "HTTP/1.x 200 OK\r\n\r\n", false, noHTTP, 0, ""},
	{"lower case", onAll, "http/1.1 200 OK\r\n\r\n", false, noHTTP, 0, ""},
	{"no status", onAll, "HTTP/1.1\r\n\r\n", false, noHTTP, 0, ""},
	{"status of two digits", onAll, "HTTP/1.1 99 Low\r\n\r\n", false, noHTTP, 0, ""},
	{"status of four digits", onAll, "HTTP/1.1 2000 OK\r\n\r\n", false, noHTTP, 0, ""},
	{"status below 100", onAll, "HTTP/1.1 099 Low\r\n\r\n", false, noHTTP, 0, ""},
	{"status below 0", onAll, "HTTP/1.1 -20 OK\r\n\r\n", false, noHTTP, 0, ""},
	{"status in words", onAll, "HTTP/1.1 two OK\r\n\r\n", false, noHTTP, 0, ""},
	{"empty line first", onAll, "\r\n" + ok + crlf, false, noHTTP, 0, ""},
	{"zeros", onAll, strings.Repeat("\x00", 100) + crlf, false, noHTTP, 0, ""},
	{"TLS within TLS", onAll, "\x16\x03\x03\x00\x02\x01\x00\n", false, noHTTP, 0, ""},
	{"a line without an end", onAll, strings.Repeat("x", 70<<10), false, noHTTP, 0, "larger than 65536"},
	{"a very long line", onAll, strings.Repeat("x", 60<<10) + "\r\n\r\n", false, noHTTP, 0, ""},
	{"a line for a terminal", onAll, "\x1b[2J \x1b[2J\x07\r\n\r\n", false, noHTTP, 0, ""},
	{"switched protocols", onAll, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", false, final, 101, ""},
	{"switched protocols and went on", onAll, "HTTP/1.1 101 Switching Protocols\r\n\r\n" + strings.Repeat("x", 9000), false, final, 101, ""},
	{"interim answer alone", onAll, "HTTP/1.1 100 Continue\r\n\r\n", true, broken, 0, ""},
	{"endless interim answers", onAll, strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 100), false, noHTTP, 0, "more than 5 interim"},
	{"interim answer that is none", onAll, "HTTP/1.1 100 Continue\r\n\r\nSSH-2.0\r\n\r\n", false, noHTTP, 0, ""},
}

// headers: what comes between the status line and the body.
var headers = []malformed{
	{"cut after the status line", onAll, ok, true, broken, 0, ""},
	{"cut in a name", onAll, ok + "Content-Le", true, broken, 0, ""},
	{"cut in a value", onAll, ok + "Content-Length: 1", true, broken, 0, ""},
	{"cut before the empty line", onAll, ok + "Content-Length: 10\r\n", true, broken, 0, ""},
	{"no colon", onAll, ok + "Content-Length 10\r\n\r\n", false, noHTTP, 0, ""},
	{"no colon in a very long line", onAll, ok + strings.Repeat("x", 60<<10) + "\r\n\r\n", false, noHTTP, 0, ""},
	{"no colon, for a terminal", onAll, ok + "\x1b[2J\x07\r\n\r\n", false, noHTTP, 0, ""},
	{"no name", onAll, ok + ": 10\r\n\r\n", false, noHTTP, 0, ""},
	{"first line folded", onAll, ok + " Content-Length: 10\r\n\r\n", false, noHTTP, 0, ""},
	{"zero in a name", onAll, ok + "X\x00: y\r\n\r\n", false, noHTTP, 0, ""},
	{"blank in a name", onAll, ok + "Content Length: 10\r\n\r\n", false, noHTTP, 0, ""},
	{"blank before the colon", onAll, ok + "Content-Length : 10\r\n\r\n", false, noHTTP, 0, ""},
	{"slash in a name", onAll, ok + "X/Y: z\r\n\r\n", false, noHTTP, 0, ""},
	{"letters that are not ASCII in a name", onAll, ok + "Länge: 10\r\n\r\n", false, noHTTP, 0, ""},
	{"zero in a value", onAll, ok + "X: \x00\r\n\r\n", false, noHTTP, 0, ""},
	{"return in a value", onAll, ok + "X: a\rY: b\r\n\r\n", false, noHTTP, 0, ""},
	{"escape in a value", onAll, ok + "X: \x1b[2J\r\n\r\n", false, noHTTP, 0, ""},
	{"one field too large", onAll, ok + "X: " + strings.Repeat("y", 70<<10) + "\r\n\r\n", false, noHTTP, 0, "larger than 65536"},
	{"too many fields", onAll, ok + strings.Repeat("X: y\r\n", 20000) + "\r\n", false, noHTTP, 0, "larger than 65536"},
	{"length in words", onAll, ok + "Content-Length: ten\r\n\r\n0123456789", false, noHTTP, 0, ""},
	{"length with a sign", onAll, ok + "Content-Length: +10\r\n\r\n0123456789", false, noHTTP, 0, ""},
	{"length below 0", onAll, ok + "Content-Length: -1\r\n\r\n", false, noHTTP, 0, ""},
	{"length beyond all bounds", onAll, ok + "Content-Length: 99999999999999999999\r\n\r\n", false, noHTTP, 0, ""},
	{"length in hexadecimal", onAll, ok + "Content-Length: 0x10\r\n\r\n0123456789abcdef", false, noHTTP, 0, ""},
	{"two lengths", onAll, ok + "Content-Length: 10\r\nContent-Length: 11\r\n\r\n0123456789", false, noHTTP, 0, ""},
	{"two lengths in one field", onAll, ok + "Content-Length: 10, 11\r\n\r\n0123456789", false, noHTTP, 0, ""},
	{"an encoding that nobody asked for", onAll, ok + "Transfer-Encoding: gzip\r\n\r\n", false, noHTTP, 0, ""},
	{"chunked twice", onAll, ok + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", false, noHTTP, 0, ""},
}

// framing: how the body ends.
var framing = []malformed{
	{"shorter than its length", onAll, ok + "Content-Length: 5\r\n\r\n012", true, cut, 0, ""},
	{"no body", onAll, ok + "Content-Length: 5\r\n\r\n", true, cut, 0, ""},
	{"cut in a chunk's size", onAll, ok + "Transfer-Encoding: chunked\r\n\r\na", true, cut, 0, ""},
	{"cut in a chunk", onAll, ok + "Transfer-Encoding: chunked\r\n\r\na\r\n01234", true, cut, 0, ""},
	{"cut between chunks", onAll, ok + "Transfer-Encoding: chunked\r\n\r\n5\r\n01234\r\n", true, cut, 0, ""},
	{"cut in the trailer", onAll, ok + "Transfer-Encoding: chunked\r\n\r\n5\r\n01234\r\n0\r\nX: y\r\n", true, cut, 0, ""},
	{"size in words", onAll, ok + "Transfer-Encoding: chunked\r\n\r\nfive\r\n01234\r\n0\r\n\r\n", false, spoilt, 0, ""},
	{"no size", onAll, ok + "Transfer-Encoding: chunked\r\n\r\n\r\n01234\r\n", false, spoilt, 0, ""},
	{"size below 0", onAll, ok + "Transfer-Encoding: chunked\r\n\r\n-5\r\n01234\r\n0\r\n\r\n", false, spoilt, 0, ""},
	{"size beyond all bounds", onAll, ok + "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n01234\r\n", false, spoilt, 0, ""},
	{"chunk longer than its size", onAll, ok + "Transfer-Encoding: chunked\r\n\r\n3\r\n01234\r\n0\r\n\r\n", false, spoilt, 0, ""},
	{"endless chunk extension", onAll, ok + "Transfer-Encoding: chunked\r\n\r\n5;" + strings.Repeat("x", 9000) + "\r\n01234\r\n", false, spoilt, 0, ""},
	{"garbage in the trailer", onAll, ok + "Transfer-Encoding: chunked\r\n\r\n5\r\n01234\r\n0\r\nno colon\r\n\r\n", false, spoilt, 0, ""},
}

// redirects: an instance may send a request elsewhere within itself, and unchanged.
var redirects = []malformed{
	{"to nowhere", onAll, reply("307 Temporary Redirect", ""), false, final, 307, ""},
	{"to what is no URL", onAll, reply("307 Temporary Redirect", "", "Location: ://%zz"), false, noHTTP, 0, "parse Location"},
	{"to another host", onAll, reply("307 Temporary Redirect", "", "Location: https://elsewhere.test/x"), false, noHTTP, 0, "another origin"},
	{"to another port", onAll, reply("308 Permanent Redirect", "", "Location: https://instance.test:1/x"), false, noHTTP, 0, "another origin"},
	{"out of TLS", onAll, reply("307 Temporary Redirect", "", "Location: http://instance.test:6000/x"), false, noHTTP, 0, "another origin"},
	{"to a very long name", onAll, reply("307 Temporary Redirect", "", "Location: https://elsewhere.test/"+strings.Repeat("x", 9000)), false, noHTTP, 0, "Location of"},
	{"with a password", onAll, reply("307 Temporary Redirect", "", "Location: https://a:b@instance.test:6000/x"), false, noHTTP, 0, "with a password"},
	{"of a POST to a GET", slices.Concat(onEnrol, onOutcome), reply("303 See Other", "", "Location: /x"), false, noHTTP, 0, "POST into GET"},
	{"not modified", onAll, "HTTP/1.1 304 Not Modified\r\n\r\n", false, final, 304, ""},
	{"use a proxy", onAll, reply("305 Use Proxy", "", "Location: https://proxy.test/"), false, final, 305, ""},
}

// statuses: answers that are HTTP, and no success.
var statuses = []malformed{
	{"201 that should be 200", slices.Concat(onJSON, onCACerts, onImage), reply("201 Created", "x"), false, final, 201, ""},
	{"202", onAll, reply("202 Accepted", ""), false, pending, 202, ""},
	{"204", slices.Concat(onJSON, onEST, onImage), "HTTP/1.1 204 No Content\r\n\r\n", false, final, 204, ""},
	{"204 with a body", slices.Concat(onJSON, onEST, onImage), "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n01234", false, final, 204, ""},
	{"206", slices.Concat(onJSON, onEST, onImage), reply("206 Partial Content", "x", "Content-Range: bytes 0-0/5"), false, final, 206, ""},
	{"400", onAll, reply("400 Bad Request", "no"), false, final, 400, ""},
	{"401 with a challenge", onAll, reply("401 Unauthorized", "", `WWW-Authenticate: Basic realm="x"`), false, final, 401, ""},
	{"407", onAll, reply("407 Proxy Authentication Required", ""), false, final, 407, ""},
	{"418", onAll, reply("418 I'm a teapot", ""), false, final, 418, ""},
	{"501", onAll, reply("501 Not Implemented", ""), false, final, 501, ""},
	{"999", onAll, reply("999 What?", ""), false, final, 999, ""},
	{"408", onAll, reply("408 Request Timeout", ""), false, later, 408, ""},
	{"500 that is cut", onAll, "HTTP/1.1 500 Oops\r\nContent-Length: 100\r\n\r\n01234", true, later, 500, ""},
	{"503 that does not end", onAll, "HTTP/1.1 503 Busy\r\n\r\n" + strings.Repeat("x", 20<<10), false, later, 503, ""},
	{"400 that does not end", onAll, "HTTP/1.1 400 No\r\n\r\n" + strings.Repeat("x", 20<<10), false, final, 400, ""},
	{"problem that is no JSON", onAll, reply("400 No", "{", "Content-Type: application/problem+json"), false, final, 400, ""},
	{"problem that is a list", onAll, reply("400 No", "[]", "Content-Type: application/problem+json"), false, final, 400, ""},
	{"problem of numbers", onAll, reply("400 No", `{"type":1,"title":{},"detail":[]}`, "Content-Type: application/problem+json"), false, final, 400, ""},
	{"problem that is too deep", onAll, reply("400 No", strings.Repeat("[", 4000), "Content-Type: application/problem+json"), false, final, 400, ""},
	{"problem for a terminal", onAll, reply("400 No", `{"type":"urn:\u001b[2J","title":"\u001b[2J\u0000","detail":"a\r\nb\u202e"}`,
		"Content-Type: application/problem+json"), false, final, 400, ""},
	{"reason for a terminal", onAll, reply("400 \x1b[2Jno", "\x1b[2J\x00\xff", "Content-Type: text/plain"), false, final, 400, ""},
}

// waits: Retry-After in all its forms.
var waits = []malformed{
	{"below 0", onAll, reply("503 Busy", "", "Retry-After: -5"), false, later, 503, ""},
	{"in words", onAll, reply("503 Busy", "", "Retry-After: soon"), false, later, 503, ""},
	{"a fraction", onAll, reply("503 Busy", "", "Retry-After: 1.5"), false, later, 503, ""},
	{"a date that has passed", onAll, reply("503 Busy", "", "Retry-After: Sat, 01 Jan 1994 00:00:00 GMT"), false, later, 503, ""},
	{"a date far away", onAll, reply("503 Busy", "", "Retry-After: Fri, 31 Dec 9999 23:59:59 GMT"), false, tooLate, 503, ""},
	{"eleven minutes", onAll, reply("503 Busy", "", "Retry-After: 660"), false, tooLate, 503, ""},
	{"more seconds than there are", onAll, reply("503 Busy", "", "Retry-After: 99999999999999999999"), false, tooLate, 503, ""},
	{"with a refusal", onAll, reply("403 Forbidden", "", "Retry-After: 1"), false, final, 403, ""},
}

func jsonBody(body string) string { return reply("200 OK", body, "Content-Type: application/json") }

// documents: status and connection details. The root is a certificate in a JSON
// string.
func documents(root string) []malformed {
	return []malformed{
		{"no type", onJSON, reply("200 OK", `{"state":"enrolled"}`), false, final, 0, "Content-Type is "},
		{"another type", onJSON, reply("200 OK", `{"state":"enrolled"}`, "Content-Type: text/html"), false, final, 0, "text/html"},
		{"a type that looks like it", onJSON, reply("200 OK", `{"state":"enrolled"}`, "Content-Type: application/jsonp"), false, final, 0, "need application/json"},
		{"a type that is none", onJSON, reply("200 OK", `{"state":"enrolled"}`, "Content-Type: ;;"), false, final, 0, ";;"},
		{"compressed", onJSON, reply("200 OK", "\x1f\x8b\x08\x00\x00\x00\x00\x00", "Content-Type: application/json", "Content-Encoding: gzip"), false, final, 0, "not the JSON"},
		{"empty", onJSON, jsonBody(""), false, final, 0, "not the JSON"},
		{"null", onJSON, jsonBody("null"), false, final, 0, ""},
		{"a list", onJSON, jsonBody("[]"), false, final, 0, "not the JSON"},
		{"half", onJSON, jsonBody(`{"state":"enr`), false, final, 0, "not the JSON"},
		{"two", onJSON, jsonBody(`{"state":"enrolled"}{}`), false, final, 0, "not the JSON"},
		{"no UTF-8", onJSON, jsonBody("\xff\xfe{\x00}\x00"), false, final, 0, "not the JSON"},
		{"too deep", onJSON, jsonBody(strings.Repeat(`{"a":`, 11000)), false, final, 0, "not the JSON"},
		{"too large, and says so", onJSON, ok + "Content-Type: application/json\r\nContent-Length: 65537\r\n\r\n", false, final, 0, "too large"},
		{"too large, in chunks", onJSON, ok + "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n10001\r\n" +
			strings.Repeat(" ", 65537) + "\r\n", false, final, 0, "too large"},
		{"too large, without an end", onJSON, ok + "Content-Type: application/json\r\n\r\n" + strings.Repeat(" ", 70000), false, final, 0, "too large"},
		{"no state", onStatus, jsonBody("{}"), false, final, 0, "without a state"},
		{"state of a wrong type", onStatus, jsonBody(`{"state":1}`), false, final, 0, "not the JSON"},
		{"another device", onStatus, jsonBody(`{"deviceID":"00","state":"enrolled"}`), false, final, 0, "another device"},
		{"size that is too large", onStatus, jsonBody(`{"state":"enrolled","firmware":{"size":99999999999999999999}}`), false, final, 0, "not the JSON"},
		{"size in fractions", onStatus, jsonBody(`{"state":"enrolled","firmware":{"size":1.5}}`), false, final, 0, "not the JSON"},
		{"short digest", onStatus, jsonBody(`{"state":"enrolled","firmware":{"sha256":"00"}}`), false, final, 0, "not the JSON"},
		{"digest in other letters", onStatus, jsonBody(`{"state":"enrolled","firmware":{"sha256":"` + strings.Repeat("x", 64) + `"}}`), false, final, 0, "not the JSON"},
		{"too many attributes", onStatus, jsonBody(`{"state":"enrolled","firmware":{"attributes":{` + attributes(33) + `}}}`), false, final, 0, "33 attributes"},
		{"no connection type", onConnect, jsonBody(`{}`), false, final, 0, "endpoint"},
		{"no such connection type", onConnect, jsonBody(`{"type":"x","endpoint":"a.test","port":1,"rootCA":"` + root + `"}`), false, final, 0, "unknown type"},
		{"port 0", onConnect, jsonBody(`{"type":"iot_hub","endpoint":"a.test","port":0}`), false, final, 0, "without a port"},
		{"port 65536", onConnect, jsonBody(`{"type":"iot_hub","endpoint":"a.test","port":65536}`), false, final, 0, "not the JSON"},
		{"endpoint with a path", onConnect, jsonBody(`{"type":"iot_hub","endpoint":"a.test/x","port":1}`), false, final, 0, "not allowed in a host name"},
		{"no root", onConnect, jsonBody(`{"type":"iot_hub","endpoint":"a.test","port":1,"rootCA":""}`), false, final, 0, "0 PEM certificates"},
		{"root that is none", onConnect, jsonBody(`{"type":"iot_hub","endpoint":"a.test","port":1,"rootCA":"-----BEGIN CERTIFICATE-----\nMII=\n-----END CERTIFICATE-----\n"}`), false, final, 0, "malformed certificate"},
	}
}

func attributes(n int) string {
	var all []string
	for i := range n {
		all = append(all, fmt.Sprintf(`"%d":""`, i))
	}
	return strings.Join(all, ",")
}

// cms is an answer of EST, of a type and a body.
func cms(kind, body string) string { return reply("200 OK", body, "Content-Type: "+kind) }

// der encodes an element.
func der(tag byte, content ...string) string {
	c := strings.Join(content, "")
	switch n := len(c); {
	case n < 0x80:
		return string([]byte{tag, byte(n)}) + c
	default:
		return string([]byte{tag, 0x82, byte(n >> 8), byte(n)}) + c
	}
}

func certsOnly(parts ...string) string {
	const signedData = "\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02"
	message := der(0x30, signedData, der(0xa0, der(0x30, parts...)))
	return cms("application/pkcs7-mime", base64.StdEncoding.EncodeToString([]byte(message)))
}

const (
	version1   = "\x02\x01\x01"
	emptySet   = "\x31\x00"
	noContent  = "\x30\x0b\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x01"
	strangeOID = "\x06\x03\x2a\x03\x04"
)

// certificates: cacerts and enrolment. The certificate is over no key that the
// device knows.
func certificates(cert string) []malformed {
	good := certsOnly(version1, emptySet, noContent, der(0xa0, cert), emptySet)
	body := good[strings.Index(good, crlf+crlf)+4:]
	return []malformed{
		{"no type", onEST, reply("200 OK", body), false, final, 0, "0 Content-Type"},
		{"another type", onEST, cms("text/html", body), false, final, 0, "text/html"},
		{"a type that looks like it", onEST, cms("application/pkcs7-mime-x", body), false, final, 0, "instead of application/pkcs7-mime"},
		{"two types", onEST, cms("application/pkcs7-mime\r\nContent-Type: text/html", body), false, final, 0, "2 Content-Type"},
		{"of another kind", onEST, cms("application/pkcs7-mime; smime-type=signed-data", body), false, final, 0, "smime-type"},
		{"empty", onEST, cms("application/pkcs7-mime", ""), false, final, 0, "not a CMS message"},
		{"no base64", onEST, cms("application/pkcs7-mime", "!!!!"), false, final, 0, "not base64"},
		{"base64 without its end", onEST, cms("application/pkcs7-mime", body[:len(body)-1]), false, final, 0, "not base64"},
		{"base64 for URLs", onEST, cms("application/pkcs7-mime", "-_-_"), false, final, 0, "not base64"},
		{"more after the end of base64", onEST, cms("application/pkcs7-mime", "MAA=MAA="), false, final, 0, "not base64"},
		{"PEM", onEST, cms("application/pkcs7-mime", "-----BEGIN PKCS7-----\n"+body+"\n-----END PKCS7-----\n"), false, final, 0, "not base64"},
		{"raw DER", onEST, cms("application/pkcs7-mime", der(0x30, "\x00")), false, final, 0, "not base64"},
		{"more than a megabyte, and says so", onEST, ok + "Content-Type: application/pkcs7-mime\r\nContent-Length: 1048577\r\n\r\n", false, final, 0, "too large"},
		{"more than a megabyte, without an end", onEST, ok + "Content-Type: application/pkcs7-mime\r\n\r\n" + strings.Repeat("A", 1<<20+1), false, final, 0, "too large"},
		{"no DER", onEST, cms("application/pkcs7-mime", "AAAA"), false, final, 0, "not a CMS message"},
		{"half of DER", onEST, cms("application/pkcs7-mime", body[:len(body)/8*4]), false, final, 0, "not a CMS message"},
		{"a bare certificate", onEST, cms("application/pkcs7-mime", base64.StdEncoding.EncodeToString([]byte(cert))), false, final, 0, "not SignedData"},
		{"another OID", onEST, cms("application/pkcs7-mime", base64.StdEncoding.EncodeToString([]byte(der(0x30, strangeOID, der(0xa0, "\x30\x00"))))), false, final, 0, "not SignedData"},
		{"no certificate", onEST, certsOnly(version1, emptySet, noContent, der(0xa0), emptySet), false, final, 0, "has no certificates"},
		{"a certificate that is none", onEST, certsOnly(version1, emptySet, noContent, der(0xa0, "\x30\x03\x02\x01\x01"), emptySet), false, final, 0, "certificate 1 of"},
		{"a signer", onEST, certsOnly(version1, emptySet, noContent, der(0xa0, cert), der(0x31, "\x30\x00")), false, final, 0, "has signers"},
		{"no signers", onEST, certsOnly(version1, emptySet, noContent, der(0xa0, cert)), false, final, 0, "signers"},
		{"content", onEST, certsOnly(version1, emptySet, der(0x30, noContent[2:], der(0xa0, "\x04\x01x")), der(0xa0, cert), emptySet), false, final, 0, "has content"},
		{"another version", onEST, certsOnly("\x02\x01\x03", emptySet, noContent, der(0xa0, cert), emptySet), false, final, 0, "not of version 1"},
		{"a CRL", onEST, certsOnly(version1, emptySet, noContent, der(0xa0, cert), der(0xa1, "\x30\x00"), emptySet), false, final, 0, "has CRLs"},
		{"over another key", onEnrol, good, false, final, 0, "another key"},
		{"two certificates", onEnrol, certsOnly(version1, emptySet, noContent, der(0xa0, cert, cert), emptySet), false, final, 0, "2 certificates"},
		{"an authority that did not issue", onCACerts, good, false, final, 0, "not issued under"},
	}
}

// images: the firmware, which is announced with the five bytes "image".
var images = []malformed{
	{"longer than announced, and says so", onImage, reply("200 OK", "image!"), false, badImage, 0, "has 6 bytes"},
	{"longer than announced, in chunks", onImage, ok + "Transfer-Encoding: chunked\r\n\r\n6\r\nimage!\r\n0\r\n\r\n", false, badImage, 0, "longer than"},
	{"longer than announced, without an end", onImage, ok + crlf + strings.Repeat("image", 9000), false, badImage, 0, "longer than"},
	{"shorter than announced", onImage, reply("200 OK", "imag"), false, cut, 0, "after 4 of 5"},
	{"shorter than announced, in chunks", onImage, ok + "Transfer-Encoding: chunked\r\n\r\n4\r\nimag\r\n0\r\n\r\n", false, cut, 0, "after 4 of 5"},
	{"shorter than announced, without an end", onImage, ok + crlf + "imag", true, cut, 0, "after 4 of 5"},
	{"none at all", onImage, reply("200 OK", ""), false, cut, 0, "after 0 of 5"},
	{"another one of the same length", onImage, reply("200 OK", "imagE"), false, badImage, 0, "SHA-256"},
}

func all(t *testing.T) map[string][]malformed {
	return map[string][]malformed{
		"status line": statusLines, "header": headers, "framing": framing, "redirect": redirects, "status": statuses,
		"Retry-After": waits, "document": documents(pemOf(newRoot(t, "hub"))), "certificates": certificates(string(newRoot(t, "stranger").Raw)), "image": images,
	}
}

// TestMalformedAnswers gives each call each answer that is wrong for it. The
// call says what is wrong in a text that a terminal can show, asks again only
// where that can help, stores nothing, leaves nothing open, and ends with its
// context wherever the answer stops.
func TestMalformedAnswers(t *testing.T) {
	rows := 0
	for part, table := range all(t) {
		rows += len(table)
		for _, m := range table {
			for _, call := range m.calls {
				t.Run(fmt.Sprintf("%s/%s/%s", part, m.name, call), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) { m.test(t, call) })
				})
			}
		}
	}
	assert.GreaterOrEqual(t, rows, 90)
}

// patient is a device in a batch, with what its instance is to answer.
type patient struct {
	server *quarklinktest.Server
	store  *store.Mem
	client *quarklink.Client
	slot   *flashSlot
	log    bytes.Buffer
}

// newPatient is a device that is where it makes the call: enrolled, if that is to
// renew.
func newPatient(t *testing.T, call quarklinktest.Call) *patient {
	p := &patient{store: new(store.Mem), slot: newSlot(t, 1<<20)}
	p.server = newServer(t, quarklinktest.Options{InMemory: true})
	p.client = newClient(t, p.store, at(p.server), func(cfg *quarklink.Config) { cfg.Logger = slog.New(slog.NewTextHandler(&p.log, nil)) })
	member(t, p.server, p.client, asIs([]byte("image")))
	if call == quarklinktest.CallReenrol {
		_, err := p.client.Enrol(t.Context())
		require.NoError(t, err)
	}
	return p
}

// make makes the device ask for a call.
func (p *patient) make(ctx context.Context, call quarklinktest.Call) error {
	var err error
	switch call {
	case quarklinktest.CallStatus:
		_, err = p.client.Status(ctx)
	case quarklinktest.CallFirmware, quarklinktest.CallOutcome:
		_, err = p.client.FirmwareUpdate(ctx, quarklink.FirmwareOptions{Slot: p.slot, Verifier: anything})
	case quarklinktest.CallReenrol:
		_, err = p.client.Renew(ctx, quarklink.RenewOptions{})
	default:
		_, err = p.client.Enrol(ctx)
	}
	return err
}

// stored returns the records, all or all but one.
func (p *patient) stored(t *testing.T, but string) map[string]string {
	t.Helper()
	records := map[string]string{}
	for _, name := range []string{"instance", "network", "enrolment", "csr", "update", "key-esk", "key-dsk"} {
		if data, err := p.store.Get(t.Context(), name); err == nil && name != but {
			records[name] = string(data)
		}
	}
	return records
}

func (m malformed) test(t *testing.T, call quarklinktest.Call) {
	defer lateEnd()
	p := newPatient(t, call)
	present, none := p.client.Enrolment()
	// A plain refusal brings the device to where it would store the answer.
	refuse := quarklinktest.Refuse(400, "", 0)
	if call != quarklinktest.CallOutcome {
		p.server.Fault(call, refuse.Times(1))
		require.Error(t, p.make(t.Context(), call))
	}
	mayChange := "" // the record that tells what became of this
	switch {
	case m.verdict == badImage, call == quarklinktest.CallOutcome:
		mayChange = "update"
	case m.verdict == pending && call == quarklinktest.CallTemporary:
		mayChange = "enrolment" // the request that waits
	}
	before := p.stored(t, mayChange)
	asked := p.server.Stats().Calls[call]

	p.server.Fault(call, m.fault(m.answer))
	err := p.make(t.Context(), call)
	times, want := m.verdict.expect(call)
	assert.Equal(t, times, p.server.Stats().Calls[call]-asked, "requests")
	assert.Equal(t, before, p.stored(t, mayChange), "records")
	if want == nil {
		require.NoError(t, err)
		assert.Contains(t, p.log.String(), "outcome not told")
		p.log.Reset()
	} else {
		m.check(t, err, want)
		assert.Zero(t, p.slot.active, "bytes activated")
	}
	e, err := p.client.Enrolment()
	assert.Equal(t, none, err)
	assert.Equal(t, present, e)

	if call != quarklinktest.CallOutcome && m.verdict != badImage { // those are over
		p.server.ClearFaults()
		p.server.Fault(call, m.fault(m.answer[:len(m.answer)/2]))
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		start := time.Now()
		require.Error(t, p.make(ctx, call))
		assert.LessOrEqual(t, time.Since(start), 10*time.Second, "the call outlives its context")
		assert.Equal(t, before, p.stored(t, mayChange), "records")
	}
	require.NoError(t, p.client.Close())
	time.Sleep(time.Second)
	assert.Zero(t, p.server.Stats().Open, "connections open")
}

func (m malformed) check(t *testing.T, err, want error) {
	t.Helper()
	require.ErrorIs(t, err, want)
	onlyCode(t, err)
	var e *quarklink.Error
	require.ErrorAs(t, err, &e)
	assert.Equal(t, m.status, e.HTTPStatus)
	assert.ErrorContains(t, err, m.says)
	if m.verdict == spoilt || m.verdict == noHTTP && m.says == "" {
		assert.ErrorContains(t, err, "not well-formed HTTP")
	}
	assert.Less(t, len(err.Error()), 1500)
	assert.Equal(t, -1, strings.IndexFunc(err.Error(), func(r rune) bool { return !unicode.IsPrint(r) }), "%q", err)
}

// fault answers with the bytes, and hangs up or not.
func (m malformed) fault(text string) quarklinktest.Fault {
	if !m.hangUp {
		return raw(func(w io.Writer) { io.WriteString(w, text) })
	}
	return raw(func(w io.Writer) {
		io.WriteString(w, text)
		w.(net.Conn).Close()
	})
}

// TestMalformedRedirectLoop: an instance that sends a device round and round is
// followed five times.
func TestMalformedRedirectLoop(t *testing.T) {
	for _, call := range onAll {
		t.Run(string(call), func(t *testing.T) {
			p := newPatient(t, call)
			again := quarklinktest.Answer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
			}))
			p.server.Fault(call, again)
			err := p.make(t.Context(), call)
			_, want := noHTTP.expect(call)
			require.ErrorIs(t, err, want)
			assert.Equal(t, 6, p.server.Stats().Calls[call])
		})
	}
}
