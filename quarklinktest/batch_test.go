package quarklinktest_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/quarklinktest"
)

func id(n int) quarklink.DeviceID { return quarklink.DeviceID(fmt.Sprintf("%064x", n)) }

func TestBatches(t *testing.T) {
	s := newServer(t, quarklinktest.Options{InMemory: true})
	require.NoError(t, s.AddBatch(quarklinktest.Batch{Name: "one", Devices: []quarklink.DeviceID{id(2), id(1)}}))
	for name, b := range map[string]quarklinktest.Batch{
		"no name":              {},
		"same name":            {Name: "one"},
		"other batch's device": {Name: "two", Devices: []quarklink.DeviceID{id(3), id(1)}},
		"device twice":         {Name: "two", Devices: []quarklink.DeviceID{id(3), id(3)}},
		"no DeviceID":          {Name: "two", Devices: []quarklink.DeviceID{id(3), "12"}},
		"two policies": {Name: "two", Policy: quarklinktest.Policy{Hub: new(quarklink.Hub),
			Database: new(quarklink.Database)}},
		"negative lifetime": {Name: "two", Policy: quarklinktest.Policy{Lifetime: -time.Hour}},
		"firmware of no size": {Name: "two",
			Firmware: &quarklinktest.Firmware{Image: struct{ io.ReaderAt }{strings.NewReader("")}}},
		"no firmware": {Name: "two", Firmware: new(quarklinktest.Firmware)},
	} {
		assert.Error(t, s.AddBatch(b), name)
	}
	assert.Error(t, s.AddDevices("two", id(3)), "devices for a batch that does not exist")
	require.NoError(t, s.AddBatch(quarklinktest.Batch{Name: "two"}))
	require.Error(t, s.AddDevices("two", id(3), id(1)), "a device that cannot be added")
	assert.Error(t, s.AddDevices("two", id(3), "x"), "a device that cannot be added")
	assert.Empty(t, s.Devices("two"), "half of what failed was done")
	assert.NoError(t, s.AddDevices("one", id(1), id(3)))
	assert.Equal(t, []quarklink.DeviceID{id(1), id(2), id(3)}, s.Devices("one"), "devices")
	assert.Nil(t, s.Certificates(id(9)), "something is known of what does not exist")
	assert.Nil(t, s.Outcomes(id(9)), "something is known of what does not exist")
	assert.Nil(t, s.Devices("nine"), "something is known of what does not exist")
}

// The policy becomes the connection details, with the instance's root where it
// names none.
func TestPolicies(t *testing.T) {
	s := newServer(t, quarklinktest.Options{InMemory: true})
	hub := &quarklink.Hub{Endpoint: "hub.test", Port: 1883, ScopeID: "0ne", FirmwareUpdateTopic: "news",
		Roots: s.IssuingCertificates()}
	database := &quarklink.Database{Endpoint: "db.test", Port: 443, URI: "/app/x", Database: "d", DataSource: "s",
		Token: "a.b.c"}
	for _, test := range []struct {
		name   string
		policy quarklinktest.Policy
		want   map[string]any
		roots  int
	}{
		{"default", quarklinktest.Policy{}, map[string]any{"type": "iot_hub", "endpoint": "instance.test",
			"port": 8883.0}, 1},
		{"hub", quarklinktest.Policy{Hub: hub}, map[string]any{"type": "iot_hub", "endpoint": "hub.test", "port": 1883.0,
			"scopeID": "0ne", "firmwareUpdateTopic": "news"}, 2},
		{"database", quarklinktest.Policy{Database: database},
			map[string]any{"type": "database_direct", "endpoint": "db.test", "port": 443.0,
				"uri": "/app/x", "database": "d", "dataSource": "s", "token": "a.b.c"}, 1},
	} {
		require.NoError(t, s.AddBatch(quarklinktest.Batch{Name: test.name, Policy: test.policy}))
		d := newDevice(t, s, test.name)
		var got map[string]any
		require.NoError(t, json.Unmarshal(d.get(d.client(d.enrol()), pathConnection).body, &got))
		n := strings.Count(got["rootCA"].(string), "-----BEGIN CERTIFICATE-----")
		assert.Equal(t, test.roots, n, test.name)
		delete(got, "rootCA")
		assert.Equal(t, test.want, got, test.name)
	}
}

func ExampleParseDevices() {
	devices, err := quarklinktest.ParseDevices(strings.NewReader(`{"devices": [
		"00000000000000000000000000000000000000000000000000000000000000aa",
		"00000000000000000000000000000000000000000000000000000000000000bb"
	]}`))
	fmt.Println(len(devices), err)
	_, err = quarklinktest.ParseDevices(strings.NewReader(`{"devices": ["AA"]}`))
	fmt.Println(err != nil)
	// Output:
	// 2 <nil>
	// true
}

func TestParseDevices(t *testing.T) {
	a, b := `"`+string(id(10))+`"`, `"`+string(id(11))+`"`
	for name, test := range map[string]struct {
		file string
		want int // -1: an error
	}{
		"two":                {`{"devices":[` + a + `,` + b + `]}`, 2},
		"white space":        {" {\n\t\"devices\" : [ " + a + " ] }\r\n", 1},
		"none":               {`{"devices":[]}`, 0},
		"nothing":            {``, -1},
		"no object":          {`[` + a + `]`, -1},
		"empty object":       {`{}`, -1},
		"null":               {`{"devices":null}`, -1},
		"other member":       {`{"device":[` + a + `]}`, -1},
		"capital":            {`{"Devices":[` + a + `]}`, -1},
		"another member":     {`{"devices":[` + a + `],"name":"x"}`, -1},
		"member twice":       {`{"devices":[` + a + `],"devices":[` + b + `]}`, -1},
		"duplicate":          {`{"devices":[` + a + `,` + a + `]}`, -1},
		"number":             {`{"devices":[12]}`, -1},
		"nested":             {`{"devices":[[` + a + `]]}`, -1},
		"short":              {`{"devices":["00"]}`, -1},
		"upper case":         {`{"devices":["` + strings.ToUpper(string(id(10))) + `"]}`, -1},
		"trailing comma":     {`{"devices":[` + a + `,]}`, -1},
		"missing comma":      {`{"devices":[` + a + b + `]}`, -1},
		"cut":                {`{"devices":[` + a + `]`, -1},
		"cut in a string":    {`{"devices":[` + a[:30], -1},
		"text after the end": {`{"devices":[` + a + `]}{}`, -1},
		"escaped":            {`{"devices":["\u0030` + a[2:] + `]}`, 1},
	} {
		got, err := quarklinktest.ParseDevices(strings.NewReader(test.file))
		require.Len(t, got, max(test.want, 0), name)
		assert.Equal(t, test.want >= 0, err == nil, name)
	}
	endless := io.MultiReader(strings.NewReader(`{"devices":[`), blanks{})
	_, err := quarklinktest.ParseDevices(endless)
	require.Error(t, err, "endless file")
	assert.Contains(t, err.Error(), "larger than", "endless file")
	broken := errors.New("unplugged")
	_, err = quarklinktest.ParseDevices(io.MultiReader(strings.NewReader(`{"devices":[`), failing{broken}))
	assert.ErrorIs(t, err, broken, "failing reader")
}

type blanks struct{}

func (blanks) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// What is accepted is the JSON that encoding/json reads in it.
func FuzzParseDevices(f *testing.F) {
	f.Add(`{"devices":["` + string(id(1)) + `","` + string(id(2)) + `"]}`)
	f.Add(`{"devices":[]}`)
	f.Add(`{"devices":["",]}`)
	f.Add(`{"devices":["` + string(id(1)) + `"],"devices":[]}`)
	f.Fuzz(func(t *testing.T, file string) {
		got, err := quarklinktest.ParseDevices(strings.NewReader(file))
		if err != nil {
			require.Nil(t, got, "devices and an error")
			return
		}
		var want struct {
			Devices []quarklink.DeviceID `json:"devices"`
		}
		require.NoError(t, json.Unmarshal([]byte(file), &want))
		require.Equal(t, want.Devices, got)
	})
}
