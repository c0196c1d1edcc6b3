// Package problem turns an HTTP answer that is not a success into an error
// that can be shown and acted on, and reads the body of one that is, within a
// limit.
//
// Whatever a server says is hostile until shown otherwise: texts are cut to
// size and freed of everything that a terminal or a log would act on before
// they are stored in an [Error].
package problem

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"
)

const (
	// maxErrorBody is how much of an error's body is read, in bytes.
	maxErrorBody = 4 << 10
	// maxAfter is the longest Retry-After that is believed.
	maxAfter = 7 * 24 * time.Hour

	maxType   = 256 // bytes; a longer type is no type that anyone compares with
	maxTitle  = 128 // runes
	maxDetail = 512 // runes
)

// Prefix begins the problem types of an instance; one of the names follows.
const Prefix = "urn:quarklink:error:"

// The names of an instance's problem types.
const (
	DeviceUnknown     = "device-unknown"
	DeviceRevoked     = "device-revoked"
	NotEnrolled       = "not-enrolled"
	BadCSR            = "bad-csr"
	BadToken          = "bad-token"
	AzureProvisioning = "azure-provisioning"
	NoFirmware        = "no-firmware"
	Unavailable       = "unavailable"
)

// ErrTooLarge is what [ReadBody] wraps when a body is larger than its limit.
var ErrTooLarge = errors.New("body too large")

// Error is an HTTP answer other than the one hoped for. It is not always a
// failure: 202 with a delay says "ask again later".
type Error struct {
	// Status is the HTTP status code.
	Status int
	// Type is the problem type of RFC 9457, as a full URI such as
	// urn:quarklink:error:device-unknown, or "" if the answer named none
	// (about:blank counts as none).
	Type string
	// Title and Detail are the server's own words, "" if it had none. Detail
	// is an excerpt of the body if that was plain text. Both are one bounded
	// line without control characters, if made by [FromResponse].
	Title, Detail string
	// After is how long the server asks to wait before the request is sent
	// again, if HasAfter. It is never negative and at most seven days.
	After time.Duration
	// HasAfter says that the answer had a Retry-After that could be read.
	HasAfter bool
	// Challenge says that a 401 came with WWW-Authenticate: other credentials
	// might help. A 401 without one is final.
	Challenge bool
}

// Name returns the name of an instance's problem type. For another type it is the
// Type itself, unless that could be mistaken for a name: then "".
func (e *Error) Name() string {
	name, ours := strings.CutPrefix(e.Type, Prefix)
	if !ours && !strings.ContainsAny(name, ":/") {
		return ""
	}
	return name
}

// Error says status, problem type, the server's own words (quoted) and the
// delay, in one line of bounded length.
func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "HTTP %d", e.Status)
	if text := http.StatusText(e.Status); text != "" {
		b.WriteString(" " + text)
	}
	if e.Type != "" {
		b.WriteString(" (" + Clean(e.Type, maxType) + ")")
	}
	if e.Title != "" {
		b.WriteString(": " + strconv.Quote(Clean(e.Title, maxTitle)))
	}
	if e.Detail != "" {
		b.WriteString(": " + strconv.Quote(Clean(e.Detail, maxDetail)))
	}
	if e.HasAfter {
		fmt.Fprintf(&b, "; the server asks to wait %v", e.After)
	}
	return b.String()
}

// FromResponse reads what resp says about a request that did not succeed, and
// closes its body. It reads at most 4 KiB of it: a problem document (RFC 9457,
// application/problem+json), or plain text, of which an excerpt becomes the
// Detail. A body that is neither, too long, or breaks off says nothing, and is
// no error of its own. The time now is what a Retry-After date is counted from
// (RFC 9110 section 10.2.3).
func FromResponse(resp *http.Response, now time.Time) *Error {
	defer resp.Body.Close()
	e := &Error{
		Status:    resp.StatusCode,
		Challenge: resp.StatusCode == http.StatusUnauthorized && len(resp.Header.Values("WWW-Authenticate")) > 0,
	}
	e.After, e.HasAfter = retryAfter(resp.Header.Get("Retry-After"), now)

	// What arrived before a read error is still worth showing.
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	mediaType, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	switch mediaType {
	case "application/problem+json":
		e.parse(body)
	case "text/plain", "": // some servers do not say that their text is text
		e.Detail = Clean(string(body), maxDetail)
	}
	return e
}

// parse fills e from a problem document. A member of the wrong type is
// ignored, as RFC 9457 section 3.1 has it.
func (e *Error) parse(document []byte) {
	var members map[string]any
	if json.Unmarshal(document, &members) != nil {
		return
	}
	text := func(name string) string { s, _ := members[name].(string); return s }
	if uri := text("type"); uri != "about:blank" && isURI(uri) {
		e.Type = uri
	}
	e.Title = Clean(text("title"), maxTitle)
	e.Detail = Clean(text("detail"), maxDetail)
}

// isURI tells what can be a problem type from what would only be trouble:
// visible ASCII of a sensible length.
func isURI(s string) bool {
	return len(s) <= maxType && strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) < 0
}

// Clean makes one line of at most limit runes of a text that a server sent:
// white space becomes one
// blank, what is not a visible character (control characters, direction marks,
// bytes that are no UTF-8) becomes U+FFFD.
func Clean(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case !unicode.IsGraphic(r):
			return unicode.ReplacementChar
		}
		return r
	}, s)
	s = strings.Join(strings.Fields(s), " ")
	runes := 0
	for i := range s {
		if runes == limit {
			return s[:i] + "…"
		}
		runes++
	}
	return s
}

// retryAfter reads a Retry-After field: seconds or an HTTP date. A time that
// has passed means now; an absurdly long one is cut to maxAfter.
func retryAfter(field string, now time.Time) (after time.Duration, ok bool) {
	field = strings.TrimSpace(field)
	seconds, err := strconv.ParseInt(field, 10, 64)
	switch {
	case err == nil && seconds > int64(maxAfter/time.Second):
		return maxAfter, true
	case err == nil:
		after = time.Duration(max(seconds, 0)) * time.Second
	case errors.Is(err, strconv.ErrRange):
		if strings.HasPrefix(field, "-") {
			return 0, true
		}
		return maxAfter, true
	default:
		date, err := http.ParseTime(field)
		if err != nil {
			return 0, false
		}
		after = date.Sub(now)
	}
	return min(max(after, 0), maxAfter), true
}

// ReadBody reads the body of a good answer to its end, so that the connection
// can serve the next request, and closes it. A body of more than limit bytes is
// an error that wraps [ErrTooLarge] and says the limit; one that breaks off is
// the error of the read, io.ErrUnexpectedEOF as a rule.
func ReadBody(resp *http.Response, limit int64) ([]byte, error) {
	defer resp.Body.Close()
	tooLarge := func() error {
		return fmt.Errorf("%w: the limit is %d bytes", ErrTooLarge, limit)
	}
	if resp.ContentLength > limit {
		return nil, tooLarge()
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if int64(len(body)) > limit {
		return nil, tooLarge()
	}
	if err != nil {
		return nil, fmt.Errorf("read body: %w", err)
	}
	return body, nil
}
