package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/quarklink-go/quarklink/internal/problem"
)

// instance answers each request in memory and keeps the last.
type instance struct {
	status int
	header http.Header
	body   string
	asked  *http.Request
	sent   string
}

func (i *instance) RoundTrip(r *http.Request) (*http.Response, error) {
	i.asked = r
	if r.Body != nil {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		i.sent = string(b)
	}
	return &http.Response{StatusCode: i.status, Header: i.header, Body: io.NopCloser(strings.NewReader(i.body)),
		ContentLength: int64(len(i.body)), Request: r}, nil
}

func client(i *instance) *Client {
	if i.status == 0 {
		i.status = http.StatusOK
	}
	if i.header == nil {
		i.header = http.Header{"Content-Type": {"application/json; charset=utf-8"}}
	}
	return &Client{HTTP: &http.Client{Transport: i}, Base: "https://instance.test:6000/quarklink/v1",
		Firmware: `version="1"`, Now: func() time.Time { return time.Unix(0, 0) }}
}

const digest = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

func TestStatus(t *testing.T) {
	i := &instance{body: `{"deviceID":"d","state":"enrolled","certificateExpired":true,"batch":"b","pollAfter":20,"later":{"x":1},
		"firmware":{"name":"n","version":"1.8.1","size":991184,"sha256":"` + digest + `","secureVersion":3,"attributes":{"chip":"esp32c3"}}}`}
	s, err := client(i).Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if s.State != "enrolled" || !s.CertificateExpired || s.Batch != "b" || s.PollAfter != 20 || s.Firmware.Size != 991184 ||
		fmt.Sprintf("%x", s.Firmware.SHA256) != digest || s.Firmware.SecureVersion != 3 || s.Firmware.Attributes["chip"] != "esp32c3" {
		t.Errorf("%+v %+v", s, s.Firmware)
	}
	if i.asked.Method != "GET" || i.asked.URL.String() != "https://instance.test:6000/quarklink/v1/status" || i.asked.Header.Get(FirmwareField) != `version="1"` {
		t.Errorf("asked %s %s %v", i.asked.Method, i.asked.URL, i.asked.Header)
	}
}

func TestRefusedAnswers(t *testing.T) {
	attributes := map[string]string{}
	for n := range maxAttributes + 1 {
		attributes[fmt.Sprint(n)] = ""
	}
	many, err := json.Marshal(attributes)
	if err != nil {
		t.Fatal(err)
	}
	firmware := func(members string) string { return `{"state":"enrolled","firmware":{` + members + `}}` }
	for name, i := range map[string]*instance{
		"no JSON":             {body: "hello"},
		"half":                {body: `{"state":"enr`},
		"two":                 {body: `{"state":"enrolled"}{"state":"revoked"}`},
		"no state":            {body: `{}`},
		"a list":              {body: `[]`},
		"short digest":        {body: firmware(`"size":1,"sha256":"00"`)},
		"no hexadecimal":      {body: firmware(`"size":1,"sha256":"` + strings.Repeat("x", 64) + `"`)},
		"too many attributes": {body: firmware(`"size":1,"sha256":"` + digest + `","attributes":` + string(many))},
		"fraction of a byte":  {body: firmware(`"size":1.5,"sha256":"` + digest + `"`)},
		"too large":           {body: `{"state":"enrolled"}` + strings.Repeat(" ", maxJSON)},
		"another type":        {body: `{"state":"enrolled"}`, header: http.Header{"Content-Type": {"text/html"}}},
		"a look-alike type":   {body: `{"state":"enrolled"}`, header: http.Header{"Content-Type": {"application/jsonx"}}},
		"no type":             {body: `{"state":"enrolled"}`, header: http.Header{}},
		"created":             {body: `{"state":"enrolled"}`, status: 201},
		"partial":             {body: `{"state":"enrolled"}`, status: 206},
	} {
		if s, err := client(i).Status(t.Context()); err == nil {
			t.Errorf("%s: %+v", name, s)
		}
	}
}

// TestSecretsStayInside: what does not decode is not quoted, for it may hold a
// token.
func TestSecretsStayInside(t *testing.T) {
	i := &instance{body: `{"type":"database_direct","port":"eyJ.secret.token","token":"eyJ.secret.token"}`}
	if _, err := client(i).Connection(t.Context()); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("error %v", err)
	}
}

func TestConnection(t *testing.T) {
	i := &instance{body: `{"type":"iot_hub","endpoint":"hub.test","port":8883,"rootCA":"PEM","scopeID":"s","firmwareUpdateTopic":"t"}`}
	got, err := client(i).Connection(t.Context())
	want := Connection{Type: TypeIoTHub, Endpoint: "hub.test", Port: 8883, RootCA: "PEM", ScopeID: "s", FirmwareUpdateTopic: "t"}
	if err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	i.body = `{"type":"iot_hub","port":70000}`
	if _, err := client(i).Connection(t.Context()); err == nil {
		t.Error("a port of 70000")
	}
}

func TestGetFirmware(t *testing.T) {
	i := &instance{body: "image"}
	body, length, err := client(i).GetFirmware(t.Context(), Digest{1})
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if b, err := io.ReadAll(body); err != nil || string(b) != "image" || length != 5 {
		t.Errorf("%q of %d, %v", b, length, err)
	}
	if got, want := i.asked.Header.Get("If-Match"), `"01`+strings.Repeat("00", 31)+`"`; got != want {
		t.Errorf("If-Match %s, want %s", got, want)
	}
	for _, status := range []int{206, 304, 412, 404, 500} {
		i.status = status
		_, _, err := client(i).GetFirmware(t.Context(), Digest{})
		var answer *problem.Error
		if !errors.As(err, &answer) || answer.Status != status {
			t.Errorf("status %d: %v", status, err)
		}
	}
}

func TestSendOutcome(t *testing.T) {
	i := &instance{status: http.StatusNoContent}
	if err := client(i).SendOutcome(t.Context(), Outcome{SHA256: Digest{0xAB}, Outcome: Failed, Code: 22, Detail: "d"}); err != nil {
		t.Fatal(err)
	}
	if want := `{"sha256":"ab` + strings.Repeat("00", 31) + `","outcome":"failed","code":22,"detail":"d"}`; i.sent != want {
		t.Errorf("sent %s, want %s", i.sent, want)
	}
	for _, status := range []int{202, 301, 400, 503} {
		i.status = status
		if err := client(i).SendOutcome(t.Context(), Outcome{}); err == nil {
			t.Errorf("status %d: no error", status)
		}
	}
}

func FuzzStatus(f *testing.F) {
	f.Add([]byte(`{"state":"enrolled","pollAfter":1e300}`))
	f.Add([]byte(`{"state":"enrolled","firmware":{"size":-1,"sha256":"` + digest + `","attributes":null}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		s, err := client(&instance{body: string(body)}).Status(context.Background())
		if err != nil {
			return
		}
		if s.State == "" || s.Firmware != nil && len(s.Firmware.Attributes) > maxAttributes {
			t.Errorf("accepted %+v", s)
		}
		again, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		var same Status
		if err := json.Unmarshal(again, &same); err != nil {
			t.Fatal(err)
		}
		if twice, err := json.Marshal(same); err != nil || !bytes.Equal(again, twice) {
			t.Errorf("%s became %s", again, twice)
		}
	})
}

func FuzzConnection(f *testing.F) {
	f.Add([]byte(`{"type":"iot_hub","endpoint":"hub.test","port":8883,"rootCA":"PEM"}`))
	f.Add([]byte(`{"type":"database_direct","token":"eyJ"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		conn, err := client(&instance{body: string(body)}).Connection(context.Background())
		if err != nil && conn != (Connection{}) {
			t.Errorf("%+v came with %v", conn, err)
		}
	})
}
