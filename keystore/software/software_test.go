package software_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/keystore/keystoretest"
	"github.com/quarklink-go/quarklink/keystore/software"
	"github.com/quarklink-go/quarklink/store"
)

// strong is a secret that cannot be guessed (but for being printed here): it needs
// no stretching.
const strong = "0123456789abcdef0123456789abcdef"

func options(algorithm software.Algorithm, secret string) software.Options {
	return software.Options{
		Secret:     func(context.Context) ([]byte, error) { return []byte(secret), nil },
		Algorithm:  algorithm,
		Iterations: 1,
	}
}

func open(t testing.TB, records store.Creator, opts software.Options) *software.Store {
	t.Helper()
	s, err := software.New(records, opts)
	require.NoError(t, err)
	return s
}

func generate(t *testing.T, s *software.Store, role keystore.Role) crypto.Signer {
	t.Helper()
	signer, err := s.Generate(t.Context(), role)
	require.NoError(t, err)
	return signer
}

func fingerprint(t *testing.T, signer crypto.Signer) string {
	t.Helper()
	id, err := keystore.Fingerprint(signer.Public())
	require.NoError(t, err)
	return fmt.Sprintf("%x", id)
}

// keyRecord makes a record of the enrolment key once for all tests: an RSA key
// takes its time.
var keyRecord = map[software.Algorithm]func() ([]byte, error){
	software.P256:    sync.OnceValues(func() ([]byte, error) { return makeKeyRecord(software.P256) }),
	software.RSA3072: sync.OnceValues(func() ([]byte, error) { return makeKeyRecord(software.RSA3072) }),
}

func makeKeyRecord(algorithm software.Algorithm) ([]byte, error) {
	ctx := context.Background()
	var records store.Mem
	s, err := software.New(&records, options(algorithm, strong))
	if err != nil {
		return nil, err
	}
	if _, err := s.Generate(ctx, keystore.Enrolment); err != nil {
		return nil, err
	}
	return records.Get(ctx, "key-esk")
}

// stored puts an enrolment key in a store and returns it opened, and its store.
func stored(t testing.TB, records store.Creator, algorithm software.Algorithm) (crypto.Signer, *software.Store) {
	t.Helper()
	record, err := keyRecord[algorithm]()
	if err == nil {
		err = records.Create(t.Context(), "key-esk", record)
	}
	require.NoError(t, err)
	s := open(t, records, options(algorithm, strong))
	signer, err := s.Signer(t.Context(), keystore.Enrolment)
	require.NoError(t, err)
	return signer, s
}

func TestConformance(t *testing.T) {
	for _, c := range []struct {
		name      string
		algorithm software.Algorithm
		records   store.Creator
	}{
		{"P-256 in Mem", software.P256, new(store.Mem)},
		{"P-256 in Dir", software.P256, store.Dir(t.TempDir() + "/state")},
		{"RSA-3072 in Dir", software.RSA3072, store.Dir(t.TempDir() + "/state")},
	} {
		for _, state := range []string{"fresh", "existing"} {
			t.Run(c.name+", "+state, func(t *testing.T) {
				assert.NoError(t, keystoretest.Test(t.Context(), func(context.Context) (keystore.KeyStore, error) {
					return software.New(c.records, options(c.algorithm, strong))
				}))
			})
		}
	}
}

func TestNewRefuses(t *testing.T) {
	good := options(software.P256, strong)
	for what, change := range map[string]func(*software.Options){
		"no secret":           func(o *software.Options) { o.Secret = nil },
		"unknown algorithm":   func(o *software.Options) { o.Algorithm = 2 },
		"negative iterations": func(o *software.Options) { o.Iterations = -1 },
		"too many iterations": func(o *software.Options) { o.Iterations = software.MaxIterations + 1 },
	} {
		bad := good
		change(&bad)
		s, err := software.New(new(store.Mem), bad)
		assert.Nil(t, s, what)
		assert.ErrorIs(t, err, fs.ErrInvalid, what)
	}
	s, err := software.New(nil, good)
	assert.Nil(t, s, "no store")
	assert.ErrorIs(t, err, fs.ErrInvalid, "no store")
}

// A secret that protects nothing is refused before anything is written.
func TestSecretRefused(t *testing.T) {
	unavailable := errors.New("the fuse controller is busy")
	for what, c := range map[string]struct {
		secret     []byte
		err        error
		iterations int
	}{
		"empty":                {secret: []byte{}, iterations: 0},
		"nil":                  {iterations: 0},
		"unavailable":          {err: unavailable},
		"short, not stretched": {secret: []byte(strong[:31]), iterations: 99_999},
		"15 bytes":             {secret: []byte(strong[:15])},
		"a fuse of zeros":      {secret: make([]byte, 32), iterations: 1},
		"a fuse of ones":       {secret: bytes.Repeat([]byte{0xff}, 32), iterations: 1},
	} {
		ctx := t.Context()
		var records store.Mem
		s := open(t, &records, software.Options{
			Secret:     func(context.Context) ([]byte, error) { return c.secret, c.err },
			Iterations: c.iterations,
		})
		signer, err := s.Generate(ctx, keystore.Enrolment)
		assert.Nil(t, signer, what)
		assert.Error(t, err, what)
		if c.err != nil {
			assert.ErrorIs(t, err, c.err, what)
		}
		for _, name := range []string{"key-esk", "key-dsk"} {
			_, err := records.Get(ctx, name)
			assert.ErrorIs(t, err, fs.ErrNotExist, what)
		}
	}
}

// The slice that Secret returns stays the program's: it may be the same each time.
func TestSecretIsNotChanged(t *testing.T) {
	var records store.Mem
	secret := []byte(strong)
	opts := options(software.P256, "")
	opts.Secret = func(context.Context) ([]byte, error) { return secret, nil }
	id := fingerprint(t, generate(t, open(t, &records, opts), keystore.Enrolment))
	signer, err := open(t, &records, opts).Signer(t.Context(), keystore.Enrolment)
	require.NoError(t, err, "with the same slice")
	assert.Equal(t, id, fingerprint(t, signer), "with the same slice")
	assert.Equal(t, strong, string(secret), "with the same slice")
}

// A secret of less than 32 bytes is stretched.
func TestShortSecret(t *testing.T) {
	var records store.Mem
	opts := options(software.P256, "a pass phrase...")
	opts.Iterations = 0
	id := fingerprint(t, generate(t, open(t, &records, opts), keystore.Device))
	signer, err := open(t, &records, opts).Signer(t.Context(), keystore.Device)
	require.NoError(t, err)
	assert.Equal(t, id, fingerprint(t, signer))
}

// Absent, damaged and locked are three different things, and none but the first
// lets a key be made.
func TestStatesAreToldApart(t *testing.T) {
	ctx := t.Context()
	var records store.Mem
	id := fingerprint(t, generate(t, open(t, &records, options(software.P256, strong)), keystore.Enrolment))
	whole, err := records.Get(ctx, "key-esk")
	require.NoError(t, err)
	flipped := bytes.Clone(whole)
	flipped[len(flipped)/2] ^= 1
	for what, c := range map[string]struct {
		record   []byte
		secret   string
		role     keystore.Role
		want     error
		generate error
	}{
		"absent":       {whole, strong, keystore.Device, fs.ErrNotExist, nil},
		"wrong secret": {whole, strong + "x", keystore.Enrolment, software.ErrSecret, fs.ErrExist},
		"flipped bit":  {flipped, strong, keystore.Enrolment, store.ErrDamaged, fs.ErrExist},
		"cut":          {whole[:len(whole)/2], strong, keystore.Enrolment, store.ErrDamaged, fs.ErrExist},
		"empty":        {nil, strong, keystore.Enrolment, store.ErrDamaged, fs.ErrExist},
		"another record": {store.EncodeRecord("key-dsk", 1, whole), strong, keystore.Enrolment,
			store.ErrDamaged, fs.ErrExist},
		"a record without a key": {store.EncodeRecord("key-esk", 1, []byte("key")), strong, keystore.Enrolment,
			nil, fs.ErrExist},
		"a record of a later format": {store.EncodeRecord("key-esk", 2, nil), strong, keystore.Enrolment, nil, fs.ErrExist},
		"unknown role":               {whole, strong, "admin", fs.ErrInvalid, fs.ErrInvalid},
	} {
		t.Run(what, func(t *testing.T) {
			var records store.Mem
			require.NoError(t, records.Put(ctx, "key-esk", c.record))
			s := open(t, &records, options(software.P256, c.secret))
			signer, err := s.Signer(ctx, c.role)
			assert.Nil(t, signer)
			require.Error(t, err)
			if c.want != nil {
				assert.ErrorIs(t, err, c.want)
			}
			for _, other := range []error{fs.ErrNotExist, software.ErrSecret, store.ErrDamaged} {
				if other != c.want {
					assert.NotErrorIs(t, err, other)
				}
			}
			assert.NotContains(t, err.Error(), strong, "the error tells the secret")
			_, err = s.Generate(ctx, c.role)
			assert.ErrorIs(t, err, c.generate)
			now, _ := records.Get(ctx, "key-esk")
			assert.Equal(t, string(c.record), string(now), "the record was changed")
		})
	}
	signer, err := open(t, &records, options(software.P256, strong)).Signer(ctx, keystore.Enrolment)
	require.NoError(t, err, "the whole record")
	assert.Equal(t, id, fingerprint(t, signer), "the whole record")
}

// The algorithm is for keys to be made; a stored one stays.
func TestAlgorithmOfAStoredKey(t *testing.T) {
	var records store.Mem
	id := fingerprint(t, generate(t, open(t, &records, options(software.P256, strong)), keystore.Enrolment))
	require.NoError(t, records.Delete(t.Context(), "key-dsk"))
	s := open(t, &records, options(software.RSA3072, strong))
	signer, err := s.Signer(t.Context(), keystore.Enrolment)
	require.NoError(t, err, "the stored key")
	assert.Equal(t, id, fingerprint(t, signer), "the stored key")
	made, ok := generate(t, s, keystore.Device).Public().(*rsa.PublicKey)
	require.True(t, ok, "the new key is no RSA-3072")
	assert.Equal(t, 3072, made.N.BitLen(), "the new key is no RSA-3072")
}

// Opening takes the secret once, however many ask.
func TestOpenedOnce(t *testing.T) {
	var records store.Mem
	generate(t, open(t, &records, options(software.P256, strong)), keystore.Enrolment)
	calls := 0
	opts := options(software.P256, strong)
	opts.Secret = func(context.Context) ([]byte, error) {
		calls++ // never twice at once: the race detector watches
		return []byte(strong), nil
	}
	s := open(t, &records, opts)
	var wg sync.WaitGroup
	for range 16 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			_, err := s.Signer(t.Context(), keystore.Enrolment)
			assert.NoError(t, err)
		}()
	}
	wg.Wait()
	assert.Equal(t, 1, calls)
}

// Waiting for another caller's turn obeys the context.
func TestWaitObeysContext(t *testing.T) {
	asked, answer := make(chan struct{}), make(chan struct{})
	opts := options(software.P256, strong)
	opts.Secret = func(context.Context) ([]byte, error) {
		close(asked)
		<-answer
		return []byte(strong), nil
	}
	s := open(t, new(store.Mem), opts)
	done := make(chan error)
	go func() {
		_, err := s.Generate(t.Context(), keystore.Device)
		done <- err
	}()
	<-asked
	ctx, cancel := context.WithCancel(t.Context())
	waited := make(chan error)
	go func() {
		_, err := s.Signer(ctx, keystore.Enrolment)
		waited <- err
	}()
	cancel()
	assert.ErrorIs(t, <-waited, context.Canceled)
	close(answer)
	assert.NoError(t, <-done)
}

// What Signer returns can sign and name its public key, and no more.
func TestSignerShowsNothing(t *testing.T) {
	for _, algorithm := range []software.Algorithm{software.P256, software.RSA3072} {
		var records store.Mem
		signer, s := stored(t, &records, algorithm)
		var methods []string
		for i := range reflect.TypeOf(signer).NumMethod() {
			methods = append(methods, reflect.TypeOf(signer).Method(i).Name)
		}
		assert.Equal(t, "Format Public Sign", strings.Join(methods, " "), algorithm)
		const hidden = "software.Signer(private key not shown)"
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
			assert.Equal(t, hidden, fmt.Sprintf(verb, signer), algorithm)
		}
		var logged bytes.Buffer
		slog.New(slog.NewTextHandler(&logged, nil)).Info("", "signer", signer, "store", s)
		slog.New(slog.NewJSONHandler(&logged, nil)).Info("", "signer", signer)
		fmt.Fprintf(&logged, "%v %+v %#v %#v", s, s, *s, struct{ Key crypto.Signer }{signer})
		encoded, _ := json.Marshal(signer)
		logged.Write(encoded)
		for _, secret := range privateNumbers(t, &records, keystore.Enrolment) {
			assert.NotContains(t, logged.String(), secret, algorithm)
		}
	}
}

func TestSignRefuses(t *testing.T) {
	digest := make([]byte, 32)
	for _, algorithm := range []software.Algorithm{software.P256, software.RSA3072} {
		signer, _ := stored(t, new(store.Mem), algorithm)
		for what, opts := range map[string]crypto.SignerOpts{
			"no options": nil,
			"no hash":    crypto.Hash(0),
			"SHA-1":      crypto.SHA1,
			"MD5":        crypto.MD5,
			"SHA-384":    crypto.SHA384, // of which this is no digest
		} {
			signature, err := signer.Sign(nil, digest, opts)
			require.Error(t, err, "%v, %v", algorithm, what)
			assert.Nil(t, signature, "%v, %v", algorithm, what)
		}
		if _, err := signer.Sign(nil, digest, crypto.SHA256); err != nil {
			t.Errorf("%v: without a random source: %v", algorithm, err)
		}
		_, err := signer.Sign(nil, digest, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256})
		assert.Equal(t, err == nil, algorithm == software.RSA3072)
	}
}

// cutting is a store whose power fails at its nth write, before or after it.
type cutting struct {
	store.Mem
	writes int // until the cut
	after  bool
}

var errCut = errors.New("power cut")

func (c *cutting) write(do func() error) error {
	if c.writes--; c.writes > 0 {
		return do()
	}
	if c.writes == 0 && c.after {
		if err := do(); err != nil {
			return err
		}
	}
	return errCut
}

func (c *cutting) Put(ctx context.Context, name string, data []byte) error {
	return c.write(func() error { return c.Mem.Put(ctx, name, data) })
}

func (c *cutting) Create(ctx context.Context, name string, data []byte) error {
	return c.write(func() error { return c.Mem.Create(ctx, name, data) })
}

func (c *cutting) Delete(ctx context.Context, name string) error {
	return c.write(func() error { return c.Mem.Delete(ctx, name) })
}
