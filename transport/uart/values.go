package uart

import (
	"bytes"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// What a value of each key looks like. The errors describe the defect but never
// quote the value: in a confused conversation it may be the password.

// maxHost is what the C library holds: QUARKLINK_MAX_ENDPOINT_LENGTH is 128
// with the NUL.
const maxHost = 127

// CheckEndpoint returns nil for what can be the endpoint of an instance: a host
// name (RFC 1123 section 2.1) or an IPv4 address, at most 127 bytes. The error
// says what is wrong and does not quote the value.
func CheckEndpoint(endpoint string) error {
	_, err := parseHost([]byte(endpoint))
	return err
}

// parseHost accepts a host name (RFC 1123 section 2.1) or an IPv4 address.
func parseHost(line []byte) (string, error) {
	host := string(line)
	if host == "" || len(host) > maxHost {
		return "", fmt.Errorf("host name of %d bytes, need 1 to %d", len(host), maxHost)
	}
	labels := strings.Split(host, ".")
	for _, label := range labels {
		if err := checkLabel(label); err != nil {
			return "", err
		}
	}
	// A name whose last label is a number can only be an address; this is also
	// what tells a port number in the wrong place from a host.
	if isNumber(labels[len(labels)-1]) && !isIPv4(labels) {
		return "", errors.New("host name ends in a number but is not an IPv4 address")
	}
	return host, nil
}

func checkLabel(label string) error {
	if label == "" || len(label) > 63 {
		return fmt.Errorf("host name has a label of %d characters, need 1 to 63", len(label))
	}
	for _, c := range []byte(label) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' {
			return fmt.Errorf("byte %#02x is not allowed in a host name", c)
		}
	}
	if label[0] == '-' || label[len(label)-1] == '-' {
		return errors.New("host name has a label that begins or ends with a hyphen")
	}
	return nil
}

func isNumber(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

func isIPv4(labels []string) bool {
	if len(labels) != 4 {
		return false
	}
	for _, label := range labels {
		n, err := strconv.ParseUint(label, 10, 8)
		if err != nil || strconv.FormatUint(n, 10) != label { // 010 is octal to some
			return false
		}
	}
	return true
}

// parsePort accepts 1 to 65535 in decimal; an empty line is [DefaultPort].
func parsePort(line []byte) (uint16, error) {
	if len(line) == 0 {
		return DefaultPort, nil
	}
	// Fewer digits than a Wi-Fi password has characters, so that the number may
	// be named in the error.
	if len(line) > 7 || !isNumber(string(line)) {
		return 0, errors.New("not a port number")
	}
	n, err := strconv.ParseUint(string(line), 10, 32)
	if err != nil || n < 1 || n > 65535 {
		return 0, fmt.Errorf("port %s, need 1 to 65535", line)
	}
	return uint16(n), nil
}

// parseRoot accepts base64 of one certificate, as PEM text or as DER, and
// returns its DER.
func parseRoot(line []byte) ([]byte, error) {
	if bytes.IndexByte(line, '\r') >= 0 { // which encoding/base64 would skip
		return nil, errors.New("root certificate is not base64: carriage return inside")
	}
	der := make([]byte, base64.StdEncoding.DecodedLen(len(line)))
	n, err := base64.StdEncoding.Strict().Decode(der, line)
	if err != nil {
		return nil, fmt.Errorf("root certificate is not base64: %w", err)
	}
	der = der[:n]
	if bytes.Contains(der, []byte("-----BEGIN ")) {
		if der, err = decodePEM(der); err != nil {
			return nil, err
		}
	}
	if err := checkCertificate(der); err != nil {
		return nil, err
	}
	return der, nil
}

// decodePEM returns the only block of the text.
func decodePEM(text []byte) ([]byte, error) {
	if n := bytes.Count(text, []byte("-----BEGIN ")); n > 1 {
		return nil, fmt.Errorf("root certificate: %d PEM blocks, need exactly one", n)
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("root certificate: damaged PEM")
	}
	if block.Type != "CERTIFICATE" {
		return nil, errors.New("root certificate: the PEM block is not a CERTIFICATE")
	}
	return block.Bytes, nil
}

// checkCertificate checks the outer shape of a certificate (RFC 5280 section
// 4.1): enough to tell a whole one from part of one or from anything else.
func checkCertificate(der []byte) error {
	input := cryptobyte.String(der)
	var cert cryptobyte.String
	if !input.ReadASN1(&cert, asn1.SEQUENCE) || !input.Empty() {
		return errors.New("root certificate: not one whole DER sequence")
	}
	for _, field := range []asn1.Tag{
		asn1.SEQUENCE,   // tbsCertificate
		asn1.SEQUENCE,   // signatureAlgorithm
		asn1.BIT_STRING, // signatureValue
	} {
		if !cert.SkipASN1(field) {
			return errors.New("root certificate: the DER is not a certificate")
		}
	}
	if !cert.Empty() {
		return errors.New("root certificate: the DER is not a certificate")
	}
	return nil
}

// parseSSID accepts 1 to 32 bytes of any value (IEEE 802.11).
func parseSSID(line []byte) (string, error) {
	if len(line) < 1 || len(line) > 32 {
		return "", fmt.Errorf("Wi-Fi SSID of %d bytes, need 1 to 32", len(line))
	}
	return string(line), nil
}

// isText reports whether s is UTF-8 without control characters.
func isText(s string) bool {
	for _, r := range s {
		if r < ' ' || r == 0x7f || r == utf8.RuneError {
			return false
		}
	}
	return true
}

// parsePassword accepts what WPA takes: a passphrase of 8 to 63 characters, or
// a key of 64 hex digits; nothing stands for an open network.
func parsePassword(line []byte) (string, error) {
	switch {
	case len(line) == 0:
		return "", nil
	case len(line) == 64:
		for _, c := range line {
			if !isHex(c) && (c < 'A' || c > 'F') {
				return "", errors.New("Wi-Fi password of 64 characters that are not all hex digits")
			}
		}
	case len(line) < 8 || len(line) > 64:
		return "", errors.New("Wi-Fi password is neither empty nor 8 to 63 characters nor 64 hex digits")
	}
	for _, c := range line {
		if c < ' ' || c == 0x7f {
			return "", errors.New("Wi-Fi password contains a control character")
		}
	}
	return string(line), nil
}

// checkDeviceID accepts 64 lower-case hex digits.
func checkDeviceID(id string) error {
	if len(id) != 64 {
		return fmt.Errorf("DeviceID of %d characters, need 64", len(id))
	}
	for _, c := range []byte(id) {
		if !isHex(c) {
			return errors.New("DeviceID is not all lower-case hex digits")
		}
	}
	return nil
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f'
}
