package ota_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/esp/flash"
	"github.com/quarklink-go/quarklink/esp/flash/flashtest"
	"github.com/quarklink-go/quarklink/esp/ota"
	"github.com/quarklink-go/quarklink/esp/otadata"
)

// situation is a device before something is done to its flash.
type situation struct {
	b       otadata.Bootloader
	running int
	old     string // what runs
	content flash.Memory
}

// situations are all devices: with and without rollback, with and without a factory
// application, whichever slot runs, and with another update that was activated and
// never started.
func situations(t *testing.T) (list []situation) {
	for _, b := range []otadata.Bootloader{
		{Slots: 2}, {Slots: 2, Factory: true}, {Slots: 2, Rollback: true}, {Slots: 2, Factory: true, Rollback: true},
	} {
		for running := otadata.Factory; running < b.Slots; running++ {
			if running == otadata.Factory && !b.Factory {
				continue
			}
			for _, activated := range []bool{false, true} {
				has := map[int]string{running: "old"}
				if b.Factory {
					has[otadata.Factory] = "factory"
				}
				s := newBench(t, b, has)
				data, err := flash.Region(s.flash, 0, otadata.Size)
				require.NoError(t, err)
				if running >= 0 {
					require.NoError(t, otadata.SetBoot(data, b, running))
					s.boot(t, s.flash)
					if b.Rollback {
						require.NoError(t, otadata.Confirm(data))
					}
				}
				slot, name := s.boot(t, s.flash)
				require.Equal(t, running, slot)
				if activated {
					require.NoError(t, install(s.config(s.flash, running), s.byName["older"]))
				}
				list = append(list, situation{b, running, name, s.flash.Content()})
			}
		}
	}
	return list
}

// TestCuts cuts the power after every operation of an update, a confirmation and a
// rollback, and in the middle of each. The old image or the new one starts, it is one
// that verifies, and the update can be done again.
func TestCuts(t *testing.T) {
	total := 0
	for _, at := range situations(t) {
		name := fmt.Sprintf("%+v, %d runs", at.b, at.running)
		s := newBench(t, at.b, nil)

		live := flashtest.New(at.content)
		live.Record()
		require.NoError(t, install(s.config(live, at.running), s.byName["new"]), name)
		total += cutEach(t, s, at.content, live.Journal(), name+": update", at.old, "older", "new")

		trial := flashtest.New(live.Content())
		slot, image := s.boot(t, trial)
		require.Equal(t, "new", image)
		start := trial.Content()
		for what, do := range map[string]func(*ota.Trial) error{
			"confirm":  func(tr *ota.Trial) error { return tr.Confirm(t.Context()) },
			"rollback": func(tr *ota.Trial) error { return tr.Rollback(t.Context()) },
		} {
			f := flashtest.New(start)
			f.Record()
			tr, err := ota.NewTrial(s.config(f, slot))
			require.NoError(t, err)
			require.NoError(t, do(tr), "%s: %s", name, what)
			total += cutEach(t, s, start, f.Journal(), name+": "+what, at.old, "new")
		}
	}
	t.Logf("%d cuts", total)
	require.Greater(t, total, 10000)
}

// cutEach starts the device three times after each cut. At first nothing but these
// images may start, and "older" only where it was activated.
func cutEach(t *testing.T, s *bench, start flash.Memory, ops []flashtest.Op, name string, allowed ...string) int {
	t.Helper()
	data, err := otadata.Read(start)
	require.NoError(t, err)
	if d := data.Active(); d < 0 || s.what(start, data[d].Slot(s.b.Slots)) != "older" {
		allowed = slices.DeleteFunc(allowed, func(image string) bool { return image == "older" })
	}
	n := 0
	return flashtest.EachCut(start, ops, 1, func(cut string, m flash.Memory) {
		if n++; n%97 == 0 {
			again(t, s, m, name+": "+cut)
		}
		where := flashtest.New(m[:otadata.Size])
		for range 3 {
			slot, why, err := otadata.Boot(where, s.b, func(slot int) bool { return s.what(m, slot) != "" })
			require.NoError(t, err, "%s: %s", name, cut)
			if image := s.what(m, slot); !slices.Contains(allowed, image) {
				t.Fatalf("%s: %s: %q starts, want one of %q: %s", name, cut, image, allowed, why.Reason)
			}
		}
	})
}

// again does the update from whatever a cut left.
func again(t *testing.T, s *bench, m flash.Memory, name string) {
	t.Helper()
	f := flashtest.New(m)
	slot, image := s.boot(t, f)
	if image == "new" {
		return
	}
	require.NoError(t, s.verifier.Verify(t.Context(), f.Content()[s.partition(slot).Offset:], slotSize), name)
	cfg := s.config(f, slot)
	if tr, err := ota.NewTrial(cfg); err != nil || tr.Confirm(t.Context()) != nil {
		t.Fatalf("%s: %v", name, err)
	}
	require.NoError(t, install(cfg, s.byName["new"]), name)
	_, image = s.boot(t, f)
	require.Equal(t, "new", image, name)
}
