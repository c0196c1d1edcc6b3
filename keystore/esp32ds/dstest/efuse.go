package dstest

import (
	"context"

	"github.com/quarklink-go/quarklink/keystore/esp32ds"
)

// Registers are the eFuses that matter, as they were burned: read protection
// hides keys from [Chip.ReadEFuses], not from here. The layout is that of the
// ESP32-S2, S3 and C3.
type Registers struct {
	// BLOCK0 words 0 to 5, of EFUSE_RD_WR_DIS_REG and those that follow:
	// WR_DIS is word 0, RD_DIS word 1 bits 0 to 6, KEY_PURPOSE_0 and 1 word 2
	// from bit 24, KEY_PURPOSE_2 to 5 word 3 from bit 0, 4 bits each.
	BLOCK0 [6]uint32
	Keys   [esp32ds.KeyBlocks][32]byte
}

// Bits of WR_DIS: those of purposes and keys follow each other.
const (
	writeDisReadDis = 0
	writeDisPurpose = 8
	writeDisKey     = 23
)

func purposePlace(block int) (word, shift int) {
	if block < 2 {
		return 2, 24 + 4*block
	}
	return 3, 4 * (block - 2)
}

func bit(n int) uint32 { return 1 << n }

// Registers returns what is burned.
func (c *Chip) Registers() Registers {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.registers
}

// SetRegisters makes the chip one in which this is burned.
func (c *Chip) SetRegisters(r Registers) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.registers = r
}

// SetVirtual makes the eFuses virtual, starting as a copy of the real ones, or
// real again. The peripheral takes its keys from the real ones all the same.
func (c *Chip) SetVirtual(virtual bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.virtual = nil
	if virtual {
		r := c.registers
		c.virtual = &r
	}
}

// fuses returns the eFuses that software sees.
func (c *Chip) fuses() *Registers {
	if c.virtual != nil {
		return c.virtual
	}
	return &c.registers
}

// ReadEFuses implements [esp32ds.EFuse].
func (c *Chip) ReadEFuses(ctx context.Context) (esp32ds.EFuseState, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.up(ctx); err != nil {
		return esp32ds.EFuseState{}, err
	}
	r := c.fuses()
	state := esp32ds.EFuseState{
		Virtual:              c.virtual != nil,
		ReadProtectionLocked: r.BLOCK0[0]&bit(writeDisReadDis) != 0,
	}
	for i := range state.Blocks {
		state.Blocks[i] = r.block(i)
	}
	return state, nil
}

func (r *Registers) block(i int) esp32ds.KeyBlock {
	word, shift := purposePlace(i)
	b := esp32ds.KeyBlock{
		Purpose:        uint8(r.BLOCK0[word] >> shift & 0xf),
		ReadProtected:  r.BLOCK0[1]&bit(i) != 0,
		WriteProtected: r.BLOCK0[0]&bit(writeDisKey+i) != 0,
		PurposeLocked:  r.BLOCK0[0]&bit(writeDisPurpose+i) != 0,
	}
	if !b.ReadProtected {
		b.Key = r.Keys[i]
	}
	return b
}

// BurnKey implements [esp32ds.EFuse]. It burns word by word: first the key, then
// BLOCK0 in ascending order.
func (c *Chip) BurnKey(ctx context.Context, block int, key [32]byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.up(ctx); err != nil {
		return err
	}
	if block < 0 || block >= esp32ds.KeyBlocks {
		return esp32ds.ErrInvalidArg
	}
	r := c.fuses()
	if r.block(block) != (esp32ds.KeyBlock{}) {
		return esp32ds.ErrInvalidState
	}
	for i := 0; i < len(key); i += 4 {
		if err := c.step(); err != nil {
			return err
		}
		copy(r.Keys[block][i:i+4], key[i:])
	}
	return c.protect(r, block)
}

// Protect implements [esp32ds.EFuse].
func (c *Chip) Protect(ctx context.Context, block int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.up(ctx); err != nil {
		return err
	}
	if block < 0 || block >= esp32ds.KeyBlocks {
		return esp32ds.ErrInvalidArg
	}
	return c.protect(c.fuses(), block)
}

func (c *Chip) protect(r *Registers, block int) error {
	var wanted [6]uint32
	word, shift := purposePlace(block)
	wanted[0] = bit(writeDisKey+block) | bit(writeDisPurpose+block)
	wanted[1] = bit(block)
	wanted[word] |= esp32ds.PurposeDS << shift

	locked := r.BLOCK0[0]
	for i := range wanted {
		missing := wanted[i] &^ r.BLOCK0[i]
		if missing == 0 {
			continue
		}
		if i == 1 && locked&bit(writeDisReadDis) != 0 || i == word && locked&bit(writeDisPurpose+block) != 0 {
			return esp32ds.ErrFail
		}
		if err := c.step(); err != nil {
			return err
		}
		r.BLOCK0[i] |= missing
	}
	if r.block(block).Purpose != esp32ds.PurposeDS {
		return esp32ds.ErrFail // other bits were burned there before
	}
	return nil
}

// step counts one burned word.
func (c *Chip) step() error {
	if c.countdown == 0 {
		c.off = true
	}
	if c.off {
		return ErrPowerCut
	}
	if c.countdown > 0 {
		c.countdown--
	}
	return nil
}
