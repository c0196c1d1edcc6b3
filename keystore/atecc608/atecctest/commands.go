package atecctest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"io"
	"math/big"
)

// tempKeySlot in param2 stands for TempKey instead of a slot.
const tempKeySlot = 0xffff

func (c *Chip) execute(p packet) (data []byte, status byte) {
	switch p.opcode {
	case opInfo:
		return c.info(p)
	case opRead:
		return c.read32or4(p)
	case opWrite:
		return c.writeZone(p)
	case opLock:
		return c.lock(p)
	case opUpdateExtra:
		return c.updateExtra(p)
	case opCounter:
		return c.counterCommand(p)
	case opRandom:
		return c.randomCommand(p)
	case opNonce:
		return c.nonce(p)
	case opGenKey:
		return c.genKey(p)
	case opSign:
		return c.sign(p)
	case opVerify:
		return c.verify(p)
	case opECDH:
		return c.ecdh(p)
	case opSHA:
		return c.shaCommand(p)
	case opGenDig:
		return c.genDig(p)
	case opMAC:
		return c.mac(p)
	case opCheckMac:
		return c.checkMac(p)
	case opDeriveKey:
		return c.deriveKey(p)
	case opPrivWrite:
		return c.privWrite(p)
	case opAES:
		return c.aes(p)
	case opKDF:
		return c.kdf(p)
	case opSecureBoot:
		return c.secureBoot(p)
	case opSelfTest:
		return c.selfTest(p)
	}
	return nil, statusParse
}

// header is the command as MACs and digests contain it.
func (p packet) header() []byte {
	return []byte{p.opcode, p.p1, byte(p.p2), byte(p.p2 >> 8)}
}

// serialTail is SN[8], SN[0], SN[1], which all chips of a kind share.
func (c *Chip) serialTail() []byte {
	sn := c.serial()
	return []byte{sn[8], sn[0], sn[1]}
}

func (c *Chip) hash(parts ...[]byte) []byte {
	sum := sha256.Sum256(bytes.Join(parts, nil))
	return sum[:]
}

func (c *Chip) info(p packet) ([]byte, byte) {
	if len(p.data) != 0 {
		return nil, statusParse
	}
	one := func(b bool) []byte {
		if b {
			return []byte{1, 0, 0, 0}
		}
		return make([]byte, 4)
	}
	switch p.p1 {
	case 0: // revision
		return bytes.Clone(c.config[4:8]), statusOK
	case 1: // KeyValid
		if p.p2 >= numSlots {
			return nil, statusParse
		}
		slot := int(p.p2)
		if c.isPublicKey(slot) {
			_, onCurve := parsePublic(c.storedPublic(slot))
			return one(onCurve && (!c.keyConfig(slot).pubInfo() || c.validated(slot))), statusOK
		}
		_, valid := c.privateKey(slot)
		return one(valid || c.public[slot] != nil), statusOK
	case 2: // State
		t := &c.temp
		state := []byte{t.keyID, 0, 0, 0}
		for bit, set := range map[int]bool{4: t.fixed, 5: t.genDig, 6: t.genKey, 7: t.noMAC} {
			if set {
				state[0] |= 1 << bit
			}
		}
		if c.authSlot > 0 {
			state[1] = 4 | byte(c.authSlot-1)<<3
		}
		if t.valid {
			state[1] |= 0x80
		}
		return state, statusOK
	case 3: // GPIO: there is none with I2C
		return nil, statusExec
	case 4: // volatile key permission: the persistent latch
		permission := c.config[cfgVolatileKey]
		if p.p2&2 != 0 {
			if permission&0x80 == 0 || c.authSlot-1 != int(permission&0xf) {
				return nil, statusExec
			}
			c.latch = p.p2&1 != 0
		}
		return one(c.latch), statusOK
	}
	return nil, statusParse
}

// random returns 32 random bytes, or the fixed pattern of a chip whose
// configuration is not locked yet.
func (c *Chip) random() []byte {
	out := make([]byte, 32)
	if !c.configLocked() {
		for i := 0; i < len(out); i += 4 {
			out[i], out[i+1] = 0xff, 0xff
		}
		return out
	}
	if _, err := io.ReadFull(c.opts.Random, out); err != nil {
		return nil
	}
	return out
}

func (c *Chip) randomCommand(p packet) ([]byte, byte) {
	if p.p1 > 1 || p.p2 != 0 || len(p.data) != 0 {
		return nil, statusParse
	}
	out := c.random()
	if out == nil {
		return nil, statusRNG
	}
	return out, statusOK
}

// Param1 of Nonce.
const (
	noncePassThrough = 3
	nonce64          = 0x20
	nonceTarget      = 0xc0
	nonceToTempKey   = 0x00
	nonceToDigest    = 0x40
	nonceToAltKey    = 0x80

	nonceInput      = 20     // bytes of a random nonce's input
	nonceCalculated = 0x8000 // param2: from TempKey instead of the generator
)

func (c *Chip) nonce(p packet) ([]byte, byte) {
	if p.p1&3 != noncePassThrough {
		return c.randomNonce(p)
	}
	size := 32
	if p.p1&nonce64 != 0 {
		size = 64
	}
	if p.p1&0x1c != 0 || p.p2 != 0 || len(p.data) != size {
		return nil, statusParse
	}
	switch p.p1 & nonceTarget {
	case nonceToTempKey:
		c.temp = tempKey{valid: true, fixed: true, is64: size == 64}
		copy(c.temp.value[:], p.data)
	case nonceToDigest:
		c.digest = bytes.Clone(p.data)
	case nonceToAltKey:
		if size != 32 {
			return nil, statusParse
		}
		c.alt = bytes.Clone(p.data)
	default:
		return nil, statusParse
	}
	return nil, statusOK
}

func (c *Chip) randomNonce(p packet) ([]byte, byte) {
	if p.p1 > 1 || p.p2&^nonceCalculated != 0 || len(p.data) != nonceInput {
		return nil, statusParse
	}
	tail := []byte{opNonce, p.p1, 0}
	if p.p2&nonceCalculated != 0 {
		if !c.temp.valid {
			return nil, statusExec
		}
		sum := c.hash(c.temp.value[:32], p.data, tail)
		copy(c.temp.value[:], sum)
		c.temp.is64 = false
		return sum, statusOK
	}
	out := c.random()
	if out == nil {
		return nil, statusRNG
	}
	c.temp = tempKey{valid: true}
	copy(c.temp.value[:], c.hash(out, p.data, tail))
	return out, statusOK
}

// Param1 of GenKey.
const (
	genKeyPrivate      = 0x04
	genKeyDigest       = 0x08
	genKeyStoredDigest = 0x10
)

func (c *Chip) genKey(p packet) ([]byte, byte) {
	if p.p1&^(genKeyPrivate|genKeyDigest|genKeyStoredDigest) != 0 || p.p2 >= numSlots && p.p2 != tempKeySlot {
		return nil, statusParse
	}
	if !c.configLocked() {
		return nil, statusExec
	}
	if p.p1&genKeyStoredDigest != 0 {
		return c.digestStoredKey(p)
	}
	if len(p.data) != 0 && len(p.data) != 3 {
		return nil, statusParse
	}
	var key *ecdsa.PrivateKey
	var ok bool
	switch {
	case p.p1 == 0 && p.p2 < numSlots && c.public[p.p2] != nil:
		return bytes.Clone(c.public[p.p2]), statusOK
	case p.p2 == tempKeySlot:
		key, ok = c.tempPrivateKey(p.p1&genKeyPrivate != 0)
	case p.p1&genKeyPrivate != 0:
		key, ok = c.makeKey(int(p.p2))
	default:
		key, ok = c.privateKey(int(p.p2))
		ok = ok && c.keyConfig(int(p.p2)).pubInfo()
	}
	if !ok {
		return nil, statusExec
	}
	public := publicBytes(&key.PublicKey)
	if p.p1&genKeyDigest != 0 && !c.digestKey(p.header(), p.p2, public) {
		return nil, statusExec
	}
	return public, statusOK
}

func (c *Chip) tempPrivateKey(create bool) (*ecdsa.PrivateKey, bool) {
	if create {
		scalar := c.newScalar()
		if scalar == nil {
			return nil, false
		}
		c.temp = tempKey{valid: true, private: true}
		copy(c.temp.value[:], scalar)
	}
	if !c.temp.valid || !c.temp.private {
		return nil, false
	}
	return parsePrivate(c.temp.value[:32])
}

// makeKey makes a key in the slot. Until the data zone is locked WriteConfig
// does not matter.
func (c *Chip) makeKey(slot int) (*ecdsa.PrivateKey, bool) {
	if !c.isPrivateKey(slot) || c.slotLocked(slot) || c.dataLocked() && !c.slotConfig(slot).genKey() {
		return nil, false
	}
	scalar := c.newScalar()
	if scalar == nil {
		return nil, false
	}
	copy(c.slots[slot], make([]byte, 4))
	copy(c.slots[slot][4:], scalar)
	return parsePrivate(scalar)
}

// newScalar draws random numbers until one is a private key.
func (c *Chip) newScalar() []byte {
	for {
		scalar := c.random()
		if scalar == nil {
			return nil
		}
		if _, ok := parsePrivate(scalar); ok {
			return scalar
		}
	}
}

// digestKey mixes a public key into TempKey.
func (c *Chip) digestKey(header []byte, slot uint16, public []byte) bool {
	t := &c.temp
	if !t.valid || t.private {
		return false
	}
	copy(t.value[:], c.hash(t.value[:32], header, c.serialTail(), make([]byte, 25), public))
	t.genDig, t.genKey, t.keyID, t.is64 = false, true, byte(slot&0xf), false
	return true
}

func (c *Chip) digestStoredKey(p packet) ([]byte, byte) {
	slot := int(p.p2)
	if len(p.data) != 3 || slot >= numSlots {
		return nil, statusParse
	}
	if !c.dataLocked() || !c.isPublicKey(slot) {
		return nil, statusExec
	}
	header := append([]byte{opGenKey}, p.data...)
	if !c.digestKey(header, p.p2, c.storedPublic(slot)) {
		return nil, statusExec
	}
	return nil, statusOK
}

// Param1 of Sign and Verify.
const (
	signInvalidate = 0x01
	fromDigest     = 0x20 // the message is in the message digest buffer, not TempKey
	signSerial     = 0x40
	signExternal   = 0x80
)

// takeMessage returns the 32 bytes to sign or verify, which are spent.
func (c *Chip) takeMessage(mode byte) (message, buffer []byte, ok bool) {
	if mode&fromDigest != 0 {
		buffer = c.digest
		c.digest = nil
		if len(buffer) < 32 {
			return nil, nil, false
		}
		return buffer[:32], buffer, true
	}
	t := c.temp
	c.temp = tempKey{}
	return t.value[:32], nil, t.valid && !t.private
}

func (c *Chip) sign(p packet) ([]byte, byte) {
	if p.p1&^(signInvalidate|fromDigest|signSerial|signExternal) != 0 || p.p2 >= numSlots || len(p.data) != 0 {
		return nil, statusParse
	}
	slot := int(p.p2)
	key, ok := c.privateKey(slot)
	if !c.dataLocked() || !ok {
		return nil, statusExec
	}
	var digest []byte
	if p.p1&signExternal != 0 {
		if !c.slotConfig(slot).externalSign() {
			return nil, statusExec
		}
		digest, _, ok = c.takeMessage(p.p1)
	} else {
		if p.p1&fromDigest != 0 {
			return nil, statusParse
		}
		if !c.slotConfig(slot).internalSign() {
			return nil, statusExec
		}
		digest, ok = c.internalMessage(p)
	}
	if !ok || !c.use(slot) {
		return nil, statusExec
	}
	r, s, err := ecdsa.Sign(rand.Reader, key, digest)
	if err != nil {
		return nil, statusECC
	}
	out := make([]byte, 64)
	r.FillBytes(out[:32])
	s.FillBytes(out[32:])
	return out, statusOK
}

// internalMessage is the digest of TempKey and of what the chip knows of the
// key that TempKey was made with. TempKey is spent.
func (c *Chip) internalMessage(p packet) ([]byte, bool) {
	t := c.temp
	c.temp = tempKey{}
	if !t.valid || !t.genDig && !t.genKey {
		return nil, false
	}
	slot := int(t.keyID)
	sn := c.serial()
	var msg [55]byte
	copy(msg[:], t.value[:32])
	copy(msg[32:], p.header())
	copy(msg[36:], c.config[cfgSlotConfig+2*slot:][:2])
	copy(msg[38:], c.config[cfgKeyConfig+2*slot:][:2])
	msg[40] = t.keyID
	for bit, set := range map[int]bool{4: t.fixed, 5: t.genDig, 6: t.genKey, 7: t.noMAC} {
		if set {
			msg[40] |= 1 << bit
		}
	}
	msg[43] = sn[8]
	copy(msg[48:], sn[0:2])
	if p.p1&signSerial != 0 {
		copy(msg[44:], sn[4:8])
		copy(msg[50:], sn[2:4])
	}
	if !c.slotLocked(slot) {
		msg[52] = 1
	}
	if c.isPublicKey(slot) && c.keyConfig(slot).pubInfo() && c.validated(slot) {
		msg[53] = 1
	}
	return c.hash(msg[:]), true
}

// Param1 of Verify.
const (
	verifyMode       = 0x07
	verifyStored     = 0
	verifyExternal   = 2
	verifyValidate   = 3
	verifyInvalidate = 7
	verifyMAC        = 0x80

	curveP256 = 4 // param2 of an external verification
)

func (c *Chip) verify(p packet) ([]byte, byte) {
	mode := p.p1 & verifyMode
	wantData := map[byte]int{verifyStored: 64, verifyExternal: 128, verifyValidate: 64 + 19, verifyInvalidate: 64 + 19}
	size, known := wantData[mode]
	if !known || p.p1&^(verifyMode|fromDigest|verifyMAC) != 0 || len(p.data) != size {
		return nil, statusParse
	}
	if mode == verifyExternal && p.p2 != curveP256 || mode != verifyExternal && p.p2 >= numSlots {
		return nil, statusParse
	}
	if !c.dataLocked() && !(c.opts.VerifyUnlocked && mode == verifyExternal) {
		return nil, statusExec
	}
	slot := int(p.p2)
	nonce := c.digest // of the MAC, when the message is not in the buffer
	var message, buffer, public []byte
	var ok bool
	switch mode {
	case verifyExternal:
		public = p.data[64:]
		message, buffer, ok = c.takeMessage(p.p1)
	case verifyStored:
		if !c.isPublicKey(slot) || c.keyConfig(slot).pubInfo() && !c.validated(slot) {
			return nil, statusExec
		}
		public = c.storedPublic(slot)
		message, buffer, ok = c.takeMessage(p.p1)
	default:
		parent := c.slotConfig(slot).readKey()
		if !c.isPublicKey(slot) || !c.isPublicKey(parent) {
			return nil, statusExec
		}
		public = c.storedPublic(parent)
		message, ok = c.validationMessage(p)
	}
	key, onCurve := parsePublic(public)
	if !ok || !onCurve {
		return nil, statusExec
	}
	r, s := new(big.Int).SetBytes(p.data[:32]), new(big.Int).SetBytes(p.data[32:64])
	if !ecdsa.Verify(key, message, r, s) {
		return nil, statusMismatch
	}
	switch mode {
	case verifyValidate:
		c.setValidity(slot, keyValidated)
	case verifyInvalidate:
		c.setValidity(slot, keyInvalidated)
	}
	if p.p1&verifyMAC == 0 {
		return nil, statusOK
	}
	if p.p1&fromDigest != 0 {
		if len(buffer) != 64 {
			return nil, statusExec
		}
		nonce = buffer[32:]
	}
	io, enabled := c.ioProtectionKey()
	if !enabled || len(nonce) < 32 {
		return nil, statusExec
	}
	return c.hash(io, message, nonce[:32], p.data[:64], p.header()), statusOK
}

// validationMessage is what a validation authority signed to make the public
// key valid or invalid: TempKey holds the key's digest, made by GenKey.
func (c *Chip) validationMessage(p packet) ([]byte, bool) {
	t := c.temp
	c.temp = tempKey{}
	if !t.valid || !t.genKey || int(t.keyID) != int(p.p2) {
		return nil, false
	}
	other := p.data[64:]
	if invalidates := other[17]&1 != 0; invalidates != (p.p1&verifyMode == verifyInvalidate) {
		return nil, false
	}
	sn := c.serial()
	return c.hash(t.value[:32], []byte{opSign}, other[:10], sn[8:9], other[10:14], sn[0:2], other[14:19]), true
}

// Param1 of ECDH.
const (
	ecdhFromTempKey = 0x01
	ecdhEncrypted   = 0x02
	ecdhTarget      = 0x0c
	ecdhCompatible  = 0x00 // by SlotConfig: out, or to the slot above
	ecdhToSlot      = 0x04
	ecdhToTempKey   = 0x08
	ecdhToOutput    = 0x0c
)

func (c *Chip) ecdh(p packet) ([]byte, byte) {
	if p.p1&0xf0 != 0 || len(p.data) != 64 || p.p2 >= numSlots && p.p1&ecdhFromTempKey == 0 {
		return nil, statusParse
	}
	if !c.dataLocked() {
		return nil, statusExec
	}
	slot := int(p.p2 & 0xf)
	var config slotConfig
	var key *ecdsa.PrivateKey
	var ok bool
	if p.p1&ecdhFromTempKey != 0 {
		key, ok = c.tempPrivateKey(false)
	} else {
		config = c.slotConfig(slot)
		key, ok = c.privateKey(slot)
		ok = ok && config.ecdh()
	}
	peer, onCurve := parsePublic(p.data)
	if !ok || !onCurve || p.p1&ecdhFromTempKey == 0 && !c.use(slot) {
		return nil, statusExec
	}
	secret, err := sharedSecret(key, peer)
	if err != nil {
		return nil, statusECC
	}
	switch target := p.p1 & ecdhTarget; {
	case target == ecdhToTempKey:
		c.temp = tempKey{valid: true}
		copy(c.temp.value[:], secret)
		return nil, statusOK
	case config.ecdhToSlot():
		if target == ecdhToOutput || slot|1 == slot {
			return nil, statusExec
		}
		copy(c.slots[slot|1], secret)
		return nil, statusOK
	case target == ecdhToSlot:
		return nil, statusExec
	}
	return c.protect(secret, p.p1&ecdhEncrypted != 0, c.chipOptions()>>8&3)
}

// protect gives out a secret: in clear, or encrypted with the IO protection key
// and a fresh nonce. policy is the field of ChipOptions that may forbid it.
func (c *Chip) protect(secret []byte, encrypt bool, policy uint16) ([]byte, byte) {
	if policy >= 2 || policy == 1 && !encrypt {
		return nil, statusExec
	}
	if !encrypt {
		return secret, statusOK
	}
	io, enabled := c.ioProtectionKey()
	nonce := c.random()
	if !enabled || nonce == nil {
		return nil, statusExec
	}
	out := bytes.Clone(secret)
	for i := 0; i < len(out); i += 32 {
		xor(out[i:i+32], c.hash(io, nonce[i/2:i/2+16]))
	}
	return append(out, nonce...), statusOK
}

func sharedSecret(key *ecdsa.PrivateKey, peer *ecdsa.PublicKey) ([]byte, error) {
	private, err := key.ECDH()
	if err != nil {
		return nil, err
	}
	public, err := peer.ECDH()
	if err != nil {
		return nil, err
	}
	return private.ECDH(public)
}

func (c *Chip) selfTest(p packet) ([]byte, byte) {
	// Random generator, ECDSA, ECDH, AES, SHA. The documents have ECDSA as
	// 0x02; cryptoauthlib sends 0x04 for it (calib_command.h), though not in
	// its own mode for all tests, 0x3b.
	const tests = 0x3f
	if p.p1 == 0 || p.p1&^tests != 0 || p.p2 != 0 || len(p.data) != 0 {
		return nil, statusParse
	}
	return []byte{0}, statusOK // no test failed
}
