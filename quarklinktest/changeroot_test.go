package quarklinktest_test

import (
	"crypto/tls"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/quarklinktest"
)

// TestChangeRoot: a device that was told of the next root reaches the instance
// before, during and after the change, one that was not only before.
func TestChangeRoot(t *testing.T) {
	for name, o := range map[string]quarklinktest.Options{"TLS 1.3": {}, "TLS 1.2": {TLS12: true}} {
		t.Run(name, func(t *testing.T) {
			o.InMemory = true
			s := newServer(t, o)
			require.NoError(t, s.AddBatch(quarklinktest.Batch{Name: "b"}))
			told, err := s.NewDevice(t.Context(), "b")
			require.NoError(t, err)
			defer told.Close()
			untold, err := s.NewDevice(t.Context(), "b")
			require.NoError(t, err)
			defer untold.Close()
			_, err = told.Enrol(t.Context())
			require.NoError(t, err)
			require.ErrorContains(t, s.ChangeRoot(), "call NextRoot")

			before := s.Instance()
			next, err := s.NextRoot()
			require.NoError(t, err)
			again, err := s.NextRoot()
			require.NoError(t, err)
			assert.True(t, next.Equal(again), "it is made once")
			assert.False(t, next.Equal(before.Root))
			assert.True(t, before.Root.Equal(s.Instance().Root), "nothing has changed yet")
			both := before
			both.Roots = append(both.Roots, next)
			require.NoError(t, told.SetInstance(t.Context(), both))
			for _, c := range []*quarklink.Client{told, untold} {
				_, err = c.Status(t.Context())
				require.NoError(t, err, "before the change")
			}

			require.NoError(t, s.ChangeRoot())
			assert.True(t, next.Equal(s.Instance().Root))
			require.Error(t, s.ChangeRoot(), "once for each NextRoot")
			for _, i := range []quarklink.Instance{both, s.Instance()} {
				require.NoError(t, told.SetInstance(t.Context(), i))
				_, err = told.Status(t.Context())
				require.NoError(t, err, "after the change")
			}
			require.NoError(t, untold.SetInstance(t.Context(), before)) // closes its connection
			_, err = untold.Status(t.Context())
			require.ErrorIs(t, err, quarklink.ErrCommunication)
			e, err := told.Enrol(t.Context())
			require.NoError(t, err)
			require.Len(t, e.Hub.Roots, 1)
			assert.True(t, next.Equal(e.Hub.Roots[0]), "a hub without roots of its own is under the new one")
			hub, err := s.HubCertificate("hub.test")
			require.NoError(t, err)
			require.NoError(t, hub.Leaf.CheckSignatureFrom(next))
		})
	}
}

// TestChangeRootOutlivesARestart: a next root and a change are kept, by a State
// from the moment on at which they are told.
func TestChangeRootOutlivesARestart(t *testing.T) {
	dir := t.TempDir()
	byState := func(*testing.T, *quarklinktest.Server) quarklinktest.Options {
		return quarklinktest.Options{InMemory: true, State: dir}
	}
	bySnapshot := func(t *testing.T, s *quarklinktest.Server) quarklinktest.Options {
		snapshot, err := s.Snapshot()
		require.NoError(t, err)
		return quarklinktest.Options{InMemory: true, Snapshot: snapshot}
	}
	for name, test := range map[string]struct {
		first   quarklinktest.Options
		restart func(*testing.T, *quarklinktest.Server) quarklinktest.Options
	}{
		"state":    {quarklinktest.Options{InMemory: true, State: dir}, byState},
		"snapshot": {quarklinktest.Options{InMemory: true}, bySnapshot},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, test.first)
			again := func() {
				o := test.restart(t, s)
				s.Close()
				s = newServer(t, o)
			}
			before := s.Instance().Root
			next, err := s.NextRoot()
			require.NoError(t, err)
			again()
			assert.True(t, before.Equal(s.Instance().Root))
			kept, err := s.NextRoot()
			require.NoError(t, err)
			assert.True(t, next.Equal(kept))
			require.NoError(t, s.ChangeRoot())
			again()
			assert.True(t, next.Equal(s.Instance().Root))
			state, err := dialTLS(s, &tls.Config{InsecureSkipVerify: true})
			require.NoError(t, err)
			require.NoError(t, state.PeerCertificates[0].CheckSignatureFrom(next))
			require.Error(t, s.ChangeRoot(), "the change is over")
		})
	}
}
