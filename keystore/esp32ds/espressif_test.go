package esp32ds_test

import (
	"crypto/rsa"
	"encoding/hex"
	"encoding/json"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/quarklink-go/quarklink/keystore/esp32ds"
	"github.com/quarklink-go/quarklink/keystore/esp32ds/dstest"
)

// dsCase is one of Espressif's test cases for the peripheral, or one derived
// from them. The cases are not ours to copy: they are read where they are.
type dsCase struct {
	Name       string
	KeyBits    int    `json:"key_bits"`
	RSALength  uint32 `json:"rsa_length_field"`
	HMACKey    hexed  `json:"hmac_key"`
	IV         hexed
	Y          hexed `json:"Y_le_hex"`
	M          hexed `json:"M_le_hex"`
	C          hexed
	Data       hexed   `json:"esp_ds_data_t"`
	Messages   []hexed `json:"messages_le_hex"`
	Signatures []hexed `json:"signatures_le_hex"`
	E          int
	P          hexed `json:"p_hex"`
	Q          hexed `json:"q_hex"`

	Expect  []string
	Message hexed `json:"message_le_hex"`
}

type hexed []byte

func (h *hexed) UnmarshalText(text []byte) (err error) {
	*h, err = hex.DecodeString(string(text))
	return err
}

func readCases(t *testing.T, name string) []dsCase {
	t.Helper()
	dir := os.Getenv("QUARKLINK_VECTORS")
	if dir == "" {
		t.Skip("QUARKLINK_VECTORS is not set: it names the folder with Espressif's cases, which may not be copied")
	}
	data, err := os.ReadFile(filepath.Join(dir, "ds", name))
	must(t, err)
	var file struct{ Cases []dsCase }
	must(t, json.Unmarshal(data, &file))
	if len(file.Cases) == 0 {
		t.Fatalf("%s holds no cases", name)
	}
	return file.Cases
}

func bigEndian(littleEndian []byte) *big.Int {
	b := slices.Clone(littleEndian)
	slices.Reverse(b)
	return new(big.Int).SetBytes(b)
}

func (c dsCase) key() *rsa.PrivateKey {
	return &rsa.PrivateKey{PublicKey: rsa.PublicKey{N: bigEndian(c.M), E: c.E}, D: bigEndian(c.Y)}
}

// TestEspressif makes Espressif's parameters, byte for byte, and has the model
// sign all their messages.
func TestEspressif(t *testing.T) {
	for _, file := range []struct {
		name  string
		chips []esp32ds.Chip
	}{
		{"ds_3072_esp32c3.json", []esp32ds.Chip{esp32ds.ESP32C3, esp32ds.ESP32C6, esp32ds.ESP32H2, esp32ds.ESP32C5}},
		{"ds_4096_esp32s2_esp32s3.json", []esp32ds.Chip{esp32ds.ESP32S2, esp32ds.ESP32S3, esp32ds.ESP32P4}},
	} {
		for _, c := range readCases(t, file.name) {
			for _, kind := range file.chips {
				made, err := esp32ds.Encrypt(kind, c.key(), [32]byte(c.HMACKey), [16]byte(c.IV))
				must(t, err)
				if string(made.Bytes()) != string(c.Data) {
					t.Errorf("%v, %d bits: other parameters than Espressif's", kind, c.KeyBits)
				}
			}
			kind := file.chips[0]
			params, err := esp32ds.ParseParams(kind, c.Data)
			must(t, err)
			must(t, params.Check([32]byte(c.HMACKey), &c.key().PublicKey))

			chip := dstest.New(kind)
			must(t, chip.BurnKey(t.Context(), 2, [32]byte(c.HMACKey)))
			for i, message := range c.Messages {
				z, err := chip.Sign(t.Context(), 2, c.Data, message)
				if err != nil || string(z) != string(c.Signatures[i]) {
					t.Errorf("%v, %d bits, message %d: another result than Espressif's, %v", kind, c.KeyBits, i, err)
				}
			}
		}
	}
}

// TestEspressifDamaged holds damaged parameters against the chip's verdicts.
func TestEspressifDamaged(t *testing.T) {
	pub := readCases(t, "ds_3072_esp32c3.json")[0].key().PublicKey
	verdicts := map[string]error{
		"INVALID_DIGEST":  esp32ds.ErrInvalidDigest,
		"INVALID_PADDING": esp32ds.ErrInvalidPadding,
		"INVALID_ARG":     esp32ds.ErrInvalidArg,
		"wrong length":    esp32ds.ErrInvalidArg,
	}
	for _, c := range readCases(t, "ds_negative_derived.json") {
		data := slices.Concat([]byte{byte(c.RSALength), 0, 0, 0}, c.IV, c.C)
		expected := func(err error) bool {
			return slices.ContainsFunc(c.Expect, func(verdict string) bool { return verdicts[verdict] != nil && errors.Is(err, verdicts[verdict]) })
		}
		chip := dstest.New(esp32ds.ESP32C3)
		must(t, chip.BurnKey(t.Context(), 0, [32]byte(c.HMACKey)))
		if _, err := chip.Sign(t.Context(), 0, data, c.Message); !expected(err) {
			t.Errorf("%s: the model says %v, the chip one of %v", c.Name, err, c.Expect)
		}
		params, err := esp32ds.ParseParams(esp32ds.ESP32C3, data)
		if err == nil {
			err = params.Check([32]byte(c.HMACKey), &pub)
		}
		if !expected(err) {
			t.Errorf("%s: %v, the chip says one of %v", c.Name, err, c.Expect)
		}
	}
}
