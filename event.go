package quarklink

import (
	"encoding/hex"
	"encoding/json"
	"log/slog"
	"sync"
	"time"
)

// Event is one step that Run has made: enough, kept together, to tell what was
// installed, who signed it and with what result, and since when which
// certificate was valid. It has no secrets. Fields that do not belong to the step
// are zero.
//
// It marshals to JSON, and is a slog.LogValuer.
type Event struct {
	Time time.Time // by Config.Now
	Step Step
	// Err is why the step failed; nil if it did not. In JSON it is its text.
	Err error

	State   State  // StepStatus: how the device stands
	Batch   string // StepStatus
	Version string // StepUpdate, StepRestart: of the image
	// SHA256 is the digest of the image, for StepUpdate and StepRestart; zero:
	// none. In JSON it is hexadecimal.
	SHA256 [32]byte
	// SignedBy names the key that signed the image, if the Verifier tells: see
	// Firmware.SignedBy.
	SignedBy string
	// Serial is the certificate's serial number in hexadecimal, for StepEnrol
	// and StepRenew, and NotBefore and NotAfter when it is valid.
	Serial              string
	NotBefore, NotAfter time.Time
	Hub                 string        // StepEnrol, StepRenew, StepHub: where the device connects, "host:port"
	Next                time.Duration // StepWait: until the instance is asked again
}

// Step names what Run did.
type Step string

// The steps.
const (
	StepProvision Step = "provision"
	StepOnline    Step = "online"
	StepStatus    Step = "status"
	StepUpdate    Step = "update"
	StepEnrol     Step = "enrol"
	StepRenew     Step = "renew"
	StepHub       Step = "hub"     // it was begun; StepHubEnded follows
	StepHubEnded  Step = "hub end" // by itself, or because Run ended it
	StepRestart   Step = "restart"
	StepWait      Step = "wait"
)

// eventJSON is an Event in JSON.
type eventJSON struct {
	Time      time.Time `json:"time"`
	Step      Step      `json:"step"`
	Error     string    `json:"error,omitempty"`
	State     string    `json:"state,omitempty"`
	Batch     string    `json:"batch,omitempty"`
	Version   string    `json:"version,omitempty"`
	SHA256    string    `json:"sha256,omitempty"`
	SignedBy  string    `json:"signedBy,omitempty"`
	Serial    string    `json:"serial,omitempty"`
	NotBefore time.Time `json:"notBefore,omitzero"`
	NotAfter  time.Time `json:"notAfter,omitzero"`
	Hub       string    `json:"hub,omitempty"`
	Next      string    `json:"next,omitempty"`
}

func (e Event) json() eventJSON {
	j := eventJSON{Time: e.Time, Step: e.Step, Batch: e.Batch, Version: e.Version, SignedBy: e.SignedBy, Serial: e.Serial,
		NotBefore: e.NotBefore, NotAfter: e.NotAfter, Hub: e.Hub}
	if e.Err != nil {
		j.Error = e.Err.Error()
	}
	if e.Step == StepStatus && e.Err == nil {
		j.State = e.State.String()
	}
	if e.SHA256 != [32]byte{} {
		j.SHA256 = hex.EncodeToString(e.SHA256[:])
	}
	if e.Next > 0 {
		j.Next = e.Next.String()
	}
	return j
}

// MarshalJSON leaves out what does not belong to the step.
func (e Event) MarshalJSON() ([]byte, error) { return json.Marshal(e.json()) }

// LogValue is a group of what belongs to the step.
func (e Event) LogValue() slog.Value {
	j := e.json()
	attrs := []slog.Attr{slog.String("step", string(j.Step))}
	for _, text := range []struct{ name, value string }{
		{"error", j.Error}, {"state", j.State}, {"batch", j.Batch}, {"version", j.Version}, {"sha256", j.SHA256},
		{"signedBy", j.SignedBy}, {"serial", j.Serial}, {"hub", j.Hub}, {"next", j.Next},
	} {
		if text.value != "" {
			attrs = append(attrs, slog.String(text.name, text.value))
		}
	}
	if !e.NotAfter.IsZero() {
		attrs = append(attrs, slog.Time("notBefore", e.NotBefore), slog.Time("notAfter", e.NotAfter))
	}
	return slog.GroupValue(attrs...)
}

const (
	// maxUntold bounds the events that wait for a slow reader: some months of
	// them.
	maxUntold = 20_000
	// lastWords is how long Run waits at its end for the reader to take what is
	// left.
	lastWords = 10 * time.Second
)

// teller hands events to a reader that may be slow, in order, without making Run
// wait for it.
type teller struct {
	tell func(Event)

	mu     sync.Mutex
	queue  []Event
	ended  bool
	change chan struct{} // has room for one
	done   chan struct{}
}

func newTeller(tell func(Event)) *teller {
	t := &teller{tell: tell, change: make(chan struct{}, 1), done: make(chan struct{})}
	if tell == nil {
		close(t.done)
		return t
	}
	go t.run()
	return t
}

func (t *teller) run() {
	defer close(t.done)
	for range t.change { // which says so of each addition after it was made
		t.mu.Lock()
		queue, ended := t.queue, t.ended
		t.queue = nil
		t.mu.Unlock()
		for _, e := range queue {
			t.tell(e)
		}
		if ended { // and nothing is added after the end
			return
		}
	}
}

func (t *teller) add(e Event) {
	if t.tell == nil {
		return
	}
	t.mu.Lock()
	if len(t.queue) < maxUntold { // else the reader has stopped for good
		t.queue = append(t.queue, e)
	}
	t.mu.Unlock()
	t.wake()
}

func (t *teller) wake() {
	select {
	case t.change <- struct{}{}:
	default:
	}
}

// end waits until everything is told, or the reader has taken too long.
func (t *teller) end() {
	t.mu.Lock()
	t.ended = true
	t.mu.Unlock()
	t.wake()
	late := time.NewTimer(lastWords)
	defer late.Stop()
	select {
	case <-t.done:
	case <-late.C:
	}
}
