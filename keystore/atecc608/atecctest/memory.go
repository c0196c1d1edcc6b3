package atecctest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"math/bits"
)

// Offsets into the configuration zone.
const (
	cfgAES          = 13
	cfgAddress      = 16
	cfgCountMatch   = 18
	cfgChipMode     = 19
	cfgSlotConfig   = 20
	cfgCounter      = 52
	cfgVolatileKey  = 69
	cfgSecureBoot   = 70
	cfgUserExtra    = 84
	cfgUserExtraAdd = 85
	cfgLockData     = 86
	cfgLockConfig   = 87
	cfgSlotLocked   = 88
	cfgChipOptions  = 90
	cfgKeyConfig    = 96

	unlocked = 0x55
)

const (
	numSlots   = 16
	keySize    = 32
	maxCounter = 1<<21 - 1 // of a monotonic counter
)

// memory is what survives a power cut.
type memory struct {
	config [128]byte
	otp    [64]byte
	slots  [numSlots][]byte
	public [numSlots][]byte // of keys whose private half is not known: SetPublicKey

	// These last while the chip is supplied, asleep too.
	latch      bool // the persistent latch
	prohibited bool // SecureBoot is prohibited until the next power cycle
}

func (m *memory) clone() *memory {
	c := *m
	for i, slot := range m.slots {
		c.slots[i] = bytes.Clone(slot)
	}
	return &c
}

// tear leaves of each change since before what a write that was cut short
// leaves: the bytes are erased, and the second half of them is written.
func (m *memory) tear(before *memory) {
	for i := range m.slots {
		tear(m.slots[i], before.slots[i])
	}
	tear(m.config[:cfgCounter], before.config[:cfgCounter])
	tear(m.config[cfgCounter+16:], before.config[cfgCounter+16:])
	tear(m.otp[:], before.otp[:])
}

func tear(now, before []byte) {
	first, last := 0, len(now)
	for first < last && now[first] == before[first] {
		first++
	}
	for last > first && now[last-1] == before[last-1] {
		last--
	}
	for i := first; i < first+(last-first)/2; i++ {
		now[i] = 0xff
	}
}

// volatile is what sleep loses and idle keeps.
type volatile struct {
	temp     tempKey
	digest   []byte // message digest buffer: 32 or 64 bytes, or none
	alt      []byte // alternate key buffer
	sha      *shaState
	authSlot int // the slot whose key CheckMac has confirmed, plus 1
}

type tempKey struct {
	value   [64]byte
	valid   bool
	is64    bool
	fixed   bool // SourceFlag: the nonce was given, not random
	genDig  bool
	genKey  bool
	noMAC   bool
	private bool // an ECC private key made by GenKey
	keyID   byte
}

func slotSize(slot int) int {
	switch {
	case slot < 8:
		return 36
	case slot == 8:
		return 416
	}
	return 72
}

// erase fills the data and OTP zones as they are in a new chip.
func (m *memory) erase() {
	for i := range m.otp {
		m.otp[i] = 0xff
	}
	for s := range m.slots {
		m.slots[s] = make([]byte, slotSize(s))
		for i := range m.slots[s] {
			m.slots[s][i] = 0xff
		}
	}
}

func (m *memory) chipMode() byte     { return m.config[cfgChipMode] }
func (m *memory) configLocked() bool { return m.config[cfgLockConfig] != unlocked }
func (m *memory) dataLocked() bool   { return m.config[cfgLockData] != unlocked }

func (m *memory) slotLocked(slot int) bool {
	return m.config[cfgSlotLocked+slot/8]>>(slot%8)&1 == 0
}

// i2cAddress follows ChipMode bit 0: the address may be moved once, by UserExtraAdd.
func (m *memory) i2cAddress() uint16 {
	if m.chipMode()&1 != 0 && m.config[cfgUserExtraAdd] != 0 {
		return uint16(m.config[cfgUserExtraAdd] >> 1)
	}
	return uint16(m.config[cfgAddress] >> 1)
}

// serial returns SN[0] to SN[8].
func (m *memory) serial() [9]byte {
	var sn [9]byte
	copy(sn[:4], m.config[0:4])
	copy(sn[4:], m.config[8:13])
	return sn
}

func (m *memory) chipOptions() uint16 {
	return uint16(m.config[cfgChipOptions]) | uint16(m.config[cfgChipOptions+1])<<8
}

// ioProtectionKey returns the key that encrypts what passes between chip and
// host, if one is configured.
func (m *memory) ioProtectionKey() ([]byte, bool) {
	options := m.chipOptions()
	return m.slots[options>>12][:keySize], options&2 != 0
}

// slotConfig and keyConfig are the two words that say what a slot is for.
type (
	slotConfig uint16
	keyConfig  uint16
)

func (m *memory) slotConfig(slot int) slotConfig {
	return slotConfig(uint16(m.config[cfgSlotConfig+2*slot]) | uint16(m.config[cfgSlotConfig+2*slot+1])<<8)
}

func (m *memory) keyConfig(slot int) keyConfig {
	return keyConfig(uint16(m.config[cfgKeyConfig+2*slot]) | uint16(m.config[cfgKeyConfig+2*slot+1])<<8)
}

func (s slotConfig) readKey() int       { return int(s & 0xf) }
func (s slotConfig) externalSign() bool { return s&1 != 0 } // of a private key
func (s slotConfig) internalSign() bool { return s&2 != 0 }
func (s slotConfig) ecdh() bool         { return s&4 != 0 }
func (s slotConfig) ecdhToSlot() bool   { return s&8 != 0 }
func (s slotConfig) noMAC() bool        { return s&0x10 != 0 }
func (s slotConfig) limitedUse() bool   { return s&0x20 != 0 }
func (s slotConfig) encryptRead() bool  { return s&0x40 != 0 }
func (s slotConfig) secret() bool       { return s&0x80 != 0 }
func (s slotConfig) writeKey() int      { return int(s >> 8 & 0xf) }
func (s slotConfig) genKey() bool       { return s&0x2000 != 0 } // of a private key
func (s slotConfig) derive() bool       { return s&0x2000 != 0 } // of any other
func (s slotConfig) privWrite() bool    { return s&0x4000 != 0 }
func (s slotConfig) writeEncrypt() bool { return s&0x4000 != 0 }
func (s slotConfig) writeNever() bool   { return s&0x4000 == 0 && s&0xa000 != 0 }
func (s slotConfig) deriveCreate() bool { return s&0x1000 != 0 }
func (s slotConfig) deriveMAC() bool    { return s&0x8000 != 0 }

const (
	keyP256 = 4
	keyAES  = 6
)

func (k keyConfig) private() bool  { return k&1 != 0 }
func (k keyConfig) pubInfo() bool  { return k&2 != 0 }
func (k keyConfig) kind() int      { return int(k >> 2 & 7) }
func (k keyConfig) lockable() bool { return k&0x20 != 0 }
func (k keyConfig) reqAuth() bool  { return k&0x80 != 0 } // used only after CheckMac with authKey
func (k keyConfig) authKey() int   { return int(k >> 8 & 0xf) }
func (k keyConfig) latched() bool  { return k&0x1000 != 0 } // used only when the persistent latch is set

// isPrivateKey reports whether the slot is for a P-256 private key.
func (m *memory) isPrivateKey(slot int) bool {
	k := m.keyConfig(slot)
	return k.private() && k.kind() == keyP256
}

func (m *memory) isPublicKey(slot int) bool {
	k := m.keyConfig(slot)
	return !k.private() && k.kind() == keyP256 && slot >= 8
}

// privateKey returns the key in a slot, if there is one.
func (m *memory) privateKey(slot int) (*ecdsa.PrivateKey, bool) {
	if !m.isPrivateKey(slot) {
		return nil, false
	}
	return parsePrivate(m.slots[slot][4:36])
}

func parsePrivate(scalar []byte) (*ecdsa.PrivateKey, bool) {
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), scalar)
	return key, err == nil
}

// publicBytes returns X and Y, 32 bytes each.
func publicBytes(key *ecdsa.PublicKey) []byte {
	point, err := key.Bytes()
	if err != nil {
		return make([]byte, 64) // not reached: the key is on the curve
	}
	return point[1:]
}

func parsePublic(xy []byte) (*ecdsa.PublicKey, bool) {
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append([]byte{4}, xy...))
	return key, err == nil
}

// storedPublic returns X and Y of the public key in a slot: each is preceded by
// four bytes of padding.
func (m *memory) storedPublic(slot int) []byte {
	s := m.slots[slot]
	return append(append([]byte(nil), s[4:36]...), s[40:72]...)
}

// Validity of a stored public key: the upper four bits of its slot.
const (
	keyValidated   = 0x5
	keyInvalidated = 0xa
)

func (m *memory) setValidity(slot int, v byte) { m.slots[slot][0] = m.slots[slot][0]&0x0f | v<<4 }
func (m *memory) validated(slot int) bool      { return m.slots[slot][0]>>4 == keyValidated }

// counter decodes a monotonic counter: two unary halves that take turns, each
// with the count of its turns in binary, so that few bits change at a time.
func (m *memory) counter(i int) uint32 {
	b := m.config[cfgCounter+8*i:]
	used := func(hi, lo byte) uint32 {
		return uint32(16 - bits.OnesCount8(hi) - bits.OnesCount8(lo))
	}
	turns := func(hi, lo byte) uint32 { return uint32(hi)<<8 | uint32(lo) }
	if a := used(b[0], b[1]); a < 16 {
		return 32*turns(b[4], b[5]) + a
	}
	return 32*turns(b[6], b[7]) + 16 + used(b[2], b[3])
}

func (m *memory) setCounter(i int, v uint32) {
	b := m.config[cfgCounter+8*i:]
	put := func(at int, word uint16) { b[at], b[at+1] = byte(word>>8), byte(word) }
	var later uint32 // the second half lags 16 behind
	if v >= 16 {
		later = v - 16
	}
	put(0, uint16(0xffff>>(v%32)))
	put(2, uint16(0xffff>>(later%32)))
	put(4, uint16(v/32))
	put(6, uint16(later/32))
}

// use reports whether a key may be used, and counts the use if its uses are
// limited by counter 0.
func (c *Chip) use(slot int) bool {
	k := c.keyConfig(slot)
	if k.latched() && !c.latch || k.reqAuth() && c.authSlot != k.authKey()+1 {
		return false
	}
	if !c.slotConfig(slot).limitedUse() {
		return true
	}
	limit := uint32(maxCounter)
	if match := c.config[cfgCountMatch]; match&1 != 0 {
		s := c.slots[match>>4] // the limit, twice
		limit = min(limit, littleEndian(s[0:4]), littleEndian(s[4:8]))
	}
	n := c.counter(0)
	if n >= limit {
		return false
	}
	c.setCounter(0, n+1)
	return true
}

func littleEndian(b []byte) uint32 {
	return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
}
