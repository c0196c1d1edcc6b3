package quarklink_test

import (
	"context"
	"crypto"
	"io"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/quarklinktest"
	"github.com/quarklink-go/quarklink/store"
)

// countingKeys counts the signatures by all of its keys.
type countingKeys struct {
	keystore.Generator
	n atomic.Int32
}

func (k *countingKeys) Signer(ctx context.Context, role keystore.Role) (crypto.Signer, error) {
	s, err := k.Generator.Signer(ctx, role)
	if err != nil {
		return nil, err
	}
	return countingSigner{s, &k.n}, nil
}

func (k *countingKeys) Generate(ctx context.Context, role keystore.Role) (crypto.Signer, error) {
	s, err := k.Generator.Generate(ctx, role)
	if err != nil {
		return nil, err
	}
	return countingSigner{s, &k.n}, nil
}

type countingSigner struct {
	crypto.Signer
	n *atomic.Int32
}

func (s countingSigner) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	s.n.Add(1)
	return s.Signer.Sign(random, digest, opts)
}

// counted is a member of a batch whose signatures are counted. The function
// returns how many signatures a call takes.
func counted(t *testing.T, server *quarklinktest.Server) (*quarklink.Client, func(func() error) int) {
	t.Helper()
	st := new(store.Mem)
	keys := &countingKeys{Generator: newKeys(t, st)}
	c := newClient(t, st, at(server), func(cfg *quarklink.Config) { cfg.KeyStore = keys })
	member(t, server, c, quarklinktest.Batch{})
	return c, func(call func() error) int {
		t.Helper()
		before := keys.n.Load()
		require.NoError(t, call())
		return int(keys.n.Load() - before)
	}
}

// TestSignatures counts what the device's keys sign, which a chip does slowly.
// Enrolment: the identity certificate, its handshake, the temporary CSR, the
// temporary certificate's handshake, the device's CSR.
func TestSignatures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := newServer(t, quarklinktest.Options{InMemory: true})
		c, signatures := counted(t, server)
		enrol := func() error { _, err := c.Enrol(t.Context()); return err }
		status := func() error { _, err := c.Status(t.Context()); return err }

		assert.Equal(t, 5, signatures(enrol), "enrolment of a blank device")
		for range 3 {
			handshakes := server.Stats().Handshakes
			assert.Equal(t, 0, signatures(status), "a poll")
			assert.Equal(t, handshakes+1, server.Stats().Handshakes, "the connection of before is closed")
			time.Sleep(10 * time.Minute)
		}
		assert.Equal(t, 2, signatures(enrol), "enrolment with a ticket")

		// The instance's tickets are good for seven days.
		time.Sleep(8 * 24 * time.Hour)
		assert.Equal(t, 3, signatures(enrol), "enrolment from cold")
		assert.Equal(t, 0, signatures(status), "a poll after it")
		time.Sleep(8 * 24 * time.Hour)
		assert.Equal(t, 1, signatures(status), "a poll with a ticket that is too old")
	})
}

// TestTicketsBelongToAnInstance: another instance, or other roots for the same,
// resume no session.
func TestTicketsBelongToAnInstance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := newServer(t, quarklinktest.Options{InMemory: true})
		c, signatures := counted(t, server)
		status := func() error { _, err := c.Status(t.Context()); return err }
		assert.Equal(t, 2, signatures(status), "the first poll")
		require.NoError(t, c.SetInstance(t.Context(), server.Instance()))
		assert.Equal(t, 0, signatures(status), "the same instance again")

		i := server.Instance()
		other := i
		other.Root = newRoot(t, "other")
		require.NoError(t, c.SetInstance(t.Context(), other))
		_, err := c.Status(t.Context())
		require.ErrorIs(t, err, quarklink.ErrCommunication)

		require.NoError(t, c.SetInstance(t.Context(), i))
		assert.Equal(t, 1, signatures(status), "the first poll under other roots")
	})
}
