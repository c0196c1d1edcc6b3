package atecctest

import (
	"bytes"
	"crypto/aes"
	"crypto/sha256"
	"encoding"
	"encoding/binary"
	"hash"
)

// Zones of GenDig.
const (
	genDigConfig      = 0
	genDigOTP         = 1
	genDigData        = 2
	genDigSharedNonce = 3
	genDigCounter     = 4
	genDigKeyConfig   = 5
)

// genDig mixes something that the chip holds into TempKey.
func (c *Chip) genDig(p packet) ([]byte, byte) {
	t := &c.temp
	key := make([]byte, 32)
	header := p.header()
	rest := make([]byte, 25)
	last := bytes.Clone(t.value[:32])
	noMAC := false
	wantData := 0
	index := int(p.p2)
	switch {
	case p.p1 == genDigConfig && index < 4:
		copy(key, c.config[32*index:])
	case p.p1 == genDigOTP && index < 2:
		copy(key, c.otp[32*index:])
	case p.p1 == genDigData && index < numSlots:
		copy(key, c.slots[index])
		noMAC = c.slotConfig(index).noMAC()
		if noMAC || len(p.data) > 0 { // hosts send it for any key
			wantData = 4
		}
		if noMAC && len(p.data) == wantData {
			header = p.data
		}
	case p.p1 == genDigSharedNonce:
		wantData = 32
		header[3] = 0
		if len(p.data) == wantData {
			if index&0x8000 != 0 {
				key, last = last, p.data
			} else {
				copy(key, p.data)
			}
		}
	case p.p1 == genDigCounter && index < 2:
		binary.LittleEndian.PutUint32(rest[1:], c.counter(index))
	case p.p1 == genDigKeyConfig && index < numSlots:
		copy(rest[1:], c.config[cfgSlotConfig+2*index:][:2])
		copy(rest[3:], c.config[cfgKeyConfig+2*index:][:2])
		if !c.slotLocked(index) {
			rest[5] = 1
		}
	default:
		return nil, statusParse
	}
	if len(p.data) != wantData {
		return nil, statusParse
	}
	if !t.valid || t.private || !c.configLocked() {
		return nil, statusExec
	}
	if p.p1 == genDigData && c.keyConfig(index).private() {
		return nil, statusExec
	}
	copy(t.value[:], c.hash(key, header, c.serialTail(), rest, last))
	t.is64, t.genKey = false, false
	t.genDig = p.p1 == genDigData
	t.keyID = 0
	if t.genDig {
		t.keyID = byte(index)
		t.noMAC = t.noMAC || noMAC
	}
	return nil, statusOK
}

// Param1 of MAC and CheckMac.
const (
	macSecondTempKey = 0x01
	macFirstTempKey  = 0x02
	macFixedNonce    = 0x04
	macOTP88         = 0x10
	macOTP64         = 0x20
	macSerial        = 0x40
)

// macBlocks returns the first two parts of a MAC's message: a key and a
// challenge, either of which may be TempKey.
func (c *Chip) macBlocks(mode byte, slot int, challenge []byte) (first, second []byte, ok bool) {
	first, second = c.slots[slot][:32], challenge
	if mode&(macFirstTempKey|macSecondTempKey) != 0 {
		t := c.temp
		c.temp = tempKey{}
		if !t.valid || t.private || t.noMAC || t.fixed != (mode&macFixedNonce != 0) {
			return nil, nil, false
		}
		if mode&macFirstTempKey != 0 {
			first = t.value[:32]
		}
		if mode&macSecondTempKey != 0 {
			second = t.value[:32]
		}
	}
	usesSlot := mode&macFirstTempKey == 0
	if usesSlot && (c.slotConfig(slot).noMAC() || c.keyConfig(slot).private()) {
		return nil, nil, false
	}
	return first, second, !usesSlot || c.use(slot)
}

func (c *Chip) mac(p packet) ([]byte, byte) {
	wantData := 32
	if p.p1&macSecondTempKey != 0 {
		wantData = 0
	}
	if p.p1&0x88 != 0 || p.p2 >= numSlots || len(p.data) != wantData {
		return nil, statusParse
	}
	if !c.configLocked() {
		return nil, statusExec
	}
	first, second, ok := c.macBlocks(p.p1, int(p.p2), p.data)
	if !ok {
		return nil, statusExec
	}
	otp := make([]byte, 11)
	switch {
	case p.p1&macOTP88 != 0:
		copy(otp, c.otp[:11])
	case p.p1&macOTP64 != 0:
		copy(otp, c.otp[:8])
	}
	sn := c.serial()
	middle, lower := make([]byte, 4), make([]byte, 2)
	if p.p1&macSerial != 0 {
		copy(middle, sn[4:8])
		copy(lower, sn[2:4])
	}
	return c.hash(first, second, p.header(), otp, sn[8:9], middle, sn[0:2], lower), statusOK
}

func (c *Chip) checkMac(p packet) ([]byte, byte) {
	const challenge, response, other = 32, 32, 13
	if p.p1&^0x27 != 0 || p.p2 >= numSlots || len(p.data) != challenge+response+other {
		return nil, statusParse
	}
	if !c.configLocked() {
		return nil, statusExec
	}
	first, second, ok := c.macBlocks(p.p1, int(p.p2), p.data[:challenge])
	c.authSlot = 0
	if !ok {
		return nil, statusExec
	}
	otp := make([]byte, 8)
	if p.p1&macOTP64 != 0 {
		copy(otp, c.otp[:8])
	}
	sn := c.serial()
	o := p.data[challenge+response:]
	want := c.hash(first, second, o[:4], otp, o[4:7], sn[8:9], o[7:11], sn[0:2], o[11:13])
	if !bytes.Equal(want, p.data[challenge:challenge+response]) {
		return nil, statusMismatch
	}
	c.authSlot = int(p.p2) + 1
	return nil, statusOK
}

func (c *Chip) deriveKey(p packet) ([]byte, byte) {
	if p.p1&^macFixedNonce != 0 || p.p2 >= numSlots || len(p.data) != 0 && len(p.data) != 32 {
		return nil, statusParse
	}
	slot := int(p.p2)
	config := c.slotConfig(slot)
	t := c.temp
	c.temp = tempKey{}
	switch {
	case !c.configLocked() || c.keyConfig(slot).private() || !config.derive() || c.slotLocked(slot):
		return nil, statusExec
	case !t.valid || t.private || t.noMAC || t.fixed != (p.p1&macFixedNonce != 0):
		return nil, statusExec
	}
	parent := slot
	if config.deriveCreate() {
		parent = config.writeKey()
	}
	key := c.slots[parent][:32]
	if config.deriveMAC() && !bytes.Equal(p.data, c.hash(key, p.header(), c.serialTail())) {
		return nil, statusExec
	}
	copy(c.slots[slot], c.hash(key, p.header(), c.serialTail(), make([]byte, 25), t.value[:32]))
	return nil, statusOK
}

// privWrite stores a private key that was made elsewhere: four zero bytes and
// 32 of the key.
func (c *Chip) privWrite(p packet) ([]byte, byte) {
	const size = 36
	isEncrypted := p.p1&encrypted != 0
	if p.p1&^encrypted != 0 || p.p2 >= numSlots || len(p.data) != size+32 {
		return nil, statusParse
	}
	slot := int(p.p2)
	switch {
	case !c.configLocked() || c.slotLocked(slot) || !c.isPrivateKey(slot):
		return nil, statusExec
	case c.dataLocked() && (!isEncrypted || !c.slotConfig(slot).privWrite()):
		return nil, statusExec
	}
	value := bytes.Clone(p.data[:size])
	if isEncrypted {
		ok := c.sessionKey(c.slotConfig(slot).writeKey())
		session := bytes.Clone(c.temp.value[:32])
		c.temp = tempKey{}
		if !ok {
			return nil, statusExec
		}
		xor(value[:32], session)
		xor(value[32:], c.hash(session))
		mac := c.hash(session, p.header(), c.serialTail(), make([]byte, 21), value)
		if !bytes.Equal(mac, p.data[size:]) {
			return nil, statusExec
		}
	}
	if _, ok := parsePrivate(value[4:]); !ok {
		return nil, statusExec
	}
	copy(c.slots[slot], value)
	return nil, statusOK
}

func (c *Chip) aes(p packet) ([]byte, byte) {
	const encrypt, decrypt, multiply = 0, 1, 3 // the lower bits of param1
	mode := p.p1 & 7
	wantData := 16
	if mode == multiply {
		wantData = 32
	}
	if p.p1&0x38 != 0 || mode != encrypt && mode != decrypt && mode != multiply || len(p.data) != wantData {
		return nil, statusParse
	}
	if c.config[cfgAES]&1 == 0 {
		return nil, statusExec
	}
	out := make([]byte, 16)
	if mode == multiply {
		gfMultiply(out, p.data[:16], p.data[16:])
		return out, statusOK
	}
	offset := int(p.p1>>6) * 16
	var key []byte
	switch {
	case p.p2 == tempKeySlot:
		if !c.temp.valid || c.temp.private || offset >= 32 && !c.temp.is64 {
			return nil, statusExec
		}
		key = c.temp.value[offset : offset+16]
	case p.p2 >= numSlots:
		return nil, statusParse
	default:
		slot := int(p.p2)
		if !c.dataLocked() || c.keyConfig(slot).kind() != keyAES || offset+16 > slotSize(slot) || !c.use(slot) {
			return nil, statusExec
		}
		key = c.slots[slot][offset : offset+16]
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, statusExec
	}
	if mode == encrypt {
		block.Encrypt(out, p.data)
	} else {
		block.Decrypt(out, p.data)
	}
	return out, statusOK
}

// gfMultiply multiplies in GF(2^128) with the polynomial and the bit order of
// GCM (NIST SP 800-38D section 6.3).
func gfMultiply(z, x, y []byte) {
	v := bytes.Clone(y)
	clear(z)
	for i := 0; i < 128; i++ {
		if x[i/8]>>(7-i%8)&1 != 0 {
			xor(z, v)
		}
		low := v[15] & 1
		for j := 15; j > 0; j-- {
			v[j] = v[j]>>1 | v[j-1]<<7
		}
		v[0] >>= 1
		if low != 0 {
			v[0] ^= 0xe1
		}
	}
}

// shaState is a SHA-256 or HMAC calculation that is under way.
type shaState struct {
	hash  hash.Hash
	outer []byte // the HMAC's outer pad; nil: plain SHA-256
	size  int    // bytes so far
}

// Param1 of SHA, lower three bits; the upper two say where the digest goes.
const (
	shaStart        = 0
	shaUpdate       = 1
	shaEnd          = 2
	shaPublic       = 3
	shaHMACStart    = 4
	shaReadContext  = 6
	shaWriteContext = 7

	shaToTempKey = 0x00
	shaToDigest  = 0x40
	shaToOutput  = 0xc0
)

func (c *Chip) shaCommand(p packet) ([]byte, byte) {
	mode, target := p.p1&7, p.p1&0xc0
	if p.p1&0x38 != 0 || mode != shaEnd && target != 0 {
		return nil, statusParse
	}
	switch mode {
	case shaStart:
		if p.p2 != 0 || len(p.data) != 0 {
			return nil, statusParse
		}
		c.sha = &shaState{hash: sha256.New()}
		return nil, statusOK
	case shaHMACStart:
		return c.hmacStart(p)
	case shaWriteContext:
		return c.shaRestore(p)
	}
	if c.sha == nil {
		return nil, statusExec
	}
	switch mode {
	case shaUpdate:
		if int(p.p2) != len(p.data) || len(p.data) > 64 {
			return nil, statusParse
		}
		c.sha.add(p.data)
		return nil, statusOK
	case shaPublic:
		if p.p2 >= numSlots || len(p.data) != 0 {
			return nil, statusParse
		}
		if !c.isPublicKey(int(p.p2)) {
			return nil, statusExec
		}
		c.sha.add(c.storedPublic(int(p.p2)))
		return nil, statusOK
	case shaReadContext:
		if len(p.data) != 0 {
			return nil, statusParse
		}
		return c.sha.save()
	case shaEnd:
		most := 64
		if c.opts.ShortSHAEnd {
			most = 63
		}
		if int(p.p2) != len(p.data) || len(p.data) > most || target == 0x80 {
			return nil, statusParse
		}
		c.sha.add(p.data)
		digest := c.sha.sum()
		c.sha = nil
		switch target {
		case shaToTempKey:
			c.temp = tempKey{valid: true, fixed: true}
			copy(c.temp.value[:], digest)
		case shaToDigest:
			c.digest = bytes.Clone(digest)
		}
		return digest, statusOK
	}
	return nil, statusParse
}

func (c *Chip) hmacStart(p packet) ([]byte, byte) {
	if len(p.data) != 0 || p.p2 >= numSlots && p.p2 != tempKeySlot {
		return nil, statusParse
	}
	var key []byte
	if p.p2 == tempKeySlot {
		if !c.temp.valid || c.temp.private {
			return nil, statusExec
		}
		key = c.temp.value[:32]
	} else {
		slot := int(p.p2)
		if !c.dataLocked() || c.keyConfig(slot).private() || !c.use(slot) {
			return nil, statusExec
		}
		key = c.slots[slot][:32]
	}
	inner, outer := bytes.Repeat([]byte{0x36}, 64), bytes.Repeat([]byte{0x5c}, 64)
	xor(inner[:32], key)
	xor(outer[:32], key)
	c.sha = &shaState{hash: sha256.New(), outer: outer}
	c.sha.hash.Write(inner)
	return nil, statusOK
}

func (s *shaState) add(data []byte) {
	s.hash.Write(data)
	s.size += len(data)
}

func (s *shaState) sum() []byte {
	digest := s.hash.Sum(nil)
	if s.outer == nil {
		return digest
	}
	h := sha256.New()
	h.Write(s.outer)
	h.Write(digest)
	return h.Sum(nil)
}

// What Go's SHA-256 marshals to: a magic number, the state, one block of data,
// the length.
const (
	shaMagic    = 4
	shaWords    = 32
	shaMarshals = shaMagic + shaWords + 64 + 8
)

// save returns the context: the length, the state and what is not yet a whole
// block; length and the state's words are little-endian.
func (s *shaState) save() ([]byte, byte) {
	if s.outer != nil {
		return nil, statusExec
	}
	m, err := s.hash.(encoding.BinaryMarshaler).MarshalBinary()
	if err != nil || len(m) != shaMarshals {
		return nil, statusExec
	}
	m = m[shaMagic:]
	out := binary.LittleEndian.AppendUint32(nil, uint32(s.size))
	for i := 0; i < shaWords; i += 4 {
		out = binary.LittleEndian.AppendUint32(out, binary.BigEndian.Uint32(m[i:]))
	}
	return append(out, m[shaWords:shaWords+s.size%64]...), statusOK
}

func (c *Chip) shaRestore(p packet) ([]byte, byte) {
	if int(p.p2) != len(p.data) || len(p.data) < 4+shaWords {
		return nil, statusParse
	}
	size := binary.LittleEndian.Uint32(p.data)
	words, partial := p.data[4:4+shaWords], p.data[4+shaWords:]
	if len(partial) != int(size%64) {
		return nil, statusParse
	}
	h := sha256.New()
	m, err := h.(encoding.BinaryMarshaler).MarshalBinary()
	if err != nil || len(m) != shaMarshals {
		return nil, statusExec
	}
	for i := 0; i < shaWords; i += 4 {
		binary.BigEndian.PutUint32(m[shaMagic+i:], binary.LittleEndian.Uint32(words[i:]))
	}
	copy(m[shaMagic+shaWords:], partial)
	binary.BigEndian.PutUint64(m[shaMarshals-8:], uint64(size))
	if h.(encoding.BinaryUnmarshaler).UnmarshalBinary(m) != nil {
		return nil, statusParse
	}
	c.sha = &shaState{hash: h, size: int(size)}
	return nil, statusOK
}
