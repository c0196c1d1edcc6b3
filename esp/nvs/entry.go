package nvs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

const (
	entrySize  = 32
	keySize    = 16   // a key or namespace name with its NUL padding, at least one
	maxData    = 4000 // bytes of data of one item: the rest of an empty page
	noChunk    = 0xFF // chunk index of everything but chunks
	chunkStart = 0x80 // chunk indices of a blob count from 0 or from here: the version that is not stored
	maxChunks  = 127  // of one blob, so that an index never reaches noChunk
)

// Type is the type of a value, with the code that the format gives it.
type Type uint8

const (
	// Integers, by sign and bits.
	U8     Type = 0x01
	I8     Type = 0x11
	U16    Type = 0x02
	I16    Type = 0x12
	U32    Type = 0x04
	I32    Type = 0x14
	U64    Type = 0x08
	I64    Type = 0x18
	String Type = 0x21 // without a NUL; at most 3999 bytes
	Blob   Type = 0x41 // bytes, in one item or, as they are written now, in chunks
)

// The two kinds of items that make a blob since version 2 of the format.
const (
	blobChunk Type = 0x42
	blobIndex Type = 0x48
)

// String returns the type's name, as the generator's CSV has it: "u8", "string", "blob".
func (t Type) String() string {
	switch t {
	case U8, U16, U32, U64:
		return fmt.Sprintf("u%d", 8*t.size())
	case I8, I16, I32, I64:
		return fmt.Sprintf("i%d", 8*t.size())
	case String:
		return "string"
	case Blob, blobIndex:
		return "blob"
	}
	return fmt.Sprintf("Type(%#02x)", uint8(t))
}

// size returns the bytes of an integer type, 0 for others.
func (t Type) size() int {
	switch t {
	case U8, U16, U32, U64, I8, I16, I32, I64:
		return int(t & 0x0F)
	}
	return 0
}

// class returns what of two items under one key only one can be: blobs of
// both versions of the format are one class.
func (t Type) class() Type {
	if t == blobIndex {
		return Blob
	}
	return t
}

// entry is the first entry of an item: all there is of an integer or a blob's
// index, and what precedes the data of others.
//
//	 0 namespace   1 type   2 span   3 chunk
//	 4 CRC-32 of bytes 0 to 3 and 8 to 31
//	 8 key, padded with NULs
//	24 an integer, padded with FF
//	   or size of the data (2), FFFF, CRC-32 of the data (4)
//	   or size of the blob (4), number of chunks, first chunk, FFFF
type entry [entrySize]byte

// newEntry returns an entry without value and checksum.
func newEntry(ns uint8, t Type, chunk uint8, key string) entry {
	var e entry
	e[0], e[1], e[2], e[3] = ns, uint8(t), 1, chunk
	copy(e[8:8+keySize], key)
	fill(e[24:], 0xFF)
	return e
}

func (e *entry) ns() uint8       { return e[0] }
func (e *entry) typ() Type       { return Type(e[1]) }
func (e *entry) span() int       { return int(e[2]) }
func (e *entry) chunk() uint8    { return e[3] }
func (e *entry) key() []byte     { return e[8 : 8+keySize] }
func (e *entry) value() []byte   { return e[24:] }
func (e *entry) name() string    { return cstring(e.key()) }
func (e *entry) hasData() bool   { t := e.typ(); return t == String || t == Blob || t == blobChunk }
func (e *entry) dataSize() int   { return int(binary.LittleEndian.Uint16(e[24:])) }
func (e *entry) dataCRC() uint32 { return binary.LittleEndian.Uint32(e[28:]) }

// A blob's index.
func (e *entry) blobSize() uint32 { return binary.LittleEndian.Uint32(e[24:]) }
func (e *entry) chunks() int      { return int(e[28]) }
func (e *entry) start() uint8     { return e[29] }

// setData says that data follows the entry.
func (e *entry) setData(data []byte) {
	e[2] = uint8(1 + entries(len(data)))
	binary.LittleEndian.PutUint16(e[24:], uint16(len(data)))
	binary.LittleEndian.PutUint32(e[28:], crc(data))
}

// setIndex makes the entry the index of a blob.
func (e *entry) setIndex(size, chunks int, start uint8) {
	binary.LittleEndian.PutUint32(e[24:], uint32(size))
	e[28], e[29] = uint8(chunks), start
}

func (e *entry) crc() uint32 {
	return crc32.Update(crc(e[:4]), crc32.IEEETable, e[8:])
}

func (e *entry) seal() { binary.LittleEndian.PutUint32(e[4:], e.crc()) }

func (e *entry) sealed() bool { return binary.LittleEndian.Uint32(e[4:]) == e.crc() }

// malformed says what is wrong with a sealed entry, "" if nothing is.
func (e *entry) malformed() string {
	switch t := e.typ(); {
	case e[8+keySize-1] != 0 || e[8] == 0:
		return "key is empty or not terminated"
	case e.ns() == 0xFF:
		return "impossible namespace"
	case t.size() > 0:
		if e.span() != 1 {
			return "integer of more than one entry"
		}
		if e.ns() == 0 && (t != U8 || e[24] == 0 || e[24] == 0xFF) {
			return "impossible namespace definition"
		}
	case t == blobIndex:
		if e.span() != 1 || e.chunk() != noChunk || e.chunks() > maxChunks || e.start() != 0 && e.start() != chunkStart {
			return "impossible blob index"
		}
	case e.hasData():
		if e.dataSize() > maxData || e.span() != 1+entries(e.dataSize()) {
			return "length of the data does not fit the number of entries"
		}
		if t == blobChunk && e.chunk() == noChunk {
			return "chunk without a number"
		}
	default:
		return fmt.Sprintf("unknown type %#02x", uint8(t))
	}
	return ""
}

// entries returns how many entries hold n bytes.
func entries(n int) int { return (n + entrySize - 1) / entrySize }

// crc is ESP-IDF's CRC-32: the usual one, begun with all ones.
func crc(b []byte) uint32 { return crc32.Update(0xFFFFFFFF, crc32.IEEETable, b) }

// hashOf is what items are found by: equal for equal namespace, key and chunk.
func hashOf(ns uint8, key []byte, chunk uint8) uint32 {
	head := [2]byte{ns, chunk}
	return crc32.Update(crc(head[:]), crc32.IEEETable, key)
}

func padKey(key string) [keySize]byte {
	var k [keySize]byte
	copy(k[:], key)
	return k
}

// cstring returns b up to the first NUL.
func cstring(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}
