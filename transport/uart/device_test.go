package uart

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

const testID = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

// in calls f with a device at one end of a line whose other end is a tool made
// by hand (see play), on virtual time. A goroutine that is left behind fails it.
func in(t *testing.T, f func(t *testing.T, d *Device, tool *end)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		device, tool := newWire()
		f(t, &Device{Port: device}, tool)
		if !device.deadline().IsZero() {
			t.Error("a deadline was left on the port")
		}
	})
}

func mustFail(t *testing.T, err error, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error is %v, want %v", err, want)
	}
}

// all asks for everything in the order of a first boot.
func all(ctx context.Context, d *Device) (got []string, err error) {
	add := func(v any, e error) {
		if err == nil {
			got, err = append(got, fmt.Sprint(v)), e
		}
	}
	add(d.SSID(ctx))
	add(d.Password(ctx))
	add(d.Endpoint(ctx))
	add(d.InstancePort(ctx))
	add(d.RootCA(ctx))
	add("acknowledged", d.SendDeviceID(ctx, testID))
	return got, err
}

func TestDeviceTranscript(t *testing.T) {
	const wantDevice = "IEF DATA\n\x00wifi_ssid\n" +
		"IEF DATA\n\x00wifi_password\n" +
		"IEF DATA\n\x00ql_endpoint\n" +
		"IEF DATA\n\x00ql_port\n" +
		"IEF DATA\n\x00ql_rootCA\n" +
		"IEF DATA\n\x00deviceID:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\n"
	root := testRoot(t, "p256.pem")
	want := []string{"Workshop", "correct horse", "myql.quarklink.io", "443", fmt.Sprint(root), "acknowledged"}
	for _, tc := range []struct{ name, end string }{{"newline", "\n"}, {"carriage return and newline", "\r\n"}, {"NUL", "\x00"}} {
		for _, atMost := range []int{0, 1} {
			t.Run(fmt.Sprintf("%s, %d bytes a read", tc.name, atMost), func(t *testing.T) {
				in(t, func(t *testing.T, d *Device, tool *end) {
					d.Port.(*end).in.atMost = atMost
					play(t, tool, says("Workshop"+tc.end), says("correct horse"+tc.end), says("myql.quarklink.io"+tc.end),
						says("443"+tc.end), says(string(testFile(t, "p256.pem.b64"))+tc.end), says("noted"+tc.end))
					start := time.Now()
					got, err := all(t.Context(), d)
					if err != nil || !slices.Equal(got, want) {
						t.Fatalf("got %q, %v", got, err)
					}
					if sent := d.Port.(*end).out.sent(); sent != wantDevice {
						t.Errorf("the device sent %q", sent)
					}
					// Six times the wait that drains the line, and none for an answer.
					if took := time.Since(start); took != 6*20*time.Millisecond {
						t.Errorf("took %v", took)
					}
				})
			})
		}
	}
}

// The vendor's kind of tool sends the bare value and no end.
func TestDeviceToolWithoutTerminator(t *testing.T) {
	in(t, func(t *testing.T, d *Device, tool *end) {
		root := testFile(t, "p256.der.b64")
		play(t, tool, says("Workshop"), says("correct horse"), says("myql.quarklink.io"),
			says("443"), func(say func(string)) {
				for _, b := range root { // as slow as 110 baud
					say(string(b))
					time.Sleep(90 * time.Millisecond)
				}
			}, says("ok"))
		steps := []struct {
			ask  func() (any, error)
			took time.Duration
		}{
			{func() (any, error) { return d.SSID(t.Context()) }, 3 * time.Second},
			{func() (any, error) { return d.Password(t.Context()) }, 100 * time.Millisecond},
			{func() (any, error) { return d.Endpoint(t.Context()) }, 100 * time.Millisecond},
			{func() (any, error) { return d.InstancePort(t.Context()) }, 100 * time.Millisecond},
		}
		for i, step := range steps {
			start := time.Now()
			if v, err := step.ask(); err != nil {
				t.Fatalf("step %d: %v, %v", i, v, err)
			}
			if took := time.Since(start) - 20*time.Millisecond; took != step.took {
				t.Errorf("step %d took %v, want %v", i, took, step.took)
			}
		}
		// A reply may not take for ever: 556 bytes at 90 ms are 50 s.
		_, err := d.RootCA(t.Context())
		mustFail(t, err, ErrReply)
	})
}

// busy is a port on a machine so busy that a Read which waits for a gap returns
// long after its deadline, and leaves what has come meanwhile to the next Read.
type busy struct{ *end }

func (b busy) Read(p []byte) (int, error) {
	b.in.mu.Lock()
	waits := len(b.in.buf) == 0
	left := time.Until(b.in.deadline)
	b.in.mu.Unlock()
	if waits && left <= gap {
		time.Sleep(left + 150*time.Millisecond)
		return 0, os.ErrDeadlineExceeded
	}
	return b.end.Read(p)
}

// A gap that is only this program's own absence does not end a reply: half an
// SSID would pass for one.
func TestDeviceBusyMachine(t *testing.T) {
	in(t, func(t *testing.T, d *Device, tool *end) {
		device := d.Port.(*end)
		play(t, tool, says("Workshop"), func(say func(string)) {
			for _, piece := range []string{"correct ", "horse ", "battery"} {
				say(piece)
				time.Sleep(60 * time.Millisecond)
			}
		})
		if ssid, err := d.SSID(t.Context()); ssid != "Workshop" || err != nil {
			t.Fatalf("%q, %v", ssid, err)
		}
		d.Port = busy{device}
		if password, err := d.Password(t.Context()); password != "correct horse battery" || err != nil {
			t.Errorf("%q, %v", password, err)
		}
		d.Port = device
	})
}

// Nor is what came during the absence left for the answer to the next question.
func TestDeviceDrainsOnABusyMachine(t *testing.T) {
	in(t, func(t *testing.T, d *Device, tool *end) {
		device := d.Port.(*end)
		d.Port = busy{device}
		play(t, tool, says("correct horse\n"))
		time.AfterFunc(10*time.Millisecond, func() { tool.Write([]byte("battery staple\n")) })
		if password, err := d.Password(t.Context()); password != "correct horse" || err != nil {
			t.Errorf("%q, %v", password, err)
		}
		d.Port = device
	})
}

// A reply that is still coming in at the time-out is not cut there.
func TestDeviceSlowReply(t *testing.T) {
	for _, terminator := range []string{"", "\n"} {
		in(t, func(t *testing.T, d *Device, tool *end) {
			requests := play(t, tool, func(say func(string)) {
				time.Sleep(2900 * time.Millisecond)
				for _, b := range []byte("myql.quarklink.io" + terminator) {
					say(string(b))
					time.Sleep(50 * time.Millisecond)
				}
			})
			host, err := d.Endpoint(t.Context())
			if host != "myql.quarklink.io" || err != nil || len(requests()) != 1 {
				t.Errorf("%q, %v, %q", host, err, requests())
			}
		})
	}
}

func TestDeviceReplies(t *testing.T) {
	host := func(ctx context.Context, d *Device) (any, error) { return d.Endpoint(ctx) }
	port := func(ctx context.Context, d *Device) (any, error) { return d.InstancePort(ctx) }
	root := func(ctx context.Context, d *Device) (any, error) { return d.RootCA(ctx) }
	ssid := func(ctx context.Context, d *Device) (any, error) { return d.SSID(ctx) }
	pass := func(ctx context.Context, d *Device) (any, error) { return d.Password(ctx) }

	p256 := testRoot(t, "p256.pem")
	b64 := func(b []byte) string { return base64.StdEncoding.EncodeToString(b) }
	p256PEM := testFile(t, "p256.pem")
	long := strings.Repeat("a", 63)

	for _, tc := range []struct {
		name  string
		ask   func(context.Context, *Device) (any, error)
		reply string
		want  any    // the value, or the error
		text  string // part of the error's text
	}{
		{"host", host, "myql.quarklink.io\n", "myql.quarklink.io", ""},
		{"host, one label", host, "localhost\n", "localhost", ""},
		{"host, digits first", host, "3com.example\n", "3com.example", ""},
		{"host, address", host, "192.168.4.1\n", "192.168.4.1", ""},
		{"host of 127", host, long + "." + long + "\n", long + "." + long, ""},
		{"host of 129", host, long + "." + long + ".b\n", ErrReply, "129 bytes"},
		{"host, label of 64", host, long + "a.io\n", ErrReply, "label of 64"},
		{"host, empty", host, "\n", ErrReply, "0 bytes"},
		{"host, URL", host, "https://myql.quarklink.io\n", ErrReply, "0x3a is not allowed"},
		{"host, underscore", host, "my_ql.io\n", ErrReply, "0x5f is not allowed"},
		{"host, not ASCII", host, "m\xc3\xbcql.io\n", ErrReply, "0xc3 is not allowed"},
		{"host, dot at the end", host, "myql.quarklink.io.\n", ErrReply, "label of 0"},
		{"host, hyphen first", host, "-myql.io\n", ErrReply, "hyphen"},
		{"host, half an address", host, "192.168.4\n", ErrReply, "not an IPv4 address"},
		{"host, address out of range", host, "192.168.4.256\n", ErrReply, "not an IPv4 address"},
		{"host, octal address", host, "192.168.04.1\n", ErrReply, "not an IPv4 address"},
		{"host, a port in its place", host, "6000\n", ErrReply, "not an IPv4 address"},
		{"host after junk", host, "rst:0x1 (POWERON_RESET),boot:0x13\n\nmyql.quarklink.io\n", "myql.quarklink.io", ""},

		{"port", port, "443\n", uint16(443), ""},
		{"port, empty", port, "\n", uint16(6000), ""},
		{"port, empty with carriage return", port, "\r\n", uint16(6000), ""},
		{"port 1", port, "1\n", uint16(1), ""},
		{"port 65535", port, "65535\n", uint16(65535), ""},
		{"port 65536", port, "65536\n", ErrReply, "port 65536, need 1 to 65535"},
		{"port 70000", port, "70000\n", ErrReply, "port 70000, need 1 to 65535"},
		{"port 0", port, "0\n", ErrReply, "port 0, need"},
		{"port, sign", port, "+443\n", ErrReply, "not a port number"},
		{"port, space", port, " 443\n", ErrReply, "not a port number"},
		{"port, overflow", port, "18446744073709551617\n", ErrReply, "not a port number"},

		{"root, PEM", root, string(testFile(t, "p256.pem.b64")) + "\n", p256, ""},
		{"root, DER", root, string(testFile(t, "p256.der.b64")) + "\n", p256, ""},
		{"root, PEM with CRLF", root, b64(bytes.ReplaceAll(p256PEM, []byte("\n"), []byte("\r\n"))) + "\n", p256, ""},
		{"root, PEM with its NUL", root, b64(append(slices.Clone(p256PEM), 0)) + "\n", p256, ""},
		{"root, RSA-2048", root, string(testFile(t, "rsa2048.pem.b64")) + "\n", testRoot(t, "rsa2048.pem"), ""},
		{"root, empty", root, "\n", ErrReply, "not one whole DER"},
		{"root, not base64", root, "-----BEGIN CERTIFICATE-----\n", ErrReply, "not base64"},
		{"root, bits at the end of the base64", root, strings.TrimSuffix(b64(certOf(t, 301)), "A==") + "B==\n", ErrReply, "not base64"},
		{"root, carriage return inside", root, "MII\rB\n", ErrReply, "carriage return"},
		{"root, base64 of a text", root, b64([]byte("hello")) + "\n", ErrReply, "not one whole DER"},
		{"root, half", root, string(testFile(t, "p256.der.b64")[:400]) + "\n", ErrReply, "not one whole DER"},
		{"root, byte at the end", root, b64(append(slices.Clone(p256), 0)) + "\n", ErrReply, "not one whole DER"},
		{"root, a key", root, b64([]byte{0x30, 3, 2, 1, 1}) + "\n", ErrReply, "not a certificate"},
		{"root, two", root, b64(append(slices.Clone(p256PEM), p256PEM...)) + "\n", ErrReply, "2 PEM blocks"},
		{"root, PEM key", root, b64(bytes.ReplaceAll(p256PEM, []byte("CERTIFICATE"), []byte("EC KEY"))) + "\n", ErrReply, "not a CERTIFICATE"},
		{"root, damaged PEM", root, b64(p256PEM[:300]) + "\n", ErrReply, "damaged PEM"},
		{"root of 4096", root, b64(certOf(t, 3072)) + "\n", certOf(t, 3072), ""},
		{"root of 4096 with CRLF", root, b64(certOf(t, 3072)) + "\r\n", certOf(t, 3072), ""},
		{"root of 4100", root, b64(certOf(t, 3075)) + "\n", ErrReply, "longer than 4096"},
		{"root of 4100, NUL", root, b64(certOf(t, 3075)) + "\x00", ErrReply, "longer than 4096"},
		{"root after a line too long", root, b64(certOf(t, 3075)) + "\n" + b64(p256) + "\n", p256, ""},

		{"SSID", ssid, "Workshop\n", "Workshop", ""},
		{"SSID with spaces, in Japanese", ssid, " 工房 \n", " 工房 ", ""},
		{"SSID of 32", ssid, strings.Repeat("s", 32) + "\n", strings.Repeat("s", 32), ""},
		{"SSID of 33", ssid, strings.Repeat("s", 33) + "\n", ErrReply, "33 bytes"},
		{"SSID, empty", ssid, "\n", ErrReply, "0 bytes"},

		{"password", pass, "correct horse\n", "correct horse", ""},
		{"password, open network", pass, "\n", "", ""},
		{"password of 8", pass, "12345678\n", "12345678", ""},
		{"password of 63", pass, strings.Repeat("p", 63) + "\n", strings.Repeat("p", 63), ""},
		{"password of 64 hex", pass, strings.Repeat("0aF9", 16) + "\n", strings.Repeat("0aF9", 16), ""},
		{"password of 64", pass, strings.Repeat("p", 64) + "\n", ErrReply, "not all hex"},
		{"password of 7", pass, "1234567\n", ErrReply, "neither empty nor"},
		{"password of 65", pass, strings.Repeat("a", 65) + "\n", ErrReply, "neither empty nor"},
		{"password, control character", pass, "correct\x07horse\n", ErrReply, "control character"},

		{"refused", host, "ERROR refused\n", ErrRefused, "ql_endpoint: refused"},
		{"refused, not a password", pass, "ERROR refused\r\n", ErrRefused, "wifi_password: refused"},
		{"refused, no end", host, "ERROR refused", ErrRefused, ""},
		{"unsupported", port, "ERROR unsupported\n", ErrUnsupported, "ql_port: not supported"},
		{"not quite refused", port, "ERROR refused.\n", ErrReply, ""},

		{"console first", host, "I (312) wifi: up\nE (9) x: y\nmyql.quarklink.io\n", "myql.quarklink.io", ""},
		{"console, coloured", ssid, "\x1b[0;32mI (312) wifi: up\x1b[0m\r\nWorkshop\n", "Workshop", ""},
		{"console only", ssid, "\x1b[1;31mE (1) a: b\x1b[0m\nV (2) \nD (33) c\n", ErrNoAnswer, ""},
		{"console that breaks in", host, "myql.quarkI (312) wifi: up\nlink.io\n", "myql.quarklink.io", ""},
		{"coloured console that breaks in", root, string(testFile(t, "p256.der.b64")[:99]) + "\x1b[0;33mW (312) wifi: up\x1b[0m\n" +
			string(testFile(t, "p256.der.b64")[99:]) + "\n", p256, ""},
		{"nearly a console line", ssid, "I (x) wifi\n", "I (x) wifi", ""},
		{"nearly a console line, no time", ssid, "I () wifi\n", "I () wifi", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in(t, func(t *testing.T, d *Device, tool *end) {
				play(t, tool, says(tc.reply))
				start := time.Now()
				got, err := tc.ask(t.Context(), d)
				took := time.Since(start)
				if want, ok := tc.want.(error); ok {
					mustFail(t, err, want)
					if !strings.Contains(err.Error(), tc.text) {
						t.Errorf("error %q does not say %q", err, tc.text)
					}
					return
				}
				if err != nil || fmt.Sprint(got) != fmt.Sprint(tc.want) {
					t.Errorf("got %v, %v", got, err)
				}
				if took != 20*time.Millisecond {
					t.Errorf("took %v", took)
				}
			})
		})
	}
}

// certOf returns something with the outer shape of a certificate and that many
// bytes.
func certOf(t testing.TB, size int) []byte {
	t.Helper()
	var b cryptobyte.Builder
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddBytes(make([]byte, size-15)) })
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {})
		b.AddASN1BitString([]byte{0, 0})
	})
	der := b.BytesOrPanic()
	if len(der) != size {
		t.Fatalf("%d bytes, want %d", len(der), size)
	}
	return der
}

func TestDeviceConsoleDuringWait(t *testing.T) {
	for _, terminator := range []string{"", "\n"} {
		in(t, func(t *testing.T, d *Device, tool *end) {
			play(t, tool, func(say func(string)) {
				for i := range 10 {
					time.Sleep(100 * time.Millisecond)
					say("\x1b[0;32mI (100) wifi: ")
					time.Sleep(150 * time.Millisecond)
					say("attempt\x1b[0m\r\n")
					if i == 4 {
						say("Workshop" + terminator)
					}
				}
			})
			ssid, err := d.SSID(t.Context())
			if ssid != "Workshop" || err != nil {
				t.Errorf("with end %q: %q, %v", terminator, ssid, err)
			}
		})
	}
}

// A console line that straddles the time-out is not taken for a reply in halves.
func TestDeviceConsoleAcrossTimeout(t *testing.T) {
	in(t, func(t *testing.T, d *Device, tool *end) {
		requests := play(t, tool, func(say func(string)) {
			time.Sleep(2990 * time.Millisecond)
			say("I (2990) main: hello ")
			time.Sleep(50 * time.Millisecond)
			say("world\n")
		}, says("Workshop\n"))
		ssid, err := d.SSID(t.Context())
		if ssid != "Workshop" || err != nil || len(requests()) != 2 {
			t.Errorf("%q, %v, %q", ssid, err, requests())
		}
	})
}

// A console line whose end was lost does not swallow the replies for ever.
func TestDeviceConsoleWithoutEnd(t *testing.T) {
	in(t, func(t *testing.T, d *Device, tool *end) {
		play(t, tool, says("I (2990) main: hel"), says("Workshop"))
		ssid, err := d.SSID(t.Context())
		if ssid != "Workshop" || err != nil {
			t.Errorf("%q, %v", ssid, err)
		}
	})
}

// A terminal that nobody has set up sends back what it gets.
func TestDeviceEcho(t *testing.T) {
	echo := func(nul, key string) string { return "IEF DATA\r\n" + nul + key + "\r\n" }
	for _, nul := range []string{"\x00", "^@", ""} {
		in(t, func(t *testing.T, d *Device, tool *end) {
			root := string(testFile(t, "p256.pem.b64"))
			play(t, tool, says(echo(nul, KeySSID)), says(echo(nul, KeySSID)+"wifi_ssid\n"), // the name of the network happens to be the key
				says(echo(nul, KeyPassword)+"\n"), says(echo(nul, KeyEndpoint)+"myql.quarklink.io\n"),
				says(echo(nul, KeyPort)), says(echo(nul, KeyPort)+"443\n"), says(echo(nul, KeyRootCA)+root+"\n"),
				says(echo(nul, KeyDeviceID+":"+testID)+"OK\n"))
			got, err := all(t.Context(), d)
			want := []string{"wifi_ssid", "", "myql.quarklink.io", "443", fmt.Sprint(testRoot(t, "p256.pem")), "acknowledged"}
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("NUL as %q: %.100q, %v", nul, got, err)
			}
		})
		in(t, func(t *testing.T, d *Device, tool *end) {
			play(t, tool, slices.Repeat([]func(func(string)){says(echo(nul, KeyDeviceID+":"+testID))}, 5)...)
			mustFail(t, d.SendDeviceID(t.Context(), testID), ErrNotAcknowledged)
		})
	}
}

func TestDeviceNoAnswer(t *testing.T) {
	in(t, func(t *testing.T, d *Device, tool *end) {
		requests := play(t, tool)
		start := time.Now()
		_, err := d.InstancePort(t.Context())
		mustFail(t, err, ErrNoAnswer)
		if took := time.Since(start); took != 20*time.Millisecond+5*3*time.Second {
			t.Errorf("took %v", took)
		}
		if got := requests(); !slices.Equal(got, slices.Repeat([]string{"ql_port"}, 5)) {
			t.Errorf("requests %q", got)
		}
	})
	in(t, func(t *testing.T, d *Device, tool *end) {
		d.Timeout, d.Tries = time.Second, 2
		requests := play(t, tool)
		start := time.Now()
		_, err := d.SSID(t.Context())
		mustFail(t, err, ErrNoAnswer)
		if took := time.Since(start); took != 2020*time.Millisecond || len(requests()) != 2 {
			t.Errorf("took %v, %q", took, requests())
		}
	})
}

// What came before the request is not its answer.
func TestDeviceDrains(t *testing.T) {
	in(t, func(t *testing.T, d *Device, tool *end) {
		tool.Write([]byte("stale.example.com\nstale.example.org"))
		play(t, tool, says("myql.quarklink.io\n"))
		if host, err := d.Endpoint(t.Context()); host != "myql.quarklink.io" || err != nil {
			t.Errorf("%q, %v", host, err)
		}
	})
	// A console that never rests does not keep a device from asking.
	for _, chatter := range []string{"I (1) wifi: beacon\n", "beacon\n"} {
		in(t, func(t *testing.T, d *Device, tool *end) {
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() {
				defer close(done)
				for ctx.Err() == nil {
					tool.Write([]byte(chatter))
					time.Sleep(7 * time.Millisecond)
				}
			}()
			play(t, tool, says("443\n"))
			start := time.Now()
			if port, err := d.InstancePort(t.Context()); port != 443 || err != nil {
				t.Errorf("%d, %v", port, err)
			}
			if took := time.Since(start); took > 3100*time.Millisecond {
				t.Errorf("took %v", took)
			}
			cancel()
			<-done
		})
	}
}

// The tool answers after the device has asked again: both answers come, and the
// second must not count for the next key.
func TestDeviceLateDuplicate(t *testing.T) {
	in(t, func(t *testing.T, d *Device, tool *end) {
		late := func(say func(string)) {
			time.Sleep(3500 * time.Millisecond) // so the second answer comes 3.5 s after the first
			say("myql.quarklink.io\n")
		}
		requests := play(t, tool, late, late, says("Workshop\n"))
		host, err := d.Endpoint(t.Context())
		if host != "myql.quarklink.io" || err != nil {
			t.Fatalf("%q, %v", host, err)
		}
		start := time.Now()
		d.Timeout = 4 * time.Second // the tool needs 3.5 s
		ssid, err := d.SSID(t.Context())
		if ssid != "Workshop" || err != nil {
			t.Fatalf("%q, %v", ssid, err)
		}
		if want := []string{"ql_endpoint", "ql_endpoint", "wifi_ssid"}; !slices.Equal(requests(), want) {
			t.Errorf("requests %q", requests())
		}
		// The duplicate came 3.5 s after the first answer, then the line was
		// silent for the time-out.
		if took := time.Since(start); took != 7500*time.Millisecond {
			t.Errorf("took %v", took)
		}
		// No wait after a request that was answered at once.
		start = time.Now()
		d.Tries = 1
		_, err = d.Password(t.Context())
		mustFail(t, err, ErrNoAnswer)
		if took := time.Since(start); took != 4020*time.Millisecond {
			t.Errorf("took %v", took)
		}
	})
}

// The same when the first request was given up: no try left, or cancelled.
func TestDeviceLateAnswerAfterFailure(t *testing.T) {
	for cancelled, needs := range map[bool]time.Duration{false: 4 * time.Second, true: 2 * time.Second} {
		in(t, func(t *testing.T, d *Device, tool *end) {
			d.Tries = 1
			ctx := t.Context()
			if cancelled {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, time.Second)
				defer cancel()
			}
			play(t, tool, func(say func(string)) {
				time.Sleep(needs)
				say("Workshop\n")
			}, says("correct horse\n"))
			if _, err := d.SSID(ctx); err == nil {
				t.Fatal("no error")
			}
			password, err := d.Password(t.Context())
			if password != "correct horse" || err != nil {
				t.Errorf("%q, %v", password, err)
			}
		})
	}
}

// While console lines come the line counts as silent, while others come not.
func TestDeviceSilenceAfterResend(t *testing.T) {
	for _, tc := range []struct {
		chatter string
		want    error
	}{{"I (12) wifi: beacon\n", nil}, {"beacon\n", ErrReply}} {
		in(t, func(t *testing.T, d *Device, tool *end) {
			requests := play(t, tool, nil, says("Workshop\n"), says("correct horse\n"))
			if _, err := d.SSID(t.Context()); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() {
				defer close(done)
				for ctx.Err() == nil {
					tool.Write([]byte(tc.chatter))
					time.Sleep(time.Second)
				}
			}()
			start := time.Now()
			_, err := d.Password(t.Context())
			if !errors.Is(err, tc.want) || time.Since(start) > 18*time.Second {
				t.Errorf("%q: %v after %v", tc.chatter, err, time.Since(start))
			}
			if tc.want != nil && len(requests()) != 2 {
				t.Errorf("%q: asked all the same: %q", tc.chatter, requests())
			}
			cancel()
			<-done
		})
	}
}

func TestDeviceHalfAReply(t *testing.T) {
	half, whole := string(testFile(t, "p256.pem.b64")[:333]), string(testFile(t, "p256.pem.b64"))
	t.Run("of a certificate", func(t *testing.T) {
		in(t, func(t *testing.T, d *Device, tool *end) {
			play(t, tool, says(half), says(whole+"\n"))
			der, err := d.RootCA(t.Context())
			if !bytes.Equal(der, testRoot(t, "p256.pem")) || err != nil {
				t.Error(len(der), err)
			}
		})
	})
	t.Run("of a name, from a tool that ends its replies", func(t *testing.T) {
		in(t, func(t *testing.T, d *Device, tool *end) {
			play(t, tool, says("443\n"), says("myql.quark"), says("myql.quarklink.io\n"))
			if port, err := d.InstancePort(t.Context()); port != 443 || err != nil {
				t.Fatal(port, err)
			}
			if host, err := d.Endpoint(t.Context()); host != "myql.quarklink.io" || err != nil {
				t.Error(host, err)
			}
		})
	})
	t.Run("always", func(t *testing.T) {
		in(t, func(t *testing.T, d *Device, tool *end) {
			requests := play(t, tool, slices.Repeat([]func(func(string)){says(half)}, 5)...)
			_, err := d.RootCA(t.Context())
			mustFail(t, err, ErrReply)
			if len(requests()) != 5 {
				t.Errorf("requests %q", requests())
			}
		})
	})
	t.Run("always, from a tool that ends its replies", func(t *testing.T) {
		in(t, func(t *testing.T, d *Device, tool *end) {
			play(t, tool, says("443\n"), says("myql.quark"))
			if _, err := d.InstancePort(t.Context()); err != nil {
				t.Fatal(err)
			}
			_, err := d.Endpoint(t.Context())
			mustFail(t, err, ErrReply)
			if !strings.Contains(err.Error(), "10 bytes, but no end") {
				t.Error(err)
			}
		})
	})
}

func TestDeviceReplyNeverEnds(t *testing.T) {
	for _, piece := range []string{"a", strings.Repeat("a", 100), "a\n", strings.Repeat("I (1) ", 50)} {
		for _, every := range []time.Duration{time.Millisecond, 99 * time.Millisecond, 101 * time.Millisecond} {
			in(t, func(t *testing.T, d *Device, tool *end) {
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan struct{})
				go func() {
					defer close(done)
					for ctx.Err() == nil {
						tool.Write([]byte(piece))
						time.Sleep(every)
					}
				}()
				start := time.Now()
				_, err := d.RootCA(t.Context())
				if err == nil {
					t.Error("no error")
				}
				if took, most := time.Since(start), 6*2*3*time.Second; took > most {
					t.Errorf("%.10q every %v: took %v", piece, every, took)
				}
				if n := cap(d.line.buf); n > 3*DeviceMaxReply {
					t.Errorf("%d bytes kept", n)
				}
				cancel()
				<-done
			})
		}
	}
}

// What is still coming in is not a reply yet, even if it could be one.
func TestDeviceReplyDripsIn(t *testing.T) {
	in(t, func(t *testing.T, d *Device, tool *end) {
		d.Timeout, d.Tries = time.Second, 1
		play(t, tool, func(say func(string)) {
			for range 30 { // the device stops listening after 20
				say("s")
				time.Sleep(99 * time.Millisecond)
			}
		})
		ssid, err := d.SSID(t.Context())
		if !errors.Is(err, ErrReply) {
			t.Errorf("%q, %v", ssid, err)
		}
	})
}

func TestDeviceCheckRoot(t *testing.T) {
	mine := errors.New("not the OEM's")
	in(t, func(t *testing.T, d *Device, tool *end) {
		d.CheckRoot = func(der []byte) error {
			cert, err := x509.ParseCertificate(der)
			if err == nil && cert.PublicKeyAlgorithm != x509.RSA {
				err = mine
			}
			return err
		}
		play(t, tool, says(string(testFile(t, "p256.pem.b64"))+"\n"+string(testFile(t, "rsa2048.pem.b64"))+"\n"),
			says(string(testFile(t, "p256.pem.b64"))+"\n"))
		der, err := d.RootCA(t.Context())
		if !bytes.Equal(der, testRoot(t, "rsa2048.pem")) || err != nil {
			t.Fatal(len(der), err)
		}
		_, err = d.RootCA(t.Context())
		mustFail(t, err, ErrReply)
		mustFail(t, err, mine)
	})
}

func TestDeviceSendDeviceID(t *testing.T) {
	in(t, func(t *testing.T, d *Device, tool *end) {
		play(t, tool, says("OK\n"), says("ERROR refused\n"), says("whatever the vendor's tool says"))
		if err := d.SendDeviceID(t.Context(), testID); err != nil {
			t.Error(err)
		}
		err := d.SendDeviceID(t.Context(), testID)
		mustFail(t, err, ErrRefused)
		d.ending = endingUnknown
		if err := d.SendDeviceID(t.Context(), testID); err != nil {
			t.Error(err)
		}
		err = d.SendDeviceID(t.Context(), testID)
		mustFail(t, err, ErrNotAcknowledged)
		mustFail(t, err, ErrNoAnswer)
	})
	in(t, func(t *testing.T, d *Device, tool *end) {
		play(t, tool, says(strings.Repeat("y", 4096)+"\n"), says(strings.Repeat("y", 4097)+"\n"))
		if err := d.SendDeviceID(t.Context(), testID); err != nil {
			t.Error(err)
		}
		err := d.SendDeviceID(t.Context(), testID)
		mustFail(t, err, ErrNotAcknowledged)
		mustFail(t, err, ErrReply)
	})
	for _, id := range []string{"", testID[1:], testID + "0", strings.ToUpper(testID), testID[:63] + "\n"} {
		in(t, func(t *testing.T, d *Device, tool *end) {
			mustFail(t, d.SendDeviceID(t.Context(), id), fs.ErrInvalid)
			if sent := d.Port.(*end).out.sent(); sent != "" {
				t.Errorf("sent %q", sent)
			}
		})
	}
}

// Cancelled at any instant of a conversation in which something goes on all the
// time, the device returns at that instant and leaves the port usable.
func TestDeviceCancel(t *testing.T) {
	for at := time.Duration(0); at < 12*time.Second; at += 47 * time.Millisecond {
		in(t, func(t *testing.T, d *Device, tool *end) {
			ctx, cancel := context.WithTimeout(t.Context(), at)
			defer cancel()
			slow := func(say func(string)) {
				for _, s := range []string{"I (1) a", ": b\n", "Work", "shop", "\n"} {
					time.Sleep(800 * time.Millisecond)
					say(s)
				}
			}
			play(t, tool, slow, slow, nil, slow)
			start := time.Now()
			_, err := all(ctx, d)
			if took := time.Since(start); err == nil || took != at {
				t.Fatalf("cancelled after %v: %v after %v", at, err, took)
			}
			mustFail(t, err, context.DeadlineExceeded)
		})
	}
}

// What has come in when the context ends is not taken for a whole reply.
func TestDeviceCancelInReply(t *testing.T) {
	in(t, func(t *testing.T, d *Device, tool *end) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		play(t, tool, says("Work"))
		ssid, err := d.SSID(ctx)
		mustFail(t, err, context.DeadlineExceeded)
		if ssid != "" {
			t.Errorf("%q", ssid)
		}
	})
}

// A write that nobody takes ends with the context on a port that can do that.
func TestDeviceCancelWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		port, far := net.Pipe()
		defer far.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := (&Device{Port: port}).SSID(ctx)
		mustFail(t, err, context.DeadlineExceeded)
	})
}

func TestDevicePortFails(t *testing.T) {
	in(t, func(t *testing.T, d *Device, tool *end) {
		d.Port.(*end).in.close()
		_, err := d.SSID(t.Context())
		mustFail(t, err, io.EOF)
	})
	in(t, func(t *testing.T, d *Device, tool *end) {
		mine := errors.New("unplugged")
		d.Port = failing{d.Port.(*end), mine, nil}
		_, err := d.SSID(t.Context())
		mustFail(t, err, mine)
		d.Port = failing{d.Port.(failing).end, nil, os.ErrNoDeadline}
		_, err = d.SSID(t.Context())
		mustFail(t, err, os.ErrNoDeadline)
		d.Port = d.Port.(failing).end
	})
}

type failing struct {
	*end
	write, deadline error
}

func (f failing) Write(p []byte) (int, error) { return 0, f.write }
func (f failing) SetReadDeadline(t time.Time) error {
	if f.deadline != nil {
		return f.deadline
	}
	return f.end.SetReadDeadline(t)
}

// Whatever is asked for, an error never shows the line that came: it could be
// the password.
func TestDeviceErrorsKeepSecrets(t *testing.T) {
	const secret = "hunter2_hunter2!"
	for _, reply := range []string{secret, "1234" + secret + strings.Repeat("x", 80), "87654321"} {
		in(t, func(t *testing.T, d *Device, tool *end) {
			d.Tries = 1
			for _, ask := range []func() error{
				func() error { _, err := d.Endpoint(t.Context()); return err },
				func() error { _, err := d.InstancePort(t.Context()); return err },
				func() error { _, err := d.RootCA(t.Context()); return err },
			} {
				device, tool := newWire()
				d.Port = device
				d.late = false
				play(t, tool, says(reply+"\n"))
				err := ask()
				mustFail(t, err, ErrReply)
				if strings.Contains(err.Error(), secret[:7]) || strings.Contains(err.Error(), "87654321") {
					t.Errorf("error shows the line: %v", err)
				}
			}
		})
	}
	// Nor is it left in the buffers.
	in(t, func(t *testing.T, d *Device, tool *end) {
		play(t, tool, says("I (1) a: b\n"+secret+"\n"))
		if got, err := d.Password(t.Context()); got != secret || err != nil {
			t.Fatal(err)
		}
		if kept := string(d.chunk) + string(d.line.buf[:cap(d.line.buf)]); strings.Trim(kept, "\x00") != "" {
			t.Errorf("kept %q", kept)
		}
	})
}

func FuzzDevice(f *testing.F) {
	for _, s := range []string{"", "\n", "443", "443\r\n", "70000\n", "myql.quarklink.io\x00", "ERROR refused\n", "I (1) a\nWorkshop\n",
		"myql\x1b[0;32mI (1) a\n.io\n", "\x1b[", "\x1b[0;", "I (", "I (1) ", string(testFile(f, "p256.pem.b64")) + "\n", strings.Repeat("a", 5000) + "\n1\n"} {
		f.Add([]byte(s), uint8(3))
	}
	f.Fuzz(func(t *testing.T, input []byte, step uint8) {
		in(t, func(t *testing.T, d *Device, tool *end) {
			d.Timeout, d.Tries = time.Second, 1
			// The input comes in pieces, with pauses around the gap that may end a reply.
			reply := func(say func(string)) {
				for rest := input; len(rest) > 0; {
					n := min(len(rest), 1+int(step)*16)
					say(string(rest[:n]))
					rest = rest[n:]
					time.Sleep(time.Duration(step) * time.Millisecond)
				}
			}
			play(t, tool, reply, reply, reply, reply, reply, reply)
			ctx := t.Context()
			check := func(err error, key string, value string, valid bool) {
				if err == nil && !valid {
					t.Errorf("%s took %q", key, value)
				}
				if err != nil && !errors.Is(err, ErrReply) && !errors.Is(err, ErrNoAnswer) && !errors.Is(err, ErrRefused) && !errors.Is(err, ErrUnsupported) {
					t.Errorf("%s: %v", key, err)
				}
				if len(d.line.buf) != 0 || cap(d.line.buf) > 3*DeviceMaxReply {
					t.Errorf("%s: %d of %d bytes kept", key, len(d.line.buf), cap(d.line.buf))
				}
			}
			start := time.Now()
			host, err := d.Endpoint(ctx)
			check(err, KeyEndpoint, host, len(host) > 0 && len(host) <= 127 && !strings.ContainsAny(host, " /:\r\n\x00_@"))
			port, err := d.InstancePort(ctx)
			check(err, KeyPort, fmt.Sprint(port), port > 0)
			der, err := d.RootCA(ctx)
			check(err, KeyRootCA, fmt.Sprint(der), len(der) > 6 && der[0] == 0x30)
			ssid, err := d.SSID(ctx)
			check(err, KeySSID, ssid, len(ssid) > 0 && len(ssid) <= 32 && !strings.ContainsAny(ssid, "\n\x00"))
			password, err := d.Password(ctx)
			check(err, KeyPassword, password, len(password) == 0 || len(password) >= 8 && len(password) <= 64 && !strings.ContainsAny(password, "\r\n\x00"))
			if took := time.Since(start); took > 5*(2+2)*time.Second {
				t.Errorf("took %v", took)
			}
		})
	})
}
