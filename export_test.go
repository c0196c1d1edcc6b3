package quarklink

import (
	"crypto/x509"
	"fmt"
	"time"
)

// For the tests of this package.

// Position is what Run looks at when it decides.
type Position = position

// EachPosition calls f with every position there is, a line that names it, and
// one that says what Run does.
func EachPosition(f func(name, does string, p Position)) {
	for _, reached := range []bool{false, true} {
		for _, clockWrong := range []bool{false, true} {
			for _, known := range []bool{false, true} {
				for state := StateUnknown; state <= StateRevoked; state++ {
					for _, update := range []bool{false, true} {
						for c := certificateNone; c <= certificateExpired; c++ {
							p := position{reached, clockWrong, known, state, update, c}
							f(p.name(), decide(p).name(), p)
						}
					}
				}
			}
		}
	}
}

func pick(b bool, yes, no string) string {
	if b {
		return yes
	}
	return no
}

func (p position) name() string {
	return fmt.Sprintf("%-9s %-11s %-7s %-14s %-6s %s", pick(p.reached, "reached", "lost"),
		pick(p.clockWrong, "clock wrong", "clock right"), pick(p.known, "known", "unknown"), p.state,
		pick(p.update, "update", "-"), []string{"none", "valid", "due", "expired"}[p.certificate])
}

func (d decision) name() string {
	return fmt.Sprintf("%-6s %-5s %-5s %-3s %s", pick(d.update, "update", "-"), pick(d.enrol, "enrol", "-"),
		pick(d.renew, "renew", "-"), pick(d.hub, "hub", "-"), []string{"never", "poll", "lost", "refused"}[d.ask])
}

// Delays are the shortest and the longest delay of a position, whatever failed
// before and whatever the instance wishes.
func (p position) Delays() (shortest, longest time.Duration) {
	shortest = time.Hour * 1e4
	for _, failures := range []int{0, 1, 2, 5, 100} {
		for _, wish := range []time.Duration{0, time.Second, 20 * time.Second, time.Hour, maxPollAfter} {
			r := &runner{lost: failures, refused: failures, failed: failures}
			d := r.delay(decide(p), wish)
			shortest, longest = min(shortest, d), max(longest, d)
		}
	}
	return shortest, longest
}

// RenewAt is when a device of that ID renews a certificate.
func RenewAt(id DeviceID, notBefore, notAfter time.Time) time.Time {
	c := &Client{id: id, renewShare: defaultRenewal}
	return c.renewAt(&x509.Certificate{NotBefore: notBefore, NotAfter: notAfter})
}
