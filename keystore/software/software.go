// Package software keeps a device's keys in a [store.Store], encrypted at rest.
//
// It serves devices without a secure element, and tests. Keys are P-256 or
// RSA-3072, one record per [keystore.Role], named key-esk and key-dsk, and
// key-dsk-next for a device key that is to follow (see [Store.Stage]): a
// PKCS #8 EncryptedPrivateKeyInfo in PEM (RFC 5958, RFC 7468 section 11),
// encrypted with PBES2 (RFC 8018): PBKDF2 with HMAC-SHA-256, then AES-256-CBC.
// In a [store.Dir] such a record is a file that openssl opens:
//
//	openssl pkey -in DIR/key-esk -passin file:SECRET -pubout
//
// A key that was made elsewhere is imported by creating its record:
// store.EncodeRecord("key-esk", 1, pem), where pem comes from
//
//	openssl pkcs8 -topk8 -v2 aes-256-cbc -v2prf hmacWithSHA256 -in KEY
//
// What protects the keys is the secret. Keep it where the records are not: in a
// fuse, a sealed blob, a secret manager.
//
// A device that cannot make keys on a chip of its own makes both at its
// initialisation (application note 4.1.4), and so does [Store.Generate].
package software

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"io/fs"

	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/store"
)

// ErrSecret is the error for a stored key that the secret does not open. The
// key is whole (its checksum is right): the secret is another than the one it
// was stored with.
var ErrSecret = errors.New("wrong secret for the stored key")

// Algorithm is a kind of key to generate.
type Algorithm uint8

const (
	P256    Algorithm = iota // ECDSA on P-256: small, quick, the default
	RSA3072                  // RSA with 3072 bits; generating one takes seconds
)

// String returns the algorithm's name, as in "P-256".
func (a Algorithm) String() string {
	switch a {
	case P256:
		return "P-256"
	case RSA3072:
		return "RSA-3072"
	}
	return fmt.Sprintf("Algorithm(%d)", uint8(a))
}

// Options are what [New] needs besides a store.
type Options struct {
	// Secret returns the secret that encrypts the keys; required. It is called
	// whenever a key is read from the store or made, never twice at once. What
	// it returns is neither kept nor changed. An empty secret is an error.
	//
	// Keys are made only for a secret of 16 bytes or more, which is 128 bits if
	// it is random and enough for a passphrase (NIST SP 800-63B-4 asks for 15
	// characters), and not for one that is all 0x00 or all 0xFF, as a fuse is
	// that nobody has burnt. A key that was made with such a secret still opens.
	Secret func(ctx context.Context) ([]byte, error)
	// Algorithm is that of keys to be made. A stored key is used whatever its
	// algorithm: changing it would change the device's identity.
	Algorithm Algorithm
	// Iterations is the PBKDF2 iteration count for keys to be made; 0 means
	// [DefaultIterations], the most is [MaxIterations]. A secret of 32 random
	// bytes or more cannot be guessed and may use few (1 is enough); with a
	// shorter one fewer than 100,000 are refused.
	Iterations int
}

const (
	// DefaultIterations is the PBKDF2 iteration count when Options says none:
	// OWASP's recommendation of 2023 for HMAC-SHA-256.
	DefaultIterations = 600_000
	// MaxIterations is the largest PBKDF2 iteration count, also of a stored
	// key: it bounds the time that a hostile record can take.
	MaxIterations = 10_000_000

	minSecret       = 16      // bytes that a secret must have for keys to be made
	longSecret      = 32      // bytes from which a secret needs no stretching
	shortIterations = 100_000 // the least for a shorter one
)

// Store is a [keystore.Rotator] whose keys are records of a [store.Creator].
// It is safe for concurrent use, also by several processes on one store: keys
// are created exclusively, so that processes which start at once end with one
// identity.
//
// Opening a key is slow, as PBKDF2 is meant to be. Therefore an opened key stays
// in memory, decrypted, as long as the Store, whatever becomes of its record
// behind its back. Only a device key for which another process has committed
// another gives way to that at the next call of Signer.
type Store struct {
	records store.Creator
	opts    Options

	turn    chan struct{} // holds one token; who takes it owns what follows
	signers map[keystore.Role]opened
	busy    chan struct{} // closed when the work ends that a cancelled call left behind; nil if none did
	spare   crypto.Signer // made but not stored yet, for the next call; not to be looked at while busy
}

// New returns a key store on st. It neither reads nor writes anything yet.
// Options without a Secret, with an unknown Algorithm or with Iterations out of
// range are fs.ErrInvalid.
func New(st store.Creator, opts Options) (*Store, error) {
	switch {
	case st == nil:
		return nil, fmt.Errorf("software: New needs a store: %w", fs.ErrInvalid)
	case opts.Secret == nil:
		return nil, fmt.Errorf("software: Options.Secret is required, keys are never stored in clear: %w", fs.ErrInvalid)
	case opts.Algorithm > RSA3072:
		return nil, fmt.Errorf("software: unknown %v: %w", opts.Algorithm, fs.ErrInvalid)
	case opts.Iterations < 0 || opts.Iterations > MaxIterations:
		return nil, fmt.Errorf("software: %d iterations, need 0 to %d: %w", opts.Iterations, MaxIterations, fs.ErrInvalid)
	}
	if opts.Iterations == 0 {
		opts.Iterations = DefaultIterations
	}
	return &Store{
		records: st,
		opts:    opts,
		turn:    make(chan struct{}, 1),
		signers: make(map[keystore.Role]opened),
	}, nil
}

// Signer returns the key of that role. The error is fs.ErrNotExist if there is
// none, [ErrSecret] if the secret is not the one it was stored with,
// [store.ErrDamaged] if the record is damaged, fs.ErrInvalid for an unknown role.
//
// The signer signs digests of SHA-256, SHA-384 and SHA-512: ECDSA in ASN.1, RSA
// with PKCS #1 v1.5 or, given *rsa.PSSOptions, PSS. It is safe for concurrent use
// and shows nothing of the private key, also when printed.
func (s *Store) Signer(ctx context.Context, role keystore.Role) (crypto.Signer, error) {
	done, err := s.takeFor(ctx, role)
	if err != nil {
		return nil, fmt.Errorf("software: open %s: %w", role, err)
	}
	defer done()
	signer, err := s.open(ctx, role)
	if err != nil {
		return nil, fmt.Errorf("software: open %s: %w", role, err)
	}
	return signer, nil
}

// Generate makes the key of that role and returns it once it is stored. An
// existing key is fs.ErrExist and stays as it is, also one that is damaged or
// that the secret does not open. If the context ends the key is not stored; the
// work on it goes on in the background for a while, and the next call waits for
// that, within its context, and uses what came of it.
//
// Before the enrolment key Generate makes the device key, unless there is one. So
// a device that has an identity has had both keys, wherever power was cut, and
// Generate of [keystore.Device] is for a device key that was lost, or never made
// by an older version.
func (s *Store) Generate(ctx context.Context, role keystore.Role) (crypto.Signer, error) {
	done, err := s.takeFor(ctx, role)
	if err != nil {
		return nil, fmt.Errorf("software: generate %s: %w", role, err)
	}
	defer done()
	signer, err := s.generate(ctx, role)
	if err != nil {
		return nil, fmt.Errorf("software: generate %s: %w", role, err)
	}
	return signer, nil
}

// takeFor is take for a role that has to be one.
func (s *Store) takeFor(ctx context.Context, role keystore.Role) (done func(), err error) {
	if err := checkRole(role); err != nil {
		return nil, err
	}
	return s.take(ctx)
}

// take waits for the caller's turn, or until the context ends.
func (s *Store) take(ctx context.Context) (done func(), err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	select {
	case s.turn <- struct{}{}:
		return func() { <-s.turn }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s *Store) open(ctx context.Context, role keystore.Role) (*signer, error) {
	if known, ok := s.signers[role]; ok && !s.replaced(ctx, role, known.record) {
		return known.signer, nil
	}
	name := recordName(role)
	record, err := s.records.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	sealed, err := parseRecord(name, record)
	if err != nil {
		return nil, err
	}
	if err := s.idle(ctx); err != nil {
		return nil, err
	}
	secret, err := s.secret(ctx)
	if err != nil {
		return nil, err
	}
	key, err := await(ctx, s, func() (crypto.Signer, error) {
		defer clear(secret)
		return unseal(sealed, secret)
	})
	if err != nil {
		return nil, fmt.Errorf("record %q: %w", name, err)
	}
	return s.keep(role, key, record), nil
}

// replaced reports whether a role has another key by now. The identity never
// has, and a record that is gone or damaged is no other key.
func (s *Store) replaced(ctx context.Context, role keystore.Role, opened []byte) bool {
	if role == keystore.Enrolment {
		return false
	}
	record, err := s.records.Get(ctx, recordName(role))
	if err != nil || bytes.Equal(record, opened) {
		return false
	}
	_, err = parseRecord(recordName(role), record)
	return err == nil
}

func (s *Store) generate(ctx context.Context, role keystore.Role) (*signer, error) {
	if err := s.checkAbsent(ctx, role); err != nil {
		return nil, err
	}
	if role == keystore.Enrolment {
		if err := s.generateDevice(ctx); err != nil {
			return nil, fmt.Errorf("the device key comes first: %w", err)
		}
	}
	return s.create(ctx, role)
}

// generateDevice makes the device key unless there is one, in whatever state:
// what is there is not an identity's and can be replaced later.
func (s *Store) generateDevice(ctx context.Context) error {
	err := s.checkAbsent(ctx, keystore.Device)
	if err == nil {
		_, err = s.create(ctx, keystore.Device)
	}
	if errors.Is(err, fs.ErrExist) || errors.Is(err, store.ErrDamaged) {
		return nil
	}
	return err
}

// checkAbsent returns fs.ErrExist if there is a key. Create decides; asking first
// spares the work.
func (s *Store) checkAbsent(ctx context.Context, role keystore.Role) error {
	name := recordName(role)
	_, err := s.records.Get(ctx, name)
	if err == nil {
		return fmt.Errorf("record %q: %w", name, fs.ErrExist)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// create makes a key and stores it.
func (s *Store) create(ctx context.Context, role keystore.Role) (*signer, error) {
	name := recordName(role)
	if err := s.idle(ctx); err != nil {
		return nil, err
	}
	secret, err := s.secret(ctx)
	if err == nil {
		err = checkSecret(secret, s.opts.Iterations)
	}
	var key crypto.Signer
	if err == nil {
		key, err = s.newKey(ctx)
	}
	if err != nil {
		clear(secret)
		return nil, err
	}
	record, err := await(ctx, s, func() ([]byte, error) {
		defer clear(secret)
		return makeRecord(name, key, secret, s.opts.Iterations)
	})
	if err != nil {
		return nil, err
	}
	s.spare = nil // before it is stored, lest two roles get one key
	if err := s.records.Create(ctx, name, record); err != nil {
		return nil, err
	}
	return s.keep(role, key, record), nil
}

// newKey makes a key, or takes one that was made for an earlier call.
func (s *Store) newKey(ctx context.Context) (crypto.Signer, error) {
	if s.spare != nil {
		return s.spare, nil
	}
	return await(ctx, s, func() (crypto.Signer, error) {
		key, err := generateKey(s.opts.Algorithm)
		if err == nil {
			s.spare = key
		}
		return key, err
	})
}

// opened is a key and the record that it came from.
type opened struct {
	signer *signer
	record []byte
}

func (s *Store) keep(role keystore.Role, key crypto.Signer, record []byte) *signer {
	s.signers[role] = opened{&signer{key}, record}
	return s.signers[role].signer
}

// secret returns a copy of the secret, for the caller to wipe.
func (s *Store) secret(ctx context.Context) ([]byte, error) {
	secret, err := s.opts.Secret(ctx)
	if err != nil {
		return nil, fmt.Errorf("get the secret: %w", err)
	}
	if len(secret) == 0 {
		return nil, errors.New("get the secret: it is empty; keys are never stored in clear")
	}
	return bytes.Clone(secret), nil
}

// checkSecret refuses a secret that would not protect a key.
func checkSecret(secret []byte, iterations int) error {
	switch n := len(secret); {
	case n < minSecret:
		return fmt.Errorf("the secret has %d bytes, need %d or more: use %d random ones", n, minSecret, longSecret)
	case isAll(secret, 0x00), isAll(secret, 0xff):
		return fmt.Errorf("the secret is all %#02x: has the fuse been burnt that it comes from?", secret[0])
	case n < longSecret && iterations < shortIterations:
		return fmt.Errorf("%d iterations are too few for a secret of %d bytes: use %d, or a random secret of %d bytes",
			iterations, n, DefaultIterations, longSecret)
	}
	return nil
}

func isAll(data []byte, value byte) bool {
	return bytes.Count(data, []byte{value}) == len(data)
}

func checkRole(role keystore.Role) error {
	if role != keystore.Enrolment && role != keystore.Device {
		return fmt.Errorf("unknown role %q: %w", role, fs.ErrInvalid)
	}
	return nil
}

func recordName(role keystore.Role) string { return "key-" + string(role) }

func generateKey(a Algorithm) (crypto.Signer, error) {
	if a == RSA3072 {
		return rsa.GenerateKey(rand.Reader, 3072)
	}
	return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
}

// idle waits for the work that a cancelled call left behind, so that there is
// never more than one such. Only then may await be called.
func (s *Store) idle(ctx context.Context) error {
	if s.busy == nil {
		return nil
	}
	select {
	case <-s.busy:
		s.busy = nil
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// await runs f, which does not know of contexts, and returns early if the
// context ends; f then runs to its end unheard, and the store is busy until it
// has.
func await[T any](ctx context.Context, s *Store, f func() (T, error)) (T, error) {
	var value T
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		value, err = f()
	}()
	select {
	case <-done:
		return value, err
	case <-ctx.Done():
		s.busy = done
		var zero T
		return zero, ctx.Err()
	}
}
