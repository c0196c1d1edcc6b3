package nvs_test

import (
	"context"
	"crypto/rand"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/esp/flash"
	"github.com/quarklink-go/quarklink/esp/flash/flashtest"
	"github.com/quarklink-go/quarklink/esp/nvs"
	"github.com/quarklink-go/quarklink/quarklinktest"
	"github.com/quarklink-go/quarklink/transport/uart"
)

// cable is a device's cable whose other end a tool serves. A device that is
// started again finds on it what its former life and the tool have left.
type cable struct{ port uart.Port }

// powered is the port of one life of the device: after a cut nothing goes through
// it any more.
type powered struct {
	uart.Port
	off atomic.Bool
}

func (p *powered) cut() {
	p.off.Store(true)
	p.Port.SetReadDeadline(time.Now())
}

func (p *powered) Read(b []byte) (int, error) {
	if p.off.Load() {
		return 0, flashtest.ErrPowerCut
	}
	return p.Port.Read(b)
}

func (p *powered) Write(b []byte) (int, error) {
	if p.off.Load() {
		return 0, flashtest.ErrPowerCut
	}
	return p.Port.Write(b)
}

func newCable(t *testing.T, s *quarklinktest.Server) *cable {
	device, port := quarklinktest.Pipe()
	tool := quarklinktest.NewTool(s, "batch", quarklink.Network{})
	ctx, cancel := context.WithCancel(context.Background())
	var served sync.WaitGroup
	served.Go(func() { assert.ErrorIs(t, tool.Serve(ctx, port), context.Canceled) })
	t.Cleanup(func() { cancel(); served.Wait() })
	return &cable{port: device}
}

// start gives the tunnel of a device that has just started, and what cuts its line.
func (c *cable) start() (tunnel *uart.Tunnel, cut func()) {
	port := &powered{Port: c.port}
	return &uart.Tunnel{Port: port, Random: rand.Reader}, port.cut
}

// TestEnrolThroughTunnelSurvivesCuts cuts the power at every flash operation of an
// enrolment through the cable: started again, on the same cable, the device
// enrols, and has one device certificate.
func TestEnrolThroughTunnelSurvivesCuts(t *testing.T) {
	ctx := t.Context()
	s, err := quarklinktest.NewServer(quarklinktest.Options{InMemory: true})
	require.NoError(t, err)
	defer s.Close()
	require.NoError(t, s.AddBatch(quarklinktest.Batch{Name: "batch"}))
	line := newCable(t, s)

	blank := flash.NewMemory(8 * flash.SectorSize)
	whole := flashtest.New(blank)
	tunnel, _ := line.start()
	_, err = enrolOver(ctx, t, whole, s, tunnel)
	require.NoError(t, err)
	step := 1
	if nvs.RaceEnabled || testing.Short() {
		step = 7
	}
	cuts := 0
	for at := 0; at < whole.Operations(); at += step {
		tunnel, cut := line.start()
		chip := flashtest.New(blank)
		chip.CutPower(at)
		if kind := at % (flashtest.Tears + 1); kind < flashtest.Tears {
			chip.TearPower(at, kind, uint64(at))
		}
		_, err := enrolOver(ctx, t, supplied{chip, cut}, s, tunnel)
		require.ErrorIs(t, err, flashtest.ErrPowerCut, "cut at %d", at)
		cuts++
		chip.PowerUp()
		tunnel, _ = line.start()
		id, err := enrolOver(ctx, t, chip, s, tunnel)
		require.NoError(t, err, "cut at %d, started again", at)
		require.Len(t, s.Certificates(id), 1, "cut at %d", at)
	}
	t.Logf("%d flash operations, %d cuts", whole.Operations(), cuts)
	require.Positive(t, cuts)
}

// supplied is flash that has the power supply of the line: when the power is cut,
// the device says nothing any more, not even that it leaves.
type supplied struct {
	*flashtest.Flash
	cut func()
}

func (s supplied) Program(off int64, data []byte) error {
	return s.check(s.Flash.Program(off, data))
}

func (s supplied) EraseSector(off int64) error {
	return s.check(s.Flash.EraseSector(off))
}

func (s supplied) check(err error) error {
	if errors.Is(err, flashtest.ErrPowerCut) {
		s.cut()
	}
	return err
}
