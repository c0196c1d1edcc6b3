package ota

import (
	"context"
	"fmt"

	"github.com/quarklink-go/quarklink/esp/otadata"
)

// Trial is whether the application that runs is kept. It satisfies quarklink's Trial.
// One goroutine at a time uses it.
type Trial struct{ device *device }

// NewTrial returns the trial of the application that runs.
func NewTrial(cfg Config) (*Trial, error) {
	d, err := open(cfg)
	if err != nil {
		return nil, err
	}
	return &Trial{d}, nil
}

// Pending reports whether the application that runs is on trial: by otadata if the
// bootloader rolls back, else by Config.OnTrial.
func (t *Trial) Pending(ctx context.Context) (bool, error) {
	pending, err := t.device.onTrial(ctx)
	if err != nil {
		return false, fmt.Errorf("ota: trial: %w", err)
	}
	return pending, nil
}

// Confirm ends the trial: the application that runs is started from now on. It does
// nothing if there is none, and with a bootloader that does not roll back: there the
// application's record says it. A power cut leaves it confirmed or, at one instant,
// starts the one before.
func (t *Trial) Confirm(ctx context.Context) error {
	if !t.device.Rollback {
		return ctx.Err()
	}
	pending, err := t.Pending(ctx)
	if err != nil || !pending {
		return err
	}
	if err := otadata.Confirm(t.device.data); err != nil {
		return fmt.Errorf("ota: confirm: %w", err)
	}
	return nil
}

// Rollback takes the choice of the application that runs back, on trial or not: the
// next start is that of the one before. Restart the device then. It verifies first
// what will start: if nothing would, the error is [ErrNoFallback], and the
// application that runs stays chosen. It is [ErrNotChosen] if otadata does not choose
// that one, as the factory application.
func (t *Trial) Rollback(ctx context.Context) error {
	if err := t.rollback(ctx); err != nil {
		return fmt.Errorf("ota: roll back: %w", err)
	}
	return nil
}

func (t *Trial) rollback(ctx context.Context) error {
	d := t.device
	data, err := otadata.Read(d.data)
	if err != nil {
		return err
	}
	after, changed := d.without(data, d.running)
	if len(changed) == 0 {
		return ErrNotChosen
	}
	for _, slot := range after.Select(d.bootloader()).Order {
		if err := ctx.Err(); err != nil {
			return err
		}
		if d.verify(ctx, slot) != nil {
			continue
		}
		if slot == d.running {
			break // the bootloader would start it again
		}
		return d.unchoose(d.running)
	}
	return ErrNoFallback
}
