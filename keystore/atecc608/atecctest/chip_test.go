package atecctest_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math/big"
	"testing"
	"time"

	"github.com/quarklink-go/quarklink/keystore/atecc608/atecctest"
)

// library drives the chip with the transactions of cryptoauthlib: for every
// command a wake pulse with one byte, the wake answer, the command, a poll, the
// count, the rest, idle.
type library struct {
	t     testing.TB
	chip  *atecctest.Chip
	clock *atecctest.Clock
}

func newLibrary(t testing.TB, opts atecctest.Options) *library {
	l := &library{t: t, chip: atecctest.New(opts), clock: new(atecctest.Clock)}
	l.chip.SetClock(l.clock.Now)
	return l
}

func crc(data []byte) []byte {
	var r uint16
	for _, b := range data {
		for mask := byte(1); mask != 0; mask <<= 1 {
			in, out := b&mask != 0, r&0x8000 != 0
			r <<= 1
			if in != out {
				r ^= 0x8005
			}
		}
	}
	return []byte{byte(r), byte(r >> 8)}
}

func (l *library) wake() {
	l.t.Helper()
	if err := l.chip.Tx(0, []byte{1}, nil); !errors.Is(err, atecctest.ErrNACK) {
		l.t.Fatalf("wake pulse: %v", err)
	}
	l.clock.Advance(1500 * time.Microsecond)
	answer := make([]byte, 4)
	if err := l.chip.Tx(0x60, nil, answer); err != nil || hex.EncodeToString(answer) != "04113343" {
		l.t.Fatalf("wake answer: % x, %v", answer, err)
	}
}

// run returns the reply's data.
func (l *library) run(opcode, p1 byte, p2 uint16, data ...[]byte) []byte {
	l.t.Helper()
	l.wake()
	reply := l.command(opcode, p1, p2, data...)
	if err := l.chip.Tx(0x60, []byte{2}, nil); err != nil {
		l.t.Fatalf("idle: %v", err)
	}
	return reply
}

func (l *library) command(opcode, p1 byte, p2 uint16, data ...[]byte) []byte {
	l.t.Helper()
	packet := []byte{0, opcode, p1, byte(p2), byte(p2 >> 8)}
	packet = append(packet, bytes.Join(data, nil)...)
	packet[0] = byte(len(packet) + 2)
	packet = append(packet, crc(packet)...)
	if err := l.chip.Tx(0x60, append([]byte{3}, packet...), nil); err != nil {
		l.t.Fatalf("command %02x: %v", opcode, err)
	}
	l.clock.Advance(time.Millisecond)
	for polls := 0; l.chip.Tx(0x60, []byte{0}, nil) != nil; polls++ {
		if polls > 1250 {
			l.t.Fatalf("command %02x: busy for ever", opcode)
		}
		l.clock.Advance(2 * time.Millisecond)
	}
	count := make([]byte, 1)
	if err := l.chip.Tx(0x60, nil, count); err != nil || count[0] < 4 {
		l.t.Fatalf("command %02x: count %d, %v", opcode, count[0], err)
	}
	rest := make([]byte, count[0]-1)
	if err := l.chip.Tx(0x60, nil, rest); err != nil {
		l.t.Fatalf("command %02x: %v", opcode, err)
	}
	group := append(count, rest...)
	n := len(group) - 2
	if !bytes.Equal(group[n:], crc(group[:n])) {
		l.t.Fatalf("command %02x: bad CRC in % x", opcode, group)
	}
	return group[1:n]
}

// want runs a command whose reply is a status.
func (l *library) want(status byte, opcode, p1 byte, p2 uint16, data ...[]byte) {
	l.t.Helper()
	if reply := l.run(opcode, p1, p2, data...); len(reply) != 1 || reply[0] != status {
		l.t.Fatalf("command %02x %02x %04x: % x, want status %02x", opcode, p1, p2, reply, status)
	}
}

// get runs a command whose reply has that size.
func (l *library) get(size int, opcode, p1 byte, p2 uint16, data ...[]byte) []byte {
	l.t.Helper()
	reply := l.run(opcode, p1, p2, data...)
	if len(reply) != size {
		l.t.Fatalf("command %02x %02x %04x: % x, want %d bytes", opcode, p1, p2, reply, size)
	}
	return reply
}

const (
	ok       = 0x00
	mismatch = 0x01
	parse    = 0x03
	exec     = 0x0f
)

// The configuration that cryptoauthlib's own tests write into an ATECC608.
const suiteConfig = "01230000000060000405060" + "7ee010100" +
	"c000a100af2fc4448720c4f48f0f0f0f" + "9f8f8364c444c4640f0f0f0f0f0f0f0f" +
	"0f0f0f0fffffffff00000000ffffffff" + "00000000ff8403bc0969760000000000" +
	"0000000000000000ffff0e4000000000" + "33001c0013001c003c003a101c003300" +
	"1c001c00380030003c003c0032003000"

// The key that those tests write into slot 4.
const slot4Key = "3780e63d4968ade5d822c013fcc323845d1b569fe705b60006feec145a0db1e3"

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// writeConfig writes words 16 to 127 in the library's order, the two extra
// bytes last.
func (l *library) writeConfig(config []byte) {
	l.t.Helper()
	for at := 16; at < 128; {
		switch {
		case at%32 == 0 && at/32 != 2:
			l.want(ok, 0x12, 0x80, uint16(at/4), config[at:at+32])
			at += 32
			continue
		case at != 84:
			l.want(ok, 0x12, 0x00, uint16(at/4), config[at:at+4])
		}
		at += 4
	}
	l.want(ok, 0x20, 0, uint16(config[84]))
	l.want(ok, 0x20, 1, uint16(config[85]))
}

func (l *library) readConfig() []byte {
	l.t.Helper()
	var config []byte
	for at := uint16(0); at < 32; at += 8 {
		config = append(config, l.get(32, 0x02, 0x80, at)...)
	}
	return config
}

// locked returns a chip with that configuration in the given state.
func locked(t testing.TB, data bool) *library {
	config := atecctest.BlankConfig()
	copy(config[16:], unhex(t, suiteConfig)[16:])
	config[86], config[87] = 0x55, 0
	if data {
		config[86] = 0
	}
	l := newLibrary(t, atecctest.Options{Config: &config, Times: atecctest.NeverBusy})
	if !data {
		return l
	}
	l.want(ok, 0x12, 0x82, 4<<3, unhex(t, slot4Key))
	return l
}

// A chip's whole life as cryptoauthlib leads it.
func TestLife(t *testing.T) {
	l := newLibrary(t, atecctest.Options{Times: atecctest.MaxTimes, WakeTime: 1500 * time.Microsecond})
	config := unhex(t, suiteConfig)
	digest := sha256.Sum256([]byte("message"))
	block, word := make([]byte, 32), make([]byte, 4)

	// Blank.
	if revision := l.get(4, 0x30, 0, 0); revision[2] != 0x60 {
		t.Errorf("revision % x", revision)
	}
	if r := l.get(32, 0x1b, 0, 0); !bytes.Equal(r, bytes.Repeat([]byte{0xff, 0xff, 0, 0}, 8)) {
		t.Errorf("random before the configuration is locked: % x", r)
	}
	l.want(ok, 0x16, 3, 0, block)
	l.want(ok, 0x47, 0, 0)
	if got := l.get(32, 0x47, 2, 7, []byte("message")); !bytes.Equal(got, digest[:]) {
		t.Errorf("SHA-256: %x", got)
	}
	l.want(exec, 0x40, 4, 0)
	l.want(exec, 0x41, 0x80, 0)
	l.want(exec, 0x12, 0x82, 0, block)
	l.want(exec, 0x02, 0x82, 0)
	l.want(exec, 0x17, 0x01, 0)
	l.want(parse, 0x12, 0x80, 0, block)    // bytes 0 to 31
	l.want(parse, 0x12, 0x00, 3, word)     // bytes 12 to 15
	l.want(parse, 0x12, 0x00, 21, word)    // bytes 84 to 87
	l.want(parse, 0x12, 0x80, 2<<3, block) // includes them
	l.want(parse, 0x12, 0x00, 32, word)
	l.want(parse, 0x02, 0x00, 32)
	l.want(parse, 0x77, 0, 0)
	l.want(parse, 0x99, 0, 0)
	for _, n := range []uint32{0, 15, 16, 17, 31, 32, 1<<20 - 1, 1<<21 - 1} {
		l.writeCounter(1, n)
		if got := binary.LittleEndian.Uint32(l.get(4, 0x24, 0, 1)); got != n {
			t.Errorf("counter: wrote %d, reads %d", n, got)
		}
	}
	l.want(exec, 0x24, 1, 1) // at its end
	l.writeCounter(1, 0)
	l.writeConfig(config)
	if got := l.readConfig(); !bytes.Equal(got[16:], append(bytes.Clone(config[16:86]), append([]byte{0x55, 0x55}, config[88:]...)...)) {
		t.Errorf("configuration reads back as % x", got)
	}
	sum := crc(l.readConfig())
	l.want(exec, 0x17, 0, uint16(sum[0])|uint16(sum[1])<<8^1)
	l.want(ok, 0x17, 0, uint16(sum[0])|uint16(sum[1])<<8)

	// Configuration locked.
	l.want(exec, 0x17, 0x80, 0)
	l.want(exec, 0x12, 0x00, 5, word)
	if r := l.get(32, 0x1b, 0, 0); bytes.Equal(r, bytes.Repeat([]byte{0xff, 0xff, 0, 0}, 8)) {
		t.Error("random is still constant")
	}
	l.get(64, 0x40, 4, 2)
	l.want(exec, 0x12, 0x82, 0, block)         // a private key
	l.want(exec, 0x12, 0x02, 2<<8|10<<3, word) // words only later
	l.want(ok, 0x12, 0x82, 2<<8|10<<3, block)
	l.want(ok, 0x12, 0x82, 2<<8|10<<3|1, block) // what is past the end is ignored
	l.want(parse, 0x12, 0x82, 16<<3, block)
	l.want(parse, 0x12, 0x02, 4<<8|10<<3, word)
	l.want(parse, 0x12, 0x02, 2<<8|10<<3|2, word)
	l.want(exec, 0x12, 0x02, 4<<8|8<<3|7, word)
	l.want(ok, 0x12, 0x81, 0, block)
	l.want(ok, 0x12, 0x81, 8, block)
	l.want(exec, 0x02, 0x81, 0)
	l.want(exec, 0x02, 0x82, 11<<3)
	l.want(ok, 0x16, 0x43, 0, digest[:])
	l.want(exec, 0x41, 0xa0, 2)
	l.want(ok, 0x12, 0x82, 4<<3, unhex(t, slot4Key))
	l.want(ok, 0x17, 0x81, 0)

	// Data locked.
	l.want(exec, 0x17, 0x81, 0)
	l.want(exec, 0x12, 0x81, 0, block)
	l.want(exec, 0x12, 0x01, 1, word)
	l.get(32, 0x02, 0x81, 8)
	l.want(exec, 0x02, 0x82, 4<<3) // secret
	l.want(exec, 0x02, 0x82, 2<<3) // a private key
	l.want(ok, 0x17, 2|13<<2, 0)
	l.want(exec, 0x17, 2|13<<2, 0)
	l.want(exec, 0x17, 2|2<<2, 0) // not lockable
	l.want(exec, 0x12, 0x82, 13<<3, block)
	l.want(ok, 0x12, 0x02, 11<<3|1, word)
	if valid := l.get(4, 0x30, 1, 2); valid[0] != 1 {
		t.Error("the key in slot 2 is not valid")
	}
	if valid := l.get(4, 0x30, 1, 0); valid[0] != 0 {
		t.Error("there is no key in slot 0, but it is valid")
	}
	public := l.get(64, 0x40, 0, 2)
	signature := l.sign(2, digest[:])
	l.verify(public, digest[:], signature)
	l.chip.PowerCycle()
	if again := l.get(64, 0x40, 0, 2); !bytes.Equal(again, public) {
		t.Error("another key after a power cycle")
	}
}

func (l *library) writeCounter(i int, n uint32) {
	l.t.Helper()
	// As calib_write_config_counter encodes it.
	linA, binA := uint16(0xffff>>(n%32)), uint16(n/32)
	linB, binB := uint16(0xffff), uint16(0)
	if n >= 16 {
		linB, binB = 0xffff>>((n-16)%32), uint16((n-16)/32)
	}
	var b []byte
	for _, w := range []uint16{linA, linB, binA, binB} {
		b = binary.BigEndian.AppendUint16(b, w)
	}
	l.want(ok, 0x12, 0, uint16(13+2*i), b[:4])
	l.want(ok, 0x12, 0, uint16(14+2*i), b[4:])
}

// sign is atcab_sign.
func (l *library) sign(slot uint16, digest []byte) []byte {
	l.t.Helper()
	l.get(32, 0x1b, 0, 0)
	l.want(ok, 0x16, 0x43, 0, digest)
	return l.get(64, 0x41, 0xa0, slot)
}

// verify is atcab_verify_extern, and Go's opinion.
func (l *library) verify(public, digest, signature []byte) {
	l.t.Helper()
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append([]byte{4}, public...))
	if err != nil {
		l.t.Fatal(err)
	}
	if !ecdsa.Verify(key, digest, new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:])) {
		l.t.Fatal("Go does not verify the signature")
	}
	l.want(ok, 0x16, 0x43, 0, digest)
	l.want(ok, 0x45, 0x22, 4, signature, public)
	l.want(exec, 0x45, 0x22, 4, signature, public) // the buffer is spent
	l.want(ok, 0x16, 0x43, 0, make([]byte, 32))
	l.want(mismatch, 0x45, 0x22, 4, signature, public)
}

// The library's own numbers for the same work.
func TestTransactionsOfTheLibrary(t *testing.T) {
	l := locked(t, true)
	l.get(64, 0x40, 4, 2)
	before := l.chip.Stats()
	l.sign(2, make([]byte, 32))
	if got, want := l.chip.Stats().Sub(before), (atecctest.Stats{Transactions: 21, Pulses: 3, Writes: 12, Reads: 9, NACKs: 3, BytesWritten: 65, BytesRead: 118}); got != want {
		t.Errorf("sign: %+v, want %+v", got, want)
	}
	before = l.chip.Stats()
	l.get(64, 0x40, 4, 2)
	if got, want := l.chip.Stats().Sub(before), (atecctest.Stats{Transactions: 7, Pulses: 1, Writes: 4, Reads: 3, NACKs: 1, BytesWritten: 11, BytesRead: 71}); got != want {
		t.Errorf("GenKey: %+v, want %+v", got, want)
	}
}

// What the bus sees of the chip's states.
func TestStates(t *testing.T) {
	l := newLibrary(t, atecctest.Options{Times: atecctest.MaxTimes})
	tx := func(w []byte, n int) (string, error) {
		r := make([]byte, n)
		err := l.chip.Tx(0x60, w, r)
		return hex.EncodeToString(r), err
	}
	expect := func(what, got string, err error, want string) {
		t.Helper()
		if err != nil || got != want {
			t.Errorf("%s: %s, %v; want %s", what, got, err, want)
		}
	}
	nack := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, atecctest.ErrNACK) {
			t.Errorf("%s: %v, want NACK", what, err)
		}
	}
	info := []byte{3, 7, 0x30, 0, 0, 0, 0x03, 0x5d}
	_, err := tx(nil, 4)
	nack("read asleep", err)
	_, err = tx([]byte{0}, 0)
	nack("write asleep", err)
	nack("another address", l.chip.Tx(0x61, []byte{0}, nil))
	if err := l.chip.Tx(0x60, nil, nil); err != nil {
		t.Errorf("nothing: %v", err)
	}

	l.wake()
	got, err := tx([]byte{0}, 6)
	expect("the wake answer again, and past its end", got, err, "04113343ffff")
	l.chip.Tx(0, []byte{0}, nil)
	got, err = tx(nil, 2)
	expect("an awake chip ignores the pulse", got, err, "ffff")

	if _, err = tx(info, 0); err != nil {
		t.Fatal(err)
	}
	_, err = tx([]byte{0}, 0)
	nack("busy", err)
	l.clock.Advance(5 * time.Millisecond)
	got, err = tx(nil, 1)
	expect("count", got, err, "07")
	got, err = tx(nil, 2)
	expect("the next bytes", got, err, "0000")
	got, err = tx([]byte{0}, 3)
	expect("rewound", got, err, "070000")
	got, err = tx([]byte{3}, 2)
	expect("rewound with 03", got, err, "0700")

	if _, err = tx(info[:3], 0); err != nil { // a command in pieces
		t.Fatal(err)
	}
	_, err = tx(nil, 1)
	nack("read while a command is incomplete", err)
	if _, err = tx(append([]byte{3}, info[3:]...), 0); err != nil {
		t.Fatal(err)
	}
	l.clock.Advance(5 * time.Millisecond)
	got, err = tx([]byte{0}, 1)
	expect("its reply", got, err, "07")

	bad := bytes.Clone(info)
	bad[7] ^= 1
	tx(bad, 0)
	got, err = tx([]byte{0}, 4)
	expect("a command with a bad CRC", got, err, "04ff0142")

	// Idle keeps the buffers, sleep does not.
	for _, test := range []struct{ word, status byte }{{2, ok}, {1, exec}} {
		l := locked(t, true)
		l.get(64, 0x40, 4, 2)
		l.want(ok, 0x16, 0x43, 0, make([]byte, 32))
		l.wake()
		l.chip.Tx(0x60, []byte{test.word}, nil)
		if reply := l.run(0x41, 0xa0, 2); (len(reply) == 64) != (test.status == ok) {
			t.Errorf("sign after [%02x]: % x", test.word, reply)
		}
	}
}

func TestWatchdog(t *testing.T) {
	l := locked(t, true)
	l.get(64, 0x40, 4, 2)
	l.wake()
	l.command(0x16, 0x43, 0, make([]byte, 32))
	l.clock.Advance(690 * time.Millisecond)
	if err := l.chip.Tx(0x60, []byte{0}, nil); err != nil {
		t.Errorf("just before 0.7 s: %v", err)
	}
	l.clock.Advance(10 * time.Millisecond)
	if err := l.chip.Tx(0x60, []byte{0}, nil); !errors.Is(err, atecctest.ErrNACK) {
		t.Errorf("after 0.7 s: %v", err)
	}
	l.want(exec, 0x41, 0xa0, 2) // the digest is gone

	slow := newLibrary(t, atecctest.Options{Times: atecctest.MaxTimes})
	slow.wake()
	slow.clock.Advance(650 * time.Millisecond)
	if reply := slow.command(0x77, 0x3b, 0); !bytes.Equal(reply, []byte{0xee}) {
		t.Errorf("a command that would take too long: % x", reply)
	}
}

// Nonce, GenDig, and what is encrypted with them.
type session struct {
	*library
	temp []byte
}

func (l *library) tail() []byte {
	c := l.readConfig()
	return []byte{c[12], c[0], c[1]}
}

func sum(parts ...[]byte) []byte {
	s := sha256.Sum256(bytes.Join(parts, nil))
	return s[:]
}

func xor(a, b []byte) []byte {
	out := bytes.Clone(a)
	for i := range out {
		out[i] ^= b[i]
	}
	return out
}

func (l *library) nonce() *session {
	input := make([]byte, 20)
	random := l.get(32, 0x16, 0, 0, input)
	return &session{l, sum(random, input, []byte{0x16, 0, 0})}
}

func (s *session) genDig(slot byte, key []byte) {
	// The library sends these four bytes for any key.
	s.want(ok, 0x15, 2, uint16(slot), []byte{0x15, 2, slot, 0})
	s.temp = sum(key, []byte{0x15, 2, slot, 0}, s.tail(), make([]byte, 25), s.temp)
}

func (l *library) writeEncrypted(address uint16, value, key []byte) []byte {
	tail := l.tail()
	s := l.nonce()
	s.genDig(4, key)
	mac := sum(s.temp, []byte{0x12, 0xc2, byte(address), byte(address >> 8)}, tail, make([]byte, 25), value)
	return l.run(0x12, 0xc2, address, xor(value, s.temp), mac)
}

func (l *library) readEncrypted(address uint16, key []byte) []byte {
	s := l.nonce()
	s.genDig(4, key)
	return xor(l.get(32, 0x02, 0x82, address), s.temp)
}

func TestEncrypted(t *testing.T) {
	key := unhex(t, slot4Key)
	value := make([]byte, 32)
	rand.Read(value)
	l := locked(t, true)
	if reply := l.writeEncrypted(5<<8|8<<3, value, key); !bytes.Equal(reply, []byte{ok}) {
		t.Fatalf("encrypted write: % x", reply)
	}
	if got := l.readEncrypted(5<<8|8<<3, key); !bytes.Equal(got, value) {
		t.Errorf("encrypted read: %x, want %x", got, value)
	}
	l.want(exec, 0x12, 0x82, 5<<8|8<<3, value)
	l.want(exec, 0x02, 0x82, 5<<8|8<<3)
	if reply := l.writeEncrypted(5<<8|8<<3, value, make([]byte, 32)); !bytes.Equal(reply, []byte{exec}) {
		t.Errorf("encrypted write with another key: % x", reply)
	}

	// ECDH whose result stays in the chip, against one that comes out.
	bob, alice := l.get(64, 0x40, 4, 0), l.get(64, 0x40, 4, 2)
	l.want(ok, 0x43, 0, 0, alice)
	if kept, out := l.readEncrypted(1<<3, key), l.get(32, 0x43, 0, 2, bob); !bytes.Equal(kept, out) {
		t.Errorf("ECDH: %x and %x", kept, out)
	}
	// With a key in TempKey, and with the output encrypted.
	temp := l.get(64, 0x40, 4, 0xffff)
	clear := l.get(32, 0x43, 0x0d, 0, alice)
	protected := l.get(64, 0x43, 0x0e, 2, temp)
	if got := xor(protected[:32], sum(key, protected[32:48])); !bytes.Equal(got, clear) {
		t.Errorf("ECDH, encrypted: %x, want %x", got, clear)
	}

	// The vector of cryptoauthlib's tests of PrivWrite.
	private := unhex(t, "00000000878f0ab6a526d7111c26e6170810796e7b33007f832b8d64467ed6f870537a19")
	public := unhex(t, "8f8d182bd819048582a9927ea0c56defb4159548e11ca5f7abac45bbce76815be5c64fcd2fd12698544de03795172666607304611"+"9ad5e11a90aa49773aeac86")
	unlockedData := locked(t, false)
	unlockedData.want(ok, 0x46, 0, 0, private, make([]byte, 32))
	if got := unlockedData.get(64, 0x40, 0, 0); !bytes.Equal(got, public) {
		t.Errorf("PrivWrite: public key %x", got)
	}
	tail := l.tail()
	s := l.nonce()
	s.genDig(4, key)
	cipher := append(xor(private[:32], s.temp), xor(private[32:], sum(s.temp))...)
	l.want(ok, 0x46, 0x40, 7, cipher, sum(s.temp, []byte{0x46, 0x40, 7, 0}, tail, make([]byte, 21), private))
	if got := l.get(64, 0x40, 0, 7); !bytes.Equal(got, public) {
		t.Errorf("encrypted PrivWrite: public key %x", got)
	}
	l.want(exec, 0x46, 0, 7, private, make([]byte, 32))
}

func TestSymmetric(t *testing.T) {
	key := unhex(t, slot4Key)
	l := locked(t, true)
	sn := l.readConfig()
	serial := append(bytes.Clone(sn[0:4]), sn[8:13]...)

	s := l.nonce()
	got := l.get(32, 0x08, 0x41, 4)
	want := sum(key, s.temp, []byte{0x08, 0x41, 4, 0}, make([]byte, 11), serial[8:9], serial[4:8], serial[0:2], serial[2:4])
	if !bytes.Equal(got, want) {
		t.Errorf("MAC: %x, want %x", got, want)
	}
	challenge := bytes.Repeat([]byte{0x55}, 32)
	mac := l.get(32, 0x08, 0, 4, challenge)
	other := make([]byte, 13)
	other[0], other[2] = 0x08, 4
	l.want(ok, 0x28, 0, 4, challenge, mac, other)
	// CheckMac has authorised the key that may set the persistent latch, which
	// the key in slot 5 needs.
	aesKey := unhex(t, "2b7e151628aed2a6abf7158809cf4f3c")
	l.want(ok, 0x12, 0x82, 5<<3, aesKey, make([]byte, 16))
	plain := unhex(t, "6bc1bee22e409f96e93d7e117393172a")
	l.want(exec, 0x51, 0, 5, plain)
	if latch := l.get(4, 0x30, 4, 3); latch[0] != 1 {
		t.Errorf("persistent latch: % x", latch)
	}
	sealed := l.get(16, 0x51, 0, 5, plain)
	if hex.EncodeToString(sealed) != "3ad77bb40d7a3660a89ecaf32466ef97" { // FIPS 197 with NIST's test key
		t.Errorf("AES: %x", sealed)
	}
	if got := l.get(16, 0x51, 1, 5, sealed); !bytes.Equal(got, plain) {
		t.Errorf("AES back: %x", got)
	}
	h, input := unhex(t, "66e94bd4ef8a2c3b884cfa59ca342b2e"), unhex(t, "0388dace60b6a392f328c2b971b2fe78")
	if got := l.get(16, 0x51, 3, 0, h, input); hex.EncodeToString(got) != "5e2ec746917062882c85b0685353deb7" {
		t.Errorf("multiplication in GF(2^128): %x", got)
	}
	mac[0] ^= 1
	l.want(mismatch, 0x28, 0, 4, challenge, mac, other)

	// DeriveKey in slot 9 rolls its own key.
	start := bytes.Repeat([]byte{7}, 32)
	l.writeEncrypted(9<<3, start, key)
	tail := l.tail()
	s = l.nonce()
	l.want(ok, 0x1c, 0, 9)
	derived := sum(start, []byte{0x1c, 0, 9, 0}, tail, make([]byte, 25), s.temp)
	if got := l.readEncrypted(9<<3, key); !bytes.Equal(got, derived) {
		t.Errorf("DeriveKey: %x, want %x", got, derived)
	}

	// HMAC with the key in slot 4, and a SHA context taken out and put back.
	l.want(ok, 0x47, 4, 4)
	l.want(ok, 0x47, 1, 64, make([]byte, 64))
	h256 := hmac.New(sha256.New, key)
	h256.Write(make([]byte, 67))
	if got := l.get(32, 0x47, 0xc2, 3, make([]byte, 3)); !bytes.Equal(got, h256.Sum(nil)) {
		t.Errorf("HMAC: %x", got)
	}
	l.want(ok, 0x47, 0, 0)
	l.want(ok, 0x47, 1, 5, []byte{1, 2, 3, 4, 5})
	context := l.run(0x47, 6, 0)
	if want := "0500000067e6096a85ae67bb72f36e3c3af54fa57f520e518c68059babd9831f19cde05b0102030405"; hex.EncodeToString(context) != want {
		t.Errorf("SHA context: %x, want %s", context, want)
	}
	l.want(ok, 0x47, 0, 0)
	l.want(ok, 0x47, 7, uint16(len(context)), context)
	if got := l.get(32, 0x47, 0xc2, 5, []byte{1, 2, 3, 4, 5}); !bytes.Equal(got, sum([]byte{1, 2, 3, 4, 5, 1, 2, 3, 4, 5})) {
		t.Errorf("SHA of a restored context: %x", got)
	}

	// KDF, with the vectors of cryptoauthlib's tests.
	nonce := unhex(t, "000102030405060708090a0b0c0d0e0f000102030405060708090a0b0c0d0e0f")
	l.want(ok, 0x16, 3, 0, nonce)
	prf := l.get(64, 0x56, 0x10, 0x1234, []byte{1, 1, 0, 16}, nonce[:16])
	if hex.EncodeToString(prf) != "1ebcbe62005ab948fdffe1c402aaba354ec676050c9bc1aae1ff5b1509a4a04a44254664c2a480f5b77ea2d1020c7ba4b3640c4ac793324c26d6fddfdb1f011a" {
		t.Errorf("KDF, PRF: %x", prf)
	}
	if got := l.get(32, 0x56, 0x30, 0x1234, make([]byte, 4), nonce[:16]); hex.EncodeToString(got[:16]) != "0a940bb5416ef045f1c39458c653ea5a" {
		t.Errorf("KDF, AES: %x", got)
	}
	out := l.get(96, 0x56, 0x14, 0x1234, []byte{1, 1, 0, 16}, nonce[:16])
	for i := range 2 {
		if got := xor(out[32*i:32*i+32], sum(key, out[64+16*i:80+16*i])); !bytes.Equal(got, prf[32*i:32*i+32]) {
			t.Errorf("KDF, PRF, encrypted: block %d is %x", i, got)
		}
	}
	mismatchedIV := bytes.Clone(nonce)
	l.want(exec, 0x56, 0x48, 0x0500, []byte{3, 0, 0, 32}, mismatchedIV)
	copy(mismatchedIV[9:], []byte{0x69, 0x76})
	l.want(ok, 0x56, 0x48, 0x0500, []byte{3, 0, 0, 32}, mismatchedIV)
}

// GCM's own hash key makes the multiplication a check against Go.
func TestGFMultiply(t *testing.T) {
	l := locked(t, true)
	block, err := aes.NewCipher(make([]byte, 16))
	if err != nil {
		t.Fatal(err)
	}
	h := make([]byte, 16)
	block.Encrypt(h, h)
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	additional := make([]byte, 16)
	rand.Read(additional)
	nonce := make([]byte, 12)
	// GHASH of one block of additional data, then of the lengths.
	y := l.get(16, 0x51, 3, 0, h, additional)
	y = l.get(16, 0x51, 3, 0, h, xor(y, []byte{7: 128, 15: 0}))
	mask := make([]byte, 16)
	block.Encrypt(mask, append(nonce, 0, 0, 0, 1))
	if want := gcm.Seal(nil, nonce, nil, additional); !bytes.Equal(xor(y, mask), want) {
		t.Errorf("tag %x, want %x", xor(y, mask), want)
	}
}

// Stored public keys, validated by the signature of another key; SecureBoot.
func TestStoredKeys(t *testing.T) {
	l := locked(t, true)
	sn := l.readConfig()
	tail := []byte{sn[12], sn[0], sn[1]}
	writeKey := func(slot uint16, public []byte) {
		t.Helper()
		padded := bytes.Join([][]byte{make([]byte, 4), public[:32], make([]byte, 4), public[32:], make([]byte, 24)}, nil)
		for i := range uint16(3) {
			l.want(ok, 0x12, 0x82, i<<8|slot<<3, padded[32*i:32*i+32])
		}
	}
	authority, public := l.get(64, 0x40, 4, 2), l.get(64, 0x40, 4, 0)
	digest := sum([]byte("code"))
	signature := l.sign(0, digest)
	writeKey(15, authority)
	writeKey(14, public)
	if first := l.get(4, 0x02, 2, 14<<3); first[0]>>4 != 0xa {
		t.Errorf("validity after writing: %x", first[0]>>4)
	}
	stored := func(status byte) {
		t.Helper()
		l.want(ok, 0x16, 0x43, 0, digest)
		l.want(status, 0x45, 0x20, 14, signature)
	}
	stored(exec)
	for _, step := range []struct {
		mode, validity, status byte
		invalidates            byte
	}{{3, 5, ok, 0}, {7, 0xa, exec, 1}} {
		nonce := make([]byte, 32)
		l.want(ok, 0x16, 3, 0, nonce)
		l.want(ok, 0x40, 0x10, 14, make([]byte, 3))
		temp := sum(nonce, []byte{0x40, 0, 0, 0}, tail, make([]byte, 25), public)
		other := make([]byte, 19)
		other[17] = step.invalidates
		message := sum(temp, []byte{0x41}, other[:10], tail[:1], other[10:14], tail[1:], other[14:])
		proof := l.sign(2, message)
		l.want(ok, 0x16, 3, 0, nonce)
		l.want(ok, 0x40, 0x10, 14, make([]byte, 3))
		l.want(ok, 0x45, step.mode, 14, proof, other)
		if first := l.get(4, 0x02, 2, 14<<3); first[0]>>4 != step.validity {
			t.Errorf("validity after mode %d: %x", step.mode, first[0]>>4)
		}
		stored(step.status)
	}

	// Sign what the chip itself knows: the key in slot 4, by GenDig.
	s := l.nonce()
	s.want(ok, 0x15, 2, 4)
	temp := sum(unhex(t, slot4Key), []byte{0x15, 2, 4, 0}, tail, make([]byte, 25), s.temp)
	internal := l.get(64, 0x41, 0x40, 0)
	msg := bytes.Join([][]byte{temp, {0x41, 0x40, 0, 0}, sn[28:30], sn[104:106], {4 | 0x20, 0, 0}, sn[12:13], sn[8:12], sn[0:2], sn[2:4], {1, 0, 0}}, nil)
	l.verify(public, sum(msg), internal)

	// A MAC that proves the verification to the host.
	system := bytes.Repeat([]byte{9}, 32)
	l.want(ok, 0x16, 0x63, 0, digest, system)
	mac := l.get(32, 0x45, 0xa2, 4, signature, public)
	if want := sum(unhex(t, slot4Key), digest, system, signature, []byte{0x45, 0xa2, 4, 0}); !bytes.Equal(mac, want) {
		t.Errorf("verification MAC: %x, want %x", mac, want)
	}

	writeKey(11, authority)
	bootSignature := l.sign(2, digest)
	l.want(ok, 0x80, 5, 0, digest, bootSignature)
	l.want(mismatch, 0x80, 6, 0, digest)
	l.want(ok, 0x80, 7, 0, digest, bootSignature)
	l.want(ok, 0x80, 6, 0, digest)
	l.want(mismatch, 0x80, 5, 0, sum(digest), bootSignature)
	s = l.nonce()
	hashed := sum(unhex(t, slot4Key), s.temp)
	mac = l.get(32, 0x80, 0x85, 0, xor(digest, hashed), bootSignature)
	if want := sum(hashed, digest, bootSignature, []byte{0x80, 0x85, 0, 0}); !bytes.Equal(mac, want) {
		t.Errorf("SecureBoot MAC: %x, want %x", mac, want)
	}
}

// A key with limited uses: counter 0 against the value in slot 10.
func TestCounterMatch(t *testing.T) {
	l := locked(t, true)
	counter := func() uint32 { return binary.LittleEndian.Uint32(l.get(4, 0x24, 0, 0)) }
	for counter()%32 != 31 {
		l.get(4, 0x24, 1, 0)
	}
	match := make([]byte, 32)
	binary.LittleEndian.PutUint32(match, counter()+1)
	copy(match[4:], match[:4])
	l.want(ok, 0x12, 0x82, 10<<3, match)
	l.get(64, 0x40, 4, 0)
	before := counter()
	l.sign(0, make([]byte, 32))
	if counter() != before+1 {
		t.Errorf("counter %d after one use, %d before", counter(), before)
	}
	l.want(ok, 0x16, 0x43, 0, make([]byte, 32))
	l.want(exec, 0x41, 0xa0, 0)
	if counter() != before+1 {
		t.Errorf("counter %d after a use that was refused", counter())
	}
}

// An address that is moved takes effect when the chip sleeps.
func TestMovedAddress(t *testing.T) {
	config := atecctest.BlankConfig()
	config[19] = 1 // ChipMode: UserExtraAdd is the address, once it is set
	chip := atecctest.New(atecctest.Options{Config: &config})
	l := &library{t: t, chip: chip, clock: new(atecctest.Clock)}
	chip.SetClock(l.clock.Now)
	l.want(ok, 0x20, 1, 0x6a)
	l.want(exec, 0x20, 1, 0x6c)
	l.wake()
	chip.Tx(0x60, []byte{1}, nil)
	chip.Wake()
	l.clock.Advance(1500 * time.Microsecond)
	if err := chip.Tx(0x60, []byte{0}, nil); !errors.Is(err, atecctest.ErrNACK) {
		t.Errorf("the old address: %v", err)
	}
	if err := chip.Tx(0x35, []byte{0}, nil); err != nil {
		t.Errorf("the new address: %v", err)
	}
}

func TestECDHWithGo(t *testing.T) {
	l := locked(t, true)
	public, err := ecdh.P256().NewPublicKey(append([]byte{4}, l.get(64, 0x40, 4, 2)...))
	if err != nil {
		t.Fatal(err)
	}
	ours, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	want, err := ours.ECDH(public)
	if err != nil {
		t.Fatal(err)
	}
	if got := l.get(32, 0x43, 0, 2, ours.PublicKey().Bytes()[1:]); !bytes.Equal(got, want) {
		t.Errorf("%x, want %x", got, want)
	}
	l.want(exec, 0x43, 0, 2, make([]byte, 64)) // not on the curve
}

// Nothing that is written breaks the chip, and a power cycle brings it back.
func FuzzTx(f *testing.F) {
	f.Add([]byte{0x60, 8, 4, 3, 7, 0x30, 0, 0, 0, 0x03, 0x5d, 0, 1, 0, 0x60, 1, 4, 0})
	f.Add([]byte{0x60, 3, 0, 3, 0, 0})
	f.Add(bytes.Repeat([]byte{0x60, 2, 1, 3, 0xff}, 40))
	f.Fuzz(func(t *testing.T, script []byte) {
		config := atecctest.BlankConfig()
		copy(config[16:], unhex(t, suiteConfig)[16:])
		config[86], config[87] = 0, 0
		l := newLibrary(t, atecctest.Options{Config: &config, WakeTime: -1})
		l.wake()
		for len(script) >= 3 {
			addr, n, r := uint16(script[0]), int(script[1]), int(script[2])
			script = script[3:]
			n = min(n, len(script))
			w := bytes.Clone(script[:n])
			if addr&0x80 != 0 && n > 4 && n < 157 { // make it a command that arrives whole
				w[0], w[1] = 3, byte(n+1)
				w = append(w, crc(w[1:])...)
				addr = 0x60
			}
			script = script[n:]
			l.chip.Tx(addr, w, make([]byte, r))
			l.clock.Advance(time.Duration(r) * time.Millisecond)
			l.chip.Wake()
		}
		l.chip.Configure(func(c *[128]byte) { c[16], c[85] = 0xc0, 0 })
		l.chip.PowerCycle()
		if revision := l.get(4, 0x30, 0, 0); revision[2] != 0x60 {
			t.Errorf("revision % x", revision)
		}
	})
}
