package main

import (
	"context"

	"github.com/quarklink-go/quarklink/keystore"
	"github.com/quarklink-go/quarklink/keystore/tpm2"
	"github.com/quarklink-go/quarklink/store"
)

// inTPM shows and checks keys in a TPM.
func (p *program) inTPM(ctx context.Context, s settings) error {
	tpm, err := tpm2.Open(ctx, tpm2.Options{Path: s.tpm})
	if err != nil {
		return err
	}
	defer tpm.Close()
	open := func(context.Context) (keystore.KeyStore, error) {
		keys, err := tpm.KeyStore(store.Dir(s.records), tpm2.KeyOptions{})
		if err != nil || s.generate {
			return keys, err
		}
		return readOnly{keys}, nil
	}
	keys, err := open(ctx)
	if err != nil {
		return err
	}
	if err := p.show(ctx, keys); err != nil {
		return err
	}
	return p.check(ctx, open)
}
