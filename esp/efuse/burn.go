package efuse

import "fmt"

// Batch is a set of eFuses to burn together. Its methods only collect: whether
// a chip allows it is for [State.Burns] and [State.Burn] to say, which check all
// of it first. Make one with [NewBatch]. It is not safe for concurrent use.
// Packages fmt and log print no key.
type Batch struct {
	l      *layout
	writes []write
}

// write is one wish: the bits of mask in a block shall be those of value.
type write struct {
	what        string
	block       int
	mask, value [blockSize]byte
	wrDis       int
	key         bool // the block has to be free
	keySize     int
	bootV2      bool // part of Secure Boot V2
}

// NewBatch returns an empty batch for a chip. An unknown chip is [ErrChip].
func NewBatch(chip Chip) (*Batch, error) {
	l, err := layoutOf(chip)
	if err != nil {
		return nil, err
	}
	return &Batch{l: l}, nil
}

// Format implements fmt.Formatter: no verb prints what may be a key.
func (b *Batch) Format(f fmt.State, _ rune) {
	if b == nil || b.l == nil {
		fmt.Fprint(f, "{empty batch}")
		return
	}
	fmt.Fprintf(f, "{batch for an %s, %d writes}", b.l.name, len(b.writes))
}

// SetField asks for a field of at most 64 bits to have that value. Bits that are
// burnt already must be part of it. The errors are [ErrField]; [ErrLength] if the
// field or the value has more bits; and [ErrPurpose] for a KEY_PURPOSE that the
// chip does not have.
func (b *Batch) SetField(name string, value uint64) error {
	f, err := b.l.field(name)
	if err != nil {
		return err
	}
	if f.Bits > 64 || f.Bits < 64 && value>>f.Bits != 0 {
		return fmt.Errorf("efuse: set %s: %w: the field has %d bits", name, ErrLength, f.Bits)
	}
	if block := f.Block; block == 0 {
		for k := b.l.firstKey; k <= b.l.lastKey; k++ {
			if b.l.purposeField(k) != name {
				continue
			}
			if _, err := b.l.use(Purpose(value), k); err != nil {
				return err
			}
		}
	}
	w := newWrite(f)
	for i := 0; i < f.Bits; i++ {
		if value>>i&1 == 1 {
			setBit(&w.value, f.Bit+i)
		}
	}
	w.bootV2 = b.l.chip == ESP32 && name == "ABS_DONE_1" && value == 1
	b.writes = append(b.writes, w)
	return nil
}

// SetBytes asks for a field of whole bytes to have that value, least significant
// byte first, as [State.Bytes] returns it. It neither changes the order nor
// protects anything: keys go through [Batch.SetKey]. The errors are [ErrField]
// and [ErrLength].
func (b *Batch) SetBytes(name string, value []byte) error {
	f, err := b.l.field(name)
	if err != nil {
		return err
	}
	if f.Bit%8 != 0 || f.Bits != 8*len(value) {
		return fmt.Errorf("efuse: set %s: %w: got %d bytes for %d bits", name, ErrLength, len(value), f.Bits)
	}
	w := newWrite(f)
	copy(w.value[f.Bit/8:], value)
	b.writes = append(b.writes, w)
	return nil
}

func newWrite(f Field) write {
	w := write{what: f.Name, block: f.Block, wrDis: f.WrDis}
	for i := f.Bit; i < f.Bit+f.Bits; i++ {
		setBit(&w.mask, i)
	}
	return w
}

// SetKey asks for a key in key block n, numbered as for [State.Key], as espefuse
// burn_key does: the key in the byte order of its file, which for
// flash-encryption and ECDSA keys is the reverse of that in eFuse and for all
// others the same; its purpose, where the chip has a field for it; write
// protection of both; and read protection, except for digests of Secure Boot V2,
// which the chip has to read, and user data.
//
// Keys have 32 bytes; on the C2 [PurposeXTSAES128Derived] and
// [PurposeSecureBootDigestC] have 16 and share a block, which is written once: put
// both into one batch. An ESP32 whose CODING_SCHEME is 3/4 takes keys of 24 bytes
// and no Secure Boot V2.
//
// The errors are [ErrField], [ErrPurpose] and [ErrLength]. The batch keeps a copy
// of the key for as long as it lives.
func (b *Batch) SetKey(n int, p Purpose, key []byte) error { return b.setKey(n, p, key, false) }

// SetReadableKey is [Batch.SetKey] without read protection, for development: a
// key that software can read is no secret.
func (b *Batch) SetReadableKey(n int, p Purpose, key []byte) error {
	return b.setKey(n, p, key, true)
}

func (b *Batch) setKey(n int, p Purpose, key []byte, readable bool) error {
	block, err := b.l.keyBlock(n)
	if err != nil {
		return err
	}
	u, err := b.l.use(p, block)
	if err != nil {
		return err
	}
	threeQuarters := b.l.chip == ESP32 && p != PurposeSecureBootV2 && len(key) == 24
	if len(key) != u.size && !threeQuarters {
		return fmt.Errorf("efuse: set key %d: %w: %d bytes, want %d", n, ErrLength, len(key), u.size)
	}
	info := b.l.blocks[block]
	w := write{what: info.name, block: block, wrDis: info.wrDis, key: true, keySize: len(key),
		bootV2: p == PurposeSecureBootV2}
	for i := range key {
		from := i
		if u.reversed {
			from = len(key) - 1 - i
		}
		w.mask[u.offset+i], w.value[u.offset+i] = 0xFF, key[from]
	}
	writes := []write{w}
	protect := []int{info.wrDis}
	if name := b.l.purposeField(block); name != "" {
		f, err := b.l.field(name)
		if err != nil {
			return err
		}
		pw := newWrite(f)
		for i := 0; i < f.Bits; i++ {
			if p>>i&1 == 1 {
				setBit(&pw.value, f.Bit+i)
			}
		}
		writes = append(writes, pw)
		protect = append(protect, f.WrDis)
	}
	if u.sets != "" {
		f, err := b.l.field(u.sets)
		if err != nil {
			return err
		}
		sw := newWrite(f)
		sw.value = sw.mask
		writes = append(writes, sw)
	}
	if u.hidden && !readable {
		protect = append(protect, info.rdDis)
		if info.rdDisHi != none && u.size == blockSize {
			protect = append(protect, info.rdDisHi)
		}
	}
	for _, n := range protect {
		writes = append(writes, b.l.protection(n))
	}
	b.writes = append(b.writes, writes...)
	return nil
}

// protection is the write of one bit of WR_DIS or RD_DIS.
func (l *layout) protection(n int) write {
	name := "WR_DIS"
	if f, err := l.field("RD_DIS"); err == nil && n >= f.Bit {
		name = "RD_DIS"
	}
	f, _ := l.field(name)
	w := write{what: name, wrDis: f.WrDis}
	setBit(&w.mask, n)
	w.value = w.mask
	return w
}

// WriteProtect asks for the write protection of a field, and with it of all
// fields that share its bit of WR_DIS. A field that has none, or an unknown one,
// is [ErrField].
func (b *Batch) WriteProtect(name string) error {
	f, err := b.l.field(name)
	if err != nil {
		return err
	}
	if f.WrDis == none {
		return fmt.Errorf("efuse: write-protect %s: %w: no bit of WR_DIS covers it", name, ErrField)
	}
	b.writes = append(b.writes, b.l.protection(f.WrDis))
	return nil
}

// ReadProtect asks for the read protection of key block n, numbered as for
// [State.Key]. Another number is [ErrField]. A digest of Secure Boot that is
// read-protected lets the chip start nothing.
func (b *Batch) ReadProtect(n int) error {
	block, err := b.l.keyBlock(n)
	if err != nil {
		return err
	}
	b.writes = append(b.writes, b.l.protection(b.l.blocks[block].rdDis))
	if hi := b.l.blocks[block].rdDisHi; hi != none {
		b.writes = append(b.writes, b.l.protection(hi))
	}
	return nil
}

// Burn is what one programming command writes: bits that are 1 are burnt.
type Burn struct {
	Block int
	Bits  []byte // as long as the block, least significant byte first
}

// Format implements fmt.Formatter: no verb prints what may be a key.
func (b Burn) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "{burn of block %d}", b.Block) }

// Burns checks the whole batch against the state and returns what remains to be
// burnt, in the order in which it has to happen: BLOCK0 comes last, so that no
// protection is in force before its block is complete
// (esp_efuse_batch_write_commit). It is empty if all is burnt already.
//
// The errors are [ErrChip] for a batch of another chip, [ErrProtected],
// [ErrUsed], [ErrBurnt] and [ErrCodingScheme].
func (s State) Burns(b *Batch) ([]Burn, error) {
	if b == nil || b.l == nil || b.l.chip != s.chip {
		return nil, fmt.Errorf("efuse: %w: the batch is not for the %s", ErrChip, s.chip)
	}
	var union [maxBlocks][blockSize]byte
	for i := range b.writes {
		w := &b.writes[i]
		if err := s.check(b.l, w); err != nil {
			return nil, err
		}
		for k := range w.value {
			union[w.block][k] |= w.value[k]
		}
	}
	for i := range b.writes {
		w := &b.writes[i]
		for k := range w.mask {
			if union[w.block][k]&w.mask[k] != w.value[k] {
				return nil, fmt.Errorf("efuse: burn %s: %w: the batch asks for two values", w.what, ErrBurnt)
			}
		}
	}
	var burns []Burn
	for n := len(b.l.blocks) - 1; n >= 0; n-- {
		bits := make([]byte, b.l.blocks[n].size)
		var any byte
		for k := range bits {
			bits[k] = union[n][k] &^ s.data[n][k]
			any |= bits[k]
		}
		if any != 0 {
			burns = append(burns, Burn{n, bits})
		}
	}
	return burns, nil
}

// check refuses a write that this state does not allow.
func (s *State) check(l *layout, w *write) error {
	if w.key {
		k, err := s.key(l, w.block)
		if err != nil {
			return err
		}
		if !k.Unused {
			return fmt.Errorf("efuse: burn key into %s: %w", w.what, ErrUsed)
		}
	}
	if err := s.checkScheme(w); err != nil {
		return err
	}
	hidden := s.hiddenBits(l, w.block)
	var changes, touchesHidden byte
	for k := range w.mask {
		if s.data[w.block][k]&w.mask[k]&^w.value[k] != 0 {
			return fmt.Errorf("efuse: burn %s: %w", w.what, ErrBurnt)
		}
		changes |= w.value[k] &^ s.data[w.block][k]
		touchesHidden |= w.value[k] & hidden[k]
	}
	switch {
	case changes == 0:
		return nil
	case w.wrDis != none && s.bit0(w.wrDis):
		return fmt.Errorf("efuse: burn %s: %w: WR_DIS bit %d is burnt", w.what, ErrProtected, w.wrDis)
	case touchesHidden != 0 || w.block > 0 && hidden != [blockSize]byte{}:
		return fmt.Errorf("efuse: burn %s: %w: it is read-protected and may be used", w.what, ErrProtected)
	case w.block > 0 && (l.writeOnce || s.scheme() != schemeNone) && s.data[w.block] != [blockSize]byte{}:
		return fmt.Errorf("efuse: burn %s: %w: a coded block is written once", w.what, ErrUsed)
	}
	return nil
}

// CODING_SCHEME of the original ESP32. 3 means NONE too; 2, REPEAT, is
// supported by nobody.
const (
	schemeNone          = 0
	schemeThreeQuarters = 1
	schemeNoneToo       = 3
	schemeBit           = 192 // first bit, in BLOCK0
)

func (s *State) scheme() byte {
	if s.chip != ESP32 {
		return schemeNone
	}
	scheme := s.data[0][schemeBit/8] & schemeNoneToo
	if scheme == schemeNoneToo {
		return schemeNone
	}
	return scheme
}

// checkScheme applies the rules of the ESP32's CODING_SCHEME, which counts for
// BLOCK1 to BLOCK3.
func (s *State) checkScheme(w *write) error {
	if s.chip != ESP32 {
		return nil
	}
	scheme := s.scheme()
	refuse := func(why string) error {
		return fmt.Errorf("efuse: burn %s: %w: %s", w.what, ErrCodingScheme, why)
	}
	if w.block == 0 {
		switch {
		case w.bootV2 && scheme != schemeNone:
			return refuse("Secure Boot V2 needs CODING_SCHEME NONE")
		case w.bootV2 && s.bit0(rdDisConfigESP32):
			return refuse("CODING_SCHEME is read-protected")
		case w.value[schemeBit/8]&3&^s.data[0][schemeBit/8] != 0:
			return refuse("CODING_SCHEME is set in the factory")
		}
		return nil
	}
	switch {
	case s.bit0(rdDisConfigESP32):
		return refuse("CODING_SCHEME is read-protected")
	case scheme > schemeThreeQuarters:
		return refuse("CODING_SCHEME is neither NONE nor 3/4")
	case scheme == schemeNone && w.key && w.keySize != 32:
		return refuse("CODING_SCHEME NONE takes keys of 32 bytes")
	case scheme == schemeNone:
		return nil
	case w.bootV2:
		return refuse("Secure Boot V2 needs CODING_SCHEME NONE")
	}
	for _, v := range w.value[24:] {
		if v != 0 {
			return refuse("CODING_SCHEME 3/4 leaves 24 bytes")
		}
	}
	if w.key && w.keySize != 24 {
		return refuse("CODING_SCHEME 3/4 takes keys of 24 bytes")
	}
	return nil
}

// Burn returns the state after the batch, as software then reads it: a key that
// the batch read-protects is gone from it. It burns nothing itself. The errors are
// those of [State.Burns]; the state returned with an error is s.
func (s State) Burn(b *Batch) (State, error) {
	burns, err := s.Burns(b)
	if err != nil {
		return s, err
	}
	next := s
	for _, burn := range burns {
		for k, v := range burn.Bits {
			next.data[burn.Block][k] |= v
		}
	}
	next.hide(b.l)
	return next, nil
}
