package quarklink_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/quarklinktest"
	"github.com/quarklink-go/quarklink/store"
)

// writeCounter counts what is written.
type writeCounter struct {
	*store.Mem
	writes []string
}

func (s *writeCounter) Put(ctx context.Context, name string, data []byte) error {
	s.writes = append(s.writes, name)
	return s.Mem.Put(ctx, name, data)
}

func (s *writeCounter) Delete(ctx context.Context, name string) error {
	s.writes = append(s.writes, name)
	return s.Mem.Delete(ctx, name)
}

// two instances behind one transport: each is at the endpoint that it is asked
// for by.
func twoInstances(t *testing.T) (a, b *quarklinktest.Server, instanceA, instanceB quarklink.Instance) {
	t.Helper()
	a, b = newServer(t, quarklinktest.Options{}), newServer(t, quarklinktest.Options{})
	instanceA, instanceB = a.Instance(), b.Instance()
	require.NoError(t, a.AddBatch(quarklinktest.Batch{Name: "batch"}))
	require.NoError(t, b.AddBatch(quarklinktest.Batch{Name: "batch"}))
	return a, b, instanceA, instanceB
}

// TestEnrolmentBelongsToItsInstance: a device that has moved is not enrolled,
// even if its new instance believes so; back home it is, unless it enrolled
// elsewhere meanwhile.
func TestEnrolmentBelongsToItsInstance(t *testing.T) {
	ctx := t.Context()
	a, b, home, away := twoInstances(t)
	st := new(store.Mem)
	c := newClient(t, st)
	require.NoError(t, a.AddDevices("batch", c.DeviceID()))
	require.NoError(t, b.AddDevices("batch", c.DeviceID()))

	// The other instance has enrolled it before, in a life that it forgot.
	require.NoError(t, c.SetInstance(ctx, away))
	_, err := c.Enrol(ctx)
	require.NoError(t, err)
	require.NoError(t, c.ForgetEnrolment(ctx))

	require.NoError(t, c.SetInstance(ctx, home))
	first, err := c.Enrol(ctx)
	require.NoError(t, err)
	require.NoError(t, c.SetInstance(ctx, away))

	for _, c := range []*quarklink.Client{c, newClient(t, st)} {
		status, err := c.Status(ctx)
		require.NoError(t, err)
		assert.Equal(t, quarklink.StateEnrolled, status.State)
		assert.False(t, status.HasEnrolment)
		assert.True(t, status.NeedsEnrolment())
		_, err = c.Enrolment()
		assert.ErrorIs(t, err, quarklink.ErrNoEnrolment)
		assert.ErrorContains(t, err, home.Endpoint)
		_, err = c.HubTLSConfig(ctx)
		assert.ErrorIs(t, err, quarklink.ErrNoEnrolment)
	}

	require.NoError(t, c.SetInstance(ctx, home))
	status, err := c.Status(ctx)
	require.NoError(t, err)
	assert.True(t, status.HasEnrolment, "back home, and nothing has replaced it")
	back, err := c.Enrolment()
	require.NoError(t, err)
	assert.True(t, back.Certificate.Equal(first.Certificate))

	// A certificate elsewhere, and no connection: the hub of home is not its.
	require.NoError(t, c.SetInstance(ctx, away))
	b.Fault(quarklinktest.CallConnection, quarklinktest.Refuse(404, "", 0))
	_, err = c.Enrol(ctx)
	require.Error(t, err)
	_, err = c.Enrolment()
	assert.ErrorIs(t, err, quarklink.ErrNoEnrolment)
	b.ClearFaults()
	_, err = c.Enrol(ctx)
	require.NoError(t, err)
	require.NoError(t, c.SetInstance(ctx, home))
	status, err = c.Status(ctx)
	require.NoError(t, err)
	assert.True(t, status.NeedsEnrolment(), "the enrolment elsewhere has replaced it")
}

// TestInstanceOfAnEnrolment: the endpoint and the root decide, the port does not.
func TestInstanceOfAnEnrolment(t *testing.T) {
	ctx := t.Context()
	for _, test := range []struct {
		name   string
		change func(*quarklink.Instance)
		same   bool
	}{
		{"itself", func(*quarklink.Instance) {}, true},
		{"another port", func(i *quarklink.Instance) { i.Port = 443 }, true},
		{"another spelling", func(i *quarklink.Instance) { i.Endpoint = "Instance.TEST" }, true},
		{"another endpoint", func(i *quarklink.Instance) { i.Endpoint = "localhost" }, false},
		{"another root", func(i *quarklink.Instance) { i.Root = newRoot(t, "another") }, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			server, st := newServer(t, quarklinktest.Options{InMemory: true}), new(store.Mem)
			c := newClient(t, st, at(server))
			member(t, server, c, quarklinktest.Batch{})
			_, err := c.Enrol(ctx)
			require.NoError(t, err)
			i := server.Instance()
			test.change(&i)
			_, err = newClient(t, st, func(cfg *quarklink.Config) { cfg.Instance = &i }).Enrolment()
			if test.same {
				assert.NoError(t, err)
			} else {
				assert.ErrorIs(t, err, quarklink.ErrNoEnrolment)
			}
		})
	}
}

// TestChangeOfRoots: an enrolment outlives its instance's root if the device saw
// the instance while it had both.
func TestChangeOfRoots(t *testing.T) {
	ctx := t.Context()
	for _, seen := range []bool{true, false} {
		server, st := newServer(t, quarklinktest.Options{InMemory: true}), &writeCounter{Mem: new(store.Mem)}
		c := newClient(t, st, func(cfg *quarklink.Config) { cfg.Transport = server.Carrier() })
		member(t, server, c, quarklinktest.Batch{})
		require.NoError(t, c.SetInstance(ctx, server.Instance()))
		_, err := c.Enrol(ctx)
		require.NoError(t, err)
		both, next := server.Instance(), newRoot(t, "next root")
		both.Roots = []*x509.Certificate{next}
		require.NoError(t, c.SetInstance(ctx, both))
		st.writes = nil
		for range 2 {
			if seen {
				_, err = c.Status(ctx)
				require.NoError(t, err)
			}
		}
		assert.Len(t, st.writes, map[bool]int{true: 1, false: 0}[seen])
		after := both
		after.Root, after.Roots = next, nil
		require.NoError(t, c.SetInstance(ctx, after))
		_, err = newClient(t, st).Enrolment()
		if seen {
			assert.NoError(t, err)
		} else {
			assert.ErrorIs(t, err, quarklink.ErrNoEnrolment, "the next root is nobody's yet")
		}
	}
}

// TestAdoption: an enrolment of an earlier library, which does not name its
// instance, is the present instance's, and says so before that changes, wherever
// the power is cut.
func TestAdoption(t *testing.T) {
	moves := map[string]func(ctx context.Context, c *quarklink.Client, to quarklink.Instance) error{
		"set": func(ctx context.Context, c *quarklink.Client, to quarklink.Instance) error {
			return c.SetInstance(ctx, to)
		},
		"forget, then set": func(ctx context.Context, c *quarklink.Client, to quarklink.Instance) error {
			if err := c.ForgetInstance(ctx); err != nil {
				return err
			}
			return c.SetInstance(ctx, to)
		},
	}
	away := quarklink.Instance{Endpoint: "away.example", Root: newRoot(t, "away")}
	for name, move := range moves {
		t.Run(name, func(t *testing.T) {
			for n := 1; ; n++ {
				st := recordStore(t, "hub")
				home, err := newClient(t, st).Instance()
				require.NoError(t, err)
				cut := &cutStore{Creator: st, left: n, after: n%2 == 0}
				err = move(t.Context(), newClient(t, cut), away)
				if cut.dead {
					require.ErrorIs(t, err, errCut)
				}
				c := newClient(t, st)
				now, err := c.Instance()
				_, enrolled := c.Enrolment()
				if err == nil && now.Endpoint == away.Endpoint {
					assert.ErrorIs(t, enrolled, quarklink.ErrNoEnrolment, "cut %d: away, with the hub of home", n)
				} else {
					assert.NoError(t, enrolled, "cut %d: lost", n)
				}
				require.NoError(t, c.SetInstance(t.Context(), away))
				_, enrolled = c.Enrolment()
				assert.ErrorIs(t, enrolled, quarklink.ErrNoEnrolment, "cut %d: moved", n)
				require.NoError(t, c.SetInstance(t.Context(), home))
				_, enrolled = c.Enrolment()
				assert.NoError(t, enrolled, "cut %d: back home", n)
				if !cut.dead {
					assert.Greater(t, n, 2)
					return
				}
			}
		})
	}
}

// TestAdoptedOnce: the first status has an old enrolment name its instance, and
// no later one writes anything.
func TestAdoptedOnce(t *testing.T) {
	server := recordServer(t)
	st := &writeCounter{Mem: recordStore(t, "hub")}
	c := newClient(t, st, dayAfter(server))
	for range 3 {
		_, err := c.Status(t.Context())
		require.NoError(t, err)
	}
	assert.Equal(t, []string{"enrolment"}, st.writes)
	assert.Contains(t, payload(t, st, "enrolment"), "instance")
}

// TestManyIssuers: an instance may have many issuers, and whatever it has can be
// enrolled with again; what verified the certificate is what is stored.
func TestManyIssuers(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 4096)
	require.NoError(t, err)
	var more []*x509.Certificate
	for i := range 40 {
		template := &x509.Certificate{SerialNumber: big.NewInt(int64(i + 1)),
			NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<33, 0),
			Subject: pkix.Name{CommonName: fmt.Sprintf("issuing CA number %d", i)}, IsCA: true,
			BasicConstraintsValid: true}
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		require.NoError(t, err)
		cert, err := x509.ParseCertificate(der)
		require.NoError(t, err)
		more = append(more, cert)
	}
	for _, n := range []int{17, 40} {
		st := new(store.Mem)
		server := newServer(t, quarklinktest.Options{InMemory: true})
		c := newClient(t, st, at(server))
		member(t, server, c, quarklinktest.Batch{})
		server.Fault(quarklinktest.CallCACerts, quarklinktest.MoreIssuers(more[:n]...))
		for life := range 3 {
			e, err := c.Enrol(t.Context())
			require.NoError(t, err, "%d issuers, life %d", n, life)
			assert.Equal(t, server.IssuingCertificates(), e.CACerts)
			assert.Equal(t, server.IssuingCertificates()[:1], e.Chain)
			require.NoError(t, server.Expire(c.DeviceID()))
		}
		e, err := newClient(t, st, at(server)).Enrolment()
		require.NoError(t, err)
		assert.Equal(t, server.IssuingCertificates(), e.CACerts)
	}
}

// padded makes a certificate as large as one with a post-quantum key and
// signature.
func padded(size int) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		c.ExtraExtensions = append(c.ExtraExtensions,
			pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, 1}, Value: make([]byte, size)})
	}
}

// TestPostQuantumSizes: certificates of 8 KB each are enrolled, once and again
// with the old ones still there, and after that too.
func TestPostQuantumSizes(t *testing.T) {
	const size = 8 << 10
	ctx := t.Context()
	hubRoot := paddedRoot(t, size)
	st := new(store.Mem)
	server := newServer(t, quarklinktest.Options{InMemory: true})
	c := newClient(t, st, at(server))
	member(t, server, c, quarklinktest.Batch{Policy: quarklinktest.Policy{
		Hub: &quarklink.Hub{Endpoint: "hub.example", Port: 8883, Roots: []*x509.Certificate{hubRoot}}}})
	server.Fault(quarklinktest.CallEnrol, quarklinktest.Reissue(padded(size)))
	server.Fault(quarklinktest.CallCACerts, quarklinktest.Reissue(padded(size)))
	first, err := c.Enrol(ctx)
	require.NoError(t, err)
	for _, cert := range append(first.CACerts, first.Certificate) {
		assert.Greater(t, len(cert.Raw), size)
	}
	require.NoError(t, server.Expire(c.DeviceID()))
	server.Fault(quarklinktest.CallConnection, quarklinktest.Refuse(404, "", 0).Times(1))
	_, err = c.Enrol(ctx)
	require.ErrorContains(t, err, "on purpose")
	kept, err := newClient(t, st, at(server)).Enrolment()
	require.NoError(t, err)
	assert.NotNil(t, kept.Hub)
	assert.True(t, kept.Certificate.Equal(first.Certificate), "there is room for both")
	second, err := c.Enrol(ctx)
	require.NoError(t, err)
	assert.False(t, second.Certificate.Equal(first.Certificate))
	require.NoError(t, oldOpens(st))
}

// TestUndecidedTemporaryCertificate: while the instance has not decided, each
// Enrol sends the same request, also after a restart; once it has, a new one.
func TestUndecidedTemporaryCertificate(t *testing.T) {
	ctx := t.Context()
	server, st := newServer(t, quarklinktest.Options{InMemory: true}), new(store.Mem)
	c := newClient(t, st, at(server))
	member(t, server, c, quarklinktest.Batch{})
	var asked bodies
	server.Fault(quarklinktest.CallTemporary, answer202(asked.add))
	for _, c := range []*quarklink.Client{c, c, newClient(t, st, at(server))} {
		_, err := c.Enrol(ctx)
		require.ErrorIs(t, err, quarklink.ErrValueNotAvailable)
		after, said := quarklink.RetryAfter(err)
		assert.True(t, said)
		assert.Equal(t, time.Hour, after)
	}
	require.Len(t, asked.all, 3)
	assert.Equal(t, asked.all[0], asked.all[1], "the next Enrol")
	assert.Equal(t, asked.all[0], asked.all[2], "after a restart")

	server.ClearFaults()
	_, err := c.Enrol(ctx)
	require.NoError(t, err)
	assert.NotContains(t, payload(t, st, "enrolment"), "waiting")
	server.Fault(quarklinktest.CallTemporary, answer202(asked.add))
	_, err = c.Enrol(ctx)
	require.ErrorIs(t, err, quarklink.ErrValueNotAvailable)
	assert.NotEqual(t, asked.all[0], asked.all[3], "the old one has had its answer")
	_, err = c.Enrolment()
	assert.NoError(t, err, "what was enrolled stays")
}

// TestUndecidedDeviceCertificate: the same for the device certificate.
func TestUndecidedDeviceCertificate(t *testing.T) {
	server, st := newServer(t, quarklinktest.Options{InMemory: true}), new(store.Mem)
	c := newClient(t, st, at(server))
	member(t, server, c, quarklinktest.Batch{})
	var asked bodies
	server.Fault(quarklinktest.CallEnrol, answer202(asked.add))
	for _, c := range []*quarklink.Client{c, newClient(t, st, at(server))} {
		_, err := c.Enrol(t.Context())
		require.ErrorIs(t, err, quarklink.ErrValueNotAvailable)
	}
	require.Len(t, asked.all, 2)
	assert.Equal(t, asked.all[0], asked.all[1])
}

// TestRefusedCSR: a CSR that was refused is not sent again; one that met any
// other answer is.
func TestRefusedCSR(t *testing.T) {
	for _, step := range []quarklinktest.Call{quarklinktest.CallTemporary, quarklinktest.CallEnrol} {
		t.Run(fmt.Sprint(step), func(t *testing.T) {
			ctx := t.Context()
			server, st := newServer(t, quarklinktest.Options{InMemory: true}), new(store.Mem)
			c := newClient(t, st, at(server))
			member(t, server, c, quarklinktest.Batch{})
			var asked bodies
			server.Fault(step, answerWith(http.StatusBadRequest, "", asked.add).Times(1))
			server.Fault(step, answer202(asked.add).Times(1))
			server.Fault(step, badCSR(asked.add).Times(3))
			other := newClient(t, st, at(server)) // another process finds no refused one either
			for _, c := range []*quarklink.Client{c, c, c, c, other} {
				_, err := c.Enrol(ctx)
				require.Error(t, err)
			}
			require.Len(t, asked.all, 5)
			assert.Equal(t, asked.all[0], asked.all[1])
			assert.Equal(t, asked.all[1], asked.all[2])
			assert.NotEqual(t, asked.all[2], asked.all[3])
			assert.NotEqual(t, asked.all[3], asked.all[4])
			assert.NotEqual(t, asked.all[2], asked.all[4])
			var err error
			_, err = st.Get(ctx, "csr")
			if step == quarklinktest.CallEnrol {
				assert.ErrorIs(t, err, fs.ErrNotExist)
			} else {
				assert.NoError(t, err)
			}
			_, err = c.Enrol(ctx)
			assert.NoError(t, err)
		})
	}
}

// TestNothingWrittenTwice: what is stored already is not written.
func TestNothingWrittenTwice(t *testing.T) {
	ctx := t.Context()
	server, st := newServer(t, quarklinktest.Options{InMemory: true}), &writeCounter{Mem: new(store.Mem)}
	c := newClient(t, st, func(cfg *quarklink.Config) { cfg.Transport = server.Carrier() })
	member(t, server, c, quarklinktest.Batch{})
	require.NoError(t, c.SetInstance(ctx, server.Instance()))
	_, err := c.Enrol(ctx)
	require.NoError(t, err)
	assert.Equal(t, []string{"instance", "csr", "enrolment", "enrolment"}, st.writes)
	st.writes = nil
	for range 10 {
		_, err = c.Enrol(ctx)
		require.NoError(t, err)
		_, err = c.Status(ctx)
		require.NoError(t, err)
	}
	require.NoError(t, c.SetInstance(ctx, server.Instance()))
	assert.Empty(t, st.writes)
}

// doubtStore writes and says that it failed, once.
type doubtStore struct {
	*store.Mem
	fail   string
	writes int
}

func (s *doubtStore) Put(ctx context.Context, name string, data []byte) error {
	err := s.Mem.Put(ctx, name, data)
	s.writes++
	if name == s.fail {
		s.fail = ""
		return errors.New("may not outlive a power cut")
	}
	return err
}

// TestDoubtfulWrite: a write that failed is done again, whatever can be read.
func TestDoubtfulWrite(t *testing.T) {
	st := &doubtStore{Mem: new(store.Mem), fail: "instance"}
	c := newClient(t, st)
	i := quarklink.Instance{Endpoint: "instance.example", Root: newRoot(t, "root")}
	require.ErrorIs(t, c.SetInstance(t.Context(), i), quarklink.ErrStorage)
	require.NoError(t, c.SetInstance(t.Context(), i))
	assert.Equal(t, 2, st.writes)
	require.NoError(t, c.SetInstance(t.Context(), i))
	assert.Equal(t, 2, st.writes)
}

// TestConnectionFails: if a re-enrolment cannot learn where to connect, the old
// details serve: with the old certificate, and if that has expired or its key is
// gone, with the new one. The device goes on asking, and the details that come
// in the end are the new certificate's.
func TestConnectionFails(t *testing.T) {
	for _, test := range []struct {
		name   string
		spoil  func(t *testing.T, st *store.Mem, now *time.Time)
		oldOne bool // the old certificate serves
	}{
		{"old certificate", func(*testing.T, *store.Mem, *time.Time) {}, true},
		{"expired", func(_ *testing.T, _ *store.Mem, now *time.Time) { *now = now.Add(366 * 24 * time.Hour) }, false},
		{"key lost", func(t *testing.T, st *store.Mem, _ *time.Time) {
			require.NoError(t, st.Delete(t.Context(), "key-dsk"))
		}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			ctx, now, st := t.Context(), time.Now(), new(store.Mem)
			clock := func() time.Time { return now }
			server := newServer(t, quarklinktest.Options{InMemory: true, Now: clock})
			open := func() *quarklink.Client {
				return newClient(t, st, at(server), func(cfg *quarklink.Config) { cfg.Now = clock })
			}
			member(t, server, open(), quarklinktest.Batch{})
			first, err := open().Enrol(ctx)
			require.NoError(t, err)
			require.NoError(t, server.Expire(open().DeviceID()))
			test.spoil(t, st, &now)

			for range 3 { // the third changes nothing
				c := open()
				server.Fault(quarklinktest.CallConnection, quarklinktest.Refuse(404, "", 0).Times(1))
				_, err = c.Enrol(ctx)
				require.Error(t, err)
				for _, c := range []*quarklink.Client{c, open()} {
					e, err := c.Enrolment()
					require.NoError(t, err)
					assert.Equal(t, first.Hub, e.Hub)
					assert.Equal(t, test.oldOne, e.Certificate.Equal(first.Certificate))
					assert.True(t, e.Certificate.Equal(shown(t, c)))
					status, err := c.Status(ctx)
					require.NoError(t, err)
					assert.False(t, status.HasEnrolment)
					assert.False(t, status.CertificateExpired)
					assert.True(t, status.NeedsEnrolment())
				}
			}
			newHub(server, newRoot(t, "new hub"))
			second, err := open().Enrol(ctx)
			require.NoError(t, err)
			issued := server.Certificates(open().DeviceID())
			require.Len(t, issued, 2)
			assert.True(t, second.Certificate.Equal(issued[1]))
			assert.True(t, second.Certificate.Equal(shown(t, open())))
			assert.Equal(t, "new.example", second.Hub.Endpoint)
			status, err := open().Status(ctx)
			require.NoError(t, err)
			assert.True(t, status.HasEnrolment)
		})
	}
}

// TestReEnrolPowerCut cuts power at every write of a re-enrolment: at each
// moment one enrolment serves, whose parts belong together, and after the next
// Enrol exactly one more certificate was issued.
func TestReEnrolPowerCut(t *testing.T) {
	eachCut(t, func(t *testing.T, st store.Creator, cut *cutStore) error {
		server := newServer(t, quarklinktest.Options{InMemory: true})
		before := newClient(t, st, at(server))
		member(t, server, before, quarklinktest.Batch{})
		first, err := before.Enrol(t.Context())
		require.NoError(t, err)
		require.NoError(t, server.Expire(before.DeviceID()))
		newHub(server, newRoot(t, "new hub"))

		_, err = newClient(t, cut, at(server)).Enrol(t.Context())
		if !cut.dead {
			return err
		}
		require.ErrorIs(t, err, errCut)
		c := newClient(t, st, at(server))
		e, err := c.Enrolment()
		require.NoError(t, err)
		assert.Equal(t, e.Certificate.Equal(first.Certificate), e.Hub.Endpoint == first.Hub.Endpoint)
		second, err := c.Enrol(t.Context())
		require.NoError(t, err)
		issued := server.Certificates(c.DeviceID())
		require.Len(t, issued, 2)
		assert.True(t, second.Certificate.Equal(issued[1]))
		assert.Equal(t, "new.example", second.Hub.Endpoint)
		return nil
	})
}

// TestTwoProcesses: what one process enrols, another on the same folder has at
// its next call; so with what it forgets.
func TestTwoProcesses(t *testing.T) {
	ctx := t.Context()
	server := newServer(t, quarklinktest.Options{InMemory: true})
	dir := privateDir(t)
	agent := newClient(t, store.Dir(dir), at(server))
	application := newClient(t, store.Dir(dir), at(server))
	member(t, server, agent, quarklinktest.Batch{})
	_, err := application.Enrolment()
	require.ErrorIs(t, err, quarklink.ErrNoEnrolment)

	for range 2 {
		e, err := agent.Enrol(ctx)
		require.NoError(t, err)
		seen, err := application.Enrolment()
		require.NoError(t, err)
		assert.True(t, seen.Certificate.Equal(e.Certificate))
		assert.True(t, e.Certificate.Equal(shown(t, application)))
		status, err := application.Status(ctx)
		require.NoError(t, err)
		assert.True(t, status.HasEnrolment)
		require.NoError(t, server.Expire(agent.DeviceID()))
	}
	require.NoError(t, agent.ForgetEnrolment(ctx))
	_, err = application.Enrolment()
	assert.ErrorIs(t, err, quarklink.ErrNoEnrolment)
	_, err = application.HubTLSConfig(ctx)
	assert.ErrorIs(t, err, quarklink.ErrNoEnrolment)
}

// mutedStore does not answer, once it is muted.
type mutedStore struct {
	*store.Mem
	muted bool
}

var errMuted = errors.New("the medium does not answer")

func (s *mutedStore) Get(ctx context.Context, name string) ([]byte, error) {
	if s.muted {
		return nil, errMuted
	}
	return s.Mem.Get(ctx, name)
}

// TestStoreFallsSilent: the enrolment that was read last serves on, and so it
// does after Close.
func TestStoreFallsSilent(t *testing.T) {
	server, st := newServer(t, quarklinktest.Options{InMemory: true}), &mutedStore{Mem: new(store.Mem)}
	c := newClient(t, st, at(server))
	member(t, server, c, quarklinktest.Batch{})
	_, err := c.Enrol(t.Context())
	require.NoError(t, err)
	st.muted = true
	_, err = c.Enrolment()
	assert.NoError(t, err)
	status, err := c.Status(t.Context())
	require.NoError(t, err)
	assert.True(t, status.HasEnrolment)
	require.NoError(t, c.Close())
	_, err = c.Enrolment()
	assert.NoError(t, err)
}

// TestEnrolmentByHand: a user's test makes an Enrolment as it likes.
func TestEnrolmentByHand(t *testing.T) {
	where := func(e *quarklink.Enrolment) string { // a user's function
		switch {
		case e.Hub != nil:
			return e.Hub.Addr()
		case e.Database != nil:
			return e.Database.Endpoint
		}
		return "nowhere"
	}
	cert := newRoot(t, "device")
	assert.Equal(t, "hub.example:8883", where(&quarklink.Enrolment{
		Certificate: cert, Hub: &quarklink.Hub{Endpoint: "hub.example", Port: 8883}}))
	assert.Equal(t, "nowhere", where(&quarklink.Enrolment{Certificate: cert}))
}

// TestNeitherHubNorDatabase: a certificate for which no connection details are
// to come is a complete enrolment.
func TestNeitherHubNorDatabase(t *testing.T) {
	ctx := t.Context()
	server, st := newServer(t, quarklinktest.Options{InMemory: true}), new(store.Mem)
	c := newClient(t, st, at(server))
	member(t, server, c, quarklinktest.Batch{})
	_, err := c.Enrol(ctx)
	require.NoError(t, err)
	members := payload(t, st, "enrolment")
	delete(members, "connection")
	members["noConnection"] = true
	text, err := json.Marshal(members)
	require.NoError(t, err)
	require.NoError(t, st.Put(ctx, "enrolment", store.EncodeRecord("enrolment", 1, text)))

	c = newClient(t, st, at(server))
	e, err := c.Enrolment()
	require.NoError(t, err)
	assert.Nil(t, e.Hub)
	assert.Nil(t, e.Database)
	status, err := c.Status(ctx)
	require.NoError(t, err)
	assert.True(t, status.HasEnrolment)
	_, err = c.HubTLSConfig(ctx)
	assert.ErrorIs(t, err, quarklink.ErrValueNotAvailable)
	e, err = c.Enrol(ctx)
	require.NoError(t, err)
	assert.NotNil(t, e.Hub, "this instance has connection details")
	assert.NotContains(t, payload(t, st, "enrolment"), "noConnection")
}

// TestForeignProfile: what no QuarkLink instance would certify is refused by
// name, and what was enrolled stays.
func TestForeignProfile(t *testing.T) {
	clientAuth := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	for _, test := range []struct {
		name   string
		change func(*x509.Certificate)
		says   string // "" if it is taken
	}{
		{"a CA", func(c *x509.Certificate) { c.IsCA = true }, "CA"},
		{"another device", func(c *x509.Certificate) { c.Subject.CommonName = strings.Repeat("0", 64) }, "subject"},
		{"no subject", func(c *x509.Certificate) { c.Subject = pkix.Name{} }, "subject"},
		{"two names", func(c *x509.Certificate) {
			c.Subject.ExtraNames = []pkix.AttributeTypeAndValue{
				{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: "another"},
				{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: c.Subject.CommonName}}
		}, "subject"},
		{"no usages", func(c *x509.Certificate) { c.ExtKeyUsage = nil }, "clientAuth"},
		{"a server's", func(c *x509.Certificate) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		}, "clientAuth"},
		{"any usage", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} },
			"clientAuth"},
		{"an organisation too", func(c *x509.Certificate) { c.Subject.Organization = []string{"Lab"} }, ""},
		{"a server's too", func(c *x509.Certificate) {
			c.ExtKeyUsage = append(clientAuth,
				x509.ExtKeyUsageServerAuth)
		}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			server, c := newMember(t, quarklinktest.Batch{})
			server.Fault(quarklinktest.CallEnrol, quarklinktest.Reissue(test.change))
			_, err := c.Enrol(t.Context())
			if test.says == "" {
				assert.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, quarklink.ErrGeneral)
			assert.ErrorContains(t, err, test.says)
			_, err = c.Enrolment()
			assert.ErrorIs(t, err, quarklink.ErrNoEnrolment)
			server.ClearFaults()
			_, err = c.Enrol(t.Context())
			assert.NoError(t, err)
		})
	}
}
