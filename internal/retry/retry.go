// Package retry repeats a request that may well succeed the next time. It
// holds the one policy of what is worth another try ([Again]) and the one
// schedule of when ([Do]).
package retry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"syscall"
	"time"

	"github.com/cenkalti/backoff/v4"

	"github.com/quarklink-go/quarklink/internal/problem"
)

const (
	// maxTries is how often Do calls its operation.
	maxTries = 5
	// maxWait is the longest Retry-After that Do waits for itself.
	maxWait = 10 * time.Minute

	// The first interval and the longest; each is twice the one before, give
	// or take half of it.
	firstInterval = 500 * time.Millisecond
	maxInterval   = 30 * time.Second
)

// Do calls op until it succeeds, at most five times, with growing random
// intervals between (0.5 s, doubling, plus or minus half, about 30 s at most)
// that come on top of the Retry-After that a server asked for.
//
// It returns nil, or the last error of op as it is:
//   - at once if [Again] says that another try is of no use;
//   - at once if the server asks for more than ten minutes, or the wait would
//     outlast the deadline of ctx: the caller has better uses for that time;
//   - after the fifth try.
//
// When ctx ends before op succeeded or failed for good, the error is ctx.Err()
// to errors.Is, and wraps the last error of op too, if there is one.
func Do(ctx context.Context, op func(context.Context) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s := &schedule{ctx: ctx, intervals: backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(firstInterval),
		backoff.WithMultiplier(2),
		backoff.WithMaxInterval(maxInterval),
		backoff.WithMaxElapsedTime(0),
	)}
	// backoff itself drops the last error when ctx ends; s keeps it.
	err := backoff.Retry(func() error {
		s.last = op(ctx)
		return s.last
	}, backoff.WithContext(s, ctx))
	if err == nil {
		return nil
	}
	_, again := Again(s.last)
	cancelled := ctx.Err() != nil && (again || errors.Is(s.last, context.Cause(ctx)))
	if cancelled && !errors.Is(s.last, ctx.Err()) {
		return fmt.Errorf("%w; the last try failed: %w", ctx.Err(), s.last)
	}
	return s.last
}

// schedule is the backoff.BackOff of Do.
type schedule struct {
	ctx       context.Context // of the call to Do that s lives for
	intervals *backoff.ExponentialBackOff
	tries     int
	last      error // what op returned last
}

// Reset is called once, before the first try.
func (s *schedule) Reset() { s.intervals.Reset() }

// NextBackOff is called after each try that failed.
func (s *schedule) NextBackOff() time.Duration {
	s.tries++
	after, again := Again(s.last)
	if !again || s.tries == maxTries || after > maxWait {
		return backoff.Stop
	}
	// Devices that were all told the same moment do not all come at it.
	wait := after + s.intervals.NextBackOff()
	if deadline, ok := s.ctx.Deadline(); ok && time.Until(deadline) < wait {
		return backoff.Stop
	}
	return wait
}

// Again tells whether the operation that failed with err may succeed when it
// is simply repeated, and after what delay at the earliest (0 if the server
// named none).
//
//   - The caller's context has ended: final. A timeout of the network itself
//     also claims to be context.DeadlineExceeded, but is not: another try.
//   - An HTTP status ([problem.Error]): 202, 408, 425, 429, 500, 502, 503 and
//     504 are worth another try, all others are final. That the device is
//     revoked or unknown is final whatever the status.
//   - A certificate or handshake that was refused, by either side: final.
//   - The network did not carry the request or the answer: another try.
//   - Everything else is final.
func Again(err error) (after time.Duration, again bool) {
	if contextEnded(err) {
		return 0, false
	}
	if p, ok := asType[*problem.Error](err); ok {
		if decided(p.Name()) || !transient(p.Status) {
			return 0, false
		}
		return p.After, true
	}
	return 0, !refused(err) && network(err)
}

// decided lists the problem types that only an operator changes.
func decided(name string) bool { return name == problem.DeviceRevoked || name == problem.DeviceUnknown }

// transient lists the statuses that say "later", not "no".
func transient(status int) bool {
	switch status {
	case http.StatusAccepted,
		http.StatusRequestTimeout,
		http.StatusTooEarly,
		http.StatusTooManyRequests,
		http.StatusInternalServerError,
		http.StatusBadGateway,
		http.StatusServiceUnavailable,
		http.StatusGatewayTimeout:
		return true
	}
	return false
}

// contextEnded finds the errors of package context in the tree of err, by
// identity for the deadline: a dial timeout of package net has an Is method
// that says it is context.DeadlineExceeded, and is worth another try.
func contextEnded(err error) bool {
	return errors.Is(err, context.Canceled) || contains(err, context.DeadlineExceeded)
}

// contains is errors.Is without its regard for Is methods.
func contains(err, target error) bool {
	if err == target {
		return true
	}
	switch e := err.(type) {
	case interface{ Unwrap() error }:
		return contains(e.Unwrap(), target)
	case interface{ Unwrap() []error }:
		for _, err := range e.Unwrap() {
			if contains(err, target) {
				return true
			}
		}
	}
	return false
}

// refused tells that one side did not accept the other: its certificate, its
// TLS parameters, or that it speaks TLS at all. Time does not change that.
func refused(err error) bool {
	// crypto/tls reports an alert of the peer, such as "bad certificate", with
	// this Op. In TLS 1.3 that is seen at the first read, not in the handshake.
	if e, ok := asType[*net.OpError](err); ok && e.Op == "remote error" {
		return true
	}
	return isType[*tls.CertificateVerificationError](err) ||
		isType[tls.AlertError](err) ||
		isType[tls.RecordHeaderError](err) ||
		isType[x509.CertificateInvalidError](err) ||
		isType[x509.HostnameError](err) ||
		isType[x509.UnknownAuthorityError](err) ||
		isType[x509.UnhandledCriticalExtension](err) ||
		isType[x509.InsecureAlgorithmError](err) ||
		isType[x509.ConstraintViolationError](err)
}

// network tells that err came from below HTTP.
func network(err error) bool {
	// *url.Error has the methods of net.Error whatever it wraps.
	if e, ok := asType[*url.Error](err); ok {
		return network(e.Err)
	}
	for _, target := range []error{
		io.EOF, io.ErrUnexpectedEOF, // the peer closed the stream
		io.ErrClosedPipe, // so it looks on an in-memory stream
		net.ErrClosed,
		syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.ECONNABORTED, syscall.EPIPE,
		syscall.ENETUNREACH, syscall.EHOSTUNREACH, syscall.ETIMEDOUT,
	} {
		if errors.Is(err, target) {
			return true
		}
	}
	if e, ok := asType[net.Error](err); ok {
		// A bare errno has the methods of net.Error too, and may come from a
		// full disk or a chip as well as from a socket.
		_, errno := e.(syscall.Errno)
		return !errno
	}
	return false
}

func asType[E error](err error) (E, bool) {
	var e E
	ok := errors.As(err, &e)
	return e, ok
}

func isType[E error](err error) bool {
	_, ok := asType[E](err)
	return ok
}
