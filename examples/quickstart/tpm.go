package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"

	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/keystore/tpm2"
	"github.com/quarklink-go/quarklink/keystore/tpm2/tpm2test"
)

// chipTPM is the device's TPM 2.0: a swtpm, which is what virtual machines have. A
// product would open /dev/tpmrm0.
type chipTPM struct {
	play   *play
	chip   *tpm2test.TPM // nil before the first power-up
	opened *tpm2.TPM
}

// open gives power to the TPM, at a restart again, and opens the keys in it.
func (c *chipTPM) open(ctx context.Context) (keystore.KeyStore, error) {
	p := c.play
	if c.chip == nil {
		chip, err := tpm2test.Start(ctx, tpm2test.Options{Dir: p.files.path("tpm")})
		if errors.Is(err, exec.ErrNotFound) {
			return nil, fmt.Errorf("-keystore tpm2 needs swtpm: install it, on Debian with apt install swtpm: %w", err)
		}
		if err != nil {
			return nil, err
		}
		c.chip = chip
		p.say("keys", "started swtpm, a TPM 2.0 in software")
	} else {
		if err := c.opened.Close(); err != nil {
			return nil, err
		}
		if err := c.chip.PowerCycle(ctx); err != nil {
			return nil, err
		}
	}
	tpm, err := tpm2.Open(ctx, tpm2.Options{Path: c.chip.Path()})
	if err != nil {
		return nil, err
	}
	c.opened = tpm
	p.say("keys", "in the TPM; what is stored is wrapped and opens in no other")
	return tpm.KeyStore(p.files.records, tpm2.KeyOptions{})
}

func (c *chipTPM) close() {
	if c.opened != nil {
		c.opened.Close()
	}
	if c.chip != nil {
		c.chip.Close()
	}
}
