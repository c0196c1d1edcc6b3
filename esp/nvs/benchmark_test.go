package nvs

import (
	"testing"
	"time"
)

// What opening and writing cost, as a multiple of what cannot be saved:
// decrypting every entry once, or the bytes of the value itself.

func BenchmarkOpen(b *testing.B) {
	keys, err := KeysFromHMAC(make([]byte, 32))
	if err != nil {
		b.Fatal(err)
	}
	m := NewImage(8 * SectorSize)
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
	w := &metered{Image: NewImage(8 * SectorSize)}
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
	b.ReportMetric(float64(w.erased)*SectorSize/float64(n)/float64(len(value)), "bytes-erased/byte")
}

// metered is flash that counts what is done to it.
type metered struct {
	Image
	programmed, erased int
}

func (m *metered) Program(off int64, data []byte) error {
	m.programmed += len(data)
	return m.Image.Program(off, data)
}

func (m *metered) EraseSector(off int64) error {
	m.erased++
	return m.Image.EraseSector(off)
}
