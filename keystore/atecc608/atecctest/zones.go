package atecctest

import "bytes"

// Zones, and the bits of param1 of Read and Write.
const (
	zoneConfig  = 0
	zoneOTP     = 1
	zoneData    = 2
	zoneMask    = 3
	block32     = 0x80
	encrypted   = 0x40
	writeUnused = 0x3c
	readUnused  = 0x7c
)

// locate returns the zone's bytes from the address on. For zoneData it also
// tells the slot.
func (c *Chip) locate(zone byte, address uint16) (from []byte, offset, slot int, ok bool) {
	word := int(address&7) * 4
	var all []byte
	switch zone {
	case zoneConfig:
		if address&^0x1f != 0 {
			return nil, 0, 0, false
		}
		offset, all = int(address>>3)*32+word, c.config[:]
	case zoneOTP:
		if address&^0x0f != 0 {
			return nil, 0, 0, false
		}
		offset, all = int(address>>3)*32+word, c.otp[:]
	case zoneData:
		if address&0x80 != 0 {
			return nil, 0, 0, false
		}
		slot = int(address >> 3 & 0xf)
		offset, all = int(address>>8)*32+word, c.slots[slot]
	}
	if offset >= len(all) {
		return nil, 0, 0, false
	}
	return all[offset:], offset, slot, true
}

func (c *Chip) read32or4(p packet) ([]byte, byte) {
	zone := p.p1 & zoneMask
	address := p.p2
	if p.p1&block32 != 0 {
		address &^= 7 // the word does not matter
	}
	from, _, slot, ok := c.locate(zone, address)
	if p.p1&readUnused != 0 || zone == 3 || len(p.data) != 0 || !ok {
		return nil, statusParse
	}
	size := 4
	if p.p1&block32 != 0 {
		size = 32
	}
	out := make([]byte, size) // past the zone's end: zeros
	copy(out, from)
	switch zone {
	case zoneConfig:
		return out, statusOK
	case zoneOTP:
		if !c.dataLocked() {
			return nil, statusExec
		}
		return out, statusOK
	}
	config := c.slotConfig(slot)
	switch {
	case !c.dataLocked() || c.keyConfig(slot).private():
		return nil, statusExec
	case !config.secret():
		return out, statusOK
	case !config.encryptRead() || size != 32:
		return nil, statusExec
	}
	if !c.sessionKey(config.readKey()) {
		return nil, statusExec
	}
	xor(out, c.temp.value[:])
	c.temp = tempKey{}
	return out, statusOK
}

// sessionKey reports whether TempKey is a random nonce mixed with the key in
// that slot, as encrypted reads and writes need.
func (c *Chip) sessionKey(slot int) bool {
	t := &c.temp
	return t.valid && t.genDig && !t.fixed && !t.noMAC && int(t.keyID) == slot
}

func xor(dst, src []byte) {
	for i := range dst {
		dst[i] ^= src[i]
	}
}

func (c *Chip) writeZone(p packet) ([]byte, byte) {
	zone := p.p1 & zoneMask
	to, offset, slot, ok := c.locate(zone, p.p2)
	if p.p1&writeUnused != 0 || zone == 3 || !ok {
		return nil, statusParse
	}
	size := 4
	if p.p1&block32 != 0 {
		size = 32
	}
	withMAC := len(p.data) == size+keySize
	if len(p.data) != size && !withMAC || withMAC && size != 32 {
		return nil, statusParse
	}
	value := bytes.Clone(p.data[:size])
	switch zone {
	case zoneConfig:
		return c.writeConfig(p, to, offset, value)
	case zoneOTP:
		if !c.configLocked() || c.dataLocked() || size != 32 || withMAC {
			return nil, statusExec
		}
	case zoneData:
		if status := c.mayWrite(slot, size, p.p1&encrypted != 0); status != statusOK {
			return nil, status
		}
		if p.p1&encrypted != 0 {
			if !withMAC {
				return nil, statusParse
			}
			if !c.openWrite(p, slot, value, p.data[size:]) {
				return nil, statusExec
			}
		} else if withMAC {
			return nil, statusParse
		}
	}
	copy(to, value) // what would fall past the end is ignored
	if zone == zoneData && c.isPublicKey(slot) && c.keyConfig(slot).pubInfo() {
		c.setValidity(slot, keyInvalidated)
	}
	return nil, statusOK
}

// writeConfig writes to the configuration zone: bytes 0 to 15 and 84 to 87
// never, the others until it is locked.
func (c *Chip) writeConfig(p packet, to []byte, offset int, value []byte) ([]byte, byte) {
	end := offset + len(value)
	switch {
	case p.p1&encrypted != 0 || len(p.data) != len(value) || end > len(c.config):
		return nil, statusParse
	case offset < 16 || offset < 88 && end > 84:
		return nil, statusParse
	case c.configLocked():
		return nil, statusExec
	}
	copy(to, value)
	return nil, statusOK
}

// mayWrite applies the locks and WriteConfig to a slot.
func (c *Chip) mayWrite(slot, size int, isEncrypted bool) byte {
	config := c.slotConfig(slot)
	switch {
	case !c.configLocked() || c.slotLocked(slot) || c.keyConfig(slot).private():
		return statusExec
	case !c.dataLocked():
		if size != 32 {
			return statusExec
		}
	case config.writeNever() || config.writeEncrypt() != isEncrypted:
		return statusExec
	case config.secret() && size != 32:
		return statusExec
	}
	return statusOK
}

// openWrite decrypts the value in place and checks its MAC.
func (c *Chip) openWrite(p packet, slot int, value, mac []byte) bool {
	if !c.sessionKey(c.slotConfig(slot).writeKey()) {
		c.temp = tempKey{}
		return false
	}
	session := c.temp.value[:keySize]
	xor(value, session)
	want := c.hash(session, p.header(), c.serialTail(), make([]byte, 25), value)
	c.temp = tempKey{}
	return bytes.Equal(want, mac)
}

func (c *Chip) lock(p packet) ([]byte, byte) {
	if p.p1&0x40 != 0 || len(p.data) != 0 {
		return nil, statusParse
	}
	checkCRC := p.p1&0x80 == 0
	slot := int(p.p1 >> 2 & 0xf)
	switch p.p1 & 3 {
	case 0: // configuration zone
		if slot != 0 {
			return nil, statusParse
		}
		if c.configLocked() || checkCRC && p.p2 != crc16(c.config[:]) {
			return nil, statusExec
		}
		c.config[cfgLockConfig] = 0
	case 1: // data and OTP zones
		if slot != 0 {
			return nil, statusParse
		}
		if !c.configLocked() || c.dataLocked() || checkCRC && p.p2 != c.dataCRC() {
			return nil, statusExec
		}
		c.config[cfgLockData] = 0
	case 2: // one slot
		if !c.configLocked() || !c.keyConfig(slot).lockable() || c.slotLocked(slot) {
			return nil, statusExec
		}
		c.config[cfgSlotLocked+slot/8] &^= 1 << (slot % 8)
	default:
		return nil, statusParse
	}
	return nil, statusOK
}

func (c *Chip) dataCRC() uint16 {
	all := bytes.Join(c.slots[:], nil)
	return crc16(append(all, c.otp[:]...))
}

func (c *Chip) updateExtra(p packet) ([]byte, byte) {
	if p.p1 > 1 || p.p2 > 0xff || len(p.data) != 0 {
		return nil, statusParse
	}
	extra := &c.config[cfgUserExtra+int(p.p1)]
	if *extra != 0 { // each can be set once
		return nil, statusExec
	}
	*extra = byte(p.p2)
	return nil, statusOK
}

func (c *Chip) counterCommand(p packet) ([]byte, byte) {
	if p.p1 > 1 || p.p2 > 1 || len(p.data) != 0 {
		return nil, statusParse
	}
	n := c.counter(int(p.p2))
	if p.p1 == 1 {
		if n >= maxCounter {
			return nil, statusExec
		}
		n++
		c.setCounter(int(p.p2), n)
	}
	return []byte{byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24)}, statusOK
}
