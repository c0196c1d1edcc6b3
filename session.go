package quarklink

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/quarklink-go/quarklink/internal/api"
	"github.com/quarklink-go/quarklink/internal/est"
	"github.com/quarklink-go/quarklink/internal/exchange"
	"github.com/quarklink-go/quarklink/internal/retry"
	"github.com/quarklink-go/quarklink/transport"
)

// session is one client certificate's conversation with the instance, over one
// connection at a time: a cable carries one stream.
type session struct {
	id   *tls.Certificate
	http *exchange.Transport
	est  *est.Client
	api  *api.Client
}

// open returns the session that shows id, closing one that shows another
// certificate first.
func (c *Client) open(id *tls.Certificate) (*session, error) {
	if c.session != nil && c.session.id == id {
		return c.session, nil
	}
	c.closeSession()
	instance, err := c.useInstance()
	if err != nil {
		return nil, err
	}
	s := &session{id: id, http: exchange.New(c.stream(instance, id).Dial, c.line)}
	hc := &http.Client{Transport: dated{s.http, c.proved}, CheckRedirect: est.SameOrigin}
	origin := instance.origin()
	s.est = &est.Client{HTTP: hc, Base: origin + "/.well-known/est", Now: c.now}
	s.api = &api.Client{HTTP: hc, Base: origin + "/quarklink/v1", Firmware: c.firmware.header(), Now: c.now}
	c.session = s
	return s, nil
}

func (c *Client) closeSession() {
	if c.session != nil {
		c.session.http.Close()
		c.session = nil
	}
}

// keptStream is the identity's way to the instance. It outlives its sessions, so
// that TLS can resume what they began.
type keptStream struct {
	id     *tls.Certificate
	peer   string // whom it trusts
	stream transport.Transport
}

// stream returns the way to the instance that shows id. Another instance or
// other roots make another one, which resumes nothing.
func (c *Client) stream(i Instance, id *tls.Certificate) transport.Transport {
	peer := i.origin()
	for _, root := range i.roots() {
		peer += string(root.Raw)
	}
	if c.kept.id == id && c.kept.peer == peer {
		return c.kept.stream
	}
	stream := c.trusted(i).As(id)
	if id == c.identity { // any other is in memory for one enrolment
		c.kept = keptStream{id, peer, stream}
	}
	return stream
}

// trusted returns a transport that verifies its peer: the caller's own, or TLS
// pinned to the instance's roots.
func (c *Client) trusted(i Instance) transport.Authenticator {
	if a, ok := c.transport.(transport.Authenticator); ok {
		return a
	}
	roots := x509.NewCertPool()
	for _, root := range i.roots() {
		roots.AddCert(root)
	}
	return transport.TLS{
		Addr:       i.addr(),
		ServerName: i.Endpoint,
		Roots:      roots,
		Under:      c.transport,
		MinVersion: c.minTLS,
		Time:       c.now,
	}
}

func (c *Client) bringsTrust() bool {
	_, ok := c.transport.(transport.Authenticator)
	return ok
}

// exchangeTime bounds one exchange, from the request to the end of its answer,
// however steadily the answer drips in. Of a download it bounds what comes
// before the image.
const exchangeTime = 5 * time.Minute

var errExchangeTime = fmt.Errorf("no whole answer within %v: %w", exchangeTime, os.ErrDeadlineExceeded)

// ask runs one step of a conversation with the instance, again where that can
// help.
func (c *Client) ask(ctx context.Context, step string, request func(context.Context) error) error {
	return c.repeat(ctx, step, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeoutCause(ctx, exchangeTime, errExchangeTime)
		defer cancel()
		return request(ctx)
	})
}

// fetch is ask for an answer whose body is read later. Closing the body ends
// the exchange.
func (c *Client) fetch(ctx context.Context, step string, request func(context.Context) (io.ReadCloser, int64, error)) (body io.ReadCloser, length int64, err error) {
	err = c.repeat(ctx, step, func(ctx context.Context) error {
		ctx, cancel := context.WithCancelCause(ctx)
		late := time.AfterFunc(exchangeTime, func() { cancel(errExchangeTime) })
		from, n, err := request(ctx)
		if err == nil && !late.Stop() {
			from.Close()
			err = errExchangeTime
		}
		if err != nil {
			late.Stop()
			cancel(nil)
			return err
		}
		body, length = &download{from: from, cancel: cancel}, n
		return nil
	})
	return body, length, err
}

// A download brings minProgress bytes in each progressTime, at least.
const (
	minProgress  = 64 << 10
	progressTime = 10 * time.Minute
)

var errProgress = fmt.Errorf("less than %d bytes in %v: %w", minProgress, progressTime, os.ErrDeadlineExceeded)

// download is a body that must keep coming. Only the time that is spent waiting
// for it counts: what is done with it may take as long as it likes.
type download struct {
	from   io.ReadCloser
	cancel context.CancelCauseFunc

	bytes  int           // that have come
	waited time.Duration // for them
}

func (d *download) Read(p []byte) (int, error) {
	start := time.Now()
	late := time.AfterFunc(progressTime-d.waited, func() { d.cancel(errProgress) })
	n, err := d.from.Read(p)
	late.Stop()
	d.bytes, d.waited = d.bytes+n, d.waited+time.Since(start)
	if d.bytes >= minProgress {
		d.bytes, d.waited = 0, 0
	}
	return n, err
}

func (d *download) Close() error {
	d.cancel(nil)
	return d.from.Close()
}

// repeat runs one step, again where that can help, and says which step failed.
func (c *Client) repeat(ctx context.Context, step string, request func(context.Context) error) error {
	try := 0
	c.signing.Store(nil)
	err := retry.Do(ctx, func(ctx context.Context) error {
		try++
		c.log.LogAttrs(ctx, slog.LevelInfo, step, slog.Int("try", try))
		return request(ctx)
	})
	if err == nil {
		return nil
	}
	if failed := c.signing.Load(); failed != nil {
		// crypto/tls keeps only the text of it.
		return fmt.Errorf("%s: sign with the device's key: %w", step, *failed)
	}
	err = fmt.Errorf("%s: %w", step, c.blameClock(err))
	if _, ok := causeCode(err); ok {
		return err
	}
	// net/http wraps whatever goes wrong below it in a url.Error, up to the
	// header of an answer; after that it is as the network says it.
	var unreached *url.Error
	if _, again := retry.Again(err); again || errors.As(err, &unreached) {
		return withCode(CodeCommunication, err)
	}
	return err
}

// blameClock makes ErrClock of a certificate that was refused for its dates by a
// clock that is below the application's floor.
func (c *Client) blameClock(err error) error {
	var invalid x509.CertificateInvalidError
	now := c.now()
	if errors.Is(err, ErrClock) || !now.Before(c.clockFloor) ||
		!errors.As(err, &invalid) || invalid.Reason != x509.Expired {
		return err
	}
	return fmt.Errorf("%w: it says %s, and it cannot be earlier than %s: %w", ErrClock,
		now.UTC().Format(time.RFC3339), c.clockFloor.UTC().Format(time.RFC3339), err)
}
