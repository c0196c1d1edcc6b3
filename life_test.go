package quarklink_test

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
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

const day = 24 * time.Hour

// The instance is down for a tenth of the time, in stretches of up to
// longestOutage. A certificate of 30 days is due for renewal five days before its
// end at the latest. After an outage the device asks within lostMost and its
// jitter, which leaves it a day and more.
const (
	shortestOutage = 10 * time.Minute
	longestOutage  = 3 * day
	lifePoll       = day
)

// TestLifeOfYears is the life of a device whose clock starts in 1970 at each
// boot, with certificates of 30 days, an instance that is often down, one
// revocation, one change of root, and one lost record. It lasts a year, or as many
// as QUARKLINK_YEARS says; QUARKLINK_SEED repeats one.
func TestLifeOfYears(t *testing.T) {
	years, seed := 1, mathrand.Uint64()
	if text := os.Getenv("QUARKLINK_YEARS"); text != "" {
		var err error
		years, err = strconv.Atoi(text)
		require.NoError(t, err)
	}
	if text := os.Getenv("QUARKLINK_SEED"); text != "" {
		var err error
		seed, err = strconv.ParseUint(text, 10, 64)
		require.NoError(t, err)
	}
	t.Logf("%d years, QUARKLINK_SEED=%d", years, seed)
	synctest.Test(t, func(t *testing.T) {
		l := newLife(t, seed, time.Duration(years)*365*day)
		defer l.server.Close()
		l.boot(t)
		for time.Now().Before(l.end) {
			l.happen(t)
			time.Sleep(time.Hour)
			synctest.Wait()
			l.check(t)
			if t.Failed() {
				break
			}
		}
		l.shutDown(t)
		l.report(t)
	})
}

// life is a device, its instance, the line between them, and what is to happen.
type life struct {
	server     *quarklinktest.Server
	random     *mathrand.Rand
	line       *line
	records    *store.Mem
	begin, end time.Time

	c      *quarklink.Client
	clock  *bootClock
	cancel context.CancelFunc
	done   chan error
	id     quarklink.DeviceID
	esk    []byte // its record

	outage, up, restart time.Time // when the next of each comes
	plan                []step

	mu       sync.Mutex
	excused  bool // there need be no certificate
	ready    bool // and from the next answer on there has to be one
	counts   map[string]int
	downtime time.Duration
	least    time.Duration // that a certificate had left while the instance was reachable
	outages  int
}

// step is something that happens once, when the instance is up.
type step struct {
	at   time.Time
	name string
	do   func(*testing.T)
}

func newLife(t *testing.T, seed uint64, length time.Duration) *life {
	t.Helper()
	server, err := quarklinktest.NewServer(quarklinktest.Options{InMemory: true})
	require.NoError(t, err)
	require.NoError(t, server.AddBatch(quarklinktest.Batch{Name: "batch", PollAfter: lifePoll,
		Policy: quarklinktest.Policy{Lifetime: month}}))
	l := &life{server: server, random: mathrand.New(mathrand.NewPCG(seed, 0)), records: new(store.Mem),
		line: &line{Transport: server.Carrier()}, excused: true, ready: true, counts: map[string]int{}, least: month}
	time.Sleep(100 * day) // the instance was there first; the firmware's build date is between the two
	l.begin = time.Now()
	l.end = l.begin.Add(length)
	l.outage, l.restart = l.begin.Add(l.between(day, 20*day)), l.begin.Add(l.between(day, 20*day))
	share := func(part float64) time.Time { return l.begin.Add(time.Duration(part * float64(length))) }
	revoked, rooted := share(0.3), share(0.6)
	l.plan = []step{
		{share(0.15), "the enrolment record is lost", l.loseRecord},
		{revoked, "revoked", func(t *testing.T) {
			l.excuse(false)
			require.NoError(t, server.Revoke(l.id))
		}},
		{revoked.Add(l.between(3*day, 8*day)), "allowed again", func(t *testing.T) {
			require.NoError(t, server.AllowEnrolment(l.id))
			l.excuse(true)
		}},
		{rooted, "told of the next root", func(t *testing.T) {
			next, err := server.NextRoot()
			require.NoError(t, err)
			i := server.Instance()
			i.Roots = []*x509.Certificate{next}
			require.NoError(t, l.c.SetInstance(t.Context(), i))
		}},
		{rooted.Add(10 * day), "change of root", func(t *testing.T) {
			require.NoError(t, server.ChangeRoot())
			l.line.cut()
		}},
		{rooted.Add(40 * day), "the old root is forgotten", func(t *testing.T) {
			require.NoError(t, l.c.SetInstance(t.Context(), server.Instance()))
		}},
	}
	return l
}

func (l *life) between(least, most time.Duration) time.Duration {
	return least + time.Duration(l.random.Int64N(int64(most-least)))
}

// bootClock is a clock that starts in 1970, until it is set.
type bootClock struct {
	boot   time.Time
	build  time.Time
	client atomic.Pointer[quarklink.Client]

	mu  sync.Mutex
	set time.Duration // how far it was set forward
}

// now is what the application gives as Config.Now: it adopts each hint that is
// later than the clock.
func (b *bootClock) now() time.Time {
	adopt := b.build
	if c := b.client.Load(); c != nil {
		if hint, ok := c.TimeHint(); ok {
			adopt = hint
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Unix(0, 0).Add(time.Since(b.boot) + b.set)
	if behind := adopt.Sub(now); behind > 0 {
		b.set += behind
		now = adopt
	}
	return now
}

// boot starts the device.
func (l *life) boot(t *testing.T) {
	t.Helper()
	l.clock = &bootClock{boot: time.Now(), build: l.begin.Add(-50 * day)}
	keys := newKeys(t, l.records)
	c, err := quarklink.New(t.Context(), quarklink.Config{KeyStore: keys, Store: l.records, Transport: l.line,
		Now: l.clock.now, RequireIdentity: l.id != ""})
	require.NoError(t, err)
	l.c = c
	l.clock.client.Store(c)
	esk, err := l.records.Get(t.Context(), "key-esk")
	require.NoError(t, err)
	if l.id == "" {
		l.id, l.esk = c.DeviceID(), esk
		require.NoError(t, l.server.AddDevices("batch", l.id))
		require.NoError(t, c.SetInstance(t.Context(), l.server.Instance()))
	}
	require.Equal(t, l.id, c.DeviceID())
	require.Equal(t, l.esk, esk, "the enrolment key stays")
	ctx, cancel := context.WithCancel(t.Context())
	l.cancel, l.done = cancel, make(chan error, 1)
	go func() { l.done <- c.Run(ctx, quarklink.Loop{Hub: hubThatLasts, Event: l.told}) }()
}

func (l *life) shutDown(t *testing.T) {
	t.Helper()
	l.cancel()
	require.ErrorIs(t, <-l.done, context.Canceled)
	require.NoError(t, l.c.Close())
}

// told counts, and ends the excuse of a device that has asked since there was a
// way for it to have a certificate.
func (l *life) told(e quarklink.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	name := string(e.Step)
	if e.Err != nil {
		name += " failed"
	} else if e.Step == quarklink.StepStatus && l.ready {
		l.excused = false
	}
	l.counts[name]++
}

// excuse excuses the device. If ready, then until its next answer only.
func (l *life) excuse(ready bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.excused, l.ready = true, ready
}

func (l *life) loseRecord(t *testing.T) {
	l.shutDown(t)
	require.NoError(t, l.records.Delete(t.Context(), "enrolment"))
	l.excuse(true)
	l.boot(t)
}

// happen does what is due.
func (l *life) happen(t *testing.T) {
	t.Helper()
	now := time.Now()
	if l.line.isDown() {
		if now.Before(l.up) {
			return
		}
		l.line.setDown(false)
		stretch := l.up.Sub(l.outage)
		l.outage = now.Add(time.Duration((0.5 + l.random.Float64()) * 9 * float64(stretch)))
	} else if !now.Before(l.outage) {
		stretch := time.Duration(float64(shortestOutage) +
			l.random.Float64()*l.random.Float64()*float64(longestOutage-shortestOutage))
		l.outage, l.up = now, now.Add(stretch)
		l.line.setDown(true)
		l.outages++
	}
	if !now.Before(l.restart) {
		l.shutDown(t)
		l.boot(t)
		l.counted("restarts")
		l.restart = now.Add(l.between(time.Hour, 20*day))
	}
	if len(l.plan) > 0 && !l.line.isDown() && !now.Before(l.plan[0].at) {
		t.Logf("day %.0f: %s", now.Sub(l.begin).Hours()/24, l.plan[0].name)
		l.plan[0].do(t)
		l.plan = l.plan[1:]
	}
}

func (l *life) counted(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts[name]++
}

// check asserts what holds at every hour.
func (l *life) check(t *testing.T) {
	t.Helper()
	now := time.Now()
	if l.line.isDown() {
		l.downtime += time.Hour
		return
	}
	l.mu.Lock()
	excused := l.excused
	l.mu.Unlock()
	if excused {
		return
	}
	at := now.Sub(l.begin).Hours() / 24
	e, err := l.c.Enrolment()
	if !assert.NoError(t, err, "day %.1f: there is no certificate", at) {
		return
	}
	left := e.Certificate.NotAfter.Sub(now)
	l.least = min(l.least, left)
	assert.Positive(t, left, "day %.1f: the certificate has expired", at)
	assert.False(t, now.Before(e.Certificate.NotBefore), "day %.1f: the certificate is not valid yet", at)
	certificates := l.server.Certificates(l.id)
	assert.True(t, certificates[len(certificates)-1].Equal(e.Certificate), "day %.1f: the newest is in force", at)
}

func (l *life) report(t *testing.T) {
	t.Helper()
	assert.Empty(t, l.plan, "everything has happened")
	assert.False(t, l.excused, "the device has a certificate in the end")
	assert.Len(t, l.server.Devices("batch"), 1, "one identity")
	assert.Greater(t, l.counts["renew"], int(l.end.Sub(l.begin)/month))
	assert.LessOrEqual(t, l.counts["enrol"], 3, "enrolments: the first, after the loss, after the revocation")
	e, err := l.c.Enrolment()
	require.NoError(t, err)
	assert.True(t, l.server.Instance().Root.Equal(e.Hub.Roots[0]), "the hub is under the new root")
	t.Logf("down %.1f %% in %d outages; least that a certificate had left: %.1f days; %v",
		100*float64(l.downtime)/float64(l.end.Sub(l.begin)), l.outages, l.least.Hours()/24, l.counts)
}

// line is the way to the instance, which can be down.
type line struct {
	transport.Transport
	mu   sync.Mutex
	down bool
	open []net.Conn
}

func (l *line) Dial(ctx context.Context) (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.down {
		return nil, errors.New("the instance is down")
	}
	conn, err := l.Transport.Dial(ctx)
	if err == nil {
		l.open = append(l.open, conn)
	}
	return conn, err
}

func (l *line) isDown() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.down
}

func (l *line) setDown(down bool) {
	l.mu.Lock()
	l.down = down
	l.mu.Unlock()
	l.cut()
}

// cut breaks every connection.
func (l *line) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, conn := range l.open {
		conn.Close()
	}
	l.open = nil
}

// TestFleetOfAYear renews the certificates of 1,000 devices of one batch over a
// year. They were enrolled in the same hour, and renew at the poll after RenewAt:
// by Run, which then polls at once, or by a program that polls once a day.
func TestFleetOfAYear(t *testing.T) {
	const devices, days = 1000, 365
	begin := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	for name, nextPoll := range map[string]func(random *mathrand.Rand, now, due time.Time) time.Time{
		"Run": func(random *mathrand.Rand, now, due time.Time) time.Time {
			return due.Add(time.Duration(random.Int64N(int64(time.Minute))))
		},
		"daily polls": func(random *mathrand.Rand, now, due time.Time) time.Time {
			for now.Before(due) {
				now = now.Add(day + time.Duration(random.Int64N(int64(day/10))))
			}
			return now
		},
	} {
		t.Run(name, func(t *testing.T) {
			var renewals [days]int
			sum := 0
			random := mathrand.New(mathrand.NewPCG(1, 2)) // always the same fleet
			for range devices {
				id := quarklink.DeviceID(fmt.Sprintf("%064x", random.Uint64()))
				now := begin.Add(time.Duration(random.Int64N(int64(time.Hour))))
				for {
					now = nextPoll(random, now, quarklink.RenewAt(id, now, now.Add(month)))
					n := int(now.Sub(begin) / day)
					if n >= days {
						break
					}
					renewals[n]++
					sum++
				}
			}
			busiest, average := slices.Max(renewals[:]), float64(sum)/days
			t.Logf("%d renewals; the busiest day has %d, the average day %.1f", sum, busiest, average)
			assert.Greater(t, sum, devices*days/30)
			assert.LessOrEqual(t, float64(busiest), 3*average)
		})
	}
}
