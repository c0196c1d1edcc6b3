package main

import (
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/quarklinktest"
)

// policyJSON is a policy as programs write it.
type policyJSON struct {
	Lifetime float64       `json:"lifetime,omitempty"` // seconds; 0: 365 days
	Hub      *hubJSON      `json:"hub,omitempty"`
	Database *databaseJSON `json:"database,omitempty"`
}

type hubJSON struct {
	Endpoint            string `json:"endpoint"`
	Port                uint16 `json:"port"`
	Roots               string `json:"roots,omitempty"` // PEM; empty: the instance's
	ScopeID             string `json:"scopeID,omitempty"`
	FirmwareUpdateTopic string `json:"firmwareUpdateTopic,omitempty"`
}

type databaseJSON struct {
	Endpoint   string `json:"endpoint"`
	Port       uint16 `json:"port"`
	Roots      string `json:"roots,omitempty"` // PEM; empty: the instance's
	URI        string `json:"uri"`
	Database   string `json:"database,omitempty"`
	DataSource string `json:"dataSource,omitempty"`
	Token      string `json:"token,omitempty"` // taken, never told
}

func (p policyJSON) policy() (quarklinktest.Policy, error) {
	policy := quarklinktest.Policy{Lifetime: seconds(p.Lifetime)}
	if h := p.Hub; h != nil {
		roots, err := certificates(h.Roots)
		if err != nil {
			return quarklinktest.Policy{}, fmt.Errorf("hub: %w", err)
		}
		policy.Hub = &quarklink.Hub{Endpoint: h.Endpoint, Port: h.Port, Roots: roots,
			ScopeID: h.ScopeID, FirmwareUpdateTopic: h.FirmwareUpdateTopic}
	}
	if d := p.Database; d != nil {
		roots, err := certificates(d.Roots)
		if err != nil {
			return quarklinktest.Policy{}, fmt.Errorf("database: %w", err)
		}
		policy.Database = &quarklink.Database{Endpoint: d.Endpoint, Port: d.Port, Roots: roots, URI: d.URI,
			Database: d.Database, DataSource: d.DataSource, Token: quarklink.Secret(d.Token)}
	}
	return policy, nil
}

// certificates reads PEM text, of which nothing but certificates is allowed.
func certificates(text string) (certs []*x509.Certificate, err error) {
	rest := []byte(strings.TrimSpace(text))
	for len(rest) > 0 {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil || block.Type != "CERTIFICATE" {
			return nil, errors.New("roots: need certificates in PEM")
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("roots: %w", err)
		}
		certs = append(certs, cert)
	}
	return certs, nil
}

func policyJSONOf(p quarklinktest.Policy) policyJSON {
	out := policyJSON{Lifetime: p.Lifetime.Seconds()}
	if h := p.Hub; h != nil {
		out.Hub = &hubJSON{Endpoint: h.Endpoint, Port: h.Port, ScopeID: h.ScopeID, FirmwareUpdateTopic: h.FirmwareUpdateTopic}
	}
	if d := p.Database; d != nil {
		out.Database = &databaseJSON{Endpoint: d.Endpoint, Port: d.Port, URI: d.URI, Database: d.Database, DataSource: d.DataSource}
	}
	return out
}

type firmwareJSON struct {
	Name          string            `json:"name"`
	Version       string            `json:"version"`
	Size          int64             `json:"size"`
	SHA256        string            `json:"sha256"`
	SecureVersion uint32            `json:"secureVersion"`
	Attributes    map[string]string `json:"attributes,omitempty"`
	Share         float64           `json:"share"`
}

type batchJSON struct {
	Name      string                     `json:"name"`
	Policy    policyJSON                 `json:"policy"`
	PollAfter float64                    `json:"pollAfter"` // seconds
	Firmware  *firmwareJSON              `json:"firmware,omitempty"`
	Devices   int                        `json:"devices"`
	States    map[string]int             `json:"states"`
	Running   map[string]int             `json:"running"`
	Outcomes  map[string]int             `json:"outcomes"`
	Calls     map[quarklinktest.Call]int `json:"calls"`
}

func batchJSONOf(b quarklinktest.BatchSummary) batchJSON {
	out := batchJSON{Name: b.Name, Policy: policyJSONOf(b.Policy), PollAfter: b.PollAfter.Seconds(), Devices: b.Devices,
		States: map[string]int{}, Running: b.Running, Outcomes: b.Outcomes, Calls: b.Calls}
	for state, n := range b.States {
		out.States[state.String()] = n
	}
	if m := b.Firmware; m != nil {
		out.Firmware = &firmwareJSON{m.Name, m.Version, m.Size, hex.EncodeToString(m.SHA256[:]), m.SecureVersion, m.Attributes, b.Share}
	}
	return out
}

func batchesJSON(batches []quarklinktest.BatchSummary) []batchJSON {
	all := []batchJSON{}
	for _, b := range batches {
		all = append(all, batchJSONOf(b))
	}
	return all
}

// statsJSON is quarklinktest.Stats as programs read it.
type statsJSON struct {
	Handshakes       int                        `json:"handshakes"`
	FailedHandshakes int                        `json:"failedHandshakes"`
	Open             int                        `json:"open"`
	Requests         int                        `json:"requests"`
	Calls            map[quarklinktest.Call]int `json:"calls"`
	Events           uint64                     `json:"events"`
}

type outcomeJSON struct {
	Time    time.Time `json:"time"`
	SHA256  string    `json:"sha256"`
	Outcome string    `json:"outcome"`
	Code    int       `json:"code,omitempty"`
	Detail  string    `json:"detail,omitempty"`
}

type deviceJSON struct {
	ID           quarklink.DeviceID         `json:"id"`
	Batch        string                     `json:"batch"`
	State        string                     `json:"state"`
	LastSeen     *time.Time                 `json:"lastSeen,omitempty"`
	Version      string                     `json:"version,omitempty"`
	SHA256       string                     `json:"sha256,omitempty"`
	Due          bool                       `json:"due"`
	Calls        map[quarklinktest.Call]int `json:"calls"`
	Certificates []string                   `json:"certificates"` // PEM, the oldest first
	Outcomes     []outcomeJSON              `json:"outcomes"`
}

func deviceJSONOf(d quarklinktest.Device) deviceJSON {
	out := deviceJSON{ID: d.ID, Batch: d.Batch, State: d.State.String(), Version: d.Version, SHA256: d.SHA256, Due: d.Due,
		Calls: d.Calls, Certificates: []string{}, Outcomes: []outcomeJSON{}}
	if !d.LastSeen.IsZero() {
		seen := d.LastSeen.UTC()
		out.LastSeen = &seen
	}
	for _, cert := range d.Certificates {
		out.Certificates = append(out.Certificates, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})))
	}
	for _, o := range d.Outcomes {
		out.Outcomes = append(out.Outcomes, outcomeJSON{o.Time.UTC(), hex.EncodeToString(o.SHA256[:]), o.Outcome, int(o.Code), o.Detail})
	}
	return out
}

// faultJSON is a fault as programs write it.
type faultJSON struct {
	Call    quarklinktest.Call   `json:"call"`
	Kind    string               `json:"kind"` // one of faultKinds
	Times   *int                 `json:"times"`
	Devices []quarklink.DeviceID `json:"devices"`
	Batch   string               `json:"batch"`

	Seconds float64 `json:"seconds"` // of delay, refuse, hold
	Status  int     `json:"status"`  // of refuse
	Problem string  `json:"problem"` // of refuse
	Bytes   int64   `json:"bytes"`   // of cut-off, damage, cut-connection, throttle
	Alert   uint8   `json:"alert"`   // of tls-alert
}

var faultKinds = map[string]func(faultJSON) quarklinktest.Fault{
	"delay": func(f faultJSON) quarklinktest.Fault { return quarklinktest.Delay(seconds(f.Seconds)) },
	"refuse": func(f faultJSON) quarklinktest.Fault {
		return quarklinktest.Refuse(f.Status, f.Problem, seconds(f.Seconds))
	},
	"hold":              func(f faultJSON) quarklinktest.Fault { return quarklinktest.Hold(seconds(f.Seconds)) },
	"lose-request":      func(faultJSON) quarklinktest.Fault { return quarklinktest.LoseRequest() },
	"lose-answer":       func(faultJSON) quarklinktest.Fault { return quarklinktest.LoseAnswer() },
	"cut-off":           func(f faultJSON) quarklinktest.Fault { return quarklinktest.CutOff(f.Bytes) },
	"damage":            func(f faultJSON) quarklinktest.Fault { return quarklinktest.Damage(f.Bytes) },
	"wrong-key":         func(faultJSON) quarklinktest.Fault { return quarklinktest.WrongKey() },
	"two-certificates":  func(faultJSON) quarklinktest.Fault { return quarklinktest.TwoCertificates() },
	"foreign-issuer":    func(faultJSON) quarklinktest.Fault { return quarklinktest.ForeignIssuer() },
	"tls-alert":         func(f faultJSON) quarklinktest.Fault { return quarklinktest.TLSAlert(f.Alert) },
	"wrong-certificate": func(faultJSON) quarklinktest.Fault { return quarklinktest.WrongCertificate() },
	"cut-connection":    func(f faultJSON) quarklinktest.Fault { return quarklinktest.CutConnection(int(f.Bytes)) },
	"throttle":          func(f faultJSON) quarklinktest.Fault { return quarklinktest.Throttle(int(f.Bytes)) },
}

func (c *control) addFault(r *http.Request) (any, error) {
	var f faultJSON
	if err := readJSON(r, &f); err != nil {
		return nil, err
	}
	kind := faultKinds[f.Kind]
	if kind == nil {
		return nil, fmt.Errorf("there is no fault %q", f.Kind)
	}
	if f.Kind == "refuse" && (f.Status < 300 || f.Status > 599) {
		return nil, fmt.Errorf("a refusal with the status %d: need 300 to 599", f.Status)
	}
	fault := kind(f)
	if f.Times != nil {
		fault = fault.Times(*f.Times)
	}
	if len(f.Devices) > 0 {
		fault = fault.For(f.Devices...)
	}
	if f.Batch != "" {
		fault = fault.InBatch(f.Batch)
	}
	return nil, c.server.Fault(f.Call, fault)
}
