package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/quarklinktest"
)

// Bounds on a control request.
const (
	maxJSON  = 8 << 20  // bytes: a batch of 100,000 devices
	maxImage = 64 << 20 // bytes
)

// control answers at the control address: the page for people, and /v1/ for
// programs.
type control struct {
	server  *quarklinktest.Server
	addr    string // host:port that it listens on
	token   string // proves that a form came from the page
	mux     *http.ServeMux
	history *history
}

func newControl(server *quarklinktest.Server, addr string) *control {
	c := &control{server: server, addr: addr, token: rand.Text(), mux: http.NewServeMux(), history: newHistory()}
	for _, r := range c.calls() {
		c.mux.HandleFunc(r.pattern, answerJSON(r.answer))
	}
	c.mux.HandleFunc("GET /v1/events", c.events)
	c.pages()
	return c
}

// ServeHTTP refuses what another site's page made a browser send. A name that
// is made to lead to this address (DNS rebinding) shows in Host, a foreign page
// in Origin.
func (c *control) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !c.isOurs(r.Host) {
		http.Error(w, "Host is not this address: use http://"+c.addr+"/", http.StatusMisdirectedRequest)
		return
	}
	if origin := r.Header.Get("Origin"); origin != "" {
		u, err := url.Parse(origin)
		if err != nil || u.Scheme != "http" || u.Host != r.Host {
			http.Error(w, "requests from pages of other sites are refused", http.StatusForbidden)
			return
		}
	}
	c.mux.ServeHTTP(w, r)
}

// isOurs reports whether a Host field names this address.
func (c *control) isOurs(host string) bool {
	name, port, err := net.SplitHostPort(host)
	if err != nil {
		return false
	}
	_, ours, _ := net.SplitHostPort(c.addr)
	return port == ours && (name == "localhost" || net.ParseIP(name).IsLoopback())
}

// call is one call for programs.
type call struct {
	pattern string
	answer  func(*http.Request) (any, error)
}

func (c *control) calls() []call {
	return []call{
		{"GET /v1/instance", c.instance},
		{"GET /v1/stats", func(*http.Request) (any, error) { return statsJSON(c.server.Stats()), nil }},
		{"GET /v1/wait", c.wait},

		{"GET /v1/batches", func(*http.Request) (any, error) { return batchesJSON(c.server.Batches()), nil }},
		{"POST /v1/batches", c.addBatch},
		{"GET /v1/batches/{batch}", c.batch},
		{"DELETE /v1/batches/{batch}", func(r *http.Request) (any, error) {
			return nil, c.server.RemoveBatch(r.PathValue("batch"))
		}},
		{"PUT /v1/batches/{batch}/policy", c.setPolicy},
		{"PUT /v1/batches/{batch}/poll-after", c.setPollAfter},
		{"GET /v1/batches/{batch}/devices", c.listDevices},
		{"POST /v1/batches/{batch}/devices", c.addDevices},
		{"PUT /v1/batches/{batch}/firmware", c.publish},
		{"DELETE /v1/batches/{batch}/firmware", func(r *http.Request) (any, error) {
			return nil, c.server.Withdraw(r.PathValue("batch"))
		}},

		{"GET /v1/devices/{device}", c.device},
		{"DELETE /v1/devices/{device}", func(r *http.Request) (any, error) {
			return nil, c.server.RemoveDevices(deviceID(r))
		}},
		{"POST /v1/devices/{device}/revoke", c.act(c.server.Revoke)},
		{"POST /v1/devices/{device}/pending-revoke", c.act(c.server.PendingRevoke)},
		{"POST /v1/devices/{device}/allow", c.act(c.server.AllowEnrolment)},
		{"POST /v1/devices/{device}/expire", c.act(c.server.Expire)},
		{"POST /v1/devices/{device}/move", func(r *http.Request) (any, error) {
			return nil, c.server.MoveDevices(r.URL.Query().Get("batch"), deviceID(r))
		}},

		{"POST /v1/faults", c.addFault},
		{"DELETE /v1/faults", func(*http.Request) (any, error) { c.server.ClearFaults(); return nil, nil }},
	}
}

func deviceID(r *http.Request) quarklink.DeviceID { return quarklink.DeviceID(r.PathValue("device")) }

// act makes a call of what is done to one device.
func (c *control) act(do func(quarklink.DeviceID) error) func(*http.Request) (any, error) {
	return func(r *http.Request) (any, error) { return nil, do(deviceID(r)) }
}

// statusError is an error with an HTTP status of its own; others are 400.
type statusError struct {
	status int
	error
}

func notFound(format string, args ...any) error {
	return statusError{http.StatusNotFound, fmt.Errorf(format, args...)}
}

// answerJSON answers with JSON: what the call returns, {} for nothing, or
// {"error": …}.
func answerJSON(answer func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxImage+1)
		value, err := answer(r)
		status := http.StatusOK
		var s statusError
		switch {
		case errors.As(err, &s):
			status = s.status
		case err != nil:
			status = http.StatusBadRequest
		case value == nil:
			value = struct{}{}
		}
		if err != nil {
			value = map[string]string{"error": err.Error()}
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.WriteHeader(status)
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		encoder.Encode(value)
	}
}

// readJSON reads a request's body, in which every member must be known.
func readJSON(r *http.Request, into any) error {
	d := json.NewDecoder(io.LimitReader(r.Body, maxJSON))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("the body is not the JSON that this call takes: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("the body has something after its JSON")
	}
	return nil
}

func (c *control) instance(*http.Request) (any, error) {
	i := c.server.Instance()
	var issuing strings.Builder
	for _, cert := range c.server.IssuingCertificates() {
		pem.Encode(&issuing, &pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
	}
	return map[string]any{
		"endpoint": i.Endpoint,
		"port":     i.Port,
		"root":     string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.Root.Raw})),
		"issuing":  issuing.String(),
	}, nil
}

func (c *control) addBatch(r *http.Request) (any, error) {
	var b struct {
		Name      string               `json:"name"`
		Devices   []quarklink.DeviceID `json:"devices"`
		Policy    policyJSON           `json:"policy"`
		PollAfter float64              `json:"pollAfter"` // seconds
	}
	if err := readJSON(r, &b); err != nil {
		return nil, err
	}
	policy, err := b.Policy.policy()
	if err != nil {
		return nil, err
	}
	return nil, c.server.AddBatch(quarklinktest.Batch{
		Name: b.Name, Devices: b.Devices, Policy: policy, PollAfter: seconds(b.PollAfter),
	})
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

func (c *control) batch(r *http.Request) (any, error) {
	for _, b := range c.server.Batches() {
		if b.Name == r.PathValue("batch") {
			return batchJSONOf(b), nil
		}
	}
	return nil, notFound("there is no batch %q", r.PathValue("batch"))
}

func (c *control) setPolicy(r *http.Request) (any, error) {
	var p policyJSON
	if err := readJSON(r, &p); err != nil {
		return nil, err
	}
	policy, err := p.policy()
	if err != nil {
		return nil, err
	}
	return nil, c.server.SetPolicy(r.PathValue("batch"), policy)
}

func (c *control) setPollAfter(r *http.Request) (any, error) {
	var s float64
	if err := readJSON(r, &s); err != nil {
		return nil, err
	}
	return nil, c.server.SetPollAfter(r.PathValue("batch"), seconds(s))
}

func (c *control) listDevices(r *http.Request) (any, error) {
	if _, err := c.batch(r); err != nil {
		return nil, err
	}
	all := []deviceJSON{}
	for _, id := range c.server.Devices(r.PathValue("batch")) {
		if d, ok := c.server.Device(id); ok {
			all = append(all, deviceJSONOf(d))
		}
	}
	return all, nil
}

// addDevices takes the file in which QuarkLink has a batch's devices.
func (c *control) addDevices(r *http.Request) (any, error) {
	ids, err := quarklinktest.ParseDevices(r.Body)
	if err != nil {
		return nil, err
	}
	return nil, c.server.AddDevices(r.PathValue("batch"), ids...)
}

func (c *control) device(r *http.Request) (any, error) {
	d, ok := c.server.Device(deviceID(r))
	if !ok {
		return nil, notFound("device %q is in no batch", r.PathValue("device"))
	}
	return deviceJSONOf(d), nil
}

// publish takes the image as the body, and what is said of it as the query.
func (c *control) publish(r *http.Request) (any, error) {
	q := r.URL.Query()
	return nil, c.publishImage(r.PathValue("batch"), r.Body, q.Get("name"), q.Get("version"), q.Get("share"))
}

func (c *control) publishImage(batch string, body io.Reader, name, version, share string) error {
	f := quarklinktest.Firmware{Name: name, Version: version}
	if share != "" {
		var err error
		if f.Share, err = strconv.ParseFloat(share, 64); err != nil {
			return fmt.Errorf("share %q: need a number above 0 and at most 1", share)
		}
	}
	data, err := io.ReadAll(io.LimitReader(body, maxImage+1))
	if err != nil {
		return fmt.Errorf("read the image: %w", err)
	}
	if len(data) > maxImage {
		return fmt.Errorf("the image has more than %d bytes", maxImage)
	}
	f.Image = bytes.NewReader(data)
	return c.server.Publish(batch, f)
}

// wait answers when a condition holds: that a device, or with none any, has made
// a call so often; that a device has a state; that it has told an outcome.
func (c *control) wait(r *http.Request) (any, error) {
	q := r.URL.Query()
	until, err := c.condition(q)
	if err != nil {
		return nil, err
	}
	timeout := 30 * time.Second
	if text := q.Get("timeout"); text != "" {
		s, err := strconv.ParseFloat(text, 64)
		if err != nil || !(s > 0 && s <= 3600) {
			return nil, fmt.Errorf("timeout %q: need seconds, at most 3600", text)
		}
		timeout = seconds(s)
	}
	ctx, cancel := context.WithTimeout(r.Context(), timeout)
	defer cancel()
	if err := c.server.Wait(ctx, until); err != nil {
		return nil, statusError{http.StatusGatewayTimeout, fmt.Errorf("it has not come to that within %v: %w", timeout, err)}
	}
	return nil, nil
}

func (c *control) condition(q url.Values) (func() bool, error) {
	id := quarklink.DeviceID(q.Get("device"))
	device := func() quarklinktest.Device { d, _ := c.server.Device(id); return d }
	count := 1
	if text := q.Get("count"); text != "" {
		var err error
		if count, err = strconv.Atoi(text); err != nil || count < 1 {
			return nil, fmt.Errorf("count %q: need a number of at least 1", text)
		}
	}
	made := quarklinktest.Call(q.Get("call"))
	switch {
	case made != "" && id == "":
		return func() bool { return c.server.Stats().Calls[made] >= count }, nil
	case made != "":
		return func() bool { return device().Calls[made] >= count }, nil
	case id == "":
		return nil, errors.New("say which device, or which call: device=…&state=…, device=…&outcome=…, call=…&count=…")
	case q.Get("state") != "":
		return func() bool { return device().State.String() == q.Get("state") }, nil
	case q.Get("outcome") != "":
		return func() bool {
			for _, o := range device().Outcomes {
				if o.Outcome == q.Get("outcome") {
					return true
				}
			}
			return false
		}, nil
	}
	return nil, errors.New("say what to wait for: state, outcome or call")
}

// events sends what happens as server-sent events; a client that connects again
// says by Last-Event-ID where to go on.
func (c *control) events(w http.ResponseWriter, r *http.Request) {
	last := r.Header.Get("Last-Event-ID")
	if last == "" {
		last = r.URL.Query().Get("after")
	}
	after, err := strconv.ParseUint(last, 10, 64)
	if last != "" && err != nil {
		http.Error(w, "after: need the number of an event", http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	flush := http.NewResponseController(w).Flush
	fmt.Fprint(w, ": events follow\n\n")
	flush()
	for e := range c.server.Events(r.Context(), after) {
		data, err := json.Marshal(e)
		if err != nil {
			return
		}
		if _, err := fmt.Fprintf(w, "id: %d\nevent: %s\ndata: %s\n\n", e.Seq, e.Kind, data); err != nil {
			return
		}
		if err := flush(); err != nil {
			return
		}
	}
}
