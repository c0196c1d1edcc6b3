package atecc608_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"io/fs"
	"math/big"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/keystore/atecc608"
	"github.com/quarklink-go/quarklink/keystore/atecc608/atecctest"
	"github.com/quarklink-go/quarklink/keystore/atecc608/goecdsa"
)

// A point is on the curve exactly if Go says so.
func TestOnCurve(t *testing.T) {
	for range 50 {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		require.NoError(t, err)
		point := pointOf(t, &key.PublicKey)
		b, err := point.Bytes()
		require.NoError(t, err)
		want, err := key.PublicKey.Bytes()
		require.NoError(t, err)
		assert.Equal(t, want, b)
		assert.True(t, point.Equal(&key.PublicKey))
		assert.Equal(t, &key.PublicKey, goecdsa.PublicKey(point))

		point[40] ^= 1
		_, err = point.Bytes()
		assert.ErrorIs(t, err, fs.ErrInvalid)
		assert.False(t, point.Equal(&key.PublicKey))
	}
	good := pointOf(t, goecdsaKey(t))
	for name, change := range map[string]func(k *atecc608.PublicKey){
		"zero":          func(k *atecc608.PublicKey) { clear(k[:]) },
		"X too large":   func(k *atecc608.PublicKey) { copy(k[:32], bytes.Repeat([]byte{0xff}, 32)) },
		"Y too large":   func(k *atecc608.PublicKey) { copy(k[32:], bytes.Repeat([]byte{0xff}, 32)) },
		"all bits set":  func(k *atecc608.PublicKey) { copy(k[:], bytes.Repeat([]byte{0xff}, 64)) },
		"X and Y apart": func(k *atecc608.PublicKey) { copy(k[:32], k[32:]) },
	} {
		bad := good
		change(&bad)
		_, err := bad.Bytes()
		assert.ErrorIs(t, err, fs.ErrInvalid, name)
	}
	assert.False(t, good.Equal(nil))
	assert.False(t, good.Equal((*ecdsa.PublicKey)(nil)))
	assert.False(t, good.Equal("key"))
}

func goecdsaKey(t testing.TB) *ecdsa.PublicKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	return &key.PublicKey
}

// Signatures go through ASN.1 as Go has them, and one that has another form is
// refused.
func TestSignatureForms(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	for i := range 400 { // leading zeros and set top bits come by
		digest := sha256.Sum256([]byte{byte(i), byte(i >> 8)})
		der, err := key.Sign(rand.Reader, digest[:], crypto.SHA256)
		require.NoError(t, err)
		rs, ok := atecc608.ParseSignature(der)
		require.True(t, ok, "%x", der)
		require.Equal(t, der, atecc608.SignatureDER(rs))
		r, s := new(big.Int).SetBytes(rs[:32]), new(big.Int).SetBytes(rs[32:])
		require.True(t, ecdsa.Verify(&key.PublicKey, digest[:], r, s))
	}
	good := []byte{0x30, 6, 2, 1, 5, 2, 1, 7}
	_, ok := atecc608.ParseSignature(good)
	require.True(t, ok)
	for name, der := range map[string][]byte{
		"nothing":           {},
		"trailing byte":     append(bytes.Clone(good), 0),
		"cut":               good[:7],
		"another tag":       {0x31, 6, 2, 1, 5, 2, 1, 7},
		"no integer":        {0x30, 6, 3, 1, 5, 2, 1, 7},
		"padded":            {0x30, 7, 2, 2, 0, 5, 2, 1, 7},
		"negative":          {0x30, 6, 2, 1, 0x85, 2, 1, 7},
		"empty integer":     {0x30, 5, 2, 0, 2, 1, 7},
		"one integer":       {0x30, 3, 2, 1, 5},
		"three integers":    {0x30, 9, 2, 1, 5, 2, 1, 7, 2, 1, 1},
		"long form":         {0x30, 0x81, 6, 2, 1, 5, 2, 1, 7},
		"past the end":      {0x30, 6, 2, 5, 5, 2, 1, 7},
		"33 bytes of value": append([]byte{0x30, 38, 2, 33, 1}, append(make([]byte, 32), 2, 1, 7)...),
	} {
		_, ok := atecc608.ParseSignature(der)
		assert.False(t, ok, name)
	}
}

func FuzzParseSignature(f *testing.F) {
	f.Add([]byte{0x30, 6, 2, 1, 5, 2, 1, 7})
	f.Add([]byte{0x30, 0x45, 2, 0x21, 0})
	f.Fuzz(func(t *testing.T, der []byte) {
		if rs, ok := atecc608.ParseSignature(der); ok && !bytes.Equal(atecc608.SignatureDER(rs), der) {
			t.Errorf("%x has two forms", der)
		}
	})
}

// The check of a signature is the chip's own or the host's, by choice. Either
// refuses a wrong one, and the chip's own needs no second signature when only
// the check is disturbed.
func TestCheckOfSignatures(t *testing.T) {
	digest := sha256.Sum256(nil)
	for name, test := range map[string]struct {
		ecdsa  atecc608.ECDSA
		limits int // transactions
	}{"by the host": {goecdsa.P256{}, 8}, "by the chip": {nil, 14}} {
		t.Run(name, func(t *testing.T) {
			clock := new(atecctest.Clock)
			model := limitedChip(clock, 0x60, atecctest.Options{Times: atecctest.NeverBusy})
			signer := limitedSigner(t, model, clock, 0x60, test.ecdsa)
			before := model.Stats()
			signature, err := signer.Sign(nil, digest[:], crypto.SHA256)
			require.NoError(t, err)
			assert.LessOrEqual(t, model.Stats().Sub(before).Transactions, test.limits)
			_, isHost := signer.Public().(*ecdsa.PublicKey)
			assert.Equal(t, test.ecdsa != nil, isHost)
			id, err := keystore.Fingerprint(signer.Public())
			require.NoError(t, err)
			public := pointOf(t, signer.Public())
			same, err := keystore.Fingerprint(goecdsa.PublicKey(public))
			require.NoError(t, err)
			assert.Equal(t, same, id, "the DeviceID does not depend on it")
			assert.True(t, ecdsa.VerifyASN1(goecdsa.PublicKey(public), digest[:], signature))

			model.SetSlot(0, nil) // the key is another now
			_, err = openRaw(t, model, clock).GenerateKey(t.Context(), 0)
			require.NoError(t, err)
			_, err = signer.Sign(nil, digest[:], crypto.SHA256)
			assert.ErrorIs(t, err, atecc608.ErrSignature)
		})
	}
}

// forger returns wrong signatures, with checksums that are right.
type forger struct {
	*atecctest.Chip
	left int
}

func (f *forger) Tx(addr uint16, w, r []byte) error {
	err := f.Chip.Tx(addr, w, r)
	if err == nil && len(r) == 67 && r[0] == 67 && f.left > 0 {
		f.left--
		r[1] ^= 1
		sum := atecc608.CRC16(r[:65])
		r[65], r[66] = byte(sum), byte(sum>>8)
	}
	return err
}

// A wrong signature is never returned: another is made, as long as that helps.
func TestWrongSignatureIsMadeAnew(t *testing.T) {
	digest := sha256.Sum256(nil)
	for name, check := range map[string]atecc608.ECDSA{"by the host": goecdsa.P256{}, "by the chip": nil} {
		clock := new(atecctest.Clock)
		bus := &forger{Chip: atecctest.New(atecctest.Options{Config: provisioned()})}
		bus.SetClock(clock.Now)
		chip, err := atecc608.Open(t.Context(), bus, atecc608.Options{Clock: clock, ECDSA: check})
		require.NoError(t, err)
		signer := generate(t, chip.KeyStore(atecc608.Slots{}), keystore.Enrolment)
		bus.left = 2
		signature, err := signer.Sign(nil, digest[:], crypto.SHA256)
		require.NoError(t, err, name)
		assert.Zero(t, bus.left, name)
		assert.NoError(t, chip.Verify(t.Context(), signer.Public(), digest[:], signature), name)
		bus.left = 1000
		_, err = signer.Sign(nil, digest[:], crypto.SHA256)
		assert.ErrorIs(t, err, atecc608.ErrSignature, name)
	}
}

func TestDisturbedCheckSignsOnce(t *testing.T) {
	const opVerify = 0x45
	clock := new(atecctest.Clock)
	model := limitedChip(clock, 0x60, atecctest.Options{Times: atecctest.NeverBusy})
	signer := limitedSigner(t, model, clock, 0x60, nil)
	faults, asked := 0, false
	model.SetFaults(func(tr atecctest.Transaction) atecctest.Fault {
		lost := asked && faults < 2 // the reply to Verify
		if asked = tr.Opcode == opVerify; lost {
			faults++
			return atecctest.BrownOut
		}
		return atecctest.NoFault
	})
	_, err := signer.Sign(nil, make([]byte, 32), crypto.SHA256)
	require.NoError(t, err)
	assert.Equal(t, 2, faults)
	uses, err := openRaw(t, model, clock).Counter(t.Context(), 0)
	require.NoError(t, err)
	assert.EqualValues(t, 1, uses, "signatures made")
}

// Importing the driver must not link a curve: merely importing crypto/ecdsa
// brings all of them.
func TestNoCurveIsLinked(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", ".").CombinedOutput()
	require.NoError(t, err, "%s", out)
	for _, forbidden := range []string{"crypto/ecdsa", "crypto/ecdh", "crypto/elliptic", "nistec"} {
		assert.NotContains(t, string(out), forbidden)
	}
}
