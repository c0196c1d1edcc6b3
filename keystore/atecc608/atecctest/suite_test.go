package atecctest_test

import (
	"bytes"
	"crypto/aes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"testing"
	"time"

	"github.com/quarklink-go/quarklink/keystore/atecc608/atecctest"
)

// What cryptoauthlib's own tests (test/api_atcab, release 3.7.8) do with an
// ATECC608, against what its host library (lib/host/atca_host.c) calculates, as
// far as the other tests here do not.

// A blank chip: everything but its address and its mode is written and read
// back, then it is as before; what needs no key works.
func TestSuiteBlank(t *testing.T) {
	l := newLibrary(t, atecctest.Options{})
	original := l.readConfig()
	pattern := make([]byte, 128)
	for i := range pattern {
		pattern[i] = byte(i)
	}
	write := func(config []byte, from int) {
		t.Helper()
		for at := from; at < 128; {
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
	}
	write(pattern, 20)
	got := l.readConfig()
	want := bytes.Clone(pattern)
	copy(want[84:88], original[84:88])
	if !bytes.Equal(got[20:], want[20:]) {
		t.Errorf("pattern reads back as % x", got)
	}
	write(original, 16)
	if got := l.readConfig(); !bytes.Equal(got, original) {
		t.Errorf("restored: % x", got)
	}
	for _, mode := range []byte{0x01, 0x02, 0x08, 0x10, 0x20, 0x3b} {
		if result := l.get(1, 0x77, mode, 0); result[0] != 0 {
			t.Errorf("self test %02x: %02x", mode, result[0])
		}
	}
	aesOfTempKey(t, l)
	l.get(4, 0x24, 1, 0)
	l.want(ok, 0x20, 0, 0) // UpdateExtra of a zero byte
}

// aesOfTempKey uses the four AES keys that TempKey's 64 bytes make.
func aesOfTempKey(t *testing.T, l *library) {
	t.Helper()
	keys, plain := make([]byte, 64), make([]byte, 16)
	rand.Read(keys)
	rand.Read(plain)
	l.want(ok, 0x16, 0x23, 0, keys)
	for block := range 4 {
		cipher, err := aes.NewCipher(keys[16*block : 16*block+16])
		if err != nil {
			t.Fatal(err)
		}
		sealed := make([]byte, 16)
		cipher.Encrypt(sealed, plain)
		if got := l.get(16, 0x51, byte(block)<<6, 0xffff, plain); !bytes.Equal(got, sealed) {
			t.Errorf("AES with block %d of TempKey: %x, want %x", block, got, sealed)
		}
		if got := l.get(16, 0x51, byte(block)<<6|1, 0xffff, sealed); !bytes.Equal(got, plain) {
			t.Errorf("AES back with block %d of TempKey: %x, want %x", block, got, plain)
		}
	}
}

// Between the two locks: the data zone takes encrypted writes too, which
// CheckMac then proves; keys are derived.
func TestSuiteConfigLocked(t *testing.T) {
	key := unhex(t, slot4Key)
	l := locked(t, false)
	l.want(ok, 0x12, 0x82, 4<<3, key)
	value := make([]byte, 32)
	rand.Read(value)
	if reply := l.writeEncrypted(8<<3, value, key); !bytes.Equal(reply, []byte{ok}) {
		t.Fatalf("encrypted write: % x", reply)
	}
	l.checkMac(0, 8, value, make([]byte, 32))
	l.want(ok, 0x16, 3, 0, bytes.Repeat([]byte{0x55}, 32))
	l.want(ok, 0x15, 2, 4) // GenDig
	l.get(32, 0x08, 0, 1, make([]byte, 32))
	l.nonce()
	l.want(ok, 0x1c, 0, 9, make([]byte, 32)) // DeriveKey with a MAC that the slot does not ask for
	l.get(64, 0x40, 4, 2)
	l.get(64, 0x40, 0, 2)
	l.want(exec, 0x56, 0x10, 0, []byte{1, 1, 0, 16}, make([]byte, 16)) // KDF
}

// checkMac has the chip check what atcah_check_mac calculates with that key.
func (l *library) checkMac(mode byte, slot uint16, key, block2 []byte) {
	l.t.Helper()
	other := make([]byte, 13)
	for i := range other {
		other[i] = byte(0xf0 + i)
	}
	tail := l.tail()
	response := sum(key, block2, other[:4], make([]byte, 8), other[4:7], tail[:1], other[7:11], tail[1:], other[11:])
	challenge := block2
	if mode&1 != 0 {
		challenge = make([]byte, 32) // TempKey is the second block
	}
	l.want(ok, 0x28, mode, slot, challenge, response, other)
}

// mac compares MAC with atcah_mac, with the whole serial number.
func (l *library) mac(mode byte, slot uint16, first, second []byte, challenge ...[]byte) {
	l.t.Helper()
	c := l.readConfig()
	mode |= 0x40
	want := sum(first, second, []byte{0x08, mode, byte(slot), 0}, make([]byte, 11), c[12:13], c[8:12], c[0:2], c[2:4])
	if got := l.get(32, 0x08, mode, slot, challenge...); !bytes.Equal(got, want) {
		l.t.Errorf("MAC in mode %02x: %x, want %x", mode, got, want)
	}
}

func TestSuiteMAC(t *testing.T) {
	key := unhex(t, slot4Key)
	l := locked(t, true)
	challenge := make([]byte, 32)
	rand.Read(challenge)
	l.mac(0x00, 4, key, challenge, challenge)
	s := l.nonce()
	l.mac(0x01, 4, key, s.temp)
	s = l.nonce()
	l.mac(0x02, 0, s.temp, challenge, challenge)
	s = l.nonce()
	l.mac(0x03, 0, s.temp, s.temp)
	l.want(exec, 0x08, 0x01, 4) // TempKey is spent

	s = l.nonce()
	l.want(exec, 0x51, 0, 5, make([]byte, 16)) // slot 5 needs the persistent latch
	l.checkMac(1, 4, key, s.temp)
	if latch := l.get(4, 0x30, 4, 3); latch[0] != 1 {
		t.Errorf("persistent latch: % x", latch)
	}
	l.get(16, 0x51, 0, 5, make([]byte, 16))
	l.chip.PowerCycle()
	l.want(exec, 0x51, 0, 5, make([]byte, 16))
}

// GenDig of every zone, shown by a MAC of TempKey.
func TestSuiteGenDig(t *testing.T) {
	key, zero := unhex(t, slot4Key), make([]byte, 32)
	l := locked(t, true)
	config, tail := l.readConfig(), l.tail()
	otp := l.get(32, 0x02, 0x81, 0)
	counter := func(n uint16) []byte { return l.get(4, 0x24, 0, n) }
	l.get(4, 0x24, 1, 1)
	other := bytes.Repeat([]byte{0xa5}, 32)
	blank := make([]byte, 25)
	pad := func(parts ...[]byte) []byte { return append(bytes.Join(parts, nil), blank...)[:25] }
	for name, test := range map[string]struct {
		zone           byte
		id             uint16
		data           []byte
		stored, middle []byte
		swapped        bool
	}{
		"configuration":       {0, 0, nil, config[:32], blank, false},
		"OTP":                 {1, 0, nil, otp, blank, false},
		"data":                {2, 4, nil, key, blank, false},
		"shared nonce":        {3, 4, other, other, blank, false},
		"TempKey first":       {3, 0x8004, other, other, blank, true},
		"counter 0":           {4, 0, nil, zero, pad([]byte{0}, counter(0)), false},
		"counter 1":           {4, 1, nil, zero, pad([]byte{0}, counter(1)), false},
		"key's configuration": {5, 4, nil, zero, pad([]byte{0}, config[28:30], config[104:106], []byte{1}), false},
	} {
		s := l.nonce()
		l.want(ok, 0x15, test.zone, test.id, test.data)
		first, last := test.stored, s.temp
		if test.swapped {
			first, last = last, first
		}
		temp := sum(first, []byte{0x15, test.zone, byte(test.id), 0}, tail, test.middle, last)
		t.Run(name, func(t *testing.T) { l.mac(0x01, 4, key, temp) })
	}
	l.want(ok, 0x16, 0x43, 0, zero)
	l.want(exec, 0x15, 2, 4) // TempKey holds nothing
}

// A key derived from another, which a MAC must allow: slot 3 from slot 4.
func TestSuiteDeriveKeyMAC(t *testing.T) {
	key := unhex(t, slot4Key)
	l := locked(t, true)
	tail := l.tail()
	header := []byte{0x1c, 0, 3, 0}
	s := l.nonce()
	l.want(ok, 0x1c, 0, 3, sum(key, header, tail))
	derived := sum(key, header, tail, make([]byte, 25), s.temp)
	l.checkMac(0, 3, derived, make([]byte, 32))
	l.nonce()
	l.want(exec, 0x1c, 0, 3, make([]byte, 32))
	l.checkMac(0, 3, derived, make([]byte, 32))
}

// HMAC and key derivation from TempKey and from the alternate key buffer.
func TestSuiteDerivation(t *testing.T) {
	key := unhex(t, slot4Key)
	message := make([]byte, 65)
	rand.Read(message)
	mac := hmac.New(sha256.New, key)
	mac.Write(message)
	l := locked(t, true)
	l.want(ok, 0x16, 3, 0, key)
	l.want(ok, 0x47, 4, 0xffff)
	l.want(ok, 0x47, 1, 64, message[:64])
	if got := l.get(32, 0x47, 2, 1, message[64:]); !bytes.Equal(got, mac.Sum(nil)) {
		t.Errorf("HMAC with TempKey: %x, want %x", got, mac.Sum(nil))
	}
	l.want(ok, 0x47, 4, 4)
	l.want(ok, 0x47, 1, 64, message[:64])
	if got := l.get(32, 0x47, 0x42, 1, message[64:]); !bytes.Equal(got, mac.Sum(nil)) { // also to the digest buffer
		t.Errorf("HMAC with slot 4: %x, want %x", got, mac.Sum(nil))
	}
	public := l.get(64, 0x40, 4, 2)
	l.verify(public, mac.Sum(nil), l.get(64, 0x41, 0xa0, 2))

	extract := func(key, message []byte) []byte {
		h := hmac.New(sha256.New, key)
		h.Write(message)
		return h.Sum(nil)
	}
	input := message[:16]
	l.want(ok, 0x16, 3, 0, key)
	if got := l.get(32, 0x56, 0x50, 0, []byte{2, 0, 0, 16}, input); !bytes.Equal(got, extract(key, input)) {
		t.Errorf("HKDF: %x", got)
	}
	sealed := l.get(64, 0x56, 0x54, 0x1234, []byte{2, 0, 0, 16}, input)
	if got := xor(sealed[:32], sum(key, sealed[32:48])); !bytes.Equal(got, extract(key, input)) {
		t.Errorf("HKDF, encrypted: %x", got)
	}
	l.want(ok, 0x16, 0x83, 0, key)
	l.want(ok, 0x56, 0x43, 0, []byte{2, 0, 0, 16}, input) // alternate key to TempKey
	if got := l.get(32, 0x56, 0x50, 0, []byte{2, 0, 0, 16}, input); !bytes.Equal(got, extract(extract(key, input), input)) {
		t.Errorf("HKDF of HKDF: %x", got)
	}
	l.want(ok, 0x56, 0x23, 0, make([]byte, 4), input)          // AES, alternate key to TempKey
	l.want(ok, 0x56, 0x03, 0, []byte{1, 0, 0, 16}, input)      // PRF likewise
	l.want(ok, 0x56, 0x08, 0x0500, []byte{1, 0, 0, 16}, input) // PRF, TempKey to slot 5
	aesOfTempKey(t, l)
}

// A random nonce in TempKey is signed by way of the digest buffer, which leaves
// TempKey as it is, and verified from there with a stored key.
func TestSuiteVerifyTempKey(t *testing.T) {
	l := locked(t, true)
	public := l.get(64, 0x40, 4, 2)
	padded := bytes.Join([][]byte{make([]byte, 4), public[:32], make([]byte, 4), public[32:], make([]byte, 24)}, nil)
	for block := range uint16(3) {
		l.want(ok, 0x12, 0x82, block<<8|15<<3, padded[32*block:32*block+32])
	}
	s := l.nonce()
	signature := l.sign(2, s.temp)
	l.want(ok, 0x45, 0x00, 15, signature)
	l.want(exec, 0x45, 0x00, 15, signature) // TempKey is spent
	l.nonce()
	l.want(mismatch, 0x45, 0x00, 15, signature)
}

// SecureBoot with the digest kept in a slot, encrypted and proved by a MAC.
func TestSuiteSecureBoot(t *testing.T) {
	io := unhex(t, slot4Key)
	l := locked(t, true)
	public := l.get(64, 0x40, 4, 2)
	padded := bytes.Join([][]byte{make([]byte, 4), public[:32], make([]byte, 4), public[32:]}, nil)
	l.want(ok, 0x12, 0x82, 11<<3, padded[:32])
	l.want(ok, 0x12, 0x82, 1<<8|11<<3, padded[32:64])
	l.want(ok, 0x12, 0x02, 2<<8|11<<3, padded[64:68])
	l.want(ok, 0x12, 0x02, 2<<8|11<<3|1, padded[68:72])
	digest := sum([]byte("image"))
	signature := l.sign(2, digest)
	for _, step := range []struct {
		mode      byte
		signature []byte
	}{{0x87, signature}, {0x86, nil}} {
		s := l.nonce()
		hashed := sum(io, s.temp)
		got := l.get(32, 0x80, step.mode, 0, xor(digest, hashed), step.signature)
		if want := sum(hashed, digest, step.signature, []byte{0x80, step.mode, 0, 0}); !bytes.Equal(got, want) {
			t.Errorf("mode %02x: MAC %x, want %x", step.mode, got, want)
		}
	}
}

// Transactions when the chip takes its time: the library waits 1 ms, then polls
// every 2 ms.
func TestSuiteBusy(t *testing.T) {
	config := atecctest.BlankConfig()
	copy(config[16:], unhex(t, suiteConfig)[16:])
	config[86], config[87] = 0, 0
	l := newLibrary(t, atecctest.Options{Config: &config, Times: atecctest.MaxTimes})
	l.get(64, 0x40, 4, 2)
	for name, test := range map[string]struct {
		run  func()
		want atecctest.Stats
	}{
		"sign":     {func() { l.sign(2, make([]byte, 32)) }, atecctest.Stats{Transactions: 99, Pulses: 3, Writes: 90, Reads: 9, NACKs: 81, BytesWritten: 143, BytesRead: 118}},
		"GenKey":   {func() { l.get(64, 0x40, 4, 2) }, atecctest.Stats{Transactions: 64, Pulses: 1, Writes: 61, Reads: 3, NACKs: 58, BytesWritten: 68, BytesRead: 71}},
		"ChipMode": {func() { l.get(32, 0x02, 0x80, 0) }, atecctest.Stats{Transactions: 9, Pulses: 1, Writes: 6, Reads: 3, NACKs: 3, BytesWritten: 13, BytesRead: 39}},
	} {
		before := l.chip.Stats()
		test.run()
		if got := l.chip.Stats().Sub(before); got != test.want {
			t.Errorf("%s: %+v, want %+v", name, got, test.want)
		}
	}
}

// atcab_wakeup of a chip that is awake fails, but the command that follows, for
// which the library wakes it again in vain, is carried out.
func TestSuiteAwake(t *testing.T) {
	l := locked(t, true)
	l.wake()
	answer := make([]byte, 4)
	for range 21 { // rx_retries is 20
		l.chip.Tx(0, []byte{1}, nil)
		l.clock.Advance(1500 * time.Microsecond)
		if err := l.chip.Tx(0x60, nil, answer); err != nil || hex.EncodeToString(answer) != "ffffffff" {
			t.Fatalf("answer of a chip that is awake: % x, %v", answer, err)
		}
	}
	if reply := l.command(0x24, 0, 0); len(reply) != 4 || binary.LittleEndian.Uint32(reply) > 1<<21 {
		t.Errorf("counter: % x", reply)
	}
}

// A key that wants an authorisation works after CheckMac with the right key,
// until the chip sleeps.
func TestAuthorisation(t *testing.T) {
	key := unhex(t, slot4Key)
	l := locked(t, true)
	l.chip.Configure(func(config *[128]byte) { copy(config[100:], []byte{0x93, 0x04}) }) // slot 2, by slot 4
	l.get(64, 0x40, 4, 2)
	refused := func() {
		t.Helper()
		l.want(ok, 0x16, 0x43, 0, make([]byte, 32))
		l.want(exec, 0x41, 0xa0, 2)
	}
	refused()
	l.checkMac(0, 1, bytes.Repeat([]byte{0xff}, 32), make([]byte, 32)) // another key
	refused()
	l.checkMac(0, 4, key, make([]byte, 32))
	l.sign(2, make([]byte, 32))
	l.wake()
	l.chip.Tx(0x60, []byte{1}, nil)
	refused()
}
