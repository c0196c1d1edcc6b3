package nvs

import (
	"bytes"
	"encoding/binary"
	"io/fs"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/esp/flash"
)

// The input of FuzzOpen describes a partition of three pages. It is small, as
// the fuzzer needs it, and still says every page state, every table and every
// field of an entry. Each page is 3 bytes (state, sequence number, what is in
// it), then its entries of 8 bytes.
//
//	state   index into fuzzStates
//	in it   low nibble: number of entries; 0x10: header CRC is wrong; 0x20: one
//	        bit of the header is; 0x40: something lies behind the entries
//	entry   flags, namespace, type, span, chunk, key, value, value
//	flags   low 2 bits: state in the table; 4: CRC is wrong; 8: CRC of the data is
const (
	fuzzPages      = 3
	fuzzWrongCRC   = 0x10
	fuzzFlippedBit = 0x20
	fuzzTail       = 0x40
	fuzzEntry      = 8
	fuzzEntryCRC   = 4
	fuzzDataCRC    = 8
)

var fuzzStates = []pageState{stateBlank, stateActive, stateFull, stateFreeing, 0xFFFFFFF0, 0}

// fuzzImage builds what the input describes.
func fuzzImage(in []byte, keys *Keys) flash.Memory {
	m := flash.NewMemory(fuzzPages * sectorSize)
	c, _ := keys.cipher()
	next := func(b []byte) { in = in[copy(b, in):] }
	for no := range fuzzPages {
		page := m[no*sectorSize:][:sectorSize]
		var about [3]byte
		next(about[:])
		state, wrong := fuzzStates[int(about[0])%len(fuzzStates)], about[2]
		if state != stateBlank {
			h := header(uint32(about[1]))
			binary.LittleEndian.PutUint32(h[:], uint32(state))
			if wrong&fuzzWrongCRC != 0 {
				h[headerCRC] ^= 0xFF
			}
			if wrong&fuzzFlippedBit != 0 {
				h[seqOff+int(about[1])%(headerSize-seqOff)] ^= 1
			}
			copy(page, h[:])
		}
		for i := range int(wrong & 0x0F) {
			var b [fuzzEntry]byte
			next(b[:])
			page[tableOff+i/4] &^= (^b[0] & 3) << (i % 4 * 2)
			off := entriesOff + i*entrySize
			e := fuzzItem(b)
			if c != nil {
				c.Encrypt(e[:], e[:], uint64(no*sectorSize+off))
			}
			copy(page[off:], e[:])
		}
		if wrong&fuzzTail != 0 {
			page[sectorSize-1] = 0
		}
	}
	return m
}

// fuzzItem makes an entry. The data of a string or a chunk is the entries after
// it, erased if there are none: no more than 32 bytes 0xFF have a right CRC.
func fuzzItem(b [fuzzEntry]byte) entry {
	e := newEntry(b[1], Type(b[2]), b[4], string(rune('a'+b[5]%4)))
	e[2] = b[3]
	switch {
	case e.hasData():
		e.setData(bytes.Repeat([]byte{0xFF}, int(b[6])%(2*entrySize)))
		e[2] = b[3]
		if b[0]&fuzzDataCRC != 0 {
			e[28] ^= 1
		}
	case e.typ() == blobIndex:
		e.setIndex(int(b[6]), int(b[7]&0x0F), b[7]&0x80)
	default:
		e[24] = b[6]
	}
	e.seal()
	if b[0]&fuzzEntryCRC != 0 {
		e[4] ^= 1
	}
	return e
}

// fuzzSeeds are partitions as a device leaves them.
var fuzzSeeds = map[string][]byte{
	"blank": {},
	"a namespace, an integer, a string": {
		1, 0, 4,
		byte(slotWritten), 0, byte(U8), 1, noChunk, 0, 1, 0,
		byte(slotWritten), 1, byte(U16), 1, noChunk, 1, 7, 0,
		byte(slotWritten), 1, byte(String), 2, noChunk, 2, 20, 0,
		byte(slotWritten), 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0,
	},
	"a blob, written over": {
		2, 0, 4,
		byte(slotWritten), 0, byte(U8), 1, noChunk, 0, 1, 0,
		byte(slotErased), 1, byte(blobChunk), 1, 0, 1, 0, 0,
		byte(slotWritten), 1, byte(blobIndex), 1, noChunk, 1, 0, 1,
		byte(slotHalf), 1, byte(blobIndex), 1, noChunk, 2, 0, 1,
		1, 1, 2,
		byte(slotWritten), 1, byte(blobChunk), 1, 0x80, 1, 0, 0,
		byte(slotWritten), 1, byte(blobIndex), 1, noChunk, 1, 0, 0x81,
	},
	"a page being freed": {
		3, 0, 1,
		byte(slotWritten), 0, byte(U8), 1, noChunk, 0, 1, 0,
		1, 1, 1,
		byte(slotWritten), 0, byte(U8), 1, noChunk, 0, 1, 0,
	},
}

// FuzzOpen opens hostile partitions, reads everything, writes, and discards
// what is damaged; nothing may panic, hang or read otherwise after recovery.
func FuzzOpen(f *testing.F) {
	for _, seed := range fuzzSeeds {
		f.Add(false, seed)
		f.Add(true, seed)
	}
	keys, err := KeysFromHMAC(make([]byte, 32))
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, encrypted bool, in []byte) {
		if len(in) > 3*(3+6*fuzzEntry) {
			return // what the fuzzer finds in these it takes a minute to make smaller
		}
		opt := Options{}
		if encrypted {
			opt.Keys = keys
		}
		m := fuzzImage(in, opt.Keys)
		ro, err := OpenReader(m, m.Size(), opt)
		if err != nil {
			return
		}
		before, errRead := readAll(ro)
		p, err := Open(m, opt)
		if err != nil {
			return
		}
		after, err := readAll(p)
		if errRead == nil {
			require.NoError(t, err, "recovered")
			require.Equal(t, before, after, "recovered")
		}
		fuzzWrite(t, p)
	})
}

// fuzzWrite uses a partition that was opened, whatever is in it.
func fuzzWrite(t *testing.T, p *Partition) {
	ns, err := p.Namespace("fuzz")
	require.NoError(t, err)
	if err := ns.SetBlob("k", []byte("v")); err == nil {
		v, err := ns.GetBlob("k")
		require.NoError(t, err)
		require.Equal(t, "v", string(v))
	}
	require.NoError(t, p.DiscardDamage())
	bad, err := p.Check()
	require.NoError(t, err)
	require.Empty(t, bad)
	_, err = ns.GetBlob("absent")
	require.ErrorIs(t, err, fs.ErrNotExist)
}
