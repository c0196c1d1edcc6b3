package quarklink

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"
)

// recordTime is the time that an answer proved last.
const recordTime = "time"

type timeRecord struct {
	Time time.Time `json:"time"`
}

// hintEvery is how far the stored hint may lag behind, so that it is written no
// more than daily.
const hintEvery = 24 * time.Hour

// TimeHint returns a time that a verified answer of the instance proved: its Date
// field, or the first moment of a certificate that was issued for it. A device
// without a clock of its own sets it to that when it starts, and to its build date
// if there is none (ok is false): the instance is verified against the device's
// clock, so that one which starts in 1970 reaches no instance.
//
// The hint is older than now, by the time that has passed since the answer. Run
// stores it, at most daily, so that after a restart it is older by up to a day
// more; a program without Run keeps it itself. It fails no check: the application
// decides whether to adopt it. Config.Now may call TimeHint and do so at once: the
// certificates that an enrolment brings are then checked against the time that its
// own answers told.
func (c *Client) TimeHint() (hint time.Time, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state.hint, !c.state.hint.IsZero()
}

// dated notes the Date of each answer: the peer was verified before it came.
type dated struct {
	http.RoundTripper
	proved func(time.Time)
}

func (d dated) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := d.RoundTripper.RoundTrip(req)
	if err == nil {
		if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
			d.proved(date)
		}
	}
	return resp, err
}

// proved takes a time that an answer proved.
func (c *Client) proved(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state.hint = t.UTC()
}

// provedSince takes the first moment of a certificate that was issued just now: it
// is later than that.
func (c *Client) provedSince(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t.After(c.state.hint) {
		c.state.hint = t.UTC()
	}
}

// storeHint stores the hint if the stored one is a day off.
func (c *Client) storeHint(ctx context.Context) {
	c.mu.Lock()
	hint, stored := c.state.hint, c.state.storedHint
	c.mu.Unlock()
	if hint.IsZero() || hint.Sub(stored).Abs() < hintEvery {
		return
	}
	err := c.run(ctx, "store the time", func(ctx context.Context) error {
		return c.put(ctx, recordTime, encode(timeRecord{hint}))
	})
	if err != nil { // it has been logged
		return
	}
	c.mu.Lock()
	c.state.storedHint = hint
	c.mu.Unlock()
}

func decodeTime(data []byte) (*time.Time, error) {
	var r timeRecord
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, fmt.Errorf("not a time record: %w", err)
	}
	return &r.Time, nil
}
