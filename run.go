package quarklink

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"
)

// Run is a device's life: it provisions and joins the network where that is
// called for, asks the instance how the device stands, installs updates, enrols,
// renews, and keeps the application's hub function running. It returns when ctx
// ends, when the Client is closed, or for a restart.
//
// It asks as often as the instance wishes, or every 15 minutes, with some jitter
// that spreads a fleet. At each answer it does what the first row that fits says:
//
//	the device's clock is wrong    no hub; ask again after 1 min, doubling up to 1 h
//	the instance is not reached    the hub goes on while the certificate serves; the same
//	the device is in no batch      no hub; ask again at the poll interval
//	revoked                        no hub; ask again at the poll interval, doubling up to 1 h
//	about to be revoked            update; the hub goes on
//	not enrolled, no certificate
//	that serves, or expired        update, enrol, hub
//	certificate due                update, renew, hub
//	otherwise                      update, hub
//
// There is one attempt at an update each time, and what fails does not keep the
// rest from being done; while something fails, the delay doubles up to two hours.
// What the instance asks for with Retry-After counts if it is longer. When the
// hub function returns, the instance is asked within 15 seconds, and less soon
// the more often that happens; in the first two minutes after an enrolment the
// hub function is just called again, every 5 seconds. Loop.Wake asks soon, at most every 10 seconds.
//
// An installed update ends the hub function and calls Loop.Restart. Without a
// Restart, Run then returns an error that is ErrAwaitsRestart. Everything else
// that goes wrong is an Event and is tried again: a call's error never ends Run.
// One Run at a time; a second is ErrInvalidParameter.
func (c *Client) Run(ctx context.Context, l Loop) error {
	const op = "run"
	if !c.running.CompareAndSwap(false, true) {
		return newError(op, CodeInvalidParameter, errors.New("another Run has not ended"))
	}
	defer c.running.Store(false)
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.life, cancel)()
	r := &runner{c: c, loop: l, events: newTeller(l.Event)}
	defer r.events.end()
	err := r.live(inner)
	r.endHub(inner)
	switch {
	case err == nil:
		return nil
	case ctx.Err() == nil && c.life.Err() != nil:
		return newError(op, CodeGeneral, errClosed)
	}
	return fail(ctx, op, CodeGeneral, err)
}

// runner is one Run.
type runner struct {
	c      *Client
	loop   Loop
	events *teller

	online bool
	asked  time.Time // when the network or the instance was last tried

	// How often in a row: what delays grow by.
	unprovisioned int // Provision failed
	offline       int // Online failed
	lost          int // a question was not answered
	refused       int // the answer was that the device is revoked
	failed        int // a step of a round failed
	hubFailed     int // the hub function did not last

	hub      *hubRun
	enrolled time.Time // when Enrol last succeeded
}

// hubRun is a call of the hub function.
type hubRun struct {
	e      *Enrolment
	began  time.Time
	cancel context.CancelFunc
	ended  chan struct{}
	err    error // once it has ended
}

func (r *runner) tell(e Event) {
	e.Time = r.c.now()
	r.events.add(e)
}

// live makes rounds until ctx ends or the device is to restart.
func (r *runner) live(ctx context.Context) error {
	for ctx.Err() == nil {
		if !r.prepare(ctx) {
			if over, err := r.retryNetwork(ctx); over {
				return err
			}
			continue
		}
		delay, over, err := r.round(ctx)
		if over {
			return err
		}
		r.rest(ctx, delay)
	}
	return ctx.Err()
}

// prepare provisions the device and joins the network, as far as that is called
// for and possible.
func (r *runner) prepare(ctx context.Context) bool {
	ask := ProvisionOptions{NoNetwork: r.loop.Online == nil}
	if r.loop.Provision != nil && r.c.NeedsProvisioning(ask) && !r.provision(ctx, ask) {
		r.unprovisioned++
		return false
	}
	r.unprovisioned = 0
	if r.loop.Online == nil || r.online {
		return true
	}
	network, err := r.c.Network()
	if err != nil { // a cable, a modem: Online knows what to do without
		network = Network{}
	}
	r.asked = time.Now()
	err = r.loop.Online(ctx, network)
	r.tell(Event{Step: StepOnline, Err: err})
	if err != nil {
		r.offline++
		return false
	}
	r.online, r.offline = true, 0
	return true
}

func (r *runner) provision(ctx context.Context, o ProvisionOptions) bool {
	err := r.loop.Provision(ctx, o)
	r.tell(Event{Step: StepProvision, Err: err})
	return err == nil
}

// retryNetwork waits before the device is provisioned or goes online again. When
// that has failed too often it asks for another Wi-Fi, or restarts.
func (r *runner) retryNetwork(ctx context.Context) (over bool, err error) {
	switch {
	case r.offline < onlineTries || ctx.Err() != nil:
	case r.loop.Provision != nil:
		if r.provision(ctx, ProvisionOptions{NewNetwork: true}) {
			r.offline = 0
			return false, nil
		}
	case r.loop.Restart != nil:
		if over, err := r.restart(ctx, Firmware{}); over {
			return true, err
		}
	}
	delay := grown(onlineFirst, onlineMost, r.offline+r.unprovisioned)
	r.tell(Event{Step: StepWait, Next: delay})
	if r.pause(ctx, time.Now().Add(delay)) {
		r.hubReturned()
	}
	return false, nil
}

// restart ends the hub function and restarts the device. It reports whether Run
// is over.
func (r *runner) restart(ctx context.Context, f Firmware) (over bool, err error) {
	r.endHub(ctx)
	e := Event{Step: StepRestart, Version: f.Manifest.Version, SHA256: f.Manifest.SHA256}
	if r.loop.Restart == nil {
		r.tell(e)
		return true, fmt.Errorf("%w: image %x", ErrAwaitsRestart, f.Manifest.SHA256)
	}
	e.Err = r.loop.Restart(ctx, f)
	r.tell(e)
	return e.Err == nil, nil
}

// round asks the instance and does what its answer calls for. It returns the
// delay until the next round.
func (r *runner) round(ctx context.Context) (delay time.Duration, over bool, err error) {
	r.asked = time.Now()
	status, err := r.c.Status(ctx)
	r.tell(Event{Step: StepStatus, State: status.State, Batch: status.Batch, Err: err})
	if ctx.Err() != nil {
		return 0, false, nil
	}
	p := r.position(status, err)
	d := decide(p)
	if !d.hub {
		r.endHub(ctx)
	}
	var after time.Duration // what the instance asks for
	failed := false
	note := func(err error) {
		if wait, ok := RetryAfter(err); ok {
			after = max(after, wait)
		}
		failed = failed || err != nil && !errors.Is(err, ErrNoUpdate)
	}
	note(err)
	if d.update {
		firmware, err := r.c.FirmwareUpdate(ctx, r.loop.Firmware)
		r.tell(Event{Step: StepUpdate, Version: firmware.Manifest.Version, SHA256: firmware.Manifest.SHA256,
			SignedBy: firmware.SignedBy, Err: err})
		note(err)
		if firmware.Installed && ctx.Err() == nil {
			if over, err := r.restart(ctx, firmware); over {
				return 0, true, err
			}
			failed = true
		}
	}
	if ctx.Err() == nil {
		note(r.certify(ctx, d))
	}
	if d.hub && ctx.Err() == nil {
		r.beginHub(ctx)
	}
	r.c.storeHint(ctx)
	r.count(p, d, failed)
	return max(r.delay(d, status.PollAfter), after), false, nil
}

// count keeps the numbers that delays grow by.
func (r *runner) count(p position, d decision, failed bool) {
	count := func(n *int, more bool) {
		if *n++; !more {
			*n = 0
		}
	}
	count(&r.lost, d.ask == paceLost)
	count(&r.refused, d.ask == paceRefuse)
	count(&r.failed, failed && d.ask == pacePoll && p.known)
	r.online = r.online && p.reached
}

// position makes of an answer what the table looks at.
func (r *runner) position(status Status, err error) position {
	p := position{
		reached:    err == nil || errors.Is(err, ErrDeviceDoesNotExist),
		clockWrong: errors.Is(err, ErrClock),
		known:      err == nil,
		state:      status.State,
		update:     status.NeedsUpdate() && r.loop.Firmware.Slot != nil,
	}
	if err != nil {
		p.certificate = r.localCertificate()
		return p
	}
	switch {
	case status.CertificateExpired:
		p.certificate = certificateExpired
	case !status.HasEnrolment:
		p.certificate = certificateNone
	case status.RenewalDue:
		p.certificate = certificateDue
	default:
		p.certificate = certificateValid
	}
	return p
}

// localCertificate is what the device itself knows of its certificate.
func (r *runner) localCertificate() certificateState {
	e, err := r.c.Enrolment()
	now := r.c.now()
	switch {
	case err != nil:
		return certificateNone
	case now.After(e.Certificate.NotAfter):
		return certificateExpired
	case !now.Before(e.RenewAt):
		return certificateDue
	}
	return certificateValid
}

// certify enrols or renews.
func (r *runner) certify(ctx context.Context, d decision) error {
	step, call := StepEnrol, r.c.Enrol
	switch {
	case d.renew:
		step = StepRenew
		call = func(ctx context.Context) (*Enrolment, error) { return r.c.Renew(ctx, r.loop.Renewal) }
	case !d.enrol:
		return nil
	}
	e, err := call(ctx)
	told := Event{Step: step, Err: err}
	if err == nil {
		told.Serial = hex.EncodeToString(e.Certificate.SerialNumber.Bytes())
		told.NotBefore, told.NotAfter = e.Certificate.NotBefore, e.Certificate.NotAfter
		told.Hub = e.address()
		if d.enrol {
			r.enrolled = time.Now()
			r.hubFailed = 0
		}
	}
	r.tell(told)
	return err
}

// beginHub calls the hub function, unless it runs already with an enrolment that
// leads to the same place.
func (r *runner) beginHub(ctx context.Context) {
	if r.loop.Hub == nil {
		return
	}
	e, err := r.c.Enrolment()
	if err != nil || r.c.now().After(e.Certificate.NotAfter) {
		return
	}
	if r.hub != nil {
		if r.hub.e.leadsWhere(e) {
			return
		}
		r.endHub(ctx)
	}
	r.callHub(ctx, e)
}

func (r *runner) callHub(ctx context.Context, e *Enrolment) {
	if ctx.Err() != nil {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	h := &hubRun{e: e, began: time.Now(), cancel: cancel, ended: make(chan struct{})}
	r.hub = h
	r.tell(Event{Step: StepHub, Hub: e.address()})
	go func() {
		defer close(h.ended)
		defer cancel() // else each call would leave a context behind
		h.err = r.loop.Hub(ctx, e)
	}()
}

// endHub ends the hub function and waits for it to return.
func (r *runner) endHub(ctx context.Context) {
	h := r.hub
	if h == nil {
		return
	}
	r.hub = nil
	h.cancel()
	const most = 30 * time.Second // one that does not obey must not keep the device from its restart
	late := time.NewTimer(most)
	defer late.Stop()
	select {
	case <-h.ended:
		r.tell(Event{Step: StepHubEnded, Hub: h.e.address(), Err: h.err})
	case <-late.C:
		err := fmt.Errorf("the hub function has not returned %v after its context ended", most)
		r.c.log.LogAttrs(ctx, slog.LevelWarn, "hub", slog.Any("error", err))
		r.tell(Event{Step: StepHubEnded, Hub: h.e.address(), Err: err})
	}
}

// delay is how long the next question waits.
func (r *runner) delay(d decision, pollAfter time.Duration) time.Duration {
	poll := pollAfter
	if poll == 0 {
		poll = defaultPoll
	}
	poll = max(poll, leastPoll)
	var wait time.Duration
	switch d.ask {
	case paceLost:
		wait = grown(lostFirst, lostMost, r.lost)
	case paceRefuse:
		wait = grown(poll, max(lostMost, poll), r.refused)
	default:
		wait = grown(poll, max(failedMost, poll), r.failed)
	}
	return wait
}

// grown is first, doubled with each failure after the first one, at most most.
func grown(first, most time.Duration, failures int) time.Duration {
	for ; failures > 1 && first < most; failures-- {
		first *= 2
	}
	return min(first, most)
}

// jittered adds up to a tenth, so that a fleet does not ask in step.
func jittered(d time.Duration) time.Duration {
	return d + time.Duration(rand.Int64N(int64(d/10)+1))
}

// rest waits until the next question is due, and calls the hub function again
// when it has returned.
func (r *runner) rest(ctx context.Context, delay time.Duration) {
	delay = jittered(delay)
	if e, err := r.c.Enrolment(); err == nil {
		if due := e.RenewAt.Sub(r.c.now()); due > 0 { // not later than that
			delay = min(delay, max(due, time.Minute))
		}
	}
	r.tell(Event{Step: StepWait, Next: delay})
	until := time.Now().Add(delay)
	for r.pause(ctx, until) {
		e, again := r.hubReturned()
		switch {
		case time.Since(r.enrolled) < graceTime:
			// A hub may not know the device yet.
			r.pause(ctx, time.Now().Add(graceDelay))
			r.callHub(ctx, e)
		case again.After(until):
		case r.lost+r.failed == 0:
			until = again // the round calls the hub function again
		default:
			// To ask would not help, and each question costs several requests.
			r.pause(ctx, again)
			r.callHub(ctx, e)
		}
	}
}

// pause waits for a moment, for Loop.Wake, for the end of ctx, or for the end of
// the hub function, which it reports.
func (r *runner) pause(ctx context.Context, until time.Time) (hubEnded bool) {
	timer := time.NewTimer(max(time.Until(until), 0))
	defer timer.Stop()
	for {
		var ended <-chan struct{}
		if r.hub != nil {
			ended = r.hub.ended
		}
		select {
		case <-ctx.Done():
			return false
		case <-timer.C:
			return false
		case <-ended:
			return true
		case _, open := <-r.loop.Wake:
			if !open {
				r.loop.Wake = nil // it would wake for ever
				continue
			}
			timer.Reset(max(time.Until(r.asked.Add(leastPoll)), 0))
		}
	}
}

// hubReturned notes that the hub function has returned, and says when it may be
// called again.
func (r *runner) hubReturned() (e *Enrolment, again time.Time) {
	h := r.hub
	r.hub = nil
	r.tell(Event{Step: StepHubEnded, Hub: h.e.address(), Err: h.err})
	if time.Since(h.began) >= hubSettled {
		r.hubFailed = 0
	}
	r.hubFailed++
	return h.e, time.Now().Add(grown(hubFirst, hubMost, r.hubFailed))
}

// address is where the enrolment leads, "host:port"; empty if it leads nowhere.
func (e *Enrolment) address() string {
	switch {
	case e.Hub != nil:
		return e.Hub.Addr()
	case e.Database != nil:
		return fmt.Sprintf("%s:%d", e.Database.Endpoint, e.Database.Port)
	}
	return ""
}

// leadsWhere reports whether both lead to the same place, so that what is
// connected there by one may stay.
func (e *Enrolment) leadsWhere(other *Enrolment) bool {
	if e.Hub != nil && other.Hub != nil {
		return e.Hub.same(other.Hub) && e.Hub.Port == other.Hub.Port
	}
	return e.Hub == nil && other.Hub == nil && e.address() == other.address()
}
