package atecc608_test

import (
	"crypto"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io/fs"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/keystore/atecc608"
	"github.com/quarklink-go/quarklink/keystore/atecc608/atecctest"
)

// A key whose uses are limited: a signature that was made is not asked for again
// when its reply is lost, and a spent key says so.
func TestLimitedUse(t *testing.T) {
	const limit = 3
	r := newRig(t, atecctest.Options{Times: atecctest.NeverBusy, Config: provisioned(func(c *[128]byte) {
		copy(c[20:], []byte{0xa1, 0x20}) // slot 0: limited use
		c[18] = 0xa1                     // CountMatch: the limit is in slot 10
	})}, atecc608.Options{})
	match := make([]byte, 8)
	binary.LittleEndian.PutUint32(match, limit)
	copy(match[4:], match[:4])
	r.model.SetSlot(10, match)
	signer := generate(t, r.chip.KeyStore(atecc608.Slots{}), keystore.Enrolment)
	digest := sha256.Sum256(nil)
	sign := func(uses uint32) error {
		t.Helper()
		_, err := signer.Sign(nil, digest[:], crypto.SHA256)
		r.model.SetFaults(nil)
		if n, countErr := r.chip.Counter(t.Context(), 0); countErr != nil || n != uses {
			t.Errorf("counter %d, %v; want %d", n, countErr, uses)
		}
		return err
	}
	fault := func(opcode byte, at atecctest.Fault, after atecctest.Fault) func(atecctest.Transaction) atecctest.Fault {
		seen := 0
		return func(tr atecctest.Transaction) atecctest.Fault {
			if tr.Opcode == opcode && seen == 0 {
				seen++
				return at
			}
			if seen == 1 {
				seen++
				return after
			}
			return atecctest.NoFault
		}
	}
	const opSign = 0x41
	r.model.SetFaults(fault(opSign, atecctest.NoFault, atecctest.BrownOut)) // the reply is lost
	if err := sign(1); err == nil {
		t.Error("a signature that was lost")
	}
	r.model.SetFaults(fault(opSign, atecctest.BadCommand, atecctest.NoFault)) // the command is lost
	if err := sign(2); err != nil {
		t.Errorf("a command that the chip did not get: %v", err)
	}
	if err := sign(3); err != nil {
		t.Error(err)
	}
	if err := sign(3); !errors.Is(err, atecc608.StatusExecution) || !strings.Contains(err.Error(), "spent") {
		t.Errorf("a spent key: %v", err)
	}
}

// However bad the bus is: a key that is there is never said to be absent, and
// none is made beside it.
func TestNeverAbsent(t *testing.T) {
	r := newRig(t, atecctest.Options{Config: provisioned()}, atecc608.Options{})
	public, err := r.chip.GenerateKey(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(5, 6))
	for range 500 {
		r.model.SetFaults(func(atecctest.Transaction) atecctest.Fault {
			if random.IntN(3) > 0 {
				return atecctest.NoFault
			}
			return atecctest.Fault(1 + random.IntN(int(atecctest.SelfTestFailed)))
		})
		if _, err := r.chip.Signer(t.Context(), 0); errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		if made, err := r.chip.GenerateKey(t.Context(), 0); err == nil {
			t.Fatalf("a second key: %v", made)
		}
	}
	r.model.SetFaults(nil)
	if again, err := r.chip.PublicKey(t.Context(), 0); err != nil || !again.Equal(public) {
		t.Errorf("the key is another: %v", err)
	}
}
