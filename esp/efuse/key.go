package efuse

import "fmt"

// Purpose is what a key block is for. Values up to 15 are those of
// KEY_PURPOSE_n; the others are of chips that have no such field. The zero value
// is user data, and what a free block has.
type Purpose uint8

// The purposes. Which chip takes which: [Batch.SetKey].
const (
	PurposeUser              Purpose = 0  // 32 bytes of the user's
	PurposeECDSA             Purpose = 1  // private key of the H2's ECDSA peripheral
	PurposeXTSAES256Key1     Purpose = 2  // first half of a 64-byte flash-encryption key
	PurposeXTSAES256Key2     Purpose = 3  // second half
	PurposeXTSAES128         Purpose = 4  // 32-byte flash-encryption key
	PurposeHMACDown          Purpose = 5  // HMAC for Digital Signature and JTAG
	PurposeHMACDownJTAG      Purpose = 6  // HMAC that turns JTAG on again
	PurposeHMACDownDS        Purpose = 7  // HMAC for the Digital Signature peripheral
	PurposeHMACUp            Purpose = 8  // HMAC for software, such as the NVS scheme
	PurposeSecureBootDigest0 Purpose = 9  // digest of a Secure Boot V2 key
	PurposeSecureBootDigest1 Purpose = 10 // the second
	PurposeSecureBootDigest2 Purpose = 11 // the third

	PurposeFlashEncryption   Purpose = 0x80 // ESP32, BLOCK1: AES-256
	PurposeSecureBootV1      Purpose = 0x81 // ESP32, BLOCK2: key of Secure Boot V1
	PurposeSecureBootV2      Purpose = 0x82 // ESP32, BLOCK2: digest of the Secure Boot V2 key
	PurposeXTSAES128Derived  Purpose = 0x83 // C2: 16 bytes from which the flash-encryption key is derived
	PurposeSecureBootDigestC Purpose = 0x84 // C2: first 16 bytes of the digest
)

var purposeNames = map[Purpose]string{
	PurposeUser: "USER", PurposeECDSA: "ECDSA_KEY",
	PurposeXTSAES256Key1: "XTS_AES_256_KEY_1", PurposeXTSAES256Key2: "XTS_AES_256_KEY_2",
	PurposeXTSAES128: "XTS_AES_128_KEY", PurposeHMACDown: "HMAC_DOWN_ALL",
	PurposeHMACDownJTAG: "HMAC_DOWN_JTAG", PurposeHMACDownDS: "HMAC_DOWN_DIGITAL_SIGNATURE",
	PurposeHMACUp: "HMAC_UP", PurposeSecureBootDigest0: "SECURE_BOOT_DIGEST0",
	PurposeSecureBootDigest1: "SECURE_BOOT_DIGEST1", PurposeSecureBootDigest2: "SECURE_BOOT_DIGEST2",
	PurposeFlashEncryption: "FLASH_ENCRYPTION", PurposeSecureBootV1: "SECURE_BOOT_V1",
	PurposeSecureBootV2: "SECURE_BOOT_V2", PurposeSecureBootDigestC: "SECURE_BOOT_DIGEST",
	PurposeXTSAES128Derived: "XTS_AES_128_KEY_DERIVED_FROM_128_EFUSE_BITS",
}

// String returns the name that espefuse uses, or "purpose(13)".
func (p Purpose) String() string {
	if name, ok := purposeNames[p]; ok {
		return name
	}
	return fmt.Sprintf("purpose(%d)", uint8(p))
}

// use says how a key of a purpose is stored.
type use struct {
	purpose  Purpose
	block    int // the only block that takes it; 0: any key block
	offset   int // in the block, bytes
	size     int
	reversed bool   // the last byte of the key file comes first
	hidden   bool   // read-protected unless asked otherwise
	sets     string // a field of one bit that goes with it
}

var usesModern = []use{
	{purpose: PurposeUser, size: 32},
	{purpose: PurposeXTSAES128, size: 32, reversed: true, hidden: true},
	{purpose: PurposeHMACDown, size: 32, hidden: true},
	{purpose: PurposeHMACDownJTAG, size: 32, hidden: true},
	{purpose: PurposeHMACDownDS, size: 32, hidden: true},
	{purpose: PurposeHMACUp, size: 32, hidden: true},
	{purpose: PurposeSecureBootDigest0, size: 32},
	{purpose: PurposeSecureBootDigest1, size: 32},
	{purpose: PurposeSecureBootDigest2, size: 32},
}

var usesXTS256 = append([]use{
	{purpose: PurposeXTSAES256Key1, size: 32, reversed: true, hidden: true},
	{purpose: PurposeXTSAES256Key2, size: 32, reversed: true, hidden: true},
}, usesModern...)

var usesH2 = append([]use{
	{purpose: PurposeECDSA, size: 32, reversed: true, hidden: true},
}, usesModern...)

var usesESP32 = []use{
	{purpose: PurposeFlashEncryption, block: 1, size: 32, reversed: true, hidden: true},
	{purpose: PurposeSecureBootV1, block: 2, size: 32, reversed: true, hidden: true},
	{purpose: PurposeSecureBootV2, block: 2, size: 32},
	{purpose: PurposeUser, size: 32},
}

var usesC2 = []use{
	{purpose: PurposeXTSAES128, size: 32, reversed: true, hidden: true, sets: "XTS_KEY_LENGTH_256"},
	{purpose: PurposeXTSAES128Derived, size: 16, reversed: true, hidden: true},
	{purpose: PurposeSecureBootDigestC, offset: 16, size: 16},
	{purpose: PurposeUser, size: 32},
}

func (l *layout) use(p Purpose, block int) (use, error) {
	for _, u := range l.uses {
		if u.purpose == p && (u.block == 0 || u.block == block) {
			return u, nil
		}
	}
	return use{}, fmt.Errorf("efuse: %w: %s of the %s does not take %v", ErrPurpose, l.blocks[block].name, l.name, p)
}

// keyBlock returns the number of the block that holds key n.
func (l *layout) keyBlock(n int) (int, error) {
	block := n + l.firstKey
	if l.chip == ESP32 {
		block = n
	}
	if block < l.firstKey || block > l.lastKey {
		return 0, fmt.Errorf("efuse: %w: the %s has no key block %d", ErrField, l.name, n)
	}
	return block, nil
}

// purposeField returns the name of the field with the purpose of a key block,
// or "" if the chip has none.
func (l *layout) purposeField(block int) string {
	if l.lastKey == l.firstKey || l.chip == ESP32 {
		return ""
	}
	return fmt.Sprintf("KEY_PURPOSE_%d", block-l.firstKey)
}

// KeyBlock is the state of a key block.
type KeyBlock struct {
	// Purpose is that of KEY_PURPOSE_n. The ESP32 and the C2 have no such field
	// and this is always PurposeUser.
	Purpose          Purpose
	ReadProtected    bool // all or a half of the block is hidden from software
	WriteProtected   bool
	PurposeProtected bool // KEY_PURPOSE_n is write-protected
	// Unused: nothing at all was burnt, so that a key can be
	// (esp_efuse_key_block_unused).
	Unused bool
}

// Key returns the state of key block n: 0 to 5 for BLOCK_KEY0 to BLOCK_KEY5, 0
// on the C2; 1 to 3 for BLOCK1 to BLOCK3 of the original ESP32. Another number is
// [ErrField]. The content is that of [State.Bytes].
func (s State) Key(n int) (KeyBlock, error) {
	l, err := layoutOf(s.chip)
	if err != nil {
		return KeyBlock{}, err
	}
	block, err := l.keyBlock(n)
	if err != nil {
		return KeyBlock{}, err
	}
	return s.key(l, block)
}

func (s *State) key(l *layout, block int) (KeyBlock, error) {
	var k KeyBlock
	if name := l.purposeField(block); name != "" {
		f, err := l.field(name)
		if err != nil {
			return k, err
		}
		k.Purpose = Purpose(s.bits(f))
		k.PurposeProtected = s.bit0(f.WrDis)
	}
	k.WriteProtected = s.bit0(l.blocks[block].wrDis)
	k.ReadProtected = s.hiddenBits(l, block) != [blockSize]byte{}
	k.Unused = k == KeyBlock{} && s.data[block] == [blockSize]byte{}
	return k, nil
}
