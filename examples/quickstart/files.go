package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/quarklink-go/quarklink/esp/image"
	"github.com/quarklink-go/quarklink/esp/secureboot"
	"github.com/quarklink-go/quarklink/esp/secureboot/sbsign"
	"github.com/quarklink-go/quarklink/quarklinktest"
	"github.com/quarklink-go/quarklink/store"
)

// files is where a run keeps what outlives it.
type files struct {
	dir     string
	records store.Dir // the device's
	passing bool      // dir goes when the run ends
}

func openFiles(dir string) (files, error) {
	f := files{dir: dir}
	if dir == "" {
		temp, err := os.MkdirTemp("", "quickstart")
		if err != nil {
			return files{}, err
		}
		f.dir, f.passing = temp, true
	}
	f.records = store.Dir(f.path("records"))
	return f, os.MkdirAll(f.dir, 0o700)
}

func (f files) close() {
	if f.passing {
		os.RemoveAll(f.dir)
	}
}

func (f files) path(name string) string { return filepath.Join(f.dir, name) }

// secret encrypts the device's keys. A product would keep it in a fuse or a
// sealed blob, not beside them.
func (f files) secret(context.Context) ([]byte, error) {
	secret, err := os.ReadFile(f.path("secret"))
	if !errors.Is(err, fs.ErrNotExist) {
		return secret, err
	}
	secret = make([]byte, 32)
	rand.Read(secret)
	return secret, f.write("secret", secret)
}

// snapshot is the instance of an earlier run, nil if there was none.
func (f files) snapshot() ([]byte, error) {
	data, err := os.ReadFile(f.path("instance.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return data, err
}

// keep refuses a device that is not what it was in the last run: its chip, or
// where its instance is.
func (f files) keep(what, value string) error {
	was, err := os.ReadFile(f.path(what))
	if errors.Is(err, fs.ErrNotExist) {
		return f.write(what, []byte(value))
	}
	if err == nil && string(was) != value {
		err = fmt.Errorf("the %s of the device in %s is %s, not %s", what, f.dir, was, value)
	}
	return err
}

// write replaces a file at once: a run that is broken off leaves the old one.
func (f files) write(name string, data []byte) error {
	if err := os.WriteFile(f.path(name+".new"), data, 0o600); err != nil {
		return err
	}
	return os.Rename(f.path(name+".new"), f.path(name))
}

func (f files) saveSnapshot(s *quarklinktest.Server) error {
	data, err := s.Snapshot()
	if err != nil {
		return err
	}
	return f.write("instance.json", data)
}

// running returns the SHA-256 of the image that was installed, if one was.
func (f files) running() (digest [32]byte, installed bool, err error) {
	img, err := os.ReadFile(f.path("firmware.bin"))
	if errors.Is(err, fs.ErrNotExist) {
		return digest, false, nil
	}
	return sha256.Sum256(img), err == nil, err
}

func (f files) slot() *slot {
	return &slot{from: f.path("slot.bin"), to: f.path("firmware.bin")}
}

// slot is the inactive partition: a file that becomes the firmware when it is
// activated.
type slot struct{ from, to string }

const slotSize = 16 << 20

func (s *slot) Size() int64 { return slotSize }

func (s *slot) ReadAt(p []byte, off int64) (int, error) {
	f, err := os.Open(s.from)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return f.ReadAt(p, off)
}

func (s *slot) WriteAt(p []byte, off int64) (int, error) {
	f, err := os.OpenFile(s.from, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, err
	}
	n, err := f.WriteAt(p, off)
	return n, errors.Join(err, f.Close())
}

func (s *slot) Activate(_ context.Context, size int64) error {
	f, err := os.OpenFile(s.from, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(size), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(s.from, s.to)
}

// publish offers an image to the device's batch, unless somebody else does, and
// returns the digest of the key that the device trusts.
func (p *play) publish(ctx context.Context) (*secureboot.Digest, error) {
	if p.url != "" && p.control == "" {
		return p.trusted, nil
	}
	img, trusted := p.firmware, p.trusted
	if img != nil {
		p.say("publish", "%s, %d bytes", filepath.Base(p.image), len(img))
	} else {
		own, digest, err := p.ownImage()
		if err != nil {
			return nil, err
		}
		img, trusted = own, &digest
	}
	if p.tamper {
		img = bytes.Clone(img)
		img[len(img)/3] ^= 1
		p.say("tamper", "flipped a bit at offset %d", len(img)/3)
	}
	return trusted, p.instance.publish(ctx, img)
}

// ownImage returns a signed image of this run's own, and the digest of its key.
func (p *play) ownImage() ([]byte, secureboot.Digest, error) {
	// They are kept, so that a second run with the same state has nothing to
	// install.
	img, err := os.ReadFile(p.files.path("published.bin"))
	if err == nil {
		digest, err := os.ReadFile(p.files.path("published.trust"))
		if err != nil {
			return nil, secureboot.Digest{}, err
		}
		trust, err := secureboot.ParseDigest(string(digest))
		p.say("publish", "the image of the last run, %d bytes", len(img))
		return img, trust, err
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, secureboot.Digest{}, err
	}
	key, err := rsa.GenerateKey(rand.Reader, 3072)
	if err != nil {
		return nil, secureboot.Digest{}, err
	}
	trust, err := sbsign.KeyDigest(key.Public())
	if err != nil {
		return nil, trust, err
	}
	if img, err = p.build(); err != nil {
		return nil, trust, err
	}
	if img, err = sbsign.Image(rand.Reader, img, key); err != nil {
		return nil, trust, err
	}
	p.say("publish", "an image of %d bytes, signed by a new RSA-3072 key", len(img))
	// The image last: it is what says that there was a last run.
	return img, trust, errors.Join(
		p.files.write("published.trust", []byte(trust.String())),
		p.files.write("published.bin", img))
}

// build makes an image that is valid and of some size, but runs nothing: its
// segments lie where no chip maps flash.
func (p *play) build() ([]byte, error) {
	app, err := image.App{Project: "blinky", Version: "1.8.1"}.MarshalBinary()
	if err != nil {
		return nil, err
	}
	payload := make([]byte, 300<<10)
	rand.Read(payload)
	b := image.Builder{Header: image.NewHeader(p.kind)}
	b.Add(0x5000_0000, app)
	b.Add(0x5000_1000, payload)
	img, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("build an image: %w", err)
	}
	return img, nil
}
