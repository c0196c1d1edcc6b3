package quarklinktest_test

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/quarklinktest"
)

// BenchmarkDevices reports what 10,000 devices in one Server take: B/device when
// they are in a batch, and B/enrolled for what an enrolment adds to one.
func BenchmarkDevices(b *testing.B) {
	const many, enrolled = 10_000, 200
	live := func() float64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc)
	}
	for b.Loop() {
		s := newServer(b, quarklinktest.Options{InMemory: true})
		var ids []quarklink.DeviceID
		for n := range many {
			ids = append(ids, quarklink.DeviceID(fmt.Sprintf("%064x", n)))
		}
		require.NoError(b, s.AddBatch(quarklinktest.Batch{Name: "b"}))
		before := live()
		require.NoError(b, s.AddDevices("b", ids...))
		with := live()
		for range enrolled {
			device, err := s.NewDevice(b.Context(), "b")
			require.NoError(b, err)
			_, err = device.Enrol(b.Context())
			require.NoError(b, err)
			require.NoError(b, device.Close())
		}
		b.ReportMetric((with-before)/many, "B/device")
		b.ReportMetric((live()-with)/enrolled, "B/enrolled")
		s.Close()
	}
}
