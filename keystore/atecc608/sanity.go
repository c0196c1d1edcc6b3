package atecc608

import "fmt"

// What of a configuration would make a chip useless for ever, and what is only
// worth a warning.

// signs reports whether some slot could come to hold a key that signs.
func (c *Config) signs() bool {
	for slot := 0; slot < numSlots; slot++ {
		if c.cannotSign(slot) == "" && c.SlotConfig(slot)&(slotGenKey|slotPrivWrite) != 0 {
			return true
		}
	}
	return false
}

// counterValid reports whether a counter's eight bytes are ones that a chip
// would have there. Two unary halves of 16 bits take turns, each with the number
// of its turns in binary (cryptoauthlib, calib_write.c,
// calib_write_config_counter).
func (c *Config) counterValid(n int) bool {
	b := [8]byte(c[cfgCounters+8*n:])
	turns := uint32(b[4])<<8 | uint32(b[5])
	for used := uint32(0); used < 32; used++ {
		if v := turns*32 + used; v <= maxCounter && b == encodeCounter(v) {
			return true
		}
	}
	return false
}

const maxCounter = 1<<21 - 1 // of a monotonic counter

func encodeCounter(v uint32) [8]byte {
	var late uint32 // the second half is 16 behind
	if v >= 16 {
		late = v - 16
	}
	first, second := uint16(0xffff>>(v%32)), uint16(0xffff>>(late%32))
	return [8]byte{
		byte(first >> 8), byte(first), byte(second >> 8), byte(second),
		byte(v / 32 >> 8), byte(v / 32), byte(late / 32 >> 8), byte(late / 32),
	}
}

// reservedBits are those that cryptoauthlib's calib_device.h gives no meaning,
// but for bit 3 of ChipOptions, which Microchip's own test configuration sets.
var reservedBits = [...]struct {
	at   int
	mask byte
	name string
}{
	{cfgReserved17, 0xff, "byte 17"},
	{cfgCountMatch, 0x0e, "bit 1, 2 or 3 of CountMatch (byte 18)"},
	{cfgVolatileKey, 0x70, "bit 4, 5 or 6 of VolatileKeyPermission (byte 69)"},
	{cfgSecureBoot, 0xe4, "bit 2, 5, 6 or 7 of SecureBoot (bytes 70 and 71)"},
	{cfgChipOptions, 0xf0, "one of the bits 4 to 7 of ChipOptions (bytes 90 and 91)"},
}

// reserved names something reserved that is set; "": nothing is.
func (c *Config) reserved() string {
	for _, r := range reservedBits {
		if c[r.at]&r.mask != 0 {
			return r.name
		}
	}
	for at := cfgReserved75; at < cfgUserExtra; at++ {
		if c[at] != 0 {
			return fmt.Sprintf("byte %d", at)
		}
	}
	switch c[cfgChipMode] & clockDivider {
	case 0, dividerM1, dividerM2:
	default:
		return fmt.Sprintf("the clock divider 0x%02x in ChipMode (byte 19), of which only 0x00, 0x28 and 0x68 are known,", c[cfgChipMode]&clockDivider)
	}
	for slot := 0; slot < numSlots; slot++ {
		if c.KeyConfig(slot)&keyReserved != 0 {
			return fmt.Sprintf("bit 13 of KeyConfig of slot %d", slot)
		}
	}
	return ""
}

// chipWarnings are about the chip as a whole: they hold if the byte, masked, is
// that value, or is not.
var chipWarnings = [...]struct {
	at          int
	mask, value byte
	unless      bool
	text        string
}{
	{cfgChipMode, 0x02, 0, true, "the inputs have TTL levels (ChipMode bit 1): the bus must suit them"},
	{cfgChipMode, 0x04, 0, true, "the watchdog acts after 13 s instead of 1.3 s (ChipMode bit 2)"},
	{cfgChipMode, clockDivider, 0, true, "the clock is divided (ChipMode): signing takes up to 0.7 s"},
	{cfgUseLock, 0x0f, 0x0a, false, "UseLock (byte 68) is on: what it guards works only after an authorisation"},
	{cfgVolatileKey, 0x80, 0, true, "VolatileKeyPermission (byte 69) is on: some keys work only after it is given"},
	{cfgSecureBoot, 0x03, 0, true, "SecureBoot (bytes 70 and 71) is on: the chip may refuse keys until the host's code is verified"},
	{cfgChipOptions, 0x01, 0, true, "the chip tests itself at every power-on (ChipOptions bit 0): it wakes after 20 ms"},
	{cfgChipOptions, 0x08, 0, true, "bit 3 of ChipOptions has no public meaning"},
	{cfgChipOptions + 1, 0x03, 0, true, "ChipOptions forbid or encrypt the results of ECDH"},
}

// warnings lists what is worth a second look before it holds for ever.
func (c *Config) warnings() []string {
	var all []string
	for _, w := range chipWarnings {
		if (c[w.at]&w.mask == w.value) != w.unless {
			all = append(all, w.text)
		}
	}
	if _, on := c.CountMatch(); on {
		all = append(all, "CountMatch (byte 18) is on: the limit in its slot must be written before the data zone is locked")
	}
	for slot := 0; slot < numSlots; slot++ {
		for _, text := range c.slotWarnings(slot) {
			all = append(all, fmt.Sprintf("slot %d: %s", slot, text))
		}
	}
	return all
}

// slotWarnings are about one slot.
func (c *Config) slotWarnings(slot int) []string {
	s, k := c.SlotConfig(slot), c.KeyConfig(slot)
	if !k.Private() {
		if kind := k.kind(); kind != keyP256 && kind != keyAES && kind != keyOther {
			return []string{fmt.Sprintf("its key type %d (KeyConfig %04x) is reserved", kind, uint16(k))}
		}
		return nil
	}
	if why := c.cannotSign(slot); why != "" {
		return []string{"it is for a private key that this driver cannot use: " + why}
	}
	var all []string
	switch {
	case s&(slotGenKey|slotPrivWrite) == 0:
		all = append(all, "no key can get into it once the data zone is locked")
	case k.Lockable():
		all = append(all, "anyone on the bus can replace its key until the slot is locked: for the enrolment key Generate, then LockSlot")
	default:
		all = append(all, "anyone on the bus can replace its key, and the slot can never be locked")
	}
	if s.ECDH() {
		all = append(all, "its key agrees on secrets (ECDH) for anyone on the bus")
	}
	if s&slotInternalSign != 0 {
		all = append(all, "its key also signs messages that the chip makes of its own contents")
	}
	if s.LimitedUse() {
		all = append(all, "its uses are limited by counter 0, and then it is worthless")
	}
	if k&keyPersist != 0 {
		all = append(all, "its key works only while the persistent latch is set")
	}
	if !s.Secret() {
		all = append(all, "it is for a private key but not marked secret (SlotConfig bit 7)")
	}
	return all
}
