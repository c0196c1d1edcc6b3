package atecc608

// For the tests in package atecc608_test.

// TBS returns what is signed of a device's and its signer's certificate, for a
// part with that code in its OTP zone.
func TBS(code string, device, signer []byte, deviceKey, signerKey PublicKey, serial [9]byte, eui48 string) (deviceTBS, signerTBS []byte, err error) {
	content, err := tngContentOf(code, device, signer, deviceKey, signerKey, serial, eui48)
	if err != nil {
		return nil, nil, err
	}
	return content.rebuild()
}

// Issued returns a certificate in DER.
func Issued(compressedCert, tbs []byte) []byte {
	c := compressed(compressedCert)
	return c.certificate(tbs)
}

func tngContentOf(code string, device, signer []byte, deviceKey, signerKey PublicKey, serial [9]byte, eui48 string) (*tngContent, error) {
	part, err := tngPartOf([]byte(code))
	if err != nil {
		return nil, err
	}
	content := &tngContent{
		part: part, serial: serial, device: compressed(device), signer: compressed(signer), deviceKey: deviceKey, signerKey: signerKey,
	}
	copy(content.eui48[:], eui48)
	return content, nil
}

// ParseSignature returns R and S, 32 bytes each.
func ParseSignature(der []byte) (rs [64]byte, ok bool) {
	s, ok := parseSignature(der)
	if ok {
		rs = *s
	}
	return rs, ok
}

// SignatureDER is the reverse.
func SignatureDER(rs [64]byte) []byte {
	s := signature(rs)
	return s.der()
}

// ParseReply and Frame are the packets of the wire.
var ParseReply = parseReply

func Frame(opcode, p1 byte, p2 uint16, data []byte) []byte {
	return command{opcode: opcode, p1: p1, p2: p2, data: data}.frame(nil)
}

// CRC16 is the checksum of the wire.
var CRC16 = crc16
