package uart

// EventKind says what an [Event] tells of.
type EventKind int

// What a [Tool] tells of.
const (
	EventAsked      EventKind = iota + 1 // a device asks for Key
	EventAnswered                        // the answer has been sent; Err says why it was a refusal
	EventDeviceID                        // the device has sent DeviceID; Err says why it was refused
	EventConsole                         // Line is one of the device's console
	EventResetSeen                       // the device was reset: its ROM has printed why
	EventTunnelUp                        // a stream to the instance begins
	EventTunnelDown                      // it has ended; Err says why, nil in order. Or the instance could not be reached
	EventBytes                           // at most once a second: what has passed of the stream so far
)

var eventNames = [...]string{"unknown", "asked", "answered", "DeviceID", "console", "reset seen", "tunnel up", "tunnel down", "bytes"}

// String returns the kind in words, for a log.
func (k EventKind) String() string {
	if k < 0 || int(k) >= len(eventNames) {
		k = 0
	}
	return eventNames[k]
}

// Event is something that happens at a [Tool]'s port. It holds no secret: an
// answer is told by its key alone.
type Event struct {
	Kind EventKind
	// Key is what was asked for, one of the Key constants or what else a device
	// made up. EventAsked, EventAnswered.
	Key string
	// DeviceID is 64 lower-case hex digits. EventDeviceID.
	DeviceID string
	// Line is raw input of up to 1024 bytes without its end; longer lines come in
	// pieces. Quote it before it goes to a terminal. The Wi-Fi password in it
	// reads [redacted]. It is valid only during the call. EventConsole.
	Line []byte
	// Err is why something was refused or has ended.
	Err error
	// FromDevice and ToDevice count the bytes of the present stream. EventBytes,
	// EventTunnelDown.
	FromDevice, ToDevice uint64
}
