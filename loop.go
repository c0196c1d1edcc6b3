package quarklink

import (
	"context"
	"time"
)

// Loop says what Run does beside talking to the instance. A nil field skips its
// step. The functions are called one at a time, but for Hub, which has a
// goroutine of its own, and Event, which has another. Each must return when its
// context ends; each may call the Client.
type Loop struct {
	// Online joins the network. It is called before the instance is asked for
	// the first time and whenever that could not be reached, and returns at once
	// if the device is in the network. n is empty if no Wi-Fi is stored. After
	// five failures in a row Run provisions the device anew, or restarts it.
	Online func(ctx context.Context, n Network) error
	// Provision calls Client.Provision with these options and a port. It is called
	// when an instance or, with Online, a Wi-Fi is missing, and with NewNetwork
	// when the stored one does not work.
	Provision func(ctx context.Context, o ProvisionOptions) error
	// Firmware says where updates go and who judges them. Without a Slot there
	// are no updates.
	Firmware FirmwareOptions
	// Renewal says how certificates are renewed.
	Renewal RenewOptions
	// Hub is the application's connection to its IoT hub, or its work with the
	// database. It is called when the device is enrolled, and lives as long as
	// that connection does. When it returns, with or without an error, Run asks
	// the instance how the device stands and calls it again, but not in a hot
	// loop. Its context ends when the device is revoked, when the enrolment
	// leads elsewhere, and before a restart.
	//
	// A renewed certificate does not end it: HubTLSConfig and DialHub present the
	// certificate of now at the next connection.
	Hub func(ctx context.Context, e *Enrolment) error
	// Restart restarts the device, because f is installed or, if f is zero, because
	// the network cannot be joined. If it returns nil, Run returns nil too; after
	// an error Run goes on.
	Restart func(ctx context.Context, f Firmware) error
	// Event is told what happened, in order. See Event.
	Event func(Event)
	// Wake asks the instance soon: a button was pressed, the hub has news of an
	// update, the network has come back. Nil or closed: never.
	Wake <-chan struct{}
}

// The delays of Run.
const (
	defaultPoll = 15 * time.Minute // between two questions, unless the instance says otherwise
	leastPoll   = 10 * time.Second // between two questions, whoever asks for them
	lostFirst   = time.Minute      // after the instance was lost; doubles
	lostMost    = time.Hour
	failedMost  = 2 * time.Hour // after a step that failed, which costs several requests; doubles from the poll interval
	// A hub may refuse a device that it does not know yet (AWS just-in-time
	// provisioning).
	graceTime  = 2 * time.Minute
	graceDelay = 5 * time.Second // between two attempts within it
	hubFirst   = 15 * time.Second
	hubMost    = defaultPoll
	hubSettled = 10 * time.Minute // a connection that lived so long was a good one

	onlineFirst = 5 * time.Second // after the network could not be joined; doubles
	onlineMost  = 5 * time.Minute
	onlineTries = 5
)

// position is what Run knows when it decides what to do.
type position struct {
	reached     bool // the instance answered
	clockWrong  bool // and if not, because of the device's clock
	known       bool // the device is in a batch
	state       State
	update      bool // an update is due, and there is a slot for it
	certificate certificateState
}

// certificateState says what the device has of an enrolment.
type certificateState int

const (
	certificateNone    certificateState = iota // none, or not all that belongs to it
	certificateValid                           // and not due to be renewed
	certificateDue                             // valid, and due to be renewed
	certificateExpired                         // the device was offline for too long
)

// serves reports whether a hub would take it.
func (c certificateState) serves() bool { return c == certificateValid || c == certificateDue }

// decision is what Run does, in this order.
type decision struct {
	update bool // one attempt
	enrol  bool
	renew  bool
	hub    bool // let it run, once the steps before have been made; otherwise end it
	ask    pace // when the instance is asked again
}

// pace is how the delay until the next question is found.
type pace int

const (
	paceNone   pace = iota
	pacePoll        // the poll interval; growing up to two hours while a step fails
	paceLost        // growing up to an hour
	paceRefuse      // growing from the poll interval up to an hour
)

// rule is a row of the table by which Run decides. The first that fits counts.
type rule struct {
	name string
	fits func(position) bool
	does func(position) decision
}

var rules = []rule{
	{"the clock is wrong", func(p position) bool { return p.clockWrong },
		func(position) decision { return decision{ask: paceLost} }},
	{"the instance is not reached", func(p position) bool { return !p.reached },
		func(p position) decision { return decision{hub: p.certificate.serves(), ask: paceLost} }},
	{"the device is in no batch", func(p position) bool { return !p.known },
		func(position) decision { return decision{ask: pacePoll} }},
	{"the device is revoked", func(p position) bool { return p.state == StateRevoked },
		func(position) decision { return decision{ask: paceRefuse} }},
	{"the device is about to be revoked", func(p position) bool { return p.state == StatePendingRevoke },
		func(p position) decision {
			return decision{update: p.update, hub: p.certificate.serves(), ask: pacePoll}
		}},
	{"the device is not enrolled", func(p position) bool { return p.state == StateNotEnrolled || !p.certificate.serves() },
		func(p position) decision { return decision{update: p.update, enrol: true, hub: true, ask: pacePoll} }},
	{"the certificate is due", func(p position) bool { return p.certificate == certificateDue },
		func(p position) decision { return decision{update: p.update, renew: true, hub: true, ask: pacePoll} }},
	{"all is well", func(position) bool { return true },
		func(p position) decision { return decision{update: p.update, hub: true, ask: pacePoll} }},
}

// decide looks the position up in the table.
func decide(p position) decision {
	for _, r := range rules {
		if r.fits(p) {
			return r.does(p)
		}
	}
	return decision{ask: paceLost} // the last row fits everything
}
