package main

import (
	"context"
	"fmt"
	"html/template"
	"strings"
	"sync"
	"time"

	"github.com/quarklink-go/quarklink/quarklinktest"
)

// history is how each batch's rollout went: how many of its devices ran what is
// published, over time. It begins with the process.
type history struct {
	mu      sync.Mutex
	batches map[string][]sample
}

// sample is the state of a rollout at one moment.
type sample struct {
	at               time.Time
	devices, running int
	image            [32]byte // what is published; zero: nothing
}

func newHistory() *history { return &history{batches: map[string][]sample{}} }

const (
	maxSamples = 400
	// A busy fleet is looked at this often.
	sampleEvery = time.Second
)

// follow samples the batches as things happen, until ctx ends: what happens while
// it waits is in one sample.
func (h *history) follow(ctx context.Context, server *quarklinktest.Server) {
	h.take(server, time.Now())
	seen := uint64(0)
	for e := range server.Events(ctx, 0) {
		if e.Seq <= seen || e.Kind == quarklinktest.EventRequest || e.Kind == quarklinktest.EventHandshakeFailed {
			continue
		}
		seen = server.Stats().Events
		h.take(server, time.Now())
		select {
		case <-time.After(sampleEvery):
		case <-ctx.Done():
			return
		}
	}
}

func (h *history) take(server *quarklinktest.Server, now time.Time) {
	batches := server.Batches()
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, b := range batches {
		s := sample{at: now, devices: b.Devices}
		if m := b.Firmware; m != nil {
			s.image = m.SHA256
			s.running = b.Current
		}
		h.batches[b.Name] = addSample(h.batches[b.Name], s)
	}
}

// addSample drops every other one of the samples when there are too many.
func addSample(all []sample, s sample) []sample {
	if n := len(all); n > 0 {
		if l := all[n-1]; l.devices == s.devices && l.running == s.running && l.image == s.image {
			return all
		}
	}
	if len(all) == maxSamples {
		kept := all[:0]
		for i := 0; i < maxSamples; i += 2 {
			kept = append(kept, all[i])
		}
		all = kept
	}
	return append(all, s)
}

// The plot's measures, in units of its viewBox.
const (
	plotWidth, plotHeight     = 640.0, 160.0
	plotLeft, plotRight       = 44.0, 8.0
	plotTop, plotBottom       = 10.0, 24.0
	plotInnerW, plotInnerH    = plotWidth - plotLeft - plotRight, plotHeight - plotTop - plotBottom
	plotBaseline, plotMiddleY = plotTop + plotInnerH, plotTop + plotInnerH/2
)

// plot draws the part of a batch's devices that run what is published, as steps
// over time, in SVG. Nothing in it comes from outside but numbers.
func (h *history) plot(batch string, now time.Time) template.HTML {
	h.mu.Lock()
	samples := append([]sample(nil), h.batches[batch]...)
	h.mu.Unlock()
	if len(samples) == 0 || samples[len(samples)-1].image == [32]byte{} {
		return ""
	}
	latest := samples[len(samples)-1]
	first := len(samples) - 1 // the rollout of the present image
	for first > 0 && samples[first-1].image == latest.image {
		first--
	}
	samples = append(samples[first:], sample{at: now, devices: latest.devices, running: latest.running})
	begin, span := samples[0].at, max(now.Sub(samples[0].at), time.Second)
	x := func(t time.Time) float64 { return plotLeft + plotInnerW*float64(t.Sub(begin))/float64(span) }
	y := func(s sample) float64 {
		if s.devices == 0 {
			return plotBaseline
		}
		return plotBaseline - plotInnerH*float64(s.running)/float64(s.devices)
	}
	var line strings.Builder
	fmt.Fprintf(&line, "M%.1f %.1f", x(begin), y(samples[0]))
	for _, s := range samples[1:] {
		fmt.Fprintf(&line, "H%.1fV%.1f", x(s.at), y(s))
	}
	var svg strings.Builder
	fmt.Fprintf(&svg, `<svg class="plot" viewBox="0 0 %g %g" role="img" aria-label="Rollout: %d of %d devices run it">`,
		plotWidth, plotHeight, latest.running, latest.devices)
	for _, tick := range []struct {
		y     float64
		label string
	}{{plotTop, "100 %"}, {plotMiddleY, "50 %"}, {plotBaseline, "0 %"}} {
		fmt.Fprintf(&svg, `<path class="grid" d="M%g %gH%g"/><text class="tick" x="%g" y="%g" text-anchor="end">%s</text>`,
			plotLeft, tick.y, plotWidth-plotRight, plotLeft-6, tick.y+4, tick.label)
	}
	fmt.Fprintf(&svg, `<path class="area" d="%sV%gH%gZ"/><path class="line" d="%s"/>`,
		line.String(), plotBaseline, plotLeft, line.String())
	fmt.Fprintf(&svg, `<circle class="dot" cx="%.1f" cy="%.1f" r="4"/>`, x(now), y(latest))
	fmt.Fprintf(&svg, `<text class="tick" x="%g" y="%g">published %s ago</text>`, plotLeft, plotHeight-6, span.Round(time.Second))
	fmt.Fprintf(&svg, `<text class="tick" x="%g" y="%g" text-anchor="end">now</text></svg>`, plotWidth-plotRight, plotHeight-6)
	return template.HTML(svg.String())
}
