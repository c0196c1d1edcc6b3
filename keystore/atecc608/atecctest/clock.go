package atecctest

import (
	"context"
	"sync"
	"time"
)

// Clock is a virtual clock: it stands still except when someone sleeps on it,
// and sleeping takes no time. The zero value is ready. It is safe for
// concurrent use. Give its Now to [Chip.SetClock] and the clock itself to the
// driver.
type Clock struct {
	mu      sync.Mutex
	elapsed time.Duration
	moved   chan struct{} // closed when the time moves on; nil: nobody waits
}

// Now returns the virtual time; it begins at 2026-01-01 00:00 UTC.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).Add(c.elapsed)
}

// Sleep moves the clock on by d at once. If the context has ended it does not,
// and returns the context's error.
func (c *Clock) Sleep(ctx context.Context, d time.Duration) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c.Advance(d)
	return nil
}

// Advance moves the clock on by d; a negative d does nothing.
func (c *Clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.elapsed += max(d, 0)
	if c.moved != nil {
		close(c.moved)
		c.moved = nil
	}
}

// Wait waits until others have moved the clock on by d, by sleeping or with
// Advance. It returns the context's error as soon as that ends.
func (c *Clock) Wait(ctx context.Context, d time.Duration) error {
	for end := c.Now().Add(d); ; {
		c.mu.Lock()
		if c.moved == nil {
			c.moved = make(chan struct{})
		}
		moved := c.moved
		c.mu.Unlock()
		if !c.Now().Before(end) {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
