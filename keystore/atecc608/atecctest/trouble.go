package atecctest

import (
	"bytes"
	"fmt"
)

// Transaction describes one Tx to a function that injects faults.
type Transaction struct {
	Number int    // counts from 0 since New
	Addr   uint16 // 0: the wake pulse
	Write  int    // bytes written
	Read   int    // bytes asked for
	Opcode byte   // of the command that this transaction completes; 0: none
}

// Fault is something that goes wrong in one transaction.
type Fault uint8

const (
	NoFault          Fault = iota // nothing goes wrong
	NACK                          // the transaction is not acknowledged and has no effect
	BadCRC                        // one bit of what is read is wrong; the chip's buffer is not
	BadCommand                    // a command arrives damaged: status 0xFF
	BrownOut                      // the supply dips: the chip loses what is volatile and sleeps
	WatchdogExpired               // the watchdog puts the chip to sleep
	ECCFault                      // an elliptic-curve command fails with status 0x05
	SelfTestFailed                // status 0x07 from now on, until the chip sleeps
	HealthTestFailed              // status 0x08, of the random generator, likewise
)

// String returns the fault's name.
func (f Fault) String() string {
	names := [...]string{"no fault", "NACK", "bad CRC", "bad command", "brown-out", "watchdog expired", "ECC fault", "self-test failed", "health test failed"}
	if int(f) < len(names) {
		return names[f]
	}
	return fmt.Sprintf("Fault(%d)", uint8(f))
}

// SetFaults has next decide what goes wrong in each transaction; nil: nothing
// from now on. It is called with the chip locked and must not use it.
func (c *Chip) SetFaults(next func(Transaction) Fault) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.faults = next
}

func (c *Chip) nextFault(addr uint16, w, r []byte) Fault {
	if c.faults == nil {
		return NoFault
	}
	t := Transaction{Number: c.stats.Transactions, Addr: addr, Write: len(w), Read: len(r)}
	if len(w) > 2 && w[0] == wordCommand && len(c.input) == 0 && len(w) > int(w[1]) {
		t.Opcode = w[2]
	}
	return c.faults(t)
}

// Stats count the traffic. A Tx that writes and reads counts once in
// Transactions and once in each of Writes and Reads. Bytes are those after the
// address byte: all that the master had to write, acknowledged or not, and what
// it could read.
type Stats struct {
	Transactions int
	Pulses       int // writes to address 0, among Transactions, Writes and NACKs
	Writes       int
	Reads        int
	NACKs        int
	BytesWritten int
	BytesRead    int
}

// Sub returns the counts since an earlier reading.
func (s Stats) Sub(earlier Stats) Stats {
	return Stats{
		Transactions: s.Transactions - earlier.Transactions,
		Pulses:       s.Pulses - earlier.Pulses,
		Writes:       s.Writes - earlier.Writes,
		Reads:        s.Reads - earlier.Reads,
		NACKs:        s.NACKs - earlier.NACKs,
		BytesWritten: s.BytesWritten - earlier.BytesWritten,
		BytesRead:    s.BytesRead - earlier.BytesRead,
	}
}

// Bytes returns the bytes written and read.
func (s Stats) Bytes() int { return s.BytesWritten + s.BytesRead }

// Stats returns the counts since New.
func (c *Chip) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stats
}

func (c *Chip) count(addr uint16, w, r []byte, err error) {
	s := &c.stats
	s.Transactions++
	if len(w) > 0 {
		s.Writes++
	}
	if len(r) > 0 {
		s.Reads++
	}
	s.BytesWritten += len(w)
	if addr == 0 {
		s.Pulses++
	}
	if err != nil {
		s.NACKs++
	} else {
		s.BytesRead += len(r)
	}
}

// Configure changes the configuration zone behind the locks, as no host can:
// for chips in a state that would take long to reach. A changed I2C address
// takes effect when the chip sleeps.
func (c *Chip) Configure(change func(config *[128]byte)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(&c.config)
}

// Wake is a wake pulse that does not come over the bus: SDA held low for 60 µs,
// whatever the bus's clock.
func (c *Chip) Wake() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.expire()
	c.pulse()
}

// SetSlot puts content into a slot, 0 to 15, behind the locks, as no host can;
// the rest of the slot becomes 0xFF. Nil empties the slot: a key in it is lost.
func (c *Chip) SetSlot(slot int, content []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.public[slot] = nil
	for i := copy(c.slots[slot], content); i < len(c.slots[slot]); i++ {
		c.slots[slot][i] = 0xff
	}
}

// SetOTP puts content into the OTP zone of 64 bytes, behind the lock, as only the
// factory can; the rest becomes zero. Its first eight bytes tell what kind of
// Trust&GO part the chip is.
func (c *Chip) SetOTP(content []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.otp[copy(c.otp[:], content):])
}

// SetPublicKey puts a key into a slot for private keys of which only the public
// half is known: X and Y, 32 bytes each, big-endian. The chip gives it out, and
// uses it for nothing. It is for chips of which others have published the
// contents. [Chip.SetSlot] takes it away.
func (c *Chip) SetPublicKey(slot int, xy []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.public[slot] = bytes.Clone(xy)
}
