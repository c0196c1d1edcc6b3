package nvs

import (
	"encoding/binary"
	"strconv"
	"testing"
	"time"

	"github.com/quarklink-go/quarklink/esp/flash"
)

// What opening and writing cost, as a multiple of what cannot be saved:
// decrypting every entry once, or the bytes of the value itself.

func BenchmarkOpen(b *testing.B) {
	keys, err := KeysFromHMAC(make([]byte, 32))
	if err != nil {
		b.Fatal(err)
	}
	m := flash.NewMemory(8 * sectorSize)
	p := openImage(b, m, Options{Keys: keys})
	ns, _ := p.Namespace("n")
	for i := range uint32(126 * 7 / 2) {
		if err := SetInt(ns, string(rune('a'+i%26))+string(rune('a'+i/26)), i); err != nil {
			b.Fatal(err)
		}
	}
	buf := make([]byte, entrySize)
	const rounds = 50
	start := time.Now()
	for range rounds {
		for off := int64(0); off < m.Size(); off += entrySize {
			p.cipher.Decrypt(buf, m[off:off+entrySize], uint64(off))
		}
	}
	limit := float64(time.Since(start).Nanoseconds()) / rounds
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Open(m, Options{Keys: keys}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/limit, "times-decrypt-all")
}

func BenchmarkSetBlob(b *testing.B) {
	w := &metered{Memory: flash.NewMemory(8 * sectorSize)}
	p, err := Open(w, Options{})
	if err != nil {
		b.Fatal(err)
	}
	ns, _ := p.Namespace("n")
	value := []byte(text(2000, 1))
	n := 0
	for b.Loop() {
		n++
		value[0] = byte(n)
		if err := ns.SetBlob("k", value); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(w.programmed)/float64(n)/float64(len(value)), "bytes-programmed/byte")
	b.ReportMetric(float64(w.erased)*sectorSize/float64(n)/float64(len(value)), "bytes-erased/byte")
}

// metered is flash that counts what is done to it.
type metered struct {
	flash.Memory
	programmed, erased int
}

func (m *metered) Program(off int64, data []byte) error {
	m.programmed += len(data)
	return m.Memory.Program(off, data)
}

func (m *metered) EraseSector(off int64) error {
	m.erased++
	return m.Memory.EraseSector(off)
}

// BenchmarkOpenHostile opens partitions that are as bad as they come: half of the
// entries are namespaces, the other half values in the one named last, and every
// second page is damaged. It reports the time for each page as a multiple of that
// of the smallest one, which stays
// near 1 (sorting makes it grow a little) if opening takes linear time.
func BenchmarkOpenHostile(b *testing.B) {
	var smallest float64
	for _, pages := range []int{256, 1024, 4096} {
		b.Run(strconv.Itoa(pages*sectorSize>>20)+" MiB", func(b *testing.B) {
			m := hostileNames(pages)
			for b.Loop() {
				if _, err := OpenReader(m, m.Size(), Options{}); err != nil {
					b.Fatal(err)
				}
			}
			each := float64(b.Elapsed().Nanoseconds()) / float64(b.N) / float64(pages)
			if pages == 256 {
				smallest = each
			}
			b.ReportMetric(each/smallest, "times-smallest")
		})
	}
}

// hostileNames is a partition full of namespaces. The headers of its odd pages
// have a wrong bit; all else is as it should be.
func hostileNames(pages int) flash.Memory {
	m := flash.NewMemory(pages * sectorSize)
	for no := range pages {
		page := m[no*sectorSize:][:sectorSize]
		h := header(uint32(no))
		binary.LittleEndian.PutUint32(h[:], uint32(stateFull))
		h[versionOff+1] ^= byte(no % 2)
		copy(page, h[:])
		for i := range pageSlots {
			n := no*pageSlots + i
			e := newEntry(0, U8, noChunk, strconv.Itoa(n))
			switch {
			case n == pages*pageSlots-1:
				e[24] = 254
			case i%2 == 0:
				e[24] = byte(n % 253)
			default:
				e = newEntry(254, U8, noChunk, strconv.Itoa(n))
			}
			e.seal()
			copy(page[entriesOff+i*entrySize:], e[:])
			page[tableOff+i/4] &^= byte(^slotWritten&3) << (i % 4 * 2)
		}
	}
	return m
}
