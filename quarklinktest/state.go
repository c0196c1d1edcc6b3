package quarklinktest

import (
	"bufio"
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/internal/api"
)

// The files of a State. A journal has one entry a line, each with a checksum;
// the latest entry about a batch or a device counts. It is written anew at each
// start, and grows until the next.
const (
	instanceFile = "instance.json" // a snapshot without devices
	journalFile  = "journal"
	imageFolder  = "firmware" // each image in a file named by its SHA-256
)

// entry is one line of the journal. One member is set.
type entry struct {
	Batch         *batchEntry        `json:"batch,omitempty"`
	Device        *deviceSnapshot    `json:"device,omitempty"`
	RemovedBatch  string             `json:"removedBatch,omitempty"`
	RemovedDevice quarklink.DeviceID `json:"removedDevice,omitempty"`
}

type batchEntry struct {
	Name       string         `json:"name"`
	Lifetime   time.Duration  `json:"lifetime,omitempty"`
	Hub        *hubEntry      `json:"hub,omitempty"`
	Database   *databaseEntry `json:"database,omitempty"`
	PollAfter  time.Duration  `json:"pollAfter,omitempty"`
	SigningKey []byte         `json:"signingKey,omitempty"` // PKCS #8
	Firmware   *api.Firmware  `json:"firmware,omitempty"`
	Share      float64        `json:"share,omitempty"`
}

type hubEntry struct {
	quarklink.Hub
	Roots [][]byte // DER, in place of Hub's
}

type databaseEntry struct {
	quarklink.Database
	Roots [][]byte // DER, in place of Database's
	Token string   // in place of Database's, which redacts itself
}

// journal is a State that is open for writing. A nil one keeps nothing.
type journal struct {
	dir    string
	file   *os.File
	failed error // what came of an earlier write: nothing can be promised since
}

func (j *journal) close() {
	if j != nil && j.file != nil {
		j.file.Close()
	}
}

// write returns when the entry is on the medium.
func (j *journal) write(e entry) error {
	if j == nil {
		return nil
	}
	if j.failed != nil {
		return j.failed
	}
	line, err := e.line()
	if err == nil {
		_, err = j.file.Write(line)
	}
	if err == nil {
		err = j.file.Sync()
	}
	if err != nil {
		j.failed = fmt.Errorf("quarklinktest: the state in %s cannot be written any more: %w", j.dir, err)
	}
	return j.failed
}

func (j *journal) writeDevice(d *device) error {
	if j == nil {
		return nil
	}
	saved := d.snapshot()
	return j.write(entry{Device: &saved})
}

func (j *journal) writeBatch(b *batch) error {
	if j == nil {
		return nil
	}
	saved, err := b.entry()
	if err != nil {
		return err
	}
	return j.write(entry{Batch: saved})
}

func (e entry) line() ([]byte, error) {
	data, err := json.Marshal(e)
	if err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, "%08x %s\n", crc32.ChecksumIEEE(data), data), nil
}

func parseLine(line []byte) (e entry, err error) {
	var sum uint32
	text, data, ok := bytes.Cut(line, []byte(" "))
	if _, err := fmt.Sscanf(string(text), "%08x", &sum); !ok || err != nil {
		return entry{}, errors.New("a line without a checksum")
	}
	if crc32.ChecksumIEEE(data) != sum {
		return entry{}, errors.New("a line whose checksum is wrong")
	}
	return e, json.Unmarshal(data, &e)
}

func (b *batch) entry() (*batchEntry, error) {
	e := &batchEntry{Name: b.Name, Lifetime: b.Policy.Lifetime, PollAfter: b.PollAfter}
	if h := b.Policy.Hub; h != nil {
		e.Hub = &hubEntry{Hub: *h, Roots: ders(h.Roots)}
		e.Hub.Hub.Roots = nil
	}
	if d := b.Policy.Database; d != nil {
		e.Database = &databaseEntry{Database: *d, Roots: ders(d.Roots), Token: string(d.Token)}
		e.Database.Database.Roots, e.Database.Database.Token = nil, ""
	}
	if b.SigningKey != nil {
		var err error
		if e.SigningKey, err = x509.MarshalPKCS8PrivateKey(b.SigningKey); err != nil {
			return nil, fmt.Errorf("quarklinktest: batch %q: its signing key cannot be kept in a State: %w", b.Name, err)
		}
	}
	if p := b.published; p != nil {
		e.Firmware, e.Share = &p.manifest, p.share
	}
	return e, nil
}

func ders(certs []*x509.Certificate) (all [][]byte) {
	for _, cert := range certs {
		all = append(all, cert.Raw)
	}
	return all
}

func parseCertificates(ders [][]byte) (certs []*x509.Certificate, err error) {
	for _, der := range ders {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		certs = append(certs, cert)
	}
	return certs, nil
}

// batch makes the batch of an entry. Its image is in dir.
func (e *batchEntry) batch(dir string) (*batch, error) {
	b := &batch{Batch: Batch{Name: e.Name, PollAfter: e.PollAfter, Policy: Policy{Lifetime: e.Lifetime}}}
	var err error
	if e.Hub != nil {
		b.Policy.Hub = &e.Hub.Hub
		if b.Policy.Hub.Roots, err = parseCertificates(e.Hub.Roots); err != nil {
			return nil, err
		}
	}
	if e.Database != nil {
		b.Policy.Database = &e.Database.Database
		b.Policy.Database.Token = quarklink.Secret(e.Database.Token)
		if b.Policy.Database.Roots, err = parseCertificates(e.Database.Roots); err != nil {
			return nil, err
		}
	}
	if e.SigningKey != nil {
		key, err := x509.ParsePKCS8PrivateKey(e.SigningKey)
		if err != nil {
			return nil, err
		}
		b.SigningKey, _ = key.(crypto.Signer)
	}
	if e.Firmware != nil {
		b.published = &published{manifest: *e.Firmware, share: e.Share, content: imageFile(imagePath(dir, e.Firmware.SHA256))}
		if err := b.published.check(); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// openState reads a State, if there is one, and begins its journal anew. It
// returns the port that the instance had.
func (s *Server) openState(dir string) (port uint16, err error) {
	if err := os.MkdirAll(filepath.Join(dir, imageFolder), 0o700); err != nil {
		return 0, err
	}
	data, err := os.ReadFile(filepath.Join(dir, instanceFile))
	if err == nil {
		port, err = s.restore(data)
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err == nil {
		err = s.replay(filepath.Join(dir, journalFile), dir)
	}
	if err != nil {
		return 0, fmt.Errorf("state in %s: %w", dir, err)
	}
	s.journal = &journal{dir: dir}
	return port, s.compact(dir)
}

// replay reads a journal. A last line that is not whole was being written when
// the Server was killed, so that nobody was told what it says.
func (s *Server) replay(path, dir string) error {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer file.Close()
	lines := bufio.NewReader(file)
	for n := 1; ; n++ {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		e, err := parseLine(line[:len(line)-1])
		if err == nil {
			err = s.apply(e, dir)
		}
		if err != nil {
			return fmt.Errorf("line %d of the journal: %w", n, err)
		}
	}
}

func (s *Server) apply(e entry, dir string) error {
	switch {
	case e.Batch != nil:
		b, err := e.Batch.batch(dir)
		if err != nil {
			return fmt.Errorf("batch %q: %w", e.Batch.Name, err)
		}
		if at := s.batches[b.Name]; at != nil {
			*at = *b // its devices point to it
		} else {
			s.batches[b.Name] = b
		}
	case e.Device != nil:
		return s.restoreDevice(*e.Device)
	case e.RemovedBatch != "":
		delete(s.batches, e.RemovedBatch)
	case e.RemovedDevice != "":
		if d := s.devices[e.RemovedDevice]; d != nil {
			s.forget(d)
		}
	}
	return nil
}

// compact writes the journal anew, with one entry for each batch and device, and
// opens it. Images that no batch publishes are removed.
func (s *Server) compact(dir string) error {
	var all bytes.Buffer
	add := func(e entry) error {
		line, err := e.line()
		all.Write(line)
		return err
	}
	images := map[string]bool{}
	for _, b := range s.batches {
		saved, err := b.entry()
		if err == nil {
			err = add(entry{Batch: saved})
		}
		if err != nil {
			return err
		}
		if saved.Firmware != nil {
			images[filepath.Base(imagePath(dir, saved.Firmware.SHA256))] = true
		}
	}
	for _, d := range s.devices {
		saved := d.snapshot()
		if err := add(entry{Device: &saved}); err != nil {
			return err
		}
	}
	path := filepath.Join(dir, journalFile)
	err := writeFile(path, &all)
	if err == nil {
		s.journal.file, err = os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0o600)
	}
	if err != nil {
		return err
	}
	kept, err := os.ReadDir(filepath.Join(dir, imageFolder))
	for _, file := range kept {
		if !images[file.Name()] {
			os.Remove(filepath.Join(dir, imageFolder, file.Name()))
		}
	}
	return err
}

// saveInstance keeps the keys, the certificates and the port.
func (s *Server) saveInstance(dir string, p *pki) error {
	snap, err := s.instanceSnapshot(p)
	if err != nil {
		return err
	}
	data, err := json.Marshal(snap)
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, instanceFile), bytes.NewReader(data))
}

// writeFile writes a file so that after a power cut it is the old one or the new
// one.
func writeFile(path string, content io.Reader) error {
	temp, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	_, err = io.Copy(temp, content)
	if err == nil {
		err = temp.Sync()
	}
	err = errors.Join(err, temp.Close())
	if err == nil {
		err = os.Rename(temp.Name(), path)
	}
	if err != nil {
		os.Remove(temp.Name())
		return err
	}
	return syncDir(filepath.Dir(path))
}

// imageFile is the path of an image that is kept. It is opened for each read, so
// that no descriptor has to be closed when another image is published.
type imageFile string

func (path imageFile) ReadAt(p []byte, off int64) (int, error) {
	file, err := os.Open(string(path))
	if err != nil {
		return 0, err
	}
	defer file.Close()
	return file.ReadAt(p, off)
}

func imagePath(dir string, digest api.Digest) string {
	return filepath.Join(dir, imageFolder, hex.EncodeToString(digest[:]))
}

// keepImage copies the image into the State and serves it from there.
func (j *journal) keepImage(p *published) error {
	if j == nil {
		return nil
	}
	path := imagePath(j.dir, p.manifest.SHA256)
	if err := writeFile(path, io.NewSectionReader(p.content, 0, p.manifest.Size)); err != nil {
		return fmt.Errorf("keep the image: %w", err)
	}
	p.content = imageFile(path)
	return nil
}

// check reports whether the image that was kept is still what it was.
func (p *published) check() error {
	digest := sha256.New()
	if _, err := io.Copy(digest, io.NewSectionReader(p.content, 0, p.manifest.Size)); err != nil {
		return err
	}
	if api.Digest(digest.Sum(nil)) != p.manifest.SHA256 {
		return errors.New("the image that was kept is damaged")
	}
	return nil
}
