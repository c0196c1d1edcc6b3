package tpm2

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync/atomic"
	"time"

	gotpm "github.com/google/go-tpm/tpm2"
)

// Transport carries commands to a TPM. go-tpm's transport.TPM is one.
type Transport interface {
	// Send sends a command and returns the answer to it. It is never called
	// twice at a time.
	Send(command []byte) (answer []byte, err error)
}

// Options say which TPM to use and how. The zero value is for /dev/tpmrm0 of a
// machine whose owner authorization is empty, which is the usual case.
type Options struct {
	// Path is the TPM's device file, or the Unix socket of a TPM in software.
	// Empty: [DefaultPath]. Paths need Linux.
	Path string
	// Transport is a TPM that the caller has opened, in place of Path. The
	// caller closes it, after the TPM. It counts as having no resource manager.
	Transport Transport
	// OwnerAuth returns the authorization value of the owner hierarchy; nil: it
	// is empty. The value must not contain a zero byte (a TPM cuts zeros off, so
	// that go-tpm and the TPM may disagree); put random ones in hex.
	OwnerAuth func(ctx context.Context) ([]byte, error)
	// Encrypt keeps what is read on the bus between processor and TPM from
	// telling digests, and authenticates answers, with sessions salted to the
	// parent key. It nearly doubles the time of a signature. Authorization values
	// are never sent in clear, whether or not it is set.
	Encrypt bool
	// Timeout bounds the work for one call, from when its turn has come.
	// 0: [DefaultTimeout]. It is what bounds a signature, which has no context.
	Timeout time.Duration
	// OpenWait is for how long Open tries again if the TPM is there but busy or
	// not ready, as just after the system's start. 0: [DefaultOpenWait]; less
	// than 0: it tries once.
	OpenWait time.Duration
	// SlotWait is for how long a call waits for other programs to free slots.
	// 0: [DefaultSlotWait]; less than 0: not at all.
	SlotWait time.Duration
}

const (
	// DefaultPath is the device with the kernel's resource manager, which many
	// programs can use at once.
	DefaultPath = "/dev/tpmrm0"
	// DefaultTimeout is far more than any TPM takes for a signature.
	DefaultTimeout = 30 * time.Second
	// DefaultOpenWait covers the self-test of slow TPMs.
	DefaultOpenWait = 2 * time.Second
	// DefaultSlotWait covers what a few other programs do with the TPM.
	DefaultSlotWait = 2 * time.Second
)

// TPM is an opened TPM 2.0. It is safe for concurrent use: calls take turns. Open a
// TPM once in a process; two openings of one without a resource manager compete for
// its slots.
type TPM struct {
	opts Options
	link *link

	turn   chan struct{} // holds one token; who takes it owns what follows
	saved  map[Template]*savedParent
	before map[gotpm.TPMHandle]bool // objects that were there when the turn began; only without a manager
	// After a connection broke: the names of objects that may be loaded, and the
	// templates of primary keys that may be, whose names are not known before
	// they are derived once more.
	lost          [][]byte
	lostTemplates map[string]bool

	served atomic.Int64 // turns that ended
	hung   atomic.Int64 // the number, from 1, of the last turn whose caller gave up
}

// Open opens a TPM and makes sure that it is a TPM 2.0 that knows P-256. Nothing is
// written to it. Errors are those of this package: [ErrNoTPM], [ErrPermission],
// [ErrBusy], [ErrNoP256], [ErrUnanswered]; for Options that contradict each other
// fs.ErrInvalid. When ctx ends, its error.
func Open(ctx context.Context, o Options) (*TPM, error) {
	t, err := newTPM(o)
	if err != nil {
		return nil, fmt.Errorf("tpm2: open: %w", err)
	}
	if err := t.probeUntilReady(ctx); err != nil {
		t.Close()
		return nil, fmt.Errorf("tpm2: open: %w", err)
	}
	return t, nil
}

func newTPM(o Options) (*TPM, error) {
	if o.Transport != nil && o.Path != "" {
		return nil, fmt.Errorf("both Path and Transport are given: %w", fs.ErrInvalid)
	}
	if o.Timeout < 0 {
		return nil, fmt.Errorf("time-out %v: %w", o.Timeout, fs.ErrInvalid)
	}
	setDefault(&o.Timeout, DefaultTimeout)
	setDefault(&o.OpenWait, DefaultOpenWait)
	setDefault(&o.SlotWait, DefaultSlotWait)
	t := &TPM{opts: o, turn: make(chan struct{}, 1), saved: make(map[Template]*savedParent), lostTemplates: make(map[string]bool)}
	if o.Transport != nil {
		t.link = &link{open: func() (channel, error) { return given{o.Transport}, nil }}
		return t, nil
	}
	path := o.Path
	if path == "" {
		path = DefaultPath
	}
	t.link = &link{open: func() (channel, error) { return openPath(path) }, managed: hasManager(path)}
	return t, nil
}

func setDefault(d *time.Duration, to time.Duration) {
	if *d == 0 {
		*d = to
	}
}

// Close closes the TPM. It does not wait for a command that is under way. Key stores
// and signers of the TPM fail from now on, with fs.ErrClosed.
func (t *TPM) Close() error {
	if err := t.link.close(); err != nil {
		return fmt.Errorf("tpm2: close: %w", connectionError("close the TPM", err))
	}
	return nil
}

// probeUntilReady asks the TPM what it is, again for a while if it is not ready.
func (t *TPM) probeUntilReady(ctx context.Context) error {
	deadline := time.Now().Add(t.opts.OpenWait)
	for pause := firstPause; ; pause = min(2*pause, longPause) {
		err := t.run(ctx, func(w *work) error { return w.probe() })
		final := err == nil || ctx.Err() != nil || !time.Now().Add(pause).Before(deadline)
		for _, hopeless := range []error{errAbsent, ErrPermission, ErrNoP256, ErrUnanswered} {
			final = final || errors.Is(err, hopeless)
		}
		if final {
			return err
		}
		if ctxErr := sleep(ctx, pause); ctxErr != nil {
			return fmt.Errorf("%w: %w", err, ctxErr)
		}
	}
}

// run gives f the TPM to itself and returns what f returns, or earlier if the context
// ends or time is up. f then goes on to its end, in which it flushes what it loaded,
// and only then is the TPM free again.
func (t *TPM) run(ctx context.Context, f func(*work) error) error {
	if err := t.take(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, t.opts.Timeout)
	defer cancel()
	number := t.served.Load() + 1
	done := make(chan error, 1)
	go func() {
		w := &work{tpm: t, ctx: ctx}
		err := w.begin()
		if err == nil {
			err = f(w)
		}
		w.end()
		t.served.Add(1)
		<-t.turn
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-done: // both at once: the result counts
		return err
	default:
		t.hung.Store(number)
		return fmt.Errorf("%w: %w", ErrUnanswered, ctx.Err())
	}
}

// take waits for the caller's turn: as long as its context lives and others get their
// turns, but no longer than Options.Timeout for one that does not end.
func (t *TPM) take(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	for {
		served := t.served.Load()
		timer := time.NewTimer(t.opts.Timeout)
		select {
		case t.turn <- struct{}{}:
			timer.Stop()
			return nil
		case <-ctx.Done():
			timer.Stop()
			if t.hung.Load() == t.served.Load()+1 {
				return fmt.Errorf("%w: %w", ErrUnanswered, ctx.Err())
			}
			return fmt.Errorf("wait for the TPM, which is at work for another call: %w", ctx.Err())
		case <-timer.C:
			if t.served.Load() == served {
				return fmt.Errorf("%w: an earlier command is under way: %w", ErrUnanswered, context.DeadlineExceeded)
			}
		}
	}
}
