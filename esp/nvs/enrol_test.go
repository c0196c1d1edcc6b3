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
	"github.com/quarklink-go/quarklink/esp/flash"
	"github.com/quarklink-go/quarklink/esp/flash/flashtest"
	"github.com/quarklink-go/quarklink/esp/nvs"
	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/keystore/software"
	"github.com/quarklink-go/quarklink/quarklinktest"
	"github.com/quarklink-go/quarklink/store"
	"github.com/quarklink-go/quarklink/transport"
)

var (
	_ store.Creator = (*nvs.Namespace)(nil)
)

func partitionKeys(t testing.TB) *nvs.Keys {
	t.Helper()
	k, err := nvs.KeysFromHMAC(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// enrol starts a device whose keys and records are in a partition, and enrols.
func enrol(ctx context.Context, t *testing.T, device flash.NOR, s *quarklinktest.Server) (quarklink.DeviceID, error) {
	return enrolOver(ctx, t, device, s, s.Carrier())
}

func enrolOver(
	ctx context.Context, t *testing.T, device flash.NOR, s *quarklinktest.Server, carrier transport.Transport,
) (quarklink.DeviceID, error) {
	p, err := nvs.Open(device, nvs.Options{Keys: partitionKeys(t)})
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
	c, err := quarklink.New(ctx, quarklink.Config{KeyStore: keys, Store: ns, Transport: carrier})
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
	used := flash.NewMemory(8 * flash.SectorSize)
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

	whole := flashtest.New(used)
	if _, err := enrol(ctx, t, whole, s); err != nil {
		t.Fatal(err)
	}
	erased := 0
	for off := int64(0); off < whole.Size(); off += flash.SectorSize {
		erased += whole.Wear(off)
	}
	if erased == 0 {
		t.Error("no page was collected")
	}
	r := rand.New(rand.NewPCG(3, 4))
	step := 1
	if nvs.RaceEnabled {
		step = 7
	}
	cuts, same := 0, 0
	for at := 0; at < whole.Operations(); at += step {
		device := flashtest.New(used)
		device.CutPower(at)
		if kind := r.IntN(flashtest.Tears + 1); kind < flashtest.Tears {
			device.TearPower(at, kind, r.Uint64())
		}
		_, err := enrol(ctx, t, device, s)
		if !errors.Is(err, flashtest.ErrPowerCut) {
			t.Fatalf("cut at %d: %v", at, err)
		}
		cuts++
		device.PowerUp()
		before := storedKey(ctx, t, device)
		id, err := enrol(ctx, t, device, s)
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
		ro, err := nvs.OpenReader(device, device.Size(), nvs.Options{Keys: partitionKeys(t)})
		if err != nil {
			t.Fatal(err)
		}
		if bad, err := ro.Check(); err != nil || bad != nil {
			t.Fatalf("cut at %d: %v, %v", at, bad, err)
		}
	}
	t.Logf("%d flash operations, %d of them erases, %d cuts; after %d of them there was a key, and it stayed", whole.Operations(), erased, cuts, same)
	if same == 0 || same == cuts {
		t.Error("no cut before or none after the key was stored")
	}
}

// storedKey returns the public enrolment key that a partition holds, nil if none.
func storedKey(ctx context.Context, t *testing.T, m flash.NOR) *ecdsa.PublicKey {
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
