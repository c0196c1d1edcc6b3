package atecctest

import "time"

// Opcodes.
const (
	opRead        = 0x02
	opMAC         = 0x08
	opWrite       = 0x12
	opGenDig      = 0x15
	opNonce       = 0x16
	opLock        = 0x17
	opRandom      = 0x1b
	opDeriveKey   = 0x1c
	opUpdateExtra = 0x20
	opCounter     = 0x24
	opCheckMac    = 0x28
	opInfo        = 0x30
	opGenKey      = 0x40
	opSign        = 0x41
	opECDH        = 0x43
	opVerify      = 0x45
	opPrivWrite   = 0x46
	opSHA         = 0x47
	opAES         = 0x51
	opKDF         = 0x56
	opSelfTest    = 0x77
	opSecureBoot  = 0x80
)

// Status codes.
const (
	statusOK       = 0x00
	statusMismatch = 0x01
	statusParse    = 0x03
	statusECC      = 0x05
	statusSelfTest = 0x07
	statusRNG      = 0x08
	statusExec     = 0x0f
	statusWoken    = 0x11
	statusWatchdog = 0xee
	statusComm     = 0xff
)

const (
	minCount = 7 // count, opcode, param1, param2, CRC
	maxCount = 155
)

type packet struct {
	opcode, p1 byte
	p2         uint16
	data       []byte
}

func parsePacket(group []byte) (packet, bool) {
	count := int(group[0])
	if count < minCount || count > maxCount || len(group) < count {
		return packet{}, false
	}
	group = group[:count]
	crc := crc16(group[:count-2])
	if byte(crc) != group[count-2] || byte(crc>>8) != group[count-1] {
		return packet{}, false
	}
	return packet{
		opcode: group[1],
		p1:     group[2],
		p2:     uint16(group[3]) | uint16(group[4])<<8,
		data:   group[5 : count-2],
	}, true
}

func makeGroup(data []byte) []byte {
	group := append([]byte{byte(len(data) + 3)}, data...)
	crc := crc16(group)
	return append(group, byte(crc), byte(crc>>8))
}

// crc16 has polynomial 0x8005 and initial value 0; bits enter least significant
// first, and the register shifts left.
func crc16(data []byte) uint16 {
	var crc uint16
	for _, b := range data {
		for bit := 0; bit < 8; bit++ {
			top := byte(crc >> 15)
			crc <<= 1
			if b>>bit&1 != top {
				crc ^= 0x8005
			}
		}
	}
	return crc
}

// NeverBusy is a chip that takes no time: for counting transactions.
func NeverBusy(opcode, chipMode byte) time.Duration { return 0 }

// MaxTimes returns the longest execution time of a command in the clock mode of
// chipMode: cryptoauthlib's tables for the ATECC608 with clock dividers M0, M1
// and M2.
func MaxTimes(opcode, chipMode byte) time.Duration {
	ms, ok := maxTimes[opcode]
	if !ok {
		return time.Millisecond // a parse error takes no time to speak of
	}
	column := 0
	switch chipMode & 0xf8 {
	case 0x28:
		column = 1
	case 0x68:
		column = 2
	}
	return time.Duration(ms[column]) * time.Millisecond
}

var maxTimes = map[byte][3]int{
	opAES:         {27, 27, 27},
	opCheckMac:    {40, 40, 40},
	opCounter:     {25, 25, 25},
	opDeriveKey:   {50, 50, 50},
	opECDH:        {75, 172, 531},
	opGenDig:      {25, 35, 35},
	opGenKey:      {115, 215, 653},
	opInfo:        {5, 5, 5},
	opKDF:         {165, 165, 165},
	opLock:        {35, 35, 35},
	opMAC:         {55, 55, 55},
	opNonce:       {20, 20, 20},
	opPrivWrite:   {50, 50, 50},
	opRandom:      {23, 23, 23},
	opRead:        {5, 5, 5},
	opSecureBoot:  {80, 160, 480},
	opSelfTest:    {250, 625, 2324},
	opSHA:         {36, 42, 75},
	opSign:        {115, 220, 665},
	opUpdateExtra: {10, 10, 10},
	opVerify:      {105, 295, 1085},
	opWrite:       {45, 45, 45},
}
