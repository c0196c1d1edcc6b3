package quarklink

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/quarklink-go/quarklink/internal/api"
	"github.com/quarklink-go/quarklink/internal/problem"
)

// Slot is the inactive partition, into which an update is written.
type Slot interface {
	// ReadAt reads back what was written.
	io.ReaderAt
	// WriteAt writes. FirmwareUpdate's writes ascend from offset 0 without
	// gaps and begin at multiples of 4096; a slot in flash erases a
	// 4096-byte sector when a write reaches its start.
	io.WriterAt
	// Size returns how many bytes the slot holds.
	Size() int64
	// Activate makes the slot's first size bytes what the device starts next.
	// It is called only after the image, read back from the slot, was
	// verified. It must be atomic: after a power cut the device starts the old
	// image or the new one.
	Activate(ctx context.Context, size int64) error
}

// Verifier decides whether an image may run on this device: it enforces the
// chip, the signature and the anti-rollback floor from the image's signed
// content alone. secureboot.Verifier is one.
//
// The error may say which of the C library's codes it stands for by a method
// FirmwareCode() int, or by wrapping ErrUpdate, ErrMissingSignature or
// ErrWrongSignature: 22 for an image that is damaged or none, or not for this
// device, 21 for one without a signature, 20 for one whose signature is not
// trusted. Other errors count as 22.
type Verifier interface {
	Verify(ctx context.Context, image io.ReaderAt, size int64) error
}

// FirmwareOptions say where an update goes and who judges it.
type FirmwareOptions struct {
	Slot     Slot     // required
	Verifier Verifier // required: nil is ErrNoVerifier
	// Progress, if set, is called as the download grows, from the goroutine
	// that called FirmwareUpdate: at 0, then after each write.
	Progress func(done, total int64)
}

// Firmware is what FirmwareUpdate did.
type Firmware struct {
	// Installed: the slot holds the verified image and has been activated.
	// Restart the device to run it.
	Installed bool
	Manifest  Manifest // of the image that was due
}

// downloadChunk is how much is held in memory at a time, a multiple of the
// 4096 bytes of a flash sector.
const downloadChunk = 16 << 10

// FirmwareUpdate asks for the status and, if an update is due, streams the
// image into the slot, reads it back, has it verified, activates the slot, and
// tells the instance the outcome. Memory stays constant whatever the image's
// size.
//
// No update due is ErrNoUpdate. Refusals, in the order in which they are found:
// an image for another chip or kind of eFuses is ErrUpdate, one that does not fit
// ErrSlotTooSmall, both before anything is downloaded; a body that is shorter
// than announced or breaks off is ErrConnectionLost; one that is damaged is
// ErrUpdate; and then the Verifier's verdict: ErrUpdate, ErrMissingSignature or
// ErrWrongSignature. After an error the slot may hold anything, but it has not
// been activated, unless Activate itself failed half-way. The outcome is told
// once, in at most half a minute, except for a connection that was lost; that it
// cannot be told is logged and is no error.
func (c *Client) FirmwareUpdate(ctx context.Context, o FirmwareOptions) (Firmware, error) {
	var done Firmware
	err := c.run(ctx, "firmware update", func(ctx context.Context) (err error) {
		switch {
		case o.Slot == nil:
			return withCode(CodeInvalidParameter, errors.New("FirmwareOptions.Slot is nil"))
		case o.Verifier == nil:
			return withCode(CodeInvalidParameter, ErrNoVerifier)
		}
		done, err = c.update(ctx, o)
		return err
	})
	return done, err
}

// maxChanges is how often the instance may change its mind about which image is
// due while it is being asked for it.
const maxChanges = 2

func (c *Client) update(ctx context.Context, o FirmwareOptions) (Firmware, error) {
	for changes := 0; ; changes++ {
		due, err := c.due(ctx)
		if err != nil {
			return Firmware{}, err
		}
		err = c.install(ctx, due, o)
		var answer *problem.Error
		if errors.As(err, &answer) && answer.Status == http.StatusPreconditionFailed && changes < maxChanges {
			c.log.LogAttrs(ctx, slog.LevelInfo, "another image is due by now")
			continue
		}
		return Firmware{Installed: err == nil, Manifest: *due}, err
	}
}

// due returns the update that is due.
func (c *Client) due(ctx context.Context) (*Manifest, error) {
	status, err := c.status(ctx)
	switch {
	case err != nil:
		return nil, err
	case status.State == StateRevoked:
		return nil, withCode(CodeDeviceRevoked, errors.New("no update for a revoked device"))
	case status.Firmware == nil:
		return nil, withCode(CodeNoUpdate, errors.New("the device runs what the instance wants"))
	}
	return status.Firmware, nil
}

func (c *Client) install(ctx context.Context, m *Manifest, o FirmwareOptions) error {
	err := c.fetchAndActivate(ctx, m, o)
	if err != nil && ctx.Err() == nil {
		err = &decided{err}
	}
	c.report(ctx, m, err)
	return err
}

func (c *Client) fetchAndActivate(ctx context.Context, m *Manifest, o FirmwareOptions) error {
	if err := c.suits(m, o.Slot.Size()); err != nil {
		return withCode(CodeUpdate, err)
	}
	if err := c.download(ctx, m, o); err != nil {
		return err
	}
	c.log.LogAttrs(ctx, slog.LevelInfo, "verify image")
	if err := o.Verifier.Verify(ctx, io.NewSectionReader(o.Slot, 0, m.Size), m.Size); err != nil {
		return withCode(verdict(err), fmt.Errorf("verify image: %w", err))
	}
	c.log.LogAttrs(ctx, slog.LevelInfo, "activate slot")
	if err := o.Slot.Activate(ctx, m.Size); err != nil {
		return withCode(CodeUpdate, fmt.Errorf("activate slot: %w", err))
	}
	return nil
}

// suits compares what the manifest says of the image with what the device says
// of itself, and with its slot.
func (c *Client) suits(m *Manifest, slotSize int64) error {
	eFuse := "real"
	if c.firmware.VirtualEFuse {
		eFuse = "virtual"
	}
	for _, a := range []struct{ name, device string }{{"chip", c.firmware.Chip}, {"efuse", eFuse}} {
		if image := m.Attributes[a.name]; image != "" && a.device != "" && image != a.device {
			return fmt.Errorf("the image is for %s %.40q, the device has %q", a.name, image, a.device)
		}
	}
	if m.Size > slotSize {
		return fmt.Errorf("%w: %d bytes into %d", ErrSlotTooSmall, m.Size, slotSize)
	}
	if m.Size <= 0 {
		return fmt.Errorf("an image of %d bytes is announced", m.Size)
	}
	return nil
}

// download streams the image into the slot.
func (c *Client) download(ctx context.Context, m *Manifest, o FirmwareOptions) error {
	s, err := c.identitySession()
	if err != nil {
		return err
	}
	var body io.ReadCloser
	var length int64
	err = c.ask(ctx, "firmware", func(ctx context.Context) (err error) {
		body, length, err = s.api.GetFirmware(ctx, m.SHA256)
		return err
	})
	if err != nil {
		return err
	}
	defer body.Close()
	if length > m.Size {
		return withCode(CodeUpdate, fmt.Errorf("the image has %d bytes, and %d were announced", length, m.Size))
	}
	hash := sha256.New()
	if err := fill(o.Slot, io.TeeReader(body, hash), m.Size, o.Progress); err != nil {
		return err
	}
	if got := [32]byte(hash.Sum(nil)); got != m.SHA256 {
		return withCode(CodeUpdate, fmt.Errorf("the image is damaged: SHA-256 %x, and %x was announced", got, m.SHA256))
	}
	return nil
}

// fill copies exactly size bytes to the slot.
func fill(slot Slot, body io.Reader, size int64, progress func(done, total int64)) error {
	if progress == nil {
		progress = func(int64, int64) {}
	}
	buf := make([]byte, downloadChunk)
	progress(0, size)
	for done := int64(0); done < size; {
		n, err := io.ReadFull(body, buf[:min(size-done, downloadChunk)])
		if err != nil {
			return withCode(CodeConnectionLost, fmt.Errorf("download broke off after %d of %d bytes: %w", done+int64(n), size, err))
		}
		if _, err := slot.WriteAt(buf[:n], done); err != nil {
			return withCode(CodeUpdate, fmt.Errorf("write slot at %d: %w", done, err))
		}
		done += int64(n)
		progress(done, size)
	}
	// Reading to the end lets the connection be used again; what exceeds the
	// announced size is refused.
	if n, err := io.ReadFull(body, buf[:1]); n > 0 {
		return withCode(CodeUpdate, fmt.Errorf("the image is longer than the %d bytes announced", size))
	} else if !errors.Is(err, io.EOF) {
		return withCode(CodeConnectionLost, fmt.Errorf("download broke off at its end: %w", err))
	}
	return nil
}

// verdict is the code that a Verifier's error stands for.
func verdict(err error) Code {
	var code Code
	var coded interface{ FirmwareCode() int }
	if errors.As(err, &coded) {
		code = Code(coded.FirmwareCode())
	} else {
		errors.As(err, &code)
	}
	if code == CodeWrongSignature || code == CodeMissingSignature {
		return code
	}
	return CodeUpdate
}

// outcomeTime bounds the telling of an outcome: what has been installed should
// run, whether or not the instance has heard of it.
const outcomeTime = 30 * time.Second

// maxDetail bounds what the instance is told of a failure, in bytes.
const maxDetail = 256

// report tells the instance what became of the image: that it is installed, or
// that the image or the slot failed. Of what went wrong between the device and
// the instance there is nothing to tell.
func (c *Client) report(ctx context.Context, m *Manifest, result error) {
	outcome := api.Outcome{SHA256: m.SHA256, Outcome: api.Installed}
	if result != nil {
		code := newError("", CodeGeneral, result).Code
		if code != CodeUpdate && code != CodeMissingSignature && code != CodeWrongSignature {
			return
		}
		detail := result.Error()
		outcome.Outcome, outcome.Code = api.Failed, int(code)
		outcome.Detail = strings.ToValidUTF8(detail[:min(len(detail), maxDetail)], "")
	}
	c.log.LogAttrs(ctx, slog.LevelInfo, "firmware outcome", slog.String("outcome", outcome.Outcome))
	ctx, cancel := context.WithTimeout(ctx, outcomeTime)
	defer cancel()
	s, err := c.identitySession()
	if err == nil {
		err = s.api.SendOutcome(ctx, outcome)
	}
	if ctx.Err() != nil {
		c.closeSession() // as run does for a call that its context ended
	}
	if err != nil {
		c.log.LogAttrs(ctx, slog.LevelWarn, "outcome not told", slog.Any("error", err))
	}
}

// FirmwareInfo is what a device says of the firmware that runs now. Whatever is
// zero is not said.
type FirmwareInfo struct {
	Version string   // such as "1.8.0"; printable ASCII
	SHA256  [32]byte // of the image as it was downloaded
	// Chip is the chip's name as image manifests have it, such as "esp32c3".
	Chip string
	// VirtualEFuse: the device's eFuses are emulated in flash. Images for real
	// eFuses break such a device and the other way round.
	VirtualEFuse bool
}

// check refuses what a header field cannot carry.
func (f FirmwareInfo) check() error {
	for _, c := range []byte(f.Version) {
		if c < ' ' || c > '~' {
			return fmt.Errorf("FirmwareInfo.Version %q: only printable ASCII is allowed", f.Version)
		}
	}
	return nil
}

// header returns what runs now as the parameters of a header field, their
// values quoted as in RFC 9110 section 5.6.4.
func (f FirmwareInfo) header() string {
	var says []string
	if f.Version != "" {
		says = append(says, `version="`+strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(f.Version)+`"`)
	}
	if f.SHA256 != [32]byte{} {
		says = append(says, fmt.Sprintf(`sha256="%x"`, f.SHA256))
	}
	return strings.Join(says, ", ")
}
