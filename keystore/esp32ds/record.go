package esp32ds

import (
	"crypto/rsa"
	"encoding/binary"
	"fmt"
	"io/fs"

	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/store"
)

const (
	recordVersion = 1
	minBits       = 2048 // of a key that is a device's identity; the chips take 1024 too
)

// A record's payload: chip (uint16), eFuse key block (uint8), public exponent
// (uint32), esp_ds_data_t, modulus (as many bytes as the key has). All numbers
// are little-endian.
const recordHeader = 2 + 1 + 4

// RecordName returns the name of the record that holds a role's key: ds-esk or
// ds-dsk. An unknown role is fs.ErrInvalid.
func RecordName(role keystore.Role) (string, error) {
	switch role {
	case keystore.Enrolment, keystore.Device:
		return "ds-" + string(role), nil
	}
	return "", fmt.Errorf("esp32ds: unknown role %q: %w", role, fs.ErrInvalid)
}

// EncodeRecord returns the record of a role's key, to be stored under
// [RecordName]: what [Store.Initialise] stores, for hosts that initialise a
// device by writing its flash. The eFuse key that the parameters were made with
// belongs in key block number block, 0 to 5. No parameters, a block out of range,
// a public key that is not of the parameters' length, and a key of less than 2048
// bits are fs.ErrInvalid.
func EncodeRecord(role keystore.Role, block int, pub *rsa.PublicKey, p *Params) ([]byte, error) {
	name, err := RecordName(role)
	if err != nil {
		return nil, err
	}
	if p == nil {
		return nil, fmt.Errorf("esp32ds: record %q: no parameters: %w", name, fs.ErrInvalid)
	}
	if block < 0 || block >= KeyBlocks {
		return nil, fmt.Errorf("esp32ds: record %q: eFuse key block %d, need 0 to %d: %w", name, block, KeyBlocks-1, fs.ErrInvalid)
	}
	if err := checkPublicKey(p.chip, pub); err != nil {
		return nil, fmt.Errorf("esp32ds: record %q: %w: %w", name, err, fs.ErrInvalid)
	}
	if p.bits < minBits {
		return nil, fmt.Errorf("esp32ds: record %q: a key of %d bits identifies nobody, need %d: %w", name, p.bits, minBits, fs.ErrInvalid)
	}
	if pub.N.BitLen() != p.bits {
		return nil, fmt.Errorf("esp32ds: record %q: a public key of %d bits, and parameters of %d: %w", name, pub.N.BitLen(), p.bits, fs.ErrInvalid)
	}
	payload := make([]byte, recordHeader, recordHeader+len(p.data)+p.bits/8)
	binary.LittleEndian.PutUint16(payload, uint16(p.chip))
	payload[2] = uint8(block)
	binary.LittleEndian.PutUint32(payload[3:], uint32(pub.E))
	payload = append(payload, p.data...)
	modulus := payload[len(payload) : len(payload)+p.bits/8]
	putLittleEndian(modulus, pub.N)
	return store.EncodeRecord(name, recordVersion, payload[:cap(payload)]), nil
}

// heldKey is what a record says.
type heldKey struct {
	block  int
	public *rsa.PublicKey
	params *Params
}

// decodeRecord takes apart what EncodeRecord made. A record of another chip is
// ErrInvalidArg, any other damage is store.ErrDamaged.
func decodeRecord(role keystore.Role, chip Chip, record []byte) (*heldKey, error) {
	name, err := RecordName(role)
	if err != nil {
		return nil, err
	}
	version, payload, err := store.DecodeRecord(name, record)
	if err != nil {
		return nil, err
	}
	if version != recordVersion {
		return nil, fmt.Errorf("record %q: version %d is not known here, need %d: it was written by a newer release", name, version, recordVersion)
	}
	if len(payload) < recordHeader {
		return nil, fmt.Errorf("record %q: %d bytes: %w", name, len(payload), store.ErrDamaged)
	}
	if made := Chip(binary.LittleEndian.Uint16(payload)); made != chip {
		return nil, fmt.Errorf("record %q: made for %v, and this is %v: %w", name, made, chip, ErrInvalidArg)
	}
	body := payload[recordHeader:]
	if len(body) < dataSize(chip) {
		return nil, fmt.Errorf("record %q: %d bytes are no parameters: %w", name, len(body), store.ErrDamaged)
	}
	params, err := ParseParams(chip, body[:dataSize(chip)])
	if err != nil {
		return nil, fmt.Errorf("record %q: %w: %w", name, err, store.ErrDamaged)
	}
	modulus := body[dataSize(chip):]
	key := &heldKey{
		block:  int(payload[2]),
		public: &rsa.PublicKey{N: littleEndian(modulus), E: int(binary.LittleEndian.Uint32(payload[3:]) & (1<<31 - 1))},
		params: params,
	}
	again, err := EncodeRecord(role, key.block, key.public, params)
	if err != nil {
		return nil, fmt.Errorf("record %q: %w: %w", name, err, store.ErrDamaged)
	}
	if string(again) != string(record) { // one spelling only
		return nil, fmt.Errorf("record %q: not in its canonical form: %w", name, store.ErrDamaged)
	}
	return key, nil
}
