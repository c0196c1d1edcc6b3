package quarklink_test

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/quarklinktest"
	"github.com/quarklink-go/quarklink/store"
)

func TestDatabaseDirect(t *testing.T) {
	var log strings.Builder
	_, c := newMember(t, quarklinktest.Batch{Policy: quarklinktest.Policy{Database: &quarklink.Database{
		Endpoint: "data.example", Port: 443, URI: "/app/x/endpoint", Database: "db", DataSource: "cluster",
		Token: "eyJ.secret.token"}}},
		func(cfg *quarklink.Config) { cfg.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	e, err := c.Enrol(t.Context())
	require.NoError(t, err)
	assert.Nil(t, e.Hub)
	require.NotNil(t, e.Database)
	assert.Equal(t, "eyJ.secret.token", string(e.Database.Token))
	assert.Equal(t, "/app/x/endpoint", e.Database.URI)
	assert.NotContains(t, fmt.Sprintf("%v %+v %#v", e, *e.Database, e.Database), "secret.token")
	assert.NotContains(t, log.String(), "secret.token")
	_, err = c.HubTLSConfig(t.Context())
	assert.ErrorIs(t, err, quarklink.ErrValueNotAvailable, "HubTLSConfig")
}

// TestDamagedEnrolment: status goes on, Enrolment says so, Enrol mends it.
func TestDamagedEnrolment(t *testing.T) {
	server := newServer(t, quarklinktest.Options{InMemory: true})
	st := new(store.Mem)
	c := newClient(t, st, at(server))
	member(t, server, c, quarklinktest.Batch{})
	ctx := t.Context()
	_, err := c.Enrol(ctx)
	require.NoError(t, err)
	for _, name := range []string{"enrolment", "csr"} {
		data, err := st.Get(ctx, name)
		require.NoError(t, err)
		require.NoError(t, st.Put(ctx, name, data[:len(data)/2]))
	}
	again := newClient(t, st, at(server))
	_, err = again.Enrolment()
	assert.ErrorIs(t, err, quarklink.ErrStorage, "damaged enrolment")
	s, err := again.Status(ctx)
	require.NoError(t, err)
	assert.True(t, s.NeedsEnrolment(), "with a damaged enrolment")
	_, err = again.Enrol(ctx)
	require.NoError(t, err)
	_, err = again.Enrolment()
	assert.NoError(t, err, "still damaged after Enrol")
}

// TestForgetHalf: if the second record cannot be deleted, the client believes
// what the store says.
func TestForgetHalf(t *testing.T) {
	server := newServer(t, quarklinktest.Options{InMemory: true})
	st := &stickyStore{Mem: new(store.Mem)}
	c := newClient(t, st, at(server))
	member(t, server, c, quarklinktest.Batch{})
	_, err := c.Enrol(t.Context())
	require.NoError(t, err)
	st.stuck = "csr"
	assert.ErrorIs(t, c.ForgetEnrolment(t.Context()), quarklink.ErrStorage, "ForgetEnrolment")
	_, err = c.Enrolment()
	assert.ErrorIs(t, err, quarklink.ErrNoEnrolment, "Enrolment")
	st.stuck = ""
	require.NoError(t, c.ForgetEnrolment(t.Context()))
	_, err = st.Get(t.Context(), "csr")
	assert.ErrorIs(t, err, fs.ErrNotExist, "the CSR is still there")
}

type stickyStore struct {
	*store.Mem
	stuck string
}

func (s *stickyStore) Delete(ctx context.Context, name string) error {
	if name == s.stuck {
		return errCut
	}
	return s.Mem.Delete(ctx, name)
}
