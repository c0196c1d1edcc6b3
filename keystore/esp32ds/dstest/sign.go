package dstest

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"math/big"
	"slices"

	"github.com/quarklink-go/quarklink/keystore/esp32ds"
)

const (
	purposeDownAll = 5 // HMAC_DOWN_ALL
	ivOffset       = 4
	cOffset        = 20
	tailSize       = 32 + 4 + 4 + 8 // MD, M', L, beta
)

// Sign implements [esp32ds.Peripheral] as esp_ds_sign does. Where the chip
// returns a result beside an error, so does the model: with
// esp32ds.ErrInvalidPadding, as ESP-IDF v5.3 leaves it. Where the chip would
// compute nonsense from parameters whose digest is right, the result is nonsense.
func (c *Chip) Sign(ctx context.Context, block int, params, message []byte) ([]byte, error) {
	if !c.busy.TryLock() {
		return nil, esp32ds.ErrBusy
	}
	defer c.busy.Unlock()
	key, fault, err := c.start(ctx, block)
	if err != nil {
		return nil, err
	}
	if fault.Hang {
		<-ctx.Done()
		return nil, esp32ds.ErrTimeout
	}
	if fault.Err != nil {
		return nil, fault.Err
	}
	result, err := c.compute(key, params, message)
	if fault.Corrupt != nil && result != nil {
		result = fault.Corrupt(result)
	}
	return result, err
}

// start takes the next fault and the key that the HMAC peripheral passes on.
func (c *Chip) start(ctx context.Context, block int) (key [32]byte, fault Fault, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.up(ctx); err != nil {
		return key, fault, err
	}
	if block < 0 || block >= esp32ds.KeyBlocks {
		return key, fault, esp32ds.ErrInvalidArg
	}
	if len(c.faults) > 0 {
		fault, c.faults = c.faults[0], c.faults[1:]
	}
	if p := c.registers.block(block).Purpose; p != esp32ds.PurposeDS && p != purposeDownAll {
		return key, fault, esp32ds.ErrHMACFail
	}
	c.signatures++
	return c.registers.Keys[block], fault, nil
}

func (c *Chip) compute(hmacKey [32]byte, params, message []byte) ([]byte, error) {
	width := c.kind.MaxBits() / 8
	if width == 0 || len(params) != cOffset+3*width+tailSize {
		return nil, esp32ds.ErrInvalidArg
	}
	size := 4 * (int(binary.LittleEndian.Uint32(params)&0xff) + 1)
	if params[1]|params[2]|params[3] != 0 || size > width || (size != 128 && size != 256 && size != 384 && size != 512) {
		return nil, esp32ds.ErrInvalidArg
	}
	if len(message) != size {
		return nil, esp32ds.ErrInvalidArg
	}
	plain := decrypt(hmacKey, params)
	y, m, rb := plain[:width], plain[width:2*width], plain[2*width:3*width]
	md, mPrime, length, beta := plain[3*width:][:32], plain[3*width+32:][:4], plain[3*width+36:][:4], plain[3*width+40:]

	sum := sha256.Sum256(slices.Concat(y, m, rb, mPrime, length, params[ivOffset:cOffset]))
	if !bytes.Equal(md, sum[:]) {
		return nil, esp32ds.ErrInvalidDigest
	}
	// The hardware goes by the length inside; software copies by the one
	// outside.
	inner := min(4*(int(length[0])+1), width)
	z := exponentiate(message, y[:inner], m[:inner], rb[:inner], binary.LittleEndian.Uint32(mPrime))
	result := make([]byte, size)
	copy(result, z)
	if !bytes.Equal(beta, bytes.Repeat([]byte{8}, 8)) {
		return result, esp32ds.ErrInvalidPadding
	}
	return result, nil
}

func decrypt(hmacKey [32]byte, params []byte) []byte {
	h := hmac.New(sha256.New, hmacKey[:])
	h.Write(bytes.Repeat([]byte{0xff}, 32))
	block, _ := aes.NewCipher(h.Sum(nil))
	plain := make([]byte, len(params)-cOffset)
	cipher.NewCBCDecrypter(block, params[ivOffset:cOffset]).CryptBlocks(plain, params[cOffset:])
	return plain
}

// exponentiate returns x^y mod m as the RSA accelerator does, which needs
// rb = R² mod m and mPrime = -1/m mod 2^32 with R = 2^(8 * the operands' bytes).
// It spares the accelerator's Montgomery steps; constants that do not fit spoil
// the result.
func exponentiate(x, y, m, rb []byte, mPrime uint32) []byte {
	modulus := number(m)
	if modulus.Sign() == 0 {
		return make([]byte, len(m))
	}
	z := new(big.Int).Exp(number(x), number(y), modulus)
	square := new(big.Int).Lsh(big.NewInt(1), uint(16*len(m)))
	fit := square.Mod(square, modulus).Cmp(number(rb)) == 0 && binary.LittleEndian.Uint32(m)*mPrime == 1<<32-1
	if !fit {
		z.Mul(z, number(rb)).Add(z, big.NewInt(int64(mPrime))).Mod(z, modulus)
	}
	out := z.FillBytes(make([]byte, len(m)))
	slices.Reverse(out)
	return out
}

// number reads a little-endian number.
func number(b []byte) *big.Int {
	b = bytes.Clone(b)
	slices.Reverse(b)
	return new(big.Int).SetBytes(b)
}
