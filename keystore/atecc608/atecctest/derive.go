package atecctest

import (
	"bytes"
	"crypto/aes"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"math/big"
)

// Param1 of KDF: two bits of source, three of target, two of algorithm. Param2
// has the source slot in its lower byte and the target slot in its upper.
const (
	kdfSource            = 0x03
	kdfFromTempKey       = 0
	kdfFromTempKeyUpper  = 1
	kdfFromSlot          = 2
	kdfFromAltKey        = 3
	kdfTarget            = 0x1c
	kdfToTempKey         = 0x00
	kdfToTempKeyUpper    = 0x04
	kdfToSlot            = 0x08
	kdfToAltKey          = 0x0c
	kdfToOutput          = 0x10
	kdfToOutputEncrypted = 0x14
	kdfAlgorithm         = 0x60
	kdfPRF               = 0x00
	kdfAES               = 0x20
	kdfHKDF              = 0x40
)

// kdf derives a key: with the PRF of TLS 1.2, with AES, or with the extract
// step of HKDF. Four bytes of details come before the message.
func (c *Chip) kdf(p packet) ([]byte, byte) {
	if p.p1&0x80 != 0 || len(p.data) < 4 {
		return nil, statusParse
	}
	details, message := binary.LittleEndian.Uint32(p.data), p.data[4:]
	if !c.dataLocked() {
		return nil, statusExec
	}
	var out []byte
	status := byte(statusParse)
	switch p.p1 & kdfAlgorithm {
	case kdfPRF:
		out, status = c.kdfPRF(p, details, message)
	case kdfAES:
		out, status = c.kdfAES(p, message)
	case kdfHKDF:
		out, status = c.kdfHKDF(p, details, message)
	}
	if status != statusOK {
		return nil, status
	}
	return c.kdfStore(p, out)
}

// kdfKey returns size bytes of the source key.
func (c *Chip) kdfKey(p packet, size int) ([]byte, bool) {
	t := &c.temp
	switch p.p1 & kdfSource {
	case kdfFromTempKey:
		if !t.valid || t.private || size > 32 && !t.is64 {
			return nil, false
		}
		return t.value[:size], true
	case kdfFromTempKeyUpper:
		if !t.valid || !t.is64 || size > 32 {
			return nil, false
		}
		return t.value[32 : 32+size], true
	case kdfFromSlot:
		slot := int(p.p2 & 0xf)
		if c.keyConfig(slot).private() || size > slotSize(slot) || !c.use(slot) {
			return nil, false
		}
		return c.slots[slot][:size], true
	}
	if size > len(c.alt) {
		return nil, false
	}
	return c.alt[:size], true
}

func (c *Chip) kdfPRF(p packet, details uint32, seed []byte) ([]byte, byte) {
	if len(seed) != int(details>>24) {
		return nil, statusParse
	}
	key, ok := c.kdfKey(p, 16+16*int(details&3))
	if !ok {
		return nil, statusExec
	}
	size := 32
	if details&0x100 != 0 {
		size = 64
	}
	mac := func(parts ...[]byte) []byte {
		h := hmac.New(sha256.New, key)
		for _, part := range parts {
			h.Write(part)
		}
		return h.Sum(nil)
	}
	var out []byte // P_SHA256 (RFC 5246 section 5)
	for a := mac(seed); len(out) < size; a = mac(a) {
		out = append(out, mac(a, seed)...)
	}
	return out, statusOK
}

func (c *Chip) kdfAES(p packet, message []byte) ([]byte, byte) {
	if len(message) != 16 {
		return nil, statusParse
	}
	key, ok := c.kdfKey(p, 16)
	if !ok || c.config[cfgAES]&1 == 0 || c.chipOptions()&4 == 0 {
		return nil, statusExec
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, statusExec
	}
	out := make([]byte, 32)
	block.Encrypt(out, message)
	return out, statusOK
}

func (c *Chip) kdfHKDF(p packet, details uint32, message []byte) ([]byte, byte) {
	const fromTempKey, fromInput, fromInputWithIV = 1, 2, 3 // where the message is
	const zeroKey = 4
	if len(message) != int(details>>24) {
		return nil, statusParse
	}
	key := make([]byte, 32)
	if details&zeroKey == 0 {
		var ok bool
		if key, ok = c.kdfKey(p, 32); !ok {
			return nil, statusExec
		}
	}
	switch details & 3 {
	case fromInput:
	case fromInputWithIV: // two bytes of the message are fixed by the configuration
		at := int(c.config[cfgSecureBoot+2])
		if at+2 > len(message) || !bytes.Equal(message[at:at+2], c.config[cfgSecureBoot+3:cfgSecureBoot+5]) {
			return nil, statusExec
		}
	case fromTempKey:
		if !c.temp.valid || c.temp.private {
			return nil, statusExec
		}
		message = c.temp.value[:32]
	default: // in a slot: no public source says which
		return nil, statusParse
	}
	h := hmac.New(sha256.New, key)
	h.Write(message)
	return h.Sum(nil), statusOK
}

func (c *Chip) kdfStore(p packet, out []byte) ([]byte, byte) {
	t := &c.temp
	policy := c.chipOptions() >> 10 & 3
	switch p.p1 & kdfTarget {
	case kdfToTempKey:
		*t = tempKey{valid: true, is64: len(out) == 64}
		copy(t.value[:], out)
	case kdfToTempKeyUpper:
		if len(out) != 32 || !t.valid {
			return nil, statusExec
		}
		copy(t.value[32:], out)
		t.is64 = true
	case kdfToSlot:
		slot := int(p.p2 >> 8 & 0xf)
		if c.keyConfig(slot).private() || c.slotLocked(slot) || len(out) > slotSize(slot) {
			return nil, statusExec
		}
		copy(c.slots[slot], out)
	case kdfToAltKey:
		c.alt = out
	case kdfToOutput:
		return c.protect(out, false, policy)
	case kdfToOutputEncrypted:
		return c.protect(out, true, policy)
	default:
		return nil, statusParse
	}
	return nil, statusOK
}

// Param1 of SecureBoot, and the two lower bits of SecureBootConfig.
const (
	bootFull      = 5
	bootFullStore = 6
	bootFullCopy  = 7
	bootProhibit  = 0x40
	bootMAC       = 0x80

	bootDisabled      = 0
	bootStoredSig     = 2
	bootStoredDigest  = 3
	bootSignatureSize = 64
)

// secureBoot verifies the digest of a host's code with the public key in one
// slot, and may remember digest or signature in another.
func (c *Chip) secureBoot(p packet) ([]byte, byte) {
	mode := p.p1 & 7
	config := uint16(c.config[cfgSecureBoot]) | uint16(c.config[cfgSecureBoot+1])<<8
	stored := int(config & 3)
	wantData := 32 + bootSignatureSize
	if mode == bootFullStore {
		wantData = 32
	}
	if p.p1&^(7|bootProhibit|bootMAC) != 0 || mode < bootFull || len(p.data) != wantData {
		return nil, statusParse
	}
	memory, keySlot := int(config>>8&0xf), int(config>>12)
	if !c.dataLocked() || stored == bootDisabled || c.prohibited || !c.isPublicKey(keySlot) ||
		mode != bootFull && stored < bootStoredSig {
		return nil, statusExec
	}
	digest, signature := bytes.Clone(p.data[:32]), p.data[32:]
	var hashedKey []byte
	if p.p1&bootMAC != 0 {
		io, enabled := c.ioProtectionKey()
		if !enabled || !c.temp.valid || c.temp.private {
			return nil, statusExec
		}
		hashedKey = c.hash(io, c.temp.value[:32])
		c.temp = tempKey{}
		xor(digest, hashedKey)
	}
	var ok bool
	if mode == bootFullStore && stored == bootStoredDigest {
		ok = bytes.Equal(digest, c.slots[memory][:32])
	} else {
		if mode == bootFullStore {
			signature = c.slots[memory][:min(bootSignatureSize, slotSize(memory))]
		}
		key, onCurve := parsePublic(c.storedPublic(keySlot))
		ok = onCurve && len(signature) == bootSignatureSize &&
			ecdsa.Verify(key, digest, new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:]))
	}
	c.prohibited = c.prohibited || p.p1&bootProhibit != 0
	if !ok {
		return nil, statusMismatch
	}
	if mode == bootFullCopy {
		if stored == bootStoredDigest {
			copy(c.slots[memory], digest)
		} else {
			copy(c.slots[memory], signature)
		}
	}
	if hashedKey == nil {
		return nil, statusOK
	}
	return c.hash(hashedKey, digest, signature, p.header()), statusOK
}
