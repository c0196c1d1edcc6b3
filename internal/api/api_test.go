package api

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

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
	i := &instance{body: `{"deviceID":"d","state":"enrolled","certificateExpired":true,"batch":"b","pollAfter":20,
		"later":{"x":1},"firmware":{"name":"n","version":"1.8.1","size":991184,"sha256":"` + digest + `",
		"secureVersion":3,"attributes":{"chip":"esp32c3"}}}`}
	s, err := client(i).Status(t.Context())
	require.NoError(t, err)
	assert.Equal(t, "enrolled", s.State)
	assert.True(t, s.CertificateExpired)
	assert.Equal(t, "b", s.Batch)
	assert.EqualValues(t, 20, s.PollAfter)
	assert.EqualValues(t, 991184, s.Firmware.Size)
	assert.Equal(t, digest, fmt.Sprintf("%x", s.Firmware.SHA256))
	assert.EqualValues(t, 3, s.Firmware.SecureVersion)
	assert.Equal(t, "esp32c3", s.Firmware.Attributes["chip"])
	assert.Equal(t, "GET", i.asked.Method)
	assert.Equal(t, "https://instance.test:6000/quarklink/v1/status", i.asked.URL.String())
	assert.Equal(t, `version="1"`, i.asked.Header.Get(FirmwareField))
}

func TestRefusedAnswers(t *testing.T) {
	attributes := map[string]string{}
	for n := range maxAttributes + 1 {
		attributes[fmt.Sprint(n)] = ""
	}
	many, err := json.Marshal(attributes)
	require.NoError(t, err)
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
		_, err := client(i).Status(t.Context())
		assert.Error(t, err, name)
	}
}

// TestSecretsStayInside: what does not decode is not quoted, for it may hold a
// token.
func TestSecretsStayInside(t *testing.T) {
	i := &instance{body: `{"type":"database_direct","port":"eyJ.secret.token","token":"eyJ.secret.token"}`}
	_, err := client(i).Connection(t.Context())
	require.Error(t, err)
	assert.NotContains(t, err.Error(), "secret")
}

func TestConnection(t *testing.T) {
	i := &instance{body: `{"type":"iot_hub","endpoint":"hub.test","port":8883,"rootCA":"PEM",
		"scopeID":"s","firmwareUpdateTopic":"t"}`}
	got, err := client(i).Connection(t.Context())
	want := Connection{Type: TypeIoTHub, Endpoint: "hub.test", Port: 8883, RootCA: "PEM", ScopeID: "s",
		FirmwareUpdateTopic: "t"}
	require.NoError(t, err)
	assert.Equal(t, want, got)
	i.body = `{"type":"iot_hub","port":70000}`
	_, err = client(i).Connection(t.Context())
	assert.Error(t, err, "a port of 70000")
}

func TestGetFirmware(t *testing.T) {
	i := &instance{body: "image"}
	body, length, err := client(i).GetFirmware(t.Context(), Digest{1})
	require.NoError(t, err)
	defer body.Close()
	b, err := io.ReadAll(body)
	require.NoError(t, err)
	assert.Equal(t, "image", string(b))
	assert.EqualValues(t, 5, length)
	got, want := i.asked.Header.Get("If-Match"), `"01`+strings.Repeat("00", 31)+`"`
	assert.Equal(t, want, got, "If-Match")
	for _, status := range []int{206, 304, 412, 404, 500} {
		i.status = status
		_, _, err := client(i).GetFirmware(t.Context(), Digest{})
		var answer *problem.Error
		require.ErrorAs(t, err, &answer)
		assert.Equal(t, status, answer.Status)
	}
}

func TestSendOutcome(t *testing.T) {
	i := &instance{status: http.StatusNoContent}
	require.NoError(t, client(i).SendOutcome(t.Context(),
		Outcome{SHA256: Digest{0xAB}, Outcome: Failed, Code: 22, Detail: "d"}))
	assert.Equal(t, `{"sha256":"ab`+strings.Repeat("00", 31)+`","outcome":"failed","code":22,"detail":"d"}`, i.sent)
	for _, status := range []int{202, 301, 400, 503} {
		i.status = status
		assert.Error(t, client(i).SendOutcome(t.Context(), Outcome{}), status)
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
		assert.NotEmpty(t, s.State)
		if s.Firmware != nil {
			assert.LessOrEqual(t, len(s.Firmware.Attributes), maxAttributes)
		}
		again, err := json.Marshal(s)
		require.NoError(t, err)
		var same Status
		require.NoError(t, json.Unmarshal(again, &same))
		twice, err := json.Marshal(same)
		require.NoError(t, err)
		assert.Equal(t, twice, again)
	})
}

func FuzzConnection(f *testing.F) {
	f.Add([]byte(`{"type":"iot_hub","endpoint":"hub.test","port":8883,"rootCA":"PEM"}`))
	f.Add([]byte(`{"type":"database_direct","token":"eyJ"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		conn, err := client(&instance{body: string(body)}).Connection(context.Background())
		if err != nil {
			assert.Zero(t, conn)
		}
	})
}
