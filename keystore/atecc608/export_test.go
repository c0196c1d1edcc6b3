package atecc608

import (
	"crypto/ecdsa"
	"encoding/asn1"
	"math/big"
)

// For the tests in package atecc608_test.

func TNGCertificates(device, signer []byte, deviceKey, signerKey *ecdsa.PublicKey, serial [9]byte) ([]byte, []byte, error) {
	return tngCertificates(device, signer, deviceKey, signerKey, serial)
}

func DeviceTBS(c []byte, key, signer *ecdsa.PublicKey, serial [9]byte) []byte {
	cert := compressed(c)
	tbs, err := cert.deviceTBS(key, signer, serial)
	if err != nil {
		panic(err)
	}
	return tbs
}

func SignerTBS(c []byte, key *ecdsa.PublicKey) []byte {
	cert := compressed(c)
	tbs, err := cert.signerTBS(key)
	if err != nil {
		panic(err)
	}
	return tbs
}

func ParseSignature(der []byte) (r, s *big.Int, err error) {
	var sig ecdsaSignature
	_, err = asn1.Unmarshal(der, &sig)
	return sig.R, sig.S, err
}

// ParseReply and Frame are the packets of the wire.
var ParseReply = parseReply

func Frame(opcode, p1 byte, p2 uint16, data []byte) []byte {
	return command{opcode: opcode, p1: p1, p2: p2, data: data}.frame(nil)
}

// CRC16 is the checksum of the wire.
var CRC16 = crc16
