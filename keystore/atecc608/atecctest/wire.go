package atecctest

// Wire is a bus with several chips: every one sees every transaction. The wake
// pulse wakes all that are not awake, and with [Options.TrafficWakes] any
// transaction with another does. An address that two of them have is a mistake
// that this bus does not model.
type Wire []*Chip

// Tx has each chip take part in the transaction. It succeeds if the chip with
// that address acknowledges it.
func (w Wire) Tx(addr uint16, write, read []byte) error {
	err := ErrNACK
	for _, chip := range w {
		if chip.Tx(addr, write, read) == nil {
			err = nil
		}
	}
	return err
}
