package atecc608

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io/fs"
	"time"
)

// Param1 of the commands.
const (
	blockOf32 = 0x80 // Read, Write: 32 bytes, not 4

	zoneConfig = 0
	zoneOTP    = 1
	zoneData   = 2

	infoKeyValid = 1

	nonceToDigest = 0x43 // pass 32 bytes through into the message digest buffer

	genKeyPublic = 0x00
	genKeyCreate = 0x04

	signDigest   = 0xa0 // an external message, in the message digest buffer
	verifyDigest = 0x22

	shaStart  = 0
	shaUpdate = 1
	shaEnd    = 0xc2 // the digest goes to the output only
	shaBlock  = 64

	counterRead      = 0
	counterIncrement = 1

	lockConfig = 0x00
	lockData   = 0x81 // without a CRC
	lockSlot   = 0x02
)

// curveP256 is param2 of Verify.
const curveP256 = 4

// read returns 32 bytes, or 4.
func (l *call) read(zone byte, address uint16, size int) ([]byte, error) {
	p1 := zone
	if size == 32 {
		p1 |= blockOf32
	}
	return l.exec(command{opcode: opRead, p1: p1, p2: address, reply: size})
}

func (l *call) write(zone byte, address uint16, data []byte) error {
	p1 := zone
	if len(data) == 32 {
		p1 |= blockOf32
	}
	_, err := l.exec(command{opcode: opWrite, p1: p1, p2: address, data: data})
	return err
}

// configAddress and slotAddress make param2 of Read and Write from a byte
// offset.
func configAddress(offset int) uint16 { return uint16(offset / 4) }

func slotAddress(slot, offset int) uint16 {
	return uint16(offset/32<<8 | slot<<3 | offset%32/4)
}

// readConfig reads the whole configuration zone, which is known from then on.
func (l *call) readConfig() (Config, error) {
	var config Config
	for offset := 0; offset < len(config); offset += 32 {
		block, err := l.read(zoneConfig, configAddress(offset), 32)
		if err != nil {
			return Config{}, fmt.Errorf("read the configuration zone: %w", err)
		}
		copy(config[offset:], block)
	}
	l.config, l.known = config, true
	l.setSlowness(config.slowness())
	return config, nil
}

// setSlowness notes the clock divider, with which all that was learnt of the
// chip's times changes.
func (l *call) setSlowness(slowness int) {
	if l.slowness != slowness {
		l.slowness, l.typical = slowness, nil
	}
}

// Revision asks the chip for its revision: 00 00 60 02 is an ATECC608A,
// 00 00 60 03 a 608B.
func (c *Chip) Revision(ctx context.Context) ([4]byte, error) {
	var revision [4]byte
	err := c.do(ctx, "revision", repeatable, func(l *call) error {
		first, err := l.read(zoneConfig, configAddress(cfgRevision), 4)
		copy(revision[:], first)
		return err
	})
	return revision, err
}

// Random fills p with random numbers of the chip. Until the configuration zone
// is locked the chip returns a constant: then the error is [ErrConfigUnlocked].
func (c *Chip) Random(ctx context.Context, p []byte) error {
	return c.do(ctx, "random", repeatable, func(l *call) error {
		for n := 0; n < len(p); {
			r, err := l.exec(command{opcode: opRandom, reply: 32})
			if err != nil {
				return err
			}
			if isConstant(r) {
				return ErrConfigUnlocked
			}
			n += copy(p[n:], r)
		}
		return nil
	})
}

// isConstant recognises what a blank chip returns for a random number.
func isConstant(r []byte) bool {
	for i, b := range r {
		want := byte(0xff)
		if i%4 >= 2 {
			want = 0
		}
		if b != want {
			return false
		}
	}
	return true
}

// PublicKey returns the public key of the private key in the slot, 0 to 15. The
// error is fs.ErrNotExist if the chip says that there is no key, [ErrSlot],
// [ErrConfigUnlocked] or [ErrDataUnlocked] if the configuration stands against
// it.
func (c *Chip) PublicKey(ctx context.Context, slot int) (PublicKey, error) {
	var key PublicKey
	err := c.do(ctx, fmt.Sprintf("public key of slot %d", slot), repeatable, func(l *call) error {
		if err := l.checkSlot(slot); err != nil {
			return err
		}
		var err error
		key, err = l.publicKey(slot)
		return err
	})
	return key, err
}

// checkSlot says why the slot cannot hold a signing key, if it cannot.
func (l *call) checkSlot(slot int) error {
	if slot < 0 || slot >= numSlots {
		return fmt.Errorf("no slot %d, need 0 to 15: %w", slot, fs.ErrInvalid)
	}
	if err := l.refresh(); err != nil {
		return err
	}
	return l.config.signingSlot(slot)
}

// refresh reads the configuration again if it may have changed: with both zones
// locked, what counts of it is for ever.
func (l *call) refresh() error {
	if l.known && l.config.Locked() && l.config.DataLocked() {
		return nil
	}
	_, err := l.readConfig()
	return err
}

// publicKey asks for the public key first, because that works with any key that
// is there. Only when the chip refuses does it ask whether there is one.
func (l *call) publicKey(slot int) (PublicKey, error) {
	xy, err := l.exec(command{opcode: opGenKey, p1: genKeyPublic, p2: uint16(slot), reply: 64})
	if err == nil {
		return parsePublic(xy)
	}
	if !errors.Is(err, StatusExecution) {
		return PublicKey{}, err
	}
	valid, infoErr := l.keyValid(slot)
	switch {
	case infoErr != nil:
		return PublicKey{}, infoErr
	case !valid:
		l.empty[slot] = l.clock.Now()
		return PublicKey{}, fmt.Errorf("slot %d holds no key: %w", slot, fs.ErrNotExist)
	}
	return PublicKey{}, fmt.Errorf("slot %d holds a key, but: %w: %w", slot, ErrSlot, err)
}

// keyValid asks whether the slot holds a key.
func (l *call) keyValid(slot int) (bool, error) {
	valid, err := l.exec(command{opcode: opInfo, p1: infoKeyValid, p2: uint16(slot), reply: 4})
	return err == nil && valid[0] != 0, err
}

// parsePublic takes X and Y, 32 bytes each, big-endian.
func parsePublic(xy []byte) (PublicKey, error) {
	key := PublicKey(xy)
	if !key.onCurve() {
		return PublicKey{}, &failure{err: errors.New("the chip's public key is not on P-256")}
	}
	return key, nil
}

// GenerateKey makes a private key in the slot, 0 to 15, and returns its public
// key once it is stored. It never overwrites: an existing key is fs.ErrExist.
// The chip and the slot must be fit for signing, as for [Chip.PublicKey], and
// the slot must allow keys to be made, else the error is [ErrSlot].
func (c *Chip) GenerateKey(ctx context.Context, slot int) (PublicKey, error) {
	var key PublicKey
	begun := false
	// Trouble after the command was sent leaves open whether there is a key
	// now. Repeating starts with looking, in the same turn: a key that was not
	// there before is the one just made.
	err := c.do(ctx, fmt.Sprintf("generate key in slot %d", slot), repeatable, func(l *call) error {
		if err := l.checkSlot(slot); err != nil {
			return err
		}
		if begun || l.lock != nil || l.clock.Now().Sub(l.empty[slot]) > justNow {
			found, err := l.publicKey(slot)
			if err == nil && begun {
				key = found
				return nil
			}
			if err == nil {
				err = fs.ErrExist
			}
			if !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		if !l.config.SlotConfig(slot).GenKey() || l.config.SlotLocked(slot) {
			return fmt.Errorf("slot %d is empty and no key may be made in it: %w", slot, ErrSlot)
		}
		begun, l.empty[slot] = true, time.Time{}
		xy, err := l.exec(command{opcode: opGenKey, p1: genKeyCreate, p2: uint16(slot), reply: 64})
		if err != nil {
			return err
		}
		key, err = parsePublic(xy)
		return err
	})
	return key, err
}

// justNow is how long a slot that was found empty, by [Chip.PublicKey] as a
// rule, need not be asked again before a key is made in it. Where other
// processes use the chip, [Options].Lock says so and it is asked again.
const justNow = time.Second

// loadDigest puts the digest where Sign and Verify take it from. It stays there
// while the chip is awake or idle.
func (l *call) loadDigest(digest []byte) error {
	_, err := l.exec(command{opcode: opNonce, p1: nonceToDigest, data: digest})
	return err
}

// sign signs the digest with the key in the slot.
func (l *call) sign(slot int, digest []byte) (signature, error) {
	if err := l.loadDigest(digest); err != nil {
		// Nothing has been signed yet, and no use of the key was counted.
		return signature{}, fmt.Errorf("load the digest: %w", notExecuted(err))
	}
	out, err := l.exec(command{opcode: opSign, p1: signDigest, p2: uint16(slot), reply: 64})
	if err != nil {
		return signature{}, err
	}
	return signature(out), nil
}

// Verify has the chip verify an ECDSA signature in ASN.1 of a SHA-256 digest
// with a P-256 key that need not be the chip's: a [PublicKey] or an
// *ecdsa.PublicKey. [ErrSignature]: it is wrong; [ErrDigest]: the digest
// has not 32 bytes; fs.ErrInvalid: the key is not one on P-256.
func (c *Chip) Verify(ctx context.Context, key crypto.PublicKey, digest, signature []byte) error {
	const step = "verify"
	if len(digest) != 32 {
		return fmt.Errorf("atecc608: %s: digest of %d bytes: %w", step, len(digest), ErrDigest)
	}
	public, err := publicKeyOf(key)
	if err != nil {
		return fmt.Errorf("atecc608: %s: %w", step, err)
	}
	parsed, ok := parseSignature(signature)
	if !ok {
		return fmt.Errorf("atecc608: %s: malformed: %w", step, ErrSignature)
	}
	return c.do(ctx, step, repeatable, func(l *call) error { return l.verifyInChip(public, digest, parsed) })
}

// verify checks a signature by what Options.ECDSA says. [ErrSignature]: it is
// wrong; a failure: that could not be found out.
func (l *call) verify(key PublicKey, digest []byte, s *signature) error {
	if l.ecdsa == nil {
		return l.verifyInChip(key, digest, s)
	}
	if !l.ecdsa.Verify(key, digest, *s) {
		return ErrSignature
	}
	return nil
}

func (l *call) verifyInChip(key PublicKey, digest []byte, s *signature) error {
	if err := l.loadDigest(digest); err != nil {
		return fmt.Errorf("load the digest: %w", err)
	}
	data := append(append(make([]byte, 0, 128), s[:]...), key[:]...)
	_, err := l.exec(command{opcode: opVerify, p1: verifyDigest, p2: curveP256, data: data})
	switch {
	case errors.Is(err, StatusMismatch):
		return fmt.Errorf("%w: %w", ErrSignature, err)
	case errors.Is(err, StatusExecution):
		if err = l.unlocked(err); err == StatusExecution { // the digest was lost meanwhile
			return &failure{err: err}
		}
	}
	return err
}

// ECDH returns the secret that the private key in the slot and the peer's
// P-256 key share: the X coordinate, 32 bytes. peer is a [PublicKey], an
// *ecdh.PublicKey or an *ecdsa.PublicKey. [ErrSlot] if the
// slot may not do that, or keeps the secret in the chip; fs.ErrInvalid for
// another curve.
func (c *Chip) ECDH(ctx context.Context, slot int, peer crypto.PublicKey) ([]byte, error) {
	const compatible = 0 // the slot's configuration says where the secret goes
	var secret []byte
	err := c.do(ctx, fmt.Sprintf("ECDH with slot %d", slot), repeatable, func(l *call) error {
		public, err := publicKeyOf(peer)
		if err != nil {
			return fmt.Errorf("the peer's key: %w", err)
		}
		if slot < 0 || slot >= numSlots {
			return fmt.Errorf("no slot %d, need 0 to 15: %w", slot, fs.ErrInvalid)
		}
		if err := l.refresh(); err != nil {
			return err
		}
		s, k := l.config.SlotConfig(slot), l.config.KeyConfig(slot)
		if !k.Private() || !k.P256() || !s.ECDH() || s.ECDHToSlot() {
			return fmt.Errorf("slot %d gives out no shared secret: %w", slot, ErrSlot)
		}
		out, err := l.exec(command{opcode: opECDH, p1: compatible, p2: uint16(slot), data: public[:], reply: 32})
		if err != nil {
			return l.unlocked(err)
		}
		secret = append([]byte(nil), out...)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return secret, nil
}

// Counter returns one of the chip's two monotonic counters, 0 or 1: 0 to
// 2,097,151.
func (c *Chip) Counter(ctx context.Context, n int) (uint32, error) {
	var value uint32
	err := c.do(ctx, fmt.Sprintf("counter %d", n), repeatable, func(l *call) error {
		var err error
		value, err = l.counter(n, counterRead)
		return err
	})
	return value, err
}

// Increment adds one to a counter and returns the new value. It adds one, or
// with an error perhaps none, but never two. At the end of its range the error
// is [StatusExecution].
func (c *Chip) Increment(ctx context.Context, n int) (uint32, error) {
	var value uint32
	begun := false
	err := c.do(ctx, fmt.Sprintf("increment counter %d", n), repeatable, func(l *call) error {
		before, err := l.counter(n, counterRead)
		if err != nil {
			return err
		}
		if begun && before > value { // the reply was lost, the command was not
			value = before
			return nil
		}
		value, begun = before, true
		after, err := l.counter(n, counterIncrement)
		if err == nil {
			value = after
		}
		return err
	})
	if err != nil {
		return 0, err
	}
	return value, nil
}

func (l *call) counter(n int, mode byte) (uint32, error) {
	if n != 0 && n != 1 {
		return 0, fmt.Errorf("no such counter, need 0 or 1: %w", fs.ErrInvalid)
	}
	b, err := l.exec(command{opcode: opCounter, p1: mode, p2: uint16(n), reply: 4})
	if err != nil {
		return 0, err
	}
	return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24, nil
}

// SHA256 has the chip calculate a digest. It is slow; its use is to check the
// chip, or the host.
func (c *Chip) SHA256(ctx context.Context, message []byte) ([32]byte, error) {
	var digest [32]byte
	err := c.do(ctx, "SHA-256", repeatable, func(l *call) error {
		if _, err := l.exec(command{opcode: opSHA, p1: shaStart}); err != nil {
			return err
		}
		rest := message
		for ; len(rest) >= shaBlock; rest = rest[shaBlock:] {
			if _, err := l.exec(command{opcode: opSHA, p1: shaUpdate, p2: shaBlock, data: rest[:shaBlock]}); err != nil {
				return err
			}
		}
		out, err := l.exec(command{opcode: opSHA, p1: shaEnd, p2: uint16(len(rest)), data: rest, reply: 32})
		copy(digest[:], out)
		return err
	})
	return digest, err
}

// SlotSize returns the size of a slot in bytes: 36 for slots 0 to 7, 416 for
// slot 8, 72 for slots 9 to 15; 0 for any other.
func SlotSize(slot int) int {
	switch {
	case slot < 0 || slot >= numSlots:
		return 0
	case slot < 8:
		return 36
	case slot == 8:
		return 416
	}
	return 72
}

// ReadSlot fills p from the slot's bytes at offset; both the offset and the
// length are multiples of 4. The slot must be one that is read in clear, and
// the data zone locked: else the error is [ErrSlot] or [ErrDataUnlocked]. A
// range that is not in the slot is fs.ErrInvalid.
func (c *Chip) ReadSlot(ctx context.Context, slot, offset int, p []byte) error {
	return c.do(ctx, fmt.Sprintf("read slot %d", slot), repeatable, func(l *call) error {
		return l.readSlot(slot, offset, p)
	})
}

func (l *call) readSlot(slot, offset int, p []byte) error {
	if err := checkRange(slot, offset, len(p), 4); err != nil {
		return err
	}
	for len(p) > 0 {
		size := 4
		if offset%32 == 0 && len(p) >= 32 {
			size = 32
		}
		data, err := l.read(zoneData, slotAddress(slot, offset), size)
		if err != nil {
			return l.whyNot(slot, err)
		}
		copy(p, data)
		p, offset = p[size:], offset+size
	}
	return nil
}

// WriteSlot writes to the slot at offset, in clear; both the offset and the
// length are multiples of 4, or of 32 as long as the data zone is not locked.
// The slot must allow it, else the error is [ErrSlot]. A power cut leaves some
// blocks written and others not.
func (c *Chip) WriteSlot(ctx context.Context, slot, offset int, data []byte) error {
	return c.do(ctx, fmt.Sprintf("write slot %d", slot), repeatable, func(l *call) error {
		if err := checkRange(slot, offset, len(data), 4); err != nil {
			return err
		}
		for rest, at := data, offset; len(rest) > 0; {
			size := 4
			if at%32 == 0 && len(rest) >= 32 {
				size = 32
			}
			if err := l.write(zoneData, slotAddress(slot, at), rest[:size]); err != nil {
				return l.whyNot(slot, err)
			}
			rest, at = rest[size:], at+size
		}
		return nil
	})
}

func checkRange(slot, offset, length, unit int) error {
	if offset < 0 || offset%unit != 0 || length%unit != 0 || length > SlotSize(slot)-offset {
		return fmt.Errorf("%d bytes at %d: need multiples of %d within the slot's %d bytes: %w", length, offset, unit, SlotSize(slot), fs.ErrInvalid)
	}
	return nil
}

// whyNot adds to the chip's refusal what its configuration says.
func (l *call) whyNot(slot int, err error) error {
	err = l.unlocked(err)
	if err != StatusExecution {
		return err
	}
	return fmt.Errorf("SlotConfig %04x: %w: %w", uint16(l.config.SlotConfig(slot)), ErrSlot, err)
}

// unlocked adds to a bare refusal that a zone is not locked, if that is so, and
// passes on any other error.
func (l *call) unlocked(err error) error {
	if err != StatusExecution {
		return err
	}
	if err := l.refresh(); err != nil {
		return err
	}
	switch {
	case !l.config.Locked():
		return fmt.Errorf("%w: %w", ErrConfigUnlocked, err)
	case !l.config.DataLocked():
		return fmt.Errorf("%w: %w", ErrDataUnlocked, err)
	}
	return err
}
