package quarklinktest_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/quarklink-go/quarklink"
	"github.com/quarklink-go/quarklink/quarklinktest"
)

func id(n int) quarklink.DeviceID { return quarklink.DeviceID(fmt.Sprintf("%064x", n)) }

func TestBatches(t *testing.T) {
	s := newServer(t, quarklinktest.Options{InMemory: true})
	if err := s.AddBatch(quarklinktest.Batch{Name: "one", Devices: []quarklink.DeviceID{id(2), id(1)}}); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string]quarklinktest.Batch{
		"no name":              {},
		"same name":            {Name: "one"},
		"other batch's device": {Name: "two", Devices: []quarklink.DeviceID{id(3), id(1)}},
		"device twice":         {Name: "two", Devices: []quarklink.DeviceID{id(3), id(3)}},
		"no DeviceID":          {Name: "two", Devices: []quarklink.DeviceID{id(3), "12"}},
		"two policies":         {Name: "two", Policy: quarklinktest.Policy{Hub: new(quarklink.Hub), Database: new(quarklink.Database)}},
		"negative lifetime":    {Name: "two", Policy: quarklinktest.Policy{Lifetime: -time.Hour}},
		"firmware of no size":  {Name: "two", Firmware: &quarklinktest.Firmware{Image: struct{ io.ReaderAt }{strings.NewReader("")}}},
		"no firmware":          {Name: "two", Firmware: new(quarklinktest.Firmware)},
	} {
		if err := s.AddBatch(b); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if s.AddDevices("two", id(3)) == nil {
		t.Error("devices for a batch that does not exist")
	}
	if err := s.AddBatch(quarklinktest.Batch{Name: "two"}); err != nil {
		t.Fatal(err)
	}
	if s.AddDevices("two", id(3), id(1)) == nil || s.AddDevices("two", id(3), "x") == nil {
		t.Error("a device that cannot be added was")
	}
	if got := s.Devices("two"); len(got) > 0 {
		t.Errorf("half of what failed was done: %v", got)
	}
	if err := s.AddDevices("one", id(1), id(3)); err != nil {
		t.Error(err)
	}
	if got := s.Devices("one"); !slices.Equal(got, []quarklink.DeviceID{id(1), id(2), id(3)}) {
		t.Errorf("devices: %v", got)
	}
	if s.Certificates(id(9)) != nil || s.Outcomes(id(9)) != nil || s.Devices("nine") != nil {
		t.Error("something is known of what does not exist")
	}
}

// The policy becomes the connection details, with the instance's root where it
// names none.
func TestPolicies(t *testing.T) {
	s := newServer(t, quarklinktest.Options{InMemory: true})
	hub := &quarklink.Hub{Endpoint: "hub.test", Port: 1883, ScopeID: "0ne", FirmwareUpdateTopic: "news", Roots: s.IssuingCertificates()}
	database := &quarklink.Database{Endpoint: "db.test", Port: 443, URI: "/app/x", Database: "d", DataSource: "s", Token: "a.b.c"}
	for _, test := range []struct {
		name   string
		policy quarklinktest.Policy
		want   map[string]any
		roots  int
	}{
		{"default", quarklinktest.Policy{}, map[string]any{"type": "iot_hub", "endpoint": "instance.test", "port": 8883.0}, 1},
		{"hub", quarklinktest.Policy{Hub: hub}, map[string]any{"type": "iot_hub", "endpoint": "hub.test", "port": 1883.0,
			"scopeID": "0ne", "firmwareUpdateTopic": "news"}, 2},
		{"database", quarklinktest.Policy{Database: database}, map[string]any{"type": "database_direct", "endpoint": "db.test", "port": 443.0,
			"uri": "/app/x", "database": "d", "dataSource": "s", "token": "a.b.c"}, 1},
	} {
		if err := s.AddBatch(quarklinktest.Batch{Name: test.name, Policy: test.policy}); err != nil {
			t.Fatal(err)
		}
		d := newDevice(t, s, test.name)
		var got map[string]any
		if err := json.Unmarshal(d.get(d.client(d.enrol()), pathConnection).body, &got); err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(got["rootCA"].(string), "-----BEGIN CERTIFICATE-----"); n != test.roots {
			t.Errorf("%s: %d roots, want %d", test.name, n, test.roots)
		}
		delete(got, "rootCA")
		if !maps.Equal(got, test.want) {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
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
		if len(got) != max(test.want, 0) || (err == nil) != (test.want >= 0) {
			t.Errorf("%s: %d devices, %v", name, len(got), err)
		}
	}
	endless := io.MultiReader(strings.NewReader(`{"devices":[`), blanks{})
	if _, err := quarklinktest.ParseDevices(endless); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("endless file: %v", err)
	}
	broken := errors.New("unplugged")
	if _, err := quarklinktest.ParseDevices(io.MultiReader(strings.NewReader(`{"devices":[`), failing{broken})); !errors.Is(err, broken) {
		t.Errorf("failing reader: %v", err)
	}
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
			if got != nil {
				t.Fatal("devices and an error")
			}
			return
		}
		var want struct {
			Devices []quarklink.DeviceID `json:"devices"`
		}
		if err := json.Unmarshal([]byte(file), &want); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got, want.Devices) {
			t.Fatalf("%v, want %v", got, want.Devices)
		}
	})
}
