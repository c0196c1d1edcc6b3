package atecc608_test

import (
	"crypto"
	"crypto/sha256"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/keystore/atecc608"
	"github.com/quarklink-go/quarklink/keystore/atecc608/atecctest"
	"github.com/quarklink-go/quarklink/keystore/atecc608/goecdsa"
)

// limitedChip is a chip on a shared bus whose key's uses are counted, and so
// whose signatures are never asked for twice.
func limitedChip(clock *atecctest.Clock, address byte, opts atecctest.Options) *atecctest.Chip {
	opts.Config = provisioned(func(c *[128]byte) {
		c[16] = address << 1
		copy(c[20:], []byte{0xa1, 0x20}) // slot 0: limited use
	})
	model := atecctest.New(opts)
	model.SetClock(clock.Now)
	return model
}

func limitedSigner(
	t testing.TB, bus atecc608.Bus, clock *atecctest.Clock, address uint16, ecdsa atecc608.ECDSA,
) crypto.Signer {
	t.Helper()
	chip, err := atecc608.Open(t.Context(), bus, atecc608.Options{Address: address, Clock: clock, ECDSA: ecdsa})
	require.NoError(t, err)
	return generate(t, chip.KeyStore(atecc608.Slots{}), keystore.Enrolment)
}

// Two chips on one bus, where the pulse for the one wakes the other and all
// traffic may: of a thousand signatures that must not be made twice, none fails,
// whatever time passes in between.
func TestTwoChipsOnOneBus(t *testing.T) {
	const signs = 1000
	for name, opts := range map[string]atecctest.Options{
		"longest times":                  {},
		"never busy":                     {Times: atecctest.NeverBusy},
		"woken by traffic":               {TrafficWakes: true},
		"woken by traffic, never busy":   {TrafficWakes: true, Times: atecctest.NeverBusy},
		"a watchdog of 1.7 s":            {TrafficWakes: true, Watchdog: 1700 * time.Millisecond},
		"a watchdog of 1.3 s, traffic":   {Watchdog: 1300 * time.Millisecond},
		"verified by the chips, traffic": {TrafficWakes: true},
	} {
		t.Run(name, func(t *testing.T) {
			var ecdsa atecc608.ECDSA = goecdsa.P256{}
			if name == "verified by the chips, traffic" {
				ecdsa = nil
			}
			clock := new(atecctest.Clock)
			one, two := limitedChip(clock, 0x60, opts), limitedChip(clock, 0x35, opts)
			bus := atecctest.Wire{one, two}
			signers := []crypto.Signer{limitedSigner(t, bus, clock, 0x60, ecdsa), limitedSigner(t, bus, clock, 0x35, ecdsa)}
			random := rand.New(rand.NewPCG(7, 8))
			before, failed := one.Stats(), 0
			for i := range signs {
				clock.Advance(time.Duration(random.IntN(1400)) * time.Millisecond)
				digest := sha256.Sum256([]byte{byte(i), byte(i >> 8)})
				if _, err := signers[random.IntN(2)].Sign(nil, digest[:], crypto.SHA256); err != nil {
					t.Logf("sign %d: %v", i, err)
					failed++
				}
			}
			assert.Zero(t, failed, "signatures that failed")
			average := float64(one.Stats().Sub(before).Transactions) / signs
			t.Logf("%.2f transactions a sign", average)
			if name == "never busy" {
				assert.LessOrEqual(t, average, 9.0)
			}
		})
	}
}

// disturber wakes the chip, or writes to other devices, before transactions of
// the driver's, as a program beside it does.
type disturber struct {
	*atecctest.Chip
	random *rand.Rand
}

func (d *disturber) Tx(addr uint16, w, r []byte) error {
	switch d.random.IntN(4) {
	case 0:
		d.Chip.Wake()
	case 1:
		d.Chip.Tx(0x48, []byte{1, 2}, nil) // a thermometer
	}
	return d.Chip.Tx(addr, w, r)
}

func TestForeignTrafficThatWakes(t *testing.T) {
	const signs = 1000
	clock := new(atecctest.Clock)
	model := limitedChip(clock, 0x60, atecctest.Options{TrafficWakes: true})
	bus := &disturber{model, rand.New(rand.NewPCG(9, 10))}
	signer := limitedSigner(t, bus, clock, 0x60, goecdsa.P256{})
	random := rand.New(rand.NewPCG(11, 12))
	failed := 0
	for i := range signs {
		for range random.IntN(3) { // traffic while nobody signs
			bus.Tx(0x48, []byte{0}, nil)
			clock.Advance(time.Duration(random.IntN(700)) * time.Millisecond)
		}
		digest := sha256.Sum256([]byte{byte(i), byte(i >> 8)})
		if _, err := signer.Sign(nil, digest[:], crypto.SHA256); err != nil {
			t.Logf("sign %d: %v", i, err)
			failed++
		}
	}
	assert.Zero(t, failed, "signatures that failed")
}

// A Nonce that is not carried out, or whose reply is lost, is repeated, also for
// a key whose uses are counted: nothing has been counted yet.
func TestNonceIsRepeated(t *testing.T) {
	const opNonce = 0x16
	for name, fault := range map[string]func(seen int) atecctest.Fault{
		"not acknowledged":    func(int) atecctest.Fault { return atecctest.NACK },
		"the chip browns out": func(int) atecctest.Fault { return atecctest.BrownOut },
		"damaged":             func(int) atecctest.Fault { return atecctest.BadCommand },
		"its reply is lost": func(seen int) atecctest.Fault {
			if seen == 0 {
				return atecctest.NoFault
			}
			return atecctest.BrownOut
		},
	} {
		t.Run(name, func(t *testing.T) {
			clock := new(atecctest.Clock)
			model := limitedChip(clock, 0x60, atecctest.Options{Times: atecctest.NeverBusy})
			signer := limitedSigner(t, model, clock, 0x60, goecdsa.P256{})
			seen, last := 0, fault(0) == atecctest.NoFault
			model.SetFaults(func(tr atecctest.Transaction) atecctest.Fault {
				if seen == 0 && tr.Opcode == opNonce || seen == 1 && last {
					seen++
					return fault(seen - 1)
				}
				return atecctest.NoFault
			})
			digest := sha256.Sum256(nil)
			_, err := signer.Sign(nil, digest[:], crypto.SHA256)
			assert.NoError(t, err)
			assert.NotZero(t, seen, "the fault did not happen")
		})
	}
}
