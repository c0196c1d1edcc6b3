package quarklink_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/quarklinktest"
	"github.com/quarklink-go/quarklink/store"
	"github.com/quarklink-go/quarklink/transport"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestRunTable: every position has its action, which testdata/run-table.txt shows
// whole, and a delay above zero and below a day.
func TestRunTable(t *testing.T) {
	var table strings.Builder
	quarklink.EachPosition(func(name, does string, p quarklink.Position) {
		fmt.Fprintf(&table, "%-58s | %s\n", name, does)
		shortest, longest := p.Delays()
		assert.GreaterOrEqual(t, shortest, 10*time.Second, name)
		assert.LessOrEqual(t, longest, 24*time.Hour, name)
		assert.NotContains(t, does, "never", name)
		if strings.Contains(name, "revoked") {
			assert.NotContains(t, does, "enrol", name)
			assert.NotContains(t, does, "renew", name)
			assert.NotContains(t, does, "update", name)
		}
		assert.False(t, strings.Contains(does, "enrol") && strings.Contains(does, "renew"), name)
	})
	const golden = "testdata/run-table.txt"
	if *update {
		require.NoError(t, os.WriteFile(golden, []byte(table.String()), 0o644))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	assert.Equal(t, string(want), table.String())
}

// diary keeps what Run tells.
type diary struct {
	mu     sync.Mutex
	events []quarklink.Event
}

func (d *diary) add(e quarklink.Event) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.events = append(d.events, e)
}

func (d *diary) steps() (all []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, e := range d.events {
		step := string(e.Step)
		if e.Err != nil {
			step += " failed"
		}
		all = append(all, step)
	}
	return all
}

func (d *diary) count(step string) (n int) {
	for _, s := range d.steps() {
		if s == step {
			n++
		}
	}
	return n
}

// running is a Run in a bubble.
type running struct {
	*diary
	cancel context.CancelFunc
	done   chan error
}

func start(t *testing.T, c *quarklink.Client, l quarklink.Loop) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r := &running{new(diary), cancel, make(chan error, 1)}
	l.Event = r.add
	go func() { r.done <- c.Run(ctx, l) }()
	return r
}

func (r *running) stop(t *testing.T) {
	t.Helper()
	r.cancel()
	require.ErrorIs(t, <-r.done, context.Canceled)
}

// newRunner is a device in a bubble: its instance, and a Client of a batch.
func newRunner(t *testing.T, b quarklinktest.Batch, change ...func(*quarklink.Config)) (*quarklinktest.Server, *quarklink.Client) {
	t.Helper()
	server, err := quarklinktest.NewServer(quarklinktest.Options{InMemory: true})
	require.NoError(t, err)
	b.Name = "batch"
	require.NoError(t, server.AddBatch(b))
	c, err := server.NewDevice(t.Context(), "batch", change...)
	require.NoError(t, err)
	return server, c
}

// hub is an application's hub function: a connection that lasts.
func hubThatLasts(ctx context.Context, _ *quarklink.Enrolment) error {
	<-ctx.Done()
	return ctx.Err()
}

// TestRunAGoodDay: a device enrols, connects, and asks about every quarter of an
// hour.
func TestRunAGoodDay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, c := newRunner(t, quarklinktest.Batch{})
		defer server.Close()
		defer c.Close()
		r := start(t, c, quarklink.Loop{Hub: hubThatLasts})
		time.Sleep(24 * time.Hour)
		r.stop(t)
		assert.Equal(t, []string{"status", "enrol", "hub", "wait", "status", "wait"}, r.steps()[:6])
		requests := server.Stats().Requests
		t.Logf("%d requests", requests)
		assert.LessOrEqual(t, requests, 100)
		assert.GreaterOrEqual(t, requests, 85)
		assert.Equal(t, 1, r.count("hub"))
		assert.Equal(t, 1, r.count("hub end failed"), "Run ends the hub function before it returns")
	})
}

// TestRunErrors runs each error that a call can return through a day: the device
// goes on, and asks no more than 200 times.
func TestRunErrors(t *testing.T) {
	malformed := quarklinktest.Answer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, "{")
	}))
	faults := map[string]quarklinktest.Fault{
		"400": quarklinktest.Refuse(400, quarklinktest.ProblemBadCSR, 0), "403": quarklinktest.Refuse(403, "", 0),
		"404": quarklinktest.Refuse(404, quarklinktest.ProblemDeviceUnknown, 0), "409": quarklinktest.Refuse(409, "", 0),
		"revoked": quarklinktest.Refuse(403, quarklinktest.ProblemDeviceRevoked, 0),
		"429":     quarklinktest.Refuse(429, "", 0), "500": quarklinktest.Refuse(500, "", 0),
		"503": quarklinktest.Refuse(503, quarklinktest.ProblemUnavailable, 0), "503 later": quarklinktest.Refuse(503, "", time.Hour),
		"503 soon": quarklinktest.Refuse(503, "", time.Second), "202": quarklinktest.Hold(time.Minute),
		"202 later": quarklinktest.Hold(3 * time.Hour), "nonsense": malformed, "lost": quarklinktest.LoseRequest(),
		"answer lost": quarklinktest.LoseAnswer(), "silent": quarklinktest.Delay(time.Hour),
	}
	calls := []quarklinktest.Call{
		quarklinktest.CallCACerts, quarklinktest.CallTemporary, quarklinktest.CallEnrol, quarklinktest.CallReenrol,
		quarklinktest.CallConnection, quarklinktest.CallStatus, quarklinktest.CallFirmware, quarklinktest.CallOutcome,
	}
	worst, worstName := 0, ""
	for _, hubFails := range []bool{false, true} {
		for name, fault := range faults {
			for _, call := range calls {
				synctest.Test(t, func(t *testing.T) {
					server, c := newRunner(t, quarklinktest.Batch{Policy: quarklinktest.Policy{Lifetime: 30 * time.Hour},
						Firmware: &quarklinktest.Firmware{Image: strings.NewReader("image"), AsIs: true}})
					defer server.Close()
					defer c.Close()
					if call == quarklinktest.CallReenrol || call == quarklinktest.CallConnection && hubFails {
						_, err := c.Enrol(t.Context())
						require.NoError(t, err)
						time.Sleep(26 * time.Hour) // a renewal is due
					}
					require.NoError(t, server.Fault(call, fault))
					before := server.Stats().Requests
					loop := quarklink.Loop{Hub: hubThatLasts, Firmware: quarklink.FirmwareOptions{
						Slot: newSlot(t, 1<<16), Verifier: verifierFunc(func(context.Context, io.ReaderAt, int64) error {
							return quarklink.ErrWrongSignature
						})}}
					if hubFails {
						loop.Hub = func(context.Context, *quarklink.Enrolment) error { return errors.New("refused") }
					}
					r := start(t, c, loop)
					time.Sleep(24 * time.Hour)
					r.stop(t)
					n := server.Stats().Requests - before
					assert.LessOrEqual(t, n, 200, "%s at %s, hub fails %v", name, call, hubFails)
					assert.Positive(t, n, "%s at %s", name, call)
					if n > worst {
						worst, worstName = n, fmt.Sprintf("%s at %s, hub fails %v", name, call, hubFails)
					}
				})
			}
		}
	}
	t.Logf("worst: %d requests a day, %s", worst, worstName)
}

// TestRunLocalErrors: what fails on the device itself ends nothing either, and
// makes no storm.
func TestRunLocalErrors(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*quarklink.Config)
		loop   quarklink.Loop
	}{
		"no network": {func(cfg *quarklink.Config) {
			cfg.Transport = transport.Func(func(context.Context) (net.Conn, error) { return nil, errors.New("no route") })
		}, quarklink.Loop{}},
		"a clock in 1970":    {func(cfg *quarklink.Config) { cfg.Now = func() time.Time { return time.Unix(0, 0) } }, quarklink.Loop{}},
		"no instance":        {func(cfg *quarklink.Config) { cfg.Instance = nil }, quarklink.Loop{}},
		"no way online":      {nil, quarklink.Loop{Online: func(context.Context, quarklink.Network) error { return io.EOF }}},
		"nobody provisions":  {func(cfg *quarklink.Config) { cfg.Instance = nil }, quarklink.Loop{Provision: func(context.Context, quarklink.ProvisionOptions) error { return io.EOF }}},
		"the store is full":  {func(cfg *quarklink.Config) { cfg.Store = &fullStore{Mem: new(store.Mem), full: true} }, quarklink.Loop{}},
		"a hub that returns": {nil, quarklink.Loop{Hub: func(context.Context, *quarklink.Enrolment) error { return nil }}},
		"a closed Wake":      {nil, quarklink.Loop{Wake: closedWake()}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var changes []func(*quarklink.Config)
				if test.change != nil {
					changes = append(changes, test.change)
				}
				server, c := newRunner(t, quarklinktest.Batch{}, changes...)
				defer server.Close()
				defer c.Close()
				r := start(t, c, test.loop)
				time.Sleep(24 * time.Hour)
				r.stop(t)
				assert.LessOrEqual(t, server.Stats().Requests, 200)
				assert.LessOrEqual(t, len(r.steps()), 1000, "steps")
				assert.NotEmpty(t, r.steps())
			})
		})
	}
}

func closedWake() chan struct{} {
	wake := make(chan struct{})
	close(wake)
	return wake
}

// TestRunFigure2: a blank device is provisioned, joins the network, and when that
// fails again and again asks for another Wi-Fi.
func TestRunFigure2(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := new(store.Mem)
		server, c := newRunner(t, quarklinktest.Batch{}, func(cfg *quarklink.Config) { cfg.Instance, cfg.Store = nil, st })
		defer server.Close()
		defer c.Close()
		asked := []string{}
		works := "second"
		r := start(t, c, quarklink.Loop{
			Provision: func(ctx context.Context, o quarklink.ProvisionOptions) error {
				wifi := quarklink.Network{SSID: "first", Password: "12345678"}
				if o.NewNetwork {
					wifi.SSID = works
				}
				asked = append(asked, wifi.SSID)
				device, host := quarklinktest.Pipe()
				go quarklinktest.NewTool(server, "batch", wifi).Serve(ctx, host)
				_, err := c.Provision(ctx, device, o)
				device.Close()
				return err
			},
			Online: func(_ context.Context, n quarklink.Network) error {
				if n.SSID != works {
					return errors.New("no such network")
				}
				return nil
			},
			Hub: hubThatLasts,
		})
		time.Sleep(time.Hour)
		r.stop(t)
		assert.Equal(t, []string{"first", "second"}, asked)
		assert.Equal(t, 5, r.count("online failed"))
		assert.Equal(t, 1, r.count("enrol"))
		assert.Equal(t, 1, r.count("hub"))
	})
}

// TestRunRestarts: without a tool to ask, a device that cannot join its network
// restarts.
func TestRunRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, c := newRunner(t, quarklinktest.Batch{})
		defer server.Close()
		defer c.Close()
		restarts := 0
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		err := c.Run(ctx, quarklink.Loop{
			Online: func(context.Context, quarklink.Network) error { return io.EOF },
			Restart: func(_ context.Context, f quarklink.Firmware) error {
				assert.False(t, f.Installed)
				if restarts++; restarts == 1 {
					return errors.New("not now")
				}
				return nil
			},
		})
		require.NoError(t, err)
		assert.Equal(t, 2, restarts)
	})
}

// TestRunUpdates: a verified update ends the hub function and restarts the
// device; without a Restart Run says that one is due.
func TestRunUpdates(t *testing.T) {
	for _, restarts := range []bool{true, false} {
		t.Run(fmt.Sprintf("restarts %v", restarts), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server, c := newRunner(t, quarklinktest.Batch{})
				defer server.Close()
				defer c.Close()
				order := []string{}
				slot := newSlot(t, 1<<16)
				events := new(diary)
				wake := make(chan struct{})
				loop := quarklink.Loop{
					Event: events.add, Wake: wake,
					Hub: func(ctx context.Context, _ *quarklink.Enrolment) error {
						<-ctx.Done()
						order = append(order, "hub ended")
						return ctx.Err()
					},
					Firmware: quarklink.FirmwareOptions{Slot: slot, Verifier: naming{}},
				}
				if restarts {
					loop.Restart = func(_ context.Context, f quarklink.Firmware) error {
						assert.True(t, f.Installed)
						order = append(order, "restart")
						return nil
					}
				}
				done := make(chan error, 1)
				go func() { done <- c.Run(t.Context(), loop) }()
				time.Sleep(time.Minute)
				require.NoError(t, server.Publish("batch", quarklinktest.Firmware{Image: strings.NewReader("image"), AsIs: true}))
				wake <- struct{}{}
				err := <-done
				if restarts {
					require.NoError(t, err)
					assert.Equal(t, []string{"hub ended", "restart"}, order)
				} else {
					require.ErrorIs(t, err, quarklink.ErrAwaitsRestart)
					assert.Equal(t, []string{"hub ended"}, order)
				}
				assert.NotZero(t, slot.active)
				last := events.events[len(events.events)-1]
				assert.Equal(t, quarklink.StepRestart, last.Step)
				assert.NotZero(t, last.SHA256)
				at := len(events.events) - 3
				require.Equal(t, quarklink.StepUpdate, events.events[at].Step)
				assert.Equal(t, "the release key", events.events[at].SignedBy)
			})
		})
	}
}

// naming is a Verifier that names the key.
type naming struct{}

func (naming) Verify(context.Context, io.ReaderAt, int64) error {
	return errors.New("asked the short way")
}
func (naming) VerifySigner(context.Context, io.ReaderAt, int64) (string, error) {
	return "the release key", nil
}

// TestRunRevocation is a revocation from its announcement to the day on which the
// device is allowed again.
func TestRunRevocation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, c := newRunner(t, quarklinktest.Batch{})
		defer server.Close()
		defer c.Close()
		var mu sync.Mutex
		connected := 0
		with := func(f func()) { mu.Lock(); defer mu.Unlock(); f() }
		r := start(t, c, quarklink.Loop{Hub: func(ctx context.Context, _ *quarklink.Enrolment) error {
			with(func() { connected++ })
			<-ctx.Done()
			with(func() { connected-- })
			return ctx.Err()
		}})
		isConnected := func(want int, when string) {
			time.Sleep(3 * time.Hour)
			synctest.Wait()
			with(func() { assert.Equal(t, want, connected, when) })
		}
		isConnected(1, "enrolled")
		before, err := c.Enrolment()
		require.NoError(t, err)
		require.NoError(t, server.PendingRevoke(c.DeviceID()))
		isConnected(1, "about to be revoked")
		require.NoError(t, server.Revoke(c.DeviceID()))
		isConnected(0, "revoked")
		asked := server.Stats().Requests
		time.Sleep(24 * time.Hour)
		assert.LessOrEqual(t, server.Stats().Requests-asked, 25, "an operator is waited for at a growing interval")
		require.NoError(t, server.AllowEnrolment(c.DeviceID()))
		isConnected(1, "allowed again")
		after, err := c.Enrolment()
		require.NoError(t, err)
		assert.False(t, sameKey(before, after), "a new key after a revocation")
		r.stop(t)
	})
}

// TestRunHubOfNow: a hub that moves is followed, a renewal ends nothing, and
// right after an enrolment refusals are tolerated.
func TestRunHubOfNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, c := newRunner(t, quarklinktest.Batch{Policy: quarklinktest.Policy{Lifetime: month}})
		defer server.Close()
		defer c.Close()
		var mu sync.Mutex
		var hubs []string
		began := time.Now()
		refusals := 0
		r := start(t, c, quarklink.Loop{Hub: func(ctx context.Context, e *quarklink.Enrolment) error {
			mu.Lock()
			refused := time.Since(began) < time.Minute
			if refused {
				refusals++
			} else {
				hubs = append(hubs, e.Hub.Endpoint)
			}
			mu.Unlock()
			if refused {
				return errors.New("not known yet")
			}
			<-ctx.Done()
			return ctx.Err()
		}})
		time.Sleep(2 * time.Minute)
		mu.Lock()
		assert.Greater(t, refusals, 5, "refusals are tolerated")
		mu.Unlock()
		assert.LessOrEqual(t, server.Stats().Calls[quarklinktest.CallStatus], 2)
		time.Sleep(28 * 24 * time.Hour)
		assert.GreaterOrEqual(t, r.count("renew"), 1)
		mu.Lock()
		assert.Equal(t, []string{"instance.test"}, hubs, "a renewal ends no connection")
		mu.Unlock()
		newHub(server, newRoot(t, "new hub"))
		time.Sleep(month)
		mu.Lock()
		assert.Equal(t, []string{"instance.test", "new.example"}, hubs)
		mu.Unlock()
		r.stop(t)
	})
}

// TestRunWakes: a button asks within seconds, but however often it is pressed not
// more than every ten.
func TestRunWakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, c := newRunner(t, quarklinktest.Batch{PollAfter: 12 * time.Hour})
		defer server.Close()
		defer c.Close()
		wake := make(chan struct{})
		r := start(t, c, quarklink.Loop{Wake: wake})
		time.Sleep(time.Hour)
		before := server.Stats().Calls[quarklinktest.CallStatus]
		for range 600 {
			select {
			case wake <- struct{}{}:
			case <-time.After(time.Second):
			}
			time.Sleep(100 * time.Millisecond)
		}
		after := server.Stats().Calls[quarklinktest.CallStatus] - before
		assert.GreaterOrEqual(t, after, 5)
		assert.LessOrEqual(t, after, 8)
		r.stop(t)
	})
}

func TestRunOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, c := newRunner(t, quarklinktest.Batch{})
		defer server.Close()
		r := start(t, c, quarklink.Loop{})
		synctest.Wait()
		require.ErrorIs(t, c.Run(t.Context(), quarklink.Loop{}), quarklink.ErrInvalidParameter)
		require.NoError(t, c.Close())
		require.ErrorIs(t, <-r.done, net.ErrClosed)
	})
}

// TestRunSlowReader: events are told in order to a reader that takes an hour for
// each, none is dropped, and Run does not wait for it; nor does it for ever at
// its end.
func TestRunSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, c := newRunner(t, quarklinktest.Batch{})
		defer server.Close()
		defer c.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 24*time.Hour)
		defer cancel()
		told := new(diary)
		begin := time.Now()
		err := c.Run(ctx, quarklink.Loop{Event: func(e quarklink.Event) { time.Sleep(time.Hour); told.add(e) }})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		assert.Less(t, time.Since(begin), 25*time.Hour)
		requests := server.Stats().Requests
		assert.GreaterOrEqual(t, requests, 85, "Run went on meanwhile")
		time.Sleep(300 * time.Hour)
		synctest.Wait()
		assert.GreaterOrEqual(t, len(told.steps()), 2*85)
		for i := 1; i < len(told.events); i++ {
			require.False(t, told.events[i].Time.Before(told.events[i-1].Time), "event %d is out of order", i)
		}
	})
}

// TestEventTellsNoSecret: as JSON and as a log record an event says what belongs
// to its step.
func TestEventForms(t *testing.T) {
	e := quarklink.Event{Time: time.Unix(0, 0).UTC(), Step: quarklink.StepRenew, Err: errors.New("why"), Serial: "ab",
		NotBefore: time.Unix(1, 0).UTC(), NotAfter: time.Unix(2, 0).UTC(), Hub: "h:1"}
	text, err := json.Marshal(e)
	require.NoError(t, err)
	assert.JSONEq(t, `{"time":"1970-01-01T00:00:00Z","step":"renew","error":"why","serial":"ab","hub":"h:1",
		"notBefore":"1970-01-01T00:00:01Z","notAfter":"1970-01-01T00:00:02Z"}`, string(text))
	var out bytes.Buffer
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "event", e)
	assert.Contains(t, out.String(), "event.step=renew event.error=why event.serial=ab event.hub=h:1")
	e = quarklink.Event{Step: quarklink.StepStatus, State: quarklink.StateEnrolled, Next: time.Minute, SHA256: [32]byte{1}}
	text, err = json.Marshal(e)
	require.NoError(t, err)
	assert.Contains(t, string(text), `"state":"enrolled","sha256":"0100`)
	assert.Contains(t, string(text), `"next":"1m0s"`)
}

// ExampleClient_Run is the whole main function of a device in the field, but for
// what its board brings.
func ExampleClient_Run() {
	server, err := quarklinktest.NewServer(quarklinktest.Options{InMemory: true})
	if err != nil {
		panic(err)
	}
	defer server.Close()
	if err := server.AddBatch(quarklinktest.Batch{Name: "sensors"}); err != nil {
		panic(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	device, err := server.NewDevice(ctx, "sensors")
	if err != nil {
		panic(err)
	}
	defer device.Close()
	err = device.Run(ctx, quarklink.Loop{
		Hub: func(ctx context.Context, e *quarklink.Enrolment) error {
			fmt.Println("connect to", e.Hub.Addr()) // by device.DialHub, until ctx ends
			cancel()
			return ctx.Err()
		},
	})
	fmt.Println(errors.Is(err, context.Canceled))
	// Output:
	// connect to instance.test:8883
	// true
}
