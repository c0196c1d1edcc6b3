// Package atecctest is a software model of the Microchip ATECC608 at the level
// of I2C transactions, for tests of whatever drives the chip over I2C.
//
// A [Chip] has the one method that a bus needs, Tx: periph.io's i2c.Bus,
// TinyGo's machine.I2C and the driver in the package above have the same. The
// model keeps to the chip's states (asleep, idle, awake, busy), its watchdog,
// its input and output buffers, its zones with their locks, and its keys: it
// makes real P-256 keys and signatures. It knows nothing of the driver.
//
// The zero [Options] are a chip at its worst: as slow as Microchip's tables say,
// with the earliest watchdog. What silicon may do and need not is by choice there
// too. [Wire] puts several chips on one bus, and [Chip.SetOTP], [Chip.SetSlot]
// and [Chip.SetPublicKey] make a part that was filled in the factory.
//
// A command takes effect at the end of its time. [Chip.PowerCut] before that
// leaves what was, what was to be, or memory that is half written.
//
// Time is the caller's: [Chip.SetClock] gives the model a virtual clock, such
// as a [Clock], and then nothing in it sleeps. Trouble is on demand:
// [Chip.SetFaults]. [Recorder] and [Player] keep and replay the traffic of any
// bus, of a real chip too.
//
// # Sources and limits
//
// The behaviour follows Microchip's public data sheets (ATECC608B summary,
// ATECC608A/B-TNGTLS, ATECC608A-TFLXTLS) and what cryptoauthlib 3.7.8 expects
// of the chip. Where these are silent the model takes the stricter reading. The
// commands are those of that library for this chip; one that is not known, or
// has a mode that no public source describes, answers with a parse error.
package atecctest
