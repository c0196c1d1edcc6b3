// Package api makes the calls of an instance that no standard defines: status,
// connection details, firmware and its outcome.
//
// The HTTP interface of a QuarkLink instance is not public. This package is the
// one place that knows the interface defined in docs/protocol.md, so that it
// can be exchanged for the vendor's the day that one is published.
package api

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"

	"github.com/quarklink-go/quarklink/internal/problem"
)

// Client calls one instance with one client certificate, which HTTP presents.
type Client struct {
	HTTP     *http.Client
	Base     string // such as https://host:6000/quarklink/v1
	Firmware string // the QuarkLink-Firmware field; empty: none is sent
	Now      func() time.Time
}

// FirmwareField is the request header field in which a device says what it
// runs.
const FirmwareField = "QuarkLink-Firmware"

// Bounds on what an instance sends.
const (
	maxJSON       = 64 << 10
	maxAttributes = 32
	maxText       = 128 // runes of a text for people; the rest is cut off
	maxValue      = 512 // bytes of a value for machines; a longer one is refused
)

// Digest is a SHA-256 digest that JSON has as 64 hexadecimal digits.
type Digest [32]byte

func (d Digest) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, d[:]), nil }

func (d *Digest) UnmarshalText(text []byte) error {
	if len(text) != 2*len(d) {
		return fmt.Errorf("digest of %d characters, need %d", len(text), 2*len(d))
	}
	_, err := hex.Decode(d[:], text)
	return err
}

// Status is the answer to GET status.
type Status struct {
	DeviceID           string    `json:"deviceID"`
	State              string    `json:"state"`
	CertificateExpired bool      `json:"certificateExpired"`
	Batch              string    `json:"batch,omitempty"`
	PollAfter          float64   `json:"pollAfter,omitempty"` // seconds
	Firmware           *Firmware `json:"firmware,omitempty"`
}

// Firmware describes the image that is due.
type Firmware struct {
	Name          string            `json:"name"`
	Version       string            `json:"version"`
	Size          int64             `json:"size"`
	SHA256        Digest            `json:"sha256"`
	SecureVersion uint32            `json:"secureVersion"`
	Attributes    map[string]string `json:"attributes,omitempty"`
}

// Connection says where an enrolled device connects to. Its Type decides which
// fields count.
type Connection struct {
	Type     string `json:"type"` // TypeIoTHub or TypeDatabaseDirect
	Endpoint string `json:"endpoint"`
	Port     uint16 `json:"port"`
	RootCA   string `json:"rootCA"` // PEM

	ScopeID             string `json:"scopeID,omitempty"`
	FirmwareUpdateTopic string `json:"firmwareUpdateTopic,omitempty"`

	URI        string `json:"uri,omitempty"`
	Database   string `json:"database,omitempty"`
	DataSource string `json:"dataSource,omitempty"`
	Token      string `json:"token,omitempty"` // JWT, secret
}

// The types of connection.
const (
	TypeIoTHub         = "iot_hub"
	TypeDatabaseDirect = "database_direct"
)

// Outcome tells the instance what became of an image.
type Outcome struct {
	SHA256  Digest `json:"sha256"`
	Outcome string `json:"outcome"` // Installed or Failed
	Code    int    `json:"code,omitempty"`
	Detail  string `json:"detail,omitempty"`
}

// The outcomes.
const (
	Installed = "installed"
	Failed    = "failed"
)

// Status asks how the device stands.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	if err := c.getJSON(ctx, "/status", &s); err != nil {
		return Status{}, err
	}
	switch {
	case s.State == "":
		return Status{}, errors.New("status without a state")
	case s.Firmware != nil && len(s.Firmware.Attributes) > maxAttributes:
		return Status{}, fmt.Errorf("firmware with %d attributes, more than %d", len(s.Firmware.Attributes), maxAttributes)
	}
	s.clean()
	return s, nil
}

// clean bounds the texts, and takes out of them what a terminal or a log would
// act on.
func (s *Status) clean() {
	text := func(t string) string { return problem.Clean(t, maxText) }
	s.Batch = text(s.Batch)
	if f := s.Firmware; f != nil {
		f.Name, f.Version = text(f.Name), text(f.Version)
		attributes := make(map[string]string, len(f.Attributes))
		for name, value := range f.Attributes {
			attributes[text(name)] = text(value)
		}
		f.Attributes = attributes
	}
}

// Connection asks where to connect to.
func (c *Client) Connection(ctx context.Context) (Connection, error) {
	var conn Connection
	if err := c.getJSON(ctx, "/connection", &conn); err != nil {
		return Connection{}, err
	}
	for name, value := range map[string]string{
		"scopeID": conn.ScopeID, "firmwareUpdateTopic": conn.FirmwareUpdateTopic,
		"uri": conn.URI, "database": conn.Database, "dataSource": conn.DataSource,
	} {
		if len(value) > maxValue || problem.Clean(value, maxValue) != value {
			return Connection{}, fmt.Errorf("connection details: the %s is %.80q: more than %d bytes, or not plain text", name, value, maxValue)
		}
	}
	if strings.IndexFunc(conn.Token, func(r rune) bool { return r <= ' ' || r > '~' }) >= 0 {
		return Connection{}, errors.New("connection details: the token has characters that no token has")
	}
	return conn, nil
}

// GetFirmware asks for the image with that digest and returns its body, which
// the caller closes, and its length, -1 if the instance does not say. If
// another image is due by now the error is a *problem.Error with status 412.
func (c *Client) GetFirmware(ctx context.Context, digest Digest) (io.ReadCloser, int64, error) {
	req, err := c.request(ctx, http.MethodGet, "/firmware", nil)
	if err != nil {
		return nil, 0, err
	}
	req.Header.Set("If-Match", fmt.Sprintf(`"%x"`, digest[:]))
	resp, err := c.HTTP.Do(req)
	if err != nil {
		return nil, 0, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, 0, problem.FromResponse(resp, c.Now())
	}
	return resp.Body, resp.ContentLength, nil
}

// SendOutcome tells what became of an image.
func (c *Client) SendOutcome(ctx context.Context, o Outcome) error {
	body, err := json.Marshal(o)
	if err != nil {
		return err
	}
	req, err := c.request(ctx, http.MethodPost, "/firmware/outcome", body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.HTTP.Do(req)
	if err != nil {
		return err
	}
	if resp.StatusCode/100 != 2 || resp.StatusCode == http.StatusAccepted {
		return problem.FromResponse(resp, c.Now())
	}
	_, err = problem.ReadBody(resp, maxJSON)
	return err
}

func (c *Client) getJSON(ctx context.Context, path string, into any) error {
	req, err := c.request(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "application/json")
	resp, err := c.HTTP.Do(req)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return problem.FromResponse(resp, c.Now())
	}
	body, err := problem.ReadBody(resp, maxJSON)
	if err != nil {
		return err
	}
	if kind, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		return fmt.Errorf("the answer's Content-Type is %.80q, need application/json", resp.Header.Get("Content-Type"))
	}
	if err := json.Unmarshal(body, into); err != nil {
		// The decoder's message could quote a token.
		return errors.New("the answer is not the JSON that was asked for")
	}
	return nil
}

func (c *Client) request(ctx context.Context, method, path string, body []byte) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.Base+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if c.Firmware != "" {
		req.Header.Set(FirmwareField, c.Firmware)
	}
	return req, nil
}
