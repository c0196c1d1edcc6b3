package est

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
)

const maxRedirects = 5

// SameOrigin is an http.Client's CheckRedirect that follows at most five
// redirects, only to the scheme, host and port of the first request (RFC 7030
// section 3.2.1 leaves others to the user, whom a device does not have), and
// only if the request stays what it is: 301, 302 and 303 would turn an
// enrolment into a GET, 307 and 308 do not.
func SameOrigin(req *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return fmt.Errorf("more than %d redirects", maxRedirects)
	}
	first := via[0]
	if origin(req.URL) != origin(first.URL) {
		return fmt.Errorf("redirect from %.128q to another origin, %.128q", origin(first.URL), origin(req.URL))
	}
	if req.URL.User != nil {
		return errors.New("redirect to a URL with a password")
	}
	if req.Method != first.Method {
		return fmt.Errorf("redirect by status %d would turn %s into %s", req.Response.StatusCode, first.Method, req.Method)
	}
	return nil
}

// origin is scheme, host and port of u in one spelling (RFC 6454 section 4).
func origin(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"https": "443", "http": "80"}[u.Scheme]
	}
	return strings.ToLower(u.Scheme + "://" + u.Hostname() + ":" + port)
}
