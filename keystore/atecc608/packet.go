package atecc608

// The word address is the first byte of every write.
const (
	wordReset   = 0x00 // read the reply from its beginning
	wordSleep   = 0x01 // loses all that is volatile
	wordIdle    = 0x02 // keeps it
	wordCommand = 0x03
)

const (
	maxCommand = 155 // bytes of a command, from count to CRC
	maxReply   = 75
	overhead   = 3 // of a reply: count and CRC
)

// Opcodes.
const (
	opRead    = 0x02
	opWrite   = 0x12
	opNonce   = 0x16
	opLock    = 0x17
	opRandom  = 0x1b
	opCounter = 0x24
	opInfo    = 0x30
	opGenKey  = 0x40
	opSign    = 0x41
	opECDH    = 0x43
	opVerify  = 0x45
	opSHA     = 0x47
)

// command is what is sent to the chip, and how long its reply is.
type command struct {
	opcode byte
	p1     byte
	p2     uint16
	data   []byte
	reply  int // bytes of data expected; 0: a status
}

// frame appends the command as it goes over the bus: word address, count,
// opcode, parameters, data, CRC. Param2 and CRC are little-endian.
func (c command) frame(to []byte) []byte {
	to = append(to, wordCommand, byte(7+len(c.data)), c.opcode, c.p1, byte(c.p2), byte(c.p2>>8))
	to = append(to, c.data...)
	crc := crc16(to[1:])
	return append(to, byte(crc), byte(crc>>8))
}

// parseReply checks the count and the CRC and returns the data between them.
// What follows the count's bytes is ignored.
func parseReply(r []byte) (data []byte, ok bool) {
	count := int(r[0])
	if count < overhead+1 || count > len(r) {
		return nil, false
	}
	crc := crc16(r[:count-2])
	if r[count-2] != byte(crc) || r[count-1] != byte(crc>>8) {
		return nil, false
	}
	return r[1 : count-2], true
}

// crc16 has polynomial 0x8005 and initial value 0, takes each byte's least
// significant bit first and shifts the register left.
func crc16(data []byte) uint16 {
	var crc uint16
	for _, b := range data {
		for i := 0; i < 8; i++ {
			bit := uint16(b>>i) & 1
			if crc>>15 != bit {
				crc = crc<<1 ^ 0x8005
			} else {
				crc <<= 1
			}
		}
	}
	return crc
}
