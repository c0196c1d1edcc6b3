package esp32ds_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/quarklink-go/quarklink/internal/counterpart"
	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/keystore/esp32ds"
	"github.com/quarklink-go/quarklink/keystore/esp32ds/dstest"
	"github.com/quarklink-go/quarklink/keystore/keystoretest"
	"github.com/quarklink-go/quarklink/store"
)

var hashes = []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512}

func digestOf(hash crypto.Hash, message string) []byte {
	h := hash.New()
	io.WriteString(h, message)
	return h.Sum(nil)
}

// TestSignatures makes every kind of signature with every length of key, and has
// crypto/rsa and openssl verify them.
func TestSignatures(t *testing.T) {
	program := counterpart.Program(t, "openssl")
	const message = "message"
	for _, name := range []string{"rsa2048-esk", "rsa3072-esk", "rsa4096-esk"} {
		key := loadKey(t, name)
		signer := hold(t, esp32ds.ESP32S3, dstest.New(esp32ds.ESP32S3), key)
		pub := signer.Public().(*rsa.PublicKey)
		if !pub.Equal(&key.PublicKey) {
			t.Fatalf("%s: another public key", name)
		}
		dir := t.TempDir()
		der, err := x509.MarshalPKIXPublicKey(pub)
		must(t, err)
		must(t, os.WriteFile(filepath.Join(dir, "pub.pem"), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600))
		must(t, os.WriteFile(filepath.Join(dir, "message"), []byte(message), 0o600))
		byOpenSSL := func(what string, hash crypto.Hash, signature []byte, options ...string) {
			t.Helper()
			must(t, os.WriteFile(filepath.Join(dir, "signature"), signature, 0o600))
			args := slices.Concat([]string{"dgst", "-" + strings.ReplaceAll(hash.String(), "-", ""), "-verify", "pub.pem", "-signature", "signature"}, options, []string{"message"})
			cmd := exec.CommandContext(t.Context(), program, args...)
			cmd.Dir = dir
			if out, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("Verified OK")) {
				t.Errorf("%s, %s: openssl says %v, %s", name, what, err, out)
			}
		}
		hashes := hashes
		if name == "rsa4096-esk" { // slow, and encoded like the others
			hashes = hashes[:1]
		}
		for _, hash := range hashes {
			digest := digestOf(hash, message)
			signature, err := signer.Sign(nil, digest, hash)
			must(t, err)
			what := "PKCS #1 v1.5 with " + hash.String()
			if want, err := rsa.SignPKCS1v15(nil, key, hash, digest); err != nil || !bytes.Equal(signature, want) {
				t.Errorf("%s, %s: another signature than crypto/rsa's, %v", name, what, err)
			}
			byOpenSSL(what, hash, signature)

			longest := pub.Size() - 2 - hash.Size()
			for asked, length := range map[int]int{rsa.PSSSaltLengthEqualsHash: hash.Size(), rsa.PSSSaltLengthAuto: longest, 20: 20, longest: longest} {
				signature, err := signer.Sign(rand.Reader, digest, &rsa.PSSOptions{SaltLength: asked, Hash: hash})
				must(t, err)
				what := fmt.Sprintf("PSS with %v and a salt of %d", hash, length)
				if err := rsa.VerifyPSS(pub, hash, digest, signature, &rsa.PSSOptions{SaltLength: length}); err != nil {
					t.Errorf("%s, %s: crypto/rsa says %v", name, what, err)
				}
				byOpenSSL(what, hash, signature, "-sigopt", "rsa_padding_mode:pss", "-sigopt", fmt.Sprintf("rsa_pss_saltlen:%d", length))
			}
		}
	}
}

// TestSignatureSchemes: PSS first, for TLS 1.3 takes nothing else, and a list of
// the caller's own.
func TestSignatureSchemes(t *testing.T) {
	signer := hold(t, esp32ds.ESP32C3, dstest.New(esp32ds.ESP32C3), loadKey(t, "rsa2048-esk"))
	for range 2 {
		schemes := signer.SignatureSchemes()
		if want := []uint16{0x0804, 0x0805, 0x0806, 0x0401, 0x0501, 0x0601}; !slices.Equal(schemes, want) {
			t.Errorf("%#x", schemes)
		}
		clear(schemes)
	}
}

func TestSignRefuses(t *testing.T) {
	chip := dstest.New(esp32ds.ESP32C3)
	signer := hold(t, esp32ds.ESP32C3, chip, loadKey(t, "rsa2048-esk"))
	digest := sha256.Sum256(nil)
	for name, c := range map[string]struct {
		digest []byte
		opts   crypto.SignerOpts
	}{
		"no options":         {digest[:], nil},
		"no hash":            {digest[:], crypto.Hash(0)},
		"SHA-1":              {digest[:20], crypto.SHA1},
		"MD5SHA1":            {make([]byte, 36), crypto.MD5SHA1},
		"SHA-224":            {digest[:28], crypto.SHA224},
		"no digest":          {nil, crypto.SHA256},
		"short digest":       {digest[:31], crypto.SHA256},
		"other digest":       {digest[:], crypto.SHA512},
		"PSS without a hash": {digest[:], &rsa.PSSOptions{}},
		"PSS, other digest":  {digest[:], &rsa.PSSOptions{Hash: crypto.SHA384}},
		"PSS, salt too long": {digest[:], &rsa.PSSOptions{Hash: crypto.SHA256, SaltLength: 256 - 32 - 1}},
		"PSS, negative salt": {digest[:], &rsa.PSSOptions{Hash: crypto.SHA256, SaltLength: -2}},
		"PSS, salt of 1 GiB": {digest[:], &rsa.PSSOptions{Hash: crypto.SHA256, SaltLength: 1 << 30}},
	} {
		if signature, err := signer.Sign(rand.Reader, c.digest, c.opts); err == nil || signature != nil {
			t.Errorf("%s: signed", name)
		}
	}
	broken := errors.New("broken")
	pss := &rsa.PSSOptions{Hash: crypto.SHA256, SaltLength: rsa.PSSSaltLengthEqualsHash}
	if _, err := signer.Sign(iotest.ErrReader(broken), digest[:], pss); !errors.Is(err, broken) {
		t.Errorf("broken random source: %v", err)
	}
	if _, err := signer.Sign(bytes.NewReader(make([]byte, 31)), digest[:], pss); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("random source that ends: %v", err)
	}
	if chip.Signatures() != 0 {
		t.Error("the chip was asked")
	}
}

// TestPSSSalt makes sure where the salt comes from.
func TestPSSSalt(t *testing.T) {
	salts := bytes.NewReader(bytes.Repeat([]byte{7}, 3*32))
	signer := hold(t, esp32ds.ESP32C3, dstest.New(esp32ds.ESP32C3), loadKey(t, "rsa2048-esk"), func(cfg *esp32ds.Config) { cfg.Random = salts })
	digest := sha256.Sum256(nil)
	pss := &rsa.PSSOptions{Hash: crypto.SHA256, SaltLength: rsa.PSSSaltLengthEqualsHash}
	one, err := signer.Sign(nil, digest[:], pss)
	must(t, err)
	two, err := signer.Sign(bytes.NewReader(bytes.Repeat([]byte{7}, 32)), digest[:], pss)
	must(t, err)
	if !bytes.Equal(one, two) || salts.Len() != 2*32 {
		t.Errorf("same salt, same signature: %v; %d bytes left of Config.Random", bytes.Equal(one, two), salts.Len())
	}
	if _, err := signer.Sign(nil, digest[:], crypto.SHA256); err != nil || salts.Len() != 2*32 {
		t.Errorf("PKCS #1 v1.5 uses random bytes: %v", err)
	}
}

// corruptions are the ways in which an exponentiation goes wrong. They work on
// the result as a number, except where the very bytes are wrong.
func corruptions(key *rsa.PrivateKey) []func(r *mathrand.Rand, result []byte) []byte {
	number := func(change func(r *mathrand.Rand, z *big.Int)) func(*mathrand.Rand, []byte) []byte {
		return func(r *mathrand.Rand, result []byte) []byte {
			z := bigEndian(result)
			change(r, z)
			out := make([]byte, max(len(result), (z.BitLen()+7)/8))
			z.FillBytes(out)
			slices.Reverse(out)
			return out
		}
	}
	multiple := func(r *mathrand.Rand, p *big.Int) *big.Int { return new(big.Int).Mul(p, big.NewInt(1+r.Int64N(1<<40))) }
	return []func(*mathrand.Rand, []byte) []byte{
		func(r *mathrand.Rand, z []byte) []byte { z[r.IntN(len(z))] ^= 1 << r.IntN(8); return z },
		func(r *mathrand.Rand, z []byte) []byte { clear(z[r.IntN(len(z)/4*4)/4*4:]); return z },
		func(r *mathrand.Rand, z []byte) []byte { i := r.IntN(len(z) - 8); rand.Read(z[i : i+8]); return z },
		func(r *mathrand.Rand, z []byte) []byte { rand.Read(z); return z },
		func(r *mathrand.Rand, z []byte) []byte { return z[:r.IntN(len(z))] },
		func(r *mathrand.Rand, z []byte) []byte { return append(z, make([]byte, 1+r.IntN(8))...) },
		func(r *mathrand.Rand, z []byte) []byte { return append([]byte{0}, z...) },
		func(r *mathrand.Rand, z []byte) []byte { slices.Reverse(z); return z },
		func(r *mathrand.Rand, z []byte) []byte { clear(z); return z },
		func(r *mathrand.Rand, z []byte) []byte { return []byte{} },
		// Right modulo one factor, wrong modulo the other: from one such
		// signature anybody computes the private key (Boneh, DeMillo, Lipton).
		number(func(r *mathrand.Rand, z *big.Int) { z.Add(z, multiple(r, key.Primes[0])).Mod(z, key.N) }),
		number(func(r *mathrand.Rand, z *big.Int) { z.Add(z, multiple(r, key.Primes[1])).Mod(z, key.N) }),
		number(func(r *mathrand.Rand, z *big.Int) { z.Sub(key.N, z) }),
		number(func(r *mathrand.Rand, z *big.Int) { z.Add(z, key.N) }), // the same, modulo N
		number(func(r *mathrand.Rand, z *big.Int) { z.Mul(z, z).Mod(z, key.N) }),
		number(func(r *mathrand.Rand, z *big.Int) { z.Exp(z, big.NewInt(int64(key.E)), key.N) }), // not signed at all
		number(func(r *mathrand.Rand, z *big.Int) { z.SetInt64(1) }),
		number(func(r *mathrand.Rand, z *big.Int) { z.Set(key.N) }),
	}
}

// TestFaults has the exponentiation go wrong a thousand times. Nothing but a
// right signature ever comes out.
func TestFaults(t *testing.T) {
	const faults = 1000
	key := loadKey(t, "rsa2048-esk")
	random := mathrand.New(mathrand.NewPCG(1, 2))
	corrupt := corruptions(key)
	chip := dstest.New(esp32ds.ESP32C3)
	faulty := &faulty{Chip: chip, right: make(map[string][]byte)}
	signer := hold(t, esp32ds.ESP32C3, chip, key, func(cfg *esp32ds.Config) { cfg.Peripheral = faulty })
	for i := range faults {
		digest := sha256.Sum256(fmt.Append(nil, i%20))
		var opts crypto.SignerOpts = crypto.SHA256
		if i%2 == 0 {
			opts = &rsa.PSSOptions{Hash: crypto.SHA256, SaltLength: rsa.PSSSaltLengthEqualsHash}
		}
		kind := i % len(corrupt)
		faulty.corrupt = func(z []byte) []byte { return corrupt[kind](random, z) }
		signature, err := signer.Sign(bytes.NewReader(digest[:]), digest[:], opts)
		if signature != nil || !errors.Is(err, esp32ds.ErrWrongSignature) {
			t.Fatalf("fault %d, of kind %d: %d bytes, %v", i, kind, len(signature), err)
		}
		if text := "esp32ds: sign: " + esp32ds.ErrWrongSignature.Error(); err.Error() != text {
			t.Fatalf("fault %d, of kind %d: the error says more than %q: %q", i, kind, text, err)
		}
	}
	faulty.corrupt = bytes.Clone
	digest := sha256.Sum256(nil)
	signature, err := signer.Sign(nil, digest[:], crypto.SHA256)
	must(t, err)
	must(t, rsa.VerifyPKCS1v15(&key.PublicKey, crypto.SHA256, digest[:], signature))
}

// TestSecondForm: a signature plus the modulus is the same number to RSA, and
// may be as long as one. It is none (RFC 8017 section 5.2.2).
func TestSecondForm(t *testing.T) {
	key := loadKey(t, "rsa2048-dsk")
	chip := dstest.New(esp32ds.ESP32C3)
	signer := hold(t, esp32ds.ESP32C3, chip, key)
	fits := false
	for i := 0; !fits; i++ {
		chip.Inject(dstest.Fault{Corrupt: func(result []byte) []byte {
			z := bigEndian(result)
			z.Add(z, key.N)
			if fits = z.BitLen() <= 2048; !fits {
				return nil
			}
			z.FillBytes(result)
			slices.Reverse(result)
			return result
		}})
		digest := sha256.Sum256(fmt.Append(nil, i))
		if _, err := signer.Sign(nil, digest[:], crypto.SHA256); !errors.Is(err, esp32ds.ErrWrongSignature) {
			t.Errorf("fits %v: %v", fits, err)
		}
	}
}

// faulty corrupts every result. It remembers the right ones, to be quick.
type faulty struct {
	*dstest.Chip
	right   map[string][]byte
	corrupt func([]byte) []byte
}

func (f *faulty) Sign(ctx context.Context, block int, params, message []byte) ([]byte, error) {
	result, ok := f.right[string(message)]
	if !ok {
		var err error
		if result, err = f.Chip.Sign(ctx, block, params, message); err != nil {
			return nil, err
		}
		f.right[string(message)] = result
	}
	return f.corrupt(bytes.Clone(result)), nil
}

func TestChipErrors(t *testing.T) {
	chip := dstest.New(esp32ds.ESP32C3)
	signer := hold(t, esp32ds.ESP32C3, chip, loadKey(t, "rsa2048-esk"))
	digest := sha256.Sum256(nil)
	for _, code := range []esp32ds.Error{
		esp32ds.ErrFail, esp32ds.ErrNoMem, esp32ds.ErrInvalidArg, esp32ds.ErrInvalidState, esp32ds.ErrTimeout,
		esp32ds.ErrHMACFail, esp32ds.ErrInvalidKey, esp32ds.ErrInvalidDigest, esp32ds.ErrInvalidPadding, 0x999,
	} {
		chip.Inject(dstest.Fault{Err: fmt.Errorf("driver: %w", code)})
		signature, err := signer.Sign(nil, digest[:], crypto.SHA256)
		if signature != nil || !errors.Is(err, code) {
			t.Errorf("%v: %d bytes, %v", code, len(signature), err)
		}
	}
	if text := esp32ds.Error(0x999).Error(); text != "esp_err_t 0x999" {
		t.Error(text)
	}
}

// both returns a right result beside an error.
type both struct{ *dstest.Chip }

func (b both) Sign(ctx context.Context, block int, params, message []byte) ([]byte, error) {
	result, _ := b.Chip.Sign(ctx, block, params, message)
	return result, esp32ds.ErrInvalidPadding
}

// TestResultBesideError: with parameters made wrong ESP-IDF v5.3 returns an error
// and a result, which must not be used.
func TestResultBesideError(t *testing.T) {
	chip := dstest.New(esp32ds.ESP32C3)
	signer := hold(t, esp32ds.ESP32C3, chip, loadKey(t, "rsa2048-esk"), func(cfg *esp32ds.Config) { cfg.Peripheral = both{chip} })
	digest := sha256.Sum256(nil)
	if signature, err := signer.Sign(nil, digest[:], crypto.SHA256); signature != nil || !errors.Is(err, esp32ds.ErrInvalidPadding) {
		t.Errorf("%d bytes, %v", len(signature), err)
	}
}

// TestTimeout and TestBusy run in a bubble, where waiting takes no time.
func TestTimeout(t *testing.T) {
	key := loadKey(t, "rsa2048-esk")
	synctest.Test(t, func(t *testing.T) {
		chip := dstest.New(esp32ds.ESP32C3)
		signer := hold(t, esp32ds.ESP32C3, chip, key, func(cfg *esp32ds.Config) { cfg.Timeout = time.Second })
		digest := sha256.Sum256(nil)
		chip.Inject(dstest.Fault{Hang: true})
		start := time.Now()
		if _, err := signer.Sign(nil, digest[:], crypto.SHA256); !errors.Is(err, esp32ds.ErrTimeout) || !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Second {
			t.Errorf("a peripheral that hangs: %v after %v", err, time.Since(start))
		}

		// One waits for the peripheral, the other for the first.
		chip.Inject(dstest.Fault{Hang: true}, dstest.Fault{})
		first := make(chan error)
		go func() {
			_, err := signer.Sign(nil, digest[:], crypto.SHA256)
			first <- err
		}()
		synctest.Wait()
		time.Sleep(time.Second / 2)
		start = time.Now()
		if _, err := signer.Sign(nil, digest[:], crypto.SHA256); err != nil || time.Since(start) != time.Second/2 {
			t.Errorf("the one after: %v after %v", err, time.Since(start))
		}
		if err := <-first; !errors.Is(err, esp32ds.ErrTimeout) {
			t.Errorf("the first: %v", err)
		}
	})
}

// stuck is a driver that ignores its context.
type stuck struct {
	*dstest.Chip
	wait time.Duration
}

func (s stuck) Sign(_ context.Context, block int, params, message []byte) ([]byte, error) {
	time.Sleep(s.wait)
	return s.Chip.Sign(context.Background(), block, params, message)
}

// TestStuck: only the signature that the driver is busy with waits for it.
func TestStuck(t *testing.T) {
	key := loadKey(t, "rsa2048-esk")
	synctest.Test(t, func(t *testing.T) {
		chip := dstest.New(esp32ds.ESP32C3)
		signer := hold(t, esp32ds.ESP32C3, chip, key, func(cfg *esp32ds.Config) {
			cfg.Peripheral = stuck{chip, time.Hour}
			cfg.Timeout = time.Second
		})
		digest := sha256.Sum256(nil)
		first := make(chan error)
		go func() {
			_, err := signer.Sign(nil, digest[:], crypto.SHA256)
			first <- err
		}()
		synctest.Wait()
		start := time.Now()
		if _, err := signer.Sign(nil, digest[:], crypto.SHA256); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Second {
			t.Errorf("the second: %v after %v", err, time.Since(start))
		}
		if err := <-first; err != nil || time.Since(start) != time.Hour {
			t.Errorf("the first: %v after %v", err, time.Since(start))
		}
	})
}

func TestBusy(t *testing.T) {
	const timeout = 1001 * time.Millisecond // ends between two tries
	key := loadKey(t, "rsa2048-esk")
	synctest.Test(t, func(t *testing.T) {
		chip := dstest.New(esp32ds.ESP32C3)
		signer := hold(t, esp32ds.ESP32C3, chip, key, func(cfg *esp32ds.Config) { cfg.Timeout = timeout })
		digest := sha256.Sum256(nil)
		for range 50 {
			chip.Inject(dstest.Fault{Err: esp32ds.ErrBusy})
		}
		if _, err := signer.Sign(nil, digest[:], crypto.SHA256); err != nil {
			t.Errorf("busy for a while: %v", err)
		}
		for range 10000 {
			chip.Inject(dstest.Fault{Err: esp32ds.ErrBusy})
		}
		start := time.Now()
		_, err := signer.Sign(nil, digest[:], crypto.SHA256)
		if !errors.Is(err, esp32ds.ErrBusy) || !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != timeout {
			t.Errorf("busy for ever: %v after %v", err, time.Since(start))
		}
	})
}

// TestConcurrentUse signs with both keys at once. The chip has one peripheral for
// them: the model answers ErrBusy to a second call.
func TestConcurrentUse(t *testing.T) {
	d := newDevice()
	must(t, d.boot(t).Initialise(t.Context(), small(t)))
	watched := &watched{Chip: d.chip}
	s := newStore(t, esp32ds.ESP32C3, d.chip, d.records, func(cfg *esp32ds.Config) { cfg.Peripheral = watched })
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			role := []keystore.Role{keystore.Enrolment, keystore.Device}[i%2]
			for j := range 2 {
				signer, err := s.Signer(t.Context(), role)
				if err != nil {
					t.Error(err)
					return
				}
				digest := sha512.Sum384(fmt.Append(nil, i, j))
				signature, err := signer.Sign(nil, digest[:], crypto.SHA384)
				if err == nil {
					err = rsa.VerifyPKCS1v15(signer.Public().(*rsa.PublicKey), crypto.SHA384, digest[:], signature)
				}
				if err != nil {
					t.Error(err)
				}
			}
		}()
	}
	wg.Wait()
	if watched.busy.Load() {
		t.Error("the peripheral was called twice at a time")
	}
}

type watched struct {
	*dstest.Chip
	busy atomic.Bool
}

func (w *watched) Sign(ctx context.Context, block int, params, message []byte) ([]byte, error) {
	before := [2][sha256.Size]byte{sha256.Sum256(params), sha256.Sum256(message)}
	result, err := w.Chip.Sign(ctx, block, params, message)
	if before != [2][sha256.Size]byte{sha256.Sum256(params), sha256.Sum256(message)} {
		return nil, errors.New("the model changed its arguments")
	}
	if errors.Is(err, esp32ds.ErrBusy) {
		w.busy.Store(true)
	}
	return result, err
}

func TestKeyStore(t *testing.T) {
	chip, records := dstest.New(esp32ds.ESP32C3), new(store.Mem)
	must(t, newStore(t, esp32ds.ESP32C3, chip, records).Initialise(t.Context(), small(t)))
	open := func(context.Context) (keystore.KeyStore, error) {
		return esp32ds.New(esp32ds.Config{Chip: esp32ds.ESP32C3, Peripheral: chip, EFuse: chip, Records: records, Random: rand.Reader})
	}
	must(t, keystoretest.Test(t.Context(), open))
}
