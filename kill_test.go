//go:build unix

package quarklink_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/internal/counterpart"
	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/keystore/software"
	"github.com/quarklink-go/quarklink/quarklinktest"
	"github.com/quarklink-go/quarklink/store"
)

// The test binary runs itself as a device that is to be killed.
const (
	killedDir  = "QUARKLINK_KILLED_DIR"  // of its records; set in a child only
	killedLong = "QUARKLINK_KILLED_LONG" // not empty: it lives until it is killed
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(killedDir); dir != "" {
		if err := liveUntilKilled(context.Background(), store.Dir(dir), os.Getenv(killedLong) != ""); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// liveUntilKilled is a device that enrols and renews, over the same key and over
// another in turn: once each, or again and again.
func liveUntilKilled(ctx context.Context, records store.Dir, long bool) error {
	keys, err := software.New(records, software.Options{Secret: secret, Iterations: 1})
	if err != nil {
		return err
	}
	c, err := quarklink.New(ctx, quarklink.Config{KeyStore: keys, Store: records, RequireIdentity: true})
	if err != nil {
		return err
	}
	fmt.Println("begun")
	for n := 0; long || n < 2; n++ {
		status, err := c.Status(ctx)
		if err != nil {
			return err
		}
		if status.NeedsEnrolment() {
			if _, err := c.Enrol(ctx); err != nil {
				return err
			}
			fmt.Println("enrolled")
		}
		if _, err := c.Renew(ctx, quarklink.RenewOptions{NewKey: n%2 == 1}); err != nil {
			return err
		}
		fmt.Println("renewed")
	}
	return nil
}

// victim is a device that is killed, and the instance that stays.
type victim struct {
	server  *quarklinktest.Server
	records store.Dir
	id      quarklink.DeviceID
	had     bool // an enrolment was stored once
}

func newVictim(t *testing.T) *victim {
	t.Helper()
	server := newServer(t, quarklinktest.Options{})
	// Each renewal lasts longer than the last, although no time passes.
	var renewals atomic.Int64
	require.NoError(t, server.Fault(quarklinktest.CallReenrol, quarklinktest.Intercept(
		func(w http.ResponseWriter, r *http.Request, real http.Handler) {
			lifetime := time.Duration(renewals.Add(1))*time.Minute + 365*24*time.Hour
			if err := server.SetPolicy("batch", quarklinktest.Policy{Lifetime: lifetime}); err != nil {
				panic(err)
			}
			real.ServeHTTP(w, r)
		})))
	v := &victim{server: server, records: store.Dir(filepath.Join(t.TempDir(), "state"))}
	c := newClient(t, v.records)
	require.NoError(t, c.SetInstance(t.Context(), server.Instance()))
	member(t, server, c, quarklinktest.Batch{})
	v.id = c.DeviceID()
	return v
}

// check opens the device as its next start would: it has the same identity, and
// since it was enrolled one certificate, over its key, which it presents to its
// hub and which that takes.
func (v *victim) check(t *testing.T, when string) {
	t.Helper()
	c := v.open(t)
	defer c.Close()
	require.Equal(t, v.id, c.DeviceID(), when)
	e, err := c.Enrolment()
	if !v.had && errors.Is(err, quarklink.ErrNoEnrolment) {
		return
	}
	require.NoError(t, err, when)
	v.had = true
	key, err := newKeys(t, v.records).Signer(t.Context(), keystore.Device)
	require.NoError(t, err, when)
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	require.NoError(t, err, when)
	require.Equal(t, public, e.Certificate.RawSubjectPublicKeyInfo, when)
	require.True(t, e.Certificate.Equal(shown(t, c)), when)
	list, err := v.server.RevocationList()
	require.NoError(t, err)
	revoked, err := x509.ParseRevocationList(list)
	require.NoError(t, err)
	for _, entry := range revoked.RevokedCertificateEntries {
		require.NotEqual(t, e.Certificate.SerialNumber, entry.SerialNumber, when)
	}
}

func (v *victim) open(t *testing.T) *quarklink.Client {
	t.Helper()
	return newClient(t, v.records, func(cfg *quarklink.Config) { cfg.RequireIdentity = true })
}

// recover does as Run does at the first poll, and then the instance takes the
// certificate too.
func (v *victim) recover(t *testing.T, when string) {
	t.Helper()
	v.check(t, when)
	c := v.open(t)
	defer c.Close()
	status, err := c.Status(t.Context())
	require.NoError(t, err, when)
	require.False(t, v.had && status.NeedsEnrolment(), "%s: an enrolment is lost", when)
	switch {
	case status.NeedsEnrolment():
		_, err = c.Enrol(t.Context())
	case status.NeedsRenewal():
		_, err = c.Renew(t.Context(), quarklink.RenewOptions{})
	}
	require.NoError(t, err, when)
	v.had = true
	v.check(t, when+", recovered")
	require.Equal(t, http.StatusOK, v.askedBy(t, c), when)
}

// askedBy has the instance asked with the certificate that the device presents to
// its hub, and returns the HTTP status.
func (v *victim) askedBy(t *testing.T, c *quarklink.Client) int {
	t.Helper()
	cfg, err := c.HubTLSConfig(t.Context())
	require.NoError(t, err)
	i := v.server.Instance()
	roots := x509.NewCertPool()
	roots.AddCert(i.Root)
	cfg = &tls.Config{RootCAs: roots, Certificates: cfg.Certificates, GetClientCertificate: cfg.GetClientCertificate}
	client := http.Client{Transport: &http.Transport{TLSClientConfig: cfg, DisableKeepAlives: true}}
	resp, err := client.Get(fmt.Sprintf("https://%s:%d%s", i.Endpoint, i.Port,
		"/quarklink/v1/connection"))
	require.NoError(t, err)
	defer resp.Body.Close()
	io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

func (v *victim) env(long string) []string {
	return append(os.Environ(), killedDir+"="+string(v.records), killedLong+"="+long, "GORACE=atexit_sleep_ms=0")
}

// TestKilledAtRandom kills a device at random moments while it enrols, renews, and
// renews with a new key: at each start it has exactly one valid enrolment, and
// never none once it had one.
func TestKilledAtRandom(t *testing.T) {
	kills := 60
	if testing.Short() {
		kills = 10
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	v := newVictim(t)
	renewed := 0
	for kill := range kills {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = v.env("1")
		var errs bytes.Buffer
		cmd.Stderr = &errs
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		// After a random number of steps, and a random time within the next.
		steps, after := 1+random.IntN(4), time.Duration(random.Int64N(int64(40*time.Millisecond)))
		text := make([]byte, 0, 1000)
		for bytes.Count(text, []byte("\n")) < steps {
			n, err := out.Read(text[len(text):cap(text)])
			text = text[:len(text)+n]
			if err != nil {
				break
			}
		}
		time.Sleep(after)
		cmd.Process.Kill()
		cmd.Wait()
		require.Empty(t, errs.String(), "the device failed before kill %d", kill)
		renewed += bytes.Count(text, []byte("renewed"))
		v.had = v.had || bytes.Contains(text, []byte("enrolled"))
		if when := fmt.Sprintf("after kill %d", kill); random.IntN(2) == 0 {
			v.check(t, when) // and the next start carries on
		} else {
			v.recover(t, when)
		}
	}
	v.recover(t, "at the end")
	assert.Positive(t, renewed)
	t.Logf("%d kills, %d renewals seen, %d certificates issued", kills, renewed, len(v.server.Certificates(v.id)))
}

// TestKilledAtEachCall kills a device at system calls that change its store, one
// after the other, while it enrols, renews, and renews with a new key.
func TestKilledAtEachCall(t *testing.T) {
	strace := counterpart.Program(t, "strace")
	for _, call := range []string{"fsync", "renameat,rename,renameat2", "unlinkat,unlink"} {
		t.Run(call, func(t *testing.T) {
			kills := 0
			for n := 1; ; n++ {
				if testing.Short() && n%6 != 1 {
					continue
				}
				require.Less(t, n, 200, "the device makes no end of calls")
				v := newVictim(t)
				cmd := exec.CommandContext(t.Context(), strace, "-f", "-o", os.DevNull, "-e", "trace="+call,
					"-e", fmt.Sprintf("inject=%s:signal=SIGKILL:when=%d", call, n), os.Args[0])
				cmd.Env = v.env("")
				out, err := cmd.CombinedOutput()
				v.had = strings.Contains(string(out), "enrolled")
				v.check(t, fmt.Sprintf("%s %d", call, n))
				if err == nil {
					break
				}
				require.NotContains(t, string(out), "renew:", "an error of the device itself")
				kills++
				v.recover(t, fmt.Sprintf("%s %d", call, n))
				assert.LessOrEqual(t, len(v.server.Certificates(v.id)), 4)
			}
			assert.Positive(t, kills)
			t.Logf("killed at %d calls", kills)
		})
	}
}
