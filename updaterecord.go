package quarklink

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"

	"github.com/quarklink-go/quarklink/internal/api"
)

// recordUpdate is what the device remembers, across restarts, of the last image
// that it installed or refused.
const recordUpdate = "update"

// updateRecord has at most 1 KiB as JSON. Later versions of this library may
// write more members, and stages that this one does not know; those keep no
// image from being installed.
type updateRecord struct {
	Device   DeviceID   `json:"device,omitempty"` // whose record this is
	SHA256   api.Digest `json:"sha256"`
	Size     int64      `json:"size"`
	Version  string     `json:"version,omitempty"` // if Config.Firmware could report it
	Stage    string     `json:"stage"`
	Code     Code       `json:"code,omitempty"`     // of stageRefused
	Reported string     `json:"reported,omitempty"` // FirmwareInfo.mark at that time
}

// The stages of an update that are written.
const (
	stageVerified  = "verified"  // before Activate
	stageActivated = "activated" // after it
	stageRefused   = "refused"   // the image, by a firmware code
)

// maxRecordedVersion keeps the record within its 1 KiB, whatever an instance
// calls an image.
const maxRecordedVersion = 64

func (c *Client) newUpdateRecord(m *Manifest, stage string) updateRecord {
	r := updateRecord{Device: c.id, SHA256: m.SHA256, Size: m.Size, Stage: stage}
	if len(m.Version) <= maxRecordedVersion && (FirmwareInfo{Version: m.Version}).check() == nil {
		r.Version = m.Version
	}
	return r
}

func (c *Client) putUpdate(ctx context.Context, r updateRecord) error {
	return c.put(ctx, recordUpdate, encode(r))
}

// storedUpdate returns what is remembered, nil if that is nothing. A record that
// cannot be used must not keep a device from its updates, so that it counts as
// absent.
func (c *Client) storedUpdate(ctx context.Context) *updateRecord {
	r, err := readRecord(ctx, c.store, recordUpdate, c.decodeUpdate)
	if err != nil {
		c.log.LogAttrs(ctx, slog.LevelWarn, "what is stored of the last update is not used", slog.Any("error", err))
		return nil
	}
	return r
}

func (c *Client) decodeUpdate(data []byte) (*updateRecord, error) {
	r := new(updateRecord)
	if err := json.Unmarshal(data, r); err != nil {
		return nil, err
	}
	if r.Device != "" && r.Device != c.id {
		return nil, fmt.Errorf("it is of the device %.64q", string(r.Device))
	}
	return r, nil
}

// consider compares the image on offer with what runs and with what is
// remembered.
func (c *Client) consider(ctx context.Context, s *Status) {
	r, m := c.storedUpdate(ctx), s.Firmware
	same := r != nil && m != nil && r.SHA256 == m.SHA256
	installed := r != nil && (r.Stage == stageVerified || r.Stage == stageActivated)
	runs := installed && (c.firmware.reports(r.SHA256, r.Version) || same && c.firmware.reports(m.SHA256, m.Version))
	switch {
	case same && runs, m != nil && m.SHA256 == c.firmware.SHA256 && m.SHA256 != [32]byte{}:
		c.log.LogAttrs(ctx, slog.LevelWarn, "the instance offers the image that runs")
		s.Firmware = nil
	case runs:
		c.log.LogAttrs(ctx, slog.LevelInfo, "the image that was installed runs")
		if err := c.delete(ctx, recordUpdate); err != nil {
			c.log.LogAttrs(ctx, slog.LevelWarn, "the update is not forgotten", slog.Any("error", err))
		}
	case same:
		s.AwaitsRestart = r.Stage == stageActivated
		s.FirmwareRefused = r.Stage == stageRefused && r.Reported == c.firmware.mark()
	}
}

// barred says why the image that is due is not installed now.
func barred(s Status, again bool) error {
	m := s.Firmware
	switch {
	case s.AwaitsRestart:
		return fmt.Errorf("%w: image %x, version %.40q; if it runs by now, set Config.Firmware.SHA256 to that digest"+
			" (or, with a zero SHA256, Version to that version)", ErrAwaitsRestart, m.SHA256, m.Version)
	case s.FirmwareRefused && !again:
		return fmt.Errorf("%w: image %x, version %.40q; FirmwareOptions.Again tries it once more",
			ErrRefusedBefore, m.SHA256, m.Version)
	}
	return nil
}

// refuse remembers that the image is not for this device, if that is what the
// error says.
func (c *Client) refuse(ctx context.Context, m *Manifest, err error) {
	code, ok := outcomeCode(err)
	if !ok || errors.Is(err, errSlot) {
		return
	}
	r := c.newUpdateRecord(m, stageRefused)
	r.Code, r.Reported = code, c.firmware.mark()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), outcomeTime)
	defer cancel()
	if err := c.putUpdate(ctx, r); err != nil {
		c.log.LogAttrs(ctx, slog.LevelWarn, "the refusal is not remembered", slog.Any("error", err))
	}
}

// activated remembers that the slot has been activated. That it could not be
// stored is no failure of the update: what is installed should run.
func (c *Client) activated(ctx context.Context, m *Manifest) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), outcomeTime)
	defer cancel()
	if err := c.putUpdate(ctx, c.newUpdateRecord(m, stageActivated)); err != nil {
		c.log.LogAttrs(ctx, slog.LevelWarn, "the activation is not remembered", slog.Any("error", err))
	}
}

// reports tells whether that image is what runs.
func (f FirmwareInfo) reports(digest [32]byte, version string) bool {
	if f.SHA256 != [32]byte{} {
		return f.SHA256 == digest
	}
	return f.Version != "" && f.Version == version
}

// mark is a short name for all that f says, to notice that it has changed.
func (f FirmwareInfo) mark() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %x %q %t", f.Version, f.SHA256, f.Chip, f.VirtualEFuse))
	return fmt.Sprintf("%x", sum[:8])
}
