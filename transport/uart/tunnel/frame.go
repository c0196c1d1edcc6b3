package tunnel

import (
	"encoding/binary"
	"hash/crc32"
)

// A frame's body is a header, a payload and four bytes of check. On the line it
// is COBS-encoded and ends in a zero. The first byte of the header tells the
// type; one whose high bit is set is a data frame, and the other 15 bits of its
// two bytes are the position of the payload in the stream.
const (
	typeOpen   = 0x01 // device: version, nonce, window, largest payload
	typeAccept = 0x02 // tool: the same, after the device's nonce
	typeRefuse = 0x03 // tool: the device's nonce, reason
	typeAck    = 0x04 // position, window, runs of what is missing and what is not
	typeProbe  = 0x05 // the same, and asks for an acknowledgement
	typeFin    = 0x06 // position of the end
	typeReset  = 0x07 // reason
	dataBit    = 0x80

	// Version is the version of the wire format.
	Version = 1

	nonceSize  = 8
	checkSize  = 4
	dataHeader = 2
	// MaxFrame is the largest payload of a data frame: with it the frame is one
	// COBS block.
	MaxFrame = 240
	// MinFrame is the smallest payload that an end may ask to be sent.
	MinFrame = 16
	maxBody  = dataHeader + MaxFrame + checkSize
	// overhead is what a data frame costs on the line beside its payload: header,
	// check, COBS code byte, delimiter.
	overhead = dataHeader + checkSize + 2

	openSize   = 2 + nonceSize + 4
	acceptSize = 2 + 2*nonceSize + 4
	refuseSize = 1 + nonceSize + 1
	ackSize    = 5
	finSize    = 3
	resetSize  = 2
)

// check returns what stands at the end of a frame of the stream with this key:
// the key is added to the CRC, so that a frame of another stream does not pass,
// and who receives two such frames can tell that there is another stream.
func check(body []byte, key uint32) uint32 { return crc32.ChecksumIEEE(body) ^ key }

// streamKey returns the key of the stream that these nonces make. 0 is the key
// of the frames that open a stream, and is no stream's.
func streamKey(device, tool *[nonceSize]byte) uint32 {
	key := crc32.Update(crc32.ChecksumIEEE(device[:]), crc32.IEEETable, tool[:])
	if key == 0 {
		return 1
	}
	return key
}

// encode writes the check behind the body, which has room for it, and the whole
// frame with its delimiter to dst. It returns what it has written. A body has at
// most 253 bytes with its check, so that no COBS block is full.
func encode(dst, body []byte, key uint32) []byte {
	body = binary.BigEndian.AppendUint32(body, check(body, key))
	n, code := 1, 0 // where the next byte goes, and the place of the block's length
	for _, b := range body {
		if b == 0 {
			dst[code] = byte(n - code)
			code = n
		} else {
			dst[n] = b
		}
		n++
	}
	dst[code] = byte(n - code)
	dst[n] = 0
	return dst[:n+1]
}

// decode undoes COBS in place. A frame without its delimiter that is not whole
// returns false.
func decode(frame []byte) (body []byte, ok bool) {
	n := 0
	for at := 0; at < len(frame); {
		code := int(frame[at])
		if code == 0 || at+code > len(frame) {
			return nil, false
		}
		n += copy(frame[n:], frame[at+1:at+code])
		at += code
		if at < len(frame) && code < 0xFF {
			frame[n] = 0
			n++
		}
	}
	return frame[:n], true
}

// keyOf splits a decoded frame and returns the key under which its check holds:
// 0 for a frame that opens a stream, the stream's for one of a stream, and
// anything for a damaged one.
func keyOf(frame []byte) (body []byte, key uint32, ok bool) {
	if len(frame) < resetSize+checkSize {
		return nil, 0, false
	}
	body = frame[:len(frame)-checkSize]
	return body, check(body, binary.BigEndian.Uint32(frame[len(body):])), true
}

// distance returns how far ahead of position b position a is, both of 15 bits.
func distance(a, b uint16) int64 { return int64(int16((a-b)<<1) >> 1) }

// appendVarint appends a number below 2^14 in one byte or two, seven bits each,
// the lower first.
func appendVarint(b []byte, n int64) []byte {
	if n >= 0x80 {
		b = append(b, byte(n)|0x80)
		n >>= 7
	}
	return append(b, byte(n))
}

// takeVarint reads one such number.
func takeVarint(b []byte) (n int64, rest []byte, ok bool) {
	switch {
	case len(b) >= 1 && b[0] < 0x80:
		return int64(b[0]), b[1:], true
	case len(b) >= 2 && b[1] < 0x80:
		return int64(b[0]&0x7f) | int64(b[1])<<7, b[2:], true
	}
	return 0, nil, false
}
