package retry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/internal/problem"
)

func Example() {
	tries := 0
	err := Do(context.Background(), func(context.Context) error {
		tries++
		if tries == 1 {
			return &problem.Error{Status: 503} // busy: tried again, after about half a second
		}
		return &problem.Error{Status: 403} // no: final
	})
	fmt.Println(tries, err)
	// Output: 2 HTTP 403 Forbidden
}

func TestAgain(t *testing.T) {
	request := func(err error) error {
		return fmt.Errorf("est: simpleenroll: %w", &url.Error{Op: "Post", URL: "https://x/", Err: err})
	}
	later := &problem.Error{Status: 503, After: time.Minute, HasAfter: true}
	for _, tt := range []struct {
		err   error
		after time.Duration
		again bool
	}{
		{later, time.Minute, true},
		{fmt.Errorf("step: %w", later), time.Minute, true},
		{errors.Join(errors.New("class"), later), time.Minute, true},
		{&problem.Error{Status: 403, After: time.Minute, HasAfter: true}, 0, false},
		{fmt.Errorf("%w: %w", context.Canceled, later), 0, false},

		{nil, 0, false},
		{errors.New("anything"), 0, false},
		{request(errors.New("anything")), 0, false},
		{&url.Error{}, 0, false},
		{context.Canceled, 0, false},
		{context.DeadlineExceeded, 0, false},
		{request(context.Canceled), 0, false},
		{request(context.DeadlineExceeded), 0, false},
		{request(errors.Join(context.DeadlineExceeded, io.EOF)), 0, false},
		{&net.OpError{Op: "dial", Err: context.Canceled}, 0, false},

		{request(&tls.CertificateVerificationError{Err: io.EOF}), 0, false},
		{request(x509.UnknownAuthorityError{}), 0, false},
		{request(x509.CertificateInvalidError{Reason: x509.Expired, Cert: &x509.Certificate{}}), 0, false},
		{request(x509.HostnameError{Certificate: &x509.Certificate{}}), 0, false},
		{request(tls.RecordHeaderError{}), 0, false},
		{request(tls.AlertError(42)), 0, false},
		{request(&net.OpError{Op: "remote error", Err: tls.AlertError(42)}), 0, false},
		{&net.OpError{Op: "dial", Err: x509.UnknownAuthorityError{}}, 0, false}, // a carrier that wraps too much

		{io.EOF, 0, true},
		{request(io.EOF), 0, true},
		{request(io.ErrUnexpectedEOF), 0, true},
		{request(io.ErrClosedPipe), 0, true},
		{request(net.ErrClosed), 0, true},
		{request(os.ErrDeadlineExceeded), 0, true},
		{request(syscall.ECONNREFUSED), 0, true},
		{request(&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}), 0, true},
		{request(&net.OpError{Op: "read", Err: os.NewSyscallError("read", syscall.ECONNRESET)}), 0, true},
		{request(&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ENETDOWN)}), 0, true},
		{request(&net.DNSError{Err: "no such host", Name: "x", IsNotFound: true}), 0, true},

		// These are syscall.Errno too, but not of a network.
		{&fs.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}, 0, false},
		{request(&fs.PathError{Op: "read", Path: "/dev/i2c-1", Err: syscall.EIO}), 0, false},
	} {
		after, again := Again(tt.err)
		assert.Equal(t, tt.after, after, "%v, %v", tt.err, tt.err)
		assert.Equal(t, tt.again, again, "%v, %v", tt.err, tt.err)
	}
}

func TestAgainStatuses(t *testing.T) {
	transient := map[int]bool{202: true, 408: true, 425: true, 429: true, 500: true, 502: true, 503: true, 504: true}
	for status := 100; status < 600; status++ {
		_, again := Again(&problem.Error{Status: status})
		assert.Equal(t, transient[status], again)
	}
}

// failing returns an operation that fails with each of errs in turn and then
// succeeds, and the times at which it was called.
func failing(errs ...error) (op func(context.Context) error, calls *[]time.Duration) {
	start := time.Now()
	calls = new([]time.Duration)
	return func(context.Context) error {
		*calls = append(*calls, time.Since(start))
		if n := len(*calls); n <= len(errs) {
			return errs[n-1]
		}
		return nil
	}, calls
}

func TestDoSchedule(t *testing.T) {
	busy := &problem.Error{Status: 503}
	seen := map[time.Duration]bool{}
	for range 100 {
		synctest.Test(t, func(t *testing.T) {
			op, calls := failing(busy, busy, busy, busy, busy, busy)
			assert.Equal(t, error(busy), Do(t.Context(), op))
			require.Len(t, *calls, maxTries)
			for i := range maxTries - 1 {
				got, middle := (*calls)[i+1]-(*calls)[i], firstInterval<<i
				assert.GreaterOrEqual(t, got, middle/2, i+1)
				assert.LessOrEqual(t, got, middle*3/2, i+1)
				seen[got] = true
			}
		})
	}
	assert.GreaterOrEqual(t, len(seen), 100, "different intervals in 100 runs: no jitter")
}

func TestDoSucceedsInTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		op, calls := failing(io.EOF, &problem.Error{Status: 429}, io.ErrUnexpectedEOF, &problem.Error{Status: 202})
		require.NoError(t, Do(t.Context(), op))
		assert.Len(t, *calls, 5)
	})
}

func TestDoFinal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		final := fmt.Errorf("step: %w", &problem.Error{Status: 401, Challenge: true})
		op, calls := failing(io.EOF, final)
		assert.Equal(t, final, Do(t.Context(), op))
		assert.Len(t, *calls, 2)
	})
}

func TestDoRetryAfter(t *testing.T) {
	after := func(d time.Duration) error { return &problem.Error{Status: 202, After: d, HasAfter: true} }
	for _, tt := range []struct {
		name     string
		after    time.Duration
		deadline time.Duration // 0 for none
		tries    int
	}{
		{"obeyed", time.Minute, 0, 2},
		{"now is not at once", 0, 0, 2},
		{"ten minutes", 10 * time.Minute, 0, 2},
		{"more than ten minutes", 10*time.Minute + time.Second, 0, 1},
		{"within the deadline", time.Minute, 2 * time.Minute, 2},
		{"beyond the deadline", time.Minute, 30 * time.Second, 1},
		{"interval beyond the deadline", 0, time.Millisecond, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx := t.Context()
				if tt.deadline != 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, tt.deadline)
					defer cancel()
				}
				first := after(tt.after)
				op, calls := failing(first)
				start := time.Now()
				err := Do(ctx, op)
				require.Len(t, *calls, tt.tries)
				if tt.tries == 1 {
					assert.Equal(t, first, err)
					assert.EqualValues(t, 0, time.Since(start))
					return
				}
				waited, jitter := (*calls)[1], (*calls)[1]-tt.after
				require.NoError(t, err, "%v, %v", waited, tt.after)
				assert.GreaterOrEqual(t, jitter, time.Duration(firstInterval/2), "%v, %v", waited, tt.after)
				assert.LessOrEqual(t, jitter, time.Duration(firstInterval*3/2), "%v, %v", waited, tt.after)
			})
		})
	}
}

func TestDoContextEndsWhileWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		busy := &problem.Error{Status: 503, After: time.Minute, HasAfter: true}
		op, calls := failing(busy)
		time.AfterFunc(10*time.Second, cancel)
		start := time.Now()
		err := Do(ctx, op)
		assert.ErrorIs(t, err, context.Canceled, "is not context.Canceled")
		var last *problem.Error
		require.ErrorAs(t, err, &last, "has lost the last error")
		assert.Same(t, busy, last, "has lost the last error")
		assert.Contains(t, err.Error(), busy.Error(), "does not say why")
		assert.EqualValues(t, 10*time.Second, time.Since(start))
		assert.Len(t, *calls, 1)
		_, again := Again(err)
		assert.False(t, again, "a caller further up would try again")
	})
}

func TestDoContextEndsDuringTheTry(t *testing.T) {
	moved := errors.New("network changed")
	for _, tt := range []struct {
		name      string
		err       error // of the try
		cancelled bool  // the result must be context.Canceled
	}{
		{"with the error of the context", fmt.Errorf("step: %w", context.Canceled), true},
		{"with its cause", fmt.Errorf("step: %w", moved), true},
		{"with what cancelling broke", net.ErrClosed, true},
		{"but the answer was final", &problem.Error{Status: 403}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			tries := 0
			err := Do(ctx, func(context.Context) error {
				tries++
				cancel(moved)
				return tt.err
			})
			assert.Equal(t, 1, tries)
			assert.ErrorIs(t, err, tt.err)
			assert.Equal(t, tt.cancelled, errors.Is(err, context.Canceled))
		})
	}
}

func TestDoContextEndedBefore(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := Do(ctx, func(context.Context) error { t.Error("op was called"); return nil })
	assert.ErrorIs(t, err, context.Canceled)
}

// A success counts although the context ended meanwhile.
func TestDoSuccessWins(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	assert.NoError(t, Do(ctx, func(context.Context) error { cancel(); return nil }))
}
