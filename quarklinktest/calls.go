package quarklinktest

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"mime"
	"net/http"
	"slices"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/internal/api"
)

// Call names a call of an instance.
type Call string

// The calls.
const (
	CallCACerts    Call = "cacerts"    // GET  /.well-known/est/cacerts
	CallTemporary  Call = "temporary"  // POST /.well-known/est/temporary/simpleenroll
	CallEnrol      Call = "enrol"      // POST /.well-known/est/simpleenroll
	CallReenrol    Call = "reenrol"    // POST /.well-known/est/simplereenroll
	CallConnection Call = "connection" // GET  /quarklink/v1/connection
	CallStatus     Call = "status"     // GET  /quarklink/v1/status
	CallFirmware   Call = "firmware"   // GET  /quarklink/v1/firmware
	CallOutcome    Call = "outcome"    // POST /quarklink/v1/firmware/outcome
)

// CallConnect is not a call but every new connection, before its handshake: see
// [Server.Fault].
const CallConnect Call = "connect"

// route says who may make a call, and what answers it.
type route struct {
	call         Call
	pattern      string
	accepts      proof
	whileRevoked bool
	answer       func(*Server, *request) (*answer, error)
}

var calls = []route{
	{CallCACerts, "GET /.well-known/est/cacerts", byNothing | byIdentity | byTemporary | byDevice, false, (*Server).answerCACerts},
	{CallTemporary, "POST /.well-known/est/temporary/simpleenroll", byIdentity, false, (*Server).answerTemporary},
	{CallEnrol, "POST /.well-known/est/simpleenroll", byTemporary, false, (*Server).answerEnrol},
	{CallReenrol, "POST /.well-known/est/simplereenroll", byDevice, false, (*Server).answerReenrol},
	{CallConnection, "GET /quarklink/v1/connection", byTemporary | byDevice, false, (*Server).answerConnection},
	{CallStatus, "GET /quarklink/v1/status", byIdentity, true, (*Server).answerStatus},
	{CallFirmware, "GET /quarklink/v1/firmware", byIdentity, false, (*Server).answerFirmware},
	{CallOutcome, "POST /quarklink/v1/firmware/outcome", byIdentity, false, (*Server).answerOutcome},
}

// outcomes are those that a device may tell.
var outcomes = []string{"installed", "confirmed", "rolled_back", "failed"}

func (s *Server) answerStatus(q *request) (*answer, error) {
	d := q.device
	status := api.Status{
		DeviceID:  string(d.id),
		State:     d.state.String(),
		Batch:     d.batch.Name,
		PollAfter: d.batch.PollAfter.Seconds(),
	}
	if i := d.current(); i != nil {
		status.CertificateExpired = i.hasExpired(s.now())
	}
	if d.state != quarklink.StateRevoked {
		if due := d.due(d.running); due != nil {
			status.Firmware = &due.manifest
		}
	}
	return jsonAnswer(status)
}

func (s *Server) answerConnection(q *request) (*answer, error) {
	if i := q.device.current(); i == nil || i.hasExpired(s.now()) {
		return nil, refuse(http.StatusConflict, ProblemNotEnrolled, "the device has no valid device certificate: enrol first")
	}
	return jsonAnswer(s.connection(q.device.batch.Policy))
}

// connection is what the policy makes of "where do I connect to?".
func (s *Server) connection(p Policy) api.Connection {
	if d := p.Database; d != nil {
		return api.Connection{Type: api.TypeDatabaseDirect, Endpoint: d.Endpoint, Port: d.Port, RootCA: s.pemOf(d.Roots),
			URI: d.URI, Database: d.Database, DataSource: d.DataSource, Token: string(d.Token)}
	}
	h := p.Hub
	if h == nil {
		h = &quarklink.Hub{Endpoint: s.Instance().Endpoint, Port: defaultHubPort}
	}
	return api.Connection{Type: api.TypeIoTHub, Endpoint: h.Endpoint, Port: h.Port, RootCA: s.pemOf(h.Roots),
		ScopeID: h.ScopeID, FirmwareUpdateTopic: h.FirmwareUpdateTopic}
}

// pemOf returns the roots as PEM text; the instance's own if there are none.
func (s *Server) pemOf(roots []*x509.Certificate) string {
	if len(roots) == 0 {
		roots = []*x509.Certificate{s.pki().root.cert}
	}
	var text []byte
	for _, root := range roots {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw})...)
	}
	return string(text)
}

func (s *Server) answerOutcome(q *request) (*answer, error) {
	if kind, _, err := mime.ParseMediaType(q.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		return nil, refuse(http.StatusUnsupportedMediaType, "", "need a body of type application/json")
	}
	var o api.Outcome
	if err := json.NewDecoder(bytes.NewReader(q.body)).Decode(&o); err != nil {
		return nil, refuse(http.StatusBadRequest, "", fmt.Sprintf("the body is no outcome: %v", err))
	}
	if !slices.Contains(outcomes, o.Outcome) {
		return nil, refuse(http.StatusBadRequest, "", fmt.Sprintf("there is no outcome %.40q", o.Outcome))
	}
	told := Outcome{SHA256: o.SHA256, Outcome: o.Outcome, Code: quarklink.Code(o.Code), Detail: o.Detail, Time: s.now().Round(0)}
	d := q.device
	d.outcomes = append(d.outcomes, told)
	s.happened(Event{Kind: EventOutcome, DeviceID: d.id, Batch: d.batch.Name,
		Outcome: told.Outcome, Code: told.Code, Detail: told.Detail})
	if err := s.journal.writeDevice(d); err != nil {
		return nil, err
	}
	return &answer{status: http.StatusNoContent}, nil
}

func jsonAnswer(v any) (*answer, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return content("application/json", body), nil
}
