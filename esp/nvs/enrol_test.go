package nvs_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/hex"
	"errors"
	"io/fs"
	"math/rand/v2"
	"testing"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/esp/nvs"
	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/keystore/software"
	"github.com/quarklink-go/quarklink/quarklinktest"
	"github.com/quarklink-go/quarklink/store"
)

var (
	_ store.Creator = (*nvs.Namespace)(nil)
	_ nvs.Flash     = nvs.Image(nil)
)

var errCut = errors.New("power cut")

// supply is flash whose power is cut at an operation: that one is done in
// part, and then no more.
type supply struct {
	nvs.Image
	left   int // operations before the cut; negative: it was cut
	tear   func() byte
	done   int // operations
	erased int // sectors
}

// cut counts an operation; it says what part of the bits of each byte is done.
func (s *supply) cut() (tear func() byte, err error) {
	s.left--
	if s.left < 0 {
		tear, err = s.tear, errCut
		s.tear = func() byte { return 0 }
		return tear, err
	}
	s.done++
	return func() byte { return 0xFF }, nil
}

func (s *supply) Program(off int64, data []byte) error {
	tear, err := s.cut()
	part := bytes.Clone(data)
	for i := range part {
		part[i] |= ^tear()
	}
	return errors.Join(err, s.Image.Program(off, part))
}

func (s *supply) EraseSector(off int64) error {
	tear, err := s.cut()
	s.erased++
	for i := range nvs.SectorSize {
		s.Image[off+int64(i)] |= tear()
	}
	return err
}

func partitionKeys(t testing.TB) *nvs.Keys {
	t.Helper()
	k, err := nvs.KeysFromHMAC(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// enrol starts a device whose keys and records are in a partition, and enrols.
func enrol(ctx context.Context, t *testing.T, flash nvs.Flash, s *quarklinktest.Server) (quarklink.DeviceID, error) {
	p, err := nvs.Open(flash, nvs.Options{Keys: partitionKeys(t)})
	if err != nil {
		return "", err
	}
	ns, err := p.Namespace("quarklink")
	if err != nil {
		return "", err
	}
	keys, err := software.New(ns, software.Options{
		Secret:     func(context.Context) ([]byte, error) { return []byte("a secret of thirty-two characters"), nil },
		Iterations: 1,
	})
	if err != nil {
		return "", err
	}
	c, err := quarklink.New(ctx, quarklink.Config{KeyStore: keys, Store: ns, Transport: s.Carrier()})
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetInstance(ctx, s.Instance()); err != nil {
		return c.DeviceID(), err
	}
	if err := s.AddDevices("batch", c.DeviceID()); err != nil {
		t.Fatal(err)
	}
	_, err = c.Enrol(ctx)
	return c.DeviceID(), err
}

// TestEnrolSurvivesCuts cuts the power at every flash operation of a device's
// first start and enrolment, with its keys and records in an encrypted
// partition of 32 KiB. Started again it must enrol, as the device that it was.
func TestEnrolSurvivesCuts(t *testing.T) {
	ctx := t.Context()
	s, err := quarklinktest.NewServer(quarklinktest.Options{InMemory: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.AddBatch(quarklinktest.Batch{Name: "batch"}); err != nil {
		t.Fatal(err)
	}
	// A partition that has seen use, so that pages are collected too.
	used := nvs.NewImage(8 * nvs.SectorSize)
	p, err := nvs.Open(used, nvs.Options{Keys: partitionKeys(t)})
	if err != nil {
		t.Fatal(err)
	}
	phy, _ := p.Namespace("phy")
	if err := phy.SetBlob("cal_data", make([]byte, 1904)); err != nil {
		t.Fatal(err)
	}
	for i := range uint32(126*7 - 90) {
		if err := nvs.SetInt(phy, "counter", i); err != nil {
			t.Fatal(err)
		}
	}

	whole := &supply{Image: nvs.Image(bytes.Clone(used)), left: 1 << 30, tear: func() byte { return 0 }}
	if _, err := enrol(ctx, t, whole, s); err != nil {
		t.Fatal(err)
	}
	if whole.erased == 0 {
		t.Error("no page was collected")
	}
	r := rand.New(rand.NewPCG(3, 4))
	tears := []func() byte{
		func() byte { return 0 },
		func() byte { return 0xFF },
		func() byte { return byte(r.UintN(256)) },
		func() byte { return byte(0xFF * r.IntN(2)) },
	}
	step := 1
	if nvs.RaceEnabled {
		step = 7
	}
	cuts, same := 0, 0
	for at := 0; at < whole.done; at += step {
		flash := &supply{Image: nvs.Image(bytes.Clone(used)), left: at, tear: tears[r.IntN(len(tears))]}
		_, err := enrol(ctx, t, flash, s)
		if !errors.Is(err, errCut) {
			t.Fatalf("cut at %d: %v", at, err)
		}
		cuts++
		before := storedKey(ctx, t, flash.Image)
		id, err := enrol(ctx, t, flash.Image, s)
		if err != nil {
			t.Fatalf("cut at %d, started again: %v", at, err)
		}
		if before != nil {
			same++
			if want, err := keystore.Fingerprint(before); err != nil || string(id) != hex.EncodeToString(want[:]) {
				t.Fatalf("cut at %d: started again as another device", at)
			}
		}
		if n := len(s.Certificates(id)); n != 1 {
			t.Fatalf("cut at %d: %d certificates for one request", at, n)
		}
		ro, err := nvs.OpenReader(flash.Image, flash.Image.Size(), nvs.Options{Keys: partitionKeys(t)})
		if err != nil {
			t.Fatal(err)
		}
		if bad, err := ro.Check(); err != nil || bad != nil {
			t.Fatalf("cut at %d: %v, %v", at, bad, err)
		}
	}
	t.Logf("%d flash operations, %d of them erases, %d cuts; after %d of them there was a key, and it stayed", whole.done, whole.erased, cuts, same)
	if same == 0 || same == cuts {
		t.Error("no cut before or none after the key was stored")
	}
}

// storedKey returns the public enrolment key that a partition holds, nil if none.
func storedKey(ctx context.Context, t *testing.T, m nvs.Image) *ecdsa.PublicKey {
	t.Helper()
	p, err := nvs.OpenReader(m, m.Size(), nvs.Options{Keys: partitionKeys(t)})
	if err != nil {
		t.Fatal(err)
	}
	ns, _ := p.Namespace("quarklink")
	keys, err := software.New(ns, software.Options{
		Secret: func(context.Context) ([]byte, error) { return []byte("a secret of thirty-two characters"), nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	signer, err := keys.Signer(ctx, keystore.Enrolment)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	pub, ok := signer.Public().(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		t.Fatalf("%T", signer.Public())
	}
	return pub
}
