package esp32ds_test

import (
	"crypto/rsa"
	"encoding/binary"
	"errors"
	"io/fs"
	"math/big"
	"strings"
	"testing"

	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/keystore/esp32ds"
	"github.com/quarklink-go/quarklink/keystore/esp32ds/dstest"
	"github.com/quarklink-go/quarklink/store"
)

// payload returns what is in the record of a good key in block 5 of a C3.
func payload(tb testing.TB) []byte {
	tb.Helper()
	key := loadKey(tb, "rsa2048-esk")
	params, err := esp32ds.Encrypt(esp32ds.ESP32C3, key, knownHMACKey, knownIV)
	must(tb, err)
	record, err := esp32ds.EncodeRecord(keystore.Enrolment, 5, &key.PublicKey, params)
	must(tb, err)
	version, payload, err := store.DecodeRecord("ds-esk", record)
	if err != nil || version != 1 {
		tb.Fatalf("version %d, %v", version, err)
	}
	return payload
}

// openRecord opens a record on a chip that has a key in block 5.
func openRecord(tb testing.TB, kind esp32ds.Chip, record []byte) (*rsa.PublicKey, error) {
	tb.Helper()
	chip := dstest.New(kind)
	must(tb, chip.BurnKey(tb.Context(), 5, knownHMACKey))
	var records store.Mem
	must(tb, records.Put(tb.Context(), "ds-esk", record))
	signer, err := newStore(tb, kind, chip, &records).Signer(tb.Context(), keystore.Enrolment)
	if err != nil {
		return nil, err
	}
	return signer.Public().(*rsa.PublicKey), nil
}

func TestRecordRefused(t *testing.T) {
	const params, modulus = 7, 7 + 1220
	if _, err := openRecord(t, esp32ds.ESP32C3, store.EncodeRecord("ds-esk", 1, payload(t))); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(p []byte) []byte
		want   error
		says   string
	}{
		"empty":                {func(p []byte) []byte { return nil }, store.ErrDamaged, "0 bytes"},
		"header only":          {func(p []byte) []byte { return p[:params] }, store.ErrDamaged, "no parameters"},
		"no modulus":           {func(p []byte) []byte { return p[:modulus] }, store.ErrDamaged, "modulus"},
		"modulus cut short":    {func(p []byte) []byte { return p[:len(p)-1] }, store.ErrDamaged, "bits"},
		"modulus too long":     {func(p []byte) []byte { return append(p, 1) }, store.ErrDamaged, "bits"},
		"modulus with a zero":  {func(p []byte) []byte { return append(p, 0) }, store.ErrDamaged, "canonical"},
		"even modulus":         {func(p []byte) []byte { p[modulus] ^= 1; return p }, store.ErrDamaged, "even"},
		"chip":                 {func(p []byte) []byte { p[0] = byte(esp32ds.ESP32C6); return p }, esp32ds.ErrInvalidArg, "made for esp32c6, and this is esp32c3"},
		"block":                {func(p []byte) []byte { p[2] = 6; return p }, store.ErrDamaged, "block 6"},
		"exponent":             {func(p []byte) []byte { p[3] = 0; return p }, store.ErrDamaged, "exponent"},
		"exponent beyond 2^31": {func(p []byte) []byte { p[6] |= 0x80; return p }, store.ErrDamaged, "canonical"},
		"rsa_length":           {func(p []byte) []byte { p[params] = 62; return p }, store.ErrDamaged, "rsa_length"},
		"other rsa_length":     {func(p []byte) []byte { p[params] = 95; return p }, store.ErrDamaged, "3072"},
		"1024 bits": {func(p []byte) []byte {
			p[params] = 31
			p[modulus+127] |= 0x80
			return p[:modulus+128]
		}, store.ErrDamaged, "identifies nobody"},
	} {
		_, err := openRecord(t, esp32ds.ESP32C3, store.EncodeRecord("ds-esk", 1, c.change(payload(t))))
		if !errors.Is(err, c.want) || errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, record := range map[string][]byte{
		"the other role's": store.EncodeRecord("ds-dsk", 1, payload(t)),
		"newer":            store.EncodeRecord("ds-esk", 2, payload(t)),
		"no record":        payload(t),
	} {
		if _, err := openRecord(t, esp32ds.ESP32C3, record); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestEncodeRecordRefuses(t *testing.T) {
	key := loadKey(t, "rsa2048-esk")
	params, err := esp32ds.Encrypt(esp32ds.ESP32C3, key, knownHMACKey, knownIV)
	must(t, err)
	for name, c := range map[string]struct {
		role  keystore.Role
		block int
		pub   *rsa.PublicKey
	}{
		"role":          {"psk", 5, &key.PublicKey},
		"block -1":      {keystore.Device, -1, &key.PublicKey},
		"block 6":       {keystore.Device, 6, &key.PublicKey},
		"no public key": {keystore.Device, 5, nil},
		"empty key":     {keystore.Device, 5, new(rsa.PublicKey)},
		"longer key":    {keystore.Device, 5, &loadKey(t, "rsa3072-esk").PublicKey},
		"E = 1":         {keystore.Device, 5, &rsa.PublicKey{N: key.N, E: 1}},
		"negative N":    {keystore.Device, 5, &rsa.PublicKey{N: new(big.Int).Neg(key.N), E: key.E}},
	} {
		if _, err := esp32ds.EncodeRecord(c.role, c.block, c.pub, params); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := esp32ds.EncodeRecord(keystore.Device, 5, &key.PublicKey, nil); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("no parameters: %v", err)
	}
}

// FuzzRecord takes a good record, cuts it and writes over a part of it: the whole
// as the input would be too large for the fuzzer to get anywhere.
func FuzzRecord(f *testing.F) {
	good := payload(f)
	f.Add(uint16(len(good)), uint16(0), []byte{})
	f.Add(uint16(7+1220), uint16(0), []byte{5, 0, 5, 1, 0, 1, 0})
	f.Add(uint16(len(good)), uint16(7+1220), []byte{1})
	f.Fuzz(func(t *testing.T, length, at uint16, patch []byte) {
		payload := make([]byte, int(length)%(2*len(good)))
		copy(payload, good)
		copy(payload[min(int(at), len(payload)):], patch)
		pub, err := openRecord(t, esp32ds.ESP32C3, store.EncodeRecord("ds-esk", 1, payload))
		if err != nil {
			return
		}
		if bits := pub.N.BitLen(); bits < 2048 || bits%8 != 0 || len(payload) != 7+1220+bits/8 ||
			uint32(pub.E) != binary.LittleEndian.Uint32(payload[3:]) || payload[2] != 5 {
			t.Errorf("%d bytes are read as a key of %d bits, exponent %d", len(payload), bits, pub.E)
		}
	})
}
