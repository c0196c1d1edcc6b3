package quarklinktest

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/quarklink-go/quarklink"
)

// Fault is something that goes wrong with a call, or with a connection. Make
// one with the functions that return it and hand it to [Server.Fault]. The zero
// Fault does nothing and is refused.
type Fault struct {
	apply   func(*effects)
	on      target // what it can go wrong with
	final   bool   // faults that were added later do not apply together with it
	times   int    // 0: always
	devices []quarklink.DeviceID
	batch   string
	err     error // how it was made wrongly
}

// target says what a fault is for.
type target int

const (
	onCall       target = iota // a call
	onConnection               // CallConnect
	onBoth
)

// Times returns the fault for the next n requests only. An n below 1 is refused
// by [Server.Fault].
func (f Fault) Times(n int) Fault {
	if n < 1 {
		f.err = fmt.Errorf("a fault for %d requests: need at least 1", n)
	}
	f.times = n
	return f
}

// For returns the fault for requests of these devices only.
func (f Fault) For(ids ...quarklink.DeviceID) Fault {
	if len(ids) == 0 {
		f.err = errors.New("a fault for no device: name one")
	}
	f.devices = slices.Clone(ids)
	return f
}

// InBatch returns the fault for requests of the devices of one batch only.
func (f Fault) InBatch(name string) Fault {
	if name == "" {
		f.err = errors.New("a fault for a batch without a name")
	}
	f.batch = name
	return f
}

// Fault makes the next requests of a call go wrong, all of them until
// [Server.ClearFaults], or as many as [Fault.Times] says. With [CallConnect] it
// makes connections go wrong before any call.
//
// Faults add up, in the order in which they were added: a [Delay] and a
// [LoseAnswer] make one request both late and lost. A fault that answers in the
// Server's place ([Refuse], [Hold], [Answer], [Intercept], [LoseRequest]) is the
// last that applies to its request: one that was added after it waits for later
// requests. So Refuse(…).Times(1) and then Hold(…).Times(2) spoil three requests
// in a row.
//
// It is an error, and nothing is added, if there is no such call, if the fault is
// the zero Fault or was made wrongly, or if it does not fit the call: a
// connection belongs to no device yet, and what breaks a handshake breaks no
// call.
func (s *Server) Fault(call Call, f Fault) error {
	if err := f.check(call); err != nil {
		return fmt.Errorf("quarklinktest: fault of call %q: %w", call, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, &fault{f, call})
	return nil
}

func (f Fault) check(call Call) error {
	switch {
	case f.err != nil:
		return f.err
	case f.apply == nil:
		return errors.New("the zero Fault does nothing: make one with Delay, Refuse and the like")
	case call == CallConnect && f.on == onCall:
		return errors.New("this fault is for a call, not for a connection")
	case call == CallConnect && (f.devices != nil || f.batch != ""):
		return errors.New("a connection belongs to no device before its handshake")
	case call == CallConnect:
		return nil
	case f.on == onConnection:
		return fmt.Errorf("this fault is for a connection: use %q", CallConnect)
	case !slices.ContainsFunc(calls, func(c route) bool { return c.call == call }):
		return errors.New("there is no such call")
	}
	return nil
}

// isFor reports whether the fault is for a request of that device, which may be
// nil.
func (f *fault) isFor(d *device) bool {
	if f.devices == nil && f.batch == "" {
		return true
	}
	return d != nil && (f.devices == nil || slices.Contains(f.devices, d.id)) && (f.batch == "" || f.batch == d.batch.Name)
}

// ClearFaults ends all faults. A request that one has delayed stays delayed.
func (s *Server) ClearFaults() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = nil
}

// Delay answers d later, by the package time and not by Options.Now: under
// testing/synctest no real time passes. A request whose client goes away while
// it waits is not processed.
func Delay(d time.Duration) Fault {
	return Fault{on: onBoth, apply: func(e *effects) { e.delay += d }}
}

// Refuse answers with an HTTP status and a problem, which is one of the Problem
// constants or "". A retryAfter above 0 is said in a Retry-After field, in
// whole seconds, rounded up. The request is not processed.
func Refuse(status int, problem string, retryAfter time.Duration) Fault {
	a := &refusal{status: status, problem: problem, detail: "refused on purpose", retryAfter: retryAfter}
	return Fault{final: true, apply: func(e *effects) { e.instead = a.answer() }}
}

// Hold answers 202: the request has come and its answer is to be asked for
// again, after retryAfter (see [Refuse]), by the same request. The request is
// not processed.
func Hold(retryAfter time.Duration) Fault {
	a := &refusal{status: http.StatusAccepted, retryAfter: retryAfter}
	return Fault{final: true, apply: func(e *effects) {
		e.instead = &answer{status: a.status, header: a.answer().header}
	}}
}

// Answer has h answer in the Server's place, whatever that may be: another
// type, a redirect, endless garbage. The request is not processed; its body can
// be read. It must end when the request's context does: Close waits for it. Of
// other faults only [Delay] goes with it.
func Answer(h http.Handler) Fault {
	return Intercept(func(w http.ResponseWriter, r *http.Request, _ http.Handler) { h.ServeHTTP(w, r) })
}

// Intercept has h answer, as [Answer] does, and gives it the handler of the real
// answer, to be called at most once: h can look at a request and let it pass, or
// call it with a ResponseWriter of its own (an httptest.ResponseRecorder) and
// change what it answered.
func Intercept(h func(w http.ResponseWriter, r *http.Request, real http.Handler)) Fault {
	return Fault{final: true, apply: func(e *effects) { e.intercept = h }}
}

// LoseRequest breaks the connection before the request is processed. Note that
// net/http repeats a GET by itself if that happens on a connection which has
// served a request before; so it does after [LoseAnswer].
func LoseRequest() Fault {
	return Fault{final: true, apply: func(e *effects) { e.loseRequest = true }}
}

// LoseAnswer processes the request and breaks the connection instead of
// answering.
func LoseAnswer() Fault {
	return Fault{apply: func(e *effects) { e.loseAnswer = true }}
}

// CutOff breaks the connection after n bytes of the answer's body have been
// sent. A shorter body arrives whole.
func CutOff(n int64) Fault {
	return Fault{apply: func(e *effects) {
		e.body = append(e.body, func(r io.Reader) io.Reader { return io.LimitReader(r, n) })
	}}
}

// Damage flips the lowest bit of byte n of the answer's body, counted from 0.
func Damage(n int64) Fault {
	return Fault{apply: func(e *effects) {
		e.body = append(e.body, func(r io.Reader) io.Reader { return &damaged{r: r, at: n} })
	}}
}

// WrongKey answers an enrolment ([CallTemporary] or [CallEnrol]) with a
// certificate over another key than the request's. The right one has been
// issued and counts.
func WrongKey() Fault { return forged(forgeKey) }

// TwoCertificates answers an enrolment with the right certificate and its
// issuer's.
func TwoCertificates() Fault { return forged(forgeTwo) }

// ForeignIssuer answers an enrolment with a certificate over the right key that
// an unknown authority issued, and [CallCACerts] with that authority.
func ForeignIssuer() Fault { return forged(forgeIssuer) }

// Reissue answers an enrolment or [CallCACerts] with certificates that change
// has changed: the right ones, signed again by the same issuers over the same
// keys, each once. ExtraExtensions are added, Extensions are not looked at.
func Reissue(change func(*x509.Certificate)) Fault {
	made := map[[32]byte]*x509.Certificate{} // by SHA-256 of the right one; Server.mu guards it
	return forged(func(s *Server, right []*x509.Certificate) ([]*x509.Certificate, error) {
		var again []*x509.Certificate
		for _, cert := range right {
			digest := sha256.Sum256(cert.Raw)
			if made[digest] != nil {
				again = append(again, made[digest])
				continue
			}
			issuer, err := s.pki().issuerOf(cert)
			if err != nil {
				return nil, err
			}
			template := *cert
			template.RawSubject = nil // CreateCertificate would take it for Subject
			change(&template)
			changed, err := issuer.sign(cert.PublicKey, &template)
			if err != nil {
				return nil, err
			}
			made[digest] = changed
			again = append(again, changed)
		}
		return again, nil
	})
}

// MoreIssuers answers [CallCACerts] with these certificates before the right
// ones.
func MoreIssuers(certs ...*x509.Certificate) Fault {
	return forged(func(_ *Server, right []*x509.Certificate) ([]*x509.Certificate, error) {
		return slices.Concat(certs, right), nil
	})
}

func forged(f forgery) Fault {
	return Fault{apply: func(e *effects) { e.forge = f }}
}

// forgery makes other certificates of those that belong into an answer.
type forgery func(s *Server, right []*x509.Certificate) ([]*x509.Certificate, error)

func forgeKey(s *Server, right []*x509.Certificate) ([]*x509.Certificate, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	cert, err := s.pki().issuing.issueClient(key.Public(), right[0].Subject.CommonName, right[0].NotBefore, right[0].NotAfter)
	return []*x509.Certificate{cert}, err
}

func forgeTwo(s *Server, right []*x509.Certificate) ([]*x509.Certificate, error) {
	return []*x509.Certificate{right[0], s.pki().issuing.cert}, nil
}

func forgeIssuer(s *Server, right []*x509.Certificate) ([]*x509.Certificate, error) {
	if right[0].IsCA {
		return []*x509.Certificate{s.pki().foreign.cert}, nil
	}
	cert, err := s.pki().foreign.issueClient(right[0].PublicKey, right[0].Subject.CommonName, right[0].NotBefore, right[0].NotAfter)
	return []*x509.Certificate{cert}, err
}

// fault is a Fault that waits for its requests.
type fault struct {
	Fault
	call Call
}

// effects is what the faults make of one request.
type effects struct {
	delay       time.Duration
	instead     *answer
	intercept   func(w http.ResponseWriter, r *http.Request, real http.Handler)
	loseRequest bool
	loseAnswer  bool
	forge       forgery
	body        []func(io.Reader) io.Reader
	connection  connectionEffects
}

// takeFaults takes the faults that are for the next request of a call by a
// device, nil if it is nobody's.
func (s *Server) takeFaults(call Call, d *device) *effects {
	e := new(effects)
	left := s.faults[:0:0]
	over := false
	for _, f := range s.faults {
		if f.call != call || over || !f.isFor(d) {
			left = append(left, f)
			continue
		}
		f.apply(e)
		over = f.final
		if f.times--; f.times != 0 {
			f.times = max(f.times, 0)
			left = append(left, f)
		}
	}
	s.faults = left
	return e
}

// wait waits as long as the faults want. It reports false if the client or the
// Server has gone before.
func (e *effects) wait(ctx context.Context, done <-chan struct{}) bool {
	if e.delay <= 0 {
		return true
	}
	timer := time.NewTimer(e.delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
	case <-done:
	}
	return false
}

// spoil does to the answer's body what the faults want.
func (e *effects) spoil(a *answer) *answer {
	for _, f := range e.body {
		if a.body != nil {
			a.body = f(a.body)
		}
	}
	return a
}

// damaged is a stream in which the lowest bit of byte at is flipped.
type damaged struct {
	r  io.Reader
	at int64 // counted from the next byte
}

func (d *damaged) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	if 0 <= d.at && d.at < int64(n) {
		p[d.at] ^= 1
	}
	d.at -= int64(n)
	return n, err
}
