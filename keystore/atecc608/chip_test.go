package atecc608_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io/fs"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/keystore/atecc608"
	"github.com/quarklink-go/quarklink/keystore/atecc608/atecctest"
	"github.com/quarklink-go/quarklink/keystore/atecc608/goecdsa"
	"github.com/quarklink-go/quarklink/keystore/keystoretest"
)

// tWHI is the wake time of a real chip.
const tWHI = 1500 * time.Microsecond

// rig is a model chip and a driver with one virtual clock.
type rig struct {
	model *atecctest.Chip
	clock *atecctest.Clock
	chip  *atecc608.Chip
}

func newRig(t testing.TB, model atecctest.Options, opts atecc608.Options) *rig {
	t.Helper()
	r := &rig{clock: new(atecctest.Clock)}
	r.model = atecctest.New(model)
	r.model.SetClock(r.clock.Now)
	opts.Clock, opts.ECDSA = r.clock, goecdsa.P256{}
	var err error
	if r.chip, err = atecc608.Open(t.Context(), r.model, opts); err != nil {
		t.Fatal(err)
	}
	return r
}

// provisioned returns the configuration of a chip with both zones locked and
// slots 0 and 1 for signing keys.
func provisioned(change ...func(*[128]byte)) *[128]byte {
	signing, err := atecc608.Config(atecctest.BlankConfig()).WithSigningKeys(0, 1)
	if err != nil {
		panic(err)
	}
	config := [128]byte(signing)
	config[86], config[87] = 0, 0
	for _, f := range change {
		f(&config)
	}
	return &config
}

// withKeys returns the chip's configuration with slots for signing keys.
func withKeys(t testing.TB, chip *atecc608.Chip, slots ...int) atecc608.Config {
	t.Helper()
	config, err := configOfChip(t, chip).WithSigningKeys(slots...)
	if err != nil {
		t.Fatal(err)
	}
	return config
}

func configOfChip(t testing.TB, chip *atecc608.Chip) atecc608.Config {
	t.Helper()
	config, err := chip.Config(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return config
}

func generate(t testing.TB, k *atecc608.KeyStore, role keystore.Role) crypto.Signer {
	t.Helper()
	s, err := k.Generate(t.Context(), role)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A blank chip, through its whole life.
func TestLife(t *testing.T) {
	ctx := t.Context()
	r := newRig(t, atecctest.Options{Times: atecctest.MaxTimes}, atecc608.Options{})
	keys := r.chip.KeyStore(atecc608.Slots{})
	if _, err := keys.Signer(ctx, keystore.Enrolment); !errors.Is(err, atecc608.ErrConfigUnlocked) || errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("signer of a blank chip: %v", err)
	}
	if _, err := keys.Generate(ctx, keystore.Enrolment); !errors.Is(err, atecc608.ErrConfigUnlocked) {
		t.Fatalf("generate on a blank chip: %v", err)
	}
	if err := r.chip.Random(ctx, make([]byte, 8)); !errors.Is(err, atecc608.ErrConfigUnlocked) {
		t.Fatalf("random of a blank chip: %v", err)
	}

	plan, err := r.chip.Plan(ctx, withKeys(t, r.chip, 0))
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"0123514c6b2e9017ee", "0x60", "20 to  23", "FOR EVER", "cannot be undone"} {
		if !strings.Contains(plan.String(), part) {
			t.Errorf("the plan does not say %q:\n%s", part, plan)
		}
	}
	if err := r.chip.Provision(ctx, plan); err != nil {
		t.Fatal(err)
	}
	config := configOfChip(t, r.chip)
	if !config.Locked() || !config.DataLocked() {
		t.Fatal("not locked")
	}

	if _, err := keys.Signer(ctx, keystore.Enrolment); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("signer of an empty slot: %v", err)
	}
	made := generate(t, keys, keystore.Enrolment)
	if _, err := keys.Generate(ctx, keystore.Device); !errors.Is(err, fs.ErrExist) {
		t.Fatalf("a second key in the same slot: %v", err)
	}
	r.model.PowerCycle()
	again, err := r.chip.KeyStore(atecc608.Slots{}).Signer(ctx, keystore.Device)
	if err != nil {
		t.Fatal(err)
	}
	if !again.Public().(*ecdsa.PublicKey).Equal(made.Public()) {
		t.Fatal("another key after a power cycle")
	}
	digest := sha256.Sum256([]byte("message"))
	signature, err := again.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	public := made.Public().(*ecdsa.PublicKey)
	if !ecdsa.VerifyASN1(public, digest[:], signature) {
		t.Fatal("the signature does not verify")
	}
	if err := r.chip.Verify(ctx, public, digest[:], signature); err != nil {
		t.Fatal(err)
	}
	digest[0] ^= 1
	if err := r.chip.Verify(ctx, public, digest[:], signature); !errors.Is(err, atecc608.ErrSignature) || !errors.Is(err, atecc608.StatusMismatch) {
		t.Fatalf("verify with another digest: %v", err)
	}

	if plan, err = r.chip.Plan(ctx, configOfChip(t, r.chip)); err != nil || !plan.Done() {
		t.Fatalf("plan for a chip that is done: %v", err)
	}
	before := r.model.Stats()
	if err := r.chip.Provision(ctx, plan); err != nil {
		t.Fatal(err)
	}
	if r.model.Stats().Sub(before).BytesWritten > 100 {
		t.Error("provisioning a chip that is done writes to it")
	}
	if err := r.chip.LockSlot(ctx, 0); err != nil {
		t.Fatal(err)
	}
	if c := configOfChip(t, r.chip); !c.SlotLocked(0) || c.SlotLocked(1) {
		t.Fatal("slot 0 alone should be locked")
	}
}

func TestConformance(t *testing.T) {
	for _, slots := range []atecc608.Slots{{}, {Enrolment: 0, Device: 1}} {
		r := newRig(t, atecctest.Options{Config: provisioned()}, atecc608.Options{})
		open := func(context.Context) (keystore.KeyStore, error) { return r.chip.KeyStore(slots), nil }
		for range 2 { // empty at first
			if err := keystoretest.Test(t.Context(), open); err != nil {
				t.Error(err)
			}
		}
	}
}

// The functions that are not keys, against Go's own.
func TestCommands(t *testing.T) {
	ctx := t.Context()
	config := provisioned()
	config[20] |= 4         // slot 0: ECDH
	config[cfgSlot8] = 0x00 // slot 8: read and written in clear
	config[cfgSlot8+1] = 0x00
	r := newRig(t, atecctest.Options{Config: config, Times: atecctest.MaxTimes}, atecc608.Options{})
	keys := r.chip.KeyStore(atecc608.Slots{})

	if revision, err := r.chip.Revision(ctx); err != nil || revision != [4]byte{0, 0, 0x60, 3} {
		t.Errorf("revision % x, %v", revision, err)
	}
	for _, size := range []int{0, 1, 63, 64, 65, 1000, 4096} {
		message := bytes.Repeat([]byte{byte(size)}, size)
		if got, err := r.chip.SHA256(ctx, message); err != nil || got != sha256.Sum256(message) {
			t.Errorf("SHA-256 of %d bytes: %x, %v", size, got, err)
		}
	}
	a, b := make([]byte, 50), make([]byte, 50)
	if err := errors.Join(r.chip.Random(ctx, a), r.chip.Random(ctx, b)); err != nil || bytes.Equal(a, b) {
		t.Errorf("random: %x %x %v", a, b, err)
	}

	ours, err := generate(t, keys, keystore.Enrolment).Public().(*ecdsa.PublicKey).ECDH()
	if err != nil {
		t.Fatal(err)
	}
	peer, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	want, err := peer.ECDH(ours)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := r.chip.ECDH(ctx, 0, peer.PublicKey()); err != nil || !bytes.Equal(got, want) {
		t.Errorf("ECDH: %x, want %x, %v", got, want, err)
	}
	x25519, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.chip.ECDH(ctx, 0, x25519.PublicKey()); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("ECDH with another curve: %v", err)
	}
	if _, err := r.chip.ECDH(ctx, 9, peer.PublicKey()); !errors.Is(err, atecc608.ErrSlot) {
		t.Errorf("ECDH with a data slot: %v", err)
	}

	for i := uint32(1); i <= 40; i++ {
		if n, err := r.chip.Increment(ctx, 1); err != nil || n != i {
			t.Fatalf("increment %d: %d, %v", i, n, err)
		}
	}
	if n, err := r.chip.Counter(ctx, 1); err != nil || n != 40 {
		t.Errorf("counter 1: %d, %v", n, err)
	}
	if n, err := r.chip.Counter(ctx, 0); err != nil || n != 0 {
		t.Errorf("counter 0: %d, %v", n, err)
	}
	if _, err := r.chip.Counter(ctx, 2); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("counter 2: %v", err)
	}

	data := make([]byte, atecc608.SlotSize(8)-4)
	rand.Read(data)
	if err := r.chip.WriteSlot(ctx, 8, 4, data); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(data))
	if err := r.chip.ReadSlot(ctx, 8, 4, got); err != nil || !bytes.Equal(got, data) {
		t.Errorf("slot 8 reads back %v", err)
	}
	if err := r.chip.ReadSlot(ctx, 0, 0, got[:36]); !errors.Is(err, atecc608.ErrSlot) {
		t.Errorf("read a private key: %v", err)
	}
	if err := r.chip.ReadSlot(ctx, 8, 2, got[:4]); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("read at an odd offset: %v", err)
	}
	if err := r.chip.ReadSlot(ctx, 8, 400, got[:32]); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("read past the end: %v", err)
	}
	if err := r.chip.Sleep(ctx); err != nil {
		t.Error(err)
	}
}

const cfgSlot8 = 20 + 2*8

// A factory-locked part whose slot 0 holds a permanent key: GenKey is refused,
// and the key is used as it is.
func TestPermanentKey(t *testing.T) {
	ctx := t.Context()
	r := newRig(t, atecctest.Options{Config: provisioned()}, atecc608.Options{})
	made := generate(t, r.chip.KeyStore(atecc608.Slots{}), keystore.Enrolment)
	r.model.Configure(func(config *[128]byte) {
		copy(config[16:], []byte{0x6a})       // TNGTLS: address 0x35
		copy(config[20:], []byte{0x85, 0x00}) // SlotConfig[0]: no GenKey
		copy(config[96:], []byte{0x53, 0x00}) // KeyConfig[0]: ReqRandom
	})
	r.model.PowerCycle()
	chip, err := atecc608.Open(ctx, r.model, atecc608.Options{Address: 0x35, Clock: r.clock, ECDSA: goecdsa.P256{}})
	if err != nil {
		t.Fatal(err)
	}
	keys := chip.KeyStore(atecc608.Slots{})
	signer, err := keys.Signer(ctx, keystore.Enrolment)
	if err != nil {
		t.Fatal(err)
	}
	if !signer.Public().(*ecdsa.PublicKey).Equal(made.Public()) {
		t.Error("another key")
	}
	if _, err := keys.Generate(ctx, keystore.Enrolment); !errors.Is(err, fs.ErrExist) {
		t.Errorf("generate: %v", err)
	}
	digest := sha256.Sum256(nil)
	if _, err := signer.Sign(nil, digest[:], crypto.SHA256); err != nil {
		t.Error(err)
	}
}

func TestBadInput(t *testing.T) {
	ctx := t.Context()
	digest := sha256.Sum256(nil)
	r := newRig(t, atecctest.Options{Config: provisioned(func(c *[128]byte) {
		copy(c[22:], []byte{0x86, 0x20}) // slot 1: no external sign
		copy(c[98:], []byte{0x33, 0x00})
		copy(c[24:], []byte{0x87, 0x00}) // slot 2: no GenKey
		copy(c[100:], []byte{0x33, 0x00})
		copy(c[102:], []byte{0x31, 0x00}) // slot 3: no PubInfo
		copy(c[26:], []byte{0x87, 0x20})
		copy(c[118:], []byte{0x1c, 0x00}) // slot 11: not lockable
	})}, atecc608.Options{})
	signer := generate(t, r.chip.KeyStore(atecc608.Slots{}), keystore.Enrolment)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}

	one := func(_ any, err error) error { return err }
	for name, test := range map[string]struct {
		err  error
		want error
	}{
		"digest of 31 bytes":             {one(signer.Sign(nil, digest[:31], crypto.SHA256)), atecc608.ErrDigest},
		"SHA-384":                        {one(signer.Sign(nil, make([]byte, 48), crypto.SHA384)), atecc608.ErrDigest},
		"SHA-512/256":                    {one(signer.Sign(nil, digest[:], crypto.SHA512_256)), atecc608.ErrDigest},
		"no hash":                        {one(signer.Sign(nil, digest[:], crypto.Hash(0))), atecc608.ErrDigest},
		"nil options":                    {one(signer.Sign(nil, digest[:], nil)), atecc608.ErrDigest},
		"slot that does not sign":        {one(r.chip.Signer(ctx, 1)), atecc608.ErrSlot},
		"empty slot without GenKey":      {one(r.chip.GenerateKey(ctx, 2)), atecc608.ErrSlot},
		"empty slot":                     {one(r.chip.Signer(ctx, 2)), fs.ErrNotExist},
		"slot without public key":        {one(r.chip.Signer(ctx, 3)), atecc608.ErrSlot},
		"slot for data":                  {one(r.chip.Signer(ctx, 9)), atecc608.ErrSlot},
		"slot 16":                        {one(r.chip.Signer(ctx, 16)), fs.ErrInvalid},
		"slot -1":                        {one(r.chip.GenerateKey(ctx, -1)), fs.ErrInvalid},
		"unknown role":                   {one(r.chip.KeyStore(atecc608.Slots{}).Signer(ctx, "other")), fs.ErrInvalid},
		"verify with P-384":              {r.chip.Verify(ctx, &p384.PublicKey, digest[:], []byte{0x30}), fs.ErrInvalid},
		"verify garbage":                 {r.chip.Verify(ctx, signer.Public().(*ecdsa.PublicKey), digest[:], []byte{0x30}), atecc608.ErrSignature},
		"verify digest of 20 bytes":      {r.chip.Verify(ctx, signer.Public().(*ecdsa.PublicKey), digest[:20], nil), atecc608.ErrDigest},
		"lock a slot that is not for it": {r.chip.LockSlot(ctx, 11), atecc608.ErrSlot},
		"read at the end of all numbers": {r.chip.ReadSlot(ctx, 9, math.MaxInt-3, make([]byte, 4)), fs.ErrInvalid},
		"write past a slot's end":        {r.chip.WriteSlot(ctx, 9, 72, make([]byte, 4)), fs.ErrInvalid},
		"no bus":                         {one(atecc608.Open(ctx, nil, atecc608.Options{})), fs.ErrInvalid},
		"address of 8 bits":              {one(atecc608.Open(ctx, r.model, atecc608.Options{Address: 0xc0})), fs.ErrInvalid},
	} {
		if !errors.Is(test.err, test.want) {
			t.Errorf("%s: %v; want %v", name, test.err, test.want)
		}
		if test.want != fs.ErrNotExist && errors.Is(test.err, fs.ErrNotExist) {
			t.Errorf("%s: %v says that the key does not exist", name, test.err)
		}
	}

	half := newRig(t, atecctest.Options{Config: provisioned(func(c *[128]byte) { c[86] = 0x55; c[20] |= 4 })}, atecc608.Options{})
	keys := half.chip.KeyStore(atecc608.Slots{})
	if _, err := keys.Signer(ctx, keystore.Enrolment); !errors.Is(err, atecc608.ErrDataUnlocked) {
		t.Errorf("signer, data zone not locked: %v", err)
	}
	if _, err := keys.Generate(ctx, keystore.Enrolment); !errors.Is(err, atecc608.ErrDataUnlocked) {
		t.Errorf("generate, data zone not locked: %v", err)
	}
	if err := half.chip.WriteSlot(ctx, 9, 4, make([]byte, 4)); !errors.Is(err, atecc608.ErrDataUnlocked) {
		t.Errorf("write a word, data zone not locked: %v", err)
	}
	public := signer.Public().(*ecdsa.PublicKey)
	signature, err := signer.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	peer, err := public.ECDH()
	if err != nil {
		t.Fatal(err)
	}
	blank := newRig(t, atecctest.Options{Config: provisioned(func(c *[128]byte) { c[86], c[87] = 0x55, 0x55; c[20] |= 4 })}, atecc608.Options{})
	for chip, want := range map[*atecc608.Chip]error{half.chip: atecc608.ErrDataUnlocked, blank.chip: atecc608.ErrConfigUnlocked} {
		if err := chip.Verify(ctx, public, digest[:], signature); !errors.Is(err, want) {
			t.Errorf("verify: %v; want %v", err, want)
		}
		if _, err := chip.ECDH(ctx, 0, peer); !errors.Is(err, want) {
			t.Errorf("ECDH: %v; want %v", err, want)
		}
		if err := chip.ReadSlot(ctx, 9, 0, make([]byte, 4)); !errors.Is(err, want) {
			t.Errorf("read a slot: %v; want %v", err, want)
		}
	}
}

// Signers of one chip, many goroutines: no digest is signed in place of another.
func TestConcurrent(t *testing.T) {
	r := newRig(t, atecctest.Options{Config: provisioned()}, atecc608.Options{Timeout: time.Hour})
	one := generate(t, r.chip.KeyStore(atecc608.Slots{}), keystore.Enrolment)
	two := generate(t, r.chip.KeyStore(atecc608.Slots{Device: 1}), keystore.Device)
	var group sync.WaitGroup
	for g := range 8 {
		signer := one
		if g%2 == 1 {
			signer = two
		}
		group.Add(1)
		go func() {
			defer group.Done()
			for i := range 25 {
				digest := sha256.Sum256([]byte{byte(g), byte(i)})
				signature, err := signer.Sign(rand.Reader, digest[:], crypto.SHA256)
				if err != nil {
					t.Error(err)
				} else if !ecdsa.VerifyASN1(signer.Public().(*ecdsa.PublicKey), digest[:], signature) {
					t.Error("wrong signature")
				}
				if _, err := r.chip.Counter(t.Context(), 0); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	group.Wait()
}
