package dstest_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quarklink-go/quarklink/keystore/esp32ds"
	"github.com/quarklink-go/quarklink/keystore/esp32ds/dstest"
)

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// block0 reads BLOCK0 as the chip has it in memory.
func block0(t *testing.T, text string) (words [6]uint32) {
	t.Helper()
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != 24 {
		t.Fatal(err)
	}
	for i := range words {
		words[i] = binary.LittleEndian.Uint32(b[4*i:])
	}
	return words
}

// TestBurnAsEspefuse burns what espefuse burned on an emulated
// ESP32-C3 with two Secure Boot digests and a flash encryption key: the eFuses
// end up the same.
func TestBurnAsEspefuse(t *testing.T) {
	const before, after = "000b800508000000000000a9400000000000000000000000", "001b800d18000000000000a9400700000000000000000000"
	chip := dstest.New(esp32ds.ESP32C3)
	r := dstest.Registers{BLOCK0: block0(t, before)}
	r.Keys[0], r.Keys[1], r.Keys[3] = [32]byte{0xcd}, [32]byte{0x18}, [32]byte{1}
	chip.SetRegisters(r)
	key := [32]byte{31: 5}
	must(t, chip.BurnKey(t.Context(), 4, key))
	r.BLOCK0, r.Keys[4] = block0(t, after), key
	if got := chip.Registers(); got != r {
		t.Errorf("burned\n%x, espefuse burns\n%x", got, r)
	}
	fuses, err := chip.ReadEFuses(t.Context())
	must(t, err)
	for i, want := range [...]esp32ds.KeyBlock{
		{Purpose: 9, WriteProtected: true, PurposeLocked: true, Key: [32]byte{0xcd}},
		{Purpose: 10, WriteProtected: true, PurposeLocked: true, Key: [32]byte{0x18}},
		{},
		{Purpose: 4, ReadProtected: true, WriteProtected: true, PurposeLocked: true},
		{Purpose: 7, ReadProtected: true, WriteProtected: true, PurposeLocked: true},
		{},
	} {
		if fuses.Blocks[i] != want {
			t.Errorf("key block %d reads as %+v, not %+v", i, fuses.Blocks[i], want)
		}
	}
}

func TestBurnRefused(t *testing.T) {
	ctx := t.Context()
	chip := dstest.New(esp32ds.ESP32S3)
	for _, block := range []int{-1, 6} {
		if err := chip.BurnKey(ctx, block, [32]byte{1}); !errors.Is(err, esp32ds.ErrInvalidArg) {
			t.Errorf("block %d: %v", block, err)
		}
		if err := chip.Protect(ctx, block); !errors.Is(err, esp32ds.ErrInvalidArg) {
			t.Errorf("protect block %d: %v", block, err)
		}
	}
	must(t, chip.BurnKey(ctx, 0, [32]byte{1}))
	if err := chip.BurnKey(ctx, 0, [32]byte{1}); !errors.Is(err, esp32ds.ErrInvalidState) {
		t.Errorf("twice: %v", err)
	}
	for name, r := range map[string]dstest.Registers{
		"purpose locked":         {BLOCK0: [6]uint32{1 << 8}, Keys: [6][32]byte{{1}}},
		"read protection locked": {BLOCK0: [6]uint32{1}, Keys: [6][32]byte{{1}}},
		"another purpose":        {BLOCK0: [6]uint32{2: 8 << 24}, Keys: [6][32]byte{{1}}},
	} {
		chip.SetRegisters(r)
		if err := chip.Protect(ctx, 0); !errors.Is(err, esp32ds.ErrFail) {
			t.Errorf("%s: %v", name, err)
		}
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if err := chip.BurnKey(cancelled, 1, [32]byte{1}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestCutPower counts the words that are burned when the power goes.
func TestCutPower(t *testing.T) {
	ctx := t.Context()
	key := [32]byte(bytes.Repeat([]byte{1, 2, 3, 4}, 8))
	for steps := range 12 {
		chip := dstest.New(esp32ds.ESP32C3)
		chip.CutPower(steps)
		err := chip.BurnKey(ctx, 0, key)
		if steps == 11 {
			must(t, err)
		} else {
			if !errors.Is(err, dstest.ErrPowerCut) {
				t.Fatalf("after %d steps: %v", steps, err)
			}
			_, readErr := chip.ReadEFuses(ctx)
			_, signErr := chip.Sign(ctx, 0, nil, nil)
			if !errors.Is(readErr, dstest.ErrPowerCut) || !errors.Is(signErr, dstest.ErrPowerCut) || !errors.Is(chip.Protect(ctx, 0), dstest.ErrPowerCut) {
				t.Errorf("the chip works without power: %v, %v", readErr, signErr)
			}
		}
		r := chip.Registers()
		words := 0
		for _, word := range r.BLOCK0 {
			if word != 0 {
				words++
			}
		}
		for i := 0; i < 32; i += 4 {
			if r.Keys[0][i] != 0 {
				words++
			}
		}
		if words != steps {
			t.Errorf("%d words burned, the power was cut after %d", words, steps)
		}
		chip.PowerUp()
		if _, err := chip.ReadEFuses(ctx); err != nil || chip.Registers() != r {
			t.Errorf("after power-up: %v", err)
		}
	}
}

var hmacKey = [32]byte{1, 2, 3}

func params(t *testing.T) (key *rsa.PrivateKey, data []byte) {
	t.Helper()
	text, err := os.ReadFile("../testdata/rsa2048-esk.pem")
	must(t, err)
	block, _ := pem.Decode(text)
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	must(t, err)
	key = parsed.(*rsa.PrivateKey)
	p, err := esp32ds.Encrypt(esp32ds.ESP32C3, key, hmacKey, [16]byte{9})
	must(t, err)
	return key, p.Bytes()
}

// change changes the plaintext inside parameters and makes the digest right again.
func change(data []byte, f func(plain []byte)) []byte {
	data = bytes.Clone(data)
	h := hmac.New(sha256.New, hmacKey[:])
	h.Write(bytes.Repeat([]byte{0xff}, 32))
	block, _ := aes.NewCipher(h.Sum(nil))
	plain := data[20:]
	cipher.NewCBCDecrypter(block, data[4:20]).CryptBlocks(plain, plain)
	f(plain)
	n := len(plain) - 48
	md := sha256.Sum256(slices.Concat(plain[:n], plain[n+32:n+40], data[4:20]))
	copy(plain[n:], md[:])
	cipher.NewCBCEncrypter(block, data[4:20]).CryptBlocks(plain, plain)
	return data
}

func TestSign(t *testing.T) {
	ctx := t.Context()
	key, data := params(t)
	chip := dstest.New(esp32ds.ESP32C3)
	must(t, chip.BurnKey(ctx, 3, hmacKey))
	small, large := make([]byte, 256), bytes.Repeat([]byte{0xff}, 256) // large is more than the modulus
	small[0] = 2
	for _, message := range [][]byte{small, large, make([]byte, 256)} {
		z, err := chip.Sign(ctx, 3, data, message)
		must(t, err)
		m := slices.Clone(message)
		slices.Reverse(m)
		want := new(big.Int).Exp(new(big.Int).SetBytes(m), key.D, key.N).FillBytes(make([]byte, 256))
		slices.Reverse(want)
		if !bytes.Equal(z, want) {
			t.Errorf("%x…^d is wrong", message[:2])
		}
	}
	if chip.Signatures() != 3 {
		t.Errorf("%d signatures counted", chip.Signatures())
	}

	const width = 384
	right, err := chip.Sign(ctx, 3, data, small)
	must(t, err)
	for _, c := range []struct {
		name   string
		block  int
		data   []byte
		size   int // of the message
		want   error
		result bool // one is returned, and it is
		right  bool
	}{
		{"unchanged inside", 3, change(data, func([]byte) {}), 256, nil, true, true},
		{"another block", 2, data, 256, esp32ds.ErrHMACFail, false, false},
		{"no block", 6, data, 256, esp32ds.ErrInvalidArg, false, false},
		{"short message", 3, data, 255, esp32ds.ErrInvalidArg, false, false},
		{"short parameters", 3, data[:1219], 256, esp32ds.ErrInvalidArg, false, false},
		{"another chip's", 3, append(bytes.Clone(data), make([]byte, 384)...), 256, esp32ds.ErrInvalidArg, false, false},
		{"no length", 3, append([]byte{62}, data[1:]...), 256, esp32ds.ErrInvalidArg, false, false},
		{"length with a high byte", 3, append([]byte{63, 0, 0, 1}, data[4:]...), 256, esp32ds.ErrInvalidArg, false, false},
		{"other length outside", 3, append([]byte{31}, data[1:]...), 128, nil, true, false},
		{"other length inside", 3, change(data, func(p []byte) { p[3*width+36] = 95 }), 256, nil, true, false},
		{"huge length inside", 3, change(data, func(p []byte) { p[3*width+36] = 255 }), 256, nil, true, false},
		{"damaged", 3, append(bytes.Clone(data[:1219]), data[1219]^1), 256, esp32ds.ErrInvalidDigest, false, false},
		{"beta", 3, change(data, func(p []byte) { p[3*width+40] = 7 }), 256, esp32ds.ErrInvalidPadding, true, true},
		{"Rb", 3, change(data, func(p []byte) { p[2*width] ^= 1 }), 256, nil, true, false},
		{"M'", 3, change(data, func(p []byte) { p[3*width+32] ^= 1 }), 256, nil, true, false},
		{"Y", 3, change(data, func(p []byte) { p[0] ^= 1 }), 256, nil, true, false},
		{"M is zero", 3, change(data, func(p []byte) { clear(p[width : 2*width]) }), 256, nil, true, false},
	} {
		z, err := chip.Sign(ctx, c.block, c.data, append(bytes.Clone(small), 0)[:min(c.size, 257)])
		if !errors.Is(err, c.want) || (z != nil) != c.result || bytes.Equal(z, right) != c.right {
			t.Errorf("%s: a result: %v, the right one: %v, error %v", c.name, z != nil, bytes.Equal(z, right), err)
		}
	}
	if _, err := dstest.New(0).Sign(ctx, 3, data, small); err == nil {
		t.Error("the original ESP32 signs")
	}
}

// TestPurposes: the HMAC peripheral goes by the purpose of real eFuses.
func TestPurposes(t *testing.T) {
	ctx := t.Context()
	_, data := params(t)
	message := make([]byte, 256)
	for purpose := range uint32(16) {
		chip := dstest.New(esp32ds.ESP32C3)
		r := dstest.Registers{BLOCK0: [6]uint32{2: purpose << 28}}
		r.Keys[1] = hmacKey
		chip.SetRegisters(r)
		var want error = esp32ds.ErrHMACFail
		if purpose == 5 || purpose == 7 {
			want = nil
		}
		if _, err := chip.Sign(ctx, 1, data, message); !errors.Is(err, want) {
			t.Errorf("purpose %d: %v", purpose, err)
		}
	}
	chip := dstest.New(esp32ds.ESP32C3)
	chip.SetVirtual(true)
	must(t, chip.BurnKey(ctx, 0, hmacKey))
	if fuses, err := chip.ReadEFuses(ctx); err != nil || !fuses.Virtual || fuses.Blocks[0].Purpose != esp32ds.PurposeDS {
		t.Errorf("virtual eFuses read as %+v, %v", fuses, err)
	}
	if chip.Registers() != (dstest.Registers{}) {
		t.Error("burning virtual eFuses burned real ones")
	}
	if _, err := chip.Sign(ctx, 0, data, message); !errors.Is(err, esp32ds.ErrHMACFail) {
		t.Errorf("signing with a virtual key: %v", err)
	}
}

func TestFaults(t *testing.T) {
	_, data := params(t)
	message := make([]byte, 256)
	message[0] = 2
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		chip := dstest.New(esp32ds.ESP32C3)
		must(t, chip.BurnKey(ctx, 0, hmacKey))
		right, err := chip.Sign(ctx, 0, data, message)
		must(t, err)
		chip.Inject(
			dstest.Fault{Err: esp32ds.ErrBusy},
			dstest.Fault{},
			dstest.Fault{Corrupt: func(z []byte) []byte { z[0] ^= 1; return z }},
			dstest.Fault{Hang: true},
		)
		if _, err := chip.Sign(ctx, 0, data, message); !errors.Is(err, esp32ds.ErrBusy) {
			t.Errorf("busy: %v", err)
		}
		if z, err := chip.Sign(ctx, 0, data, message); err != nil || !bytes.Equal(z, right) {
			t.Errorf("no fault: %v", err)
		}
		if z, err := chip.Sign(ctx, 0, data, message); err != nil || z[0] != right[0]^1 || !bytes.Equal(z[1:], right[1:]) {
			t.Errorf("corrupt: %v", err)
		}
		hung := make(chan error)
		limited, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		go func() {
			_, err := chip.Sign(limited, 0, data, message)
			hung <- err
		}()
		synctest.Wait()
		if _, err := chip.Sign(ctx, 0, data, message); !errors.Is(err, esp32ds.ErrBusy) {
			t.Errorf("a second call: %v", err)
		}
		if err := <-hung; !errors.Is(err, esp32ds.ErrTimeout) {
			t.Errorf("hang: %v", err)
		}
		if z, err := chip.Sign(ctx, 0, data, message); err != nil || !bytes.Equal(z, right) {
			t.Errorf("after the faults: %v", err)
		}
	})
}
