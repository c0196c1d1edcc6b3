package quarklinktest

import (
	"cmp"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strconv"
	"strings"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/esp/image"
	"github.com/quarklink-go/quarklink/esp/secureboot/sbsign"
	"github.com/quarklink-go/quarklink/internal/api"
)

// Firmware is an image that a batch's devices are to run.
type Firmware struct {
	// Image holds the image at offset 0. It is read when it is published and
	// whenever a device downloads it, and never held in memory: it must stay as
	// it is. Required.
	Image io.ReaderAt
	// Size is the image's length in bytes. 0: what Image's Size method says,
	// as those of a bytes.Reader and an io.SectionReader do.
	Size int64
	// AsIs: serve the image as it is though the batch has a signing key.
	AsIs bool
	// Share is the part of the batch's devices that get it, above 0 and at most
	// 1; 0 means all of them. Which devices depends on the image and the
	// DeviceID alone: publishing the same image with a larger Share adds devices
	// to those that had it.
	Share float64

	// What the device is told of the image. Where the image is an ESP32 image,
	// it decides what is zero: Name and Version, SecureVersion, and "chip" when
	// Attributes is nil.
	Name, Version string
	SecureVersion uint32
	Attributes    map[string]string
}

// Publish makes firmware due for every device of the batch that says it runs
// another: another SHA-256, or another version if the device knows no SHA-256.
// It replaces what was published before, also for a device in the middle of its
// download.
//
// If the batch has a signing key, and unless AsIs is set, the image must be an
// ESP32 image, and is served with a Secure Boot V2 signature by that key if it
// has no signature yet.
func (s *Server) Publish(batch string, f Firmware) error {
	s.mu.Lock()
	b, err := s.batch(batch)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	p, err := prepare(f, b.SigningKey)
	if err == nil {
		err = s.journal.keepImage(p)
	}
	if err != nil {
		return fmt.Errorf("quarklinktest: batch %q: %w", batch, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	b.published = p
	s.published(b)
	return s.journal.writeBatch(b)
}

// published tells what a batch's devices are to run from now on.
func (s *Server) published(b *batch) {
	e := Event{Kind: EventPublished, Batch: b.Name}
	if p := b.published; p != nil {
		e.Firmware = fmt.Sprintf("%s %s", p.manifest.Name, p.manifest.Version)
		e.Detail = fmt.Sprintf("%x", p.manifest.SHA256[:])
	}
	s.happened(e)
}

// Withdraw takes back what was published, so that no update is due.
func (s *Server) Withdraw(batch string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, err := s.batch(batch)
	if err != nil {
		return err
	}
	b.published = nil
	s.published(b)
	return s.journal.writeBatch(b)
}

// published is firmware as devices get it.
type published struct {
	manifest api.Firmware
	content  io.ReaderAt
	share    float64 // above 0, at most 1
}

// includes reports whether the device is in the share that gets the firmware.
func (p *published) includes(id quarklink.DeviceID) bool {
	digest := sha256.Sum256(append(p.manifest.SHA256[:], id...))
	return float64(binary.BigEndian.Uint64(digest[:])>>11)/(1<<53) < p.share
}

func prepare(f Firmware, key crypto.Signer) (*published, error) {
	if f.Image == nil {
		return nil, errors.New("firmware without an image")
	}
	if f.Share < 0 || f.Share > 1 || f.Share != f.Share {
		return nil, fmt.Errorf("firmware for a share of %v of the devices: need 0 to 1", f.Share)
	}
	size := f.Size
	sized, ok := f.Image.(interface{ Size() int64 })
	if ok && size == 0 {
		size = sized.Size() // which may be 0: a harness publishes what is wrong, too
	}
	if size < 0 || size == 0 && !ok {
		return nil, fmt.Errorf("firmware of %d bytes: set Size", size)
	}
	p := &published{content: f.Image, share: cmp.Or(f.Share, 1), manifest: api.Firmware{
		Name: f.Name, Version: f.Version, Size: size, SecureVersion: f.SecureVersion, Attributes: maps.Clone(f.Attributes),
	}}
	img, err := image.Read(f.Image, size)
	if err == nil {
		p.describe(img)
	}
	if key != nil && !f.AsIs {
		if err != nil {
			return nil, fmt.Errorf("firmware cannot be signed (AsIs serves it all the same): %w", err)
		}
		if err := p.sign(img, key); err != nil {
			return nil, err
		}
	}
	digest := sha256.New()
	if n, err := io.Copy(digest, io.NewSectionReader(p.content, 0, p.manifest.Size)); err != nil {
		return nil, fmt.Errorf("read firmware: %w", err)
	} else if n < p.manifest.Size {
		return nil, fmt.Errorf("firmware ends after %d of %d bytes", n, p.manifest.Size)
	}
	p.manifest.SHA256 = api.Digest(digest.Sum(nil))
	return p, nil
}

// describe fills in what the image itself tells.
func (p *published) describe(img *image.Image) {
	m := &p.manifest
	if m.Attributes == nil {
		m.Attributes = map[string]string{"chip": img.Header.Chip.String()}
	}
	app := img.App
	if app == nil {
		return
	}
	if m.Name == "" {
		m.Name = app.Project
	}
	if m.Version == "" {
		m.Version = app.Version
	}
	if m.SecureVersion == 0 {
		m.SecureVersion = app.SecureVersion
	}
}

// blockMagic is the first byte of a Secure Boot V2 signature block.
const blockMagic = 0xE7

// sign adds a signature to an image that has none.
func (p *published) sign(img *image.Image, key crypto.Signer) error {
	if at := img.PaddedLength(); at < p.manifest.Size {
		var first [1]byte
		if n, err := p.content.ReadAt(first[:], at); n < 1 {
			return fmt.Errorf("read firmware: %w", err)
		}
		if first[0] == blockMagic {
			return nil
		}
	}
	trailer, at, err := sbsign.ImageAt(rand.Reader, p.content, p.manifest.Size, key)
	if err != nil {
		return fmt.Errorf("sign firmware: %w", err)
	}
	p.content = appended{p.content, at, trailer}
	p.manifest.Size = at + int64(len(trailer))
	return nil
}

// appended is the first at bytes of an image, and then trailer.
type appended struct {
	image   io.ReaderAt
	at      int64
	trailer []byte
}

func (a appended) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, errors.New("negative offset")
	}
	if off < a.at {
		n, err = a.image.ReadAt(p[:min(int64(len(p)), a.at-off)], off)
		if int64(n) < min(int64(len(p)), a.at-off) {
			return n, err
		}
	}
	if n < len(p) {
		if skip := off + int64(n) - a.at; skip < int64(len(a.trailer)) {
			n += copy(p[n:], a.trailer[skip:])
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// due returns what the device should run and does not; nil if there is nothing.
func (d *device) due(r running) *published {
	p := d.batch.published
	if p == nil || !p.includes(d.id) || p.runsOn(r) {
		return nil
	}
	return p
}

// runsOn reports whether a device that says so runs the firmware: its SHA-256
// counts, and its version only if it does not say that.
func (p *published) runsOn(r running) bool {
	if r.sha256 != "" {
		return r.sha256 == hex.EncodeToString(p.manifest.SHA256[:])
	}
	return r.version != "" && r.version == p.manifest.Version
}

// hear notes what the device that asks says that it runs.
func (s *Server) hear(q *request) error {
	said, err := parseFirmwareField(q.Header.Get(api.FirmwareField))
	if err != nil {
		return refuse(http.StatusBadRequest, "", fmt.Sprintf("%s: %v", api.FirmwareField, err))
	}
	d, now := q.device, running{said["version"], said["sha256"]}
	if d == nil || d.running == now {
		return nil
	}
	d.running = now
	s.happened(Event{Kind: EventRunning, DeviceID: d.id, Batch: d.batch.Name, Firmware: now.version, Detail: now.sha256})
	return s.journal.writeDevice(d)
}

// parseFirmwareField reads a list of name="value" (RFC 9110 sections 5.6.4 and
// 5.6.6) in which a device says what it runs.
func parseFirmwareField(field string) (map[string]string, error) {
	said := map[string]string{}
	for rest := strings.TrimSpace(field); rest != ""; {
		name, after, ok := strings.Cut(rest, `="`)
		if !ok || name == "" || strings.ContainsAny(name, " \t,\"") {
			return nil, fmt.Errorf("need name=\"value\" at %.40q", rest)
		}
		var value strings.Builder
		i := 0
		for ; i < len(after) && after[i] != '"'; i++ {
			if after[i] == '\\' {
				i++
			}
			if i < len(after) {
				value.WriteByte(after[i])
			}
		}
		if i >= len(after) {
			return nil, fmt.Errorf("the value of %.40q has no end", name)
		}
		if _, twice := said[name]; twice {
			return nil, fmt.Errorf("%.40q is said twice", name)
		}
		said[name] = value.String()
		rest = strings.TrimLeft(after[i+1:], " \t")
		if rest == "" {
			break
		}
		if rest, ok = strings.CutPrefix(rest, ","); !ok {
			return nil, fmt.Errorf("need a comma at %.40q", rest)
		}
		if rest = strings.TrimLeft(rest, " \t"); rest == "" {
			return nil, errors.New("there is nothing after the comma")
		}
	}
	return said, nil
}

func (s *Server) answerFirmware(q *request) (*answer, error) {
	p := q.device.due(q.device.running)
	if p == nil {
		return nil, refuse(http.StatusNotFound, ProblemNoFirmware, "no update is due")
	}
	digest, size := p.manifest.SHA256, p.manifest.Size
	etag := fmt.Sprintf(`"%x"`, digest[:])
	if want := q.Header.Get("If-Match"); want != "" && !matches(want, etag) {
		return nil, refuse(http.StatusPreconditionFailed, "", "another image is due: ask for the status again")
	}
	a := &answer{
		status:      http.StatusOK,
		contentType: "application/octet-stream",
		header: map[string]string{
			"Accept-Ranges": "bytes",
			"ETag":          etag,
			"Repr-Digest":   "sha-256=:" + base64.StdEncoding.EncodeToString(digest[:]) + ":",
		},
	}
	start, end, status := byteRange(q.Header, etag, size)
	switch status {
	case http.StatusRequestedRangeNotSatisfiable:
		return nil, &refusal{status: status, detail: "the image ends before that range",
			header: map[string]string{"Content-Range": fmt.Sprintf("bytes */%d", size)}}
	case http.StatusPartialContent:
		a.status = status
		a.header["Content-Range"] = fmt.Sprintf("bytes %d-%d/%d", start, end-1, size)
	}
	a.size = end - start
	a.body = io.NewSectionReader(p.content, start, a.size)
	return a, nil
}

// matches tells whether an If-Match field (RFC 9110 section 13.1.1) takes etag.
func matches(field, etag string) bool {
	for _, tag := range strings.Split(field, ",") {
		if tag = strings.TrimSpace(tag); tag == "*" || tag == etag {
			return true
		}
	}
	return false
}

// byteRange returns which bytes, start <= i < end, a request asks for, and the
// status that goes with them: 206, 416, or 200 for all of them. A Range field
// that cannot be read, that asks for several ranges, or whose If-Range does not
// hold is ignored, as RFC 9110 sections 13.1.5 and 14.2 allow.
func byteRange(h http.Header, etag string, size int64) (start, end int64, status int) {
	spec, ok := strings.CutPrefix(h.Get("Range"), "bytes=")
	if ifRange := h.Get("If-Range"); !ok || ifRange != "" && ifRange != etag {
		return 0, size, http.StatusOK
	}
	first, last, ok := strings.Cut(spec, "-")
	start, err1 := parsePosition(first)
	end, err2 := parsePosition(last)
	switch {
	case !ok, err1 != nil && first != "", err2 != nil && last != "", first == "" && last == "":
		return 0, size, http.StatusOK
	case first == "": // the last bytes
		start, end = max(0, size-end), size
	case last == "":
		end = size
	case end < start:
		return 0, size, http.StatusOK
	default:
		end = min(end, size-1) + 1
	}
	if start >= size {
		return 0, 0, http.StatusRequestedRangeNotSatisfiable
	}
	return start, end, http.StatusPartialContent
}

func parsePosition(s string) (int64, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	return int64(n), err
}
