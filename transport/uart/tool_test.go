package uart

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// serve runs the tool at a port until stop, which returns Serve's error.
func serve(t *testing.T, tool *Tool, port Port) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- tool.Serve(ctx, port) }()
	stop = sync.OnceValue(func() error { cancel(); return <-served })
	t.Cleanup(func() { stop() })
	return stop
}

// ask sends bytes to a tool and returns what the tool answers.
func answer(t *testing.T, tool *Tool, input string, atMost int) (output string, writes int) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		device, port := newWire()
		port.in.atMost = atMost
		stop := serve(t, tool, port)
		device.Write([]byte(input))
		synctest.Wait()
		if err := stop(); !errors.Is(err, context.Canceled) {
			t.Errorf("Serve: %v", err)
		}
		if !port.deadline().IsZero() {
			t.Error("a deadline was left on the port")
		}
		output, writes = port.out.sent(), port.out.writes
	})
	return output, writes
}

func testTool(t testing.TB) *Tool {
	return &Tool{Endpoint: "myql.quarklink.io", Port: 6001, RootCA: testRoot(t, "p256.pem"), SSID: "Workshop", Password: "correct horse"}
}

func TestToolTranscript(t *testing.T) {
	const input = "IEF DATA\n\x00wifi_ssid\n" +
		"IEF DATA\n\x00wifi_password\n" +
		"IEF DATA\n\x00ql_endpoint\n" +
		"IEF DATA\n\x00ql_port\n" +
		"IEF DATA\n\x00ql_rootCA\n" +
		"IEF DATA\n\x00deviceID:" + testID + "\n" +
		"IEF DATA\n\x00ql_tunnel\n"
	root := string(testFile(t, "p256.pem.b64"))
	want := []string{"Workshop", "correct horse", "myql.quarklink.io", "6001", root, "OK", "ERROR unsupported"}
	for _, atMost := range []int{0, 1, 7} {
		tool := testTool(t)
		output, writes := answer(t, tool, input, atMost)
		if output != strings.Join(want, "\n")+"\n" || writes != len(want) {
			t.Errorf("%q in %d writes", output, writes)
		}
		tool.NoTerminator = true
		output, writes = answer(t, tool, input, atMost)
		if output != strings.Join(want, "") || writes != len(want) {
			t.Errorf("no terminator: %q in %d writes", output, writes)
		}
	}
}

func TestToolFindsRequests(t *testing.T) {
	for _, tc := range []struct{ name, input, want string }{
		{"no NUL", "IEF DATA\nql_port\n", "6001\n"},
		{"two NULs", "IEF DATA\n\x00\x00ql_port\n", "6001\n"},
		{"line ends of a terminal", "IEF DATA\r\n\x00ql_port\r\n", "6001\n"},
		{"text before", "ets Jun  8 2016\nboot:IEF DATA\n\x00ql_port\n", "6001\n"},
		{"noise before", "\xff\xfe\x00\x1b[IEF DATA\n\x00ql_port\n", "6001\n"},
		{"half a request before", "IEF DATA\n\x00ql_endIEF DATA\n\x00ql_port\n", "6001\n"},
		{"a marker before", "IEF DATA\nIEF DATA\n\x00ql_port\n", "6001\n"},
		{"console line inside", "IEF DATA\n\x00\x1b[0;32mI (12) wifi: up\x1b[0m\r\nql_port\n", "6001\n"},
		{"empty line inside", "IEF DATA\n\r\nql_port\n", "6001\n"},
		{"damaged marker", "IEF DATE\n\x00ql_port\n", ""},
		{"marker in a line", "IEF DATA ql_port\n", ""},
		{"key without marker", "ql_port\nql_endpoint\n", ""},
		{"key once only", "IEF DATA\n\x00ql_port\nql_port\n", "6001\n"},
		{"damaged key, then again", "IEF DATA\n\x00ql_\xb0ort\nIEF DATA\n\x00ql_port\n", "6001\n"},
		{"key with more", "IEF DATA\n\x00ql_port2\n", "ERROR unsupported\n"},
		{"key in capitals", "IEF DATA\n\x00QL_PORT\n", "ERROR unsupported\n"},
		{"long line before", strings.Repeat("x", 5000) + "IEF DATA\n\x00ql_port\n", "6001\n"},
		{"long line inside", "IEF DATA\n\x00" + strings.Repeat("\x00", 5000) + "ql_port\nIEF DATA\n\x00ql_endpoint\n", "myql.quarklink.io\n"},
		{"DeviceID", "IEF DATA\n\x00deviceID:" + testID + "\n", "OK\n"},
		{"DeviceID in capitals", "IEF DATA\n\x00deviceID:" + strings.ToUpper(testID) + "\n", "ERROR refused\n"},
		{"short DeviceID", "IEF DATA\n\x00deviceID:" + testID[1:] + "\n", "ERROR refused\n"},
		{"no DeviceID", "IEF DATA\n\x00deviceID:\n", "ERROR refused\n"},
		{"DeviceID as a key", "IEF DATA\n\x00deviceID\n", "ERROR unsupported\n"},
	} {
		for _, atMost := range []int{0, 1} {
			if output, _ := answer(t, testTool(t), tc.input, atMost); output != tc.want {
				t.Errorf("%s: %q, want %q", tc.name, output, tc.want)
			}
		}
	}
}

// The marker is found wherever the bound on a line's length falls in it.
func TestFinderLongLines(t *testing.T) {
	for n := range 3 * maxLine {
		var find finder
		var last string
		for _, b := range []byte(strings.Repeat("x", n) + "IEF DATA\n\x00ql_port\n") {
			last = find.add(b)
		}
		if last != KeyPort {
			t.Fatalf("not found after %d bytes", n)
		}
	}
}

// What is not set is refused, and an open network has a password: none.
func TestToolRefuses(t *testing.T) {
	var input string
	for _, key := range []string{KeyEndpoint, KeyPort, KeyRootCA, KeySSID, KeyPassword} {
		input += "IEF DATA\n\x00" + key + "\n"
	}
	const no = "ERROR refused\n"
	for _, tc := range []struct {
		tool Tool
		want string
	}{
		{Tool{}, no + no + no + no + no},
		{Tool{SSID: "Workshop"}, no + no + no + "Workshop\n\n"},
		{Tool{Endpoint: "a.io"}, "a.io\n6000\n" + no + no + no},
		{Tool{Port: 443}, no + no + no + no + no},
		{Tool{RootCA: testRoot(t, "p256.pem")}, no + no + string(testFile(t, "p256.pem.b64")) + "\n" + no + no},
		{Tool{SSID: "Workshop", NoTerminator: true}, strings.Repeat("ERROR refused", 3) + "Workshop"},
	} {
		if output, _ := answer(t, &tc.tool, input, 0); output != tc.want {
			t.Errorf("%q, want %q", output, tc.want)
		}
	}
}

func TestToolOnDeviceID(t *testing.T) {
	var got []string
	tool := &Tool{OnDeviceID: func(ctx context.Context, id string) error {
		if ctx.Err() != nil {
			t.Error(ctx.Err())
		}
		got = append(got, id)
		if id != testID {
			return errors.New("not in this batch")
		}
		return nil
	}}
	other := strings.Repeat("0", 64)
	output, _ := answer(t, tool, "IEF DATA\n\x00deviceID:"+testID+"\nIEF DATA\n\x00deviceID:"+other+"\nIEF DATA\n\x00deviceID:xyz\n", 0)
	if output != "OK\nERROR refused\nERROR refused\n" || !slices.Equal(got, []string{testID, other}) {
		t.Errorf("%q, %q", output, got)
	}
}

// onConsole makes an OnEvent of what is to get the lines of the console.
func onConsole(line func([]byte)) func(Event) {
	return func(e Event) {
		if e.Kind == EventConsole {
			line(e.Line)
		}
	}
}

func TestToolConsole(t *testing.T) {
	var got []string
	tool := testTool(t)
	tool.OnEvent = onConsole(func(line []byte) { got = append(got, string(line)) })
	long := strings.Repeat("0123456789", 500)
	answer(t, tool, "ets Jun\r\n\n\x1b[0;32mI (1) a\x1b[0m\nhalf IEF DATA\n\x00I (2) b\nql_port\n"+long+"\nend\n", 0)
	want := []string{"ets Jun", "\x1b[0;32mI (1) a\x1b[0m", "half ", "I (2) b"}
	if len(got) < 5 || !slices.Equal(got[:4], want) || got[len(got)-1] != "end" || strings.Join(got[4:len(got)-1], "") != long {
		t.Errorf("%q", got)
	}
	for _, line := range got {
		if len(line) > 1024 {
			t.Errorf("a line of %d bytes", len(line))
		}
	}
}

// The root goes as PEM if that fits, else as DER, else not at all.
func TestToolMaxReply(t *testing.T) {
	const input = "IEF DATA\n\x00ql_rootCA\n"
	asPEM, asDER := string(testFile(t, "p256.pem.b64"))+"\n", string(testFile(t, "p256.der.b64"))+"\n"
	for _, tc := range []struct {
		max  int
		root string
		want string // "" if Check refuses it
	}{
		{0, "p256.pem", asPEM},
		{829, "p256.pem", asPEM},
		{828, "p256.pem", asDER},
		{557, "p256.pem", asDER},
		{556, "p256.pem", ""},
		{0, "rsa2048.pem", ""},
		{1023, "rsa2048.pem", ""},
		{DeviceMaxReply, "rsa2048.pem", string(testFile(t, "rsa2048.pem.b64")) + "\n"},
		{-1, "p256.pem", ""},
	} {
		tool := &Tool{RootCA: testRoot(t, tc.root), MaxReply: tc.max}
		if tc.want != "" {
			if output, _ := answer(t, tool, input, 0); output != tc.want {
				t.Errorf("%d, %s: %q", tc.max, tc.root, output)
			}
			continue
		}
		if err := tool.Check(); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("%d, %s: %v", tc.max, tc.root, err)
		}
		device, port := newWire()
		device.Write([]byte(input))
		if err := tool.Serve(t.Context(), port); !errors.Is(err, fs.ErrInvalid) || port.out.sent() != "" {
			t.Errorf("%d, %s: Serve: %v, sent %q", tc.max, tc.root, err, port.out.sent())
		}
	}
}

func TestToolCheck(t *testing.T) {
	p256 := testRoot(t, "p256.pem")
	for _, tc := range []struct {
		tool Tool
		text string // "" if it is fine
	}{
		{Tool{}, ""},
		{*testTool(t), ""},
		{Tool{Endpoint: "https://myql.quarklink.io"}, "ql_endpoint: byte 0x3a"},
		{Tool{Endpoint: "myql.quarklink.io\nx"}, "ql_endpoint: byte 0x0a"},
		{Tool{RootCA: []byte{}}, "not one whole DER"},
		{Tool{RootCA: p256[:100]}, "not one whole DER"},
		{Tool{RootCA: testFile(t, "p256.pem")}, "not one whole DER"},
		{Tool{SSID: strings.Repeat("s", 33)}, "33 bytes"},
		{Tool{SSID: "Work\nshop"}, "what ends a reply"},
		{Tool{SSID: "Workshop\x00"}, "what ends a reply"},
		{Tool{SSID: "Workshop\r"}, "what ends a reply"},
		{Tool{SSID: "Work\rshop"}, ""},
		{Tool{SSID: "ERROR refused"}, "reads like a refusal"},
		{Tool{SSID: "Workshop", Password: "ERROR unsupported"}, "reads like a refusal"},
		{Tool{SSID: "IEF DATA"}, "a request"},
		{Tool{SSID: "wifi_ssid"}, ""},
		{Tool{SSID: "I (1) Workshop"}, "or a console line"},
		{Tool{SSID: "\x1b[1mI (1) Workshop"}, "or a console line"},
		{Tool{SSID: "Cafe I (1) x"}, ""},
		{Tool{SSID: "Workshop", Password: "1234567"}, "wifi_password: "},
		{Tool{Password: "correct horse"}, "without an SSID"},
	} {
		err := tc.tool.Check()
		if tc.text == "" {
			if err != nil {
				t.Error(err)
			}
			continue
		}
		if !errors.Is(err, fs.ErrInvalid) || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%v, want %q", err, tc.text)
		}
	}
}

func TestToolEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		device, port := newWire()
		stop := serve(t, testTool(t), port)
		synctest.Wait()
		device.out.close()
		synctest.Wait()
		if err := stop(); !errors.Is(err, io.EOF) {
			t.Error(err)
		}
	})
	synctest.Test(t, func(t *testing.T) { // cancelled before it begins
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		device, port := newWire()
		device.Write([]byte("IEF DATA\n\x00ql_port\n"))
		if err := testTool(t).Serve(ctx, port); !errors.Is(err, context.Canceled) || port.out.sent() != "" {
			t.Errorf("%v, sent %q", err, port.out.sent())
		}
	})
	synctest.Test(t, func(t *testing.T) { // the port fails
		mine := errors.New("unplugged")
		device, port := newWire()
		device.Write([]byte("IEF DATA\n\x00deviceID:" + testID + "\n"))
		err := testTool(t).Serve(t.Context(), failing{port, mine, nil})
		if !errors.Is(err, mine) || strings.Contains(err.Error(), testID) {
			t.Error(err)
		}
	})
}

// One tool, many devices at a time; some devices' lines lose the first reply.
func TestToolServesManyDevices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const devices = 30
		var mu sync.Mutex
		ids := map[string]int{}
		tool := testTool(t)
		tool.OnEvent = func(Event) {}
		tool.OnDeviceID = func(_ context.Context, id string) error {
			mu.Lock()
			defer mu.Unlock()
			ids[id]++
			return nil
		}
		var wg sync.WaitGroup
		for i := range devices {
			device, port := newWire()
			stop := serve(t, tool, port)
			wg.Go(func() {
				defer stop()
				time.Sleep(time.Duration(i) * time.Millisecond)
				device.Write([]byte("I (1) boot: hello\n"))
				d := &Device{Port: device}
				got, err := all(t.Context(), d)
				if err != nil || len(got) != 6 || got[2] != "myql.quarklink.io" {
					t.Errorf("device %d: %.60q, %v", i, got, err)
				}
				if err := d.SendDeviceID(t.Context(), fmt.Sprintf("%064x", i)); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if len(ids) != devices+1 || ids[testID] != devices {
			t.Errorf("%d DeviceIDs", len(ids))
		}
	})
}

func FuzzFinder(f *testing.F) {
	for _, s := range []string{"", "IEF DATA", "IEF DATA\n", "IEF DATA\n\x00ql_po", "\x00", "I (1) a", strings.Repeat("IEF DATA", 300), "IEF DATA\n" + strings.Repeat("\x00", 2000)} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, noise []byte) {
		shown := 0
		find := finder{onLine: func(line []byte) {
			if len(line) == 0 || len(line) > maxLine {
				t.Errorf("a line of %d bytes", len(line))
			}
			shown += len(line)
		}}
		var last string
		for _, b := range slices.Concat(noise, []byte("IEF DATA\n\x00ql_port\n")) {
			last = find.add(b)
			if len(last) > maxKey || strings.ContainsAny(last, " \n\x00") || cap(find.line) > 2*maxLine {
				t.Fatalf("key %q, %d bytes kept", last, cap(find.line))
			}
		}
		if last != KeyPort {
			t.Errorf("the request was not found after %q", noise)
		}
		if shown > len(noise) {
			t.Errorf("%d bytes shown of %d", shown, len(noise))
		}
	})
}

// What Check lets pass, a Device gets, whatever bytes it is made of.
func FuzzToolToDevice(f *testing.F) {
	f.Add("myql.quarklink.io", uint16(443), 600, "Workshop", "correct horse", false)
	f.Add("10.0.0.1", uint16(0), 0, " \xffI (", "", true)
	f.Add("", uint16(0), 2000, "\x1b[0mI (1) ", "\x80\x80\x80\x80\x80\x80\x80\x80", true)
	f.Fuzz(func(t *testing.T, endpoint string, port uint16, root int, ssid, password string, noTerminator bool) {
		tool := &Tool{Endpoint: endpoint, Port: port, SSID: ssid, Password: Secret(password), NoTerminator: noTerminator, MaxReply: DeviceMaxReply}
		if root >= 300 && root < 5000 {
			tool.RootCA = certOf(t, root)
		}
		if tool.Check() != nil {
			return
		}
		in(t, func(t *testing.T, d *Device, far *end) {
			stop := serve(t, tool, far)
			want := func(err error, same, set bool) {
				t.Helper()
				switch {
				case set && (err != nil || !same):
					t.Errorf("%+v: %v", tool, err)
				case !set && !errors.Is(err, ErrRefused):
					t.Errorf("%+v: not refused: %v", tool, err)
				}
			}
			gotSSID, err := d.SSID(t.Context())
			want(err, gotSSID == ssid, ssid != "")
			if password != "" || !noTerminator { // no password without an end is no answer at all
				gotPassword, err := d.Password(t.Context())
				want(err, gotPassword == password, ssid != "")
			}
			gotEndpoint, err := d.Endpoint(t.Context())
			want(err, gotEndpoint == endpoint, endpoint != "")
			gotPort, err := d.InstancePort(t.Context())
			want(err, gotPort == port || port == 0 && gotPort == DefaultPort, endpoint != "")
			gotRoot, err := d.RootCA(t.Context())
			want(err, bytes.Equal(gotRoot, tool.RootCA), tool.RootCA != nil)
			stop()
		})
	})
}

// The forms that the test files were made in, by openssl and base64, are ours.
func TestRootForms(t *testing.T) {
	der := testRoot(t, "p256.pem")
	if text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}); !bytes.Equal(text, testFile(t, "p256.pem")) {
		t.Error("PEM differs from openssl's")
	}
	if text := base64.StdEncoding.EncodeToString(der); text != string(testFile(t, "p256.der.b64")) {
		t.Error("base64 differs")
	}
}
