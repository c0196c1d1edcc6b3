package atecc608

import "bytes"

// signature is R and S, 32 bytes each, big-endian, as the chip has them.
type signature [64]byte

// der encodes the signature in ASN.1 (RFC 3279 section 2.2.3).
func (s *signature) der() []byte {
	return []byte(tlv(tagSequence, derInteger(s[:32]), derInteger(s[32:])))
}

// derInteger encodes a number that is not negative.
func derInteger(b []byte) string {
	b = bytes.TrimLeft(b, "\x00")
	if len(b) == 0 || b[0]&0x80 != 0 { // zero, or the top bit would read as a sign
		return tlv(tagInteger, "\x00", string(b))
	}
	return tlv(tagInteger, string(b))
}

// parseSignature is the reverse of der, and takes nothing else: whatever has
// two forms is refused.
func parseSignature(der []byte) (*signature, bool) {
	const head, most = 2, 33 // bytes of tag and length; of an integer's content
	var s signature
	rest := der
	if len(rest) < head || rest[0] != tagSequence || int(rest[1]) != len(rest)-head {
		return nil, false
	}
	rest = rest[head:]
	for _, to := range [][]byte{s[:32], s[32:]} {
		if len(rest) < head || rest[0] != tagInteger || int(rest[1]) > min(most, len(rest)-head) {
			return nil, false
		}
		number := bytes.TrimLeft(rest[head:head+int(rest[1])], "\x00")
		if len(number) > 32 {
			return nil, false
		}
		copy(to[32-len(number):], number)
		rest = rest[head+int(rest[1]):]
	}
	if !bytes.Equal(s.der(), der) {
		return nil, false
	}
	return &s, true
}
