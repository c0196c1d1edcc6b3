package keystoretest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink/keystore"
)

// hidden is a signer that keeps its key to itself.
type hidden struct{ crypto.Signer }

// cabinet is what persists of a Rotator, which keeps the contract but for its
// fault.
type cabinet struct {
	fault string

	mu   sync.Mutex
	keys map[keystore.Role]crypto.Signer // those staged too
}

const follower = keystore.Device + "-next"

func (b *cabinet) open(context.Context) (keystore.KeyStore, error) {
	if b.fault == "no rotator" {
		return reader{&drawer{cabinet: b}}, nil
	}
	return &drawer{cabinet: b, own: make(map[keystore.Role]crypto.Signer)}, nil
}

// drawer is an open cabinet.
type drawer struct {
	*cabinet
	own map[keystore.Role]crypto.Signer // what it has opened, which the fault "goes on with the old" uses
}

func (d *drawer) Signer(ctx context.Context, role keystore.Role) (crypto.Signer, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fault == "one key" {
		role = keystore.Enrolment
	}
	if key, ok := d.own[role]; ok && d.fault == "goes on with the old" {
		return key, nil
	}
	if key, ok := d.keys[follower]; ok && role == keystore.Device && d.fault == "staged at once" {
		return key, nil
	}
	key, ok := d.keys[role]
	if !ok {
		return nil, fs.ErrNotExist
	}
	d.own[role] = key
	return key, nil
}

func newHidden() crypto.Signer {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return hidden{key}
}

func (d *drawer) Generate(ctx context.Context, role keystore.Role) (crypto.Signer, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fault == "makes none" {
		return nil, errors.New("out of memory")
	}
	if d.keys[role] != nil {
		return nil, fs.ErrExist
	}
	d.keys[role] = newHidden()
	return d.keys[role], nil
}

func (d *drawer) check(ctx context.Context, role keystore.Role) error {
	if role == keystore.Enrolment && d.fault != "changes the identity" || d.fault == "one key" {
		return errors.ErrUnsupported
	}
	return ctx.Err()
}

func (d *drawer) Stage(ctx context.Context, role keystore.Role) (crypto.Signer, error) {
	if d.fault == "wrong sentinel" && role == keystore.Enrolment {
		return nil, errors.New("never")
	}
	if err := d.check(ctx, role); err != nil {
		if d.fault == "confuses contexts" && ctx.Err() != nil {
			return nil, fs.ErrExist
		}
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch key := d.keys[follower]; {
	case d.fault == "stages nothing":
		return d.keys[role], nil
	case d.fault == "stages the same for ever":
		if d.own[follower] == nil {
			d.own[follower] = newHidden()
		}
		d.keys[follower] = d.own[follower]
	case d.fault == "shows the staged":
		d.keys[follower] = newHidden().(hidden).Signer
	case key == nil || d.fault == "stages anew":
		d.keys[follower] = newHidden()
	}
	return d.keys[follower], nil
}

func (d *drawer) Commit(ctx context.Context, role keystore.Role) error {
	if err := d.check(ctx, role); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	next := d.keys[follower]
	switch {
	case d.fault == "loses power badly" && next != nil:
		delete(d.keys, role)
		if err := ctx.Err(); err != nil {
			return err
		}
	case d.fault == "changes identities too" && next != nil:
		d.keys[keystore.Enrolment] = newHidden()
	case d.fault == "commits nothing":
		return nil
	}
	if next == nil {
		if d.fault == "commits once" {
			return fs.ErrNotExist
		}
		return nil
	}
	d.keys[role] = next
	if d.fault != "keeps it staged" {
		delete(d.keys, follower)
	}
	return nil
}

func (d *drawer) Discard(ctx context.Context, role keystore.Role) error {
	if err := d.check(ctx, role); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch d.fault {
	case "keeps what is discarded":
		return nil
	case "discards too much":
		d.keys[role] = newHidden()
	}
	delete(d.keys, follower)
	return nil
}

// TestRotatorFinds: each fault is found, and a good store has none.
func TestRotatorFinds(t *testing.T) {
	for fault, says := range map[string]string{
		"":                         "",
		"one key":                  "",
		"no rotator":               "a keystore.Rotator",
		"makes none":               "no key to replace",
		"changes the identity":     "this key never changes",
		"wrong sentinel":           "errors.ErrUnsupported",
		"confuses contexts":        "Stage with a cancelled context",
		"stages nothing":           "returns the key that the role has",
		"stages anew":              "Stage returns another key",
		"stages the same for ever": "returns the key that was given up",
		"shows the staged":         "never shows them",
		"staged at once":           "the public key has changed",
		"commits nothing":          "the public key has changed",
		"commits once":             "it succeeds, any number of times",
		"keeps it staged":          "returns the key that the role has",
		"goes on with the old":     "after Commit the public key has changed",
		"changes identities too":   "esk: after the device key was replaced",
		"keeps what is discarded":  "returns the key that was given up",
		"discards too much":        "the public key has changed",
		"loses power badly":        "after an interrupted Commit Signer fails",
	} {
		t.Run(fault, func(t *testing.T) {
			b := &cabinet{fault: fault, keys: map[keystore.Role]crypto.Signer{keystore.Enrolment: newHidden()}}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			err := TestRotator(ctx, b.open)
			if says == "" {
				require.NoError(t, err)
				return
			}
			require.Error(t, err)
			assert.Contains(t, fmt.Sprint(err), says)
		})
	}
}
