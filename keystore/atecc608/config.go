package atecc608

import (
	"fmt"
	"io/fs"
)

// Config is the content of the configuration zone (data sheet section 2.2;
// cryptoauthlib, struct atecc608_config). Multi-byte values in it are
// little-endian.
type Config [128]byte

const (
	cfgRevision     = 4
	cfgI2CAddress   = 16
	cfgReserved17   = 17
	cfgCountMatch   = 18
	cfgChipMode     = 19
	cfgSlotConfig   = 20
	cfgCounters     = 52
	cfgUseLock      = 68
	cfgVolatileKey  = 69
	cfgSecureBoot   = 70
	cfgReserved75   = 75 // to 83
	cfgUserExtra    = 84
	cfgUserExtraAdd = 85
	cfgLockData     = 86
	cfgLockConfig   = 87
	cfgSlotLocked   = 88
	cfgChipOptions  = 90
	cfgKeyConfig    = 96

	unlocked = 0x55
	numSlots = 16
)

// Serial returns the chip's serial number. The first two bytes and the last are
// the same in all chips of a kind.
func (c *Config) Serial() [9]byte {
	var sn [9]byte
	copy(sn[:4], c[0:4])
	copy(sn[4:], c[8:13])
	return sn
}

// Revision returns the chip's revision: 00 00 60 02 or 00 00 60 03.
func (c *Config) Revision() [4]byte { return [4]byte(c[4:8]) }

// I2CAddress returns the address that the chip has after the next sleep, 7 bits.
func (c *Config) I2CAddress() uint16 {
	if c[cfgChipMode]&1 != 0 && c[cfgUserExtraAdd] != 0 {
		return uint16(c[cfgUserExtraAdd] >> 1)
	}
	return uint16(c[cfgI2CAddress] >> 1)
}

// Locked reports whether the configuration zone is locked.
func (c *Config) Locked() bool { return c[cfgLockConfig] != unlocked }

// DataLocked reports whether the data and OTP zones are locked. Slots stay
// writable then as far as their SlotConfig says.
func (c *Config) DataLocked() bool { return c[cfgLockData] != unlocked }

// SlotLocked reports whether that slot is locked for good. slot is 0 to 15.
func (c *Config) SlotLocked(slot int) bool { return c[cfgSlotLocked+slot/8]>>(slot%8)&1 == 0 }

// SlotConfig returns the slot's SlotConfig. slot is 0 to 15.
func (c *Config) SlotConfig(slot int) SlotConfig {
	return SlotConfig(uint16(c[cfgSlotConfig+2*slot]) | uint16(c[cfgSlotConfig+2*slot+1])<<8)
}

// KeyConfig returns the slot's KeyConfig. slot is 0 to 15.
func (c *Config) KeyConfig(slot int) KeyConfig {
	return KeyConfig(uint16(c[cfgKeyConfig+2*slot]) | uint16(c[cfgKeyConfig+2*slot+1])<<8)
}

// CountMatch returns the slot that holds the limit of counter 0, if there is
// one. Without it the counter ends at 2,097,151.
func (c *Config) CountMatch() (slot int, enabled bool) {
	return int(c[cfgCountMatch] >> 4), c[cfgCountMatch]&1 != 0
}

// slowness is the clock divider as a column of the table of times.
func (c *Config) slowness() int {
	switch c[cfgChipMode] & clockDivider {
	case dividerM1:
		return 1
	case dividerM2:
		return 2
	}
	return 0
}

// The clock divider in ChipMode (cryptoauthlib, calib_command.h). Commands that
// calculate take longer with each.
const (
	clockDivider = 0xf8
	dividerM1    = 0x28
	dividerM2    = 0x68
)

// Bits of SlotConfig and KeyConfig of a private key (cryptoauthlib,
// calib_device.h; but GenKey and PrivWrite are where every chip has them, not
// where that header's unused constants say).
const (
	slotExternalSign SlotConfig = 0x0001
	slotInternalSign SlotConfig = 0x0002
	slotECDH         SlotConfig = 0x0004
	slotECDHToSlot   SlotConfig = 0x0008
	slotLimitedUse   SlotConfig = 0x0020
	slotEncryptRead  SlotConfig = 0x0040
	slotSecret       SlotConfig = 0x0080
	slotGenKey       SlotConfig = 0x2000
	slotPrivWrite    SlotConfig = 0x4000

	keyPrivate   KeyConfig = 0x0001
	keyPubInfo   KeyConfig = 0x0002
	keyTypeShift           = 2
	keyP256      KeyConfig = 4
	keyAES       KeyConfig = 6
	keyOther     KeyConfig = 7
	keyLockable  KeyConfig = 0x0020
	keyReqAuth   KeyConfig = 0x0080
	keyPersist   KeyConfig = 0x1000
	keyReserved  KeyConfig = 0x2000
)

// SlotConfig says what may be done with a slot. Methods named for a private key
// mean something else for other slots.
type SlotConfig uint16

// ExternalSign reports whether a private key signs digests that the host gives.
func (s SlotConfig) ExternalSign() bool { return s&slotExternalSign != 0 }

// ECDH reports whether a private key agrees on secrets.
func (s SlotConfig) ECDH() bool { return s&slotECDH != 0 }

// ECDHToSlot reports whether such a secret is stored in the next slot rather
// than given out.
func (s SlotConfig) ECDHToSlot() bool { return s&slotECDHToSlot != 0 }

// LimitedUse reports whether each use counts against counter 0.
func (s SlotConfig) LimitedUse() bool { return s&slotLimitedUse != 0 }

// EncryptRead reports whether the slot is only read encrypted.
func (s SlotConfig) EncryptRead() bool { return s&slotEncryptRead != 0 }

// Secret reports whether the slot cannot be read in clear.
func (s SlotConfig) Secret() bool { return s&slotSecret != 0 }

// GenKey reports whether a private key may be made when the data zone is locked.
func (s SlotConfig) GenKey() bool { return s&slotGenKey != 0 }

// KeyConfig says what kind of key a slot holds.
type KeyConfig uint16

// Private reports whether the slot holds a private key of an elliptic curve.
func (k KeyConfig) Private() bool { return k&keyPrivate != 0 }

// PubInfo reports whether a private key's public key can be had.
func (k KeyConfig) PubInfo() bool { return k&keyPubInfo != 0 }

// P256 reports whether the key is one on P-256.
func (k KeyConfig) P256() bool { return k.kind() == keyP256 }

func (k KeyConfig) kind() KeyConfig { return k >> keyTypeShift & 7 }

// Lockable reports whether the slot can be locked by itself.
func (k KeyConfig) Lockable() bool { return k&keyLockable != 0 }

// ReqAuth reports whether a use needs a prior authorisation with another key.
func (k KeyConfig) ReqAuth() bool { return k&keyReqAuth != 0 }

// WithSigningKeys returns the configuration with these slots, 0 to 7, set up for
// keys that sign and do nothing else: P-256, made in the chip, also when the data
// zone is locked; the slot lockable. SlotConfig is 0x2081, KeyConfig 0x0033.
// Another slot is fs.ErrInvalid.
//
// Until the slot is locked, whoever can write to the bus can replace the key.
// For the enrolment key, the device's identity: Generate, then [Chip.LockSlot].
// A slot of its own for the device key stays open, so that the key can be
// renewed. [Config.WithKeys] has other uses.
func (c Config) WithSigningKeys(slots ...int) (Config, error) {
	return c.WithKeys(KeyUse{}, slots...)
}

// KeyUse is what a key may be used for besides signing digests that the host
// gives. The zero value is nothing else.
type KeyUse struct {
	// ECDH: the key agrees on secrets too, and gives them out in clear
	// ([Chip.ECDH]).
	ECDH bool
	// AlwaysRenewable: the slot can never be locked, so that nobody can keep
	// the key from being made anew, nor it from being replaced. It is for a
	// device key in a slot of its own, never for the enrolment key.
	AlwaysRenewable bool
}

// WithKeys is [Config.WithSigningKeys] for keys of which more is asked.
func (c Config) WithKeys(use KeyUse, slots ...int) (Config, error) {
	slotConfig, keyConfig := slotExternalSign|slotSecret|slotGenKey, keyPrivate|keyPubInfo|keyP256<<keyTypeShift|keyLockable
	if use.ECDH {
		slotConfig |= slotECDH
	}
	if use.AlwaysRenewable {
		keyConfig &^= keyLockable
	}
	for _, slot := range slots {
		if slot < 0 || slot > 7 {
			return Config{}, fmt.Errorf("atecc608: slot %d for a signing key, need 0 to 7: %w", slot, fs.ErrInvalid)
		}
		c[cfgSlotConfig+2*slot], c[cfgSlotConfig+2*slot+1] = byte(slotConfig), byte(slotConfig>>8)
		c[cfgKeyConfig+2*slot], c[cfgKeyConfig+2*slot+1] = byte(keyConfig), byte(keyConfig>>8)
	}
	return c, nil
}

// signingSlot says why the slot cannot hold a signing key, if it cannot.
func (c *Config) signingSlot(slot int) error {
	switch {
	case !c.Locked():
		return ErrConfigUnlocked
	case !c.DataLocked():
		return ErrDataUnlocked
	}
	if why := c.cannotSign(slot); why != "" {
		return fmt.Errorf("slot %d (SlotConfig %04x, KeyConfig %04x): %s: %w", slot, uint16(c.SlotConfig(slot)), uint16(c.KeyConfig(slot)), why, ErrSlot)
	}
	return nil
}

// cannotSign says what stands in SlotConfig and KeyConfig against a signing key.
func (c *Config) cannotSign(slot int) string {
	s, k := c.SlotConfig(slot), c.KeyConfig(slot)
	switch {
	case !k.Private() || !k.P256():
		return "it is not for a P-256 private key"
	case !s.ExternalSign():
		return "it may not sign"
	case !k.PubInfo():
		return "its public key cannot be had"
	case k.ReqAuth():
		return "its key needs an authorisation first"
	}
	return ""
}
