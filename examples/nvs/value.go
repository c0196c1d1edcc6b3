package main

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"github.com/quarklink-go/quarklink/esp/nvs"
)

// encodings are the words for a value's type and form that Espressif's
// generator knows, each with what stores a value written so.
var encodings = map[string]func(ns *nvs.Namespace, key, text string) error{
	"u8":  integer[uint8](8, false),
	"i8":  integer[int8](8, true),
	"u16": integer[uint16](16, false),
	"i16": integer[int16](16, true),
	"u32": integer[uint32](32, false),
	"i32": integer[int32](32, true),
	"u64": integer[uint64](64, false),
	"i64": integer[int64](64, true),
	"string": func(ns *nvs.Namespace, key, text string) error {
		return ns.SetString(key, text)
	},
	"binary": func(ns *nvs.Namespace, key, text string) error {
		return ns.SetBlob(key, []byte(text))
	},
	"hex2bin": blob(hex.DecodeString),
	"base64":  blob(base64.StdEncoding.DecodeString),
}

// integer stores an integer that is written in decimal, as Espressif's
// generator takes it (010 is ten), or with 0x in hexadecimal.
func integer[T nvs.Integer](bits int, signed bool) func(*nvs.Namespace, string, string) error {
	return func(ns *nvs.Namespace, key, text string) error {
		text, base := strings.TrimSpace(text), 10
		if strings.Contains(strings.ToLower(text), "0x") {
			base = 0
		}
		if signed {
			v, err := strconv.ParseInt(text, base, bits)
			if err != nil {
				return err
			}
			return nvs.SetInt(ns, key, T(v))
		}
		v, err := strconv.ParseUint(text, base, bits)
		if err != nil {
			return err
		}
		return nvs.SetInt(ns, key, T(v))
	}
}

func blob(decode func(string) ([]byte, error)) func(*nvs.Namespace, string, string) error {
	return func(ns *nvs.Namespace, key, text string) error {
		b, err := decode(strings.TrimSpace(text))
		if err != nil {
			return err
		}
		return ns.SetBlob(key, b)
	}
}

// store sets a value that is written in an encoding.
func store(p *nvs.Partition, namespace, key, encoding, text string) error {
	set, ok := encodings[strings.ToLower(encoding)]
	if !ok {
		return fmt.Errorf("no encoding %q: u8 to i64, string, hex2bin, base64 and binary are", encoding)
	}
	ns, err := p.Namespace(namespace)
	if err != nil {
		return err
	}
	return set(ns, key, text)
}

// show returns a value as text: a blob in hexadecimal.
func show(p *nvs.Partition, namespace, key string, t nvs.Type) (string, error) {
	ns, err := p.Namespace(namespace)
	if err != nil {
		return "", err
	}
	b, err := ns.Raw(key, t)
	if err != nil {
		return "", err
	}
	switch t {
	case nvs.String:
		return string(b), nil
	case nvs.Blob:
		return hex.EncodeToString(b), nil
	}
	var v uint64
	for i, c := range b {
		v |= uint64(c) << (8 * i)
	}
	switch t {
	case nvs.I8, nvs.I16, nvs.I32, nvs.I64:
		unused := 64 - 8*len(b)
		return strconv.FormatInt(int64(v)<<unused>>unused, 10), nil
	}
	return strconv.FormatUint(v, 10), nil
}
