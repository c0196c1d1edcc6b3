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
	"sync/atomic"
	"time"

	"github.com/quarklink-go/quarklink/internal/api"
	"github.com/quarklink-go/quarklink/internal/problem"
)

// Slot is the inactive partition, into which an update is written.
type Slot interface {
	// ReadAt reads back what was written.
	io.ReaderAt
	// WriteAt writes. A download's writes ascend without gaps, and each begins
	// at a multiple of 4096. The first is at offset 0 or, when a download that
	// broke off is carried on, at any multiple of 4096 up to where that one
	// came; what was written before that stays. A slot in flash erases a
	// 4096-byte sector when a write reaches its start.
	io.WriterAt
	// Size returns how many bytes the slot holds.
	Size() int64
	// Activate makes the slot's first size bytes what the device starts next.
	// It is called only after the image, read back from the slot, was found to
	// be the one that was announced and was verified. It must be atomic: after
	// a power cut the device starts the old image or the new one.
	Activate(ctx context.Context, size int64) error
}

// Verifier decides whether an image may run on this device: it enforces the
// chip, the signature and the anti-rollback floor from the image's signed
// content alone. secureboot.Verifier is one.
//
// A verdict on the image says which of the C library's codes it stands for by a
// method FirmwareCode() int, or by wrapping ErrUpdate, ErrMissingSignature or
// ErrWrongSignature: 22 for an image that is damaged or none, or not for this
// device, 21 for one without a signature, 20 for one whose signature is not
// trusted. Any other FirmwareCode counts as 22. An error without a code is no
// verdict: verifying failed, and the image may be tried again. Neither is any
// error after the image could not be read.
//
// A Verifier that also has the method
//
//	VerifySigner(ctx context.Context, image io.ReaderAt, size int64) (signer string, err error)
//
// is asked by that in place of Verify, and names the key whose signature counted.
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
	// Again: try an image that was refused before.
	Again bool
}

// Firmware is what FirmwareUpdate did.
type Firmware struct {
	// Installed: the slot holds the verified image and has been activated.
	// Restart the device to run it.
	Installed bool
	Manifest  Manifest // of the image that was due
	// SignedBy names the key whose signature the Verifier accepted, if it has the
	// method VerifySigner: for secureboot.Verifier the key's digest, 64
	// hexadecimal digits.
	SignedBy string
}

// downloadChunk is how much is held in memory at a time, a multiple of the
// 4096 bytes of a flash sector.
const downloadChunk = 16 << 10

// FirmwareUpdate asks for the status and, if an update is due, streams the
// image into the slot, reads it back, compares its digest with the announced
// one, has it verified, activates the slot, and tells the instance the outcome.
// Memory stays constant whatever the image's size.
//
// The outcome is stored, so that no image is installed, or refused, again and
// again. Nothing to install is ErrNoUpdate. With it comes ErrAwaitsRestart for
// an image that was activated, until Config.Firmware reports it or another is
// offered: a program must say what runs. ErrRefusedBefore comes with it for an
// image that was refused, until another is offered, Config.Firmware changes, or
// FirmwareOptions.Again is set.
//
// Refusals, in the order in which they are found: an image for another chip or
// kind of eFuses is ErrUpdate, one that does not fit ErrSlotTooSmall, both
// before anything is downloaded; a longer body than announced is ErrUpdate; so is
// an image that, read back, has another digest than was announced, because it was
// damaged or the slot did not keep it; and then the Verifier's verdict: ErrUpdate,
// ErrMissingSignature or ErrWrongSignature. A slot that could not be written or
// activated is ErrUpdate too, but is not remembered as a refusal.
//
// Not told to the instance, and tried again by the next call: a body that is
// shorter than announced, breaks off, brings nothing for two minutes or less than
// 64 KiB in ten (of waiting for it), which is ErrConnectionLost; a slot that
// could not be read, and a record that could not be stored before the slot is
// activated, which are ErrStorage; and a Verifier's error without a code.
//
// After an error the slot may hold anything, but it has not been activated,
// unless Activate itself failed half-way. The outcome is told once, in at most
// half a minute; that it cannot be told is logged and is no error.
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
		due, err := c.due(ctx, o.Again)
		if due == nil {
			return Firmware{}, err
		}
		if err != nil {
			return Firmware{Manifest: *due}, err
		}
		signedBy, err := c.install(ctx, due, o)
		var answer *problem.Error
		if errors.As(err, &answer) && answer.Status == http.StatusPreconditionFailed && changes < maxChanges {
			c.log.LogAttrs(ctx, slog.LevelInfo, "another image is due by now")
			continue
		}
		return Firmware{Installed: err == nil, Manifest: *due, SignedBy: signedBy}, err
	}
}

// due returns the update that is due; with an error, the one that is barred.
func (c *Client) due(ctx context.Context, again bool) (*Manifest, error) {
	status, err := c.status(ctx)
	switch {
	case err != nil:
		return nil, err
	case status.State == StateRevoked:
		return nil, withCode(CodeDeviceRevoked, errors.New("no update for a revoked device"))
	case status.Firmware == nil:
		return nil, withCode(CodeNoUpdate, errors.New("the device runs what the instance wants"))
	}
	return status.Firmware, withCode(CodeNoUpdate, barred(status, again))
}

func (c *Client) install(ctx context.Context, m *Manifest, o FirmwareOptions) (signedBy string, err error) {
	signedBy, err = c.fetchAndActivate(ctx, m, o)
	if err != nil && ctx.Err() == nil {
		c.refuse(ctx, m, err)
		err = stands(err)
	}
	c.report(ctx, m, err)
	return signedBy, err
}

func (c *Client) fetchAndActivate(ctx context.Context, m *Manifest, o FirmwareOptions) (signedBy string, err error) {
	if err := c.suits(m, o.Slot.Size()); err != nil {
		return "", withCode(CodeUpdate, err)
	}
	if err := c.download(ctx, m, o); err != nil {
		return "", err
	}
	if signedBy, err = c.verify(ctx, m, o); err != nil {
		return "", err
	}
	if err := c.putUpdate(ctx, c.newUpdateRecord(m, stageVerified)); err != nil {
		return signedBy, err
	}
	c.log.LogAttrs(ctx, slog.LevelInfo, "activate slot")
	if err := o.Slot.Activate(ctx, m.Size); err != nil {
		return signedBy, withCode(CodeUpdate, fmt.Errorf("%w: activate: %w", errSlot, err))
	}
	c.activated(ctx, m)
	return signedBy, nil
}

// errSlot marks the failures of a slot that say nothing of the image.
var errSlot = errors.New("slot")

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
	body, length, err := c.fetch(ctx, "ask for the firmware", func(ctx context.Context) (io.ReadCloser, int64, error) {
		return s.api.GetFirmware(ctx, m.SHA256)
	})
	if err != nil {
		return err
	}
	defer body.Close()
	if length > m.Size {
		return withCode(CodeUpdate, fmt.Errorf("the image has %d bytes, and %d were announced", length, m.Size))
	}
	return fill(o.Slot, body, m.Size, o.Progress)
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
			return withCode(CodeUpdate, fmt.Errorf("%w: write at %d: %w", errSlot, done, err))
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

// verify reads the image back and decides whether it may run: it must be the
// one that was announced, and the Verifier must accept it.
func (c *Client) verify(ctx context.Context, m *Manifest, o FirmwareOptions) (signedBy string, err error) {
	c.log.LogAttrs(ctx, slog.LevelInfo, "verify image")
	slot := &readBack{ctx: ctx, slot: o.Slot}
	hash := sha256.New()
	io.Copy(hash, io.NewSectionReader(slot, 0, m.Size)) // slot keeps the error
	if err := slot.failure(); err != nil {
		return "", err
	}
	if got := [32]byte(hash.Sum(nil)); got != m.SHA256 {
		return "", withCode(CodeUpdate, fmt.Errorf("the image was damaged or the slot did not keep it:"+
			" read back, its SHA-256 is %x, and %x was announced", got, m.SHA256))
	}
	image := io.NewSectionReader(slot, 0, m.Size)
	if v, ok := o.Verifier.(signerVerifier); ok {
		signedBy, err = v.VerifySigner(ctx, image, m.Size)
	} else {
		err = o.Verifier.Verify(ctx, image, m.Size)
	}
	if failed := slot.failure(); failed != nil {
		return "", failed
	}
	if err == nil {
		return signedBy, nil
	}
	return "", verifierError(fmt.Errorf("verify image: %w", err))
}

// signerVerifier is a Verifier that names the key whose signature counted.
type signerVerifier interface {
	VerifySigner(ctx context.Context, image io.ReaderAt, size int64) (signer string, err error)
}

// readBack reads a slot until its context ends, and notes whether that failed:
// then nothing that is said of the image counts.
type readBack struct {
	ctx    context.Context
	slot   io.ReaderAt
	failed atomic.Pointer[error]
}

// ReadAt is only called for what was written, so that less is a failure.
func (r *readBack) ReadAt(p []byte, off int64) (n int, err error) {
	if err = r.ctx.Err(); err == nil {
		n, err = r.slot.ReadAt(p, off)
	}
	if n >= len(p) {
		return len(p), nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	err = fmt.Errorf("%w: read at %d: %w", errSlot, off+int64(n), err)
	r.failed.Store(&err)
	return n, err
}

func (r *readBack) failure() error {
	if err := r.failed.Load(); err != nil {
		return withCode(CodeStorage, *err)
	}
	return nil
}

// verifierError gives a Verifier's error the code that its FirmwareCode method
// names, if it has one. One that wraps a Code has that.
func verifierError(err error) error {
	var coded interface{ FirmwareCode() int }
	if !errors.As(err, &coded) {
		return err
	}
	code := Code(coded.FirmwareCode())
	if !isVerdict(code) {
		code = CodeUpdate
	}
	return withCode(code, err)
}

func isVerdict(code Code) bool {
	return code == CodeWrongSignature || code == CodeMissingSignature || code == CodeUpdate
}

// outcomeCode returns the firmware code that an error leads to, if it has one.
func outcomeCode(err error) (Code, bool) {
	code := newError("", CodeGeneral, err).Code
	return code, isVerdict(code)
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
		code, ok := outcomeCode(result)
		if !ok {
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
	if err != nil {
		c.log.LogAttrs(ctx, slog.LevelWarn, "outcome not told", slog.Any("error", err))
	}
}

// FirmwareInfo is what a device says of the firmware that runs now. Whatever is
// zero is not said. One of SHA256 and Version has to be said by a device that
// takes updates: else nobody can know that an update has come to run.
type FirmwareInfo struct {
	// Version is such as "1.8.0", in printable ASCII, the same as in the
	// image's Manifest.
	Version string
	// SHA256 is of the image as it was downloaded, its signature included. It
	// counts before Version.
	SHA256 [32]byte
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
