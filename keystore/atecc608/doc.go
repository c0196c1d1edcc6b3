// Package atecc608 keeps a device's keys in a Microchip ATECC608 secure
// element on an I2C bus: a driver for the chip, and a [keystore.KeyStore] over
// it.
//
//	chip, err := atecc608.Open(ctx, bus, atecc608.Options{ECDSA: goecdsa.P256{}})
//	keys := chip.KeyStore(atecc608.Slots{})
//	client, err := quarklink.New(ctx, quarklink.Config{KeyStore: keys, ...})
//
// The bus is anything with the method Tx: an i2c.Bus of periph.io, a
// machine.I2C of TinyGo, the model in the package atecctest.
//
// # Keys
//
// A private key is made in the chip and never leaves it. By default one key, in
// slot 0, serves as enrolment key and as device key. A chip whose slot was
// filled and locked in the factory (Trust&GO) is used as it is; a chip with an
// empty slot makes the key when [KeyStore.Generate] is called, and never makes
// it anew. Nothing here overwrites a key.
//
// But anyone else who can write to the bus may do so as long as the slot is not
// locked. The enrolment key is the device's identity: Generate, then
// [Chip.LockSlot], before the device leaves the bench. A device key in a slot of
// its own ([Slots]) stays open, so that it can be renewed with a new key.
//
// A blank chip must be given a configuration first, and both its zones must be
// locked: see [Config.WithSigningKeys], [Chip.Plan] and [Chip.Provision]. That
// cannot be undone.
//
// # Small programs
//
// Go's crypto/ecdsa brings every elliptic curve and its tables, which do not fit
// a microcontroller, so nothing here imports it. Without [Options].ECDSA the chip
// itself verifies every signature that it makes, and a [Signer]'s Public is a
// [PublicKey], of which keystore.Fingerprint makes the DeviceID. With
// goecdsa.P256{}, of the package goecdsa, the host verifies, and Public is the
// *ecdsa.PublicKey that crypto/tls and crypto/x509 need.
//
// # The bus
//
// The chip is woken by holding SDA low for 60 µs. The driver does that by
// writing to address 0 at 100 kHz: the address byte is the pulse. On a faster
// bus the pulse is too short, and some buses refuse address 0; then
// [Options.Wake] must do it, for instance by driving the pin.
//
// All calls on one [Chip] take turns, and all that belongs together is done in
// one turn: two signers never mix their digests. Whatever state a call finds the
// chip in, it brings it into a known one, and leaves it idle. Other chips on the
// bus, and traffic that wakes this one, do no harm.
//
// Two Chip values, or two processes, on the same chip do not know of each other.
// [Options.Lock] keeps them apart: every one of them takes the same lock around
// each of its turns. On Linux that is an flock(2) of the bus device, such as
// /dev/i2c-1: examples/keys has the twenty lines. A program that does not take
// it is not kept out.
//
// # Trouble
//
// What a bad wire does to a transaction is found out by the chip's checksums
// and set right by asking again, where that is safe: reading, signing,
// verifying. A command that must not be carried out twice is not repeated
// unless the chip is known not to have carried it out. A signature is verified
// before it is returned. Every call ends when its context ends, and after
// [Options.Timeout] at the latest; signing has no context and obeys the latter.
//
// Sources: Microchip's public data sheets (ATECC608B summary, ATECC608A-TNGTLS,
// ATECC608B-TNGTLS, ATECC608A-TFLXTLS) and, where they are silent, what
// cryptoauthlib 3.7.8 does.
package atecc608
